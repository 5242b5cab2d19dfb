"""Hugging Face: `Trainer(callbacks=[VizLog()])`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vizlog.backends.tensorboard import TensorBoard
from vizlog.backends.wandb import WandB
from vizlog.batch import FixedBatch
from vizlog.callbacks.arguments import Arguments
from vizlog.given import describe
from vizlog.isolation import isolated
from vizlog.loaders import inputs_and_targets, spread_examples
from vizlog.messages import LOG
from vizlog.monitor import Monitor
from vizlog.optimizers import real_optimizers, training
from vizlog.probes.base import Probe
from vizlog.schedules import Schedule
from vizlog.stopping import StopWhen

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import TensorBoardCallback, WandbCallback
except ImportError as error:
    raise ImportError("the Hugging Face callback needs transformers: pip install 'vizlog[huggingface]'") from error

__all__ = ["VizLog"]


class VizLog(TrainerCallback):  # type: ignore[misc]
    """Looks inside the model while a Hugging Face Trainer trains it, on a schedule; nothing of the training changes.

    ```python
    trainer = Trainer(model, args, callbacks=[VizLog()], ...)
    ```

    Writes to where the Trainer reports to, TensorBoard and Weights & Biases; where it reports to neither, to
    TensorBoard under `output_dir/vizlog`. Steps are those of the Trainer's charts and checkpoints, so 1 is the first:
    the weights at 500 are those of `checkpoint-500`. Gradients are those after the Trainer's clipping
    (`max_grad_norm`); its own `grad_norm` is the one before.

    Args:
        probes: what to look at; None lets `vizlog.standard` choose.
        to: where to write instead: a path, a SummaryWriter, a W&B run, a backend, or a list of these.
        batch: a FixedBatch, (inputs, targets), or a function that returns one; None: examples spread over the
            evaluation dataset (of the training dataset where there is none, which is said).
        every: for the standard probes, how many steps between histograms.
        budget: the share of training time that may be spent (0.01: one percent).
        stop_when: when the training is hopeless, and the Trainer is told to stop: "nonfinite", "dead",
            "gradients_gone", a function of the health scalars, or a list of these. None: never.

    Raises:
        TypeError, ValueError: `probes`, `every`, `to` or `budget` is nothing of the kind; or, at the start of training,
            what was given does not fit the model.
    """

    def __init__(
        self,
        probes: Sequence[Probe] | None = None,
        *,
        to: Any = None,
        batch: FixedBatch | tuple[Any, Any] | Callable[[], Any] | None = None,
        every: int | Schedule | None = None,
        budget: float | None = None,
        stop_when: StopWhen | None = None,
    ) -> None:
        self._given = Arguments(probes, to, batch, every, budget, stop_when)
        self._monitor: Monitor | None = None

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the training under way, or None."""
        return self._monitor

    # The Trainer's events ---------------------------------------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Any = None,
        train_dataloader: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        self._stop(looks=False)  # of a training that raised, such as one whose batches did not fit in memory
        trainer, writes = _calling_trainer(), state.is_world_process_zero
        batch = self._given.batch
        if batch is None:
            say = LOG.warning if writes else LOG.debug
            batch = _inferred_batch(trainer, train_dataloader, model, processing_class, say)
        self._monitor = self._given.monitor(
            model,
            batch,
            to=_destinations(trainer, args, self._given.to) if writes else None,
            optimizer=_watched(optimizer, model) or None,
            forward_context=None if trainer is None else trainer.compute_loss_context_manager,
        )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._monitor is not None:
            self._monitor.begin(state.global_step + 1, int(state.epoch or 0))
            if self._monitor.should_stop:
                control.should_training_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._monitor is not None:
            self._monitor.end()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        # The last log before on_train_end, where TensorBoardCallback closes its writer.
        if logs and "train_runtime" in logs:
            self._stop(looks=not args.load_best_model_at_end)  # the best is not that of the last step

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop(looks=False)

    def _stop(self, *, looks: bool) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close(looks=looks)


