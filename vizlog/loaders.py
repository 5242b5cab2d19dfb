"""Where nobody gave a fixed batch: examples spread over the data of a loader, and which part of them is input."""

from __future__ import annotations

import inspect
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from vizlog.batch import MOST
from vizlog.contents import contents_kept, generators_kept, is_generator
from vizlog.ranks import has_memory
from vizlog.selection import bare
from vizlog.setting import Setting
from vizlog.targets import TARGET_NAMES
from vizlog.trees import named

__all__ = ["asked_for", "inputs_and_targets", "only_tensor", "spread_examples"]

T = TypeVar("T")

_BYTES = 64 << 20
"""How large the examples may be together; 32 are taken whatever they weigh."""


def spread_examples(loader: Any) -> tuple[Any, list[int]]:
    """A batch of examples spread evenly over a loader's dataset, collated as the loader does; the caller isolates.

    At most 256 examples, and 64 MB of them. Attributes of the dataset and the collator, and random generators that they
    keep, such as the one of a seeded masking, are afterwards as they were: the training uses them too.

    Returns:
        The batch, and which of the dataset each of its examples is.

    Raises:
        TypeError: the data cannot be asked by index; says what it is.
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None:
        raise TypeError(f"{type(loader).__name__} has no dataset")
    if isinstance(dataset, IterableDataset):
        raise TypeError(f"{type(dataset).__name__} is iterable")
    if loader.batch_sampler is None:
        raise TypeError(f"{type(dataset).__name__} makes batches itself")
    with _as_before(dataset, collate):
        size = sum(x.nbytes for x in tree_leaves(dataset[0]) if isinstance(x, (Tensor, np.ndarray)))
        number = min(len(dataset), MOST, max(32, _BYTES // max(size, 1)))
        indices = torch.linspace(0, len(dataset) - 1, number, device="cpu").round().long().tolist()
        return tree_map(_apart, collate([dataset[index] for index in indices])), indices


def _apart(leaf: Any) -> Any:
    """A copy, for it may lie in memory that the collator keeps."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def asked_for(make: Callable[[], Any], use: Callable[[Any], T]) -> T:
    """Calls a function that was given as `batch=`, and leaves the loaders that it names or iterates as they were.

    Their generators, samplers and datasets, that is, and workers that would stay: the training uses them too. `use` is
    given what the function returns before all that is put back, for it may lie in memory that a collator keeps.

    Returns:
        What `use` returns.
    """
    with ExitStack() as stack:
        for loader in _named(make):  # of any class, with what it does before it iterates a DataLoader inside
            stack.enter_context(_as_before(loader, *_parts(loader)))
        stack.enter_context(_each_iterated(partial(_start_anew, stack)))
        return use(make())


def _start_anew(stack: ExitStack, loader: DataLoader[Any]) -> None:
    """Before a loader is iterated: keeps it as it is, and gives it other workers than those the training waits for."""
    stack.enter_context(_as_before(loader, *_parts(loader)))
    loader.__dict__["_iterator"] = None


@contextmanager
def _each_iterated(do: Callable[[Any], object]) -> Iterator[None]:
    """Inside, this is done with each DataLoader just before this thread first iterates it."""
    seen: dict[int, Any] = {}

    def do_once(loader: Any) -> None:
        if id(loader) not in seen:
            seen[id(loader)] = loader
            do(loader)

    token = _before_iterating.set(do_once)
    try:
        with _ITERATION_TOLD.held():
            yield
    finally:
        _before_iterating.reset(token)


def _tell_iteration() -> Callable[[], object]:
    iterate = DataLoader.__iter__

    def tells(loader: DataLoader[Any]) -> Any:
        _before_iterating.get()(loader)
        return iterate(loader)

    DataLoader.__iter__ = tells  # type: ignore[method-assign]
    return lambda: setattr(DataLoader, "__iter__", iterate)


_ITERATION_TOLD = Setting(_tell_iteration)
_before_iterating: ContextVar[Callable[[Any], object]] = ContextVar("before_iterating", default=lambda _: None)


def _named(function: Any) -> list[Any]:
    """Loaders that a function names."""
    function = function.func if isinstance(function, partial) else function
    code = getattr(function, "__code__", None)
    names = code.co_names + code.co_freevars if code is not None else ()
    known = {**getattr(function, "__globals__", {}), **_closed_over(function)} if names else {}
    return [known[name] for name in names if hasattr(known.get(name), "dataset")]


def _closed_over(function: Any) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # not filled yet
            found[name] = cell.cell_contents
    return found


