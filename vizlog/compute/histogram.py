"""A histogram is the upper bits of a float, counted: tensors to counts, and counts to the record that is shown."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vizlog.compute import loops
from vizlog.compute.bits import GRIDS, MOST, NO_MOMENTS, BitCounts, Grid, Linear, Moments, fine, linear_exponent
from vizlog.compute.bits_numpy import PlainPass
from vizlog.compute.chunks import as_real, flat_chunks, grid_of, in_memory_order
from vizlog.compute.passes import ALWAYS_LINEAR, Chunks, Pass, Place
from vizlog.compute.shown import Shown, shown
from vizlog.compute.uncollected import Together, Uncollected
from vizlog.records import QUANTILES, Histogram

__all__ = [
    "BitCounts",
    "Counts",
    "Uncountable",
    "count_bits",
    "count_each",
    "fine",
    "histogram",
    "histograms",
    "prepare",
]

CHUNK = 1 << 17
"""Elements converted or copied at a time: at most 1 MB of each form."""


Counts: TypeAlias = BitCounts | Uncollected
"""Of a tensor on a device they are collected once they have come to the host: see `vizlog.compute.transfer`."""


class Uncountable(ValueError):
    """A tensor has no values that can be counted; the message says why."""


def count_bits(tensor: Tensor) -> Counts:
    """Counts the values of one tensor of any type, shape and memory layout, without changing or keeping it.

    On a CPU one pass, and a second one where bins of equal width are needed to show the distribution well; of a large
    tensor by as many threads as torch computes with (`torch.set_num_threads`). On a CUDA device small tensors come back
    and nothing waits for the device. Complex values are counted by magnitude, quantised ones dequantised, of a sparse
    tensor the implicit zeros too, of a DTensor this rank's shard. At most 64 MB of memory beside the tensor, but for
    one that is quantised by channel, which is dequantised whole.

    Raises:
        Uncountable: there is nothing to count (meta, fake, uninitialised, memory given up), no way to read it, or
            another thread wrote into it meanwhile.
    """
    try:  # in few calls: of a layer's output, what surrounds the loops takes as long as the loops
        if place := _place(tensor):
            return _count_one(tensor.dtype, place)
        return _count_others([_plain(tensor)])[0]
    except _UNREADABLE as error:
        raise _uncountable(error) from error


def count_each(tensors: Sequence[Tensor]) -> Sequence[Counts]:
    """`count_bits` of each, in one call or a few launches for all of a type.

    Raises:
        Uncountable: one of them cannot be counted.
    """
    try:
        places = [_place(tensor) for tensor in tensors]
        kinds = [tensor.dtype if place else None for tensor, place in zip(tensors, places, strict=True)]
        if len(different := set(kinds)) == 1:
            return _count_alike(kinds[0], tensors, places)
        found: dict[int, Counts] = {}
        for kind in different:
            those = [k for k, its in enumerate(kinds) if its is kind]
            counted = _count_alike(kind, [tensors[k] for k in those], [places[k] for k in those])
            found.update(zip(those, counted, strict=True))
        return [found[k] for k in range(len(tensors))]
    except _UNREADABLE as error:
        raise _uncountable(error) from error


_UNREADABLE = (RuntimeError, TypeError, NotImplementedError)
"""What torch raises where a tensor cannot be read."""


def _uncountable(error: Exception) -> Uncountable:
    reason = str(error).partition("\n")[0][:200]  # torch lists every kernel it has, and this goes into captions
    return Uncountable(f"no way to read the values: {reason}")


def _count_alike(
    kind: torch.dtype | None, tensors: Sequence[Tensor], places: Sequence[Place | None]
) -> Sequence[Counts]:
    if kind is None:
        return _count_others(list(map(_plain, tensors)))
    return _count_lying(kind, [place for place in places if place])


def prepare(device: torch.device | None = None) -> None:
    """Makes the first histogram as fast as the next; of a device other than a CPU, once loops have been compiled."""
    loops.prepare(waits=device is None or device.type == "cpu")
    for dtype in (torch.float32, torch.float64):
        histogram("warm-up", _count_on_cpu(torch.arange(4, dtype=dtype, device="cpu")))
    if device is not None and device.type == "cuda":
        from vizlog.compute.bits_cuda import load

        load(device)
        _ = Together.empty(GRIDS["float32"], 1, torch.device("cpu")).counts  # loads what collects counts


# any tensor: what its values are, and where


def _plain(tensor: Tensor) -> Tensor:
    """The tensor that holds the values, without autograd."""
    if type(tensor) not in _PLAIN:
        tensor = _unwrapped(tensor)
    if tensor.is_meta:
        raise Uncountable("a meta tensor has no values")
    tensor = tensor.detach()
    # A subclass that wraps others has none of its own, but operations that tell its values.
    if type(tensor) is Tensor and tensor.layout == torch.strided and not _has_memory(tensor):
        raise Uncountable("it has no memory, or that has been given up")
    return tensor


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
    return tensor.is_cuda and tensor.layout == torch.strided and not tensor.is_nested


def _count_others(tensors: Sequence[Tensor]) -> Sequence[Counts]:
    on_device = [tensor for tensor in tensors if _stays_on_device(tensor)]
    if not on_device:
        return [_count_on_cpu(tensor) for tensor in tensors]
    from vizlog.compute.bits_torch import count_on_device

    counted = iter(count_on_device(on_device))
    return [next(counted) if _stays_on_device(tensor) else _count_on_cpu(tensor) for tensor in tensors]


# on a CPU


_idle: defaultdict[tuple[type[Pass], str], list[Pass]] = defaultdict(list)
"""Those that no thread uses, by their class and grid."""

_IN_PLACE = {torch.float32: 4, torch.float64: 8}
"""Types whose values are counted where they lie, and how many bytes one takes."""

_PLAIN = (Tensor, torch.nn.Parameter)
"""Classes whose memory holds their values; one that wraps another has none of its own."""


def _place(tensor: Tensor) -> Place | None:
    """Where its values are counted as they lie: a piece of the host's memory that holds them and nothing else."""
    size = _IN_PLACE.get(tensor.dtype)
    if size is None or type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.is_neg() or tensor.is_nested:
        return None
    number = tensor.numel()
    if not 0 < number <= MOST:
        return None
    try:
        if not (tensor.is_contiguous() or (_has_memory(tensor) and in_memory_order(tensor).is_contiguous())):
            return None
        address = tensor.data_ptr()
        has = tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + number) * size
    except RuntimeError:  # of a layout that is no such piece
        return None
    return (address, number) if has and address else None


