"""When to give up on a training: conditions on its health, and all ranks stopping at the same step."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vizlog.diagnosis import CONDITIONS, Condition, Diagnosis
from vizlog.messages import LOG, one_line
from vizlog.probes.base import Probe
from vizlog.probes.standard import numbers_every
from vizlog.ranks import Notice
from vizlog.schedules import Schedule

__all__ = ["Stop", "StopWhen", "check_stop_when", "schedules_of_numbers"]

StopWhen: TypeAlias = "str | Condition | Sequence[str | Condition]"
"""Names of conditions ("nonfinite", "dead", "gradients_gone"), functions of the health scalars, or a list of these."""


class Stop:
    """Decides between steps whether the training is hopeless.

    It decides at the due steps of its schedule, by what was measured at earlier ones. The first look of a process
    decides nothing, so that a resumed run shows first how it is; nor does the first one after the steps went back.

    One rank decides, and leaves a notice for the others; all of them, the one that decides too, stop at the due step
    after it. They train in step, so by then each has found the notice, and none has to wait for another.

    Args:
        stop_when: the conditions.
        schedules: of the probes that measure numbers; the same on every rank.
        notice: how the ranks tell each other.

    Attributes:
        because: why the training should stop; "" while it should go on.

    Raises:
        TypeError, ValueError: `stop_when` is nothing of the kind.
    """

    def __init__(self, stop_when: StopWhen, schedules: Sequence[Schedule], notice: Notice) -> None:
        self._questions = _questions(stop_when)
        self._schedule = functools.reduce(operator.or_, schedules) if schedules else Schedule()
        self._notice = notice
        self._next: tuple[int | None, int | None] = (-1, -1)
        self._latest = -1  # step
        self.because = ""

    def consider(self, step: int, epoch: int | None, diagnose: Callable[[], Diagnosis]) -> bool:
        """At the start of a step: whether it has just turned out that the training should stop.

        Args:
            step, epoch: of the step that starts.
            diagnose: gives the health at all looks so far; called only where it is needed.
        """
        if self.because or not self._due(step, epoch):
            return False
        self.because = self._notice.before(step)
        # Numbers come together on the rank that writes: no other finds anything.
        found = self._found(step, diagnose()) if not self._notice.posted else ""
        if found and self._notice.is_alone:
            self.because = found
        elif found:
            self._notice.post(step, found)
        return bool(self.because)

    def _due(self, step: int, epoch: int | None) -> bool:
        if step < self._latest:  # what the schedule names from here on is due again
            self._plan(step - 1, None if epoch is None else epoch - 1)
        self._latest = step
        next_step, next_epoch = self._next
        by_step = next_step is not None and step >= next_step
        by_epoch = next_epoch is not None and epoch is not None and epoch >= next_epoch
        if by_step or by_epoch:
            self._plan(step, epoch)
        return by_step or by_epoch

    def _plan(self, step: int, epoch: int | None) -> None:
        """Finds what is due after these; while no epoch is known, that of the first one that is."""
        following = self._next[1] if epoch is None else self._schedule.next_epoch(epoch)
        self._next = self._schedule.next_step(step), following

    def _found(self, step: int, diagnosis: Diagnosis) -> str:
        if diagnosis.looks < 2 or diagnosis.latest_look >= step:  # looks at a training that was given up
            return ""
        for question in list(self._questions):
            try:
                if found := question(diagnosis):
                    return found
            except Exception as error:  # noqa: BLE001 -- a person's own function may raise anything
                self._questions.remove(question)
                LOG.warning("vizlog: a function of stop_when= is off from now on: %s", one_line(error))
        return ""


def schedules_of_numbers(probes: Sequence[Probe] | None, every: int | Schedule) -> list[Schedule]:
    """When numbers are measured, as every rank knows it, also one that chooses no standard probes.

    Args:
        probes: those that a person gave; None: the standard ones.
        every: of the standard ones.

    Raises:
        ValueError: the given ones make pictures alone.
    """
    if not probes:
        return [numbers_every(every)]
    found = [probe.schedule for probe in probes if not probe.picture]
    if not found:
        raise ValueError(
            f"stop_when= judges numbers, and {probes[0].name} makes pictures alone: give probes= one that measures "
            "the training too, such as vizlog.GradientHistograms()"
        )
    return found


def check_stop_when(stop_when: StopWhen) -> None:
    """Raises where this is no `stop_when`.

    Raises:
        TypeError, ValueError: it is nothing of the kind; says what was expected.
    """
    _questions(stop_when)


def _questions(stop_when: StopWhen) -> list[Callable[[Diagnosis], str]]:
    given = [stop_when] if isinstance(stop_when, str) or callable(stop_when) else stop_when
    if not isinstance(given, Sequence):
        raise TypeError(f"stop_when= takes {_names()}, a function of the health scalars, or a list, got {given!r}")
    return [_question(condition) for condition in given]


def _question(condition: str | Condition) -> Callable[[Diagnosis], str]:
    """The diagnosis -> why to stop, or ""."""
    if isinstance(condition, str):
        if condition not in CONDITIONS:
            raise ValueError(f"stop_when= takes {_names()} or a function of the health scalars, got {condition!r}")
        holds, said = CONDITIONS[condition]
        return lambda diagnosis: f"{condition}: {said}" if holds(diagnosis) else ""
    if not callable(condition):
        raise TypeError(f"stop_when= takes {_names()} or a function of the health scalars, got {condition!r}")
    name = getattr(condition, "__name__", type(condition).__name__)
    return lambda diagnosis: f"stop_when's {name} holds" if condition(diagnosis.scalars()) else ""


def _names() -> str:
    return ", ".join(map(repr, CONDITIONS))
