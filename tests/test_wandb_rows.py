"""Rows beside an owner's: however both come in turn, W&B's own rule for numbers takes nothing from either."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb_file import read_run

from vizlog.backends.wandb_rows import MOST_HELD, Rows

Row = dict[str, Any]


class Numbered:
    """A run as far as the numbers of its rows go; `test_the_rule_is_the_clients` holds it against the client's."""

    def __init__(self, starting_step: int = 0, mode: str = "online") -> None:
        self.id = "run"
        self.settings = SimpleNamespace(mode=mode)
        self.starting_step = starting_step
        self.rows: dict[int, Row] = {}
        self._telemetry_obj = SimpleNamespace(feature=SimpleNamespace(set_step_log=False))
        self._number = 0  # a resumed run says 0 until it is logged to
        self._open: Row = {}

    @property
    def step(self) -> int:
        if self.settings.mode == "shared":
            raise AssertionError("the service numbers the rows")
        return self._number

    def log(self, row: Row, step: int | None = None, commit: bool | None = None) -> None:  # noqa: FBT001 -- W&B's
        self._number = max(self._number, self.starting_step)
        if step is not None:
            self._telemetry_obj.feature.set_step_log = True
            if step < self._number:
                return
            if step > self._number:
                self._close(step)
        self._open |= row
        if commit if commit is not None else step is None:
            self._close(self._number + 1)

    def finish(self) -> list[Row]:
        """Its rows, each with its number."""
        self._close(self._number + 1)
        return [{"_step": number} | row for number, row in self.rows.items()]

    def _close(self, following: int) -> None:
        if self._open:
            self.rows[self._number] = self._open
        self._open, self._number = {}, following


def random_calls(draw: random.Random) -> Iterator[tuple[Row, dict[str, Any]]]:
    for number in range(100):
        how = draw.choice([{}, {"commit": False}, {"commit": True}, {"step": draw.randrange(150)}])
        if "step" in how and draw.random() < 0.3:
            how["commit"] = draw.random() < 0.5
        yield ({} if draw.random() < 0.2 else {draw.choice("abc"): number}), how


def test_the_rule_is_the_clients() -> None:
    import wandb

    with wandb.init(project="test") as run:
        model, folder = Numbered(), Path(run.dir).parent
        for row, how in random_calls(random.Random(0)):
            run.log(row, **how)
            model.log(row, **how)
            assert run.step == model.step, (row, how)
    written = [{key: row[key] for key in row if key in {"a", "b", "c", "_step"}} for row in read_run(folder).rows]
    assert [row for row in written if len(row) > 1] == model.finish()  # the client keeps some empty rows


# Ways to log: called once a step


def no_step(run: Numbered, step: int) -> None:
    run.log({"loss": step})


def in_halves(run: Numbered, step: int) -> None:
    run.log({"loss": step}, commit=False)
    run.log({"accuracy": -step})


def with_step(run: Numbered, step: int) -> None:
    run.log({"loss": step}, step=step)
    run.log({"accuracy": -step}, step=step)


def with_step_from_one(run: Numbered, step: int) -> None:
    run.log({"loss": step}, step=step + 1)


def one_step_late(run: Numbered, step: int) -> None:
    if step % 1000:
        with_step(run, step - 1)  # what was computed last is read once the device has it


def with_step_seldom(run: Numbered, step: int) -> None:
    if step % 10 == 9:
        with_step(run, step)


def with_step_once_at_the_end(run: Numbered, step: int) -> None:
    if step == STEPS - 1:
        run.log({"loss": step}, step=step)


