"""Vectors of eight numbers for loops that numba compiles, where its compiler cannot find them by itself.

LLVM vectorises a loop whole or not at all. These let one loop do both: vector arithmetic, and stores that no vector
can make. Processors without vectors this wide take several, or none; the results are the same.
"""
# ruff: noqa: ARG001 -- an intrinsic is called with all it may need

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic as typed_intrinsic
from numba.extending import models, register_model

from vizlog.compute.bits import GRIDS

__all__ = [
    "WIDTH",
    "add",
    "lane",
    "load",
    "lower",
    "multiply",
    "prefetch",
    "splat",
    "subtract",
    "upper",
    "upper_bits_of_two",
    "wide",
]

WIDTH = 8

intrinsic: Any = typed_intrinsic  # it takes a function of types and gives one of values, which no annotation says


class Lanes(types.Type):
    """The type of a vector of `WIDTH` numbers, kept in registers."""

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
    """Has the memory of `array[at]` brought near; nothing happens if there is none."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _place(context, builder, array, *arguments)
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(fetch, [builder.bitcast(place, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.uint64), generate


@intrinsic
def upper_bits_of_two(typing_context, patterns, start):  # type: ignore[no-untyped-def]
    """The upper bits of `patterns[start]` and of the next, in either order.

    Two 32-bit patterns are read at once: a counting loop makes as many memory accesses as a processor has ports for.
    """
    word, size = ir.IntType(64), patterns.dtype.bitwidth
    shift = GRIDS[f"float{size}"].shift

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _place(context, builder, patterns, *arguments)
        first = both = _read(builder, place, word, patterns.dtype)
        if size == 32:
            first, second = builder.and_(both, word(2**32 - 1)), builder.lshr(both, word(32))
        else:
            second = _read(builder, builder.gep(place, [word(1)]), word, patterns.dtype)
        found = builder.lshr(first, word(shift)), builder.lshr(second, word(shift))
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
    """An operation (builder, element type, a, b) on two vectors of one type."""

    @intrinsic
    def operate(typing_context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return operation(builder, a.element, *arguments)

        return a(a, b), generate

    return operate


def _where(builder: Any, element: Any, relation: str, a: Any, b: Any) -> Any:
    """A where it stands in this relation to b, else b; whole numbers."""
    compare = builder.icmp_signed if element.signed else builder.icmp_unsigned
    return builder.select(compare(relation, a, b), a, b)


# "contract": a product and the sum it goes into may be one instruction.
add = _lane_by_lane(lambda builder, element, a, b: builder.fadd(a, b, flags=["contract"]))
subtract = _lane_by_lane(lambda builder, element, a, b: builder.fsub(a, b))
multiply = _lane_by_lane(lambda builder, element, a, b: builder.fmul(a, b, flags=["contract"]))
lower = _lane_by_lane(lambda builder, element, a, b: _where(builder, element, "<", a, b))
upper = _lane_by_lane(lambda builder, element, a, b: _where(builder, element, ">", a, b))
