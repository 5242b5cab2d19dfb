"""Lightning: `Trainer(callbacks=[VizLog()])`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vizlog.backends.tensorboard import TensorBoard
from vizlog.backends.wandb import WandB
from vizlog.batch import FixedBatch, as_fixed_batch
from vizlog.callbacks.arguments import Arguments
from vizlog.given import describe, makes_a_batch
from vizlog.isolation import isolated
from vizlog.loaders import asked_for, inputs_and_targets, spread_examples
from vizlog.messages import LOG, one_line
from vizlog.monitor import Monitor
from vizlog.optimizers import training
from vizlog.probes.base import Probe
from vizlog.ranks import whole
from vizlog.schedules import Schedule
from vizlog.stopping import StopWhen

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("the Lightning callback needs lightning: pip install 'vizlog[lightning]'") from error

__all__ = ["VizLog"]


class VizLog(Callback):
    """Looks inside the model while it trains, on a schedule; nothing of the training changes.

    ```python
    trainer = Trainer(callbacks=[VizLog()])
    ```

    Writes to all loggers of the Trainer that can take pictures (TensorBoard, Weights & Biases); where there is none, to
    TensorBoard under `default_root_dir/vizlog`. Steps are those of the loggers. Silent in `fast_dev_run`, `lr_find` and
    `scale_batch_size`.

    Args:
        probes: what to look at; None lets `vizlog.standard` choose.
        to: where to write instead: a path, a SummaryWriter, a W&B run, a backend, or a list of these.
        batch: a FixedBatch, (inputs, targets), or a function that returns one; None: examples spread over the
            validation dataset (of the training data where there is none, which is said).
        every: for the standard probes, how many steps between histograms.
        budget: the share of training time that may be spent (0.01: one percent).
        stop_when: when the training is hopeless, and the Trainer is told to stop: "nonfinite", "dead",
            "gradients_gone", a function of the health scalars, or a list of these. None: never.

    Raises:
        TypeError, ValueError: `probes`, `every`, `to` or `budget` is nothing of the kind; or, at the start of fit, what
            was given does not fit the model.
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
        super().__init__()
        self._given = Arguments(probes, to, batch, every, budget, stop_when)
        self._monitor: Monitor | None = None
        self._resumed: dict[str, Any] | None = None
        self._latest: dict[str, Any] = {}  # state: a checkpoint may be saved after the fit, or because it raised
        self._seen: Any = None  # the first batch of the sanity check
        self._waits_for_batch = False
        self._measures_norm = True
        self._has_norm = False

    @property
    def state_key(self) -> str:
        probes, to = self._given.probes, self._given.to
        looks_at = None if probes is None else [_in_words(probe) for probe in probes]
        writes_to = to if to is None or isinstance(to, (str, Path)) else type(to).__name__
        return self._generate_state_key(probes=looks_at, every=self._given.every, to=writes_to)

    def state_dict(self) -> dict[str, Any]:
        # Without a budget schedules follow from the step alone, and there is nothing to keep but what stops a run.
        if self._given.budget is None and self._given.stop_when is None:
            return {}
        if self._monitor is not None:
            self._latest = self._monitor.state_dict()
        return self._latest

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the fit under way, or None."""
        return self._monitor

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        if trainer.sanity_checking and self._seen is None and self._given.batch is None:
            self._seen = batch  # wanted only where the dataset cannot be asked by index

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen, self._seen = self._seen, None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._given.batch is not None:
            self._start(trainer, pl_module, _given_batch(self._given.batch, trainer, pl_module))
            return
        batch, numbers = _examples(trainer, pl_module, seen)
        self._waits_for_batch = batch is None
        if not self._waits_for_batch:
            self._start(trainer, pl_module, _inferred_batch(batch, pl_module, numbers))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._waits_for_batch:
            self._waits_for_batch = False
            self._start(trainer, pl_module, _inferred_batch(batch, pl_module))
        self._has_norm = False
        if self._monitor is not None:
            self._monitor.begin(_step(trainer), trainer.current_epoch)
            if self._monitor.should_stop:
                trainer.should_stop = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        monitor = self._monitor
        # In manual optimisation the user has clipped by now, and a fused optimizer unscales inside its step.
        if (
            monitor is None
            or not monitor.is_due
            or not pl_module.automatic_optimization
            or _unscales(optimizer, trainer)
        ):
            return
        if self._measures_norm and not self._has_norm:  # a closure may be called many times in one step
            try:
                norm = _gradient_norm(optimizer)
                if norm is not None:
                    self._has_norm = True
                    monitor.log({"health/gradient_norm_before_clipping": norm})
            except Exception as error:  # noqa: BLE001 -- nothing of ours reaches the training loop
                self._measures_norm = False
                LOG.warning("vizlog could not measure the gradient norm: %s", one_line(error))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._monitor is not None:
            self._monitor.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop(looks=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    # What they lead to ------------------------------------------------------------------------------------------------

    def _start(self, trainer: Trainer, pl_module: LightningModule, batch: FixedBatch | None) -> None:
        self._monitor = self._given.monitor(
            pl_module,
            batch,
            to=_destinations(trainer, self._given.to),
            optimizer=training(pl_module, trainer.optimizers) or None,
            forward_context=trainer.precision_plugin.forward_context,
        )
        resumed, self._resumed = self._resumed, None
        if resumed:
            self._monitor.load_state_dict(resumed)

    def _stop(self, *, looks: bool = True) -> None:
        self._latest = self.state_dict()
        monitor, self._monitor = self._monitor, None
        self._seen, self._waits_for_batch = None, False
        if monitor is not None:
            monitor.close(looks=looks)


def _in_words(probe: Probe) -> str:
    """What tells a probe from another of its kind, as it will be of the one that a resumed run makes."""
    select, schedule = getattr(probe, "_select", None), probe.schedule
    chosen = select if isinstance(select, (str, list, tuple)) and "0x" not in repr(select) else type(select).__name__
    return f"{probe.name} {chosen} {schedule if is_dataclass(schedule) else type(schedule).__name__}"


# The Trainer ----------------------------------------------------------------------------------------------------------


def _step(trainer: Trainer) -> int:
    """The step that the Trainer's loggers use; `global_step` would count every optimizer."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001 -- it has no public name


