"""The histogram's loops over a tensor in CPU memory, compiled by numba. Imported only where numba is installed.

Each loop goes through blocks that stay in the first-level cache. Inside a block, extremes and sums are vectorised;
counting costs one addition to memory an element, spread over two tables because equal values in a row would wait for
one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import LINEAR_BINS, BitCounts, Grid, Linear, linear_exponent

__all__ = ["CompiledPass"]

BLOCK = 4096


def _compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles at import for these types, or takes what an earlier process compiled from the disk."""

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        # Reassociation lets sums be vectorised; NaN and inf must keep their meaning, so no more of fastmath than that.
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
        try:
            compiled = numba.njit(list(signatures), cache=True, **options)(function)
        except RuntimeError:  # no folder that numba can write its cache to
            compiled = numba.njit(list(signatures), **options)(function)
        return compiled

    return compile_


@_compiled(
    "Tuple((int32, int32, uint32, float64, float64))(float32[::1], int32[::1], uint32[::1], float64)",
    "Tuple((int64, int64, uint64, float64, float64))(float64[::1], int64[::1], uint64[::1], float64)",
)
def _extremes_and_sums(values, signed, unsigned, center):  # type: ignore[no-untyped-def]
    """Extremes of the bit patterns, and sum and sum of squares of (value − center)."""
    lowest = highest = signed[0]
    largest = unsigned[0]
    total = squares = 0.0
    for j in range(signed.size):
        lowest = min(lowest, signed[j])
        highest = max(highest, signed[j])
        largest = max(largest, unsigned[j])
        d = np.float64(values[j]) - center
        total += d
        squares += d * d
    return lowest, highest, largest, total, squares


@_compiled("void(uint32[::1], uint32, uint32[::1], uint32[::1])", "void(uint64[::1], uint64, uint32[::1], uint32[::1])")
def _count(unsigned, shift, even, odd):  # type: ignore[no-untyped-def]
    half = unsigned.size // 2
    left, right = unsigned[:half], unsigned[half : 2 * half]
    for j in range(half):
        even[left[j] >> shift] += np.uint32(1)
        odd[right[j] >> shift] += np.uint32(1)
    if unsigned.size % 2:
        even[unsigned[-1] >> shift] += np.uint32(1)


@_compiled("Tuple((int64, int64))(int32[::1], int32)", "Tuple((int64, int64))(int64[::1], int64)")
def _zeros(signed, negative_zero):  # type: ignore[no-untyped-def]
    """How many elements are +0.0, and how many −0.0."""
    positive = negative = np.int32(0)
    for j in range(signed.size):
        positive += np.int32(signed[j] == 0)
        negative += np.int32(signed[j] == negative_zero)
    return positive, negative


@_compiled("void(float64[::1], int64, float64, float64, float64)")
def _add_moments(moments, n, mean, squares, finite_before):  # type: ignore[no-untyped-def]
    """Adds n values of this mean and sum of squares about it (Chan, Golub and LeVeque 1979, eq. 2.1)."""
    if finite_before > 0:
        delta = mean - moments[2] / finite_before
        squares += delta * delta * (n * (finite_before / (finite_before + n)))
    moments[2] += n * mean
    moments[3] += squares


@_compiled("void(float32[::1], int64[::1], float64[::1])", "void(float64[::1], int64[::1], float64[::1])")
def _block_with_nonfinite(values, tallies, moments):  # type: ignore[no-untyped-def]
    """One element at a time: non-finite ones are tallied, the others join the moments."""
    for x in values:
        v = np.float64(x)
        tallies[0] += 1
        if np.isnan(v):
            tallies[2] += 1
        elif np.isinf(v):
            tallies[3 if v > 0 else 4] += 1
        else:
            moments[0] = min(moments[0], v)
            moments[1] = max(moments[1], v)
            finite_before = tallies[0] - 1 - tallies[2] - tallies[3] - tallies[4]
            _add_moments(moments, 1, v, 0.0, np.float64(finite_before))


@_compiled(
    "void(float32[::1], int32[::1], uint32[::1], int32, uint32, uint32[::1], uint32[::1], int64[::1], float64[::1])",
    "void(float64[::1], int64[::1], uint64[::1], int64, uint64, uint32[::1], uint32[::1], int64[::1], float64[::1])",
)
def scan(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- a compiled loop takes arrays, not objects
    values, signed, unsigned, negative_zero, shift, even, odd, tallies, moments
):
    """Adds `values` to the tables, tallies and moments.

    Args:
        values, signed, unsigned: three views of the same memory.
        negative_zero: the bit pattern of −0.0; shift: how many low bits a bin ignores.
        even, odd: (bins,) counts by upper bits; zeros are left out of them, so that bin 0 holds denormals alone.
        tallies: (5,) count, zeros, NaNs, +infs, −infs.
        moments: (4,) of the finite: minimum, maximum, sum, sum of squares about the mean.
    """
    first_negative = even.size // 2
    edges = np.empty(2, values.dtype)
    edge_bits, edge_patterns = edges.view(signed.dtype), edges.view(unsigned.dtype)
    for start in range(0, values.size, BLOCK):
        stop = min(values.size, start + BLOCK)
        block, ints = values[start:stop], signed[start:stop]
        n = stop - start
        finite = np.float64(tallies[0] - tallies[2] - tallies[3] - tallies[4])
        center = moments[2] / finite if finite > 0 else np.float64(block[0])
        lowest, highest, largest, total, squares = _extremes_and_sums(block, ints, unsigned[start:stop], center)

        before = even[0] + odd[0] + even[first_negative] + odd[first_negative]
        _count(unsigned[start:stop], shift, even, odd)
        if even[0] + odd[0] + even[first_negative] + odd[first_negative] != before:
            positive, negative = _zeros(ints, negative_zero)
            even[0] -= np.uint32(positive)
            even[first_negative] -= np.uint32(negative)
            tallies[1] += positive + negative

        # A larger magnitude is a larger pattern, so among negatives the signed order is upside down.
        edge_bits[0], edge_bits[1] = lowest, highest if highest >= 0 else lowest
        if lowest < 0:
            edge_patterns[0] = largest
        if not (np.isfinite(edges[0]) and np.isfinite(edges[1]) and np.isfinite(squares)):
            _block_with_nonfinite(block, tallies, moments)
            continue
        moments[0] = min(moments[0], np.float64(edges[0]))
        moments[1] = max(moments[1], np.float64(edges[1]))
        # Rounding can leave a trace below zero where all values are equal.
        _add_moments(moments, n, center + total / n, max(squares - total * (total / n), 0.0), finite)
        tallies[0] += n


