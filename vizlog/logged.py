"""What `monitor.log` is given, on its way to the backend: numbers of many calls go to the host in one copy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from vizlog.capture import is_recording
from vizlog.compute.nvrtc import beside_a_capture
from vizlog.compute.transfer import Pending, to_host
from vizlog.messages import LOG, one_line
from vizlog.ranks import is_sharded
from vizlog.records import Record, Scalar
from vizlog.worker import Worker

__all__ = ["Logged", "without_bad"]

Write: TypeAlias = Callable[[int, Sequence[Record]], None]
"""What writes the records of a step; the worker calls it."""

P = TypeVar("P")
M = TypeVar("M")

_TOGETHER = 64
"""How many calls of `log` share one copy to the host, at most."""

_SECONDS = 10.0
"""How long numbers wait for others, at most: what a killed run loses."""


class Logged:
    """Takes a person's own numbers, and has the worker write them at their steps.

    What writes is given with each call and not kept: a cycle would have both wait for the garbage collector.

    Args:
        worker: writes them, and looks after those that wait for others.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting = _Waiting()
        self._is_late = False
        self._said_parts = False
        self._left_out: set[str] = set()

    def add(self, step: int, scalars: Mapping[str, Any], write: Write) -> None:
        """Keeps numbers for the next copy; tensors are cloned, since training may change them in place."""
        parts = [tag for tag, value in scalars.items() if isinstance(value, Tensor) and is_sharded(value)]
        if parts and not self._said_parts:  # to put it together all ranks would have to be here
            self._said_parts = True
            LOG.warning("vizlog: %s is left out, since it is one rank's part: log its full_tensor()", ", ".join(parts))
        number = self._waiting.add(step, {tag: _owned(scalars[tag]) for tag in scalars if tag not in parts})
        if number >= _TOGETHER:
            self.send(write)
        elif number == 1 or self._is_late:  # the worker looks after them, should the training not come back for a while
            self._is_late = False
            self._worker.submit_within(_SECONDS, lambda: self._send_late(write))

    def send(self, write: Write) -> bool:
        """Has the worker write what waits, once it is on the host; False where it cannot be sent there yet."""
        return self._waiting.hand_over(lambda numbers: self._take(numbers, write))

    def _send_late(self, write: Write) -> None:
        """Numbers that have waited long enough; while a CUDA graph is recorded they wait for the next of them."""
        self._is_late = not self.send(write)

    def _take(self, numbers: list[tuple[int, dict[str, Any]]], write: Write) -> None:
        # Not copied are meta tensors, and those of a vmap.
        taken, pending = without_bad(
            [(call, tag, value) for call, (_, values) in enumerate(numbers) for tag, value in values.items()],
            lambda each: to_host([value for _, _, value in each]),
            lambda each, error: self._say_left_out(each[1], error),
        )
        self._worker.submit(lambda: self._write_taken([step for step, _ in numbers], taken, pending, write))

    def _write_taken(
        self, steps: Sequence[int], taken: Sequence[tuple[int, str, Any]], pending: Pending, write: Write
    ) -> None:
        calls: list[dict[str, Any]] = [{} for _ in steps]
        for (call, tag, _), value in zip(taken, pending.wait(), strict=True):
            calls[call][tag] = value
        for step, values in zip(steps, calls, strict=True):
            write(step, list(self._scalars(values)))

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


def without_bad(
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
