"""The kernels of bits.cu on a CPU, compiled by g++: what they do can be tested where there is no CUDA device."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch

from vizlog.compute import bits_cuda, nvrtc

__all__ = ["kernel", "kernels_run_on_cpu", "library", "run"]

SHIM = Path(__file__).with_suffix(".hpp")

OPTIONS = "-std=c++20 -O2 -shared -fPIC -fno-strict-aliasing -ffp-contract=off".split()
"""Kernels read memory as values of several types."""

KERNEL = re.compile(r"__global__[^{;]*?\b(\w+)\([^()]*\)\s*\{")
INSTRUCTION = re.compile(r'asm(?: volatile)?\("([\w.]+) %0, %1;" : "=\w"\((.+?)\) : "\w"\((.+)\)\);')
"""One of a GPU that makes one value of another; the shim has a function of its name for it."""

PROCESSORS = 132
"""As an H100 has: no tensor of a test is so large that its stretches are longer than the shortest."""

CPU = -1
"""Its number as a device, as tensors have it."""

Kernel: TypeAlias = "Callable[[int, int, int | None, bool], bytes | None]"


def library(source: str, constants: Mapping[str, float]) -> ctypes.PyDLL:
    """A source of kernels with these constants, compiled and loaded.

    Raises:
        RuntimeError: the shim lacks what it uses.
    """
    return _library(source, tuple(f"-D{name}={value}" for name, value in constants.items()))


@functools.cache
def _library(source: str, definitions: tuple[str, ...]) -> ctypes.PyDLL:
    for_cpu = INSTRUCTION.sub(lambda found: f"{found[2]} = {found[1].replace('.', '_')}({found[3]});", source)
    kernels = [f"KERNEL({name})" for name in KERNEL.findall(source)]
    text = "\n".join([f'#include "{SHIM}"', '#line 1 "kernels.cu"', for_cpu, *kernels, ""])
    with TemporaryDirectory() as folder:
        path = Path(folder, "kernels.so")
        command = ["g++", *OPTIONS, *definitions, "-x", "c++", "-", "-o", str(path)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return ctypes.PyDLL(str(path))  # which keeps the GIL: one launch at a time


def kernel(compiled: ctypes.PyDLL, name: str) -> Kernel:
    found = compiled[f"run_{name}"]
    found.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_bool)
    found.restype = ctypes.c_char_p
    return found


def run(kernel: Kernel, blocks: int, threads: int, argument: int | None, *, backwards: bool = False) -> None:
    """All blocks and threads; `argument` is an address.

    Args:
        backwards: the last block and the last thread run first.

    Raises:
        RuntimeError: on a device it would hang or stop.
    """
    failure = kernel(blocks, threads, argument, backwards)
    if failure:
        raise RuntimeError(failure.decode())


def kernels_run_on_cpu(monkeypatch: pytest.MonkeyPatch, *, backwards: bool = False) -> bits_cuda.Kernels:
    """Those that take CPU tensors, as `count_by_kernel` does from here on; what they find can be collected at once."""

    def launch(function: Kernel, blocks: int, threads: int, stream: object, argument: nvrtc.Argument) -> None:
        run(function, blocks, threads, argument.pointers[0], backwards=backwards)

    monkeypatch.setattr(nvrtc, "compiled", lambda source, constants, capability: library(source, constants))
    monkeypatch.setattr(nvrtc, "Module", lambda image: SimpleNamespace(function=functools.partial(kernel, image)))
    monkeypatch.setattr(nvrtc, "launch", launch)
    monkeypatch.setattr(bits_cuda, "torch", _TorchWithADevice())
    kernels = bits_cuda.Kernels(CPU)
    monkeypatch.setattr(bits_cuda, "_kernels", lambda device: kernels)
    return kernels


class _TorchWithADevice:
    """torch, where the CPU is a CUDA device."""

    _C = SimpleNamespace(_cuda_getCurrentRawStream=lambda device: 0)
    cuda = SimpleNamespace(
        current_device=lambda: CPU,
        device=lambda device: nullcontext(),
        get_device_capability=lambda device: (9, 0),
        get_device_properties=lambda device: SimpleNamespace(multi_processor_count=PROCESSORS),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, kind: str, number: int) -> torch.device:
        return torch.device("cpu")

    def tensor(self, *args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.tensor(*args, **options)
