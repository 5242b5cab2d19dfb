"""The worker: finishes, draws and writes while training goes on."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from vizlog.messages import LOG

__all__ = ["Worker"]


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

    def _own(self) -> None:
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._reset()

    def _reset(self) -> None:
        self.dropped = 0
        self._fast, self._slow = _Lane("vizlog"), _Lane("vizlog-slow")

    def submit(self, job: Callable[[], None], *, picture: bool = False, slow: bool = False) -> None:
        """Queues `job`, which must not raise; a `picture` may be dropped, a `slow` one holds up no other."""
        self._own()
        if (self._slow if slow else self._fast).put(job, self._most, picture=picture):
            self.dropped += 1
            if self.dropped == 1:
                LOG.warning(
                    "vizlog cannot draw as fast as pictures come due: the oldest waiting ones are dropped (close() "
                    "says how many); raise every= of the picture probes"
                )

    @property
    def seconds(self) -> float:
        """What the threads have computed so far; what they wait for, a process that draws among it, is not counted."""
        return self._fast.seconds + self._slow.seconds

    def submit_within(self, seconds: float, job: Callable[[], None]) -> None:
        """Queues `job` once that many seconds have passed, whatever else comes meanwhile; one at a time."""
        self._own()
        self._fast.put_within(seconds, job)

    def flush(self) -> None:
        """Waits until all that was submitted is done."""
        if os.getpid() == self._pid:
            # A slow job ends by submitting its records to the fast lane, hence the order.
            self._slow.wait()
            self._fast.wait()

    def close(self) -> None:
        """Flushes and stops the threads."""
        self.flush()
        self.stop()

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
        self._later: tuple[float, Callable[[], None]] | None = None
        self._thread: threading.Thread | None = None
        self._busy = False
        self._stopped = False
        self.seconds = 0.0

    def put(self, job: Callable[[], None], most: int, *, picture: bool) -> bool:
        """Appends a job; True where an older picture had to go for it."""
        with self._changed:
            dropped = picture and self._drop_oldest(most)
            self._jobs.append((job, picture))
            started = self._start()
            self._changed.notify_all()
        if not started:
            self._run()
        return dropped

    def put_within(self, seconds: float, job: Callable[[], None]) -> None:
        """Appends a job once that many seconds have passed, or at once where no thread can wait for it."""
        with self._changed:
            if self._later is None:
                self._later = time.monotonic() + seconds, job
            started = self._start()
            self._changed.notify_all()
        if not started:
            self._run()

    def wait(self) -> None:
        """Waits until the queue is empty and nothing runs; not for itself, where one of its own jobs asks."""
        if threading.current_thread() is not self._thread:
            with self._changed:
                self._changed.wait_for(lambda: not (self._jobs or self._busy))

    def stop(self) -> None:
        """Ends the thread once the queue is empty."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _start(self) -> bool:
        """Has a thread run; False where the system gives none, as it does while the interpreter ends (from 3.12 on)."""
        if self._thread is not None:
            return True
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread, self._stopped = None, True
        return self._thread is not None

    def _drop_oldest(self, most: int) -> bool:
        pictures = [number for number, (_, picture) in enumerate(self._jobs) if picture]
        if len(pictures) < most:
            return False
        del self._jobs[pictures[0]]
        return True

    def _run(self) -> None:
        """Runs one job after another, until there is none and the lane has been stopped."""
        while (job := self._next()) is not None:
            began = time.thread_time()
            try:
                job()
            except BaseException as error:  # a job reports its own failures; this keeps the lane alive
                if not isinstance(error, Exception) and threading.current_thread() is not self._thread:
                    self._busy = False
                    raise  # Ctrl-C, where the jobs run on the caller's thread
                LOG.exception("vizlog: a job failed")
            self.seconds += time.thread_time() - began
            del job

    def _next(self) -> Callable[[], None] | None:
        """Waits for a job; None where the lane has been stopped."""
        with self._changed:
            while True:
                left = self._until_later()
                if self._jobs:
                    job, _ = self._jobs.popleft()
                    self._busy = True
                    return job
                self._busy = False
                self._changed.notify_all()
                if self._stopped:
                    self._thread = None
                    return None
                self._changed.wait(left)

    def _until_later(self) -> float | None:
        """Seconds until the job that is to come later; once they are over, or the lane is stopped, it is queued."""
        if self._later is None:
            return None
        at, job = self._later
        if not self._stopped and (left := at - time.monotonic()) > 0:
            return left
        self._jobs.append((job, False))
        self._later = None
        return None
