"""The search for units that are ever other than zero, compiled by numba. Imported only where numba is installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.compiled import compiled

__all__ = ["find_alive"]

STRETCH = 64
"""Values of one unit that are looked at together."""

ROWS = 16
"""Rows that are read whole, before units are looked for one by one."""

MANY = 8
"""One unit in so many is worth to read a row whole: a processor compares that many values at once."""


def find_alive(values: NDArray[np.floating], found: NDArray[np.bool_]) -> None:
    """Sets `found[u]`, all of which are False, where `values[:, u]` (A, U, B) holds anything but zeros.

    In the order of memory, and of each unit not much further than to the first such value: only a dead unit is read to
    its end.
    """
    if values.shape[2] == 1:
        _find_entries(values[:, :, 0], found)
    else:
        _find_channels(values, found)


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
