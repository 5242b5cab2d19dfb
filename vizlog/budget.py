"""What of the training time is spent, and how much to stretch each schedule so that it stays within a share of it."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Sequence
from typing import Any, Protocol

from vizlog.schedules import as_schedule

__all__ = ["Cost", "Spender", "check_pace", "stretches"]


def check_pace(probes: Any, every: Any, budget: float | None) -> None:
    """Raises where `every` or `budget` is nothing of the kind, or `every` stands beside probes that have their own."""
    if every is not None:
        as_schedule(every)
    number = isinstance(budget, numbers.Real) and not isinstance(budget, bool)
    if budget is not None and not (number and 0 < budget <= 1):
        raise ValueError(f"budget= takes a share of the training time such as 0.01, got {budget!r}")
    if probes is not None and every is not None:
        raise ValueError("every= is for the standard probes; give each of probes= its own every=")


def stretches(shares: Sequence[float], budget: float) -> list[int]:
    """Whole factors by which schedules are stretched, the dearest most.

    A level is found such that the shares, each cut off at it, add up to the budget (water-filling); those below it are
    left alone.

    Args:
        shares: the share of training time that each probe takes unstretched.
        budget: the share that all may take together.
    """
    if sum(shares) <= budget:
        return [1] * len(shares)
    left, level = budget, 0.0
    for number, share in enumerate(sorted(shares)):
        level = left / (len(shares) - number)
        if share > level:
            break
        left -= share
    return [max(1, math.ceil(share / level)) for share in shares]


class Spender(Protocol):
    """A probe, as far as its time is concerned."""

    seconds: float
    latest_seconds: float

    @property
    def name(self) -> str:
        """How it is called."""

    def took(self, seconds: float) -> None:
        """Adds to what it has taken, in all and at the latest due step."""


class Cost:
    """What steps of a training take, and what of that is spent on looking at them, on the training thread.

    As a context it stands around all that a due step takes: what no probe is known to have taken is shared among those
    that are due. To find parameters, to isolate the models, to send what was found: it is taken from the training too.

    Args:
        spenders: all there are.

    Attributes:
        steps: how many have begun.
        a_step: seconds that a step takes without vizlog, on average, as of the latest look; None before there is one.
    """

    def __init__(self, spenders: Sequence[Spender]) -> None:
        self.steps = 0
        self.a_step: float | None = None
        self._all = spenders
        self._due: Sequence[Spender] = ()
        self._others = 0.0  # seconds that are no probe's
        self._started = 0.0  # when the first step began
        self._depth = 0
        self._began = self._before = 0.0

    def step_begins(self) -> None:
        """Counts a step."""
        self.steps += 1
        if self.steps == 1:
            self._started = time.perf_counter()

    def look(self) -> None:
        """Says what a step takes by now; at the first step nobody knows."""
        if self.steps > 1:
            self.a_step = max(self.elapsed - self.spent, 1e-6) / (self.steps - 1)

    def add(self, seconds: float) -> None:
        """Of what is no probe's: to decide whether to stop."""
        self._others += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began."""
        return time.perf_counter() - self._started

    @property
    def spent(self) -> float:
        """Seconds that vizlog has taken from the training thread."""
        return self._known() + self._others

    @property
    def share(self) -> float:
        """The share of the time since the first step that vizlog took."""
        return min(self.spent / max(self.elapsed, 1e-6), 1.0)

    def in_words(self, elapsed: float, beside: float) -> str:
        """What it came to, of so many seconds of training; `beside`: those of threads beside it."""
        most = max(self._all, key=lambda spender: spender.seconds, default=None)
        if not self.steps or most is None or elapsed <= 0:
            return ""
        share = _rounded(100 * self.spent / elapsed)
        return (
            f"vizlog took {share}% of {_rounded(elapsed)} s of training ({self.steps} steps); most of it {most.name}, "
            f"{_rounded(most.seconds)} s; a thread {_rounded(beside)} s beside it"
        )

    # Around what a due step takes -------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._began, self._before = time.perf_counter(), self._known()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.settle()

    def share_among(self, spenders: Sequence[Spender]) -> None:
        """Says who is due: a list, which may grow."""
        self._due = spenders

    def leave_out(self, seconds: float) -> None:
        """Leaves out seconds that probes took before this context was entered, and that are known only now."""
        self._before += seconds

    def settle(self) -> None:
        """Shares out what has passed so far."""
        rest = time.perf_counter() - self._began - (self._known() - self._before)
        for spender in self._due:
            spender.took(rest / len(self._due))

    def _known(self) -> float:
        return sum(spender.seconds for spender in self._all)


def _rounded(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"
