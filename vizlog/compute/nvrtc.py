"""CUDA's own compiler and driver, as far as kernels need them: torch has both, and no public way to them."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Argument", "Module", "beside_a_capture", "compiled", "launch", "stream"]


def compiled(source: str, constants: Mapping[str, float], capability: tuple[int, int]) -> bytes:
    """The machine code of a source for a device of this compute capability, with these constants defined in it.

    Raises:
        OSError: there is no compiler.
        RuntimeError: it does not take the source, or does not know the device.
    """
    compiler, program = _compiler(), ctypes.c_void_p()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}"]
    options += [f"-D{name}={value}" for name, value in constants.items()]
    _check(compiler.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if compiler.nvrtcCompileProgram(program, len(options), given):
            raise RuntimeError(_read(compiler, program, "ProgramLog").decode(errors="replace").strip(" \n\0"))
        return _read(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


class Module:
    """Machine code, loaded into the current device's context for as long as the process lives."""

    def __init__(self, image: bytes) -> None:
        self._module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(self._module), image))

    def function(self, name: str) -> ctypes.c_void_p:
        """The kernel of this name."""
        found = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(found), self._module, name.encode()))
        return found


class Argument:
    """The one argument of kernels that take a struct, laid out as `layout` says. Not to be shared by threads."""

    def __init__(self, layout: struct.Struct) -> None:
        self._layout, self._memory = layout, ctypes.create_string_buffer(layout.size)
        self.pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self._memory))

    def put(self, *values: float) -> None:
        """What the kernels launched from now on are given."""
        self._layout.pack_into(self._memory, 0, *values)


def launch(function: ctypes.c_void_p, blocks: int, threads: int, stream: ctypes.c_void_p, argument: Argument) -> None:
    """Starts a kernel on a stream of the current device; what the argument holds now is copied."""
    code = _launch_kernel()(function, blocks, 1, 1, threads, 1, 1, 0, stream, argument.pointers, None)
    if code:
        _check(code)


@functools.cache
def _launch_kernel() -> Any:
    # Without types for its arguments, to look at each of which takes as long again; numbers go as C's int.
    return _driver()["cuLaunchKernel"]


@functools.lru_cache(16)
def stream(address: int) -> ctypes.c_void_p:
    """A stream as `launch` takes it."""
    return ctypes.c_void_p(address)


@contextmanager
def beside_a_capture() -> Iterator[None]:
    """Inside, this thread may wait and allocate though another records a CUDA graph; else that would break it."""
    if not torch.cuda.is_initialized() or torch.version.hip:
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    exchange = _driver().cuThreadExchangeStreamCaptureMode
    exchange(ctypes.byref(mode))  # leaves the mode before there
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


_RELAXED = 2


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@functools.cache
def _compiler() -> ctypes.CDLL:
    """The one that torch has: loaded, or beside torch in one of NVIDIA's own packages."""
    major = str(torch.version.cuda).partition(".")[0]
    name = f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}"
    beside = Path(torch.__file__).parents[1]
    found = [path for place in ("nvidia/*/lib", "nvidia/*/bin", "torch/lib") for path in beside.glob(f"{place}/{name}")]
    for path in [*map(str, found), name]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise OSError(f"CUDA's compiler, {name}, was not found")


def _read(compiler: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(getattr(compiler, f"nvrtcGet{what}")(program, content))
    return content.raw


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA error {code}")
