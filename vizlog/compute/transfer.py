"""Small results to the host: one copy for everything a step measured, waited for elsewhere."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizlog.compute.bits import BitCounts

__all__ = ["Pending", "to_host"]


class Pending:
    """Results on their way to the host; `wait()` gives them, every tensor on the CPU and owned by nobody else."""

    def __init__(self, tree: Any, landing: list[Tensor], events: list[Any]) -> None:
        self._tree, self._landing, self._events = tree, landing, events

    def wait(self) -> Any:
        """Blocks until the copies have landed; meant for a worker thread."""
        for event in self._events:
            event.synchronize()
        return _map(lambda leaf: self._landing[leaf.number] if isinstance(leaf, _Slot) else leaf, self._tree)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Stands where a tensor was until it has landed."""

    number: int


def to_host(tree: Any) -> Pending:
    """Starts copying every tensor in `tree` (dicts, lists, tuples and dataclasses of anything) to the CPU.

    Device tensors go through pinned memory without synchronising, packed into one copy a device; tensors and arrays
    that already lie on the CPU are cloned, since `.cpu()` and `.numpy()` would share their memory with the training.
    Arrays that own their memory are taken as they are, and so are counts that were made on the host.
    """
    landing: list[Tensor] = []
    travelling: dict[torch.device, list[tuple[int, Tensor]]] = {}

    def leave(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf if leaf.flags.owndata else leaf.copy()
        if not isinstance(leaf, Tensor):
            return leaf
        tensor = leaf.detach()
        landing.append(tensor.clone() if tensor.device.type == "cpu" else tensor)
        if tensor.device.type != "cpu":
            travelling.setdefault(tensor.device, []).append((len(landing) - 1, tensor))
        return _Slot(len(landing) - 1)

    slots = _map(leave, tree)
    events = []
    for device, tensors in travelling.items():
        events.extend(_start_copy(device, tensors, landing))
    return Pending(slots, landing, events)


def _start_copy(device: torch.device, tensors: list[tuple[int, Tensor]], landing: list[Tensor]) -> list[Any]:
    if device.type != "cuda":
        for number, tensor in tensors:
            landing[number] = tensor.cpu()
        return []
    # Bytes of all dtypes in one buffer; each starts at a multiple of 16, so that it can be viewed as its dtype again.
    packed, starts, size = [], [], 0
    for _, tensor in tensors:
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        padding = -len(flat) % 16
        starts.append(size)
        packed.append(flat if not padding else torch.nn.functional.pad(flat, (0, padding)))
        size += len(flat) + padding
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    host.copy_(torch.cat(packed), non_blocking=True)
    for start, (number, tensor) in zip(starts, tensors, strict=True):
        stop = start + tensor.numel() * tensor.element_size()
        landing[number] = host[start:stop].view(tensor.dtype).view(tensor.shape)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return [event]


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    kind: Any = type(tree)
    # Both come by the thousand at a due step; counts that have bins lie on the host, in memory that nobody else has.
    if kind in _PLAIN or (kind is BitCounts and tree.bins is not None):
        return tree
    if kind in _LEAVES:
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(_map(function, part) for part in tree))
    if isinstance(tree, (list, tuple)):
        return kind(_map(function, part) for part in tree)
    changed = {}
    for name in _parts(kind):
        part = getattr(tree, name)
        mapped = _map(function, part)
        if mapped is not part:
            changed[name] = mapped
    if changed:
        return dataclasses.replace(tree, **changed)
    return tree if _parts(kind) else function(tree)


_PLAIN = {str, int, float, bool, type(None)}
_LEAVES = {Tensor, np.ndarray, _Slot}


@functools.cache
def _parts(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields; () for any other type."""
    if not dataclasses.is_dataclass(kind) or kind is _Slot:
        return ()
    return tuple(part.name for part in dataclasses.fields(kind) if part.init)
