"""The histogram's loops over a tensor in CPU memory, compiled by numba. Imported only where numba is installed.

Counting costs one addition to memory an element, which is what bounds the whole: a processor stores once a cycle.
Extremes and sums are vector arithmetic between the additions, in groups so small that the processor computes the next
while it still stores the last. Moments are settled block by block, about the mean so far.

Parts of a large tensor are counted by the threads that torch computes with, each into tables of its own: counts are
integers, and moments are added up in the parts' order, so that nothing depends on who took what, or on how many took.

numba keeps machine code until the text of this file changes, whatever else is compiled into it: constants and
`linear_exponent` of `vizlog.compute.bits`, constants of `vizlog.compute.kept`. Who changes those changes this file too.
"""
# ruff: noqa: ARG001 -- an intrinsic is called with all it may need

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic as typed_intrinsic
from numba.extending import models, register_model
from numpy.typing import NDArray

from vizlog.compute.bits import (
    LINEAR_BINS,
    MANTISSA_BITS,
    NO_MOMENTS,
    BitCounts,
    Grid,
    Linear,
    linear_exponent,
)
from vizlog.compute.compiled import called_back, compiled
from vizlog.compute.kept import COLUMNS, MOMENTS, SPAN, TALLIES, Kept, Rows
from vizlog.compute.passes import ALWAYS_LINEAR, CHANGED, TOLERABLE_ERROR, Chunks, Pass, Place
from vizlog.compute.team import address, alone, fetch_add, on_each, pointer, team

__all__ = ["CompiledPass"]

BLOCK = 1 << 14
LINEAR_BLOCK = 1 << 12
STRETCH = 8
"""Bins that are looked at together: of few values most are empty."""

FEW = 1 << 12
"""Values up to which one table is faster than several, all of which have to be read in the end."""

SHIFTS = {32: 17, 64: 46}
"""Bits of a pattern -> how many low ones a bin ignores, as in `GRIDS`."""

WIDTH = 8
"""Numbers in a vector."""

GROUP = 32
"""Elements between which vector arithmetic and counting alternate."""

LINE, PAGE = 1 << 6, 1 << 12
"""Bytes that a cache takes at a time, and that memory is mapped by, or a part of either."""

AHEAD, TOUCHED = 2 * PAGE, 3 * PAGE
"""Bytes by which memory is asked for before it is read, and by which each page is looked up.

What a processor does by itself stops at each page's end, and it drops what is asked for in a page that it has not
looked up, which reading one value there makes it do. With both, memory is counted nearly as fast as the caches are.
"""

TABLES = 4
"""Counters of each bin: equal values in a row would wait for one another at a single one."""

SLAB = 1 << 19
"""Numbers that are asked of the system at a time: of so many (4 MB) numpy asks for large pages where there are any.

Arrays of their own, some 20 KB a tensor, would cost a page fault for each 4 KB of them.
"""

ROWS = 1 << 10
"""Tensors whose numbers stand in one array."""

AT_ONCE = 1 << 26
"""Values of several tensors that are counted in one call: some 50 ms."""

PAD = 768
"""Counters between two tables, so that those of one bin do not compete for one set of the first-level cache."""

PART, PARTS = 1 << 13, 1 << 7
"""Values that a thread takes at a time, or a multiple: so many that there are at most so many parts.

More parts wait less for the last one, and what is asked for ahead is more often some other thread's.
"""

APART = 16
"""Numbers from one part's results to the next's: two cache lines, so that threads do not wait for one another there."""

SHARED = 1 << 15
"""Values of a tensor from which it is counted in parts, by all threads: fewer take less than it takes to wake two."""

SEATS = 8
"""Threads that take part at most: memory has not much more to give."""

PLENTY = 8
"""Parts for each thread of which one that comes in time gets some: they take several times as long as a wake-up."""

REST = 64
"""Large tensors that are counted alone at most after a thread came too late: 1, 2, 4 … for each time in a row that one
did. On a busy machine all wait for the last; one that has slept is late once.
"""


def _compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    # Reassociation lets sums be vectorised; NaN and inf must keep their meaning, so no more of fastmath than that.
    return compiled(*signatures, fastmath={"reassoc", "contract"})


# vectors, which numba does not know


intrinsic: Any = typed_intrinsic  # it takes a function of types and gives one of values, which no annotation says


class Lanes(types.Type):
    """A vector of `WIDTH` numbers, kept in registers.

    LLVM vectorises a loop whole or not at all. With these one loop does vector arithmetic between stores that no vector
    can make. Processors whose vectors are shorter take several.
    """

    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"Lanes({element})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        vector = ir.VectorType(manager.lookup(lanes.element).get_value_type(), WIDTH)
        super().__init__(manager, lanes, vector)  # type: ignore[no-untyped-call]


def _place(context: Any, builder: Any, array_type: Any, array: Any, k: Any) -> Any:
    """Where element k lies in memory."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [k])


def _read(builder: Any, place: Any, as_type: Any, element: Any) -> Any:
    """What lies there, in whatever alignment such elements have."""
    read = builder.load(builder.bitcast(place, as_type.as_pointer()))
    read.align = element.bitwidth // 8
    return read


@intrinsic
def load(typing_context, array, start):  # type: ignore[no-untyped-def]
    """Array elements `start` to `start + WIDTH`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(signature.return_type)
        return _read(builder, _place(context, builder, array, *arguments), vector, array.dtype)

    return Lanes(array.dtype)(array, types.uint64), generate


