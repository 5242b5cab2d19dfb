"""Counts by the upper bits of a float: the bins, the counts of one tensor, and how two of them add up.

A float's sign, exponent and first six mantissa bits number a bin that is 1/64 to 1/128 of its value wide. The bins
are the same for every tensor, so counts add up exactly over calls, micro-batches and ranks. Zeros have bin 0 to
themselves, positive values the bins above it, negative values those below it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GRIDS",
    "LINEAR_BINS",
    "LINEAR_BITS",
    "MANTISSA_BITS",
    "MOST",
    "NO_MOMENTS",
    "BitCounts",
    "Grid",
    "Linear",
    "Moments",
    "Tallies",
    "added_moments",
    "added_tallies",
    "fine",
    "interpolation_error",
    "linear_exponent",
    "lower_edges",
]

MANTISSA_BITS = 6
LINEAR_BITS = 12
LINEAR_BINS = 1 << LINEAR_BITS

MOST = 1 << 31
"""Elements counted in one table of 32-bit counters."""

Whole: TypeAlias = "NDArray[np.int64]"
Tallies: TypeAlias = tuple[int, int, int, int, int]
Moments: TypeAlias = tuple[float, float, float, float]

NO_MOMENTS: Moments = (math.inf, -math.inf, 0.0, 0.0)
"""Of no values."""


@dataclass(frozen=True)
class Grid:
    """The bins of one float type.

    Args:
        shift: how many low bits of the pattern a bin ignores.
        first_negative: how many bins either sign has, non-finite ones too: the upper bits of −0.0.
        top: the upper bits of +inf, so bins 1 to `top` hold the positive finite values.
    """

    name: Literal["float32", "float64"]
    real: type[np.floating[Any]]
    signed: type[np.signedinteger[Any]]
    unsigned: type[np.unsignedinteger[Any]]
    shift: int
    first_negative: int
    top: int

    def lower_edges(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """(K,) the smallest value in each of the `bins`, which run to one above the highest bin."""
        return lower_edges(self)[bins + self.top]

    def bins_of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """(K,) the bin of each finite value."""
        patterns = np.ascontiguousarray(values.astype(self.real)).view(self.unsigned)
        return np.asarray(self.number(patterns >> self.unsigned(self.shift)) * (values != 0))

    def number(self, upper_bits: NDArray[Any]) -> NDArray[np.int64]:
        """(K,) the bin of what has these upper bits, zeros aside."""
        k = upper_bits.astype(np.int64)
        return np.where(k < self.first_negative, k + 1, self.first_negative - 1 - k)

    def occupied(self, table: NDArray[Any], zeros: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bins, rising, and counts, from a table (2·first_negative,) by upper bits in which no zeros are counted."""
        positive, negative = table[: self.top], table[self.first_negative : self.first_negative + self.top]
        above, below = np.flatnonzero(positive != 0), np.flatnonzero(negative != 0)[::-1]
        zero = np.zeros(int(zeros > 0), np.int64)
        bins = np.concatenate([-1 - below, zero, above + 1])
        return bins, np.concatenate([negative[below], zero + zeros, positive[above]]).astype(np.int64)


@functools.cache
def lower_edges(grid: Grid) -> NDArray[np.float64]:
    """(2·top + 2,) the smallest value in each bin of a grid, from the lowest to one above the highest."""
    bins = np.arange(-grid.top, grid.top + 2)
    upper_bits = np.abs(bins) - (bins > 0)
    edges = (upper_bits.astype(grid.unsigned) << grid.unsigned(grid.shift)).view(grid.real)
    edges = np.where(bins == 1, np.finfo(grid.real).smallest_subnormal, edges)
    # −edge itself belongs to the bin further from zero: this one starts at the neighbouring float.
    edges = np.where(bins < 0, np.nextafter(-edges, grid.real(0)), edges)
    return np.minimum(edges, np.finfo(grid.real).max).astype(np.float64)


