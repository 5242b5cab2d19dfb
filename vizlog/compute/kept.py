"""Counts as compiled code leaves them: each tensor's numbers in a row of its own, its bins behind one another.

Compiled code reads them there again to draw them, and has the constants of this file in it: see
`vizlog.compute.compiled`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vizlog.compute.bits import BitCounts, Linear, Moments, Tallies

__all__ = ["COLUMNS", "MOMENTS", "SPAN", "TALLIES", "Kept", "Rows", "addresses"]

COLUMNS = 15
"""What is told of a tensor: where it lies and how many values it has; tallies and moments, of which the second are
floats; where its bins are in memory, how many there are, of linear ones too, and these' exponent.

There are its bins, their counts, linear bins and theirs, one behind the other, 8 bytes each.
"""

TALLIES, MOMENTS, SPAN = slice(2, 7), slice(7, 11), slice(11, 15)

_BYTES = 8 * COLUMNS
_PLACE, _TALLIES, _MOMENTS, _SPAN = (struct.Struct(kind) for kind in ("=2q", "=5q", "=4d", "=4q"))
_TALLIES_AT, _MOMENTS_AT, _SPAN_AT = (8 * columns.start for columns in (TALLIES, MOMENTS, SPAN))
_NUMBERS, _BINS = ("tallies", "moments"), ("bins", "counts", "linear")


class Rows:
    """Room for the rows of so many tensors, which are written once.

    Python reads and writes them as bytes: each number of an array would be an object there.
    """

    def __init__(self, number: int) -> None:
        self.table = np.empty((number, COLUMNS), np.int64)
        self.floats = self.table.view(np.float64)
        self.memory = self.table.view(np.uint8).data
        self.address = self.table.ctypes.data

    def __len__(self) -> int:
        return len(self.table)

    def place(self, row: int, address: int, number: int) -> None:
        """Says where the values of a tensor are, and how many."""
        _PLACE.pack_into(self.memory, row * _BYTES, address, number)

    def numbers(self, row: int) -> tuple[Tallies, Moments]:
        """What has been found of it, as `BitCounts` has it."""
        tallies: Any = _TALLIES.unpack_from(self.memory, row * _BYTES + _TALLIES_AT)
        moments: Any = _MOMENTS.unpack_from(self.memory, row * _BYTES + _MOMENTS_AT)
        return tallies, moments

    def span(self, row: int) -> tuple[int, int, int, int]:
        """Where its bins are in memory, how many there are, of linear ones too, and these' exponent."""
        span: Any = _SPAN.unpack_from(self.memory, row * _BYTES + _SPAN_AT)
        return span  # type: ignore[no-any-return]

    def set_span(self, row: int, *span: int) -> None:
        """Says what `span` is to tell."""
        _SPAN.pack_into(self.memory, row * _BYTES + _SPAN_AT, *span)


class Kept(BitCounts):
    """Counts that still are where they were written; the fields become objects when somebody asks for one.

    A step counts hundreds of tensors on the training thread, and drawing them needs none of the objects.

    Args:
        bins_in: (n,) int64, which begins at address `begins` and holds the bins.
    """

    __slots__ = ("_begins", "_bins_in", "_row", "_rows")

    def __init__(
        self, grid: Literal["float32", "float64"], rows: Rows, row: int, bins_in: NDArray[np.int64], begins: int
    ) -> None:
        self.grid, self.note = grid, ""
        self._rows, self._row, self._bins_in, self._begins = rows, row, bins_in, begins

    if not TYPE_CHECKING:  # there the fields are those of BitCounts, and all there are

        def __getattr__(self, name: str) -> Any:  # of one that has not been asked for yet
            if name in _NUMBERS:
                self.tallies, self.moments = self._rows.numbers(self._row)
            elif name in _BINS:
                self._take_out()
            else:
                raise AttributeError(name)
            return getattr(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.grid, self.tallies, self.moments, self.bins, self.counts, self.linear, self.note
        return BitCounts, fields

    @property
    def address(self) -> int:
        """Where its row is in memory."""
        return self._rows.address + self._row * _BYTES

    def _take_out(self) -> None:
        address, bins, linear_bins, exponent = self._rows.span(self._row)
        begin = (address - self._begins) // 8
        middle, end = begin + bins, begin + 2 * bins
        all_bins, linear = self._bins_in, None
        if linear_bins:
            last = end + linear_bins
            linear = Linear(exponent, all_bins[end:last], all_bins[last : last + linear_bins])
        self.bins, self.counts, self.linear = all_bins[begin:middle], all_bins[middle:end], linear


def addresses(each: Sequence[BitCounts]) -> tuple[NDArray[np.int64], object]:
    """(T,) where the rows of these counts are, as long as `each` and what is returned beside them are held."""
    others = [counts for counts in each if type(counts) is not Kept]
    written = iter(_written(others) if others else ())
    found = [counts if isinstance(counts, Kept) else next(written) for counts in each]
    return np.array([kept.address for kept in found], np.int64), found


def _written(each: Sequence[BitCounts]) -> list[Kept]:
    """The same counts in rows."""
    rows, parts, spans, at = Rows(len(each)), [], [], 0
    for row, counts in enumerate(each):
        rows.table[row, TALLIES], rows.floats[row, MOMENTS] = counts.tallies, counts.moments
        linear = _NO_LINEAR if counts.linear is None else counts.linear
        parts += [counts.bins, counts.counts, linear.bins, linear.counts]
        spans.append((at, len(counts.bins), len(linear.bins), linear.exponent))
        at += 2 * (len(counts.bins) + len(linear.bins))
    bins_in = np.concatenate(parts)
    begins = bins_in.ctypes.data
    for row, (at, *span) in enumerate(spans):
        rows.set_span(row, begins + 8 * at, *span)
    return [Kept(counts.grid, rows, row, bins_in, begins) for row, counts in enumerate(each)]


_NO_LINEAR = Linear(0, np.zeros(0, np.int64), np.zeros(0, np.int64))