def _has_memory(tensor: Tensor) -> bool:
    """Whether all of its values are there."""
    if tensor.is_nested or tensor.is_quantized or not tensor.numel():  # quantised ones may have several in a byte
        return True
    return _reaches(
        tensor, 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    )


def _reaches(tensor: Tensor, number: int) -> bool:
    """Whether its storage has so many elements from its first on: a sharded parameter's is empty between its uses.

    Where an operation is only recorded (`torch.func.functionalize`) it says that it has, but lies nowhere.
    """
    has = tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + number) * tensor.element_size()
    return has and tensor.data_ptr() != 0


def _count_one(dtype: torch.dtype, place: Place) -> BitCounts:
    counting = _taken(grid_of(dtype))
    counts = counting.count_place(*place)
    _give_back(counting)
    return counts


def _count_lying(dtype: torch.dtype, places: Sequence[Place]) -> list[BitCounts]:
    """Of one type, all in one call: small tensors take less than a call does."""
    counting = _taken(grid_of(dtype))
    counted = counting.count_places(places)
    _give_back(counting)
    return counted


def _taken(grid: Grid) -> Pass:
    """One for this thread alone while in use: what an error leaves half counted is never used again."""
    kind = _compiled_pass() if loops.are_compiled() else PlainPass
    try:
        return _idle[kind, grid.name].pop()
    except IndexError:
        return kind(grid)


def _give_back(counting: Pass) -> None:
    _idle[type(counting), counting.grid.name].append(counting)


