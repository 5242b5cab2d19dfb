"""What was counted on a device and has not come to the host: one piece of memory for many tensors, so one copy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizlog.compute import loops
from vizlog.compute.bits import GRIDS, LINEAR_BINS, BitCounts, Grid, Linear

__all__ = ["Together", "Uncollected", "UncollectedAlive", "UncollectedBeyond"]


@dataclass(frozen=True, eq=False)
class Together:
    """What was found of up to T tensors on one grid.

    Args:
        tensors: T.
        memory: (n,) int64, what `pieces` shows.
        wide: whether counters have 64 bits.
        units: for how many units of each tensor there is room, a multiple of 8.
    """

    grid: Literal["float32", "float64"]
    tensors: int
    memory: Tensor
    wide: bool = False
    units: int = 0

    @classmethod
    def empty(cls, grid: Grid, tensors: int, device: torch.device, *, wide: bool = False, units: int = 0) -> Together:
        """Nothing counted yet: all parts are zero."""
        words = sum(map(_words, _parts(grid, tensors, units, wide=wide).values()))
        return cls(grid.name, tensors, torch.zeros(words, dtype=torch.int64, device=device), wide, units)

    def pieces(self) -> dict[str, Tensor]:
        """Views of the memory.

        tallies (5, T) and moments (4, T) are those of `BitCounts`; exponents (T,) and firsts (T,), the number of the
        first bin, are of the counts in bins of equal width, linear (T, LINEAR_BINS), all zero where these were not
        needed; table (T, 2·first_negative) is by upper bits, without zeros. beyond (T,) and alive (T, units) are what
        `UncollectedBeyond` and `UncollectedAlive` tell. done (T,) and needed (T,) are for kernels.
        """
        start, pieces = 0, {}
        for name, part in _parts(GRIDS[self.grid], self.tensors, self.units, wide=self.wide).items():
            shape, dtype = part
            stop = start + _words(part)
            pieces[name] = self.memory[start:stop].view(getattr(torch, np.dtype(dtype).name)).view(shape)
            start = stop
        return pieces

    @functools.cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The same as arrays, once the memory lies on the host."""
        return {name: piece.numpy() for name, piece in self.pieces().items()}

    @functools.cached_property
    def counts(self) -> Sequence[BitCounts]:
        """Of each tensor, once the memory lies on the host."""
        if not self.wide and loops.are_compiled():
            from vizlog.compute.uncollected_numba import collected

            return collected(GRIDS[self.grid], self.arrays)
        return [self._collected(i) for i in range(self.tensors)]

    def _collected(self, i: int) -> BitCounts:
        parts = self.arrays
        tallies, moments = tuple(parts["tallies"][:, i].tolist()), tuple(parts["moments"][:, i].tolist())
        bins, counts = GRIDS[self.grid].occupied(parts["table"][i], tallies[1])
        places = np.flatnonzero(parts["linear"][i] != 0)
        linear = None
        if len(places):
            found = parts["linear"][i][places].astype(np.int64)
            linear = Linear(int(parts["exponents"][i]), places + int(parts["firsts"][i]), found)
        return BitCounts(self.grid, tallies, moments, bins, counts, linear)


_Part: TypeAlias = "tuple[tuple[int, ...], type[np.generic]]"


def _parts(grid: Grid, tensors: int, units: int, *, wide: bool) -> dict[str, _Part]:
    """Shapes and types; as bits.cu has them."""
    counter = np.int64 if wide else np.int32
    return {
        "tallies": ((5, tensors), np.int64),
        "moments": ((4, tensors), np.float64),
        "exponents": ((tensors,), np.int64),
        "firsts": ((tensors,), np.int64),
        "done": ((tensors,), np.int64),
        "needed": ((tensors,), np.int64),
        "beyond": ((tensors,), np.int64),
        "table": ((tensors, 2 * grid.first_negative), counter),
        "linear": ((tensors, LINEAR_BINS), counter),
        "alive": ((tensors, units), np.uint8),
    }


def _words(part: _Part) -> int:
    """The 8 bytes each that a part takes; 32-bit counters are an even number."""
    shape, dtype = part
    return math.prod(shape) * np.dtype(dtype).itemsize // 8


# A captured layer makes one of each, so they are not frozen, which takes several times as long.


@dataclass(eq=False, slots=True)
class Uncollected:
    """The counts of one of the tensors."""

    together: Together
    index: int
    note: str = ""

    def collected(self) -> BitCounts:
        """The same, once they lie on the host."""
        counts = self.together.counts[self.index]
        counts.note = self.note
        return counts


@dataclass(eq=False, slots=True)
class UncollectedAlive:
    """Which of its units were ever other than zero: as `health.alive`."""

    together: Together
    index: int
    units: int

    def collected(self) -> Tensor:
        """(units,) bool, once it lies on the host."""
        return torch.from_numpy(self.together.arrays["alive"][self.index, : self.units] != 0)


@dataclass(eq=False, slots=True)
class UncollectedBeyond:
    """How many of its values lie at the limits or beyond: as `health.saturated`."""

    together: Together
    index: int

    def collected(self) -> Tensor:
        """0-d int64, once it lies on the host."""
        return torch.tensor(int(self.together.arrays["beyond"][self.index]), device="cpu")
