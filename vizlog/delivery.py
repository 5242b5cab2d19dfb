"""From what was measured to what is written: finishes on the worker, keeps tags unique, survives what fails."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from vizlog.backends.base import Backend
from vizlog.compute.transfer import Pending, to_host
from vizlog.due import Turn
from vizlog.probes.base import Figures
from vizlog.probes.health import draw
from vizlog.ranks import is_sharded
from vizlog.records import Record, Scalar
from vizlog.worker import Worker

__all__ = ["Delivery"]

_LOG = logging.getLogger("vizlog")
_TOGETHER = 64
"""How many calls of `log` share one copy to the host, at most."""

_SECONDS = 10.0
"""How long numbers wait for others, at most: what a killed run loses."""


class Delivery:
    """Takes measured results and numbers, and has the worker turn them into records and write them."""

    def __init__(self, backend: Backend | None, failed: Callable[[Turn, str, Exception], None]) -> None:
        self._backend = backend
        self._failed = failed
        self._worker = Worker()
        self._scalars: list[tuple[int, dict[str, Any]]] = []
        self._since = 0.0
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
        self._worker.submit(lambda: found.extend(self._finish(pending, numbers)))
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
        parts = [tag for tag, value in scalars.items() if isinstance(value, Tensor) and is_sharded(value)]
        if parts and not self._said_parts:  # to put it together all ranks would have to be here
            self._said_parts = True
            _LOG.warning("vizlog: %s is left out, since it is one rank's part: log its full_tensor()", ", ".join(parts))
        self._scalars.append((step, {tag: _owned(scalars[tag]) for tag in scalars if tag not in parts}))
        if len(self._scalars) == 1:
            self._since = time.monotonic()
        if len(self._scalars) >= _TOGETHER or time.monotonic() - self._since >= _SECONDS:
            self._send_scalars()

    def flush(self) -> None:
        """Waits until everything has been written."""
        self._send_scalars()
        self._worker.flush()

    def close(self) -> None:
        """Writes what is left and closes the backend."""
        self._send_scalars()
        self._worker.close()
        if self._worker.dropped:
            _LOG.warning(
                "vizlog dropped %d pictures that came due faster than they could be drawn", self._worker.dropped
            )
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
                _LOG.warning("vizlog could not close %s: %s", type(backend).__name__, error)

    def _finish_picture(
        self, step: int, pending: Pending, wanted: tuple[int, Turn], *, found: list[Record], written: set[str]
    ) -> None:
        records = self._finish(pending, [wanted])
        if wanted[1].probe.slow:  # only the fast lane writes
            self._worker.submit(lambda: self._write(step, records, written))
        else:
            found.extend(records)

    def _send_scalars(self) -> None:
        scalars, self._scalars = self._scalars, []
        if not scalars or self._backend is None:
            return
        pending = to_host([values for _, values in scalars])

        def write() -> None:
            for (step, _), values in zip(scalars, pending.wait(), strict=True):
                self._write(step, list(_scalars(values)), set())

        self._worker.submit(write)

    def _finish(self, pending: Pending, wanted: Iterable[tuple[int, Turn]]) -> list[Record]:
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
        return records + draw(figures)

    def _write(self, step: int, records: Sequence[Record], written: set[str]) -> None:
        new = []
        for record in records:
            if record.tag not in written:
                written.add(record.tag)
                new.append(record)
            elif record.tag not in self._said_twice:
                self._said_twice.add(record.tag)
                _LOG.warning("vizlog: two probes make %s; the second one's is left out", record.tag)
        backend = self._backend
        if backend is None or not new:
            return
        try:
            backend.write(step, new)
        except Exception as error:  # noqa: BLE001 -- whatever a destination raises, the training goes on
            self._backend = None
            _LOG.warning(
                "vizlog: %s could not write and is off from now on: %s: %s",
                type(backend).__name__,
                type(error).__name__,
                error,
            )


def _owned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _scalars(values: Mapping[str, Any]) -> Iterable[Scalar]:
    for tag, value in values.items():
        try:
            yield Scalar(tag, value)
        except (TypeError, ValueError, RuntimeError) as error:
            _LOG.warning("vizlog: log() takes numbers and tensors of one element; %r is left out: %s", tag, error)


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
