"""As `vizlog.compute.shown`, to the last bit but a zero's sign: in one compiled pass what numpy does in seventy calls.

Imported only where numba is installed.
"""

from __future__ import annotations

import math

import numpy as np

from vizlog.compute import shown as plain
from vizlog.compute.bits import GRIDS, BitCounts, lower_edges
from vizlog.compute.compiled import compiled

__all__ = ["shown"]

LARGEST = np.float64(np.finfo(np.float32).max)

_ANYWHERE = np.repeat([[-np.inf], [np.inf], [0.0], [0.0]], len(plain.SHARES), axis=1)


def shown(counts: BitCounts, bins: int) -> plain.Shown:
    """As `vizlog.compute.shown.shown`."""
    finite, low, high = counts.finite, counts.min, counts.max
    if not (finite and low < high):
        return plain.shown(counts, bins)
    grid, linear = GRIDS[counts.grid], counts.linear
    edges, found, values = np.empty(bins + 1), np.empty(bins), plain.SHARES * (finite - 1) + 0.5
    known = counts if linear is None else linear
    exponent = 0 if linear is None else linear.exponent
    number = draw(
        *(counts.bins, counts.counts, known.bins, known.counts, linear is not None),
        *(lower_edges(grid), grid.top, exponent, low, high, edges, found, values, np.array(_ANYWHERE)),
    )
    return (edges[: number + 1], found[:number], values) if number else plain.shown(counts, bins)


@compiled("boolean(float64, float64, int64, boolean, float64[::1])")
def draw_edges(low, high, exponent, on_grid, edges):  # type: ignore[no-untyped-def]
    """Writes the edges, which stand on multiples of 2**exponent if `on_grid`; whether they rise."""
    number = edges.size - 1
    for i in range(number + 1):
        fraction = i * (1.0 / number)
        edge = low * (1 - fraction) + high * fraction
        edges[i] = math.ldexp(np.rint(math.ldexp(edge, -exponent)), exponent) if on_grid else edge
    edges[0], edges[number] = low, high
    in_single = max(-low, high) <= LARGEST
    for i in range(number):
        if not edges[i + 1] > edges[i] or (in_single and not np.float32(edges[i + 1]) > np.float32(edges[i])):
            return False
    return True


@compiled("float64(int64, float64[::1], int64, int64, boolean, float64, float64)")
def _end(k, edges, top, exponent, on_grid, low, high):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The lower end of bin k, within the range."""
    return min(max(math.ldexp(np.float64(k), exponent) if on_grid else edges[k + top], low), high)


_KNOWN = "int64[::1], int64[::1], float64[::1], int64, int64, boolean, float64, float64"


@compiled(f"void({_KNOWN}, float64[::1], float64[::1])")
def count_between(bins, counts, edges, top, exponent, on_grid, low, high, at, found):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes how many of the counted values lie between one of `at` and the next: the first and last have all."""
    k, after = 0, counts[0]
    before = 0.0
    for i in range(1, at.size):
        while k + 1 < bins.size and _end(bins[k + 1], edges, top, exponent, on_grid, low, high) <= at[i]:
            k += 1
            after += counts[k]
        start = _end(bins[k], edges, top, exponent, on_grid, low, high)
        stop = _end(bins[k] + 1, edges, top, exponent, on_grid, low, high)
        inside = 0.0
        if at[i] >= start:
            inside = (at[i] - start) / (stop - start) if at[i] < stop else 1.0
        below = after - counts[k] * (1 - inside)
        if i == at.size - 1:
            below = np.float64(after + counts[k + 1 :].sum())
        found[i - 1] = below - before
        before = below


@compiled(f"void({_KNOWN}, float64[::1], float64[:, ::1])")
def narrow(bins, counts, edges, top, exponent, on_grid, low, high, ranks, bounds):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Narrows `bounds` (4, N), start, stop, and how many values lie below either, to the bin that holds each rank."""
    k, after = 0, counts[0]
    for i in range(ranks.size):
        while k + 1 < bins.size and after <= ranks[i]:
            k += 1
            after += counts[k]
        start = _end(bins[k], edges, top, exponent, on_grid, low, high)
        stop = _end(bins[k] + 1, edges, top, exponent, on_grid, low, high)
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
    """int64(int64[::1], int64[::1], int64[::1], int64[::1], boolean, float64[::1], int64, int64, float64, float64,
    float64[::1], float64[::1], float64[::1], float64[:, ::1])"""
)
def draw(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    bins, counts, linear_bins, linear_counts, on_grid, ends, top, exponent, low, high, edges, found, ranks, bounds
):
    """All of it in one call; returns how many bins are shown, 0 where there are none whose edges can be told apart.

    Args:
        linear_bins, linear_counts: as `bins` and `counts` where there are none (`on_grid` is false).
        edges, found: take the edges and the counts between them.
        ranks: turn into the values at them. bounds: (4, N), as `_ANYWHERE`; scratch.
    """
    number = found.size
    while number and not draw_edges(low, high, exponent, on_grid, edges[: number + 1]):
        number //= 2
    if number:
        at, between = edges[: number + 1], found[:number]
        count_between(linear_bins, linear_counts, ends, top, exponent, on_grid, low, high, at, between)
        narrow(bins, counts, ends, top, exponent, False, low, high, ranks, bounds)
        if on_grid:
            narrow(linear_bins, linear_counts, ends, top, exponent, True, low, high, ranks, bounds)
        interpolate(bounds, ranks, low, high, ends[top + 1])
    return number
