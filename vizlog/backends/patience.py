"""Calls into a client that may stop answering: made in order on another thread, and not waited for without end."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Patience"]


class Patience:
    """Makes calls one after the other, and waits for each as long as something moves.

    A call that takes longer than `seconds` goes on by itself, and the calls after it queue up behind; while nothing
    moves, nobody waits. The thread is a daemon: what hangs does not hold up the end of the process.

    Args:
        seconds: without a sign of life that are waited.
        most: calls that may queue up; what comes then is dropped and counted.
    """

    def __init__(self, seconds: float = 3.0, most: int = 64) -> None:
        self.dropped = 0
        self._seconds = seconds
        self._most = most
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._last_sign = 0.0
        self._error: Exception | None = None

    def call(self, work: Callable[[], None]) -> bool:
        """Has `work` done; False where it is not done yet, or was dropped.

        Raises:
            Exception: what `work` raised, or one that was not waited for.
        """
        if os.getpid() != self._pid:  # a fork has no thread
            return False
        with self._changed:
            if len(self._jobs) >= self._most:
                self.dropped += 1
                return False
            if not self._jobs:
                self.sign_of_life()
            self._jobs.append(work)
            self._start()
            return self._wait()

    def wait(self) -> bool:
        """Waits for what is under way; False where it does not move."""
        with self._changed:
            return self._wait()

    def sign_of_life(self) -> None:
        """Says that something has moved; for work of several calls."""
        self._last_sign = time.monotonic()

    def _wait(self) -> bool:
        while self._jobs and self._error is None:
            left = self._last_sign + self._seconds - time.monotonic()
            if left <= 0:
                return False
            self._changed.wait(left)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vizlog-client", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs[0]
            error = None
            try:
                job()
            except Exception as raised:  # noqa: BLE001 -- raised again to who called, or calls next
                error = raised
            del job
            with self._changed:
                self._jobs.popleft()
                self._error = self._error or error
                self.sign_of_life()
                self._changed.notify_all()
