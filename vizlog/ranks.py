"""Which processes train together, which of them writes, and what they tell each other."""

from __future__ import annotations

import itertools
import math
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from vizlog.channel import Channel
from vizlog.messages import LOG

if TYPE_CHECKING:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = [
    "GIVEN_UP",
    "CommunicatesError",
    "FailedElsewhereError",
    "Notice",
    "Ranks",
    "has_memory",
    "is_elsewhere",
    "is_given_up",
    "is_sharded",
    "local",
    "reshard",
    "sharded_modules",
    "shards",
    "summed",
    "whole",
]

GIVEN_UP = "its memory has been given up"
"""Why nothing is measured of a tensor that `is_given_up`."""

_RUNS, _DONE = "a forward follows", "no forward follows"


class CommunicatesError(RuntimeError):
    """A model that is run on one rank alone would wait for the others."""


class FailedElsewhereError(RuntimeError):
    """Another rank failed, so that this one must not go on: it would wait for that one."""

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"failed on rank {rank}: {why}")
        self.rank, self.why = rank, why


@dataclass(frozen=True)
class Ranks:
    """The processes that train a model together.

    A replicated model is looked at by the writing rank alone, which tells the others nothing. Of a sharded one (any
    parameter is a DTensor) each rank holds a part: all take part, in the same order, whatever fails on one of them.

    Args:
        rank, world: of this process, and how many there are.
        sharded: whether the model is.
        takes_part: whether this rank looks at the model at all.
        channel: between the ranks that hold parts; None where there is but one.
    """

    rank: int = 0
    world: int = 1
    sharded: bool = False
    takes_part: bool = True
    channel: Channel | None = None

    @staticmethod
    def of(models: Iterable[nn.Module]) -> Ranks:
        """The ranks that these models lie on; for sharded ones all of them call this together.

        Raises:
            ValueError: the model is sharded in a way that vizlog cannot read.
            RanksApart: it is sharded, and not all of its ranks called this.
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
        members = tuple(sorted({int(member) for mesh in meshes for member in mesh.mesh.flatten().tolist()}))
        if 0 not in members:  # another copy of the model, or a model of its own
            if rank == members[0]:
                LOG.info("vizlog: rank 0 writes, so the model on ranks %d to %d is not shown", members[0], members[-1])
            return Ranks(rank, world, sharded=True, takes_part=False)
        if rank == 0 and _is_tensor_parallel(models):
            LOG.warning(
                "vizlog: the model is tensor-parallel: what passes between its split layers is rank 0's share of it"
            )
        return Ranks(rank, world, sharded=True, channel=Channel(members) if len(members) > 1 else None)

    @property
    def writes(self) -> bool:
        """Whether this rank writes what is found."""
        return self.rank == 0

    def counts(self, tensor: Tensor) -> bool:
        """Whether this rank's part of a tensor is to be counted, where others may hold copies of it."""
        if not is_sharded(tensor):
            return self.writes
        mesh = tensor.device_mesh
        where = mesh.get_coordinate()
        if where is None or not (mesh.mesh == 0).any():  # the ranks of another mesh hold another copy
            return False
        return all(at == 0 for at, placement in zip(where, tensor.placements, strict=True) if not _cuts(placement))

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in the order of ranks, on the rank that writes; elsewhere an empty list."""
        return [value] if self.channel is None else self.channel.gather(value)

    def gather_everywhere(self, value: Any) -> dict[int, Any]:
        """Rank -> what it gives, on every rank; small plain data."""
        if self.channel is None:
            return {self.rank: value}
        found: list[Any] = self.channel.broadcast(self.channel.gather(value))
        return dict(zip(self.channel.members, found, strict=True))

    def broadcast(self, value: Any) -> Any:
        """What the writing rank gives, on every rank; what the others give is ignored.

        Raises:
            TypeError: on every rank alike, where it cannot be pickled.
        """
        if self.channel is None:
            return value
        found = self.channel.broadcast(_pickled(value) if self.writes else None)
        if isinstance(found, str):
            raise TypeError(f"cannot be sent from rank 0 to the others: {found}")
        return pickle.loads(found)  # noqa: S301 (from our own ranks)

    @contextmanager
    def abreast(self) -> Iterator[Callable[[], None]]:
        """Inside, ranks run a sharded model together: call what this gives before each forward.

        Where one fails before its next forward the others stop at theirs, instead of waiting for it inside.

        Raises:
            FailedElsewhereError: from the call before a forward or at the end, where another rank failed.
        """
        parted = False

        def meet(intention: str) -> None:
            nonlocal parted
            if parted:
                return  # a last time all have heard what the others do
            heard = self.gather_everywhere(intention)
            parted = len(set(heard.values())) > 1
            if parted:
                raise FailedElsewhereError(*_other(heard, self.rank))

        try:
            yield lambda: meet(_RUNS)
        except Exception as error:
            with suppress(FailedElsewhereError):
                meet(f"{type(error).__name__}: {error}")
            raise
        meet(_DONE)

    def alone(self) -> AbstractContextManager[Any]:
        """Inside, what would wait for other ranks raises CommunicatesError where they do not take part."""
        if self.world == 1 or self.sharded:
            return nullcontext()
        return _NoCollectives()  # type: ignore[no-untyped-call]  # torch's own has no types

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what ranks do together: one that raises leaves, since it may not come to where the others are."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Takes no part any more; whoever waits for this rank stops waiting."""
        if self.channel is not None:
            self.channel.close()

    @property
    def left(self) -> bool:
        """Whether this rank has left."""
        return self.channel is not None and self.channel.is_closed


