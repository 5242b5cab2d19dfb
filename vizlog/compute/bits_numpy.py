"""The histogram's loops over a tensor in CPU memory, in plain numpy, for where numba is not installed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import LINEAR_BINS, BitCounts, Linear, added_moments
from vizlog.compute.passes import Chunks, Pass

__all__ = ["PlainPass"]

BLOCK = 1 << 16


class PlainPass(Pass):
    """Counts one tensor after another, from chunks of float32 or float64."""

    def count(self, chunks: Chunks) -> BitCounts:
        table = np.zeros(2 * self.grid.first_negative, np.int64)
        tallies, moments = np.zeros(5, np.int64), np.array([np.inf, -np.inf, 0.0, 0.0])
        for values in _blocks(chunks):
            finite = np.isfinite(values)
            everything_finite = bool(finite.all())
            kept = values if everything_finite else values[finite]
            moments = added_moments(int(tallies[0] - tallies[2:].sum()), moments, len(kept), _moments(kept))
            tallies[0] += len(values)
            tallies[1] += len(values) - np.count_nonzero(values)
            if not everything_finite:
                tallies[2:] += np.isnan(values).sum(), np.isposinf(values).sum(), np.isneginf(values).sum()
            patterns = kept[kept != 0].view(self.grid.unsigned)
            upper_bits = (patterns >> self.grid.unsigned(self.grid.shift)).astype(np.intp)
            table += np.bincount(upper_bits, minlength=len(table))
        bins, counts = self.grid.occupied(table, int(tallies[1]))
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


def _moments(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    if not len(values):
        return np.array([np.inf, -np.inf, 0.0, 0.0])
    wide = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = wide - wide.mean()
        return np.array([wide.min(), wide.max(), wide.sum(), np.dot(deviations, deviations)])