GRIDS = {
    "float32": Grid("float32", np.float32, np.int32, np.uint32, 23 - MANTISSA_BITS, 1 << 14, 255 << MANTISSA_BITS),
    "float64": Grid("float64", np.float64, np.int64, np.uint64, 52 - MANTISSA_BITS, 1 << 17, 2047 << MANTISSA_BITS),
}


@dataclass(eq=False, slots=True)  # a frozen one takes several times as long to make, and a step makes hundreds
class Linear:
    """Counts in bins of equal width 2**exponent, at most `LINEAR_BINS` over the range of the values.

    The width is a power of two and bin k is [k, k+1)·width, so two of these add up exactly: the finer one's bins are
    merged first.

    Args:
        bins: (K,) int64, rising, the occupied ones. counts: (K,) int64.
    """

    exponent: int
    bins: Whole
    counts: Whole


@dataclass(eq=False, slots=True)
class BitCounts:
    """One tensor's values, counted: small arrays of our own.

    Args:
        grid: whose bins these are.
        tallies: numbers of elements, zeros, NaNs, +infs, −infs.
        moments: of the finite values: minimum, maximum, sum, sum of squares about the mean.
        bins: (K,) int64, rising, the occupied ones.
        counts: (K,) int64.
        linear: None where bins alone show the distribution well.
        note: what was counted, where that is not the elements themselves.
    """

    grid: Literal["float32", "float64"]
    tallies: Tallies
    moments: Moments
    bins: Whole
    counts: Whole
    linear: Linear | None = None
    note: str = ""

    @property
    def count(self) -> int:
        """Elements, non-finite ones too."""
        return self.tallies[0]

    @property
    def zeros(self) -> int:
        """Elements equal to 0, −0.0 too."""
        return self.tallies[1]

    @property
    def nans(self) -> int:
        return self.tallies[2]

    @property
    def pos_infs(self) -> int:
        return self.tallies[3]

    @property
    def neg_infs(self) -> int:
        return self.tallies[4]

    @property
    def nonfinite(self) -> int:
        """Elements that are NaN or infinite."""
        _, _, nans, pos_infs, neg_infs = self.tallies
        return nans + pos_infs + neg_infs

    @property
    def finite(self) -> int:
        count, _, nans, pos_infs, neg_infs = self.tallies
        return count - nans - pos_infs - neg_infs

    @property
    def min(self) -> float:
        """Of the finite elements, as are `max`, `mean` and `std`; NaN where there are none."""
        return self.moments[0] if self.finite else math.nan

    @property
    def max(self) -> float:
        return self.moments[1] if self.finite else math.nan

    @property
    def mean(self) -> float:
        return self.total / self.finite if self.finite else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.moments[3] / self.finite) if self.finite else math.nan

    @property
    def total(self) -> float:
        """Sum of the finite elements."""
        return self.moments[2]

    @property
    def squares(self) -> float:
        """Sum of squares of the finite elements."""
        finite, (_, _, total, about_the_mean) = self.finite, self.moments
        return about_the_mean + total * (total / finite) if finite else 0.0

    def __add__(self, other: BitCounts) -> BitCounts:
        """The counts of both together, exactly; moments to float64 rounding.

        Raises:
            ValueError: one was counted on float64's bins, the other on float32's.
        """
        if not isinstance(other, BitCounts):
            return NotImplemented
        a, b = self, other
        if other.count == 0 or self.count == 0:
            return self if other.count == 0 else other
        if self.grid != other.grid:
            raise ValueError(f"counts of {self.grid} and of {other.grid} have different bins and cannot be added")
        return BitCounts(
            a.grid,
            added_tallies(a.tallies, b.tallies),
            added_moments(a.finite, a.moments, b.finite, b.moments),
            *_merged(a.bins, a.counts, b.bins, b.counts),
            _added_linear(a, b),
            a.note or b.note,
        )