@functools.cache
def _compiled_pass() -> type[Pass]:
    from vizlog.compute.bits_numba import CompiledPass

    return CompiledPass


def _count_on_cpu(tensor: Tensor) -> BitCounts:
    if place := _place(tensor):
        return _count_one(tensor.dtype, place)
    if tensor.layout != torch.strided or tensor.is_nested:
        return _count_parts(tensor)
    if tensor.numel() > MOST:
        longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
        return _sum([_count_on_cpu(half) for half in tensor.tensor_split(2, longest)])
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.is_quantized and tensor.qscheme() != torch.per_tensor_affine:  # whose channels cannot be laid flat
        tensor = tensor.dequantize()
    # Values of the other types are so coarse that they sit on few points of a bin, where nothing can be interpolated.
    always_linear = tensor.dtype not in _IN_PLACE or tensor.numel() <= ALWAYS_LINEAR
    counting = _taken(grid_of(tensor.dtype))
    counts = counting.count_pieces(lambda: _chunks(tensor), always_linear=always_linear)
    _give_back(counting)
    return replace(counts, note="magnitudes of complex values") if tensor.is_complex() else counts


def _chunks(tensor: Tensor) -> Chunks:
    return (as_real(chunk).numpy() for chunk in flat_chunks(tensor, CHUNK))


def _count_parts(tensor: Tensor) -> BitCounts:
    """Of a nested tensor the parts; of a sparse one the values and the zeros that are not stored."""
    if tensor.is_nested:
        parts = [_count_on_cpu(_plain(part)) for part in tensor.unbind()]
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
    moments: Moments = (0.0, 0.0, 0.0, 0.0) if number else NO_MOMENTS
    bins = np.zeros(int(number > 0), np.int64)
    linear = Linear(linear_exponent(0.0, 0.0), bins, bins + number)
    return BitCounts(grid_of(dtype).name, (number, number, 0, 0, 0), moments, bins, bins + number, linear)


# what is shown


def histogram(tag: str, counts: BitCounts, *, caption: str = "", bins: int = 64) -> Histogram:
    """The record that shows these counts: at most `bins` linear bins from the minimum to the maximum.

    Where the counts have linear bins, an edge is moved onto one of theirs, by at most 1/4096 of the range, and counts
    are exact; else they are interpolated, to about half a percent of total variation. Fewer bins are shown where
    float32 could not tell their edges apart. Where all values are equal, they stand in the middle of a range around
    them; without a finite value the bins are empty. A quantile is the value of that rank, to the width of a bin.
    """
    return histograms([(tag, counts, caption)], bins=bins)[0]


def histograms(each: Sequence[tuple[str, BitCounts, str]], *, bins: int = 64) -> list[Histogram]:
    """`histogram` of each (tag, counts, caption), in a fraction of the time where there are many.

    Their arrays are rows of common ones.
    """
    drawn = _shown()([counts for _, counts, _ in each], bins)
    return [_record(tag, counts, caption, shown) for (tag, counts, caption), shown in zip(each, drawn, strict=True)]


def _record(tag: str, counts: BitCounts, caption: str, shown: Shown) -> Histogram:
    edges, found, values = shown
    count, zeros, nans, pos_infs, neg_infs = counts.tallies
    finite = count - nans - pos_infs - neg_infs
    low, high, total, squares = counts.moments if finite else [math.nan] * 4
    return Histogram.unchecked(
        tag=tag,
        caption=f"{caption}; {counts.note}" if caption and counts.note else caption or counts.note,
        edges=edges,
        counts=found,
        count=count,
        zeros=zeros,
        nans=nans,
        pos_infs=pos_infs,
        neg_infs=neg_infs,
        min=low,
        max=high,
        mean=total / (finite or 1),
        std=math.sqrt(squares / (finite or 1)),
        quantiles=dict(zip(QUANTILES, values)),  # noqa: B905 -- `values` may be empty, and strict= costs as much again
    )


def _shown() -> Callable[[Sequence[BitCounts], int], list[Shown]]:
    if not loops.are_compiled():
        return shown
    from vizlog.compute.shown_numba import shown as compiled

    return compiled