def inputs_and_targets(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    """(inputs, targets) of a batch, by the names and the number of what the model's forward takes."""
    taken = list(inspect.signature(bare(model).forward).parameters.values())
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = named(batch, 1)
    if isinstance(batch, Mapping):
        targets = next((batch[name] for name in TARGET_NAMES if name in batch), None)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return batch, targets
        given = {parameter.name: batch[parameter.name] for parameter in taken if parameter.name in batch}
        return given or (batch,), targets  # no name fits: forward takes the mapping itself
    if not isinstance(batch, (tuple, list)):
        return batch, None
    needed = [p for p in taken if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if [parameter.name for parameter in needed] == ["batch"]:  # forward takes it apart itself
        return (batch,), batch[1] if len(batch) > 1 else None
    if not isinstance(batch[0], Tensor):
        targets = batch[1] if len(batch) > 1 else None
        if not isinstance(batch[0], (list, tuple)):
            return batch[0], targets
        at_most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in taken)
        takes_all = len(batch[0]) <= at_most or any(p.kind is p.VAR_POSITIONAL for p in taken)
        return tuple(batch[0]) if takes_all else (batch[0],), targets  # forward takes them in one piece
    number = min(max(len(needed), 1), len(batch))
    return tuple(batch[:number]), batch[number] if number < len(batch) else None


def only_tensor(inputs: Any) -> Tensor | None:
    """The tensor a step takes out of a batch that a model was given whole; None where it is not the only one.

    Of a mapping the only floating one, targets aside; of a tuple or a list the only one with more than a number each.
    """
    whole = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else None
    if isinstance(whole, Mapping):
        values = [value for name, value in whole.items() if name not in TARGET_NAMES]
        found = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    else:
        found = [value for value in whole if isinstance(value, Tensor)] if isinstance(whole, (tuple, list)) else []
    found = [value for value in found if value.ndim > 1]
    return found[0] if len(found) == 1 else None


# What the data keeps --------------------------------------------------------------------------------------------------

_CLOSED = (type, ModuleType, Tensor, _BaseDataLoaderIter)
_DEPTH = 4
"""How far objects are looked into: a subset of a dataset that holds a transform of transforms."""

_PLAIN = (list, dict, set, bytearray, array, np.ndarray, Tensor)
_BYTES_OF_ONE = 16 << 20
"""How large a list or an array is at most that is put back where it was changed in place: an order, not the data."""


@contextmanager
def _as_before(*objects: Any) -> Iterator[None]:
    """Afterwards these, and what they hold, have the attributes that they had, and their generators the states.

    Lists and arrays among them that are not large hold what they held, 64 MB in all. A file that a dataset opens when
    it is first asked is not open then: loader processes would share its place.
    """
    held = _held(objects)
    attributes = [found.__dict__ for found in held if _has_attributes(found)]
    with generators_kept(filter(is_generator, held)), contents_kept([*attributes, *_small(held)]):
        yield


def _held(objects: Iterable[Any]) -> list[Any]:
    """These and what they hold, each once."""
    held: dict[int, Any] = {}
    level = list(objects)
    for _ in range(_DEPTH):
        new = {id(found): found for found in level if id(found) not in held}
        held |= new
        level = [part for found in new.values() for part in _parts(found)]
    return list(held.values())


def _parts(found: Any) -> Iterable[Any]:
    if isinstance(found, partial):
        return (found.func, *found.args, *found.keywords.values())
    if isinstance(found, (list, tuple)):
        return found[:64]
    if isinstance(found, dict):
        return islice(found.values(), 64)
    if inspect.ismethod(found):
        return (found.__self__,)
    return found.__dict__.values() if _has_attributes(found) else ()


def _has_attributes(found: Any) -> bool:
    no_object = isinstance(found, (partial, list, tuple, dict, *_CLOSED)) or inspect.ismethod(found)
    return hasattr(found, "__dict__") and not no_object and not is_generator(found)


def _small(held: Iterable[Any]) -> Iterator[Any]:
    """What of these is changed in place and takes little to keep."""
    left: float = _BYTES
    for found in held:
        if type(found) in _PLAIN and (size := _size(found)) <= min(left, _BYTES_OF_ONE):
            left -= size
            yield found


def _size(found: Any) -> float:
    """In bytes, without its parts; inf of what cannot be written."""
    if isinstance(found, np.ndarray):
        return found.nbytes if found.flags.writeable and not found.dtype.hasobject else math.inf
    if isinstance(found, Tensor):
        return found.numel() * found.element_size() if has_memory(found) else math.inf
    return sys.getsizeof(found)