# The Trainer ----------------------------------------------------------------------------------------------------------


def _calling_trainer() -> Trainer | None:
    """The Trainer whose event this is, or None: callbacks are told neither of it, nor of its evaluation data."""
    frame = inspect.currentframe()
    for _ in range(8):
        if frame is None:
            break
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            return found
        frame = frame.f_back
    return None


def _destinations(trainer: Trainer | None, args: TrainingArguments, to: Any) -> Any:
    """What was asked for, else where the Trainer reports to and that takes pictures, else a folder."""
    if to is not None:
        return to
    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    found = [backend for callback in callbacks if (backend := _backend(callback)) is not None]
    if found:
        return found
    path = Path(args.output_dir) / "vizlog"
    LOG.warning("vizlog: the Trainer reports to nothing that takes pictures, so they go to TensorBoard under %s", path)
    return path


def _backend(callback: TrainerCallback) -> Any:
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        return TensorBoard(callback.tb_writer)
    if isinstance(callback, WandbCallback):
        import wandb

        return WandB(wandb.run, step_key="train/global_step") if wandb.run is not None else None
    return None


def _watched(optimizer: Any, model: nn.Module) -> list[Any]:
    """The real optimizers that train the model; none where there is none to be found."""
    try:
        return training(model, real_optimizers(optimizer))
    except TypeError:
        return []


# The fixed batch ------------------------------------------------------------------------------------------------------


def _inferred_batch(
    trainer: Trainer | None, train_loader: Any, model: nn.Module, processing: Any, say: Callable[..., None]
) -> FixedBatch | None:
    """Examples of the data, with what the model and its tokenizer or image processor know of them.

    None, which is said, where there are none that a picture can be made of.
    """
    batch, numbers = _examples(trainer, train_loader, model, say)
    if batch is None:
        return None
    try:
        inputs, targets = inputs_and_targets(batch, model)
        fixed = FixedBatch(inputs, targets, tokens=_tokens(processing)).numbered(numbers)
    except Exception as reason:  # noqa: BLE001 -- data may be anything, and nobody asked for its pictures
        say("vizlog makes no pictures of examples, since the data is %s: %s", describe(batch), reason)
        return None
    if fixed.images is not None and len(getattr(processing, "image_mean", None) or ()) == fixed.images.shape[1]:
        fixed.mean, fixed.std = processing.image_mean, processing.image_std
    return fixed


def _examples(
    trainer: Trainer | None, train_loader: Any, model: nn.Module, say: Callable[..., None]
) -> tuple[Any, list[int]]:
    """A batch of examples spread over the evaluation data, else over the training data, else None.

    With it, which of the dataset each example is.
    """
    why: list[str] = []
    if trainer is None or trainer.eval_dataset is None:
        why.append("there is no evaluation dataset")
    else:
        try:
            with isolated([model]):
                return spread_examples(_evaluation_loader(trainer))
        except Exception as error:  # noqa: BLE001 -- a dataset may raise anything
            why.append(f"the evaluation data cannot be asked by index ({str(error) or type(error).__name__})")
    try:
        with isolated([model]):
            batch, numbers = spread_examples(train_loader)
    except Exception as error:  # noqa: BLE001 -- a dataset may raise anything
        why.append(f"the training data cannot be asked by index ({str(error) or type(error).__name__})")
        say("vizlog makes no pictures of examples, since %s; or give VizLog(batch=…)", " and ".join(why))
        return None, []
    say("vizlog: %s, so pictures are made of training examples; or give VizLog(batch=…)", *why)
    return batch, numbers


def _evaluation_loader(trainer: Trainer) -> Any:
    """As for an evaluation; of several datasets the first."""
    data = trainer.eval_dataset
    return trainer.get_eval_dataloader(next(iter(data)) if isinstance(data, dict) else None)


def _tokens(processing: Any) -> Any:
    held = getattr(processing, "tokenizer", None)  # by what processes images and sounds as well
    return next((one for one in (processing, held) if hasattr(one, "convert_ids_to_tokens")), None)