def _destinations(trainer: Trainer, to: Any) -> Any:
    """What was asked for, else the loggers that can take pictures, else a folder; nothing on ranks that do not log."""
    if not trainer.is_global_zero:
        return None  # a logger's experiment is a dummy there, which would take anything
    if to is not None:
        return to
    found = [backend for logger in trainer.loggers if (backend := _backend(logger)) is not None]
    if found:
        return found
    path = Path(trainer.default_root_dir) / "vizlog"
    LOG.warning("vizlog: no logger of the Trainer takes pictures, so they go to TensorBoard under %s", path)
    return path


def _backend(logger: Any) -> Any:
    # By name, since `pytorch_lightning` and `lightning.pytorch` have each a class of their own.
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        writer = logger.experiment
        # The Trainer has closed it after an earlier fit, validation or test, and opens it again at its next scalar.
        writer._get_file_writer()  # noqa: SLF001 -- it has no public way to be opened without writing
        return TensorBoard(writer)
    if "WandbLogger" in kinds:
        return WandB(logger.experiment, step_key="trainer/global_step")
    return None


def _unscales(optimizer: Any, trainer: Trainer) -> bool:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _gradient_norm(optimizer: Any) -> Tensor | None:
    """The 2-norm over all gradients of an optimizer, as a scalar on their device; None where there is none."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:  # no loss, or an epoch that only runs the batch norms
        return None
    return whole(torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients]))


# The fixed batch ------------------------------------------------------------------------------------------------------


def _examples(trainer: Trainer, pl_module: LightningModule, seen: Any) -> tuple[Any, list[int]]:
    """A batch as validation_step gets it, of examples spread over the validation data, or over the training data.

    With it, which of the dataset each example is. Where neither can be asked by index, the first batch of the sanity
    check (`seen`), else None: take the first training batch that passes.
    """
    reason = "there is no validation data"
    if trainer.enable_validation:
        try:
            return _fetch(lambda: _validation_loaders(trainer), trainer, pl_module)
        except Exception as error:  # noqa: BLE001 -- a dataset may raise anything
            if seen is not None:
                return seen, []
            reason = f"the validation data cannot be asked by index ({str(error) or type(error).__name__})"
    LOG.warning("vizlog: %s, so pictures are made of training examples; or give VizLog(batch=…)", reason)
    try:
        return _fetch(lambda: trainer.train_dataloader, trainer, pl_module)
    except Exception:  # noqa: BLE001 -- a dataset may raise anything
        return None, []


def _validation_loaders(trainer: Trainer) -> Any:
    loaders = trainer.val_dataloaders
    if loaders is None:  # Lightning makes them for the first validation, which may be epochs away
        loaders = trainer.fit_loop.epoch_loop.val_loop._data_source.dataloader()  # noqa: SLF001 -- it has no public name
    return loaders


def _fetch(loaders: Callable[[], Any], trainer: Trainer, pl_module: LightningModule) -> tuple[Any, list[int]]:
    """Examples spread evenly over a map-style dataset, collated, converted and moved as for a validation step."""
    trainer.validating = True  # hooks that augment in training must not
    try:
        with isolated([pl_module]):
            examples, numbers = spread_examples(_first_loader(loaders()))
            batch = trainer.precision_plugin.convert_input(examples)
            batch = pl_module._on_before_batch_transfer(batch)  # noqa: SLF001 -- it has no public name
            return trainer.strategy.batch_to_device(batch), numbers
    finally:
        trainer.training = True


def _first_loader(loaders: Any) -> Any:
    """The first of nested lists, dicts and CombinedLoaders of loaders; says so where there are others."""
    if hasattr(loaders, "iterables"):
        return _first_loader(loaders.iterables)
    if not isinstance(loaders, (Mapping, list, tuple)):
        return loaders
    each = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    if len(each) > 1:
        LOG.info("vizlog looks at examples of the first of %d dataloaders; VizLog(batch=…) takes others", len(each))
    return _first_loader(each[0])


def _given_batch(batch: Any, trainer: Trainer, pl_module: LightningModule) -> FixedBatch | None:
    """What a person gave, in the Trainer's precision."""
    with isolated([pl_module]):
        fixed = asked_for(batch, as_fixed_batch) if makes_a_batch(batch) else as_fixed_batch(batch)
    if fixed is not None:
        fixed = fixed.each(trainer.precision_plugin.convert_input)
        fixed.forward = fixed.forward or _forward(pl_module)
    return fixed