def epochs_with_step(run: Numbered, step: int) -> None:
    if step % 10 == 9:
        run.log({"loss": step}, step=step // 10)
        run.log({"accuracy": -step}, step=step // 10)


def epochs_from_one(run: Numbered, step: int) -> None:
    if step % 2 == 0:
        run.log({"loss": step}, step=step // 2 + 1)
        run.log({"accuracy": -step}, step=step // 2 + 1)


def first_without_step(run: Numbered, step: int) -> None:
    how = {} if step % 1000 < STEPS / 2 else {"step": step + 1000}
    run.log({"loss": step}, **how)


def nothing(run: Numbered, step: int) -> None:
    pass


STEPS = 60
OWNERS = [
    no_step,
    in_halves,
    with_step,
    with_step_from_one,
    one_step_late,
    with_step_seldom,
    first_without_step,
    nothing,
]
CASES = [(owner, resumed) for owner in OWNERS for resumed in (False, True)]
CASES += [(with_step_once_at_the_end, False), (epochs_with_step, False), (epochs_from_one, False)]


def together(
    owner: Callable[[Numbered, int], None], draw: random.Random, *, resumed: bool
) -> tuple[list[Row], list[Row], list[Row]]:
    """(rows of the run, the owner's alone, ours), where ours come as late as the worker happens to be."""
    starting_step = 1000 if resumed else 0
    run, alone = Numbered(starting_step), Numbered(starting_step)
    now = 0
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"], now=lambda: now)
    late: list[Row] = []
    ours: list[Row] = []
    lag = draw.choice([0.1, 0.5, 0.97])
    # Whose first row comes after the close has been told that numbers are taken then.
    closes_at = STEPS if owner is with_step_once_at_the_end else draw.choice([STEPS - 5, STEPS])
    steps = range(starting_step, starting_step + STEPS) if resumed else range(STEPS)
    for number, now in enumerate(steps):
        step = now
        if number < closes_at and number % draw.choice([1, 4]) == 0:
            late.append({"vizlog/step": step, "health": step})
            if draw.random() < 0.3:
                late.append({"vizlog/step": step, "late": -step})
        before = draw.random() < 0.5
        if before:
            owner(run, step)
        while late and (draw.random() > lag or number == closes_at):
            ours.append(late.pop(0))
            rows.add(ours[-1]["vizlog/step"], dict(ours[-1]))
        if number == closes_at:
            rows.close()
        if not before:
            owner(run, step)
        owner(alone, step)
    for row in late:
        ours.append(row)
        rows.add(row["vizlog/step"], dict(row))
    rows.run_ends()
    return run.finish(), alone.finish(), ours


@pytest.mark.parametrize(
    ("owner", "resumed"), CASES, ids=[owner.__name__ + ", resumed" * resumed for owner, resumed in CASES]
)
def test_nothing_is_lost_of_either(owner: Callable[[Numbered, int], None], resumed: bool) -> None:  # noqa: FBT001
    for seed in range(40):
        found, his, ours = together(owner, random.Random(seed), resumed=resumed)
        numbered = owner not in (no_step, in_halves, first_without_step, nothing)
        kept = [{key: row[key] for key in row if key in ("loss", "accuracy", *["_step"] * numbered)} for row in found]
        expected = his if numbered else [{key: row[key] for key in row if key != "_step"} for row in his]
        assert [row for row in kept if row.keys() - {"_step"}] == expected, seed
        if owner in (epochs_with_step, epochs_from_one):  # W&B keeps one row for each of his numbers
            continue
        for row in ours:  # each value beside its own step
            assert any(row.items() <= one.items() for one in found), (seed, row)


def test_where_no_end_is_told_what_has_no_place_at_the_close_shares_one_and_he_may_go_on() -> None:
    run = Numbered()
    rows = Rows(run, waits=False, keys=["vizlog/step"])  # type: ignore[arg-type]
    for step in range(10):
        run.log({"loss": step}, step=step)
    for step in range(0, 10, 2):
        rows.add(step, {"vizlog/step": step, "health": step})
    rows.close()
    assert not rows.pending
    run.log({"loss": 10}, step=10)
    found = run.finish()
    assert [row["loss"] for row in found] == [*range(11)]
    assert [row["health"] for row in found if "health" in row] == [8]


def test_what_comes_late_of_the_first_step_waits_for_nobody() -> None:
    run = Numbered()
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"])  # type: ignore[arg-type]
    for step in (0, 10):
        rows.add(step, {"vizlog/step": step, "health": step})
    rows.add(0, {"vizlog/step": 0, "late": 0})
    assert run._open == {"vizlog/step": 0, "health": 0, "late": 0}
    rows.add(0, {"vizlog/step": 0, "late": 1})  # would take the place of the one before
    rows.add(0, {"vizlog/step": 0, "health": 1})
    assert run._open == {"vizlog/step": 0, "health": 0, "late": 0}
    run.log({"loss": 1})
    rows.close()
    found = run.finish()
    assert [row["late"] for row in found if "late" in row] == [0, 1]
    assert [row["health"] for row in found if "health" in row] == [0, 10, 1]


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_an_owner_who_goes_on_while_a_row_is_written_costs_no_row(calls: int, before: bool) -> None:  # noqa: FBT001
    class Hasty(Numbered):
        his = 0

        def log(self, row: Row, step: int | None = None, commit: bool | None = None) -> None:  # noqa: FBT001
            interrupted = commit is False and row["health"] in (35, 37)
            if interrupted and before:
                self.go_on()
            super().log(row, step, commit)
            if interrupted and not before:
                self.go_on()

        def go_on(self, calls: int = calls) -> None:
            for _ in range(calls):
                super().log({"loss": self.his}, step=self.his)
                self.his += 1

    run = Hasty()
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"], now=lambda: run.his)  # type: ignore[arg-type]
    run.go_on(41)
    for step in range(35, 41):
        rows.add(step, {"vizlog/step": step, "health": step})
    run.go_on(9)
    rows.close()
    rows.run_ends()
    found = run.finish()
    assert [row["health"] for row in found if "health" in row] == [*range(35, 41)]
    assert [row["loss"] for row in found if "loss" in row] == [*range(run.his)]


def test_what_comes_late_in_an_epoch_takes_the_place_of_nothing_newer() -> None:
    run, now = Numbered(), 0
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"], now=lambda: now)  # type: ignore[arg-type]
    for epoch in range(2):
        run.log({"loss": epoch}, step=epoch)
    for now in (100, 200, 300):
        rows.add(now, {"vizlog/step": now, "health": now})
    rows.add(100, {"vizlog/step": 100, "picture": 100})  # was drawn for so long
    rows.add(200, {"vizlog/step": 200, "health": -200, "picture": 200})
    rows.add(100, {"vizlog/step": 100, "picture": 0})
    assert run._open == {"loss": 1, "vizlog/step": 300, "health": 300, "picture": 200}
    rows.add(400, {"vizlog/step": 400, "health": 400, "picture": 400})
    assert run._open == {"loss": 1, "vizlog/step": 400, "health": 400, "picture": 400}


def test_what_comes_late_shares_the_row_of_its_step(caplog: pytest.LogCaptureFixture) -> None:
    run = Numbered()
    rows = Rows(run, waits=True, keys=["vizlog/step"])  # type: ignore[arg-type]
    run.log({}, step=0)
    for step in range(2 * MOST_HELD):  # as many as would wait in vain
        rows.add(step, {"vizlog/step": step, "health": step})
        rows.add(step, {"vizlog/step": step, "late": -step})
        run.log({"loss": step}, step=step)
    rows.close()
    for step, row in enumerate(run.finish()):
        assert row == {"_step": step, "vizlog/step": step, "health": step, "late": -step, "loss": step}
    assert caplog.messages == []


def test_beside_an_owner_who_passes_numbers_over_a_row_takes_that_of_its_step() -> None:
    run, now = Numbered(), 0
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"], now=lambda: now)  # type: ignore[arg-type]
    for now, his in ((10, 10), (20, 20), (30, 29)):  # he is late once
        run.log({"loss": his}, step=his)
        rows.add(now, {"vizlog/step": now, "health": now})
    now = 40
    for step in (34, 38, 40):
        rows.add(step, {"vizlog/step": step, "health": step})
    rows.run_ends()
    numbers = {row["vizlog/step"]: row["_step"] for row in run.finish() if "health" in row}
    assert numbers == {step: step for step in (10, 20, 30, 34, 38, 40)}


def test_what_waits_at_the_end_takes_the_number_of_its_step_whatever_came_late() -> None:
    run, now = Numbered(), 50
    rows = Rows(run, waits=True, keys=["vizlog/step"], now=lambda: now)  # type: ignore[arg-type]
    run.log({"loss": 50}, step=50)
    rows.add(50, {"vizlog/step": 50, "health": 50})
    now = 60
    rows.add(60, {"vizlog/step": 60, "health": 60})
    assert rows.pending
    rows.add(50, {"vizlog/step": 50, "picture": 50})
    rows.close()
    assert [row for row in run.finish() if "health" in row] == [
        {"_step": 50, "loss": 50, "vizlog/step": 50, "health": 50, "picture": 50},
        {"_step": 60, "vizlog/step": 60, "health": 60},
    ]


def test_as_many_as_may_wait_for_the_owner_do(caplog: pytest.LogCaptureFixture) -> None:
    run = Numbered()
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"])  # type: ignore[arg-type]
    for step in range(1 + MOST_HELD):  # the first is in the row that is open
        rows.add(step, {"vizlog/step": step})
    assert len(rows._held) == MOST_HELD
    assert caplog.messages == []
    rows.add(1 + MOST_HELD, {"vizlog/step": 1 + MOST_HELD})
    assert not rows.pending
    assert len(caplog.messages) == 1
    assert [row["vizlog/step"] for row in run.finish()] == [*range(MOST_HELD + 2)]


def test_no_more_than_so_many_wait_beside_an_owner_who_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    run = Numbered()
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"])  # type: ignore[arg-type]
    run.log({"loss": 0}, step=50)
    for number in range(3 * MOST_HELD):
        rows.add(50, {"vizlog/step": 50, "health": number})
        assert len(rows._held) <= MOST_HELD
    run.log({"loss": 1}, step=51)
    rows.run_ends()
    found = run.finish()
    assert [row["loss"] for row in found if "loss" in row] == [0, 1]
    assert found[-1]["health"] == 3 * MOST_HELD - 1
    assert len(caplog.messages) == 1


def test_a_client_that_says_nothing_of_how_he_logs_is_taken_for_one_without_step() -> None:
    run = Numbered()
    del run._telemetry_obj
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"])  # type: ignore[arg-type]
    for step in range(3):
        rows.add(step, {"vizlog/step": step})
        run.log({"loss": step})
    rows.close()
    assert [row["vizlog/step"] for row in run.finish() if "vizlog/step" in row] == [0, 1, 2]


def test_in_shared_mode_the_service_numbers_the_rows() -> None:
    run = Numbered(mode="shared")
    written: list[int] = []
    rows = Rows(run, waits=True, hears_end=True, keys=["vizlog/step"], written=lambda: written.append(1))  # type: ignore[arg-type]
    for step in range(3):
        rows.add(step, {"vizlog/step": step})
    run._telemetry_obj.feature.set_step_log = True  # he has tried
    rows.add(3, {"vizlog/step": 3})
    rows.close()
    rows.run_ends()
    assert [row["vizlog/step"] for row in run.finish()] == [0, 1, 2, 3]
    assert len(written) == 4
    assert not rows.pending