@intrinsic
def prefetch(typing_context, array, at):  # type: ignore[no-untyped-def]
    """Has the memory of a `GROUP` from `array[at]` on brought near; nothing happens if there is none.

    To the second-level cache: in the first one the counters stand.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.bitcast(_place(context, builder, array, *arguments), byte)
        for line in range(0, GROUP * array.dtype.bitwidth // 8, LINE):
            builder.call(fetch, [builder.gep(place, [number(line)]), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.uint64), generate


@intrinsic
def touch(typing_context, array, at):  # type: ignore[no-untyped-def]
    """Reads `array[at]`, an integer, for nothing; as an atomic, since a compiler leaves out what nobody needs."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.load_atomic(_place(context, builder, array, *arguments), "monotonic", array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.uint64), generate


@intrinsic
def upper_bits_of_two(typing_context, patterns, start):  # type: ignore[no-untyped-def]
    """The upper bits of `patterns[start]` and of the next, in either order.

    Two 32-bit patterns are read at once: a counting loop makes as many memory accesses as a processor has ports for.
    """
    word = ir.IntType(64)
    shift = word(SHIFTS[patterns.dtype.bitwidth])

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _place(context, builder, patterns, *arguments)
        first = both = _read(builder, place, word, patterns.dtype)
        if patterns.dtype.bitwidth == 32:
            first, second = builder.and_(both, word(2**32 - 1)), builder.lshr(both, word(32))
        else:
            second = _read(builder, builder.gep(place, [word(1)]), word, patterns.dtype)
        found = builder.lshr(first, shift), builder.lshr(second, shift)
        return context.make_tuple(builder, signature.return_type, found)

    pair = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]
    return pair(patterns, types.uint64), generate


@intrinsic
def splat(typing_context, number):  # type: ignore[no-untyped-def]
    """The number in every lane."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        nothing = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, nothing, ir.VectorType(ir.IntType(32), WIDTH)([0] * WIDTH))

    return Lanes(number)(number), generate


@intrinsic
def lane(typing_context, lanes, k):  # type: ignore[no-untyped-def]
    """The number in lane k."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.extract_element(*arguments)

    return lanes.element(lanes, types.uint64), generate


