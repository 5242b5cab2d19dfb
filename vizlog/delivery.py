"""From what was measured to what is written: finishes on the worker, keeps tags unique, survives what fails."""

from __future__ import annotations

import atexit
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from vizlog.backends.base import Backend, OwnedElsewhere, Summarises
from vizlog.compute.transfer import Pending, to_host
from vizlog.diagnosis import Diagnosis
from vizlog.due import Turn
from vizlog.logged import Logged, without_bad
from vizlog.messages import LOG, one_line
from vizlog.probes.base import Figures
from vizlog.probes.health import draw
from vizlog.records import Curves, Record, Scalar
from vizlog.schedules import LogSpaced
from vizlog.worker import Worker

__all__ = ["Delivery"]

_CURVES = LogSpaced()
"""When health figures are drawn over the layers: numbers come at every due step, pictures are bounded."""


class Delivery:
    """Takes measured results and numbers, and has the worker turn them into records and write them.

    Args:
        backend: where to; None: nowhere.
        failed: called with (turn, what it was doing, error) when a probe fails.
        diagnoses: whether the diagnosis is wanted also where nothing is written.

    Attributes:
        diagnosis: the run's health, as far as records have been made. It is replaced as a whole: any thread may read.
        now: the step that the training is at, as the monitor sets it.
        is_in_vain: whether the backend could not write, and nobody else wants to know what is measured.
    """

    def __init__(
        self,
        backend: Backend | None,
        failed: Callable[[Turn, str, Exception], None],
        *,
        diagnoses: bool = False,
    ) -> None:
        self.diagnosis = Diagnosis()
        self.now = -1
        self.is_in_vain = False
        self._diagnoses = diagnoses
        self._diagnosing = threading.Lock()
        self._unmade: list[_Numbers] = []
        self._makes: int | None = None  # the thread that makes some here and now
        self._process = os.getpid()
        self._summarised: Diagnosis | None = None
        self._stopped_because = ""
        self._latest = 0
        self._backend = backend
        self._failed = failed
        self._worker = Worker()
        self._logged = Logged(self._worker)
        self._next_curves = -1
        self._said_twice: set[str] = set()
        if isinstance(backend, OwnedElsewhere):
            backend.accompany(lambda: self.now, self.flush)

    def send(self, step: int, measured: Sequence[tuple[Turn, Any]], time_share: float = 0.0) -> None:
        """Starts one copy to the host and queues the rest; all that was found is written at once, the slow ones after.

        Each picture is a job of its own, since one that waits may be dropped.

        Args:
            step: at which it was measured.
            measured: a probe's turn and what its `measure` returned.
            time_share: the share of the training time that vizlog has taken so far.
        """
        self._leave_the_parents()
        self._logged.send(self._write)
        if self._backend is None:
            if not self._diagnoses:
                return
            measured = [(turn, tree) for turn, tree in measured if not turn.probe.picture]
        measured, pending = without_bad(
            measured,
            lambda each: to_host([tree for _, tree in each]),
            lambda each, error: self._failed(each[0], "measure()", error),
        )
        written: set[str] = set()
        turns = [turn for turn, _ in measured]
        numbers = [(number, turn) for number, turn in enumerate(turns) if not turn.probe.picture]
        curves = self._curves_due(step)
        cost = _cost(turns, time_share)
        found: list[Record] = []

        def make() -> list[Record]:
            return self._diagnosed(step, self._finish(pending, numbers) + cost, written)

        made = _Numbers(make)
        if self._diagnoses:
            self._unmade = [*(numbers for numbers in self._unmade if not numbers.are_made), made]
        self._worker.submit(lambda: found.extend(made() if curves else _without_curves(made())))
        pictures = [(number, turn) for number, turn in enumerate(turns) if turn.probe.picture]
        finish = partial(self._finish_picture, step, pending, found=found, written=written)
        for wanted in pictures:
            if not wanted[1].probe.slow:
                self._worker.submit(partial(finish, wanted), picture=True)
        self._worker.submit(lambda: self._deliver(step, found))
        for wanted in pictures:  # which come behind the others, however fast they are
            if wanted[1].probe.slow:
                self._worker.submit(partial(finish, wanted), picture=True, slow=True)

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers of a person's own, soon."""
        if self._backend is not None:
            self._logged.add(step, scalars, self._write)

    def up_to_date(self) -> Diagnosis:
        """The diagnosis of all numbers measured so far; those that the worker has not come to are made here.

        So it does not depend on how fast the worker is, and nobody waits for the pictures in its queue.
        """
        self._leave_the_parents()
        unmade, self._unmade = self._unmade, []
        self._makes = threading.get_ident()
        try:
            for numbers in unmade:
                numbers()
        finally:
            self._makes = None
        return self.diagnosis

    def _leave_the_parents(self) -> None:
        """In a forked child: what is unmade is the parent's, and a thread that is not here may hold the lock."""
        if os.getpid() != self._process:
            self._process, self._unmade, self._diagnosing = os.getpid(), [], threading.Lock()

    def stopped(self, step: int, because: str) -> None:
        """Tells the backend why the training stops."""

        def summarise() -> None:
            self._stopped_because = because
            self._summarise(step)

        self._worker.submit(summarise)

    @property
    def seconds(self) -> float:
        """What finishing and writing has taken so far, on threads beside the training's."""
        return self._worker.seconds

    def flush(self) -> None:
        """Waits until everything has been written."""
        self._logged.send(self._write)
        if not self._is_interrupted():
            self._worker.flush()

    def close(self) -> None:
        """Writes what is left and closes the backend; where that is interrupted, or waits for itself, at the exit."""
        if self._is_interrupted():
            self.leave()
            return
        try:
            self._logged.send(self._write)
            self._worker.close()
        except BaseException:
            self.leave()
            raise
        if self._worker.dropped:
            LOG.warning(
                "vizlog dropped %d pictures that came due faster than they could be drawn", self._worker.dropped
            )
        self._close_backend()

    def _is_interrupted(self) -> bool:
        """Whether a signal's handler called while this thread makes what the worker would wait for."""
        return self._makes == threading.get_ident() and os.getpid() == self._process

    def leave(self) -> None:
        """`close` without waiting, for a monitor that nobody holds any more: threads end once all is written."""
        if self._backend is None:
            self._worker.stop()
            return
        self._logged.send(self._write)
        atexit.register(self._worker.flush)

        def last() -> None:
            self._close_backend()
            self._worker.stop()
            atexit.unregister(self._worker.flush)

        # Only what is behind all slow jobs is behind the jobs that these end with.
        self._worker.submit(lambda: self._worker.submit(last), slow=True)

    def _close_backend(self) -> None:
        if self._summarised is None:  # every run of a sweep has the same keys
            self._summarise(self._latest)
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
                LOG.warning("vizlog could not close %s: %s", type(backend).__name__, one_line(error))

    def _finish_picture(
        self, step: int, pending: Pending, wanted: tuple[int, Turn], *, found: list[Record], written: set[str]
    ) -> None:
        """Finishes one picture, which is then written with the others of its step; a slow one by itself."""
        records = self._finish(pending, [wanted])
        if wanted[1].probe.slow:  # only the fast lane writes
            self._worker.submit(lambda: self._deliver(step, self._diagnosed(step, records, written)))
        else:
            found.extend(self._diagnosed(step, records, written))

    def _curves_due(self, step: int) -> bool:
        due = step >= self._next_curves
        self._next_curves = _CURVES.next_step(step)
        return due

    def _finish(self, pending: Pending, wanted: Iterable[tuple[int, Turn]]) -> list[Record]:
        """Runs `finish` of these probes; health figures of one kind become records together."""
        records: list[Record] = []
        figures: list[tuple[Turn, Figures]] = []
        for number, turn in wanted:
            try:
                for found in turn.probe.finish(pending.wait(number)):
                    if isinstance(found, Record):
                        records.append(found)
                    elif isinstance(found, Figures):
                        figures.append((turn, found))
                    else:
                        raise TypeError(f"it gives records and Figures, not {type(found).__name__}")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 -- whatever one probe raises, the others go on
                self._failed(turn, "finish()", error)
        _, drawn = without_bad(
            figures,
            lambda each: draw([part for _, part in each]),
            lambda each, error: self._failed(each[0], "finish()", error),
        )
        return records + drawn

    def _diagnosed(self, step: int, records: Sequence[Record], written: set[str]) -> list[Record]:
        """What probes have found at a step, the first of each tag, once the diagnosis knows of it."""
        new = self._first_of_each_tag(records, written)
        with self._diagnosing:
            try:
                self.diagnosis = self.diagnosis.after(step, new)
            except Exception as error:  # noqa: BLE001 -- records of a person's own probe may take a tag of ours
                LOG.warning("vizlog could not make sense of step %d: %s", step, one_line(error))
        return new

    def _deliver(self, step: int, records: Sequence[Record]) -> None:
        """Writes what probes have found at a step, and what it says of the run."""
        self._write(step, records)
        self._latest = max(step, self._latest)
        if self.diagnosis != self._summarised:
            self._summarise(self._latest)

    def _summarise(self, step: int) -> None:
        """Gives the backend the health of the run, if it has a place for that."""
        self._summarised = diagnosis = self.diagnosis
        backend = self._backend
        if isinstance(backend, Summarises):
            try:
                backend.summarise(step, diagnosis.scalars(), self._stopped_because)
            except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
                self._report_off(error)

    def _first_of_each_tag(self, records: Sequence[Record], written: set[str]) -> list[Record]:
        new = []
        for record in records:
            if record.tag not in written:
                written.add(record.tag)
                new.append(record)
            elif record.tag not in self._said_twice:
                self._said_twice.add(record.tag)
                LOG.warning("vizlog: two probes make %s; the second one's is left out", record.tag)
        return new

    def _write(self, step: int, records: Sequence[Record]) -> None:
        backend = self._backend
        if backend is None or not records:
            return
        try:
            backend.write(step, records)
        except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
            self._report_off(error)

    def _report_off(self, error: Exception) -> None:
        """The backend has failed: it is said, and nothing more is written."""
        backend, self._backend = self._backend, None
        self.is_in_vain = not self._diagnoses
        LOG.warning("vizlog: %s could not write and is off from now on: %s", type(backend).__name__, one_line(error))
        if backend is not None:
            with suppress(Exception):  # that it is broken has been said
                backend.close()


