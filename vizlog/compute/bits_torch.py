"""The histogram on a device, by our kernels where torch can compile them and else in plain torch, never waiting for it.

Nothing here may depend on a value that is on the device: no `item`, `nonzero`, boolean mask, `unique` or `bincount`.
Counts are whole numbers, so the order in which a GPU adds them does not matter. Many small tensors are laid end to
end and counted in the same launches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vizlog.compute.bits import LINEAR_BINS, MOST, Grid
from vizlog.compute.bits_cuda import TOGETHER, can_count, count_by_kernel, kernels_for
from vizlog.compute.chunks import as_real, flat_chunks, grid_of
from vizlog.compute.uncollected import Together, Uncollected

__all__ = ["count_on_device"]

ROW = 1 << 20
"""Elements in flight at a time: with their 64-bit places and flags at most 64 MB."""

TABLES = 64
"""Tensors in flight at a time: a float32 table by upper bits is 128 KB."""


def count_on_device(tensors: Sequence[Tensor]) -> list[Uncollected]:
    """Counts each, in the order given, on the device that it lies on; none of them is meta or sparse."""
    if len(tensors) == 1 and (kernels := kernels_for(tensors[0])):
        return [kernels.look(tensors[0])[0]]
    kinds: dict[tuple[torch.device, Grid | None], list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, None if can_count(tensor) else grid_of(tensor.dtype)), []).append(i)
    results: dict[int, Uncollected] = {}
    for (_, grid), members in kinds.items():
        sizes = [tensors[i].numel() for i in members]
        groups = (
            _groups(members, sizes, sys.maxsize, TOGETHER) if grid is None else _groups(members, sizes, ROW, TABLES)
        )
        for group in groups:
            chosen = [tensors[i] for i in group]
            together = count_by_kernel(chosen) if grid is None else _count_together(chosen, grid)
            for index, (i, tensor) in enumerate(zip(group, chosen, strict=True)):
                note = "magnitudes of complex values" if tensor.is_complex() else ""
                results[i] = Uncollected(together, index, note)
    return [results[i] for i in range(len(tensors))]


def _groups(indices: Sequence[int], sizes: Sequence[int], most: int, tables: int) -> Iterator[list[int]]:
    """Neighbours of at most `most` elements and `tables` tensors together; a larger tensor stands alone."""
    group: list[int] = []
    filled = 0
    for index, size in zip(indices, sizes, strict=True):
        if group and (filled + size > most or len(group) == tables):
            yield group
            group, filled = [], 0
        group.append(index)
        filled += size
    if group:
        yield group


def _count_together(tensors: Sequence[Tensor], grid: Grid) -> Together:
    table, tallies, moments = _scan(tensors, grid)
    low, high = (moment.where(_finite(tallies) > 0, 0.0) for moment in moments[:2])
    exponents = _linear_exponent(low, high)
    scale = _power_of_two(-exponents)
    firsts = (low * scale).floor()
    found = {"tallies": tallies, "moments": moments, "exponents": exponents, "firsts": firsts}
    found |= {"table": table, "linear": _linear(tensors, scale, firsts)}
    wide = any(tensor.numel() >= MOST for tensor in tensors)
    together = Together.empty(grid, len(tensors), table.device, wide=wide)
    pieces = together.pieces()
    for name, what in found.items():
        pieces[name].copy_(what)
    return together


def _scan(tensors: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 2·first_negative) counts by upper bits without zeros, (5, T) int64 tallies and (4, T) float64 moments."""
    number, device, bins = len(tensors), tensors[0].device, 2 * grid.first_negative
    table = torch.zeros(number * bins, dtype=torch.int64, device=device)
    tallies = torch.zeros(5, number, dtype=torch.int64, device=device)
    moments = torch.zeros(4, number, dtype=torch.float64, device=device)
    moments[0], moments[1] = float("inf"), float("-inf")
    for row in _rows(tensors):
        patterns = row.values.view(torch.int64 if grid.name == "float64" else torch.int32)
        upper_bits = (patterns >> grid.shift).bitwise_and_(bins - 1).long()
        table.scatter_add_(0, row.owner * bins + upper_bits, (row.values != 0).long())
        moments = _added_moments(_finite(tallies), moments, *_moments(row))
        tallies += _tallies(row)
    return table.view(number, bins), tallies, moments


