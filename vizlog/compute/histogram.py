"""A histogram is the upper bits of a float, counted: tensors to counts, and counts to the record that is shown."""

from __future__ import annotations

import functools
import importlib.util
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizlog.compute.bits import GRIDS, BitCounts, Grid, Linear, fine, linear_exponent, settled
from vizlog.compute.chunks import as_real, flat_chunks, grid_of
from vizlog.messages import LOG
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

_WORTH_A_WORD = 3.0
"""Seconds that nobody waits without wondering why; what was compiled before loads in one."""


def _new_pass(grid: Grid) -> _Pass:
    if importlib.util.find_spec("numba"):
        began = time.monotonic()
        from vizlog.compute.bits_numba import CompiledPass

        if (took := time.monotonic() - began) > _WORTH_A_WORD:
            LOG.info("vizlog compiled its histogram, which took %.0f s; it is kept for the next run", took)
        return CompiledPass(grid)
    from vizlog.compute.bits_numpy import PlainPass

    return PlainPass(grid)


def _count_on_cpu(tensor: Tensor) -> BitCounts:
    if tensor.layout != torch.strided or tensor.is_nested:
        return _count_parts(tensor)
    if tensor.numel() > MOST:
        longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
        return _sum([_count_on_cpu(half) for half in tensor.tensor_split(2, longest)])
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    grid, whole = grid_of(tensor.dtype), _array(tensor)
    # Out of its place while in use: what an interrupt leaves half counted is never used again.
    counting = _of_this_thread.__dict__.pop(grid.name, None) or _new_pass(grid)
    counts = counting.count(_chunks(tensor) if whole is None else (whole,))
    linear = None
    if counts.finite and (_always_linear(tensor) or counting.interpolation_error(counts) > TOLERABLE_ERROR):
        low, high = counts.moments[:2].tolist()
        exponent = linear_exponent(low, high)
        first = math.floor(math.ldexp(low, -exponent))
        linear = counting.count_linear(_chunks(tensor) if whole is None else (whole,), exponent, first)
    setattr(_of_this_thread, grid.name, counting)
    note = "magnitudes of complex values" if tensor.is_complex() else ""
    return replace(counts, linear=linear, note=note) if linear is not None or note else counts


def _array(tensor: Tensor) -> NDArray[Any] | None:
    """(n,) the values where they lie, or None where they must be converted or copied to be counted."""
    if tensor.dtype not in (torch.float32, torch.float64) or not tensor.is_contiguous() or tensor.is_neg():
        return None
    array: NDArray[Any] = tensor.numpy().reshape(-1)
    return array


def _chunks(tensor: Tensor) -> Iterable[NDArray[Any]]:
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
    finite, low, high = counts.finite, counts.min, counts.max
    known = _known(counts)
    edges = _shown_edges(counts, bins)
    # Linear bins come last, and edges stand on theirs; the last shown bin is closed, and edges may end where floats do.
    below = known[-1].below(edges) if finite else np.zeros(len(edges))
    below[0], below[-1] = 0, finite
    shown = below[1:] - below[:-1]
    if counts.linear is not None or low == high:
        shown = np.rint(shown).astype(np.int64)
    return Histogram(
        tag,
        edges,
        shown,
        counts.count,
        counts.zeros,
        counts.nans,
        counts.pos_infs,
        counts.neg_infs,
        low,
        high,
        counts.mean,
        counts.std,
        dict(zip(QUANTILES, _values_at(known, finite, low, high), strict=True)) if finite else {},
        caption="; ".join(part for part in (caption, counts.note) if part),
    )


