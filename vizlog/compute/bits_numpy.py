"""The histogram's loops over a tensor in CPU memory, in plain numpy, for where numba is not installed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import (
    LINEAR_BINS,
    NO_MOMENTS,
    BitCounts,
    Linear,
    Moments,
    Tallies,
    added_moments,
    added_tallies,
)
from vizlog.compute.passes import Chunks, Pass

__all__ = ["PlainPass"]

BLOCK = 1 << 16


class PlainPass(Pass):
    """Counts one tensor after another, from chunks of float32 or float64."""

    def count(self, chunks: Chunks) -> BitCounts:
        table = np.zeros(2 * self.grid.first_negative, np.int64)
        tallies: Tallies = (0, 0, 0, 0, 0)
        moments, finite_before = NO_MOMENTS, 0
        for values in _blocks(chunks):
            finite = np.isfinite(values)
            kept = values if finite.all() else values[finite]
            moments = added_moments(finite_before, moments, len(kept), _moments(kept))
            finite_before += len(kept)
            tallies = added_tallies(tallies, _tallies(values, some_are_not_finite=len(kept) < len(values)))
            patterns = kept[kept != 0].view(self.grid.unsigned)
            upper_bits = (patterns >> self.grid.unsigned(self.grid.shift)).astype(np.intp)
            table += np.bincount(upper_bits, minlength=len(table))
        bins, counts = self.grid.occupied(table, tallies[1])
        return BitCounts(self.grid.name, tallies, moments, bins, counts)

    def count_linear(self, chunks: Chunks, exponent: int, first: int) -> Linear:
        scale = math.ldexp(1.0, -exponent)
        table = np.zeros(LINEAR_BINS, np.int64)
        for values in _blocks(chunks):
            finite = values[np.isfinite(values)].astype(np.float64)
            at = np.floor(finite * scale) - first
            inside = at[(at >= 0) & (at < LINEAR_BINS)]  # all, but where another thread writes into them
            table += np.bincount(inside.astype(np.intp), minlength=LINEAR_BINS)
        places = np.flatnonzero(table)
        return Linear(exponent, places + first, table[places])


def _blocks(chunks: Chunks) -> Iterable[NDArray[np.floating[Any]]]:
    for values in chunks:
        for start in range(0, len(values), BLOCK):
            yield values[start : start + BLOCK]


def _tallies(values: NDArray[np.floating[Any]], *, some_are_not_finite: bool) -> Tallies:
    zeros = len(values) - int(np.count_nonzero(values))
    if not some_are_not_finite:
        return len(values), zeros, 0, 0, 0
    nans, pos_infs, neg_infs = (int(np.count_nonzero(of(values))) for of in (np.isnan, np.isposinf, np.isneginf))
    return len(values), zeros, nans, pos_infs, neg_infs


def _moments(values: NDArray[np.floating[Any]]) -> Moments:
    if not len(values):
        return NO_MOMENTS
    wide = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = wide - wide.mean()
        return float(wide.min()), float(wide.max()), float(wide.sum()), float(np.dot(deviations, deviations))
