"""Which steps and epochs are due."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest

from vizlog.schedules import AtSteps, Every, EveryEpoch, LogSpaced, Schedule, Thinning, as_schedule


def due_steps(schedule: Schedule, stop: int) -> list[int]:
    """The due steps below `stop`, by walking from one to the next."""
    steps, step = [], schedule.next_step(-1)
    while step is not None and step < stop:
        steps.append(step)
        step = schedule.next_step(step)
    return steps


@pytest.mark.parametrize("schedule", [Every(7), LogSpaced(), LogSpaced(every=100), Thinning(), Every(3) | AtSteps(5)])
def test_the_first_step_is_due_and_steps_rise(schedule: Schedule) -> None:
    steps = due_steps(schedule, 5_000)
    assert steps[0] == 0
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("schedule", [Every(7), LogSpaced(every=3), Thinning(every=2, most=16), AtSteps(4, 9, 500)])
def test_what_is_due_next_does_not_depend_on_which_steps_were_seen(schedule: Schedule) -> None:
    steps = due_steps(schedule, 1_000)
    for seen in range(-1, steps[-1]):
        assert schedule.next_step(seen) == next(step for step in steps if step > seen)


def test_every_is_due_at_multiples() -> None:
    assert due_steps(Every(250), 1_000) == [0, 250, 500, 750]


def test_at_steps_takes_numbers_or_a_list_in_any_order() -> None:
    assert due_steps(AtSteps(100, 10), 1_000) == due_steps(AtSteps([10, 100, 10]), 1_000) == [10, 100]
    assert AtSteps(10).next_step(10) is None


def test_log_spaced_keeps_sixty_pictures_of_a_long_run_at_most() -> None:
    for every in (1, 10, 100):
        steps = due_steps(LogSpaced(every=every), 450_000)
        assert 15 <= len(steps) <= 60
        assert all(step % every == 0 for step in steps)


def test_log_spaced_grows_tenfold_in_as_many_steps_as_asked() -> None:
    steps = due_steps(LogSpaced(every=100, per_decade=4), 1_000_001)
    assert {100, 1_000, 10_000, 100_000, 1_000_000} <= set(steps)
    assert len([step for step in steps if 10_000 <= step < 100_000]) == 4


def test_thinning_keeps_five_hundred_steps_of_a_long_run_at_most() -> None:
    steps = due_steps(Thinning(), 450_000)
    assert 400 <= len(steps) <= 500
    assert steps[:4] == [0, 100, 200, 300]


def test_a_long_run_has_as_many_due_steps_as_is_said() -> None:
    assert len(due_steps(LogSpaced(), 450_000)) == 24
    assert len(due_steps(LogSpaced(every=100), 450_000)) == 16
    assert len(due_steps(Thinning(), 450_000)) == 443
    assert [len(due_steps(Thinning(), 450_000 * 2**doubled)) for doubled in (1, 2)] == [443 + 62, 443 + 2 * 62]
    assert due_steps(Thinning(), 25_000)[123:127] == [12_300, 12_400, 12_600, 12_800]


def test_thinning_only_ever_doubles_its_interval() -> None:
    steps = due_steps(Thinning(every=10, most=40), 100_000)
    gaps = [b - a for a, b in pairwise(steps)]
    assert set(gaps) == {10 * 2**k for k in range(len(set(gaps)))}
    assert gaps == sorted(gaps)


def test_a_union_is_due_where_either_is() -> None:
    assert due_steps(Every(10) | AtSteps(3, 25), 31) == [0, 3, 10, 20, 25, 30]
    either = Every(10) | EveryEpoch(2)
    assert either.needs_epochs
    assert (either.next_step(10), either.next_epoch(2)) == (20, 4)


def test_epochs_are_no_steps() -> None:
    schedule = EveryEpoch(3)
    assert schedule.next_step(-1) is None
    assert (schedule.next_epoch(-1), schedule.next_epoch(0), schedule.next_epoch(4)) == (0, 3, 6)
    assert not Every(3).needs_epochs


def test_a_schedule_of_one_epoch_alone_needs_epochs() -> None:
    class First(Schedule):
        def next_epoch(self, epoch: int) -> int | None:
            return 0 if epoch < 0 else None

    assert First().needs_epochs
    assert (First() | EveryEpoch(5)).next_epoch(0) == 5
    assert (EveryEpoch(5) | First()).next_epoch(-1) == 0


def test_a_schedule_of_ones_own_needs_one_method() -> None:
    class Squares(Schedule):
        def next_step(self, step: int) -> int:
            return next(n * n for n in range(1000) if n * n > step)

    assert due_steps(Squares() | AtSteps(5), 20) == [0, 1, 4, 5, 9, 16]


@pytest.mark.parametrize(
    "schedule", [Every(2), EveryEpoch(), AtSteps(1, 2), LogSpaced(), Thinning(), Every(2) | Every(3)]
)
def test_schedules_are_plain_data(schedule: Schedule) -> None:
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Every(0), ValueError, r"Every\(n\) needs n >= 1, got n=0"),
        (lambda: Every(2.5), TypeError, r"Every\(n\) needs a whole number, got n=2.5"),
        (lambda: Every(True), TypeError, "whole number"),
        (lambda: EveryEpoch(-1), ValueError, "n >= 1"),
        (AtSteps, ValueError, "at least one step"),
        (lambda: AtSteps(-1), ValueError, "step >= 0"),
        (lambda: LogSpaced(per_decade=0), ValueError, "per_decade >= 1"),
        (lambda: Thinning(most=2), ValueError, "most >= 8"),
        (lambda: as_schedule(np.float64(100)), TypeError, "every= takes a number of steps or a schedule"),
        (lambda: as_schedule("100"), TypeError, "every= takes a number of steps or a schedule"),
        (lambda: as_schedule(0), ValueError, "n >= 1"),
        (lambda: Every(1) | 3, TypeError, "unsupported operand"),
    ],
)
def test_what_is_no_schedule_says_so(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


def test_a_number_of_steps_may_be_numpys() -> None:
    assert as_schedule(np.int64(5)) == Every(5)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    assert Every(np.int64(5)) == Every(5)  # type: ignore[arg-type]
    assert AtSteps(np.arange(3)).steps == (0, 1, 2)
    assert type(Thinning(np.int32(7)).next_step(np.int64(8).item())) is int  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a whole number, got n=2\.5"):
        Every(2.5)  # type: ignore[arg-type]