class _Known:
    """Bins (K,), rising, from `starts` to `stops`, and how many of the finite values lie below either end."""

    def __init__(self, starts: NDArray[np.float64], stops: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.starts, self.stops, self.counts = starts, stops, counts
        self.after = np.cumsum(counts)

    def below(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) how many values lie below each of `at`; within a bin they are taken to be spread evenly."""
        k = np.maximum(np.searchsorted(self.starts, at, side="right") - 1, 0)
        starts, counts = self.starts[k], self.counts[k]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # bins may be 1e308 wide, or of no width
            share = (at - starts) / (self.stops[k] - starts)
        inside = np.where(at < starts, 0.0, np.where(at < self.stops[k], share, 1.0))
        return np.asarray(self.after[k] - counts * (1 - inside))

    def around(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, N) of the bin that holds each rank: start, stop, and how many values lie below either."""
        k = np.minimum(np.searchsorted(self.after, ranks, side="right"), len(self.after) - 1)
        return np.stack([self.starts[k], self.stops[k], self.after[k] - self.counts[k], self.after[k]])


def _known(counts: BitCounts) -> list[_Known]:
    """The bins that tell something of these counts: fine ones, and linear ones where there are such."""
    if not counts.finite:
        return []
    grid, bins = GRIDS[counts.grid], np.asarray(counts.bins)
    ends = [(grid.lower_edges(bins), grid.lower_edges(bins + 1), np.asarray(counts.counts))]
    if counts.linear is not None:
        exponent, bins = int(counts.linear.exponent), np.asarray(counts.linear.bins)
        with np.errstate(over="ignore"):  # clipped next
            starts, stops = np.ldexp(bins.astype(np.float64), exponent), np.ldexp(bins + 1.0, exponent)
        ends.append((starts, stops, np.asarray(counts.linear.counts)))
    low, high = counts.min, counts.max
    return [_Known(np.maximum(starts, low), np.minimum(stops, high), found) for starts, stops, found in ends]


def _values_at(known: Sequence[_Known], finite: int, low: float, high: float) -> list[float]:
    """The values at `QUANTILES`: each lies in every bin that holds its rank, so in what these have in common."""
    ranks = _SHARES * (finite - 1) + 0.5
    start, stop, below, after = known[0].around(ranks)
    for other in known[1:]:
        start_, stop_, below_, after_ = other.around(ranks)
        start, below = np.where(start_ > start, start_, start), np.where(start_ > start, below_, below)
        stop, after = np.where(stop_ < stop, stop_, stop), np.where(stop_ < stop, after_, after)
    with np.errstate(over="ignore", invalid="ignore"):
        values = start + (ranks - below) / np.maximum(after - below, 1) * (stop - start)
    return [float(value) for value in np.minimum(np.maximum(values, low), high)]


_SHARES = np.array(QUANTILES)


def _shown_edges(counts: BitCounts, bins: int) -> NDArray[np.float64]:
    """(B+1,) finite, and rising in float32 too, which is how event files keep them; B <= bins."""
    low, high = (counts.min, counts.max) if counts.finite else (0.0, 0.0)
    shown = bins
    while shown and low < high:
        fractions = _fractions(shown)
        edges = low * (1 - fractions) + high * fractions
        if counts.linear is not None:
            exponent = int(counts.linear.exponent)
            with np.errstate(over="ignore"):  # beyond the last edge, which is set next
                edges = np.ldexp(np.rint(np.ldexp(edges, -exponent)), exponent)
        edges[0], edges[-1] = low, high
        if _rising(edges):
            return edges
        shown //= 2
    return _around(low / 2 + high / 2, bins)


@functools.cache
def _fractions(bins: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, bins + 1)


def _rising(edges: NDArray[np.float64]) -> bool:
    if max(-edges[0], edges[-1]) <= _LARGEST:
        edges = edges.astype(np.float32)
    return bool((edges[1:] > edges[:-1]).all())


_LARGEST = float(np.finfo(np.float32).max)


def _around(value: float, bins: int) -> NDArray[np.float64]:
    """(B+1,) edges with `value` in the middle bin, or at the end where floats end."""
    real = np.float32 if abs(value) <= _LARGEST else np.float64
    limit = float(np.finfo(real).max)
    reach = max(abs(value) / 2, 1e-37) if value else 0.5
    return np.linspace(max(value - reach, -limit), min(value + reach, limit), bins + bins % 2)