def _inferred_batch(batch: Any, pl_module: LightningModule, numbers: Sequence[int] = ()) -> FixedBatch | None:
    """A batch of the data -> what of it the model takes, and targets; None, which is said, where there is no such.

    `numbers`: which of the dataset each example is, where that is known.
    """
    try:
        model = _model(pl_module)
        inputs, targets = inputs_and_targets(batch, model)
        if model is not pl_module and isinstance(inputs, tuple) and len(inputs) > 1:
            # A denoiser takes labels for times: what a step makes of a batch before it calls the model is not known.
            LOG.info(
                "vizlog calls %s with %s of the data, since %s has no forward of its own; VizLog(batch=…) takes others",
                type(model).__name__,
                describe(inputs),
                type(pl_module).__name__,
            )
        return FixedBatch(inputs, targets, forward=_forward(pl_module)).numbered(numbers)
    except Exception as reason:  # noqa: BLE001 -- data may be anything, and nobody asked for its pictures
        LOG.warning("vizlog makes no pictures of examples, since the data is %s: %s", describe(batch), reason)
        return None


def _model(pl_module: LightningModule) -> nn.Module:
    """What is called with the inputs: the module, or, where it has no forward of its own, the only model it holds."""
    home = next(kind for kind in type(pl_module).__mro__ if "forward" in vars(kind))
    if home.__name__ != "LightningModule":
        return pl_module
    models = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    return models[0] if len(models) == 1 else pl_module


def _forward(pl_module: LightningModule) -> Callable[[Any, Any], Any] | None:
    model = _model(pl_module)
    if model is pl_module:
        return None

    def forward(_: nn.Module, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    return forward
