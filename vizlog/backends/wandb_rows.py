"""Where vizlog's rows go in a W&B history that its owner writes too, so that no value of the owner's is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vizlog.messages import LOG

if TYPE_CHECKING:
    import wandb

__all__ = ["Rows"]

Row: TypeAlias = dict[str, Any]

MOST_HELD = 100
"""How many rows wait, at most, until it is known how the owner logs."""

_LONG = 60.0
"""Seconds after which one line says that rows wait."""


class _Ours(NamedTuple):
    """What of ours the latest row holds: its number, the latest step in it, and the step that each key is of."""

    number: int = -1
    step: int = -1
    steps: Mapping[str, int] = {}


class Rows:
    """Writes rows into a run beside its owner, who writes rows too.

    W&B numbers the rows. `run.log(row)` takes the next number and closes the row. `run.log(row, step=s)` writes into
    row s, which stays open until a higher number comes; from then on lower numbers are refused. So:

    - Beside an owner who logs without `step=`, vizlog writes rows of its own.
    - An owner who logs with `step=` would lose every number up to vizlog's. There a row goes into the one that is open
      (`commit=False`), or, where the owner's numbers are steps of the training, under a number that the owner passes
      over. How far the owner is behind the training (by one, where the loss of the step before is logged) is seen as
      rows come.

    Which of the two it is shows once the owner has logged. Until then vizlog's first row goes into the one that will be
    the owner's first, which takes nothing from it, and the others wait: at most `MOST_HELD` of them, and until `close`.
    What has no place even then follows at the end of the run, when no further number of the owner's can come.

    Args:
        run: a run under way.
        waits: whether the owner may number rows by `step=`.
        keys: those that each of vizlog's rows has, whatever else it holds.
        shared_key: the one of them that the owner's rows have too, if any. Only rows of the step that the training is
            at have it: W&B fills the latest value that it has seen into rows of the owner's that lack it.
        hears_end: whether `run_ends` will be called before the run ends.
        now: says which step the training is at; the rows that come may be of much earlier ones.
        written: called after each row.
    """

    def __init__(
        self,
        run: wandb.Run,
        *,
        waits: bool,
        keys: Iterable[str],
        shared_key: str | None = None,
        hears_end: bool = False,
        now: Callable[[], int] = lambda: -1,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        self._hears_end = hears_end
        self._now = now
        self._written = written
        # In shared mode the service numbers the rows: there is no `step=`, and no number to ask for.
        self._numbered = getattr(run.settings, "mode", None) != "shared"
        self._waits = waits and self._numbered
        self._keys = frozenset(keys)
        self._shared_key = shared_key
        self._held: list[tuple[int, Row]] = []
        self._since = time.monotonic()
        self._newest = -1
        self._first = math.inf  # the number that the owner stood at when we first looked
        self._lead = -math.inf  # how far the owner's number was ahead of the training, at most
        self._latest = _Ours()
        self._said: set[str] = set()

    def add(self, step: int, row: Row) -> None:
        """Writes a row, or keeps it until it is known how."""
        self._newest = max(self._newest, step)
        self._held.append((step, row))
        if self._numbered and self._owner_passes_step():
            self._join()
        elif self._owner_is_known():
            self._write_own()
        else:
            self._open_first()

    def close(self) -> None:
        """Writes what still waits, as far as it has a place; nothing more comes of ours."""
        if self._numbered and self._owner_passes_step():
            self._join(ends=not self._hears_end)
        else:
            self._write_own()

    def run_ends(self) -> None:
        """Writes what still waits; nothing more comes of anybody's."""
        self._write_own()

    @property
    def pending(self) -> bool:
        """Whether rows wait for a place."""
        return bool(self._held)

    def _number(self) -> int:
        """The number of the row that is open, or of the next one."""
        return max(self.run.step, self.run.starting_step)  # a resumed run says 0 until it is logged to

    def _owner_passes_step(self) -> bool:
        # The client notes it in its telemetry alone, for good; vizlog passes it only where the owner has.
        feature = getattr(getattr(self.run, "_telemetry_obj", None), "feature", None)
        return bool(getattr(feature, "set_step_log", False))

    def _owner_is_known(self) -> bool:
        """Whether the owner has logged, or there is no need to wait for that, or no more room."""
        if not self._waits:
            return True
        if self._number() > self.run.starting_step:
            self._waits = False
        elif len(self._held) > MOST_HELD:
            self._waits = False
            self._say(
                "nobody else has logged to the W&B run %s: vizlog's %d rows take the next numbers, and W&B refuses "
                "lower ones with step= from then on; where you pass it, call run.log({}, step=0) before training",
                self.run.id,
                len(self._held),
            )
        elif self._held and time.monotonic() - self._since > _LONG:
            self._say(
                "vizlog's rows for the W&B run %s wait for your first run.log(), to learn whether you pass step=; "
                "until then a run that is killed loses them, and run.log({}) sends them at once",
                self.run.id,
            )
        return not self._waits

    def _open_first(self) -> None:
        """What is of our first step goes into the row that is open, and stays there until the owner closes it."""
        step, row = self._held[-1]
        if self._latest.number < 0 or self._fits(step, row):
            self._held.pop()
            self._place(self._number(), step, row)

    def _write_own(self) -> None:
        """Each row under a number of its own."""
        if self._latest.number >= 0 and self._latest.number == self._number():
            self.run.log({}, commit=True)  # our first row is still open
        held, self._held = self._held, []
        for step, row in held:
            self._log(step, row)

    def _join(self, *, ends: bool = False) -> None:
        """Beside an owner who numbers rows: each of ours where a number is free, the others wait for one."""
        number = self._number()
        free = self._free_numbers(number, ends=ends)
        left: list[tuple[int, Row]] = []
        for step, row in self._held:
            if self._latest.number >= number and self._fits(step, row):
                self._place(self._latest.number, step, row)
            elif free:
                to = min(max(step, free[0]), free[-1])
                self._place(to, step, row)
                free = range(max(to, self._latest.number) + 1, free.stop)
            else:
                left.append((step, row))
        if left and (ends or len(left) > MOST_HELD or not self._may_keep_pace(number, self._newest)):
            self._replace(left)
            left = []
        self._held = left

    def _free_numbers(self, number: int, *, ends: bool) -> range:
        """The numbers that take nothing from the owner: the open one, `number`, and those that are passed over."""
        now = max(self._now(), self._newest)
        self._first = min(self._first, number)
        if number not in (self._first, self._latest.number):  # where the owner has gone since we first looked
            self._lead = max(self._lead, number - now)
        last = number
        if self._keeps_pace(number, now):
            # At the end there is no later look, and hardly another number of the owner's.
            past = self._newest if ends else int(min(self._newest, max(now + self._lead, number)))
            last = max(number, past)
        return range(number + (number == self._latest.number), last + 1)

    def _fits(self, step: int, row: Row) -> bool:
        """Whether a row takes the place of nothing in the one that we wrote last."""
        return step == self._latest.step and not self._latest.steps.keys() & (row.keys() - self._keys)

    def _place(self, number: int, step: int, row: Row) -> None:
        latest = self._latest if self._latest.number == number else _Ours()
        # What comes late leaves newer values, and the step that they are of.
        row = {key: value for key, value in row.items() if step >= latest.steps.get(key, step)}
        if number > self._number():
            # A call of its own opens it. Should the owner get there between this look and the call, W&B refuses the
            # call, and the row goes into the one that is open then.
            self.run.log({}, step=number)
        self._log(step, row, commit=False)
        steps = {**latest.steps, **dict.fromkeys(row, step)}
        # The owner may have gone on meanwhile, and the row may be in the one that is open now: the next goes above it.
        self._latest = _Ours(max(number, self._number()), max(step, latest.step), steps)

    def _replace(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Into the row that is open, where later values take the place of earlier ones."""
        self._say(
            "the W&B run %s is logged to with step= and stands at %d: W&B keeps one row for each such step, where "
            "later values of vizlog replace earlier ones; to keep all, log without step= (define_metric gives an x)",
            self.run.id,
            self._number(),
        )
        for step, row in rows:
            self._place(self._number(), step, row)

    def _may_keep_pace(self, number: int, step: int) -> bool:
        """Whether the owner's number could be a step, a little behind ours, and not an epoch."""
        return number + 10 > 0.6 * step

    @staticmethod
    def _keeps_pace(number: int, now: int) -> bool:
        """Whether the owner counts steps as we do. Then numbers that the owner has been seen to be past are free.

        Epochs, of two steps or more and counted from 0 or 1, stand at half of the training's step + 1 at most; they may
        be past rows of ours all the same, where those come late.
        """
        return number > 0.6 * now + 2

    def _log(self, step: int, row: Row, **how: Any) -> None:
        if step < self._now():
            row = {key: value for key, value in row.items() if key != self._shared_key}
        self.run.log(row, **how)
        self._written()

    def _say(self, message: str, *values: object) -> None:
        if message not in self._said:
            self._said.add(message)
            LOG.warning(message, *values)
