"""The threads that torch computes with on a CPU, for loops that numba compiled.

torch's operations run on the threads of the OpenMP library that it is linked to: each thread that calls operations has
a team, which waits for the next. Theirs are the cores that training has, and as many as `torch.set_num_threads` allows.
They begin within some 10 us. Threads of our own would stand in their way, and wait for the interpreter's lock to begin.

numba keeps machine code until the text of the file that uses these functions changes, not of this one.
"""
# ruff: noqa: ARG001 -- an intrinsic is called with all it may need

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic as typed_intrinsic

__all__ = ["address", "alone", "fetch_add", "on_each", "pointer", "team"]

intrinsic: Any = typed_intrinsic  # it takes a function of types and gives one of values, which no annotation says


def _find() -> int:
    """The address of `GOMP_parallel`, as torch has it from GNU's OpenMP library or one like it; 0 if it has none.

    It is what GCC makes of `#pragma omp parallel`: (function, its argument, number of threads, flags).
    """
    # In the order in which torch was bound to it: what LD_PRELOAD put before comes first.
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        try:
            return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, TypeError, AttributeError):  # TypeError: Windows has no library of that name
            continue
    return 0


_openmp = _find()


def _forked() -> None:
    # The threads have stayed behind, and GNU's library would wait for them.
    global _openmp  # noqa: PLW0603
    _openmp = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def team() -> tuple[int, int]:
    """What `on_each` needs, 0 where there is no team; and how many threads torch computes with, called from here."""
    return (_openmp, torch.get_num_threads()) if _openmp else (0, 1)


@intrinsic
def pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """The address as a pointer, to make an array of."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), generate


@intrinsic
def address(typing_context, pointer):  # type: ignore[no-untyped-def]
    """The pointer as an address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(pointer), generate


@intrinsic
def fetch_add(typing_context, array, k):  # type: ignore[no-untyped-def]
    """Adds one to `array[k]` (int64), whoever else does; returns what was there."""
    word = ir.IntType(64)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = builder.gep(context.make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
        return builder.atomic_rmw("add", place, word(1), "monotonic")

    return types.int64(array, types.int64), generate


_BYTE, _NUMBER = ir.IntType(8).as_pointer(), ir.IntType(32)
_CALLED = ir.FunctionType(ir.VoidType(), [_BYTE])
_PARALLEL = ir.FunctionType(ir.VoidType(), [_CALLED.as_pointer(), _BYTE, _NUMBER, _NUMBER])


@intrinsic
def alone(typing_context, function, argument):  # type: ignore[no-untyped-def]
    """Calls the function at this address, of one pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function, argument = arguments
        builder.call(builder.inttoptr(function, _CALLED.as_pointer()), [builder.inttoptr(argument, _BYTE)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def on_each(typing_context, openmp, members, function, argument):  # type: ignore[no-untyped-def]
    """Calls the function at this address, of one pointer, on each of so many threads of the team; waits for all.

    The number is that of torch's own operations: the library makes threads anew where it changes.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        openmp, members, function, argument = arguments
        parallel = builder.inttoptr(openmp, _PARALLEL.as_pointer())
        function, argument = builder.inttoptr(function, _CALLED.as_pointer()), builder.inttoptr(argument, _BYTE)
        builder.call(parallel, [function, argument, builder.trunc(members, _NUMBER), _NUMBER(0)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), generate
