"""Calls into a client that may stop answering: made in order on another thread, and not waited for without end."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Patience"]

_BETWEEN_LOOKS = 0.1


@dataclass(eq=False)
class _Job:
    work: Callable[[], None]
    afterwards: Callable[[], None] | None = None
    was_left: bool = False


class Patience:
    """Makes calls one after the other, and waits for each as long as something moves.

    A call that takes longer than `seconds` goes on by itself, and the calls after it queue up behind; while nothing
    moves, nobody waits. That the thread computes is a sign of life: on a machine so busy that a call takes minutes
    it is waited for, and one that hangs uses no time of a processor at all. The thread is a daemon: what hangs does not
    hold up the end of the process.

    Args:
        seconds: how long a call that shows no sign of life is waited for.
        lives: whether who has to answer is there, so that silence is slowness: then it is waited for a minute.
        most: calls that may queue up; what comes then is dropped and counted.
    """

    LONGEST = 60.0
    """In the place of `seconds`, for someone who is there."""

    def __init__(self, seconds: float = 2.0, lives: Callable[[], bool] = lambda: False, most: int = 64) -> None:
        self.dropped = 0
        self._seconds = seconds
        self._lives = lives
        self._most = most
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._clock: int | None = None  # of the processor time that the thread has used
        self._used = 0.0
        self._pid = os.getpid()
        self._last_sign = 0.0
        self._error: Exception | None = None

    def call(self, work: Callable[[], None], afterwards: Callable[[], None] | None = None) -> bool:
        """Has `work` done; False where it is not done yet, or was dropped.

        Args:
            work: what to do.
            afterwards: follows where `work` is done after all, and this call had returned before.

        Raises:
            Exception: what `work` raised, or one that was not waited for.
        """
        if self.is_forked:
            return False
        with self._changed:
            if len(self._jobs) >= self._most:
                self.dropped += 1
                return False
            if not self._jobs:
                self.sign_of_life()
            job = _Job(work, afterwards)
            self._jobs.append(job)
            self._start()
            try:
                job.was_left = not self._wait()
            except BaseException:  # of an earlier call, perhaps
                job.was_left = job in self._jobs
                raise
            return not job.was_left

    @property
    def is_forked(self) -> bool:
        """Whether this is a fork of the process that it was made in: it has no thread, and nothing is done."""
        return os.getpid() != self._pid

    def wait(self) -> bool:
        """Waits for what is under way; False where it does not move."""
        if self.is_forked:
            return True
        with self._changed:
            return self._wait()

    def sign_of_life(self) -> None:
        """Says that something has moved; for work of several calls, where nobody knows what a thread computes."""
        self._last_sign = time.monotonic()

    def _wait(self) -> bool:
        while self._jobs and self._error is None:
            if self._computes():
                self.sign_of_life()
            silent = time.monotonic() - self._last_sign
            if silent >= self._seconds and not (silent < self.LONGEST and self._lives()):
                return False
            self._changed.wait(_BETWEEN_LOOKS)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _computes(self) -> bool:
        """Whether the thread has used a processor since the last look."""
        if self._clock is None:
            return False
        before, self._used = self._used, time.clock_gettime(self._clock)
        return self._used != before

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vizlog-client", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the system gives none, as it does while the interpreter ends (from 3.12 on)
                self._run()

    def _run(self) -> None:
        clock_of: Callable[[int], int] | None = getattr(time, "pthread_getcpuclockid", None)  # Linux has it
        if clock_of is not None:
            self._clock = clock_of(threading.get_ident())
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = self._clock = None
                    return
                job = self._jobs[0]
            error = None
            try:
                job.work()
            except Exception as raised:  # noqa: BLE001 -- raised again to who called, or calls next
                error = raised
            with self._changed:
                self._jobs.popleft()
                self._error = self._error or error
                if job.was_left and job.afterwards is not None and error is None:
                    self._jobs.appendleft(_Job(job.afterwards))
                self.sign_of_life()
                self._changed.notify_all()
