"""As `vizlog.compute.shown`, to the last bit but a zero's sign: for all tensors of a step in one compiled call.

Imported only where numba is installed. Constants of `vizlog.compute.kept` are compiled into it: who changes those
changes this file too, since numba keeps machine code until the text of this one changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from vizlog.compute import shown as plain
from vizlog.compute.bits import GRIDS, BitCounts, Grid, lower_edges
from vizlog.compute.compiled import compiled
from vizlog.compute.kept import COLUMNS, MOMENTS, SPAN, TALLIES, addresses
from vizlog.compute.team import pointer

__all__ = ["shown"]

LARGEST = np.float64(np.finfo(np.float32).max)
LARGEST_OF_ALL = np.finfo(np.float64).max


def shown(each: Sequence[BitCounts], bins: int) -> list[plain.Shown]:
    """As `vizlog.compute.shown.shown`."""
    alike: dict[str, list[int]] = {}
    for k, counts in enumerate(each):
        alike.setdefault(counts.grid, []).append(k)
    found: dict[int, plain.Shown | None] = {}
    for name, places in alike.items():
        found |= zip(places, _shown(GRIDS[name], [each[k] for k in places], bins), strict=True)
    return [found.get(k) or plain.shown_one(counts, bins) for k, counts in enumerate(each)]


def _shown(grid: Grid, each: Sequence[BitCounts], bins: int) -> list[plain.Shown | None]:
    """Of counts on one grid; None where numpy has to: none is finite, or they are too close for edges between."""
    number = len(each)
    rows, held = addresses(each)
    edges, found, values = np.empty((number, bins + 1)), np.zeros((number, bins)), np.empty((number, len(plain.SHARES)))
    numbers, exact = np.empty(number, np.int64), np.empty(number, np.int64)
    draw(rows, lower_edges(grid), grid.top, plain.SHARES, edges, found, values, numbers, exact)
    del held
    whole = np.rint(found).astype(np.int64)
    each_number = zip(numbers.tolist(), exact.tolist(), values.tolist(), strict=True)
    return [
        (edges[k, : drawn + 1], (whole if is_whole else found)[k, :drawn], its_values) if drawn else None
        for k, (drawn, is_whole, its_values) in enumerate(each_number)
    ]


@compiled("boolean(float64, float64, float64, float64[::1])")
def draw_edges(low, high, width, edges):  # type: ignore[no-untyped-def]
    """Writes the edges, on multiples of the `width`, a power of two, unless that is 0; returns whether they rise."""
    number = edges.size - 1
    for i in range(number + 1):
        fraction = i * (1.0 / number)
        edge = low * (1 - fraction) + high * fraction
        edges[i] = np.rint(edge / width) * width if width else edge
    edges[0], edges[number] = low, high
    in_single = max(-low, high) <= LARGEST
    for i in range(number):
        if not edges[i + 1] > edges[i] or (in_single and not np.float32(edges[i + 1]) > np.float32(edges[i])):
            return False
    return True


@compiled("int64(float64, float64[::1])")
def draw_around(value, edges):  # type: ignore[no-untyped-def]
    """Writes edges around one value, in the middle bin of an odd number; returns how many bins that are."""
    number = edges.size - edges.size % 2 - 1
    limit = LARGEST if abs(value) <= LARGEST else np.float64(LARGEST_OF_ALL)
    reach = max(abs(value) / 2, 1e-37) if value else 0.5
    start, stop = max(value - reach, -limit), min(value + reach, limit)
    step = (stop - start) / number
    for i in range(number):
        edges[i] = i * step + start
    edges[number] = stop
    return number


@compiled("float64(int64, float64[::1], int64, float64, float64, float64)")
def _end(k, edges, top, width, low, high):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The lower end of bin k, of those of equal width if there is one, within the range."""
    return min(max(np.float64(k) * width if width else edges[k + top], low), high)


_KNOWN = "int64[::1], int64[::1], float64[::1], int64, float64, float64, float64"


