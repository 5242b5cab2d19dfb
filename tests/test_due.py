"""When a probe is due next, by step and by epoch, stretched and not; and what one due step keeps apart."""

from __future__ import annotations

import time
from typing import Any

import pytest

import vizlog
from vizlog.due import Turn


def turn(every: int | vizlog.Schedule) -> Turn:
    return Turn(vizlog.Probe(every=every))


def test_it_is_due_by_step_or_by_epoch_once_that_is_known() -> None:
    by_epoch = turn(vizlog.EveryEpoch(2) | vizlog.AtSteps(5))
    assert by_epoch.due(0, None)
    by_epoch.plan(0, 0)
    assert [by_epoch.due(step, epoch) for step, epoch in ((4, None), (4, 1), (4, 2), (5, None))] == [
        *(False, False),
        *(True, True),
    ]
    by_epoch.disabled = True
    assert not by_epoch.due(5, 2)


@pytest.mark.parametrize(
    ("schedule", "epoch", "stretch", "due"),
    [
        (vizlog.Every(10), None, 1, (10, None)),
        (vizlog.Every(10), None, 3, (30, None)),
        (vizlog.EveryEpoch(2), 1, 2, (None, 4)),
        (vizlog.EveryEpoch(2), None, 2, (None, None)),
        (vizlog.AtSteps(3), 1, 3, (None, None)),
        (vizlog.AtSteps(3, 5) | vizlog.EveryEpoch(), 1, 2, (5, 3)),
    ],
)
def test_a_stretched_schedule_passes_due_numbers_by(
    schedule: vizlog.Schedule, epoch: int | None, stretch: int, due: tuple[int | None, int | None]
) -> None:
    planned = turn(schedule)
    planned.stretch = stretch
    planned.plan(0, epoch)
    assert (planned.next_step, planned.next_epoch) == due


def test_an_interval_is_that_of_the_steps_or_what_lay_between_the_latest_two_times() -> None:
    assert turn(10).interval(14) == 6
    by_epoch = turn(vizlog.EveryEpoch())
    by_epoch.plan(0, 0)
    assert by_epoch.interval(0) > 10**9  # nobody knows yet how long an epoch is
    by_epoch.plan(100, 1)
    assert by_epoch.interval(100) == 100
    by_epoch.plan(50, 0)  # gone back
    assert by_epoch.interval(50) == 100
    by_epoch.plan(110, 1)
    assert by_epoch.interval(110) == 60
    by_epoch.stretch = 3
    by_epoch.plan(170, 3)
    assert by_epoch.interval(170) == 20
    by_epoch.plan(171, 4)
    assert by_epoch.interval(171) == 1  # not 0, by which a cost would be divided


def test_what_fails_has_taken_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 4.0, 5.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    timed = turn(1)
    assert timed.seconds == timed.latest_seconds == 0

    def fail() -> Any:
        raise ValueError

    with pytest.raises(ValueError), timed.timed():  # noqa: PT011
        fail()
    with timed.timed():
        pass
    assert timed.seconds == timed.latest_seconds == 5.0
