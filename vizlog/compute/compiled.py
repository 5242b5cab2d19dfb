"""How loops are compiled by numba, and kept for the next process. Imported only where numba is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["called_back", "compiled", "made_anew"]

_made: list[Any] = []


def compiled(*signatures: str, fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles at import for these types, or takes what an earlier process compiled from the disk.

    numba looks at nothing but the text of a function's file: where what it compiles in from another file changes, its
    own must change too, or the old machine code runs on.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            made = numba.njit(list(signatures), cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder that numba can write its cache to, or no room there
            made = numba.njit(list(signatures), **options)(function)
        _made.append(made)
        return made

    return compile_


def made_anew() -> str:
    """What a person is told where some of it was compiled in this process, which takes seconds; else ""."""
    if all(made.stats.cache_hits for made in _made):
        return ""
    if all(made.stats.cache_path for made in _made):
        return "it is kept for the next run"
    return "as at each start, for numba has no folder to keep it in (NUMBA_CACHE_DIR names one)"


def called_back(function: Callable[..., Any]) -> Any:
    """Compiles a function of one pointer for other compiled code to call, by its `address`, on any thread."""
    try:
        return numba.cfunc("void(voidptr)", cache=True)(function)
    except (RuntimeError, OSError):
        return numba.cfunc("void(voidptr)")(function)
