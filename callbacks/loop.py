"""A training loop of one's own: `watch` before it, and the body stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from vizlog.batch import FixedBatch
from vizlog.monitor import Monitor
from vizlog.probes.base import Probe
from vizlog.schedules import Schedule
from vizlog.stopping import StopWhen

__all__ = ["watch"]


def watch(
    model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    optimizer: Any = None,
    *,
    to: Any,
    probes: Sequence[Probe] | None = None,
    batch: FixedBatch | tuple[Any, Any] | Callable[[], Any] | None = None,
    every: int | Schedule | None = None,
    step: int | Callable[[], int] | None = None,
    epoch: Callable[[], int] | None = None,
    budget: float | None = None,
    stop_when: StopWhen | None = None,
) -> Monitor:
    """Watches a model in a loop of one's own; steps begin and end with the optimizer's.

    ```python
    monitor = vizlog.watch(model, optimizer, to="runs/a", batch=(x, y))
    for inputs, targets in loader:
        ...  # the body stays as it is
    monitor.close()
    ```

    Args:
        model: a module, a list or a dict of modules.
        optimizer: one, a list, or what holds them. None: put `with monitor.step():` around forward and backward.
        to: a path (TensorBoard there), a SummaryWriter, a W&B run, a backend, a list of these, or None: write nothing.
        probes: what to look at; None lets `vizlog.standard` choose.
        batch: a FixedBatch, (inputs, targets), or a function that returns one.
        every: for the standard probes, how many steps between histograms.
        step: the number to start from (a resumed run), or a function that returns the number of the step under way;
            None counts from 0.
        epoch: a function that returns the epoch, for schedules that go by epochs.
        budget: the share of training time that may be spent (0.01: one percent).
        stop_when: when the training is hopeless: "nonfinite", "dead", "gradients_gone", a function of the health
            scalars, or a list of these. `monitor.should_stop` then turns true, and it is yours to leave the loop.

    Returns:
        A monitor; `monitor.log({...})` writes numbers, `monitor.close()` finishes (at exit it closes itself).

    Raises:
        TypeError, ValueError: what was given does not fit; says what to do. Later nothing of ours is raised.
    """
    if optimizer is None and (step is not None or epoch is not None):
        raise ValueError(
            "step= and epoch= number the steps that begin with an optimizer's: give optimizer=, or number your own, "
            "`with monitor.step(step, epoch):`"
        )
    if step is not None and not callable(step):
        if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
            raise TypeError(f"step= takes the number to start from or a function that returns it, got {step!r}")
        step = int(step)
    if epoch is not None and not callable(epoch):
        raise TypeError(f"epoch= takes a function that returns the epoch, got {epoch!r}")
    monitor = Monitor(
        model,
        probes,
        to=to,
        batch=batch,
        optimizer=optimizer,
        every=every,
        budget=budget,
        stop_when=stop_when,
    )
    if optimizer is not None:
        try:
            monitor.follow(step, epoch)
        except BaseException:
            monitor.close()
            raise
    return monitor
