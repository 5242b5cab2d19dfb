"""The search for units that are ever other than zero, compiled by numba. Imported only where numba is installed."""

from __future__ import annotations

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from vizlog.compute.compiled import compiled
from vizlog.compute.team import pointer

__all__ = ["find_alive"]

STRETCH = 64
"""Values of one unit that are looked at together."""

ROWS = 16
"""Rows that are read whole, before units are looked for one by one."""

MANY = 8
"""One unit in so many is worth to read a row whole: a processor compares that many values at once."""


@compiled("boolean(float32[::1])", "boolean(float64[::1])")
def _any(values):  # type: ignore[no-untyped-def]
    for start in range(0, values.size, STRETCH):
        other = False
        for k in range(start, min(start + STRETCH, values.size)):
            other |= values[k] != 0
        if other:
            return True
    return False


@compiled("void(float32[:, :, ::1], boolean[::1])", "void(float64[:, :, ::1], boolean[::1])")
def _find_channels(values, found):  # type: ignore[no-untyped-def]
    left, number = np.arange(found.size), found.size
    for a in range(values.shape[0]):
        still = 0
        for k in range(number):
            unit = left[k]
            other = _any(values[a, unit])
            found[unit] = other
            left[still] = unit
            still += not other
        number = still
        if not number:
            return


@compiled("void(float32[:, ::1], boolean[::1])", "void(float64[:, ::1], boolean[::1])")
def _find_entries(rows, found):  # type: ignore[no-untyped-def]
    left, number, start = np.arange(found.size), found.size, 0
    while number and start < len(rows):
        stop = min(start + ROWS, len(rows))
        if MANY * number > found.size:
            for a in range(start, stop):
                for unit in range(found.size):
                    found[unit] |= rows[a, unit] != 0
        else:
            for a in range(start, stop):
                for k in range(number):
                    found[left[k]] |= rows[a, left[k]] != 0
        still = 0
        for k in range(number):
            left[still] = left[k]
            still += not found[left[k]]
        number, start = still, stop


@compiled("void(float32[:, :, ::1], boolean[::1])", "void(float64[:, :, ::1], boolean[::1])")
def _find(values, found):  # type: ignore[no-untyped-def]
    if values.shape[2] == 1:
        _find_entries(values.reshape(values.shape[:2]), found)
    else:
        _find_channels(values, found)


@compiled("void(int64, int64, int64, int64, boolean, boolean[::1])")
def _find_at(address, before, units, behind, wide, found):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    if wide:
        _find(carray(pointer(address), (before, units, behind), np.float64), found)
    else:
        _find(carray(pointer(address), (before, units, behind), np.float32), found)


def find_alive(address: int, shape: tuple[int, int, int], *, wide: bool) -> NDArray[np.bool_]:
    """Which of the units u have anything but zeros in `values[:, u]`, where values (A, U, B) lie at this address.

    They are read in the order of memory, and of each unit not much further than to the first such value: only a dead
    unit is read to its end.

    Args:
        wide: whether they are float64, else float32.
    """
    found = np.zeros(shape[1], bool)
    _find_at(address, *shape, wide, found)
    return found
