"""What the two ways to count a tensor on a CPU have in common."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import BitCounts, Grid, Linear, interpolation_error, linear_exponent

__all__ = ["ALWAYS_LINEAR", "CHANGED", "TOLERABLE_ERROR", "Chunks", "Pass", "Place"]

ALWAYS_LINEAR = 1 << 14
"""Elements up to which the second pass is always made: interpolated bins would show the noise of few values each."""

TOLERABLE_ERROR = 0.005
"""Total variation that interpolation may be expected to cost before the second pass is made."""

CHANGED = "they changed while they were counted"
"""What is said where counts do not add up: another thread or process trains on the same memory."""

Chunks: TypeAlias = "Iterable[NDArray[Any]]"
"""Float32 or float64 (n,) each: the values of one tensor."""


Place: TypeAlias = tuple[int, int]
"""Where a tensor's values lie in memory, in one piece: the address, and how many there are."""


class Pass(ABC):
    """Counts one tensor after another; keeps what it counts in for the next. Not to be shared by threads."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def count_place(self, address: int, number: int) -> BitCounts:
        """Of a tensor whose values are of the grid's own type; they must stay where they are meanwhile.

        Raises:
            RuntimeError: they did not stay as they are; this pass cannot be used again.
        """
        memory = (ctypes.c_char * (number * np.dtype(self.grid.real).itemsize)).from_address(address)
        values = np.frombuffer(memoryview(memory), self.grid.real)
        return self.count_pieces(lambda: (values,), always_linear=number <= ALWAYS_LINEAR)

    def count_places(self, places: Sequence[Place]) -> list[BitCounts]:
        """`count_place` of each."""
        return [self.count_place(*place) for place in places]

    def count_pieces(self, chunks: Callable[[], Chunks], *, always_linear: bool) -> BitCounts:
        """One pass over the values, and a second one where interpolated bins would not show the distribution well.

        Args:
            always_linear: whether the second pass is always made.

        Raises:
            RuntimeError: the values did not stay as they are; this pass cannot be used again.
        """
        counts = self.count(chunks())
        _check_sum(counts.counts, counts)
        if counts.finite and (always_linear or interpolation_error(counts) > TOLERABLE_ERROR):
            low, high, *_ = counts.moments
            exponent = linear_exponent(low, high)
            first = math.floor(math.ldexp(low, -exponent))
            counts = replace(counts, linear=self.count_linear(chunks(), exponent, first))
            _check_sum(counts.linear.counts, counts)  # type: ignore[union-attr]
        return counts

    @abstractmethod
    def count(self, chunks: Chunks) -> BitCounts:
        """By the upper bits alone."""

    @abstractmethod
    def count_linear(self, chunks: Chunks, exponent: int, first: int) -> Linear:
        """The finite values all lie in `LINEAR_BINS` bins of width 2**exponent, numbered from `first`."""


def _check_sum(found: NDArray[np.int64], counts: BitCounts) -> None:
    if found.sum() != counts.finite:
        raise RuntimeError(CHANGED)
