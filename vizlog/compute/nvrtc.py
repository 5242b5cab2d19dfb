"""CUDA's own compiler and driver, as far as kernels need them: torch has both, and no public way to them."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Module", "beside_a_capture", "compiled", "launch"]


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


def launch(function: ctypes.c_void_p, blocks: int, threads: int, stream: int, arguments: Sequence[Any]) -> None:
    """Starts a kernel on a stream of the current device; arguments are ctypes' objects, by value."""
    pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
    on = ctypes.c_void_p(stream)
    _check(_driver().cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, on, pointers, None))


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
