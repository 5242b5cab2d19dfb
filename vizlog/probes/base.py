"""What a probe is: one view of a model, turned into records on its schedule."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from weakref import WeakSet

from vizlog.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vizlog.batch import FixedBatch
    from vizlog.records import Record
    from vizlog.requests import Request
    from vizlog.survey import Survey

__all__ = ["Context", "Figures", "Probe", "as_probes", "measures", "only_arranges"]

M = TypeVar("M", bound=Callable[..., Any])

_ARRANGING: WeakSet[Callable[..., Any]] = WeakSet()
"""The functions themselves: a mark on them would be handed on by `functools.wraps` to what calls them."""


@dataclass(frozen=True)
class Context:
    """What a probe may look at when it is due.

    Args:
        step, epoch: of the step that is due; epoch is None where no source of epochs is known.
        models: name -> bare module (wrappers taken off, in the state after the step); one model alone is named "".
        optimizers: the watched optimizers, whose `param_groups` hold the learning rates.
        captured: what `wants` asked for: key -> {canonical name: what the reducer returned}.
        batch: the fixed batch, or None.
        forward_context: makes the context a forward over the batch runs under (the training forward's autocast).
        skipped: for each step that a gradient scaler's fused optimizer may have skipped, a tensor > 0 where it did.
        rank, world: this process among those that train together; 0 and 1 alone.
    """

    step: int
    epoch: int | None
    models: Mapping[str, nn.Module]
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    captured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch: FixedBatch | None = None
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    skipped: tuple[torch.Tensor, ...] = ()
    rank: int = 0
    world: int = 1

    @property
    def model(self) -> nn.Module:
        """The only model, or the first of several."""
        return next(iter(self.models.values()))


@dataclass(frozen=True)
class Figures:
    """A health figure of each layer, in order of depth; what a step's probes yield of one kind is drawn together.

    Args:
        kind: "dead_units", "zeros", "saturated", "nonfinite", "gradient_norm", "update_ratio", "attention_entropy" or
            "attention_sinks".
        values: layer -> figure; NaN where it has none.
        caption: what was computed, over which examples.
        source: what was looked at, where one kind has several ("weights", "gradients", "activations").
        worst: which is the worst of them.
        quiet: layers that are not drawn while their figure is 0, and that of others is not; they count.
    """

    kind: str
    values: Mapping[str, float]
    caption: str = ""
    source: str = ""
    worst: Literal["highest", "lowest"] = "highest"
    quiet: Set[str] = frozenset()


def only_arranges(measure: M) -> M:
    """Marks a `measure` that runs and changes no model: nothing is isolated for it, which would take milliseconds."""
    _ARRANGING.add(measure)
    return measure


def measures(probe: Probe) -> bool:
    """Whether a probe's `measure` may run or change a model: any that is not itself marked, whatever it calls."""
    found = inspect.getattr_static(probe, "measure")
    return not (isinstance(found, FunctionType) and found in _ARRANGING)


class Probe:
    """One view of a model, turned into records on its schedule.

    A probe of one's own subclasses this and gives `measure` and `finish`; `wants` only if it looks at gradients or at
    what passes through the model.

    Args:
        every: a number of steps, or a schedule.
    """

    slow: ClassVar[bool] = False
    """Whether `finish` may take seconds: it then never holds up other records."""

    picture: ClassVar[bool] = True
    """Whether what it finds may be dropped where drawing cannot keep up with training."""

    needs_optimizer: ClassVar[bool] = False
    """Whether it sees something only where the optimizer is watched."""

    def __init__(self, *, every: int | Schedule = 100) -> None:
        self.schedule = as_schedule(every)

    def _check_numbers(self, *, or_none: bool = False, **given: Any) -> None:
        """Raises where one of these arguments is no whole number above 0.

        Raises:
            ValueError: names it.
        """
        for name, value in given.items():
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not (or_none and value is None) and (not whole or value < 1):
                wanted = "a number >= 1 or None" if or_none else "a number >= 1"
                raise ValueError(f"{self.name}({name}=) needs {wanted}, got {value!r}")

    @property
    def name(self) -> str:
        """How messages and `health/vizlog_seconds/…` call it."""
        return type(self).__name__

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        """Called once before the first step, with what a pass over the fixed batch met (None: no batch).

        Raises:
            ValueError: what was asked for does not exist in these models, or needs a batch; says what to do.
        """

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        """What must be captured while the step runs: a key of one's own -> a request. Called at each due step."""
        return {}

    @only_arranges
    def measure(self, context: Context) -> Any:
        """Small tensors, arrays and plain data that go to `finish`; runs on the training thread, isolated.

        One that `only_arranges` what was captured is not isolated. Tensors may lie on any device, nested in dicts,
        lists, tuples and dataclasses: they reach `finish` on the CPU, as copies.

        Of a sharded model all ranks run it, with what was read of parameters brought together on rank 0 alone; a model
        that it runs must run on all of them.
        """
        return context.captured

    def finish(self, measured: Any) -> Iterable[Record | Figures]:
        """Turns what was measured into records; runs on the worker."""
        raise NotImplementedError(f"{self.name} needs a finish(measured) that yields records")


def as_probes(probes: Iterable[Probe]) -> list[Probe]:
    """What a person gave as `probes=` -> a list of probes.

    Raises:
        TypeError: it is no list, or there is something else in it.
    """
    given = list(probes) if isinstance(probes, Iterable) else [probes]
    wrong = [probe for probe in given if not isinstance(probe, Probe)]
    if wrong or not isinstance(probes, Iterable):
        raise TypeError(
            f"probes= takes a list of probes such as [vizlog.WeightHistograms()], got {(wrong or given)[0]!r}"
        )
    return given
