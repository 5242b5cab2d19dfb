"""As `vizlog.compute.shown`, to the last bit but a zero's sign: for all tensors of a step in one compiled call.

Imported only where numba is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vizlog.compute import shown as plain
from vizlog.compute.bits import GRIDS, BitCounts, Grid, Linear, lower_edges
from vizlog.compute.compiled import compiled

__all__ = ["shown"]

LARGEST = np.float64(np.finfo(np.float32).max)


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
    """Of counts on one grid; None where numpy has to: none is finite, all are equal, or too close for edges between."""
    number = len(each)
    linear = [_NOTHING if counts.linear is None else counts.linear for counts in each]
    edges, found, numbers = np.empty((number, bins + 1)), np.zeros((number, bins)), np.empty(number, np.int64)
    tallies = np.array([counts.tallies for counts in each])
    finite = tallies[:, 0] - tallies[:, 2:].sum(1)
    values = plain.SHARES * (finite[:, np.newaxis] - 1.0) + 0.5
    draw(
        *_joined([counts.bins for counts in each], [counts.counts for counts in each]),
        *_joined([part.bins for part in linear], [part.counts for part in linear]),
        np.array([part.exponent for part in linear]),
        *(lower_edges(grid), grid.top, np.array([counts.moments for counts in each])),
        *(edges, found, values, numbers),
    )
    whole = np.rint(found).astype(np.int64)
    return [
        (edges[k, : drawn + 1], (found if part is _NOTHING else whole)[k, :drawn], values[k]) if drawn else None
        for k, (drawn, part) in enumerate(zip(numbers.tolist(), linear, strict=True))
    ]


_NOTHING = Linear(0, np.zeros(0, np.int64), np.zeros(0, np.int64))


def _joined(bins: list[NDArray[np.int64]], counts: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], ...]:
    """All bins (K,), their counts (K,), and where those of each begin and end (T+1,)."""
    starts = np.array(list(accumulate(map(len, bins), initial=0)))
    return (bins[0], counts[0], starts) if len(bins) == 1 else (np.concatenate(bins), np.concatenate(counts), starts)


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


_COUNTED = "int64[::1], int64[::1], int64[::1]"


@compiled(
    f"""void({_COUNTED}, {_COUNTED}, int64[::1], float64[::1], int64, float64[:, ::1], float64[:, ::1], float64[:, ::1],
    float64[:, ::1], int64[::1])"""
)
def draw(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    bins, counts, starts, linear_bins, linear_counts, linear_starts, exponents, ends, top,
    moments, edges, found, ranks, numbers,
):  # fmt: skip
    """All of it for T tensors, in one call.

    Args:
        bins, counts: (K,) of all tensors, one behind the other, from `starts` (T+1,) on; `linear_…` likewise, of those
            that have such.
        exponents: (T,) of the linear ones' width.
        moments: (T, 4), each tensor's.
        edges, found: (T, B+1) and (T, B), take the edges and the counts between them.
        ranks: (T, N), turn into the values at them.
        numbers: (T,), takes how many bins are shown: 0 where there are none whose edges can be told apart.
    """
    bounds = np.empty((4, ranks.shape[1]))
    for t in range(numbers.size):
        low, high = moments[t, 0], moments[t, 1]
        mine, those = bins[starts[t] : starts[t + 1]], counts[starts[t] : starts[t + 1]]
        on_linear = linear_bins[linear_starts[t] : linear_starts[t + 1]]
        of_linear = linear_counts[linear_starts[t] : linear_starts[t + 1]]
        width = math.ldexp(1.0, exponents[t]) if on_linear.size else 0.0
        number = edges.shape[1] - 1 if low < high else 0
        while number and not draw_edges(low, high, width, edges[t, : number + 1]):
            number //= 2
        numbers[t] = number
        if not number:
            continue
        for j in range(ranks.shape[1]):
            bounds[0, j], bounds[1, j], bounds[2, j], bounds[3, j] = -np.inf, np.inf, 0.0, 0.0
        known, of_known = (on_linear, of_linear) if width else (mine, those)
        at, between = edges[t, : number + 1], found[t, :number]
        count_between(known, of_known, ends, top, width, low, high, at, between)
        narrow(mine, those, ends, top, 0.0, low, high, ranks[t], bounds)
        if width:
            narrow(on_linear, of_linear, ends, top, width, low, high, ranks[t], bounds)
        interpolate(bounds, ranks[t], low, high, ends[top + 1])
