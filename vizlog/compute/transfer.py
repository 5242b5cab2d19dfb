"""Small results to the host: one copy for everything a step measured, waited for elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizlog.compute.bits import BitCounts
from vizlog.compute.kept import Kept
from vizlog.compute.nvrtc import beside_a_capture
from vizlog.compute.uncollected import Together, Uncollected, UncollectedAlive, UncollectedBeyond

__all__ = ["Pending", "to_host"]


class Pending:
    """Results on their way to the host; `wait()` gives them, every tensor on the CPU and owned by nobody else."""

    def __init__(self, tree: Any, landing: list[Tensor], events: list[Any], shared: frozenset[int]) -> None:
        self._tree, self._landing, self._events, self._shared = tree, landing, events, shared
        self._arrived: dict[int, Together] = {}

    def wait(self, part: int | None = None) -> Any:
        """Blocks until the copies have landed; meant for a worker thread. Gives all, or one part of a list."""
        with beside_a_capture():
            for event in self._events:
                event.synchronize()

        def land(leaf: Any) -> Any:
            if isinstance(leaf, _UNCOLLECTED):
                slot: Any = leaf.together.memory
                if slot.number not in self._arrived:  # what was counted together is collected at once, and once
                    self._arrived[slot.number] = replace(leaf.together, memory=self._landing[slot.number])
                return replace(leaf, together=self._arrived[slot.number]).collected()
            if not isinstance(leaf, _Slot):
                return leaf
            # A record that is kept must not keep all that came with it, in memory that is pinned.
            tensor = self._landing[leaf.number]
            return tensor.clone() if leaf.number in self._shared else tensor

        return _map(land, self._tree if part is None else self._tree[part])


@dataclass(frozen=True)
class _Slot:
    """Stands where a tensor was until it has landed."""

    number: int


def to_host(tree: Any) -> Pending:
    """Starts copying every tensor in `tree` (dicts, lists, tuples and dataclasses of anything) to the CPU.

    Device tensors go through pinned memory without synchronising, packed into one copy a device; tensors and arrays
    that already lie on the CPU are cloned, since `.cpu()` and `.numpy()` would share their memory with the training.
    Arrays that own their memory are taken as they are, and so are counts that were made on the host; those made on a
    device arrive collected.
    """
    landing: list[Tensor] = []
    travelling: dict[torch.device, list[tuple[int, Tensor]]] = {}
    leaving: dict[int, Together] = {}

    def slot(given: Tensor) -> _Slot:
        tensor = given.detach()
        landing.append(tensor.clone() if tensor.device.type == "cpu" else tensor)
        if tensor.device.type != "cpu":
            travelling.setdefault(tensor.device, []).append((len(landing) - 1, tensor))
        return _Slot(len(landing) - 1)

    def leave(leaf: Any) -> Any:
        if isinstance(leaf, _UNCOLLECTED):
            together = leaf.together
            if id(together) not in leaving:
                memory: Any = slot(together.memory)
                leaving[id(together)] = replace(together, memory=memory)
            return replace(leaf, together=leaving[id(together)])
        if isinstance(leaf, np.ndarray):
            return leaf if leaf.flags.owndata else leaf.copy()
        return slot(leaf) if isinstance(leaf, Tensor) else leaf

    slots = _map(leave, tree)
    events = []
    for device, tensors in travelling.items():
        events.extend(_start_copy(device, tensors, landing))
    return Pending(slots, landing, events, frozenset(number for those in travelling.values() for number, _ in those))


def _start_copy(device: torch.device, tensors: list[tuple[int, Tensor]], landing: list[Tensor]) -> list[Any]:
    if device.type != "cuda":
        for number, tensor in tensors:
            landing[number] = tensor.cpu()
        return []
    # Bytes of all types in one buffer, the longest first, so that each starts where it can be viewed as its type again.
    tensors = sorted(tensors, key=lambda numbered: -numbered[1].element_size())
    buffer = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in tensors])
    host = torch.empty(len(buffer), dtype=torch.uint8, device="cpu", pin_memory=True)
    # On a stream of its own, so that the training does not wait for the copy either.
    stream, event = _copies(device), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        host.copy_(buffer, non_blocking=True)
        event.record(stream)
    buffer.record_stream(stream)
    start = 0
    for number, tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        landing[number] = host[start:stop].view(tensor.dtype).view(tensor.shape)
        start = stop
    return [event]


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies from a device."""
    return torch.cuda.Stream(device)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    kind: Any = type(tree)
    if kind in _AS_THEY_ARE:
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
        if type(part) in _AS_THEY_ARE:  # asked here already: such come by the thousand at a due step
            continue
        mapped = _map(function, part)
        if mapped is not part:
            changed[name] = mapped
    if changed:
        return replace(tree, **changed)
    return tree if _parts(kind) else function(tree)


_AS_THEY_ARE = {str, int, float, bool, type(None), BitCounts, Kept}
"""Counts of these types lie on the host, in memory that nobody else has."""

_UNCOLLECTED = (Uncollected, UncollectedAlive, UncollectedBeyond)
_LEAVES = {Tensor, np.ndarray, _Slot, *_UNCOLLECTED}


@functools.cache
def _parts(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields; () for any other type."""
    if not is_dataclass(kind) or kind is _Slot:
        return ()
    return tuple(part.name for part in fields(kind) if part.init)
