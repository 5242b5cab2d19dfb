"""The histogram of CUDA tensors by the kernels in bits.cu, which are compiled when they are first needed.

Where they cannot be compiled, `bits_torch` counts with torch's own operations, to the same result.
"""

from __future__ import annotations

import functools
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import accumulate
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from vizlog.compute import nvrtc
from vizlog.compute.bits import GRIDS, LINEAR_BITS, MANTISSA_BITS, MOST
from vizlog.compute.chunks import in_memory_order
from vizlog.compute.passes import ALWAYS_LINEAR, TOLERABLE_ERROR
from vizlog.compute.uncollected import Together, Uncollected, UncollectedAlive, UncollectedBeyond
from vizlog.messages import LOG, one_line

__all__ = ["TOGETHER", "Kernels", "Looked", "can_count", "count_by_kernel", "kernels_for", "load"]

TYPES = {torch.float32: (0, 4), torch.float16: (1, 2), torch.bfloat16: (2, 2)}
"""What the kernels read, their names for it, and how many bytes one value takes."""

TOGETHER = 512
"""Tensors counted in one launch: their tables take 75 MB."""

ONE_AFTER_THE_OTHER = 16
"""Tensors that are counted by themselves, as layers put them out, and travel together."""

UNITS = 8192
"""Units of each of these for which there is room; a tensor with more of them travels by itself."""

THREADS = 512
UNROLL = 4
PROGRAMS = 2
"""Programs for each multiprocessor, where there is enough to count."""

SHORTEST = 1 << 15
"""Elements that are worth a program."""

_PLAIN = (Tensor, torch.nn.Parameter)


def can_count(tensor: Tensor) -> bool:
    """Whether the kernels can count a tensor, and could be compiled for its device."""
    return kernels_for(tensor) is not None


def kernels_for(tensor: Tensor) -> Kernels | None:
    """Those that can count a tensor; None where they cannot, or could not be compiled for its device."""
    # What is negated when it is read lies in memory as it was before; a subclass may have its values elsewhere.
    if not (tensor.is_cuda and type(tensor) in _PLAIN) or tensor.is_neg():
        return None
    kind, number = TYPES.get(tensor.dtype), tensor.numel()
    if kind is None or number >= MOST or not (tensor.is_contiguous() or in_memory_order(tensor).is_contiguous()):
        return None
    if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + number) * kind[1]:
        return None  # its memory has been given up
    return _kernels(tensor.get_device())


def load(device: torch.device) -> None:
    """Compiles the kernels for a device, or loads them, if that can be done."""
    _kernels(torch.cuda.current_device() if device.index is None else device.index)


