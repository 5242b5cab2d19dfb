"""The histogram of CUDA tensors by kernels, which torch compiles when they are first needed.

The kernels are in bits.cu. Where torch cannot compile them, `bits_torch` counts with torch's own operations, to the
same result.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import resources
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from vizlog.compute.bits import GRIDS, Together, Uncollected
from vizlog.messages import LOG, told

__all__ = ["TOGETHER", "alive_by_kernel", "beyond_by_kernel", "can_count", "count_by_kernel", "count_one_by_kernel"]

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""What the kernels read, and their names for it."""

TOGETHER = 512
"""Tensors counted in one launch: their tables take 75 MB."""

ONE_AFTER_THE_OTHER = 16
"""Tensors that are counted by themselves, as layers put them out, and travel together."""

MOST = 1 << 31
"""Elements counted in one table of 32-bit counters."""

THREADS = 512
UNROLL = 4
PROGRAMS = 2
"""Programs for each multiprocessor, where there is enough to count."""

SHORTEST = 1 << 15
"""Elements that are worth a program."""


def can_count(tensor: Tensor) -> bool:
    """Whether the kernels can count a tensor, and torch can compile them for its device."""
    # What is negated when it is read lies in memory as it was before.
    plain = tensor.is_cuda and tensor.is_contiguous() and not tensor.is_neg()
    if not (plain and tensor.dtype in TYPES and tensor.numel() < MOST):
        return False
    return _kernels(tensor.device) is not None


