"""Copies of tensors, and tensors filled with what they held before, so that neither training nor a graph can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from vizlog.ranks import has_memory, is_given_up

__all__ = ["copied", "fill", "put_all_back", "tensors_kept", "versions_kept"]


def put_all_back(kept: Iterable[tuple[Callable[[Any, Any], object], Any, Any]]) -> None:
    """Calls each `put_back(held, before)` of (put_back, held, before), whatever another raises.

    Raises:
        BaseException: the first that one of them raised, once all have been called.
    """
    raised: BaseException | None = None
    for put_back, held, before in kept:
        try:
            put_back(held, before)
        except BaseException as error:  # noqa: BLE001 -- raised below
            if raised is None or not isinstance(error, Exception):  # Ctrl-C must not be lost behind an error
                raised = error
    if raised is not None:
        raise raised


@contextmanager
def tensors_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards these hold what they held, and a graph that saved one of them can still run its backward."""
    kept = [(fill, tensor, copy) for tensor in tensors if (copy := copied(tensor)) is not None]
    with versions_kept(tensor for _, tensor, _ in kept):
        try:
            yield
        finally:
            put_all_back(kept)


@contextmanager
def versions_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards a graph that saved one of these, which are put back, can still run its backward."""
    kept: list[Any] = [_unsafe_preserve_version_counter(tensor) for tensor in tensors if not tensor.is_inference()]
    try:
        yield
    finally:
        for version in kept:
            version.__exit__()


def copied(tensor: Tensor) -> Tensor | None:
    """A copy, or None of what torch cannot copy (int4, bits8) or is expanded, and so cannot be changed in place."""
    if is_given_up(tensor) or (tensor.layout == torch.strided and not tensor.is_nested and _is_expanded(tensor)):
        return None
    try:
        return tensor.clone()
    except RuntimeError:
        return None


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def fill(tensor: Tensor, copy: Tensor) -> None:
    """Has the tensor hold what `copied` gave."""
    if tensor.layout == torch.sparse_coo:  # its `.data` shares the memory alone, and other is put in its place
        if not _same_sparse(tensor, copy):
            with torch.no_grad(), _unsafe_preserve_version_counter(tensor):
                tensor.copy_(copy)
        return
    if tensor.shape != copy.shape:  # an observer's, which is as large as what it has seen
        with torch.no_grad():
            tensor.resize_(copy.shape)
    # What has not changed is not written, for it may lie in a file that is only read; but on a device it is, where to
    # look at it would be to wait. `.data` leaves the version counter alone: a graph that saved it can still run its
    # backward.
    if tensor.device.type != "cpu" or not _same_bits(tensor.data, copy):
        tensor.data.copy_(copy)


def _same_sparse(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_coalesced() != other.is_coalesced():
        return False
    read = (torch.Tensor._indices, torch.Tensor._values)  # noqa: SLF001 -- the others are of coalesced ones alone
    return all(_same_bits(part(one), part(other)) for part in read)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether they are known to hold the same; of what is no plain tensor nothing is."""
    word = _WORDS.get(one.element_size()) if type(one) is Tensor and has_memory(one) else None
    if word is None or one.dtype not in _COMPARABLE:
        return False
    one, other = one.resolve_conj().resolve_neg(), other.resolve_conj().resolve_neg()  # lazy ones have no such view
    return torch.equal(one.view(word), other.view(word))


_COMPARABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