@intrinsic
def wide(typing_context, lanes):  # type: ignore[no-untyped-def]
    """The lanes as float64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        doubles = context.get_value_type(signature.return_type)
        return arguments[0] if lanes.element == types.float64 else builder.fpext(arguments[0], doubles)

    return Lanes(types.float64)(lanes), generate


def _lane_by_lane(operation: Callable[..., Any]) -> Any:
    """An operation (builder, a, b) on two vectors of one type."""

    @intrinsic
    def operate(typing_context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return operation(builder, *arguments)

        return a(a, b), generate

    return operate


def _where(builder: Any, relation: str, a: Any, b: Any) -> Any:
    """A where it stands in this relation to b, else b: also where either is NaN."""
    return builder.select(builder.fcmp_ordered(relation, a, b), a, b)


# "contract": a product and the sum it goes into may be one instruction.
add = _lane_by_lane(lambda builder, a, b: builder.fadd(a, b, flags=["contract"]))
subtract = _lane_by_lane(lambda builder, a, b: builder.fsub(a, b))
multiply = _lane_by_lane(lambda builder, a, b: builder.fmul(a, b, flags=["contract"]))
lower = _lane_by_lane(lambda builder, a, b: _where(builder, "<", a, b))
upper = _lane_by_lane(lambda builder, a, b: _where(builder, ">", a, b))


# the bins of a float's upper bits


@_compiled(
    "Tuple((float32, float32, float64, float64))(float32[::1], uint32[::1], uint64, float64, uint32[:, ::1])",
    "Tuple((float64, float64, float64, float64))(float64[::1], uint64[::1], uint64, float64, uint32[:, ::1])",
)
def _scan_vectors(values, unsigned, number, center, tables):  # type: ignore[no-untyped-def]
    """Counts the first values, a whole number of `GROUP`s; all others are counted soon, and so are asked for.

    Returns their minimum and maximum, sum and sum of squares of (value − center). Where one is NaN so are the sums, and
    the extremes mean nothing.
    """
    last = len(tables) - 1  # all may be one
    a, b, c, d = tables[0], tables[last // 3], tables[2 * last // 3], tables[last]
    lowest, highest = splat(values[0]), splat(values[0])
    centers, totals, squares = splat(center), splat(0.0), splat(0.0)
    page, ahead = np.uint64(PAGE // values.itemsize), np.uint64(AHEAD // values.itemsize)
    touched, last_value = np.uint64(TOUCHED // values.itemsize), np.uint64(values.size - 1)
    for begin in range(np.uint64(0), number, page):
        touch(unsigned, min(begin + touched, last_value))
        for start in range(begin, min(begin + page, number), np.uint64(GROUP)):
            prefetch(values, start + ahead)
            for j in range(start, start + np.uint64(GROUP), np.uint64(WIDTH)):
                here = load(values, j)
                lowest, highest = lower(lowest, here), upper(highest, here)
                deviations = subtract(wide(here), centers)
                totals, squares = add(totals, deviations), add(squares, multiply(deviations, deviations))
            for j in range(start, start + np.uint64(GROUP), np.uint64(TABLES)):
                first, second = upper_bits_of_two(unsigned, j)
                third, fourth = upper_bits_of_two(unsigned, j + np.uint64(2))
                a[first] += np.uint32(1)
                b[second] += np.uint32(1)
                c[third] += np.uint32(1)
                d[fourth] += np.uint32(1)
    low, high, total, square = values[0], values[0], 0.0, 0.0
    for k in range(np.uint64(0), np.uint64(WIDTH), np.uint64(1)):
        low, high = min(low, lane(lowest, k)), max(high, lane(highest, k))
        total, square = total + lane(totals, k), square + lane(squares, k)
    return low, high, total, square


@_compiled(
    "Tuple((float32, float32, float64, float64))(float32[::1], uint32[::1], int64, float64, uint32, uint32[:, ::1])",
    "Tuple((float64, float64, float64, float64))(float64[::1], uint64[::1], int64, float64, uint64, uint32[:, ::1])",
)
def _scan_block(values, unsigned, number, center, shift, tables):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """As `_scan_vectors`, of any number of values."""
    whole = number // GROUP * GROUP
    lowest, highest, total, squares = values[0], values[0], 0.0, 0.0
    if whole:
        lowest, highest, total, squares = _scan_vectors(values, unsigned, np.uint64(whole), center, tables)
    for j in range(whole, number):
        lowest, highest = min(lowest, values[j]), max(highest, values[j])
        deviation = np.float64(values[j]) - center
        total += deviation
        squares += deviation * deviation
        tables[j & (len(tables) - 1), unsigned[j] >> shift] += np.uint32(1)
    return lowest, highest, total, squares


@_compiled("int64(int32[::1], int32)", "int64(int64[::1], int64)")
def _count_equal(signed, pattern):  # type: ignore[no-untyped-def]
    """How many elements have this bit pattern."""
    number = np.int32(0)
    for j in range(signed.size):
        # numba adds 32-bit numbers as 64-bit ones, half as many in a vector, unless told that the sum has 32 again.
        number = np.int32(number + np.int32(signed[j] == pattern))
    return number


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
    "void(float32[::1], int32[::1], uint32[::1], int32, uint32, uint32[:, ::1], int64[::1], float64[::1])",
    "void(float64[::1], int64[::1], uint64[::1], int64, uint64, uint32[:, ::1], int64[::1], float64[::1])",
)
def scan(  # type: ignore[no-untyped-def]  # noqa: PLR0917 -- a compiled loop takes arrays, not objects
    values, signed, unsigned, negative_zero, shift, tables, tallies, moments
):
    """Adds `values` to the tables, tallies and moments.

    Args:
        values, signed, unsigned: three views of the same memory.
        negative_zero: the bit pattern of −0.0; shift: how many low bits a bin ignores.
        tables: (TABLES or 1, bins + PAD) counts by upper bits; zeros are left out, so that entry 0 holds denormals
            alone.
        tallies: (5,) count, zeros, NaNs, +infs, −infs.
        moments: (4,) of the finite: minimum, maximum, sum, sum of squares about the mean.
    """
    first_negative = (tables.shape[1] - PAD) // 2
    at_zero, below_zero = tables[:, 0], tables[:, first_negative]
    zero = negative_zero ^ negative_zero  # of the same type
    for start in range(0, values.size, BLOCK):
        stop = min(values.size, start + BLOCK)
        block, ints = values[start:stop], signed[start:stop]
        n = stop - start
        finite = np.float64(tallies[0] - tallies[2] - tallies[3] - tallies[4])
        center = moments[2] / finite if finite > 0 else np.float64(block[0])
        at_zero_before, below_zero_before = at_zero.sum(), below_zero.sum()
        lowest, highest, total, squares = _scan_block(values[start:], unsigned[start:], n, center, shift, tables)
        # At most as many as were counted there, whatever another thread has written since.
        near_zero = at_zero.sum() - at_zero_before
        near_below = below_zero.sum() - below_zero_before
        if near_zero:
            zeros = min(_count_equal(ints, zero), np.int64(near_zero))
            tallies[1] += zeros
            at_zero[:] = 0
            at_zero[0] = np.uint32(at_zero_before + near_zero - np.uint64(zeros))
        if near_below:
            zeros = min(_count_equal(ints, negative_zero), np.int64(near_below))
            tallies[1] += zeros
            below_zero[:] = 0
            below_zero[0] = np.uint32(below_zero_before + near_below - np.uint64(zeros))
        if not np.isfinite(squares):  # nor where squares of finite values are too large for a float64
            _block_with_nonfinite(block, tallies, moments)
            continue
        moments[0] = min(moments[0], np.float64(lowest))
        moments[1] = max(moments[1], np.float64(highest))
        # Rounding can leave a trace below zero where all values are equal.
        _add_moments(moments, n, center + total / n, max(squares - total * (total / n), 0.0), finite)
        tallies[0] += n


@_compiled("int64(uint32[:, ::1], int64, int64, uint32[::1])")
def _gather_octave(tables, start, octave, merged):  # type: ignore[no-untyped-def]
    """Moves one octave's counters from the tables to `merged`, where none were; returns how many values they hold."""
    total = np.uint32(0)
    end = start + octave
    a, into = tables[0, start:end], merged[start:end]
    if len(tables) == 1:
        for k in range(into.size):
            n = a[k]
            into[k] = n
            total = np.uint32(total + n)
            a[k] = 0
        return np.int64(total)
    b, c, d = tables[1, start:end], tables[2, start:end], tables[3, start:end]
    for k in range(into.size):
        n = np.uint32(np.uint32(a[k] + b[k]) + np.uint32(c[k] + d[k]))  # numba adds them as 64-bit ones
        into[k] = n
        total = np.uint32(total + n)
        a[k] = b[k] = c[k] = d[k] = 0
    return np.int64(total)


