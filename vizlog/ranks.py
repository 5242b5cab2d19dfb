"""Which processes train together, which of them writes, and what they tell each other."""

from __future__ import annotations

import itertools
import logging
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = ["Notice", "Ranks", "is_sharded", "local", "reshard", "sharded_modules", "shards", "summed", "whole"]

_LOG = logging.getLogger("vizlog")


@dataclass(frozen=True)
class Ranks:
    """The processes that train a model together.

    A replicated model is looked at by the writing rank alone, which tells the others nothing. Of a sharded one (any
    parameter is a DTensor) each rank holds a part: all take part, in the same order, whatever fails on one of them.

    Args:
        rank, world: of this process, and how many there are.
        sharded: whether the model is.
        takes_part: whether this rank looks at the model at all.
        group: of the ranks that take part; None is all of them.
        writer: the rank that writes.
    """

    rank: int = 0
    world: int = 1
    sharded: bool = False
    takes_part: bool = True
    group: Any = None
    writer: int = 0

    @staticmethod
    def of(models: Iterable[nn.Module]) -> Ranks:
        """The ranks that these models lie on; for sharded ones all of them call this together.

        Raises:
            ValueError: the model is sharded in a way that vizlog cannot read.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        rank, world = dist.get_rank(), dist.get_world_size()
        models = list(models)
        if world > 1:
            _check_readable(models)
        meshes = {p.device_mesh for model in models for p in model.parameters() if is_sharded(p)}
        if not meshes:
            return Ranks(rank, world, takes_part=rank == 0)
        members = sorted({int(member) for mesh in meshes for member in mesh.mesh.flatten().tolist()})
        if 0 not in members:  # another copy of the model, or a model of its own
            if rank == members[0]:
                _LOG.info("vizlog: rank 0 writes, so the model on ranks %d to %d is not shown", members[0], members[-1])
            return Ranks(rank, world, sharded=True, takes_part=False)
        everyone = len(members) == world
        group = None if everyone else dist.new_group(members, use_local_synchronization=True)
        return Ranks(rank, world, sharded=True, group=group)

    @property
    def writes(self) -> bool:
        """Whether this rank writes what is found."""
        return self.rank == self.writer

    def counts(self, tensor: Tensor) -> bool:
        """Whether this rank's part of a tensor is to be counted, where others may hold copies of it."""
        if not is_sharded(tensor):
            return self.writes
        where = tensor.device_mesh.get_coordinate()
        copies = zip(where or (), tensor.placements, strict=False)
        return where is not None and all(at == 0 for at, placement in copies if not placement.is_shard())

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in the order of ranks, on the rank that writes; elsewhere an empty list."""
        if not self.sharded:
            return [value]
        found: list[Any] | None = [None] * dist.get_world_size(self.group) if self.writes else None
        dist.gather_object(value, found, dst=self.writer, group=self.group)
        return found or []

    def gather_everywhere(self, value: Any) -> list[Any]:
        """What each rank gives, in the order of ranks, on every rank; small plain data."""
        if not self.sharded:
            return [value]
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, value, group=self.group)
        return found

    def broadcast(self, value: Any) -> Any:
        """What the writing rank gives, on every rank; what the others give is ignored.

        Raises:
            TypeError: on every rank alike, where it cannot be pickled.
        """
        if not self.sharded:
            return value
        box: list[Any] = [_pickled(value) if self.writes else None]
        dist.broadcast_object_list(box, src=self.writer, group=self.group)
        if isinstance(box[0], str):
            raise TypeError(f"cannot be sent from rank {self.writer} to the others: {box[0]}")
        return pickle.loads(box[0])  # noqa: S301 (from our own ranks)


class Notice:
    """A line that the writing rank leaves for the others, under a step: none waits, whatever the others do.

    It lies in the store through which the processes have met. Ranks that train in step have all passed the step of a
    notice, and so can all read it, before any of them ends the next one.

    Args:
        rank, world: this process, and how many there are.
    """

    _numbers = itertools.count()

    def __init__(self, rank: int, world: int) -> None:
        self.decides = rank == 0
        self.is_alone = world == 1
        self.posted = False
        self._world = world
        if world > 1:
            # The same number on all ranks, which run the same program; never that of an earlier notice.
            key = f"vizlog/notice/{next(self._numbers)}"
            self._key, self._readers = key, f"{key}/readers"
            self._store = dist.distributed_c10d._get_default_store()  # noqa: SLF001 -- it has no public name
            self._store.add(self._readers, 1)

    def post(self, step: int, line: str) -> None:
        """Leaves the line, unless some rank would never look for it: one that goes on alone would wait for ever."""
        self.posted = True
        if (readers := self._store.add(self._readers, 0)) < self._world:
            _LOG.warning(
                "vizlog: the training would stop at step %d (%s), but only %d of %d ranks have a monitor with "
                "stop_when=: give it on every rank",
                *(step, line, readers, self._world),
            )
            return
        self._store.set(self._key, f"{step} {line}")

    def before(self, step: int) -> str:
        """The line, where it was left at an earlier step; "" where there is none."""
        if self.is_alone or not self._store.check([self._key]):
            return ""
        left_at, _, line = self._store.get(self._key).decode().partition(" ")
        return line if int(left_at) < step else ""


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether other ranks hold parts of this tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # imported by whoever shards; it takes a second
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which may be empty."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def summed(tensor: Tensor) -> Tensor:
    """What is a partial sum on each rank, added up; all ranks must ask for it together."""
    if not is_sharded(tensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, all ranks must ask for it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shards(tensor: Tensor) -> int:
    """Into how many parts a tensor is cut, the same on every rank."""
    if not is_sharded(tensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return int(torch.tensor([size for size, placement in sizes if placement.is_shard()]).prod())


def sharded_modules(models: Iterable[nn.Module]) -> list[FSDPModule]:
    """The modules that `fully_shard` was applied to: their parameters are others inside a forward than outside."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [module for model in models for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def reshard(models: Iterable[nn.Module]) -> None:
    """Outside of forward and backward: every module holds its own shards again, which a forward may have replaced."""
    for module in sharded_modules(models):
        module.reshard()


def _pickled(value: Any) -> bytes | str:
    """Pickled, or why it cannot be."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 -- pickling may raise anything, and the other ranks are waiting
        return f"{type(error).__name__}: {error}"


def _check_readable(models: Iterable[nn.Module]) -> None:
    """Raises where parameters are cut up so that neither their shapes nor their names can be known."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    modules = [module for model in models for module in model.modules()]
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in modules):
        cut_by = "FullyShardedDataParallel: shard it with fully_shard (FSDP2)"
    elif any(hasattr(parameter, "ds_id") for module in modules for parameter in module._parameters.values()):
        cut_by = "DeepSpeed ZeRO-3: shard it with fully_shard (FSDP2), or take ZeRO-2"
    else:
        return
    raise ValueError(f"vizlog cannot look into a model that is cut up by {cut_by}, or leave vizlog out")