class _NoCollectives(TorchDispatchMode):
    """Sees each operator that this thread calls, and raises at those that talk to other ranks."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in _COLLECTIVES:
            raise CommunicatesError(
                f"it talks to other ranks ({func.__name__}), which are elsewhere: a replicated model is run on one rank"
            )
        return func(*args, **(kwargs or {}))


_COLLECTIVES = {"c10d", "_c10d_functional", "_c10d_functional_autograd"}


def _other(heard: Mapping[int, str], rank: int) -> tuple[int, str]:
    """A rank that does something else than this one, and what; one that failed before one that did not."""
    others = [(other, what) for other, what in heard.items() if what != heard[rank]]
    return min(others, key=lambda said: said[1] in (_RUNS, _DONE))


class Notice:
    """A line that the writing rank leaves for the others, under a step: none waits, whatever the others do.

    It lies in the store through which the processes have met. Ranks that train in step have all passed the step of a
    notice, and so can all read it, before any of them ends the next one.

    Args:
        world: how many processes there are.
    """

    _numbers = itertools.count()

    def __init__(self, world: int) -> None:
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
            LOG.warning(
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
    if is_sharded(tensor):
        return tensor.full_tensor()
    return tensor.wait() if _is_under_way(tensor) else tensor


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether other ranks hold parts of this tensor, or are still sending them."""
    return is_sharded(tensor) or _is_under_way(tensor)


def _is_under_way(tensor: Tensor) -> TypeGuard[AsyncCollectiveTensor]:
    module = sys.modules.get("torch.distributed._functional_collectives")
    return module is not None and isinstance(tensor, module.AsyncCollectiveTensor)


def shards(tensor: Tensor) -> int:
    """Into how many parts a tensor is cut, the same on every rank."""
    if not is_sharded(tensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if _cuts(placement))


def sharded_modules(models: Iterable[nn.Module]) -> list[FSDPModule]:
    """The modules that `fully_shard` was applied to: their parameters are others inside a forward than outside."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not fsdp.FSDPModule.__subclasses__():  # one is made of each class that is sharded
        return []
    return [module for model in models for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def reshard(models: Iterable[nn.Module]) -> None:
    """Outside of forward and backward: every module holds its own shards again, which a forward may have replaced."""
    for module in sharded_modules(models):
        module.reshard()


def _cuts(placement: Any) -> bool:
    """Whether a tensor is cut along this dimension of its mesh; not by `is_shard`, which leaves out strided shards."""
    return not (placement.is_replicate() or placement.is_partial())


def _is_tensor_parallel(models: Iterable[nn.Module]) -> bool:
    """Whether parameters are cut that no forward puts together again."""
    models = list(models)
    cuts = [[at for at in p.placements if _cuts(at)] for m in models for p in m.parameters() if is_sharded(p)]
    return any(len(cut) > (1 if sharded_modules(models) else 0) for cut in cuts)


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


def is_given_up(tensor: Tensor) -> bool:
    """Whether this is a plain tensor that should have memory and has none, as of what is offloaded between its uses."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not is_lazy(tensor)
    return plain and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta) and not has_memory(tensor)


def has_memory(tensor: Tensor) -> bool:
    """Whether the values of a strided tensor lie in memory."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta or is_lazy(tensor):
        return False
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.untyped_storage().nbytes() >= needed
