"""From what was measured to what is written: finishes on the worker, keeps tags unique, survives what fails."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vizlog.backends.base import Backend
from vizlog.compute.transfer import Pending, to_host
from vizlog.due import Turn
from vizlog.messages import LOG, told
from vizlog.probes.base import Figures
from vizlog.probes.health import draw
from vizlog.ranks import is_sharded
from vizlog.records import Record, Scalar
from vizlog.schedules import LogSpaced
from vizlog.worker import Worker

__all__ = ["Delivery"]

_TOGETHER = 64
"""How many calls of `log` share one copy to the host, at most."""

_SECONDS = 10.0
"""How long numbers wait for others, at most: what a killed run loses."""

_CURVES = LogSpaced()
"""When health figures are drawn over the layers: numbers come at every due step, pictures are bounded."""


class Delivery:
    """Takes measured results and numbers, and has the worker turn them into records and write them."""

    def __init__(self, backend: Backend | None, failed: Callable[[Turn, str, Exception], None]) -> None:
        self._backend = backend
        self._failed = failed
        self._worker = Worker()
        self._waiting = _Waiting()
        self._next_curves = -1
        self._said_parts = False
        self._said_twice: set[str] = set()

    def send(self, step: int, measured: Sequence[tuple[Turn, Any]]) -> None:
        """Starts one copy to the host and queues the rest; all that was found is written at once, the slow ones after.

        Each picture is a job of its own, since one that waits may be dropped.
        """
        self._send_scalars()
        if self._backend is None:
            return
        pending = to_host([tree for _, tree in measured])
        written: set[str] = set()
        turns = [turn for turn, _ in measured]
        found = _seconds(turns)
        numbers = [(number, turn) for number, turn in enumerate(turns) if not turn.probe.picture]
        curves = self._curves_due(step)
        self._worker.submit(lambda: found.extend(self._finish(pending, numbers, curves=curves)))
        for number, turn in enumerate(turns):
            if turn.probe.picture:
                self._worker.submit(
                    partial(self._finish_picture, step, pending, (number, turn), found=found, written=written),
                    picture=True,
                    slow=turn.probe.slow,
                )
        self._worker.submit(lambda: self._write(step, found, written))

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
        elif number == 1:  # the worker looks after them, should the training not come back for a while
            self._worker.submit_within(_SECONDS, self._write_scalars)

    def flush(self) -> None:
        """Waits until everything has been written."""
        self._send_scalars()
        self._worker.flush()

    def close(self) -> None:
        """Writes what is left and closes the backend."""
        self._send_scalars()
        self._worker.close()
        if self._worker.dropped:
            LOG.warning(
                "vizlog dropped %d pictures that came due faster than they could be drawn", self._worker.dropped
            )
        self._close_backend()

    def leave(self) -> None:
        """`close` without waiting, for a monitor that nobody holds any more: threads end once all is written."""
        if self._backend is None:
            return
        self._send_scalars()

        def last() -> None:
            self._close_backend()
            self._worker.stop()

        # Only what is behind all slow jobs is behind the jobs that these end with.
        self._worker.submit(lambda: self._worker.submit(last), slow=True)

    def _close_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
                LOG.warning("vizlog could not close %s: %s", type(backend).__name__, told(error))

    def _finish_picture(
        self, step: int, pending: Pending, wanted: tuple[int, Turn], *, found: list[Record], written: set[str]
    ) -> None:
        records = self._finish(pending, [wanted])
        if wanted[1].probe.slow:  # only the fast lane writes
            self._worker.submit(lambda: self._write(step, records, written))
        else:
            found.extend(records)

    def _send_scalars(self) -> None:
        pending = self._waiting.take()
        if pending is not None:
            self._worker.submit(lambda: self._write_taken(*pending))

    def _write_scalars(self) -> None:
        pending = self._waiting.take()
        if pending is not None:
            self._write_taken(*pending)

    def _write_taken(self, steps: Sequence[int], pending: Pending) -> None:
        for step, values in zip(steps, pending.wait(), strict=True):
            self._write(step, list(_scalars(values)), set())

    def _curves_due(self, step: int) -> bool:
        due = step >= self._next_curves
        if due:
            self._next_curves = _CURVES.next_step(step)
        return due

    def _finish(self, pending: Pending, wanted: Iterable[tuple[int, Turn]], *, curves: bool = True) -> list[Record]:
        """Runs `finish` of these probes; health figures of one kind become records together."""
        trees = pending.wait()
        records: list[Record] = []
        figures: list[Figures] = []
        for number, turn in wanted:
            try:
                for found in turn.probe.finish(trees[number]):
                    (figures if isinstance(found, Figures) else records).append(found)  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 -- whatever one probe raises, the others go on
                self._failed(turn, "finish()", error)
        return records + draw(figures, curves=curves)

    def _write(self, step: int, records: Sequence[Record], written: set[str]) -> None:
        new = []
        for record in records:
            if record.tag not in written:
                written.add(record.tag)
                new.append(record)
            elif record.tag not in self._said_twice:
                self._said_twice.add(record.tag)
                LOG.warning("vizlog: two probes make %s; the second one's is left out", record.tag)
        backend = self._backend
        if backend is None or not new:
            return
        try:
            backend.write(step, new)
        except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
            self._backend = None
            LOG.warning("vizlog: %s could not write and is off from now on: %s", type(backend).__name__, told(error))


class _Waiting:
    """Numbers that wait for others, to go to the host in one copy; filled by one thread and taken by another."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._numbers: list[tuple[int, dict[str, Any]]] = []
        self._streams: dict[torch.device, Any] = {}

    def add(self, step: int, scalars: dict[str, Any]) -> int:
        """How many calls wait now."""
        self._leave_the_parents()
        with self._lock:
            self._numbers.append((step, scalars))
            for value in scalars.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    self._streams[value.device] = torch.cuda.current_stream(value.device)
            return len(self._numbers)

    def take(self) -> tuple[list[int], Pending] | None:
        """Their steps, and the values on their way to the host, behind what made them; None where none wait."""
        self._leave_the_parents()
        with self._lock:
            numbers, self._numbers = self._numbers, []
            streams, self._streams = self._streams, {}
        if not numbers:
            return None
        with ExitStack() as stack:
            for stream in streams.values():
                stack.enter_context(torch.cuda.stream(stream))
            return [step for step, _ in numbers], to_host([values for _, values in numbers])

    def _leave_the_parents(self) -> None:
        """In a forked child: what waited is the parent's to write, and a thread that is not here may hold the lock."""
        if os.getpid() != self._process:
            self._begin()


def _owned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _scalars(values: Mapping[str, Any]) -> Iterable[Scalar]:
    for tag, value in values.items():
        try:
            yield Scalar(tag, value)
        except (TypeError, ValueError, RuntimeError) as error:
            LOG.warning("vizlog: log() takes numbers and tensors of one element; %r is left out: %s", tag, error)


def _seconds(turns: Iterable[Turn]) -> list[Record]:
    seconds: dict[str, float] = defaultdict(float)
    for turn in turns:
        seconds[turn.probe.name] += turn.latest_seconds
    return [
        Scalar(
            f"health/vizlog_seconds/{name}",
            value,
            caption="seconds this probe took from the training thread at this step",
        )
        for name, value in seconds.items()
    ]
