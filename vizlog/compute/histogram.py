"""A histogram is the upper bits of a float, counted: tensors to counts, and counts to the record that is shown."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizlog.compute.bits import GRIDS, BitCounts, Grid, Linear, fine, linear_exponent, settled, steps
from vizlog.compute.chunks import as_real, flat_chunks, grid_of
from vizlog.records import QUANTILES, Histogram

__all__ = ["BitCounts", "Uncountable", "count_bits", "count_each", "fine", "histogram", "prepare"]

CHUNK = 1 << 17
"""Elements converted or copied at a time: at most 1 MB of each form."""

MOST = 1 << 31
"""Elements counted in one table of 32-bit counters."""

ALWAYS_LINEAR = 1 << 14
"""Elements up to which the second pass is always made: interpolated bins would show the noise of few values each."""

TOLERABLE_ERROR = 0.005
"""Total variation that interpolation may be expected to cost before the second pass is made."""


class Uncountable(ValueError):
    """A tensor has no values that can be counted; the message says why."""


def count_bits(tensor: Tensor) -> BitCounts:
    """Counts the values of one tensor of any type, shape and memory layout, without changing or keeping it.

    On a CPU one pass, and a second one where bins of equal width are needed to show the distribution well. On a CUDA
    device small tensors come back and nothing waits for the device. Complex values are counted by magnitude,
    quantised ones dequantised, of a sparse tensor the implicit zeros too, of a DTensor this rank's shard. At most 64
    MB of memory beside the tensor.

    Raises:
        Uncountable: there is nothing to count (meta, fake, uninitialised), or no way to read it.
    """
    return count_each([tensor])[0]


def count_each(tensors: Sequence[Tensor]) -> list[BitCounts]:
    """`count_bits` of each; on a CUDA device in few launches.

    Raises:
        Uncountable: one of them cannot be counted.
    """
    plain = [_plain(tensor) for tensor in tensors]
    try:
        if any(_stays_on_device(tensor) for tensor in plain):
            return _count_mixed(plain)
        return [_count_on_cpu(tensor) for tensor in plain]
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:200]  # torch lists every kernel it has, and this goes into captions
        raise Uncountable(f"no way to read the values: {reason}") from error


def prepare() -> None:
    """Makes the first count as fast as the next: loads what numba compiled, or compiles it (seconds, only once)."""
    for dtype in (torch.float32, torch.float64):
        count_bits(torch.arange(4, dtype=dtype))


# any tensor: what its values are, and where


def _plain(tensor: Tensor) -> Tensor:
    """The tensor that holds the values, without autograd."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        tensor = _unwrapped(tensor)
    if tensor.is_meta:
        raise Uncountable("a meta tensor has no values")
    return tensor.detach()


