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
"""Numbers of a row, 8 bytes each: 0 the address of the tensor's values, 1 how many there are, 2 to 6 the tallies,
7 to 10 the moments (floats), 11 the address of its bins, 12 how many are occupied, 13 how many linear ones, 14 the
exponent of the linear ones.

At the address of its bins are, one behind the other and 8 bytes each, the bins, their counts, the linear bins and
their counts.
"""

TALLIES, MOMENTS, SPAN = slice(2, 7), slice(7, 11), slice(11, 15)

_BYTES = 8 * COLUMNS
_PLACE, _TALLIES, _MOMENTS, _SPAN = (struct.Struct(kind) for kind in ("=2q", "=5q", "=4d", "=4q"))
_TALLIES_AT, _MOMENTS_AT, _SPAN_AT = (8 * columns.start for columns in (TALLIES, MOMENTS, SPAN))
_NUMBERS, _BINS = ("tallies", "moments"), ("bins", "counts", "linear")


class Rows:
    """Memory for the rows of several tensors, each of which is written once.

    Python reads and writes it as bytes: to take a number out of an array takes several times as long.

    Args:
        number: how many rows there are.
    """

    def __init__(self, number: int) -> None:
        self.table = np.empty((number, COLUMNS), np.int64)
        self.floats = self.table.view(np.float64)
        self.memory = self.table.view(np.uint8).data
        self.address = self.table.ctypes.data

    def place(self, row: int, address: int, number: int) -> None:
        """Writes where the values of a tensor are, and how many."""
        _PLACE.pack_into(self.memory, row * _BYTES, address, number)

    def numbers(self, row: int) -> tuple[Tallies, Moments]:
        """Its tallies and moments."""
        tallies: Any = _TALLIES.unpack_from(self.memory, row * _BYTES + _TALLIES_AT)
        moments: Any = _MOMENTS.unpack_from(self.memory, row * _BYTES + _MOMENTS_AT)
        return tallies, moments

    def span(self, row: int) -> tuple[int, int, int, int]:
        """The address of its bins, how many are occupied, how many linear ones, and the exponent of those."""
        span: Any = _SPAN.unpack_from(self.memory, row * _BYTES + _SPAN_AT)
        return span  # type: ignore[no-any-return]

    def set_span(self, row: int, *span: int) -> None:
        """Writes what `span` reads."""
        _SPAN.pack_into(self.memory, row * _BYTES + _SPAN_AT, *span)


class Kept(BitCounts):
    """Counts that still are where they were written; the fields become objects when somebody asks for one.

    A step counts hundreds of tensors on the training thread, and drawing them needs none of the objects. Fields are
    not to be assigned to, and `dataclasses.replace` cannot be used; sums, copies and pickles are plain `BitCounts`.

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
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
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
    """(T,) where the rows of these counts are, and what owns their memory, to be held as long as they are read.

    Raises:
        TypeError: bins or counts are not int64.
    """
    others = [counts for counts in each if not isinstance(counts, Kept)]
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
    bins_in = np.concatenate(parts, dtype=np.int64, casting="equiv")  # compiled code takes the bytes for such
    begins = bins_in.ctypes.data
    for row, (at, *span) in enumerate(spans):
        rows.set_span(row, begins + 8 * at, *span)
    return [Kept(counts.grid, rows, row, bins_in, begins) for row, counts in enumerate(each)]


_NO_LINEAR = Linear(0, np.zeros(0, np.int64), np.zeros(0, np.int64))
