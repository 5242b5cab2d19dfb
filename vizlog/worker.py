"""The worker: finishes, draws and writes while training goes on."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Worker"]

_LOG = logging.getLogger("vizlog")


class Worker:
    """A thread that runs jobs in order, and a second one for jobs that take seconds.

    The queue is bounded: when it is full the oldest picture still waiting is dropped and counted; a job that is no
    picture is never dropped, and never blocks the caller. Threads start with the first job; a forked child has none of
    its parent's jobs.

    Args:
        most: how many pictures may wait.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._pid = os.getpid()
        self._reset()

    def _reset(self) -> None:
        self.dropped = 0
        self._fast, self._slow = _Lane("vizlog"), _Lane("vizlog-slow")

    def submit(self, job: Callable[[], None], *, picture: bool = False, slow: bool = False) -> None:
        """Queues `job`, which must not raise; a `picture` may be dropped, a `slow` one holds up no other."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._reset()
        if (self._slow if slow else self._fast).put(job, self._most, picture=picture):
            self.dropped += 1
            if self.dropped == 1:
                _LOG.warning(
                    "vizlog cannot draw as fast as pictures come due: the oldest waiting ones are dropped (close() "
                    "says how many); raise every= of the picture probes"
                )

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was submitted is done; False where `timeout` seconds were not enough."""
        if os.getpid() != self._pid:
            return True
        until = None if timeout is None else time.monotonic() + timeout
        # A slow job ends by submitting its records to the fast lane, hence the order.
        return self._slow.wait(until) and self._fast.wait(until)

    def close(self, timeout: float | None = None) -> bool:
        """Flushes and stops the threads."""
        done = self.flush(timeout)
        self.stop()
        return done

    def stop(self) -> None:
        """Stops the threads once their queues are empty."""
        if os.getpid() == self._pid:
            self._slow.stop()
            self._fast.stop()


class _Lane:
    """A queue and the thread that empties it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[tuple[Callable[[], None], bool]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._stopped = False

    def put(self, job: Callable[[], None], most: int, *, picture: bool) -> bool:
        """Appends a job; True where an older picture had to go for it."""
        with self._changed:
            dropped = picture and self._drop_oldest(most)
            self._jobs.append((job, picture))
            if self._thread is None or not self._thread.is_alive():
                self._stopped = False
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return dropped

    def wait(self, until: float | None) -> bool:
        """Waits until the queue is empty and nothing runs."""
        if threading.current_thread() is self._thread:
            return True
        with self._changed:
            while self._jobs or self._busy:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def stop(self) -> None:
        """Ends the thread once the queue is empty."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _drop_oldest(self, most: int) -> bool:
        pictures = [number for number, (_, picture) in enumerate(self._jobs) if picture]
        if len(pictures) < most:
            return False
        del self._jobs[pictures[0]]
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._busy = False
                    self._changed.notify_all()
                    if self._stopped:
                        self._thread = None
                        return
                    self._changed.wait()
                job, _ = self._jobs.popleft()
                self._busy = True
            try:
                job()
            except Exception:  # noqa: BLE001 -- a job reports its own failures; this keeps the lane alive
                _LOG.exception("vizlog: a job failed")
            del job