def fine(counts: BitCounts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The occupied bins as edges and counts: what `numpy.histogram(values, edges)` counts, exactly.

    Returns:
        edges (B+1,) float64, finite and rising, and counts (B,); a stretch without values is one empty bin. Both are
        empty where no value is finite.
    """
    bins, after = np.asarray(counts.bins), np.cumsum(counts.counts)
    # Both ends of each bin, and how many values lie below them; an end that two bins share stands there once.
    ends, below = np.stack([bins, bins + 1], 1).ravel(), np.stack([after - counts.counts, after], 1).ravel()
    new = np.append(True, ends[1:] > ends[:-1])[: len(ends)]
    return GRIDS[counts.grid].lower_edges(ends[new]), np.diff(below[new])


def interpolation_error(counts: BitCounts) -> float:
    """Total variation to expect if 64 bins are interpolated: large where counts jump at a shown bin's edge."""
    edges = np.linspace(counts.min / 2, counts.max / 2, 65)[1:-1] * 2
    nearby = GRIDS[counts.grid].bins_of(edges) + np.array([[-1], [0], [1]])
    bins, found = np.asarray(counts.bins), np.asarray(counts.counts)
    places = np.minimum(np.searchsorted(bins, nearby), len(bins) - 1)
    heights = np.where(bins[places] == nearby, found[places], 0)
    return float(np.abs(np.diff(heights, axis=0)).max(axis=0).sum()) / 8 / counts.finite


def linear_exponent(low: float, high: float) -> int:
    """The smallest exponent with which [low, high] touches `LINEAR_BINS` bins at most, all numbered within ±2**31."""
    largest = max(abs(low), abs(high))
    span = high / 2 - low / 2  # a float64's whole range does not fit in one
    exponent = math.frexp(span)[1] + 1 - LINEAR_BITS if span > 0 else -1021
    exponent = max(exponent, math.frexp(largest)[1] - 30, -1021)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= LINEAR_BINS:
        exponent += 1
    return exponent


def _merged(
    bins_a: Whole | None, counts_a: Whole, bins_b: Whole | None, counts_b: Whole
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _summed(
        np.concatenate([np.asarray(bins_a), np.asarray(bins_b)]),
        np.concatenate([np.asarray(counts_a), np.asarray(counts_b)]),
    )


def _summed(bins: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted, and equal bins made one."""
    order = np.argsort(bins, kind="stable")
    bins, counts = bins[order], counts[order].astype(np.int64)
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(bins), 1), bool), bins[1:] != bins[:-1]]))
    return bins[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def added_tallies(a: Tallies, b: Tallies) -> Tallies:
    """Each number of both together."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]


def added_moments(n_a: int, a: Moments, n_b: int, b: Moments) -> Moments:
    """Minimum, maximum, sum and sum of squares about the mean of n_a and n_b values together.

    Chan, Golub and LeVeque 1979, eq. 2.1.
    """
    if not (n_a and n_b):
        return a if n_a else b
    low_a, high_a, total_a, squares_a = a
    low_b, high_b, total_b, squares_b = b
    delta = total_b / n_b - total_a / n_a
    squares = squares_a + squares_b + delta * delta * (n_a * (n_b / (n_a + n_b)))
    return min(low_a, low_b), max(high_a, high_b), total_a + total_b, squares


def _added_linear(a: BitCounts, b: BitCounts) -> Linear | None:
    if not (a.finite and b.finite):
        return a.linear if a.finite else b.linear
    if a.linear is None or b.linear is None:
        return None
    exponents = int(a.linear.exponent), int(b.linear.exponent)
    exponent = max(*exponents, linear_exponent(min(a.min, b.min), max(a.max, b.max)))
    coarser = [
        np.asarray(part.linear.bins) >> min(exponent - own, 63)  # type: ignore[union-attr]
        for part, own in zip((a, b), exponents, strict=True)
    ]
    return Linear(exponent, *_merged(coarser[0], a.linear.counts, coarser[1], b.linear.counts))
