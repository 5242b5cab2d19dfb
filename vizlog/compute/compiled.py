"""How loops are compiled by numba, and kept for the next process. Imported only where numba is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core import event

__all__ = ["NotKeptError", "called_back", "compiled", "only_what_is_kept"]


class NotKeptError(Exception):
    """No process has compiled this and kept it.

    Attributes:
        can_be: whether one can: there is a folder for it.
    """

    def __init__(self, *, can_be: bool = True) -> None:
        super().__init__("it is not compiled yet")
        self.can_be = can_be


def compiled(*signatures: str, fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles at import for these types, or takes what an earlier process compiled from the disk.

    numba looks at nothing but the text of a function's file: where what it compiles in from another file changes, its
    own must change too, or the old machine code runs on.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            return numba.njit(list(signatures), cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder that numba can write its cache to, or no room there
            try:
                return numba.njit(list(signatures), **options)(function)
            except NotKeptError:
                raise NotKeptError(can_be=False) from None

    return compile_


def called_back(function: Callable[..., Any]) -> Any:
    """Compiles a function of one pointer for other compiled code to call, by its `address`, on any thread."""
    try:
        return numba.cfunc("void(voidptr)", cache=True)(function)
    except (RuntimeError, OSError):
        return numba.cfunc("void(voidptr)")(function)


@contextmanager
def only_what_is_kept() -> Iterator[None]:
    """In here this thread compiles nothing: `compiled` raises `NotKeptError` where it would have to."""
    with event.install_listener("numba:compile", _Refuses(threading.get_ident())):
        yield


class _Refuses(event.Listener):
    """Hears of all that is about to be compiled, on any thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def on_start(self, event: event.Event) -> None:
        if threading.get_ident() == self._thread:
            raise NotKeptError

    def on_end(self, event: event.Event) -> None:
        pass