def _linear(tensors: Sequence[Tensor], scale: Tensor, first: Tensor) -> Tensor:
    """(T, LINEAR_BINS) finite values in each [k, k+1)/scale, k from `first`; both (T,) float64."""
    bins = LINEAR_BINS + 1  # the last one takes what is not finite
    table = torch.zeros(len(tensors) * bins, dtype=torch.int64, device=scale.device)
    for row in _rows(tensors):
        places = (row.values.double() * scale[row.owner]).floor() - first[row.owner]
        places = places.where(row.finite, float(LINEAR_BINS)).long()
        table.scatter_add_(0, row.owner * bins + places, torch.ones_like(places))
    return table.view(-1, bins)[:, :-1]


@dataclass
class _Row:
    """Values of T tensors, laid end to end."""

    values: Tensor  # (n,) float32 or float64
    owner: Tensor  # (n,) int64, which tensor each is of; (1,) where there is one alone
    lengths: Tensor  # (T,) int64
    finite: Tensor  # (n,) bool

    def reduce(self, data: Tensor, how: Literal["sum", "min", "max"]) -> Tensor:
        """(T,) "sum", "min" or "max" of each tensor's part of `data` (n,)."""
        if len(self.lengths) == 1:
            match how:
                case "min":
                    return data.amin(0, keepdim=True)
                case "max":
                    return data.amax(0, keepdim=True)
                case "sum":
                    return data.sum(0, keepdim=True)
        initial = {"sum": 0.0, "min": float("inf"), "max": float("-inf")}[how]
        return torch.segment_reduce(data, how, lengths=self.lengths, initial=initial, unsafe=True)


def _rows(tensors: Sequence[Tensor]) -> Iterator[_Row]:
    """All tensors in one row, or the only one in several."""
    device = tensors[0].device
    if len(tensors) > 1:
        pieces = [as_real(piece) for tensor in tensors for piece in flat_chunks(tensor, ROW)]
        lengths = torch.tensor([tensor.numel() for tensor in tensors], device="cpu")
        if device.type == "cuda":
            lengths = lengths.pin_memory().to(device, non_blocking=True)
        values = torch.cat(pieces)
        owner = torch.arange(len(tensors), device=device).repeat_interleave(lengths, output_size=len(values))
        yield _Row(values, owner, lengths, values.isfinite())
        return
    for piece in flat_chunks(tensors[0], ROW):
        values = as_real(piece)
        if len(values):
            lengths = torch.full((1,), len(values), device=device)
            yield _Row(values, torch.zeros(1, dtype=torch.int64, device=device), lengths, values.isfinite())


def _finite(tallies: Tensor) -> Tensor:
    return tallies[0] - tallies[2:].sum(0)


def _tallies(row: _Row) -> Tensor:
    """(5, T) elements, zeros, NaNs, +infs, −infs."""
    flags = (row.values == 0, row.values.isnan(), row.values.isposinf(), row.values.isneginf())
    counted = [row.reduce(flag.double(), "sum").long() for flag in flags]
    return torch.stack([row.lengths, *counted])


def _moments(row: _Row) -> tuple[Tensor, Tensor]:
    """(T,) finite values, and their (4, T) minimum, maximum, sum and sum of squares about the mean."""
    finite = row.reduce(row.finite.double(), "sum")
    low = row.reduce(row.values.where(row.finite, float("inf")).double(), "min")
    high = row.reduce(row.values.where(row.finite, float("-inf")).double(), "max")
    values = row.values.where(row.finite, 0.0).double()
    total = row.reduce(values, "sum")
    mean = total / finite.clamp(min=1)
    squares = row.reduce((values - mean[row.owner]).where(row.finite, 0.0).square(), "sum")
    return finite, torch.stack([low, high, total, squares])


def _added_moments(n_a: Tensor, a: Tensor, n_b: Tensor, b: Tensor) -> Tensor:
    """As `bits.added_moments`, for T tensors, any of which may have no values yet."""
    both = (n_a + n_b).clamp(min=1)
    delta = b[2] / n_b.clamp(min=1) - a[2] / n_a.clamp(min=1)
    between = (delta.square() * (n_a * (n_b / both))).where((n_a > 0) & (n_b > 0), 0.0)
    return torch.stack([torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1]), a[2] + b[2], a[3] + b[3] + between])


def _linear_exponent(low: Tensor, high: Tensor) -> Tensor:
    """As `bits.linear_exponent`."""
    span, largest = high / 2 - low / 2, torch.maximum(low.abs(), high.abs())
    exponent = (span.frexp().exponent + 2 - LINEAR_BINS.bit_length()).where(span > 0, -1021)
    exponent = torch.maximum(exponent, largest.frexp().exponent - 30).clamp(min=-1021)
    scale = _power_of_two(-exponent)
    return exponent + ((high * scale).floor() - (low * scale).floor() >= LINEAR_BINS)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Exactly 2**exponent, by writing a float64's exponent bits; between −1022 and 1023."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
