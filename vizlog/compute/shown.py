"""What a histogram shows of counts: edges, how many values lie between them, and the values of some ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import GRIDS, BitCounts
from vizlog.records import QUANTILES

__all__ = ["LARGEST", "SHARES", "Shown", "shown", "shown_one"]

Shown = tuple[NDArray[np.float64], NDArray[np.float64] | NDArray[np.int64], list[float]]
"""Edges (B+1,), counts (B,), whole numbers where they are exact, and the values at `QUANTILES`, of which there are none
where no value is finite."""

SHARES = np.array(QUANTILES)
LARGEST = float(np.finfo(np.float32).max)


def shown(each: Sequence[BitCounts], bins: int) -> list[Shown]:
    """Of each, in at most `bins` bins; see `vizlog.compute.histogram.histograms`."""
    return [shown_one(counts, bins) for counts in each]


def shown_one(counts: BitCounts, bins: int) -> Shown:
    """The same of one."""
    finite, low, high = counts.finite, counts.min, counts.max
    edges = _shown_edges(counts, bins)
    if not finite:
        return edges, np.zeros(len(edges) - 1), []
    known = _known(counts)
    # Linear bins come last, and edges stand on theirs; the last shown bin is closed, and edges may end where floats do.
    below = known[-1].below(edges)
    below[0], below[-1] = 0, finite
    least = GRIDS[counts.grid].lower_edges(np.array(1))
    found = below[1:] - below[:-1]
    exact = counts.linear is not None or low == high
    return (
        edges,
        np.rint(found).astype(np.int64) if exact else found,
        _values_at(known, finite, low, high, least).tolist(),
    )


class _Known:
    """Bins (K,), rising, from `starts` to `stops`, and how many of the finite values lie below either end."""

    def __init__(self, starts: NDArray[np.float64], stops: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.starts, self.stops, self.counts = starts, stops, counts
        self.after = np.cumsum(counts)

    def below(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) how many values lie below each of `at`; within a bin they are taken to be spread evenly."""
        k = np.maximum(np.searchsorted(self.starts, at, side="right") - 1, 0)
        starts, counts = self.starts[k], self.counts[k]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # bins may be 1e308 wide, or of no width
            share = (at - starts) / (self.stops[k] - starts)
        inside = np.where(at < starts, 0.0, np.where(at < self.stops[k], share, 1.0))
        return np.asarray(self.after[k] - counts * (1 - inside))

    def around(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, N) of the bin that holds each rank: start, stop, and how many values lie below either."""
        k = np.minimum(np.searchsorted(self.after, ranks, side="right"), len(self.after) - 1)
        return np.stack([self.starts[k], self.stops[k], self.after[k] - self.counts[k], self.after[k]])


def _known(counts: BitCounts) -> list[_Known]:
    """The bins that tell something of these counts: fine ones, and linear ones where there are such."""
    grid, bins = GRIDS[counts.grid], np.asarray(counts.bins)
    ends = [(grid.lower_edges(bins), grid.lower_edges(bins + 1), np.asarray(counts.counts))]
    if counts.linear is not None:
        exponent, bins = int(counts.linear.exponent), np.asarray(counts.linear.bins)
        with np.errstate(over="ignore"):  # clipped next
            starts, stops = np.ldexp(bins.astype(np.float64), exponent), np.ldexp(bins + 1.0, exponent)
        ends.append((starts, stops, np.asarray(counts.linear.counts)))
    low, high = counts.min, counts.max
    return [_Known(np.maximum(starts, low), np.minimum(stops, high), found) for starts, stops, found in ends]


def _values_at(
    known: Sequence[_Known], finite: int, low: float, high: float, least: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The values at `QUANTILES`: each lies in every bin that holds its rank, so in what these have in common.

    What lies between zero and the `least` number is zeros.
    """
    ranks = SHARES * (finite - 1) + 0.5
    start, stop, below, after = known[0].around(ranks)
    for other in known[1:]:
        start_, stop_, below_, after_ = other.around(ranks)
        start, below = np.where(start_ > start, start_, start), np.where(start_ > start, below_, below)
        stop, after = np.where(stop_ < stop, stop_, stop), np.where(stop_ < stop, after_, after)
    with np.errstate(over="ignore", invalid="ignore"):
        values = start + (ranks - below) / np.maximum(after - below, 1) * (stop - start)
    values = np.where((start == 0) & (stop <= least), 0.0, values)
    return np.asarray(np.minimum(np.maximum(values, low), high))


def _shown_edges(counts: BitCounts, bins: int) -> NDArray[np.float64]:
    """(B+1,) finite, and rising in float32 too, which is how event files keep them; B <= bins."""
    low, high = (counts.min, counts.max) if counts.finite else (0.0, 0.0)
    number = bins
    while number and low < high:
        fractions = _fractions(number)
        edges = low * (1 - fractions) + high * fractions
        if counts.linear is not None:
            exponent = int(counts.linear.exponent)
            with np.errstate(over="ignore"):  # beyond the last edge, which is set next
                edges = np.ldexp(np.rint(np.ldexp(edges, -exponent)), exponent)
        edges[0], edges[-1] = low, high
        if _rising(edges):
            return edges
        number //= 2
    return _around(low / 2 + high / 2, bins)


@functools.cache
def _fractions(bins: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, bins + 1)


def _rising(edges: NDArray[np.float64]) -> bool:
    if max(-edges[0], edges[-1]) <= LARGEST:
        edges = edges.astype(np.float32)
    return bool((edges[1:] > edges[:-1]).all())


def _around(value: float, bins: int) -> NDArray[np.float64]:
    """(B+1,) edges with `value` in the middle bin, or at the end where floats end."""
    real = np.float32 if abs(value) <= LARGEST else np.float64
    limit = float(np.finfo(real).max)
    reach = max(abs(value) / 2, 1e-37) if value else 0.5
    with np.errstate(over="ignore"):  # in the last edge, which is set to the end all the same
        return np.linspace(max(value - reach, -limit), min(value + reach, limit), bins + bins % 2)