@_compiled("int64(uint32[::1], uint32[::1], int64, boolean, int64[::1], int64[::1], int64)")
def _take_octave(even, odd, lowest, backwards, bins, counts, found):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Moves 64 entries of the tables to `bins`, numbered from `lowest`, and `counts`; returns how many those hold."""
    total = np.int64(0)
    for k in range(even.size):
        total += np.int64(even[k]) + np.int64(odd[k])
    if total == 0:
        return found
    for j in range(even.size):
        k = even.size - 1 - j if backwards else j
        n = np.uint32(even[k] + odd[k])
        if n:
            bins[found], counts[found] = lowest + j, n
            found += 1
    even[:] = 0
    odd[:] = 0
    return found


@_compiled("int64(uint32[::1], uint32[::1], int64, int64, int64[::1], int64[::1])")
def extract(even, odd, top, zeros, bins, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes the occupied bins, rising, and their counts; empties the tables; returns how many there were.

    Args:
        top: the table's entry of +inf, a multiple of 64; this and all above are not finite.
        zeros: the count of bin 0.
        bins, counts: at least as long as there are occupied bins.
    """
    found = 0
    half = even.size // 2
    for start in range(half + top - 64, half - 64, -64):
        stop = start + 64
        found = _take_octave(even[start:stop], odd[start:stop], half - stop, True, bins, counts, found)
    if zeros:
        bins[found], counts[found] = 0, zeros
        found += 1
    for start in range(0, top, 64):
        stop = start + 64
        found = _take_octave(even[start:stop], odd[start:stop], start + 1, False, bins, counts, found)
    for nonfinite in (top, half + top):
        even[nonfinite : nonfinite + 64] = 0
        odd[nonfinite : nonfinite + 64] = 0
    return found


@_compiled(
    "void(float32[::1], float64, float64, int32[::1], int64[::1])",
    "void(float64[::1], float64, float64, int32[::1], int64[::1])",
)
def linear_pass(values, scale, first, places, table):  # type: ignore[no-untyped-def]
    """Adds to `table` how many values lie in each [k, k+1)/scale, k from `first`; its last entry takes the rest.

    Args:
        scale: a power of two. places: (BLOCK,) scratch.
    """
    outside = np.float64(table.size - 1)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        for j in range(block.size):
            place = np.floor(np.float64(block[j]) * scale) - first
            place = place if place >= 0 else outside  # NaN too
            places[j] = np.int32(min(place, outside))
        for j in range(block.size):
            table[np.uint32(places[j])] += 1


@_compiled("int64(int64[::1], int64, int64[::1], int64[::1])")
def extract_linear(table, first, bins, counts):  # type: ignore[no-untyped-def]
    """As `extract`, from the table of `linear_pass`."""
    found = 0
    for k in range(table.size - 1):
        if table[k]:
            bins[found], counts[found] = first + k, table[k]
            found += 1
    table[:] = 0
    return found


class CompiledPass:
    """Counts one tensor after another, from chunks of float32 or float64; keeps its tables for the next.

    Not to be shared by threads.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._even, self._odd = (np.zeros(2 * grid.first_negative, np.uint32) for _ in range(2))
        self._bins, self._counts = (np.empty(2 * grid.top + 1, np.int64) for _ in range(2))
        self._table, self._places = np.zeros(LINEAR_BINS + 1, np.int64), np.empty(BLOCK, np.int32)
        self._negative_zero = np.array(-0.0, grid.real).view(grid.signed)[()]

    def count(self, chunks: Iterable[NDArray[np.floating[Any]]]) -> BitCounts:
        """Fewer than 2**32 values in all."""
        grid = self._grid
        tallies, moments = np.zeros(5, np.int64), np.array([np.inf, -np.inf, 0.0, 0.0])
        shift = grid.unsigned(grid.shift)
        for values in chunks:
            signed, unsigned = values.view(grid.signed), values.view(grid.unsigned)
            scan(values, signed, unsigned, self._negative_zero, shift, self._even, self._odd, tallies, moments)
        found = extract(self._even, self._odd, grid.top, tallies[1], self._bins, self._counts)
        return BitCounts(grid.name, tallies, moments, self._bins[:found].copy(), self._counts[:found].copy())

    def count_linear(self, chunks: Iterable[NDArray[np.floating[Any]]], low: float, high: float) -> Linear:
        """`low` and `high` are the extremes of the finite values."""
        exponent = linear_exponent(low, high)
        scale = math.ldexp(1.0, -exponent)
        first = math.floor(low * scale)
        for values in chunks:
            linear_pass(values, scale, float(first), self._places, self._table)
        found = extract_linear(self._table, first, self._bins, self._counts)
        return Linear(exponent, self._bins[:found].copy(), self._counts[:found].copy())
