"""The histogram's two passes over a list of CUDA tensors, one launch each. Imported only where triton is installed.

A program reads a stretch of one tensor, adds to that tensor's table of counts and writes its own tallies and moments,
which torch adds up in a fixed order: whole numbers by atomics, floats without, so that results are the same each
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vizlog.compute.bits import LINEAR_BINS

__all__ = ["TYPES", "TritonPass"]

TYPES: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
"""What the kernels read: types that are exact in a float32."""

TILE = 4096
STRETCHES = 2048
"""Programs that a large tensor is shared among: some fifteen for each multiprocessor of a large device."""


@triton.jit  # type: ignore[untyped-decorator]
def _scan(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    addresses,
    owners,
    starts,
    ends,
    table,
    tallies,
    moments,
    bins,
    TYPE: tl.constexpr,  # noqa: N803 -- the custom of triton
    TILE: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    start, end = tl.load(starts + program), tl.load(ends + program)
    values = tl.load(addresses + owner).to(tl.pointer_type(TYPE))
    counts = table + owner * bins
    zeros, nans, pos_infs, neg_infs = start * 0, start * 0, start * 0, start * 0
    finite_count, total, squares = start * 0.0, start * 0.0, start * 0.0
    finite_count, total, squares = finite_count.to(tl.float64), total.to(tl.float64), squares.to(tl.float64)
    low, high = total + float("inf"), total - float("inf")
    for offset in range(start, end, TILE):
        at = offset + tl.arange(0, TILE)
        inside = at < end
        x = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        nonzero = inside & (magnitude != 0)
        upper_bits = (bits >> 17) & 0x7FFF
        # Equal values would wait for one another at one address: a tile of one bin adds once.
        first = tl.min(tl.where(nonzero, upper_bits, 0x7FFF), 0)
        last = tl.max(tl.where(nonzero, upper_bits, 0), 0)
        if first >= last:
            tl.atomic_add(counts + last, tl.sum(nonzero.to(tl.int32), 0), sem="relaxed")
        else:
            tl.atomic_add(counts + upper_bits, 1, mask=nonzero, sem="relaxed")

        zeros += tl.sum((inside & (magnitude == 0)).to(tl.int64), 0)
        nans += tl.sum((inside & (magnitude > 0x7F800000)).to(tl.int64), 0)
        pos_infs += tl.sum((inside & (bits == 0x7F800000)).to(tl.int64), 0)
        neg_infs += tl.sum((inside & (magnitude == 0x7F800000) & (bits < 0)).to(tl.int64), 0)
        finite = inside & (magnitude < 0x7F800000)
        low = tl.minimum(low, tl.min(tl.where(finite, x, float("inf")), 0).to(tl.float64))
        high = tl.maximum(high, tl.max(tl.where(finite, x, float("-inf")), 0).to(tl.float64))
        # Chan, Golub and LeVeque 1979, eq. 2.1, tile by tile.
        n = tl.sum(finite.to(tl.float64), 0)
        tile_total = tl.sum(tl.where(finite, x.to(tl.float64), 0.0), 0)
        tile_mean = tile_total / tl.maximum(n, 1.0)
        deviations = tl.where(finite, x.to(tl.float64) - tile_mean, 0.0)
        delta = tile_mean - total / tl.maximum(finite_count, 1.0)
        between = delta * delta * (finite_count * n / tl.maximum(finite_count + n, 1.0))
        squares += tl.sum(deviations * deviations, 0) + between
        total += tile_total
        finite_count += n
    programs = tl.num_programs(0)
    tl.store(tallies + program, end - start)
    tl.store(tallies + programs + program, zeros)
    tl.store(tallies + 2 * programs + program, nans)
    tl.store(tallies + 3 * programs + program, pos_infs)
    tl.store(tallies + 4 * programs + program, neg_infs)
    tl.store(moments + program, low)
    tl.store(moments + programs + program, high)
    tl.store(moments + 2 * programs + program, total)
    tl.store(moments + 3 * programs + program, squares)


@triton.jit  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    addresses,
    owners,
    starts,
    ends,
    scales,
    firsts,
    table,
    bins,
    TYPE: tl.constexpr,  # noqa: N803 -- the custom of triton
    TILE: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    start, end = tl.load(starts + program), tl.load(ends + program)
    values = tl.load(addresses + owner).to(tl.pointer_type(TYPE))
    scale, first_bin = tl.load(scales + owner), tl.load(firsts + owner)
    counts = table + owner * bins
    for offset in range(start, end, TILE):
        at = offset + tl.arange(0, TILE)
        x = tl.load(values + at, mask=at < end, other=float("nan")).to(tl.float32)
        finite = tl.abs(x) < float("inf")  # neither NaN nor what lies beyond the end
        places = tl.where(finite, tl.floor(x.to(tl.float64) * scale) - first_bin, 0.0).to(tl.int32)
        first = tl.min(tl.where(finite, places, bins), 0)
        last = tl.max(tl.where(finite, places, 0), 0)
        if first >= last:
            tl.atomic_add(counts + last, tl.sum(finite.to(tl.int32), 0), sem="relaxed")
        else:
            tl.atomic_add(counts + places, 1, mask=finite, sem="relaxed")


class TritonPass:
    """Counts T contiguous tensors of one type in `TYPES`, all on one device, fewer than 2**31 elements each."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        plan, programs_of = [], []
        for owner, tensor in enumerate(tensors):
            size = tensor.numel()
            length = TILE * max(1, -(-size // (TILE * STRETCHES)))
            stretches = [(owner, start, min(start + length, size)) for start in range(0, size, length)]
            plan += stretches
            programs_of.append(len(stretches))
        self._type, self._tensors = tensors[0].dtype, len(tensors)
        self._device, self._programs = tensors[0].device, len(plan)
        columns = zip(*plan, strict=True) if plan else ((), (), ())
        packed = torch.tensor([tensor.data_ptr() for tensor in tensors] + programs_of + [n for c in columns for n in c])
        if self._device.type == "cuda":
            packed = packed.pin_memory().to(self._device, non_blocking=True)
        self._addresses, self._programs_of, *self._columns = packed.split([self._tensors] * 2 + [len(plan)] * 3)

    def scan(self, bins: int) -> tuple[Tensor, Tensor, Tensor]:
        """(T, bins) int32 counts by upper bits without zeros, (5, T) int64 tallies and (4, T) float64 moments."""
        table = torch.zeros(self._tensors, bins, dtype=torch.int32, device=self._device)
        tallies = torch.empty(5, self._programs, dtype=torch.int64, device=self._device)
        moments = torch.empty(4, self._programs, dtype=torch.float64, device=self._device)
        self._launch(_scan, table, tallies, moments, bins)
        return table, *self._added(tallies.double(), moments)

    def linear(self, scale: Tensor, first: Tensor) -> Tensor:
        """(T, LINEAR_BINS) int32 finite values in each [k, k+1)/scale, k from `first`; both (T,) float64."""
        table = torch.zeros(self._tensors, LINEAR_BINS, dtype=torch.int32, device=self._device)
        self._launch(_linear, scale, first, table, LINEAR_BINS)
        return table

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        if not self._programs:
            return
        with torch.cuda.device_of(self._addresses):
            kernel[(self._programs,)](self._addresses, *self._columns, *arguments, TYPE=TYPES[self._type], TILE=TILE)

    def _added(self, tallies: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Of each tensor, from its programs' (5, P) tallies and (4, P) moments."""
        finite = tallies[0] - tallies[2:].sum(0)
        sums = self._reduced(torch.cat([tallies, moments[2:3]]), "sum")
        mean = sums[5] / (sums[0] - sums[2:5].sum(0)).clamp(min=1)
        # Sum of squares about the common mean: within the programs, and between them.
        apart = moments[2] / finite.clamp(min=1) - mean[self._columns[0]]
        squares = self._reduced((moments[3] + finite * apart.square())[None], "sum")
        low, high = self._reduced(moments[:1], "min"), self._reduced(moments[1:2], "max")
        return sums[:5].long(), torch.cat([low, high, sums[5:], squares])

    def _reduced(self, data: Tensor, how: str) -> Tensor:
        """(K, T) from (K, P)."""
        initial = {"sum": 0.0, "min": float("inf"), "max": float("-inf")}[how]
        columns = [
            torch.segment_reduce(row, how, lengths=self._programs_of, initial=initial, unsafe=True)
            for row in data.contiguous()
        ]
        return torch.stack(columns)
