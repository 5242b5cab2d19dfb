"""As `Uncollected.collected`, of all tensors that were counted together in one compiled call, beside which others run.

Imported only where numba is installed. Constants of `vizlog.compute.bits` and `vizlog.compute.kept` are compiled into
it: who changes those changes this file too, since numba keeps machine code until the text of this one changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import LINEAR_BINS, MANTISSA_BITS, BitCounts, Grid
from vizlog.compute.compiled import compiled
from vizlog.compute.kept import MOMENTS, SPAN, TALLIES, Kept, Rows

__all__ = ["collected"]

OCTAVE = 1 << MANTISSA_BITS

EACH = 1 << 12
"""Numbers that a tensor is expected to take: bins and their counts."""


def collected(grid: Grid, parts: Mapping[str, NDArray[Any]]) -> list[BitCounts]:
    """The counts of all tensors, from the pieces of their `Together` on the host, whose counters have 32 bits."""
    number, done, counts = parts["tallies"].shape[1], 0, list[BitCounts]()
    rows = Rows(number)
    rows.table[:, TALLIES], rows.floats[:, MOMENTS] = parts["tallies"].T, parts["moments"].T
    spans = np.zeros((number, SPAN.stop - SPAN.start), np.int64)
    most = 2 * (2 * grid.top + 1 + LINEAR_BINS)
    while done < number:
        slab = np.empty(max(most, EACH * (number - done)), np.int64)
        given = (parts[name] for name in ("moments", "exponents", "firsts", "table", "linear"))
        filled = _fill(rows.table[:, TALLIES].copy(), *given, grid.top, slab, done, spans)
        begins = slab.ctypes.data
        spans[done:filled, 0] = begins + 8 * spans[done:filled, 0]
        counts += (Kept(grid.name, rows, row, slab, begins) for row in range(done, filled))
        done = filled
    rows.table[:, SPAN] = spans
    return counts


@compiled("UniTuple(int64, 2)(int32[::1], int64, int64)")
def _reach(counters, number, stop):  # type: ignore[no-untyped-def]
    """Goes down from before `stop` to where so many values are found, of either sign; the rest is never read.

    Returns:
        From where on they are, and how many bins they have.
    """
    negative, low, bins = counters.size // 2, stop, 0
    while number > 0 and low > 0:
        low -= OCTAVE
        for k in range(low, low + OCTAVE):
            a, b = counters[k], counters[negative + k]
            number -= a + b
            bins += (a != 0) + (b != 0)
    return low, bins


@compiled("int64(int32[::1], int64, int64, int64, int64, int64[::1], int64[::1])")
def _write(counters, start, step, number, bin_there, bins, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes those of so many counters that are not 0, and which bins they are, the first of which is given.

    Returns:
        How many there were.
    """
    found = 0
    for j in range(number):
        n = counters[start + step * j]
        if n:
            bins[found], counts[found] = bin_there + j, n
            found += 1
    return found


@compiled(
    """int64(int64[:, ::1], float64[:, ::1], int64[::1], int64[::1], int32[:, ::1], int32[:, ::1], int64, int64[::1],
    int64, int64[:, ::1])"""
)
def _fill(tallies, moments, exponents, firsts, table, linear, top, slab, first, spans):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes the bins of one tensor after the other into the slab, from the `first` on, as far as there is room.

    Args:
        tallies: (T, 5). moments, exponents, firsts, table, linear: as of `Together`.
        spans: (T, 4), takes where in the slab the bins of each begin, how many there are, how many linear ones, and the
            exponent of those.

    Returns:
        The first tensor that found no room, or T.
    """
    negative, at = table.shape[1] // 2, 0
    for t in range(first, len(tallies)):
        zeros = tallies[t, 1]
        number = tallies[t, 0] - zeros - tallies[t, 2] - tallies[t, 3] - tallies[t, 4]
        stop = 0
        if number:
            octave = math.frexp(max(-moments[0, t], moments[1, t]))[1] - 1 + top // OCTAVE // 2
            stop = min((max(0, octave) + 1) * OCTAVE, top)
        low, bins = _reach(table[t], number, stop)
        bins += zeros > 0
        linear_bins = np.count_nonzero(linear[t])
        if slab.size - at < 2 * (bins + linear_bins):
            return t
        spans[t, 0], spans[t, 1], spans[t, 2], spans[t, 3] = at, bins, linear_bins, exponents[t]
        found, counts = slab[at : at + bins], slab[at + bins : at + 2 * bins]
        i = _write(table[t], negative + stop - 1, -1, stop - low, -stop, found, counts)
        if zeros:
            found[i], counts[i] = 0, zeros
            i += 1
        _write(table[t], low, 1, stop - low, low + 1, found[i:], counts[i:])
        at += 2 * bins
        if linear_bins:
            found, counts = slab[at : at + linear_bins], slab[at + linear_bins : at + 2 * linear_bins]
            _write(linear[t], 0, 1, linear.shape[1], firsts[t], found, counts)
            at += 2 * linear_bins
    return len(tallies)
