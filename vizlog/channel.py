"""What ranks tell each other: small objects, beside the process groups that training itself uses."""

from __future__ import annotations

import pickle
import zlib
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Channel", "RanksApart"]

_AT_THE_START = timedelta(minutes=10)
_AT_A_STEP = timedelta(minutes=2)
"""How long a rank that does not come is waited for, when a channel is opened and when something is sent.

Less than what the training's own collectives wait.
"""

_opened: Counter[tuple[int, ...]] = Counter()


class RanksApart(RuntimeError):
    """Ranks that must do the same do not: one has left, or does something else."""


class Channel:
    """Carries objects between ranks, to and from the first of them; they lie in main memory and wait for no device.

    It is a gloo group of vizlog's own. Training's groups may be NCCL's, which cannot be given up halfway, and in which
    two ranks that meet with different intentions hang. Here a rank that closes its end, or dies, is noticed by the
    others at once, and one that stays away after a while.

    Args:
        members: all ranks that open it, in rising order.

    Raises:
        RanksApart: not all of them did.
    """

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self._place = members.index(dist.get_rank())
        _opened[members] += 1
        # dist.new_group would have all ranks call it, and names a group like one that is gone, whose addresses remain.
        name = f"vizlog/{zlib.crc32(repr(members).encode())}/{_opened[members]}"
        store = dist.distributed_c10d.PrefixStore(name, dist.distributed_c10d._get_default_store())  # noqa: SLF001 -- has no public name
        try:
            self._group: Any = dist.ProcessGroupGloo(store, self._place, len(members), _AT_THE_START)
        except RuntimeError as error:
            raise RanksApart(
                f"ranks {members[0]} to {members[-1]} hold parts of the model, so all of them must start vizlog at the "
                "same place of the script; where they do, GLOO_SOCKET_IFNAME says which network they find each other "
                f"by: {error}"
            ) from error

    def gather(self, value: Any) -> list[Any]:
        """On the first rank what each gives, in order; elsewhere an empty list."""
        if self._place:
            self._send(pickle.dumps(value), 0)
            return []
        return [value, *(pickle.loads(self._receive(place)) for place in range(1, len(self.members)))]  # noqa: S301

    def broadcast(self, value: Any) -> Any:
        """What the first rank gives, on every rank."""
        if self._place:
            return pickle.loads(self._receive(0))  # noqa: S301 (from our own ranks)
        pickled = pickle.dumps(value)
        for place in range(1, len(self.members)):
            self._send(pickled, place)
        return value

    def close(self) -> None:
        """Closes this end, for good; the others find out when they next ask for this rank."""
        self._group = None  # with the object go its connections

    @property
    def is_closed(self) -> bool:
        """Whether this end is closed."""
        return self._group is None

    def _send(self, message: bytes, place: int) -> None:
        self._carry("send", torch.tensor([len(message)], device="cpu"), place)
        self._carry("send", torch.frombuffer(bytearray(message), dtype=torch.uint8), place)

    def _receive(self, place: int) -> bytes:
        length = torch.empty(1, dtype=torch.int64, device="cpu")
        self._carry("recv", length, place)
        message = torch.empty(int(length), dtype=torch.uint8, device="cpu")
        self._carry("recv", message, place)
        return message.numpy().tobytes()

    def _carry(self, verb: str, tensor: torch.Tensor, place: int) -> None:
        other = self.members[place]
        if self._group is None:
            raise RanksApart(f"this rank has left, and is asked to talk to rank {other}")
        try:
            getattr(self._group, verb)([tensor], place, 0).wait(_AT_A_STEP)
        except RuntimeError as error:
            seconds = _AT_A_STEP.total_seconds()
            raise RanksApart(f"rank {other} has left, or did not come within {seconds:g} s") from error