@compiled(f"void({_KNOWN}, float64[::1], float64[::1])")
def count_between(bins, counts, edges, top, width, low, high, at, found):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes how many of the counted values lie between one of `at` and the next: the first and last have all."""
    k, after = 0, counts[0]
    before = 0.0
    for i in range(1, at.size):
        while k + 1 < bins.size and _end(bins[k + 1], edges, top, width, low, high) <= at[i]:
            k += 1
            after += counts[k]
        start = _end(bins[k], edges, top, width, low, high)
        stop = _end(bins[k] + 1, edges, top, width, low, high)
        inside = 0.0
        if at[i] >= start:
            inside = (at[i] - start) / (stop - start) if at[i] < stop else 1.0
        below = after - counts[k] * (1 - inside)
        if i == at.size - 1:
            below = np.float64(after + counts[k + 1 :].sum())
        found[i - 1] = below - before
        before = below


@compiled(f"void({_KNOWN}, float64[::1], float64[:, ::1])")
def narrow(bins, counts, edges, top, width, low, high, ranks, bounds):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Narrows `bounds` (4, N), start, stop, and how many values lie below either, to the bin that holds each rank."""
    k, after = 0, counts[0]
    for i in range(ranks.size):
        while k + 1 < bins.size and after <= ranks[i]:
            k += 1
            after += counts[k]
        start = _end(bins[k], edges, top, width, low, high)
        stop = _end(bins[k] + 1, edges, top, width, low, high)
        if start > bounds[0, i]:
            bounds[0, i], bounds[2, i] = start, after - counts[k]
        if stop < bounds[1, i]:
            bounds[1, i], bounds[3, i] = stop, after


@compiled("void(float64[:, ::1], float64[::1], float64, float64, float64)")
def interpolate(bounds, ranks, low, high, least):  # type: ignore[no-untyped-def]
    """Turns each rank into the value at it; what lies between zero and the `least` number is zeros."""
    for i in range(ranks.size):
        start, stop, below, after = bounds[0, i], bounds[1, i], bounds[2, i], bounds[3, i]
        value = start + (ranks[i] - below) / max(after - below, 1.0) * (stop - start)
        value = 0.0 if start == 0 and stop <= least else value
        ranks[i] = min(max(value, low), high)


@compiled(
    """void(int64[::1], float64[::1], int64, float64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1],
    int64[::1], int64[::1])"""
)
def draw(rows, ends, top, shares, edges, found, values, numbers, exact):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """All of it for T tensors, in one call.

    Args:
        rows: (T,) where the row of each is, as in `vizlog.compute.kept`.
        edges, found: (T, B+1) and (T, B), take the edges and the counts between them.
        shares: (N,) of the values below each rank. values: (T, N), takes those at the ranks.
        numbers: (T,), takes how many bins are shown: 0 where there are none whose edges can be told apart.
        exact: (T,), takes whether the counts are exact.
    """
    bounds = np.empty((4, shares.size))
    for t in range(rows.size):
        row, floats = carray(pointer(rows[t]), (COLUMNS,), np.int64), carray(pointer(rows[t]), (COLUMNS,), np.float64)
        tallies, moments, span = row[TALLIES], floats[MOMENTS], row[SPAN]
        finite = tallies[0] - tallies[2] - tallies[3] - tallies[4]
        low, high = moments[0], moments[1]
        all_bins = carray(pointer(span[0]), (2 * (span[1] + span[2]),), np.int64)
        middle, end = span[1], 2 * span[1]
        mine, those = all_bins[:middle], all_bins[middle:end]
        on_linear, of_linear = all_bins[end : end + span[2]], all_bins[end + span[2] :]
        width = math.ldexp(1.0, span[3]) if span[2] else 0.0
        exact[t] = span[2] > 0 or low == high
        number = edges.shape[1] - 1 if finite else 0
        if number and low == high:
            number = draw_around(low / 2 + high / 2, edges[t])
        while number and low < high and not draw_edges(low, high, width, edges[t, : number + 1]):
            number //= 2
        numbers[t] = number
        if not number:
            continue
        for j in range(shares.size):
            values[t, j] = shares[j] * (finite - 1.0) + 0.5
            bounds[0, j], bounds[1, j], bounds[2, j], bounds[3, j] = -np.inf, np.inf, 0.0, 0.0
        known, of_known = (on_linear, of_linear) if width else (mine, those)
        at, between = edges[t, : number + 1], found[t, :number]
        count_between(known, of_known, ends, top, width, low, high, at, between)
        narrow(mine, those, ends, top, 0.0, low, high, values[t], bounds)
        if width:
            narrow(on_linear, of_linear, ends, top, width, low, high, values[t], bounds)
        interpolate(bounds, values[t], low, high, ends[top + 1])
