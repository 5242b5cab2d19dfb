"""Settings of the whole process that several threads may want at once: on with the first, off after the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Setting"]


class Setting:
    """A setting of the whole process, for as long as any thread wants it.

    Args:
        put_on: changes it, and returns what changes it back.
    """

    def __init__(self, put_on: Callable[[], Callable[[], object]]) -> None:
        self._put_on = put_on
        self._lock, self._wanted = threading.Lock(), 0
        self._take_off: Callable[[], object] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, it is on."""
        with self._lock:
            if not self._wanted:
                self._take_off = self._put_on()
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if not self._wanted:
                    self._take_off()
