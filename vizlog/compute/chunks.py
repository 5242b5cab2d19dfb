"""Any tensor as flat pieces of real numbers, without copying it whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vizlog.compute.bits import GRIDS, Grid

__all__ = ["as_real", "flat_chunks", "grid_of", "in_memory_order"]

WIDE = {torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64, torch.complex128}
"""Types that do not fit in a float32."""


def grid_of(dtype: torch.dtype) -> Grid:
    """The bins that values of this type are exact on."""
    return GRIDS["float64" if dtype in WIDE else "float32"]


def flat_chunks(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """Every element once, in any order, as contiguous pieces (n,), n <= `most`; views where the memory allows it."""
    tensor = in_memory_order(tensor)
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(most)
    elif tensor.numel() <= most:
        yield tensor.reshape(-1).contiguous()  # flat may still mean every second element
    else:
        rows = most * len(tensor) // tensor.numel()
        for part in tensor.split(max(1, rows)):
            yield from flat_chunks(part if rows else part[0], most)


def in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor with its dimensions in an order in which it is contiguous, as a transposed one, if there is one."""
    if tensor.is_contiguous():
        return tensor
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def as_real(chunk: Tensor) -> Tensor:
    """The chunk as float32 or float64, exactly; a view where it is that already."""
    if chunk.is_quantized:
        return chunk.dequantize()
    if chunk.is_complex():
        chunk = (chunk.to(torch.complex64) if chunk.dtype == torch.complex32 else chunk).abs()
    return chunk.to(torch.float64 if chunk.dtype in WIDE else torch.float32).resolve_neg()