def count_by_kernel(tensors: Sequence[Tensor]) -> Together:
    """Counts each, at most `TOGETHER`, all of which `can_count` and lie on one device. Nothing waits for it."""
    kernels, device = _of(tensors[0]), tensors[0].device
    sizes = [tensor.numel() for tensor in tensors]
    length = kernels.length(sum(sizes))
    first_programs = list(accumulate((max(1, -(-size // length)) for size in sizes), initial=0))
    addresses, types = (tensor.data_ptr() for tensor in tensors), (TYPES[tensor.dtype] for tensor in tensors)
    numbers = torch.tensor([*addresses, *types, *sizes, *first_programs], device="cpu", pin_memory=True)
    numbers = numbers.to(device, non_blocking=True)
    together = Together.empty(GRIDS["float32"], len(tensors), device)
    given = _Given(numbers=numbers.data_ptr(), tensors=len(tensors), length=length, slots=len(tensors))
    kernels.count(first_programs[-1], given, together)
    return together


def count_one_by_kernel(tensor: Tensor) -> Uncollected:
    """Counts one that `can_count`, in the least time on the host."""
    return _of(tensor).count_one(tensor)


def alive_by_kernel(tensor: Tensor, channel_dim: int, counts: Uncollected) -> Tensor:
    """As `health.alive`, of a tensor that was counted by itself; where it has no zeros it is not read again."""
    return _of(tensor).alive(tensor, channel_dim % tensor.ndim, counts)


def beyond_by_kernel(tensor: Tensor, low: float, high: float) -> Tensor:
    """0-d int64: how many values of a tensor that `can_count` are at most `low` or at least `high`."""
    return _of(tensor).beyond(tensor, low, high)


class _Given(ctypes.Structure):
    """As bits.cu has it."""

    _fields_ = (
        ("numbers", ctypes.c_void_p),
        ("address", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("type", ctypes.c_int),
        ("tensors", ctypes.c_int),
        ("length", ctypes.c_int),
        ("slot", ctypes.c_int),
        ("slots", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("partly", ctypes.c_void_p),
    )


def _of(tensor: Tensor) -> _Kernels:
    kernels = _kernels(tensor.device)
    assert kernels is not None
    return kernels


@functools.cache
def _kernels(device: torch.device) -> _Kernels | None:
    """Those of a device, or None where torch cannot compile them."""
    if torch.version.hip:
        return None
    try:
        return _Kernels(device)
    except Exception as error:  # noqa: BLE001 -- what torch keeps to itself it may change
        LOG.info("vizlog counts histograms with torch's own operations, which takes longer: %s", told(error))
        return None


class _Kernels:
    """The kernels of bits.cu, compiled and loaded for one device."""

    def __init__(self, device: torch.device) -> None:
        # What `torch.cuda._compile_kernel` is made of: that one compiles all of the source for each kernel, and
        # launches one in ten times the time.
        from torch.cuda._utils import _check_cuda, _cuda_load_module, _get_gpu_runtime_library, _nvrtc_compile

        defined = f"#define THREADS {THREADS}\n#define UNROLL {UNROLL}\n"
        source = defined + resources.files("vizlog.compute").joinpath("bits.cu").read_text(encoding="utf-8")
        with torch.cuda.device(device):
            self._module = _cuda_load_module(_nvrtc_compile(source, "scan")[0])
        self._driver, self._check = _get_gpu_runtime_library(), _check_cuda
        self._device = device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._scan, self._linear, self._alive, self._beyond = map(self._launcher, ("scan", "linear", "alive", "beyond"))
        self._lock = threading.Lock()
        self._latest: Callable[[], Together | None] = lambda: None
        self._taken, self._stream = 0, 0

    def length(self, size: int) -> int:
        """Of the stretches in which so many elements are counted."""
        length = max(SHORTEST, -(-size // (PROGRAMS * self._processors)))
        return min(-(-length // 8) * 8, MOST // 2)

    def count(self, programs: int, given: _Given, together: Together) -> None:
        partly = torch.empty(9 * programs, dtype=torch.int64, device=self._device)
        given.memory, given.partly = together.memory.data_ptr(), partly.data_ptr()
        self._scan(programs, given)
        self._linear(programs, given)

    def count_one(self, tensor: Tensor) -> Uncollected:
        together, slot = self._room()
        given, programs = self._given(tensor, together, slot)
        self.count(programs, given, together)
        return Uncollected(together, slot)

    def alive(self, tensor: Tensor, channel_dim: int, counts: Uncollected) -> Tensor:
        units, inner = tensor.shape[channel_dim], prod(tensor.shape[channel_dim + 1 :])
        flags = torch.zeros(units, dtype=torch.bool, device=self._device)
        given, programs = self._given(tensor, counts.together, counts.index)
        given.memory = counts.together.memory.data_ptr()
        self._alive(programs, given, ctypes.c_int(units), ctypes.c_int(inner), ctypes.c_void_p(flags.data_ptr()))
        return flags

    def beyond(self, tensor: Tensor, low: float, high: float) -> Tensor:
        found = torch.zeros((), dtype=torch.int64, device=self._device)
        given, programs = self._given(tensor)
        limits = ctypes.c_float(low), ctypes.c_float(high)
        self._beyond(programs, given, *limits, ctypes.c_void_p(found.data_ptr()))
        return found

    def _given(self, tensor: Tensor, together: Together | None = None, slot: int = 0) -> tuple[_Given, int]:
        """What the kernels are given for one tensor, and in how many programs."""
        size = tensor.numel()
        length = self.length(size)
        slots = together.tensors if together is not None else 0
        given = _Given(None, tensor.data_ptr(), size, TYPES[tensor.dtype], 1, length, slot, slots)
        return given, max(1, -(-size // length))

    def _room(self) -> tuple[Together, int]:
        """Where one more tensor can be counted that the current stream has made."""
        stream = self._current_stream()
        with self._lock:
            together = self._latest()
            full = self._taken == ONE_AFTER_THE_OTHER or stream != self._stream
            if together is None or together.leaves or full:
                together = Together.empty(GRIDS["float32"], ONE_AFTER_THE_OTHER, self._device)
                self._latest, self._taken, self._stream = weakref.ref(together), 0, stream
            self._taken += 1
            return together, self._taken - 1

    def _launcher(self, name: str) -> Callable[..., None]:
        function, launch_kernel = getattr(self._module, name).func, self._driver.cuLaunchKernel

        def launch(programs: int, *arguments: Any) -> None:
            pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
            stream = ctypes.c_void_p(self._current_stream())
            here = torch.cuda.current_device() == self._device.index
            with nullcontext() if here else torch.cuda.device(self._device):
                self._check(launch_kernel(function, programs, 1, 1, THREADS, 1, 1, 0, stream, pointers, None))

        return launch

    def _current_stream(self) -> int:
        # As `torch.cuda.current_stream(device).cuda_stream`, which makes a stream's object each time.
        return int(torch._C._cuda_getCurrentRawStream(self._device.index))  # noqa: SLF001
