"""The histogram of CUDA tensors by the kernels in bits.cu, which are compiled when they are first needed.

Where they cannot be compiled, `bits_torch` counts with torch's own operations, to the same result.
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

from vizlog.compute import nvrtc
from vizlog.compute.bits import GRIDS, LINEAR_BITS, MANTISSA_BITS, MOST, Together, Uncollected
from vizlog.compute.chunks import in_memory_order
from vizlog.compute.passes import ALWAYS_LINEAR, TOLERABLE_ERROR
from vizlog.messages import LOG, told

__all__ = [
    "TOGETHER",
    "alive_by_kernel",
    "beyond_by_kernel",
    "can_count",
    "count_by_kernel",
    "count_one_by_kernel",
    "load",
]

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""What the kernels read, and their names for it."""

TOGETHER = 512
"""Tensors counted in one launch: their tables take 75 MB."""

ONE_AFTER_THE_OTHER = 16
"""Tensors that are counted by themselves, as layers put them out, and travel together."""

THREADS = 512
UNROLL = 4
PROGRAMS = 2
"""Programs for each multiprocessor, where there is enough to count."""

SHORTEST = 1 << 15
"""Elements that are worth a program."""

_PLAIN = (Tensor, torch.nn.Parameter)


def can_count(tensor: Tensor) -> bool:
    """Whether the kernels can count a tensor, and could be compiled for its device."""
    # What is negated when it is read lies in memory as it was before; a subclass may have its values elsewhere.
    plain = tensor.is_cuda and type(tensor) in _PLAIN and not tensor.is_neg()
    if not (plain and tensor.dtype in TYPES and tensor.numel() < MOST and in_memory_order(tensor).is_contiguous()):
        return False
    return _kernels(tensor.device) is not None


def load(device: torch.device) -> None:
    """Compiles the kernels for a device, or loads them, if that can be done."""
    _kernels(device)


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
    """As `health.alive`, of a tensor that was counted by itself; where it has no zeros it is not read again.

    It is contiguous, or `channel_dim` is the innermost in memory, as in what torch calls channels last.
    """
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
    """Those of a device, or None where they cannot be had."""
    if torch.version.hip:
        return None
    try:
        return _Kernels(device)
    except Exception as error:  # noqa: BLE001 -- whatever this machine's CUDA lacks
        LOG.info("vizlog counts histograms with torch's own operations, which takes longer: %s", told(error))
        return None


class _Kernels:
    """The kernels of bits.cu, compiled and loaded for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        constants = {
            "THREADS": THREADS,
            "UNROLL": UNROLL,
            "MANTISSA_BITS": MANTISSA_BITS,
            "LINEAR_BITS": LINEAR_BITS,
            "ALWAYS_LINEAR": ALWAYS_LINEAR,
            "TOLERABLE_ERROR": TOLERABLE_ERROR,
        }
        source = resources.files("vizlog.compute").joinpath("bits.cu").read_text(encoding="utf-8")
        image = nvrtc.compiled(source, constants, torch.cuda.get_device_capability(device))
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # what is loaded belongs to the device's context, which there may not be yet
            self._module = nvrtc.Module(image)
        kernels = map(self._launcher, ("scan", "linear", "alive", "beyond"))
        self._scan, self._linear, self._alive, self._beyond = kernels
        self._lock = threading.Lock()
        self._latest: dict[int, tuple[weakref.ref[Together], int]] = {}
        self._met = threading.local()

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
        inner = prod(tensor.shape[channel_dim + 1 :]) if tensor.is_contiguous() else 1
        units = tensor.shape[channel_dim]
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
            found, taken = self._latest.get(stream, (lambda: None, 0))
            together = found()
            if together is None or taken == ONE_AFTER_THE_OTHER:
                together, taken = Together.empty(GRIDS["float32"], ONE_AFTER_THE_OTHER, self._device), 0
            self._latest[stream] = weakref.ref(together), taken + 1
            return together, taken

    def _launcher(self, name: str) -> Callable[..., None]:
        function = self._module.function(name)

        def launch(programs: int, *arguments: Any) -> None:
            here = torch.cuda.current_device() == self._device.index
            with nullcontext() if here else torch.cuda.device(self._device):
                if not hasattr(self._met, "thread"):  # a thread has the device's context once it has used the device
                    torch.zeros(1, device=self._device)
                    self._met.thread = True
                nvrtc.launch(function, programs, THREADS, self._current_stream(), arguments)

        return launch

    def _current_stream(self) -> int:
        # As `torch.cuda.current_stream(device).cuda_stream`, which makes a stream's object each time.
        return int(torch._C._cuda_getCurrentRawStream(self._device.index))  # noqa: SLF001
