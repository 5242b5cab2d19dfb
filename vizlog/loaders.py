"""Where nobody gave a fixed batch: examples spread over the data of a loader, and which part of them is input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset

from vizlog.batch import MOST
from vizlog.isolation import generators_kept, is_generator
from vizlog.selection import bare

__all__ = ["asked_for", "inputs_and_targets", "spread_examples"]

_BYTES = 64 << 20
"""How large the examples may be together; 32 are taken whatever they weigh."""

_TARGETS = ("labels", "label", "targets", "target", "y")
"""What targets are called in batches that are mappings."""


def spread_examples(loader: Any) -> Any:
    """A batch of examples spread evenly over a loader's dataset, collated as the loader does; the caller isolates.

    At most 256 examples, and 64 MB of them. Attributes of the dataset and the collator, and random generators that they
    keep, such as the one of a seeded masking, are afterwards as they were: the training uses them too.

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
    with _as_before([dataset, collate]):
        size = sum(x.nbytes for x in tree_leaves(dataset[0]) if isinstance(x, (Tensor, np.ndarray)))
        number = min(len(dataset), MOST, max(32, _BYTES // max(size, 1)))
        indices = torch.linspace(0, len(dataset) - 1, number, device="cpu").round().long().tolist()
        return collate([dataset[index] for index in indices])


def asked_for(make: Callable[[], Any]) -> Any:
    """What a function returns that is given as `batch=`; loaders that it names are afterwards as they were.

    Their generators, samplers and datasets, that is, and workers that would stay: the training uses them too.
    """
    function = make.func if isinstance(make, partial) else make
    code = getattr(function, "__code__", None)
    names = code.co_names + code.co_freevars if code is not None else ()
    known = {**getattr(function, "__globals__", {}), **_closed_over(function)} if names else {}
    loaders = [known[name] for name in names if hasattr(known.get(name), "dataset")]
    with _as_before(loaders):
        return make()


def _closed_over(function: Any) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # not filled yet
            found[name] = cell.cell_contents
    return found


def inputs_and_targets(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    """(inputs, targets) of a batch, by the names and the number of what the model's forward takes."""
    taken = list(inspect.signature(bare(model).forward).parameters.values())
    if isinstance(batch, Mapping):
        targets = next((batch[name] for name in _TARGETS if name in batch), None)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return batch, targets
        named = {parameter.name: batch[parameter.name] for parameter in taken if parameter.name in batch}
        return named or (batch,), targets  # no name fits: forward takes the mapping itself
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if not isinstance(batch[0], Tensor):
        return tuple(batch[0]) if isinstance(batch[0], list) else batch[0], batch[1] if len(batch) > 1 else None
    needed = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in taken)
    number = min(max(needed, 1), len(batch))
    return tuple(batch[:number]), batch[number] if number < len(batch) else None


# What the data keeps --------------------------------------------------------------------------------------------------

_CLOSED = (type, ModuleType, Tensor)
_DEPTH = 4
"""How far objects are looked into: a subset of a dataset that holds a transform of transforms."""


@contextmanager
def _as_before(objects: Iterable[Any]) -> Iterator[None]:
    """Afterwards these, and what they hold, have the attributes that they had, and their generators the states.

    A file that a dataset opens when it is first asked is not open then: loader processes would share its place.
    """
    owners, generators = _held(objects)
    before = [(owner, dict(owner.__dict__)) for owner in owners]
    with generators_kept(generators):
        try:
            yield
        finally:
            for owner, attributes in before:
                for name in owner.__dict__.keys() - attributes.keys():
                    del owner.__dict__[name]
                owner.__dict__.update(attributes)


def _held(objects: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Of these and what they hold, each once: everything that has attributes, and the random generators."""
    owners: list[Any] = []
    generators: list[Any] = []
    seen: set[int] = set()
    level = list(objects)
    for _ in range(_DEPTH):
        below: list[Any] = []
        for found in level:
            if id(found) in seen:
                continue
            seen.add(id(found))
            if is_generator(found):
                generators.append(found)
            elif isinstance(found, partial):
                below += [found.func, *found.args, *found.keywords.values()]
            elif isinstance(found, (list, tuple)):
                below += found[:64]
            elif isinstance(found, dict):
                below += islice(found.values(), 64)
            elif inspect.ismethod(found):
                below.append(found.__self__)
            elif hasattr(found, "__dict__") and not isinstance(found, _CLOSED):
                below += found.__dict__.values()
                owners.append(found)
        level = below
    return owners, generators