def _unwrapped(tensor: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(tensor, FakeTensor):
        raise Uncountable("a fake tensor has no values")
    if torch.nn.parameter.is_lazy(tensor):
        raise Uncountable("a lazy parameter that is not initialised yet has no values")
    for attribute in ("to_local", "trigger_wait"):  # a DTensor; the result of a collective that is under way
        if hasattr(tensor, attribute):
            tensor = getattr(tensor.detach(), attribute)()
    return tensor


def _stays_on_device(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and tensor.layout == torch.strided and not tensor.is_nested


def _count_mixed(tensors: Sequence[Tensor]) -> list[BitCounts]:
    from vizlog.compute.bits_torch import count_on_device

    on_device = [tensor for tensor in tensors if _stays_on_device(tensor)]
    counted = iter(count_on_device(on_device))
    return [next(counted) if _stays_on_device(tensor) else _count_on_cpu(tensor) for tensor in tensors]


# on a CPU


class _Pass(Protocol):
    """Tables that values are counted in, kept for the next tensor; for one thread."""

    def count(self, chunks: Iterable[NDArray[Any]]) -> BitCounts: ...

    def interpolation_error(self, counts: BitCounts) -> float: ...

    def count_linear(self, chunks: Iterable[NDArray[Any]], exponent: int, first: int) -> Linear: ...


_of_this_thread = threading.local()


def _new_pass(grid: Grid) -> _Pass:
    if importlib.util.find_spec("numba"):
        from vizlog.compute.bits_numba import CompiledPass

        return CompiledPass(grid)
    from vizlog.compute.bits_numpy import PlainPass

    return PlainPass(grid)


def _count_on_cpu(tensor: Tensor) -> BitCounts:
    if tensor.layout != torch.strided or tensor.is_nested:
        return _count_parts(tensor)
    if tensor.numel() > MOST:
        longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
        return _sum([_count_on_cpu(half) for half in tensor.tensor_split(2, longest)])
    tensor = tensor.cpu()
    grid = grid_of(tensor.dtype)
    # Out of its place while in use: what an interrupt leaves half counted is never used again.
    counting = _of_this_thread.__dict__.pop(grid.name, None) or _new_pass(grid)
    counts = counting.count(_arrays(tensor))
    if counts.finite and (_always_linear(tensor) or counting.interpolation_error(counts) > TOLERABLE_ERROR):
        exponent = linear_exponent(counts.min, counts.max)
        first = math.floor(math.ldexp(counts.min, -exponent))
        counts = replace(counts, linear=counting.count_linear(_arrays(tensor), exponent, first))
    setattr(_of_this_thread, grid.name, counting)
    return replace(counts, note="magnitudes of complex values") if tensor.is_complex() else counts


def _arrays(tensor: Tensor) -> Iterable[NDArray[Any]]:
    if tensor.dtype in (torch.float32, torch.float64) and tensor.is_contiguous() and not tensor.is_neg():
        return (tensor.view(-1).numpy(),)
    return (as_real(chunk).numpy() for chunk in flat_chunks(tensor, CHUNK))


def _always_linear(tensor: Tensor) -> bool:
    """Few values, or of a type so coarse that they sit on few points of a bin, where nothing can be interpolated."""
    return tensor.numel() <= ALWAYS_LINEAR or tensor.dtype not in (torch.float32, torch.float64)


def _count_parts(tensor: Tensor) -> BitCounts:
    """Of a nested tensor the parts; of a sparse one the values and the zeros that are not stored."""
    if tensor.is_nested:
        parts = [count_bits(part) for part in tensor.unbind()]
        return _sum(parts) if parts else _zeros(0, tensor.dtype)
    if tensor.layout == torch.sparse_coo:
        values = tensor.coalesce().values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        values = tensor.values()
    else:
        raise Uncountable(f"the layout {tensor.layout} cannot be read without a dense copy")
    return _count_on_cpu(values) + _zeros(tensor.numel() - values.numel(), tensor.dtype)


def _sum(parts: Sequence[BitCounts]) -> BitCounts:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _zeros(number: int, dtype: torch.dtype) -> BitCounts:
    """The counts of this many zeros."""
    moments = np.zeros(4) if number else np.array([np.inf, -np.inf, 0.0, 0.0])
    bins = np.zeros(int(number > 0), np.int64)
    linear = Linear(linear_exponent(0.0, 0.0), bins, bins + number)
    return BitCounts(grid_of(dtype).name, np.array([number, number, 0, 0, 0]), moments, bins, bins + number, linear)


# what is shown


def histogram(tag: str, counts: BitCounts, *, caption: str = "", bins: int = 64) -> Histogram:
    """The record that shows these counts: at most `bins` linear bins from the minimum to the maximum.

    Where the counts have linear bins, an edge is moved onto one of theirs, by at most 1/4096 of the range, and counts
    are exact; else they are interpolated, to about half a percent of total variation. Fewer bins are shown where
    float32 could not tell their edges apart. Where all values are equal, they stand in the middle of a range around
    them; without a finite value the bins are empty. A quantile is the value of that rank, to the width of a bin.
    """
    counts = settled(counts)
    edges = _shown_edges(counts, bins)
    points, below = _cumulative(counts)
    below_edges = _interpolated(edges, points, below)
    below_edges[[0, -1]] = 0, counts.finite  # the last bin is closed, and edges may end where floats end
    shown = np.diff(below_edges)
    if counts.linear is not None or counts.min == counts.max:
        shown = np.rint(shown).astype(np.int64)
    ranks = [q * (counts.finite - 1) + 0.5 for q in QUANTILES] if counts.finite else []
    values = np.clip(_interpolated(np.array(ranks), below, points), counts.min, counts.max)
    return Histogram(
        tag,
        edges,
        shown,
        counts.count,
        counts.zeros,
        counts.nans,
        counts.pos_infs,
        counts.neg_infs,
        counts.min,
        counts.max,
        counts.mean,
        counts.std,
        dict(zip(QUANTILES, values.tolist(), strict=False)),
        caption="; ".join(part for part in (caption, counts.note) if part),
    )


def _shown_edges(counts: BitCounts, bins: int) -> NDArray[np.float64]:
    """(B+1,) finite, and rising in float32 too, which is how event files keep them; B <= bins."""
    low, high = (counts.min, counts.max) if counts.finite else (0.0, 0.0)
    shown = bins
    while shown and low < high:
        fractions = np.linspace(0.0, 1.0, shown + 1)
        edges = low * (1 - fractions) + high * fractions
        if counts.linear is not None:
            exponent = int(counts.linear.exponent)
            with np.errstate(over="ignore"):  # beyond the last edge, which is set next
                edges = np.ldexp(np.rint(np.ldexp(edges, -exponent)), exponent)
        edges[[0, -1]] = low, high
        if _rising(edges):
            return edges
        shown //= 2
    return _around(low / 2 + high / 2, bins)


def _rising(edges: NDArray[np.float64]) -> bool:
    if np.abs(edges).max() <= np.finfo(np.float32).max:
        edges = edges.astype(np.float32)
    return bool((np.diff(edges) > 0).all())


def _around(value: float, bins: int) -> NDArray[np.float64]:
    """(B+1,) edges with `value` in the middle bin, or at the end where floats end."""
    real = np.float32 if abs(value) <= np.finfo(np.float32).max else np.float64
    limit = float(np.finfo(real).max)
    reach = max(abs(value) / 2, 1e-37) if value else 0.5
    return np.linspace(max(value - reach, -limit), min(value + reach, limit), bins + bins % 2)


def _cumulative(counts: BitCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All that is known exactly: points (K,), rising, and how many finite values lie below each."""
    if not counts.finite:
        return np.zeros(2), np.zeros(2)
    ends, below = steps(np.asarray(counts.bins), np.asarray(counts.counts))
    points, belows = [GRIDS[counts.grid].lower_edges(ends)], [below]
    if counts.linear is not None:
        ends, below = steps(np.asarray(counts.linear.bins), np.asarray(counts.linear.counts))
        with np.errstate(over="ignore"):  # clipped next
            points.append(np.ldexp(ends.astype(np.float64), int(counts.linear.exponent)))
        belows.append(below)
    x, y = np.concatenate(points).clip(counts.min, counts.max), np.concatenate(belows)
    order = np.lexsort((y, x))
    return np.asarray(x[order]), y[order].astype(np.float64)


def _interpolated(at: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) y at each of `at`, between the last point at or before it and the next; x may repeat, and be 1e308 apart."""
    k = np.searchsorted(x, at, side="right").clip(1, len(x) - 1)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        between = y[k - 1] + (at - x[k - 1]) / (x[k] - x[k - 1]) * (y[k] - y[k - 1])
    return np.asarray(np.where(at < x[0], y[0], np.where(at >= x[-1], y[-1], between)))