def count_by_kernel(tensors: Sequence[Tensor]) -> Together:
    """Counts each, at most `TOGETHER`, all of which `can_count` and lie on one device. Nothing waits for it."""
    kernels, device = _kernels(tensors[0].get_device()), tensors[0].device
    assert kernels is not None
    sizes = [tensor.numel() for tensor in tensors]
    length = kernels.length(sum(sizes))
    first_programs = list(accumulate((max(1, -(-size // length)) for size in sizes), initial=0))
    addresses, types = (tensor.data_ptr() for tensor in tensors), (TYPES[tensor.dtype][0] for tensor in tensors)
    numbers = torch.tensor([*addresses, *types, *sizes, *first_programs], device="cpu", pin_memory=True)
    numbers = numbers.to(device, non_blocking=True)
    together = Together.empty(GRIDS["float32"], len(tensors), device)
    partly = torch.empty(PARTLY * first_programs[-1], dtype=torch.int64, device=device)
    which = (numbers.data_ptr(), 0, together.memory.data_ptr(), partly.data_ptr(), 0, 0, 0)
    kernels.launch(first_programs[-1], *which, len(tensors), length, 0, len(tensors), *_NOTHING_MORE)
    return together


Looked: TypeAlias = "tuple[Uncollected, UncollectedAlive | None, UncollectedBeyond | None]"
"""What was found of one tensor, as far as it was asked for and can be told."""


_GIVEN = struct.Struct("@5Q7i2I2fi")
"""`Given` in bits.cu."""

_NOTHING_MORE = (0, 0, 0, 0.0, 0.0, 0)
"""Its last fields, where nothing is asked of units and limits."""

PARTLY = 9
"""Numbers that each program leaves for the last one."""


@functools.lru_cache(64)
def _rounded(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """As torch does before it compares values of this type."""
    low, high = torch.tensor([low, high], dtype=dtype, device="cpu").tolist()
    return low, high


@functools.cache
def _kernels(device: int) -> Kernels | None:
    """Those of a device, by its number, or None where they cannot be had."""
    if torch.version.hip:
        return None
    try:
        return Kernels(device)
    except Exception as error:  # noqa: BLE001 -- whatever this machine's CUDA lacks
        LOG.info("vizlog counts histograms with torch's own operations, which takes longer: %s", one_line(error))
        return None


@dataclass
class _Room:
    """Of one stream: where the next tensor is counted, and what its programs leave for the last of them."""

    together: Callable[[], Together | None]  # a weak reference: it goes once it has been sent to the host
    taken: int
    partly: Tensor
    odd: Tensor
    addresses: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.addresses = self.partly.data_ptr(), self.odd.data_ptr()


class Kernels:
    """The kernels of bits.cu, compiled and loaded for one device."""

    def __init__(self, device: int) -> None:
        self._device, self._number = torch.device("cuda", device), device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._short = SHORTEST * PROGRAMS * self._processors  # so many elements are counted in the shortest stretches
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
            torch.zeros(1, device=self._device)  # what is loaded belongs to the device's context, which may be none yet
            self._module = nvrtc.Module(image)
        self._scan, self._again = self._module.function("scan"), self._module.function("again")
        self._lock = threading.Lock()
        self._given = nvrtc.Argument(_GIVEN)
        self._rooms: dict[int, _Room] = {}
        self._met = threading.local()

    def length(self, size: int) -> int:
        """Of the stretches in which so many elements are counted."""
        length = max(SHORTEST, -(-size // (PROGRAMS * self._processors)))
        return min(-(-length // 8) * 8, MOST // 2)

    # What follows runs for each layer's output, and the device may have nothing else to do meanwhile.

    def look(self, tensor: Tensor, channel_dim: int | None = None, limits: tuple[float, float] | None = None) -> Looked:
        """Counts one that `can_count`, and what can be told of its units and its limits, in two launches.

        Args:
            channel_dim: which dimension holds the units, for `health.alive`. Told is this of a contiguous tensor, and
                where the dimension is the innermost in memory, as in what torch calls channels last.
            limits: to count how many values are at most the first or at least the second.
        """
        size = tensor.numel()
        length = SHORTEST if size <= self._short else self.length(size)
        units = inner = 0
        if channel_dim is not None and (shape := tensor.shape):
            if tensor.stride(channel_dim) == 1:
                units, inner = shape[channel_dim], 1
            elif tensor.is_contiguous():
                units, inner = shape[channel_dim], prod(shape[channel_dim % len(shape) + 1 :])
        low, high = _rounded(*limits, tensor.dtype) if limits is not None else (0.0, 0.0)
        with self._lock:  # what the first launch leaves for the second is not to be had by another tensor's
            stream = self._current_stream()
            room = self._rooms.pop(stream, None) or self._new_room()
            together, slot = self._place(room, units)
            where = (0, tensor.data_ptr(), together.memory.data_ptr(), *room.addresses)
            which = (size, TYPES[tensor.dtype][0], 1, length, slot, together.tensors, together.units)
            self._launch(max(1, -(-size // length)), (*where, *which, units, inner, low, high, limits is not None))
            self._rooms[stream] = room  # after an error it is not used again: the second may not have cleared it
        flags = UncollectedAlive(together, slot, units) if inner else None
        return Uncollected(together, slot), flags, UncollectedBeyond(together, slot) if limits is not None else None

    def launch(self, programs: int, *given: float) -> None:
        """Counts what `given` says (see `_GIVEN`)."""
        with self._lock:
            self._launch(programs, given)

    def _launch(self, programs: int, given: Sequence[float]) -> None:
        if torch.cuda.current_device() != self._number:
            with torch.cuda.device(self._device):
                self._launch(programs, given)
            return
        if not hasattr(self._met, "thread"):  # a thread has the device's context once it has used the device
            torch.zeros(1, device=self._device)
            self._met.thread = True
        self._given.put(*given)
        stream = nvrtc.stream(self._current_stream())
        nvrtc.launch(self._scan, programs, THREADS, stream, self._given)
        nvrtc.launch(self._again, programs, THREADS, stream, self._given)

    def _new_room(self) -> _Room:
        partly = torch.empty(PARTLY * (PROGRAMS * self._processors + 1), dtype=torch.int64, device=self._device)
        odd = torch.zeros(2 * GRIDS["float32"].first_negative, dtype=torch.int32, device=self._device)
        return _Room(lambda: None, ONE_AFTER_THE_OTHER, partly, odd)

    def _place(self, room: _Room, units: int) -> tuple[Together, int]:
        """Where one more tensor can be counted, and its number there."""
        if units > UNITS:
            return Together.empty(GRIDS["float32"], 1, self._device, units=-(-units // 8) * 8), 0
        together = room.together()
        if together is None or room.taken == ONE_AFTER_THE_OTHER:
            together = Together.empty(GRIDS["float32"], ONE_AFTER_THE_OTHER, self._device, units=UNITS)
            room.together, room.taken = weakref.ref(together), 0
        room.taken += 1
        return together, room.taken - 1

    def _current_stream(self) -> int:
        # As `torch.cuda.current_stream(device).cuda_stream`, which makes a stream's object each time.
        return int(torch._C._cuda_getCurrentRawStream(self._number))  # noqa: SLF001