@_compiled("void(uint32[:, ::1], int64[::1], float64[::1], int64, uint32[::1], int64[::1])")
def gather(tables, tallies, moments, octave, merged, span):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Moves the counters of finite values from the tables of `scan` to `merged` (bins,); the tables are empty then.

    From the octave of the largest magnitude down to where all values are found: the rest of the tables, most of them,
    is never read.

    Args:
        octave: how many bins a power of two has.
        span: (2,) takes from where to before where all of them lie, signs aside.
    """
    negative = merged.size // 2
    top = negative - octave
    number = tallies[0] - tallies[1]
    if tallies[2] + tallies[3] + tallies[4]:
        # As many as were counted, not as were told: another thread may have written between the two.
        for start in (top, negative + top):
            number -= np.int64(tables[:, start : start + octave].sum())
            tables[:, start : start + octave] = 0
    span[0] = span[1] = 0
    if number == 0:
        return
    exponent = math.frexp(max(-moments[0], moments[1]))[1] - 1 + top // octave // 2
    lowest = max(0, exponent) * octave
    span[1] = lowest + octave
    while True:
        number -= _gather_octave(tables, lowest, octave, merged)
        number -= _gather_octave(tables, negative + lowest, octave, merged)
        span[0] = lowest
        if number <= 0 or lowest == 0:
            return
        lowest -= octave


@_compiled("boolean(uint32[::1], uint64)")
def any_of(counters, start):  # type: ignore[no-untyped-def]
    """Whether one of a `STRETCH` of counters is not 0."""
    seen = np.uint32(0)
    for k in range(start, start + np.uint64(STRETCH)):
        seen |= counters[k]
    return seen != 0


@_compiled("int64(uint32[::1], int64, int64, int64, int64[::1], int64[::1])")
def extract(merged, lowest, end, zeros, bins, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Writes the occupied bins, rising, and their counts; empties `merged`; returns how many there were.

    Args:
        lowest, end: from the one to before the other lie the upper bits of all that are occupied, signs aside; there
            are a whole number of `STRETCH`es between them.
        zeros: the count of bin 0.
        bins, counts: at least as long as there are bins from the one to the other, of either sign.
    """
    # Unsigned: numba would look at each signed number whether it counts from the end.
    found, stretch = np.uint64(0), np.uint64(STRETCH)
    negative, first, stop = np.uint64(merged.size // 2), np.uint64(lowest), np.uint64(end)
    # Each is written, and overwritten by the next if it is empty: whether it is, a processor could not foresee.
    for back in range(stretch, stop - first + stretch, stretch):
        start = negative + stop - back
        if any_of(merged, start):
            for j in range(stretch):
                backwards = start + stretch - np.uint64(1) - j
                n = merged[backwards]
                bins[found], counts[found] = np.int64(negative) - 1 - np.int64(backwards), n
                found += np.uint64(n != 0)
            for j in range(stretch):
                merged[start + j] = 0
    bins[found], counts[found] = 0, zeros
    found += np.uint64(zeros != 0)
    for begin in range(first, stop, stretch):
        if any_of(merged, begin):
            for k in range(begin, begin + stretch):
                n = merged[k]
                bins[found], counts[found] = np.int64(k) + 1, n
                found += np.uint64(n != 0)
            for j in range(stretch):
                merged[begin + j] = 0
    return np.int64(found)


@_compiled("int64(uint32[::1], int64, int64)")
def _height(merged, zeros, k):  # type: ignore[no-untyped-def]
    """The count of bin k."""
    if k == 0:
        return zeros
    return np.int64(merged[k - 1 if k > 0 else merged.size // 2 - 1 - k])


@_compiled(
    "float64(float64, float64, float32[::1], uint32[::1], uint32, uint32[::1], int64)",
    "float64(float64, float64, float64[::1], uint64[::1], uint64, uint32[::1], int64)",
)
def jumps(low, high, edge, pattern, shift, merged, zeros):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The sum over 63 inner edges of the larger difference between the edge's fine bin and either neighbour.

    Args:
        edge, pattern: (1,) scratch, two views of the same memory.
        merged: (bins,) counts by upper bits, as of `gather`. zeros: the count of bin 0.
    """
    total, negative = np.int64(0), merged.size // 2
    for j in range(1, 64):
        edge[0] = (low / 2 + j * ((high / 2 - low / 2) / 64)) * 2
        upper_bits = np.int64(pattern[0] >> shift)
        middle = upper_bits + 1 if upper_bits < negative else negative - 1 - upper_bits
        if edge[0] == 0:
            middle = 0
        here = _height(merged, zeros, middle)
        total += max(
            abs(here - _height(merged, zeros, middle - 1)),
            abs(_height(merged, zeros, middle + 1) - here),
        )
    return float(total)


_REALS = "float32", "float64"
_LINEAR_PLACES = "void({0}[::1], {1}, {1}, {1}, int32[::1])"


@_compiled(*[_LINEAR_PLACES.format(real, of_scale) for real in _REALS for of_scale in _REALS])
def _linear_places(values, scale, first, outside, places):  # type: ignore[no-untyped-def]
    """Writes which [k, k+1)/scale each value lies in, counted from `first`; `outside` where in none below that."""
    for j in range(values.size):
        place = np.floor(values[j] * scale) - first
        place = place if place >= 0 else outside  # NaN too
        places[j] = np.int32(min(place, outside))


@_compiled(
    "void(float32[::1], float64, float64, int32[::1], uint32[:, ::1])",
    "void(float64[::1], float64, float64, int32[::1], uint32[:, ::1])",
)
def scan_linear(values, scale, first, scratch, tables):  # type: ignore[no-untyped-def]
    """Adds to the tables how many values lie in each [k, k+1)/scale, k from `first`; the last entry takes the rest.

    Args:
        scale: a power of two. scratch: (LINEAR_BLOCK,). tables: (2 or 1, bins + 1).
    """
    outside = np.float64(tables.shape[1] - 1)
    even, odd = tables[0], tables[len(tables) - 1]
    # Twice as many in a vector, and exact: nothing is lost below that a number is multiplied by one or more, nothing
    # above as bins are numbered within ±2**31, and what is subtracted leaves whole numbers of few bits.
    single = values.itemsize == 4 and 1 <= scale <= 2.0**127 and np.float64(np.float32(first)) == first
    for start in range(0, values.size, LINEAR_BLOCK):
        block = values[start : start + LINEAR_BLOCK]
        if single:
            _linear_places(block, np.float32(scale), np.float32(first), np.float32(outside), scratch)
        else:
            _linear_places(block, scale, first, outside, scratch)
        half = block.size // 2
        left, right = scratch[:half], scratch[half : 2 * half]
        for j in range(half):
            even[np.uint32(left[j])] += np.uint32(1)
            odd[np.uint32(right[j])] += np.uint32(1)
        if block.size % 2:
            even[np.uint32(scratch[block.size - 1])] += np.uint32(1)


@_compiled("void(uint32[::1], uint32[::1])")
def move(counters, into):  # type: ignore[no-untyped-def]
    """Adds counters to others, and empties them."""
    for k in range(into.size):
        into[k] += counters[k]
        counters[k] = 0


@_compiled("int64(uint32[::1], int64, int64[::1], int64[::1])")
def extract_linear(counters, first, bins, counts):  # type: ignore[no-untyped-def]
    """As `extract`, from the counters (bins + 1,) of `scan_linear`, moved to one table."""
    found, stretch = np.uint64(0), np.uint64(STRETCH)
    for start in range(np.uint64(0), np.uint64(LINEAR_BINS), stretch):
        if any_of(counters, start):
            for k in range(start, start + stretch):
                n = counters[k]
                bins[found], counts[found] = first + np.int64(k), n
                found += np.uint64(n != 0)
            for j in range(stretch):
                counters[start + j] = 0
    counters[LINEAR_BINS] = 0
    return np.int64(found)


_linear_exponent = _compiled("int64(float64, float64)")(linear_exponent)


# tensors where they lie, large ones by several threads

TASK = np.dtype(
    [
        *[(name, np.int64) for name in ("taken", "seated", "address", "number", "size", "linear", "exponent", "first")],
        *[(name, np.int64) for name in ("negative_zero", "shift", "table_size", "most", "take", "openmp", "members")],
        *[(name, np.int64) for name in ("tables", "merged", "linear_tables", "scratch", "tallies", "moments", "found")],
        *[(name, np.int64) for name in ("edge", "rows", "slab", "slab_size", "single", "always_linear")],
        *[(name, np.int64) for name in ("rest", "late")],
        ("tolerable", np.float64),
    ]
)
"""What compiled loops and the threads of the team are told, 8 bytes each; it stays where it is.

taken, seated: how many parts were taken and how many threads have come, which they count themselves. address, number,
size: a tensor's values, and how many of them make a part. linear, exponent, first: whether they go into linear bins,
and into which. negative_zero, shift: as for `scan`. table_size: bins + PAD. most: of finite values, as many bins.
take, openmp, members: where the function is that threads call, and the team. tables to found: where memory is for what
they find: tables and all that is made of them for each thread; tallies and moments (PARTS + SEATS, APART) for each
part, and then for each thread, where the span that `gather` tells comes behind the tallies. edge: where 8 bytes of
scratch are. rows, slab: where what `count_places` tells goes, and slab_size: how many numbers the slab takes. single:
whether values are float32. always_linear: up to how many elements there is a second pass anyway; rest: how many large
tensors the team does not count; late: how many it last did not, because a thread came too late; tolerable: the share of
values that interpolation may be expected to misplace before there is a second pass.
"""

UNSTABLE, FULL = -1, -2
"""What is told where the values of a tensor did not stay as they were, and where the slab has no room for its bins."""

TAKEN, SEATED = 0, 1
"""Where in a task these stand."""


@_compiled(
    "void(int64, float32[::1], int32[::1], uint32[::1], int32, uint32)",
    "void(int64, float64[::1], int64[::1], uint64[::1], int64, uint64)",
)
def take_parts(task_at, values, signed, unsigned, negative_zero, shift):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """What each thread does: adds one part after the other to tables of its own, as long as there are any."""
    task, words = carray(pointer(task_at), (1,), TASK)[0], carray(pointer(task_at), (2,), np.int64)
    seat = fetch_add(words, SEATED)
    if seat >= SEATS:
        return
    tables = carray(pointer(task.tables), (SEATS, TABLES, task.table_size), np.uint32)[seat]
    tallies = carray(pointer(task.tallies), (PARTS + SEATS, APART), np.int64)
    moments = carray(pointer(task.moments), (PARTS + SEATS, APART), np.float64)
    merged = carray(pointer(task.merged), (SEATS, task.table_size - PAD), np.uint32)[seat]
    linear = carray(pointer(task.linear_tables), (SEATS, 2, LINEAR_BINS + 1), np.uint32)[seat]
    scratch = carray(pointer(task.scratch), (SEATS, LINEAR_BLOCK), np.int32)[seat]
    if values.size <= FEW:
        tables, linear = tables[:1], linear[:1]
    # Read once: the numbers beside these change with every part that anybody takes.
    size, to_linear, scale, first = task.size, task.linear, math.ldexp(1.0, -task.exponent), np.float64(task.first)
    own, own_moments, span = tallies[PARTS + seat, :5], moments[PARTS + seat, :4], tallies[PARTS + seat, 5:7]
    own[:], own_moments[0], own_moments[1] = 0, np.inf, -np.inf
    while True:
        part = fetch_add(words, TAKEN)
        start = part * size
        if start >= values.size:
            break
        stop = min(values.size, start + size)
        if to_linear:
            scan_linear(values[start:stop], scale, first, scratch, linear)
            continue
        mine, its = tallies[part, :5], moments[part, :4]
        mine[:], its[:] = 0, 0.0
        its[0], its[1] = np.inf, -np.inf
        scan(values[start:stop], signed[start:stop], unsigned[start:stop], negative_zero, shift, tables, mine, its)
        own += mine
        own_moments[0], own_moments[1] = min(own_moments[0], its[0]), max(own_moments[1], its[1])
    # By the thread that counted, in whose core's cache its tables are.
    if to_linear:
        if len(linear) > 1:
            move(linear[1], linear[0])
    else:
        gather(tables, own, own_moments, 1 << MANTISSA_BITS, merged, span)


@called_back
def _take_float32(task_at):  # type: ignore[no-untyped-def]
    task = carray(task_at, (1,), TASK)[0]
    at, n = pointer(task.address), (task.number,)
    values, signed, unsigned = carray(at, n, np.float32), carray(at, n, np.int32), carray(at, n, np.uint32)
    take_parts(address(task_at), values, signed, unsigned, np.int32(task.negative_zero), np.uint32(task.shift))


@called_back
def _take_float64(task_at):  # type: ignore[no-untyped-def]
    task = carray(task_at, (1,), TASK)[0]
    at, n = pointer(task.address), (task.number,)
    values, signed, unsigned = carray(at, n, np.float64), carray(at, n, np.int64), carray(at, n, np.uint64)
    take_parts(address(task_at), values, signed, unsigned, np.int64(task.negative_zero), np.uint64(task.shift))


@_compiled("int64(int64)")
def _share(task_at):  # type: ignore[no-untyped-def]
    """Has the task done, by the team where there are several parts; returns how many threads took any."""
    task = carray(pointer(task_at), (1,), TASK)[0]
    task.taken, task.seated = 0, 0
    large = task.members > 1 and task.number > task.size
    if not large or task.rest:
        alone(task.take, task_at)
        task.rest -= large and not task.linear
        return 1
    on_each(task.openmp, task.members, task.take, task_at)
    threads = min(task.seated, SEATS)
    if not task.linear and task.number > PLENTY * threads * task.size:
        tallies = carray(pointer(task.tallies), (PARTS + SEATS, APART), np.int64)
        in_time = True
        for seat in range(threads):
            in_time &= tallies[PARTS + seat, 0] > 0
        task.rest = task.late = 0 if in_time else min(max(1, 2 * task.late), REST)
    return threads


@_compiled("void(int64[:, ::1], float64[:, ::1], int64[::1], float64[::1])")
def _add_parts(part_tallies, part_moments, tallies, moments):  # type: ignore[no-untyped-def]
    """Adds the parts' to the tensor's, in their order, whichever thread counted them."""
    for part in range(len(part_tallies)):
        theirs, its = part_tallies[part], part_moments[part]
        finite = theirs[0] - theirs[2] - theirs[3] - theirs[4]
        before = tallies[0] - tallies[2] - tallies[3] - tallies[4]
        if finite:
            moments[0], moments[1] = min(moments[0], its[0]), max(moments[1], its[1])
            total = moments[2] + its[2]
            _add_moments(moments, finite, its[2] / finite, its[3], np.float64(before))
            moments[2] = total  # a mean times its number may round to more than there can be
        for k in range(5):
            tallies[k] += theirs[k]


@_compiled("UniTuple(int64, 2)(uint32[:, ::1], int64[:, ::1])")
def _add_seats(merged, tallies):  # type: ignore[no-untyped-def]
    """Moves what all threads gathered to the first row of `merged`; returns from where to before where that lies."""
    negative = merged.shape[1] // 2
    lowest, end = tallies[0, 5], tallies[0, 6]
    for seat in range(1, len(merged)):
        its_lowest, its_end = tallies[seat, 5], tallies[seat, 6]
        if its_end == 0:
            continue
        for sign in (0, negative):
            here = slice(sign + its_lowest, sign + its_end)
            move(merged[seat, here], merged[0, here])
        lowest, end = its_lowest if end == 0 else min(lowest, its_lowest), max(end, its_end)
    return lowest, end


@_compiled("UniTuple(int64, 2)(int64, float64, float64, int64[:, ::1])")
def _count_linear(task_at, low, high, found):  # type: ignore[no-untyped-def]
    """The second pass over the tensor of the task; returns the exponent and how many bins are occupied."""
    task = carray(pointer(task_at), (1,), TASK)[0]
    exponent = _linear_exponent(low, high)
    first = np.int64(math.floor(math.ldexp(low, -exponent)))
    task.linear, task.exponent, task.first = 1, exponent, first
    threads = _share(task_at)
    tables = carray(pointer(task.linear_tables), (threads, 2, LINEAR_BINS + 1), np.uint32)
    for seat in range(1, threads):
        move(tables[seat, 0], tables[0, 0])
    return exponent, extract_linear(tables[0, 0], first, found[2], found[3])


_COUNT_PLACES = "int64(int64, int64, int64, int64, int64, int64, {0}[::1], {1}[::1], {1})"


@_compiled(_COUNT_PLACES.format("float32", "uint32"), _COUNT_PLACES.format("float64", "uint64"))
def count_places(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    task_at, openmp, members, first_row, number, at, edge, pattern, shift
):
    """What `Pass.count_pieces` does, of several tensors, in one call.

    Args:
        task_at: where the task is, all told that is the same for each tensor, but for the team.
        first_row, number: which rows (COLUMNS,) there are to fill, of which the first two columns are given.
        at: from where on the slab takes the bins of one tensor after the other.
        edge, pattern: (1,) scratch, two views of the same memory.

    Returns:
        How many tensors were counted: fewer than all where the slab is full. Then the bins of the last of them, which
        are said to be at 0, stand in `found` alone. −1 where the values of one did not stay as they were while they
        were counted: then nothing of all this can be used again.
    """
    task = carray(pointer(task_at), (1,), TASK)[0]
    task.openmp, task.members = openmp, members
    merged = carray(pointer(task.merged), (SEATS, task.table_size - PAD), np.uint32)
    part_tallies = carray(pointer(task.tallies), (PARTS + SEATS, APART), np.int64)
    part_moments = carray(pointer(task.moments), (PARTS + SEATS, APART), np.float64)
    found = carray(pointer(task.found), (4, task.most), np.int64)
    rows = carray(pointer(task.rows), (first_row + number, COLUMNS), np.int64)
    floats = carray(pointer(task.rows), (first_row + number, COLUMNS), np.float64)
    slab = carray(pointer(task.slab), (task.slab_size,), np.int64)
    for t in range(number):
        row = rows[first_row + t]
        n = row[1]
        task.address, task.number, task.linear = row[0], n, 0
        task.size = n if n < SHARED else (n // PARTS // PART + 1) * PART
        threads = _share(task_at)
        mine, its, span = row[TALLIES], floats[first_row + t, MOMENTS], row[SPAN]
        mine[:], its[:] = 0, 0.0
        its[0], its[1] = np.inf, -np.inf
        parts = (n + task.size - 1) // task.size
        _add_parts(part_tallies[:parts], part_moments[:parts], mine, its)
        lowest, end = _add_seats(merged[:threads], part_tallies[PARTS : PARTS + threads])
        finite = mine[0] - mine[2] - mine[3] - mine[4]
        low, high = its[0], its[1]
        needed = n <= task.always_linear
        if finite and not needed:
            needed = jumps(low, high, edge, pattern, shift, merged[0], mine[1]) / 8 / finite > task.tolerable
        bins = extract(merged[0], lowest, end, mine[1], found[0], found[1])
        counted = found[1, :bins].sum()
        linear_bins = exponent = np.int64(0)
        if finite and needed and counted == finite:
            exponent, linear_bins = _count_linear(task_at, low, high, found)
            counted = found[3, :linear_bins].sum()
        if counted != finite:
            return -1
        span[0], span[1], span[2], span[3] = task.slab + 8 * at, bins, linear_bins, exponent
        if slab.size - at < 2 * (bins + linear_bins):
            span[0] = 0
            return t + 1
        for kind in range(4):
            length = bins if kind < 2 else linear_bins
            slab[at : at + length] = found[kind, :length]
            at += length
    return number


# Given numbers alone: to look at an array that comes from Python takes microseconds where the caches are empty.


@_compiled("int64(int64, int64, int64, int64, int64, int64)")
def _count_float32(task_at, openmp, members, first_row, number, at):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    task = carray(pointer(task_at), (1,), TASK)[0]
    edge, pattern = carray(pointer(task.edge), (1,), np.float32), carray(pointer(task.edge), (1,), np.uint32)
    return count_places(task_at, openmp, members, first_row, number, at, edge, pattern, np.uint32(task.shift))


@_compiled("int64(int64, int64, int64, int64, int64, int64)")
def _count_float64(task_at, openmp, members, first_row, number, at):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    task = carray(pointer(task_at), (1,), TASK)[0]
    edge, pattern = carray(pointer(task.edge), (1,), np.float64), carray(pointer(task.edge), (1,), np.uint64)
    return count_places(task_at, openmp, members, first_row, number, at, edge, pattern, np.uint64(task.shift))


@_compiled("int64(int64, int64, int64, int64, int64, int64, int64)")
def _count_one(task_at, openmp, members, row, address, number, at):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """`count_places` of one tensor; returns from where on the slab takes the next, or `FULL` or `UNSTABLE`."""
    task = carray(pointer(task_at), (1,), TASK)[0]
    its = carray(pointer(task.rows), (row + 1, COLUMNS), np.int64)[row]
    its[0], its[1] = address, number
    if task.single:
        counted = _count_float32(task_at, openmp, members, row, 1, at)
    else:
        counted = _count_float64(task_at, openmp, members, row, 1, at)
    if counted < 0:
        return UNSTABLE
    span = its[SPAN]
    return at + 2 * (span[1] + span[2]) if span[0] else FULL


class CompiledPass(Pass):
    """Counts one tensor after another, from chunks of float32 or float64, of fewer than 2**32 values in all."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        merged, edge = np.zeros((SEATS, 2 * grid.first_negative), np.uint32), np.empty(1, grid.real)
        self._name = grid.name
        self._shift, self._negative_zero = grid.unsigned(grid.shift), np.array(-0.0, grid.real).view(grid.signed)[()]
        self._merged, self._edge = merged, (edge, edge.view(grid.unsigned))
        # Of seats that nobody takes the memory is never touched, so there is none.
        self._tables = np.zeros((SEATS, TABLES, merged.shape[1] + PAD), np.uint32)
        self._linear = np.zeros((SEATS, 2, LINEAR_BINS + 1), np.uint32)
        self._scratch = np.empty((SEATS, LINEAR_BLOCK), np.int32)
        self._parts = np.empty((PARTS + SEATS, APART), np.int64), np.empty((PARTS + SEATS, APART))
        self._found = np.empty((4, 2 * grid.top + 1), np.int64)
        self._task = np.zeros(1, TASK)
        self._at = self._row = 0
        self._new_slab(0)
        self._new_rows(0)
        names = "tables", "merged", "linear_tables", "scratch", "tallies", "moments", "found", "edge"
        arrays: list[NDArray[Any]] = [
            self._tables,
            merged,
            self._linear,
            self._scratch,
            *self._parts,
            self._found,
            edge,
        ]
        for name, array in zip(names, arrays, strict=True):
            self._task[name] = array.ctypes.data
        self._task["negative_zero"], self._task["shift"] = self._negative_zero, self._shift
        self._task["table_size"], self._task["most"] = self._tables.shape[2], self._found.shape[1]
        self._task["always_linear"], self._task["tolerable"] = ALWAYS_LINEAR, TOLERABLE_ERROR
        single = grid.real is np.float32
        self._task["take"] = (_take_float32 if single else _take_float64).address
        self._task["single"] = single
        self._count, self._task_at = _count_float32 if single else _count_float64, self._task.ctypes.data

    def count_place(self, address: int, number: int) -> BitCounts:
        # Few and simple operations: each takes several microseconds after the caches have seen a large tensor.
        if self._row == self._end:
            self._new_rows(ROWS)
        row, rows = self._row, self._rows
        at = _count_one(self._task_at, *team(), row, address, number, self._at)
        if at == UNSTABLE:
            raise RuntimeError(CHANGED)
        self._row = row + 1
        if at == FULL:
            self._move_to_new_slab(row)
        else:
            self._at = at
        return Kept(self._name, rows, row, self._slab, self._begins)

    def count_places(self, places: Sequence[Place]) -> list[BitCounts]:
        counted: list[BitCounts] = []
        while len(counted) < len(places):
            counted += self._count_some(_first(places[len(counted) :]))
        return counted

    def _count_some(self, places: Sequence[Place]) -> list[BitCounts]:
        """Of as many of them as there is room for what is found."""
        number = len(places)
        if self._row + number > self._end:
            self._new_rows(max(ROWS, number))
        first, rows = self._row, self._rows
        for row, place in enumerate(places, first):
            rows.place(row, *place)
        number = self._count(self._task_at, *team(), first, number, self._at)
        if number < 0:
            raise RuntimeError(CHANGED)
        self._row += number
        last = self._row - 1
        address, bins, linear_bins, _ = rows.span(last)
        slab, begins = self._slab, self._begins
        counted: list[BitCounts] = [Kept(self._name, rows, row, slab, begins) for row in range(first, last)]
        if address:
            self._at = (address - begins) // 8 + 2 * (bins + linear_bins)
        else:
            self._move_to_new_slab(last)
        counted.append(Kept(self._name, rows, last, self._slab, self._begins))
        return counted

    def count(self, chunks: Chunks) -> BitCounts:
        grid, found = self.grid, self._found
        tallies, moments = np.zeros(5, np.int64), np.array(NO_MOMENTS)
        for values in chunks:
            signed, unsigned = values.view(grid.signed), values.view(grid.unsigned)
            scan(values, signed, unsigned, self._negative_zero, self._shift, self._tables[0], tallies, moments)
        merged, span = self._merged[0], np.empty(2, np.int64)
        gather(self._tables[0], tallies, moments, 1 << MANTISSA_BITS, merged, span)
        bins = extract(merged, *span, tallies[1], found[0], found[1])
        numbers: Any = tuple(tallies.tolist()), tuple(moments.tolist())
        return BitCounts(grid.name, *numbers, *found[:2, :bins].copy())

    def count_linear(self, chunks: Chunks, exponent: int, first: int) -> Linear:
        tables, scratch, found = self._linear[0], self._scratch[0], self._found
        for values in chunks:
            scan_linear(values, math.ldexp(1.0, -exponent), float(first), scratch, tables)
        move(tables[1], tables[0])
        bins = extract_linear(tables[0], first, found[2], found[3])
        return Linear(exponent, *found[2:, :bins].copy())

    def _new_rows(self, number: int) -> None:
        self._rows, self._row, self._end = Rows(number), 0, number
        self._task["rows"] = self._rows.address

    def _new_slab(self, size: int) -> None:
        self._slab, self._at = np.empty(size, np.int64), 0
        self._task["slab"], self._task["slab_size"] = self._slab.ctypes.data, size
        self._begins = self._slab.ctypes.data

    def _move_to_new_slab(self, row: int) -> None:
        """Begins a new slab with what was found last, of this row, for which the old one had no room."""
        found, (_, bins, linear_bins, exponent) = self._found, self._rows.span(row)
        size = 2 * (bins + linear_bins)
        self._new_slab(max(SLAB, size))
        np.concatenate([*found[:2, :bins], *found[2:, :linear_bins]], out=self._slab[:size])
        self._rows.set_span(row, self._begins, bins, linear_bins, exponent)
        self._at = size


def _first(places: Sequence[Place]) -> Sequence[Place]:
    """As many as are counted in one call, which no interrupt reaches: `AT_ONCE` values, or one tensor."""
    total = 0
    for k, (_, number) in enumerate(places):
        total += number
        if total > AT_ONCE:
            return places[: max(k, 1)]
    return places
