"""Lightning: `Trainer(callbacks=[VizLog()])`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vizlog.backends.tensorboard import TensorBoard
from vizlog.backends.wandb import WandB
from vizlog.batch import MOST, FixedBatch, describe
from vizlog.isolation import isolated
from vizlog.monitor import Monitor
from vizlog.probes.base import Probe
from vizlog.schedules import Schedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.loggers.logger import DummyLogger
except ImportError as error:
    raise ImportError("the Lightning callback needs lightning: pip install 'vizlog[lightning]'") from error

__all__ = ["VizLog"]

_LOG = logging.getLogger("vizlog")
_BATCH_BYTES = 64 << 20
"""How large an inferred batch may be; at least 32 examples are taken whatever they weigh."""


class VizLog(Callback):
    """Looks inside the model while it trains, on a schedule; nothing of the training changes.

    ```python
    trainer = Trainer(callbacks=[VizLog()])
    ```

    Writes to all loggers of the Trainer that can take pictures (TensorBoard, Weights & Biases); where there is none, to TensorBoard under
    `default_root_dir/vizlog`. Silent in `fast_dev_run`, `lr_find` and the batch-size finder.

    Args:
        probes: what to look at; None lets `vizlog.standard` choose.
        to: where to write instead: a path, a SummaryWriter, a W&B run, a backend, or a list of these.
        batch: a FixedBatch, (inputs, targets), or a function that returns one; None: examples spread over the validation dataset (of the
            training data where there is none, which is said).
        every: for the standard probes, how many steps between histograms.
        budget: the share of training time that may be spent (0.01: one percent).

    Raises:
        TypeError, ValueError: at the start of fit, where what was given does not fit the model.
    """

    def __init__(
        self,
        probes: Sequence[Probe] | None = None,
        *,
        to: Any = None,
        batch: FixedBatch | tuple[Any, Any] | Callable[[], Any] | None = None,
        every: int | Schedule | None = None,
        budget: float | None = None,
    ) -> None:
        super().__init__()
        self._probes, self._to, self._batch, self._every, self._budget = probes, to, batch, every, budget
        self._monitor: Monitor | None = None
        self._waits_for_batch = False
        self._passed: Any = None

    @property
    def state_key(self) -> str:
        names = None if self._probes is None else [probe.name for probe in self._probes]
        return self._generate_state_key(probes=names, every=self._every, to=None if self._to is None else str(self._to))

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the fit under way, or None."""
        return self._monitor

    # Lightning's hooks ---------------------------------------------------------------------------------------------------------------

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        if trainer.sanity_checking and self._passed is None and self._batch is None and _is_active(trainer):
            self._passed = batch  # wanted only where the dataset cannot be asked by index

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_active(trainer):
            return
        if self._batch is not None:
            self._start(trainer, pl_module, self._batch)
            return
        batch, self._waits_for_batch = self._infer(trainer, pl_module)
        if not self._waits_for_batch:
            self._start(trainer, pl_module, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._waits_for_batch:
            self._waits_for_batch = False
            _LOG.warning("vizlog: the validation data cannot be asked by index, so pictures are made of training examples; or give batch=")
            self._start(trainer, pl_module, _as_batch(batch, trainer, pl_module))
        if self._monitor is not None:
            self._monitor.begin(_step(trainer), trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        monitor = self._monitor
        if monitor is None or not monitor.is_due:
            return
        if getattr(trainer.precision_plugin, "scaler", None) and getattr(optimizer, "_step_supports_amp_scaling", False):
            return  # a fused optimizer unscales inside its step, and clipping is refused for it
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        number = trainer.optimizers.index(optimizer) if optimizer in trainer.optimizers else 0
        name = "health/gradient_norm_before_clipping" + (f"/{number}" if len(trainer.optimizers) > 1 else "")
        monitor.log({name: torch.nn.utils.get_total_norm(gradients)})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._monitor is not None:
            self._monitor.end()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._monitor is not None:
            self._monitor.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    # What they lead to ---------------------------------------------------------------------------------------------------------------

    def _start(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        options: dict[str, Any] = {
            "to": self._to if self._to is not None else _destinations(trainer),
            "optimizer": trainer.optimizers or None,
            "every": self._every,
            "budget": self._budget,
            "forward_context": trainer.precision_plugin.forward_context,
        }
        if self._batch is not None or batch is None:
            self._monitor = Monitor(pl_module, self._probes, batch=batch, **options)
            return
        try:
            self._monitor = Monitor(pl_module, self._probes, batch=batch, **options)
        except ValueError as reason:  # the batch was ours to guess, so it must not stop the training
            _LOG.warning("vizlog goes on without pictures of examples: %s", reason)
            self._monitor = Monitor(pl_module, self._probes, **options)

    def _stop(self) -> None:
        monitor, self._monitor, self._passed = self._monitor, None, None
        if monitor is not None:
            monitor.close()

    def _infer(self, trainer: Trainer, pl_module: LightningModule) -> tuple[FixedBatch | None, bool]:
        """Examples of the validation data, or of the training data, and whether to wait for a batch to pass instead."""
        loader = _first_loader(trainer.val_dataloaders)
        if loader is None:
            loader = _first_loader(trainer.train_dataloader)
            _LOG.warning("vizlog: there is no validation data, so pictures are made of training examples; or give batch=")
        try:
            with isolated([pl_module]):
                collated = _by_index(loader)
        except Exception as error:  # a dataset may raise anything
            _LOG.warning("vizlog could not fetch examples by index (%s: %s)", type(error).__name__, error)
            collated = None
        collated = collated if collated is not None else self._passed
        if collated is None:
            return None, True
        return _as_batch(collated, trainer, pl_module), False


def _is_active(trainer: Trainer) -> bool:
    # lr_find, the batch-size finder and fast_dev_run put a DummyLogger in place of the loggers.
    return not trainer.fast_dev_run and not isinstance(trainer.logger, DummyLogger) and not _finds_learning_rate(trainer)


def _finds_learning_rate(trainer: Trainer) -> bool:
    return any(type(callback).__name__ in ("_LRCallback", "_TryLoopCallback") for callback in trainer.callbacks)


def _step(trainer: Trainer) -> int:
    """The step that the Trainer's loggers use; `global_step` would count every optimizer."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _destinations(trainer: Trainer) -> Any:
    if not trainer.is_global_zero:
        return None
    found = [backend for logger in trainer.loggers if (backend := _backend(logger)) is not None]
    if found:
        return found
    path = Path(trainer.default_root_dir) / "vizlog"
    _LOG.warning("vizlog: no logger of the Trainer takes pictures, so they go to TensorBoard under %s", path)
    return path


def _backend(logger: Logger) -> Any:
    if isinstance(logger, TensorBoardLogger):
        return TensorBoard(logger.experiment)
    if isinstance(logger, WandbLogger):
        return WandB(logger.experiment, step_key="trainer/global_step")
    return None


def _first_loader(loaders: Any) -> Any:
    while isinstance(loaders, (Mapping, Sequence)) and not isinstance(loaders, str) and len(loaders):
        loaders = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders[0]
    inner = getattr(loaders, "iterables", None)
    return _first_loader(inner) if inner is not None else loaders


def _by_index(loader: Any) -> Any:
    """Examples spread evenly over a map-style dataset, collated as the loader does; None for another kind."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return None
    first = dataset[0]
    size = sum(x.numel() * x.element_size() for x in torch.utils._pytree.tree_leaves(first) if isinstance(x, torch.Tensor))
    number = min(len(dataset), MOST, max(32, _BATCH_BYTES // max(size, 1)))
    indices = torch.linspace(0, len(dataset) - 1, number).round().long().tolist()
    return collate([dataset[index] for index in indices])


def _as_batch(collated: Any, trainer: Trainer, pl_module: LightningModule) -> FixedBatch | None:
    """A collated batch -> (inputs, targets), moved and converted as the Trainer does."""
    trainer.validating = True  # transfer hooks that augment in training must not
    try:
        with isolated([pl_module]):
            moved = trainer.precision_plugin.convert_input(pl_module._apply_batch_transfer_handler(collated))
    finally:
        trainer.training = True
    inputs, targets = (moved[0], moved[1]) if isinstance(moved, (tuple, list)) and len(moved) >= 2 else (moved, None)
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    try:
        return FixedBatch(inputs, targets, forward=_forward(pl_module))
    except (TypeError, ValueError) as reason:
        _LOG.warning("vizlog makes no pictures of examples, since the data is no (inputs, targets) but %s: %s", describe(moved), reason)
        return None


def _forward(pl_module: LightningModule) -> Callable[[Any, Any], Any] | None:
    """For a LightningModule without a forward of its own: the only model that it holds."""
    if type(pl_module).forward is not LightningModule.forward:
        return None
    models = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
    if len(models) != 1:
        return None
    name = models[0]

    def forward(module: Any, inputs: Any) -> Any:
        model = getattr(module, name)
        return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    return forward
