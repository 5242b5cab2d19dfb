"""When to log: a schedule answers one question, which number is due next?

A schedule decides from the step (or the epoch) alone, so that ranks and resumed runs agree. What is due is decided by
crossing: once a step has reached `next_step(last)`, something is due, whether or not that very number was seen. The
first step seen is always due.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

__all__ = ["AtSteps", "Every", "EveryEpoch", "LogSpaced", "Schedule", "Thinning", "as_schedule"]


class Schedule:
    """Base of the schedules; `a | b` is due where either is.

    A schedule of one's own subclasses this and gives one of the two methods. Numbers are −1 before the first.
    """

    def next_step(self, step: int) -> int | None:
        """The smallest due step above `step`, or None where there is none."""
        return None

    def next_epoch(self, epoch: int) -> int | None:
        """The smallest due epoch above `epoch`, or None where there is none."""
        return None

    @property
    def needs_epochs(self) -> bool:
        """Whether this schedule needs to be told the epoch."""
        return self.next_epoch(-1) is not None

    def __or__(self, other: Schedule) -> Schedule:
        if not isinstance(other, Schedule):
            return NotImplemented
        return _Union(self, other)


@dataclass(frozen=True)
class Every(Schedule):
    """Due at steps 0, n, 2n and so on."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _whole("Every(n)", "n", self.n, least=1))

    def next_step(self, step: int) -> int:
        return (step // self.n + 1) * self.n


@dataclass(frozen=True)
class EveryEpoch(Schedule):
    """Due at the first step of epochs 0, n, 2n, …; needs a source of epochs (`epoch=`, or Lightning's own)."""

    n: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _whole("EveryEpoch(n)", "n", self.n, least=1))

    def next_epoch(self, epoch: int) -> int:
        return (epoch // self.n + 1) * self.n


@dataclass(frozen=True, init=False)
class AtSteps(Schedule):
    """Due at the given steps: `AtSteps(10, 100, 1000)` or `AtSteps([10, 100, 1000])`."""

    steps: tuple[int, ...]

    def __init__(self, *steps: int | Iterable[int]) -> None:
        flat: list[int] = []
        for step in steps:
            flat.extend(step if isinstance(step, Iterable) else (step,))
        if not flat:
            raise ValueError("AtSteps needs at least one step, got none")
        whole = {_whole("AtSteps(step)", "step", step, least=0) for step in flat}
        object.__setattr__(self, "steps", tuple(sorted(whole)))

    def next_step(self, step: int) -> int | None:
        place = bisect.bisect_right(self.steps, step)
        return self.steps[place] if place < len(self.steps) else None


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Due at 0 and at steps that grow geometrically: about `per_decade` for each tenfold, all multiples of `every`.

    Early training changes fast and late training slowly: 450,000 steps make 24 due ones, with
    `every=100` 16.
    """

    every: int = 1
    per_decade: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", _whole("LogSpaced(every)", "every", self.every, least=1))
        object.__setattr__(self, "per_decade", _whole("LogSpaced(per_decade)", "per_decade", self.per_decade, least=1))

    def next_step(self, step: int) -> int:
        if step < 0:
            return 0
        if step < self.every:
            return self.every
        # Start one grid point early and walk up: a float logarithm may be off by one at the grid points themselves.
        k = max(0, math.floor(self.per_decade * math.log10(step / self.every)) - 1)
        while (point := self.every * math.ceil(round(10 ** (k / self.per_decade), 9))) <= step:
            k += 1
        return point


@dataclass(frozen=True)
class Thinning(Schedule):
    """Due every `every` steps, then every 2·`every`, 4·`every` …, so that a long run has about `most` due steps.

    The interval doubles whenever the step has doubled beyond `every`·`most`/4, a function of the step alone. With the
    defaults: every 100 steps up to step 12,400, every 200 up to 24,800 …; 450,000 steps make 443 due ones, and each
    further doubling of the run adds 62.
    """

    every: int = 100
    most: int = 500

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", _whole("Thinning(every)", "every", self.every, least=1))
        object.__setattr__(self, "most", _whole("Thinning(most)", "most", self.most, least=8))

    def next_step(self, step: int) -> int:
        interval = self._interval(step)
        return (step // interval + 1) * interval

    def _interval(self, step: int) -> int:
        # Each stage ends at an even multiple of its interval, so the next, twice as wide, starts on its own grid.
        stage = self.every * 2 * (self.most // 8)
        return self.every << (step // stage).bit_length()


@dataclass(frozen=True)
class _Union(Schedule):
    left: Schedule
    right: Schedule

    def next_step(self, step: int) -> int | None:
        return _earlier(self.left.next_step(step), self.right.next_step(step))

    def next_epoch(self, epoch: int) -> int | None:
        return _earlier(self.left.next_epoch(epoch), self.right.next_epoch(epoch))


def as_schedule(every: int | Schedule) -> Schedule:
    """`every=` as people write it: a number of steps, or a schedule.

    Raises:
        ValueError, TypeError: saying what an `every` may be.
    """
    if isinstance(every, Schedule):
        return every
    if isinstance(every, bool) or not isinstance(every, Integral):
        raise TypeError(f"every= takes a number of steps or a schedule such as vizlog.EveryEpoch(), got {every!r}")
    return Every(int(every))


def _earlier(a: int | None, b: int | None) -> int | None:
    return min((number for number in (a, b) if number is not None), default=None)


def _whole(what: str, name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} needs a whole number, got {name}={value!r}")
    if value < least:
        raise ValueError(f"{what} needs {name} >= {least}, got {name}={value}")
    return int(value)