def _without_curves(records: Iterable[Record]) -> list[Record]:
    """Records but for the health of each layer."""
    return [record for record in records if not (isinstance(record, Curves) and record.tag.startswith("health/"))]


class _Numbers:
    """The numbers of one step, made into records once, by whoever needs them first."""

    def __init__(self, make: Callable[[], list[Record]]) -> None:
        self._make: Callable[[], list[Record]] | None = make
        self._records: list[Record] = []
        self._making = threading.Lock()
        self.are_made = False

    def __call__(self) -> list[Record]:
        with self._making:
            if self._make is not None:
                make, self._make = self._make, None
                self._records = make()
            self.are_made = True
            return self._records


def _cost(turns: Iterable[Turn], time_share: float) -> list[Record]:
    """What each probe, and vizlog as a whole, took from the training thread."""
    seconds: dict[str, float] = defaultdict(float)
    for turn in turns:
        seconds[turn.probe.name] += turn.latest_seconds
    share = "share of the time since the first step that vizlog took from the training thread"
    return [
        *(
            Scalar(
                f"health/vizlog_seconds/{name}",
                value,
                caption="seconds this probe took from the training thread at this step",
            )
            for name, value in seconds.items()
        ),
        Scalar("health/vizlog_time_share", time_share, caption=share),
    ]
