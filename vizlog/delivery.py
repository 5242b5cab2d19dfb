"""From what was measured to what is written: finishes on the worker, keeps tags unique, survives what fails."""

from __future__ import annotations

import atexit
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vizlog.backends.base import Backend, OwnedElsewhere, Summarises
from vizlog.capture import is_recording
from vizlog.compute.nvrtc import beside_a_capture
from vizlog.compute.transfer import Pending, to_host
from vizlog.diagnosis import Diagnosis
from vizlog.due import Turn
from vizlog.messages import LOG, one_line
from vizlog.probes.base import Figures
from vizlog.probes.health import draw
from vizlog.ranks import is_sharded
from vizlog.records import Curves, Record, Scalar
from vizlog.schedules import LogSpaced
from vizlog.worker import Worker

__all__ = ["Delivery"]

P = TypeVar("P")
M = TypeVar("M")

_TOGETHER = 64
"""How many calls of `log` share one copy to the host, at most."""

_SECONDS = 10.0
"""How long numbers wait for others, at most: what a killed run loses."""

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
        self._left_out: set[str] = set()
        self._waiting = _Waiting()
        self._is_late = False
        self._next_curves = -1
        self._said_parts = False
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
        self._send_scalars()
        if self._backend is None:
            if not self._diagnoses:
                return
            measured = [(turn, tree) for turn, tree in measured if not turn.probe.picture]
        measured, pending = _without_bad(
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
        """Keeps numbers for the next copy; tensors are cloned, since training may change them in place."""
        if self._backend is None:
            return
        parts = [tag for tag, value in scalars.items() if isinstance(value, Tensor) and is_sharded(value)]
        if parts and not self._said_parts:  # to put it together all ranks would have to be here
            self._said_parts = True
            LOG.warning("vizlog: %s is left out, since it is one rank's part: log its full_tensor()", ", ".join(parts))
        number = self._waiting.add(step, {tag: _owned(scalars[tag]) for tag in scalars if tag not in parts})
        if number >= _TOGETHER:
            self._send_scalars()
        elif number == 1 or self._is_late:  # the worker looks after them, should the training not come back for a while
            self._is_late = False
            self._worker.submit_within(_SECONDS, self._send_late)

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
        self._send_scalars()
        if not self._is_interrupted():
            self._worker.flush()

    def close(self) -> None:
        """Writes what is left and closes the backend; where that is interrupted, or waits for itself, at the exit."""
        if self._is_interrupted():
            self.leave()
            return
        try:
            self._send_scalars()
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
        self._send_scalars()
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
        records = self._finish(pending, [wanted])
        if wanted[1].probe.slow:  # only the fast lane writes
            self._worker.submit(lambda: self._deliver(step, self._diagnosed(step, records, written)))
        else:
            found.extend(self._diagnosed(step, records, written))

    def _send_scalars(self) -> None:
        self._waiting.hand_over(self._take)

    def _send_late(self) -> None:
        """Numbers that have waited long enough; while a CUDA graph is recorded they wait for the next of them."""
        self._is_late = not self._waiting.hand_over(self._take)

    def _take(self, numbers: list[tuple[int, dict[str, Any]]]) -> None:
        # Not copied are meta tensors, and those of a vmap.
        taken, pending = _without_bad(
            [(call, tag, value) for call, (_, values) in enumerate(numbers) for tag, value in values.items()],
            lambda each: to_host([value for _, _, value in each]),
            lambda each, error: self._say_left_out(each[1], error),
        )
        self._worker.submit(lambda: self._write_taken([step for step, _ in numbers], taken, pending))

    def _write_taken(self, steps: Sequence[int], taken: Sequence[tuple[int, str, Any]], pending: Pending) -> None:
        calls: list[dict[str, Any]] = [{} for _ in steps]
        for (call, tag, _), value in zip(taken, pending.wait(), strict=True):
            calls[call][tag] = value
        for step, values in zip(steps, calls, strict=True):
            self._write(step, list(self._scalars(values)))

    def _scalars(self, values: Mapping[str, Any]) -> Iterable[Scalar]:
        for tag, value in values.items():
            try:
                yield Scalar(tag, value)
            except Exception as error:  # noqa: BLE001 -- what has no float, a user's own type too
                self._say_left_out(tag, error)

    def _say_left_out(self, tag: str, error: Exception) -> None:
        if tag not in self._left_out:
            self._left_out.add(tag)
            LOG.warning(
                "vizlog: log() takes numbers and tensors of one element; %r is left out: %s", tag, one_line(error)
            )

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
        _, drawn = _without_bad(
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
        backend, self._backend = self._backend, None
        self.is_in_vain = not self._diagnoses
        LOG.warning("vizlog: %s could not write and is off from now on: %s", type(backend).__name__, one_line(error))
        if backend is not None:
            with suppress(Exception):  # that it is broken has been said
                backend.close()


def _without_bad(
    parts: Sequence[P], make: Callable[[Sequence[P]], M], blame: Callable[[P, Exception], None]
) -> tuple[Sequence[P], M]:
    """Makes something of all parts at once; where that fails, without those that fail alone, which are blamed.

    Returns:
        The parts that are left, and what was made of them.
    """
    try:
        return parts, make(parts)
    except Exception:  # noqa: BLE001 -- one of them is to blame, and the others go on
        left = []
        for part in parts:
            try:
                make([part])
            except Exception as error:  # noqa: BLE001 -- a tensor without a value, values of a person's own probe
                blame(part, error)
            else:
                left.append(part)
        return left, make(left)


def _without_curves(records: Iterable[Record]) -> list[Record]:
    """Records but for the health of each layer."""
    return [record for record in records if not (isinstance(record, Curves) and record.tag.startswith("health/"))]


class _Waiting:
    """Numbers that wait for others, to go to the host in one copy; filled by one thread and taken by another."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()  # where no thread can start, what is handed over is written here and now
        self._numbers: list[tuple[int, dict[str, Any]]] = []
        self._streams: dict[torch.device, list[Any]] = {}  # on which they were made

    def add(self, step: int, scalars: dict[str, Any]) -> int:
        """Adds the numbers of one call; returns how many calls wait now."""
        self._leave_the_parents()
        with self._lock:
            self._numbers.append((step, scalars))
            for value in scalars.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    stream, known = torch.cuda.current_stream(value.device), self._streams.setdefault(value.device, [])
                    if stream not in known:
                        known.append(stream)
            return len(self._numbers)

    def hand_over(self, receive: Callable[[list[tuple[int, dict[str, Any]]]], None]) -> bool:
        """Gives all that wait to `receive`, on the streams that made them: what it starts there comes after that.

        Under the lock, so that no later numbers overtake them. False where they cannot be given yet.
        """
        self._leave_the_parents()
        with self._lock, ExitStack() as stack:
            if any(_is_recording(stream) for known in self._streams.values() for stream in known):
                return False  # what is done on it now would go into a CUDA graph
            stack.enter_context(beside_a_capture())
            numbers, self._numbers = self._numbers, []
            streams, self._streams = self._streams, {}
            for latest in (known[-1] for known in streams.values()):
                stack.enter_context(torch.cuda.stream(latest))
            for *others, latest in streams.values():
                for other in others:
                    latest.wait_stream(other)
            if numbers:
                receive(numbers)
            return True

    def _leave_the_parents(self) -> None:
        """In a forked child: what waited is the parent's to write, and a thread that is not here may hold the lock."""
        if os.getpid() != self._process:
            self._begin()


def _is_recording(stream: torch.cuda.Stream) -> bool:
    with torch.cuda.stream(stream):
        return is_recording()


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


def _owned(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (int, float, str, np.generic)):
        return value
    try:
        return float(value)  # now, for a meter of one's own goes on
    except Exception:  # noqa: BLE001 -- it is said where it is written
        return value


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
