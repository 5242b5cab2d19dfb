"""Compiled loops, where numba is installed; else, and until they are compiled, numpy does the same with equal results.

To compile takes half a minute, once. A training on a CPU waits for it: cores and time are better spent on this than on
numpy's ways. One on another device, which hardly needs them, goes on meanwhile.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterable
from functools import partial

from vizlog.messages import LOG, one_line
from vizlog.process import ClosedError, LowPriority

__all__ = ["are_compiled", "load", "prepare"]

_MODULES = tuple(f"vizlog.compute.{name}_numba" for name in ("bits", "shown", "health", "uncollected"))

_BEGINS = "vizlog compiles its loops%s, which takes half a minute, %s"
_AT_EACH_START = "as at each start, for numba has no folder to keep them in (NUMBA_CACHE_DIR names one)"

_compiled = False
_prepared = False
_preparing = threading.Lock()


def are_compiled() -> bool:
    """Whether there are compiled loops to be used; where a process is still compiling them, there will be."""
    if not _prepared:
        prepare(waits=True)
    return _compiled


def prepare(*, waits: bool) -> None:
    """Loads what was compiled before, which takes a second; what was not is compiled: now, or beside the training."""
    global _prepared  # noqa: PLW0603
    with _preparing:
        if _prepared:
            return
        _prepared = True
    if importlib.util.find_spec("numba") is None:
        return
    try:
        from vizlog.compute.compiled import NotKeptError, only_what_is_kept

        try:
            with only_what_is_kept():
                load()
        except NotKeptError as error:
            LOG.info(_BEGINS, "" if waits else " beside the training", "once" if error.can_be else _AT_EACH_START)
            if waits:
                load()
            else:
                compiles = partial(_compile_beside, can_be_kept=error.can_be)
                threading.Thread(target=compiles, name="vizlog-compiles", daemon=True).start()
    except Exception as error:  # noqa: BLE001 -- of a numba that does not work, a thread that the system does not give
        _say_none(error)


def load(modules: Iterable[str] | None = None) -> None:
    """Loads the compiled loops; those that no process has compiled are compiled here and now, for half a minute.

    Raises:
        ImportError: numba is not installed.
    """
    global _prepared, _compiled  # noqa: PLW0603
    for name in modules or _MODULES:
        importlib.import_module(name)
    _prepared = _compiled = True


def _compile_beside(*, can_be_kept: bool) -> None:
    try:
        if can_be_kept:
            process = LowPriority("loops")
            try:
                process.call(load, _MODULES)
            finally:
                process.close()
        load()  # what the process could not keep for us, this thread compiles
    except ClosedError:  # this process ends
        return
    except Exception as error:  # noqa: BLE001 -- numpy counts as well
        _say_none(error)


def _say_none(error: Exception) -> None:
    LOG.warning("vizlog has no compiled loops and counts with numpy, which takes longer: %s", one_line(error))


def _left_by_fork() -> None:
    """In a forked child: the thread that compiles is not here, and another may hold the lock."""
    global _prepared, _preparing
    _prepared, _preparing = _compiled, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_left_by_fork)
