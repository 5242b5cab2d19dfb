"""The search for units that are ever other than zero, compiled by numba. Imported only where numba is installed."""

from __future__ import annotations

import numpy as np

from vizlog.compute.compiled import compiled

__all__ = ["find_alive"]

STRETCH = 64
"""Values of one unit that are looked at together."""


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
def find_alive(values, found):  # type: ignore[no-untyped-def]
    """Sets `found[u]` where `values[:, u]` (A, U, B) holds anything but zeros.

    In the order of memory, and of each unit no further than to the stretch that holds the first such value: only a
    dead unit is read to its end.
    """
    left = np.arange(found.size)
    number, alone = found.size, values.shape[2] == 1
    for a in range(values.shape[0]):
        still = 0
        for k in range(number):
            unit = left[k]
            other = values[a, unit, 0] != 0 if alone else _any(values[a, unit])
            found[unit] = other
            left[still] = unit
            still += not other
        number = still
        if not number:
            return
