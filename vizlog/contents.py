"""What objects hold: found as far as it is data, and afterwards as it was before."""

from __future__ import annotations

import enum
import functools
import operator
import random
import re
import weakref
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from pathlib import PurePath
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizlog.copies import copied, fill, put_all_back
from vizlog.selection import parts_of

__all__ = ["Found", "all_modules", "contents_kept", "data_in", "generators_kept", "is_generator"]

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, *weakref.ProxyTypes}
)
"""What holds nothing, or what nobody may look into: a weak proxy, of what may be gone."""

_CONSTANT = (
    *(enum.Enum, PurePath, range, slice, re.Pattern, weakref.ref),
    *(date, time, timedelta, tzinfo, Decimal, type(Ellipsis), type(NotImplemented)),
    *(np.generic, np.dtype, torch.layout, torch.memory_format, torch.qscheme, torch.finfo, torch.iinfo),
)
_CONTAINERS = (list, dict, set, deque)
_COLLECTIONS = (*_CONTAINERS, tuple, frozenset)
_ARRAYS = (bytearray, array)
_BARE: frozenset[type] = frozenset({*_COLLECTIONS, defaultdict})
_BUILT_IN = _BARE | {OrderedDict, SimpleNamespace}
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState)
_OF_TORCH = frozenset(nn.Module().__dict__)
_HEAP_TYPE = 1 << 9  # of CPython's type flags: a class that a `class` statement made
_EMPTY = object()
_NONE: dict[Any, Any] = {}

_MOST_PARTS = 10_000
_MOST_BYTES = 64 << 20
_DEEPEST_MODULE = 3
"""How deep modules are looked for in an attribute of another: a list is one step, an object with its attributes two."""


# Put back -------------------------------------------------------------------------------------------------------------


@contextmanager
def generators_kept(generators: Iterable[Any]) -> Iterator[None]:
    """Afterwards random generators have the states that they had."""
    kept = [(_set_state, generator, _state(generator)) for generator in generators]
    try:
        yield
    finally:
        put_all_back(kept)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state"):  # torch's, and NumPy's old one
        return generator.get_state()
    return getattr(generator, "bit_generator", generator).state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        getattr(generator, "bit_generator", generator).state = state


@contextmanager
def contents_kept(containers: Iterable[Any]) -> Iterator[None]:
    """Afterwards lists, dicts, sets, deques, arrays, tensors and objects with slots hold what they held."""
    kept = [each for container in containers if (each := _kept(container)) is not None]
    try:
        yield
    finally:
        put_all_back(kept)


def _kept(container: Any) -> tuple[Callable[[Any, Any], object], Any, Any] | None:
    """What puts its parts back, the container, and its parts as they are; None of what cannot be changed in place."""
    # By the methods of the plain kind, here and below: those of a class of one's own may do more, such as count reads.
    if isinstance(container, dict):
        return _put_back_items, container, _items(container) if dict.__len__(container) else _NONE
    if isinstance(container, set):
        return _put_back_set, container, frozenset(set.__iter__(container))
    if isinstance(container, (list, deque)):
        return _put_back_list, container, list(_parts(container))
    if isinstance(container, Tensor):
        copy = copied(container)
        return None if copy is None else (fill, container, copy)
    if isinstance(container, np.ndarray):
        return _put_back_array, container, container.copy()
    if isinstance(container, _ARRAYS):
        return _put_back_bytes, container, container[:]
    if isinstance(container, _Slots):
        return _Slots.write, container, container.read()
    return None


def _items(container: dict[Any, Any]) -> dict[Any, Any]:
    if type(container) is dict:  # nearly all are
        return container.copy()
    return dict(OrderedDict.items(container) if isinstance(container, OrderedDict) else dict.items(container))


# What has not changed is not touched: the training may be in the middle of a loop over it.


def _put_back_items(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    if not (before or dict.__len__(held)):
        return
    kind: Any = OrderedDict if isinstance(held, OrderedDict) else dict
    same_keys = dict.__len__(held) == len(before) and all(map(operator.is_, kind.keys(held), before))
    if same_keys and all(map(operator.is_, kind.values(held), before.values())):
        return
    kind.clear(held)
    if kind is dict:
        dict.update(held, before)
    else:
        for key, value in before.items():  # its `update` calls the __setitem__ of a class of one's own
            OrderedDict.__setitem__(held, key, value)


def _put_back_set(held: set[Any], before: Collection[Any]) -> None:
    if set.__ne__(held, before):
        set.clear(held)
        set.update(held, before)


def _put_back_list(held: Any, before: list[Any]) -> None:
    kind: Any = deque if isinstance(held, deque) else list
    if kind.__len__(held) != len(before) or any(map(operator.is_not, kind.__iter__(held), before)):
        kind.clear(held)
        kind.extend(held, before)


def _put_back_array(held: Any, before: Any) -> None:
    if held.shape != before.shape:
        np.ndarray.resize(held, before.shape, refcheck=False)  # others hold it, as they did where it was resized
    if held.tobytes() != before.tobytes():
        held[...] = before


def _put_back_bytes(held: Any, before: Any) -> None:
    if bytes(held) != bytes(before):
        held[:] = before


# What modules hold ----------------------------------------------------------------------------------------------------


def all_modules(models: Iterable[nn.Module]) -> tuple[list[nn.Module], list[Any]]:
    """All modules of these, and of those that stand in their attributes without being registered; each once.

    Returns:
        the modules, and what else than plain values stands in their attributes.
    """
    modules: list[nn.Module] = []
    values: list[Any] = []
    found: set[int] = set()
    looked_into: set[int] = set()
    roots = list(models)
    for root in roots:  # which grow
        for module in parts_of([root], found):
            modules.append(module)
            own = _own(module)
            values += own
            roots += [held for value in own for held in _held(value, 0, looked_into)]
    return modules, values


def _own(module: nn.Module) -> list[Any]:
    """What stands in its attributes that torch has not put there, but for plain values and tuples of these."""
    own = [
        value
        for name, value in module.__dict__.items()
        if type(value) not in _PLAIN
        and name not in _OF_TORCH
        and not (type(value) is tuple and _PLAIN.issuperset(map(type, value)))  # as a convolution's sizes
    ]
    for slots in _slots_of(module):
        own += _parts(slots)
    return own


def _held(value: Any, depth: int, looked_into: set[int]) -> Iterator[nn.Module]:
    """Modules that a value is or holds, in objects that a `class` statement made too; each is looked into once."""
    if type(value) in _PLAIN:
        return
    if isinstance(value, nn.Module):
        yield value
        return
    if depth >= _DEEPEST_MODULE or isinstance(value, Tensor) or id(value) in looked_into:
        return
    collects = isinstance(value, _COLLECTIONS)
    parts = [part for container in ([value] if collects else _attributes_of(value)) for part in _not_plain(container)]
    if len(parts) + len(looked_into) > _MOST_PARTS:
        return
    looked_into.add(id(value))
    for part in parts:
        yield from _held(part, depth + (1 if collects else 2), looked_into)


# Data in what modules hold --------------------------------------------------------------------------------------------


class Found:
    """What a forward may change from within, each once, by id.

    Attributes:
        tensors: whose values it may change.
        generators: of random numbers.
        containers: lists, dicts, sets, deques and arrays, and what holds the attributes of objects and of tensors.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.generators: dict[int, Any] = {}
        self.containers: dict[int, Any] = {}

    def add(self, other: Found) -> None:
        """Adds what was found elsewhere."""
        self.tensors |= other.tensors
        self.generators |= other.generators
        self.containers |= other.containers


def data_in(modules: Iterable[nn.Module], values: Iterable[Any], *, sharded: bool) -> Found:
    """What `all_modules` hold that a forward may change from within.

    Where they are sharded, not which parameters they have: a forward puts whole ones in place of the shards, and keeps
    a book of its own on that.
    """
    found = Found()
    waiting = list(values)
    for module in modules:
        for name in ("_buffers", "_modules", "_non_persistent_buffers_set", *(() if sharded else ("_parameters",))):
            value = module.__dict__.get(name)
            if isinstance(value, (dict, set)):  # a ScriptModule's lie beyond Python
                found.containers[id(value)] = value
                if value and name in {"_parameters", "_buffers"}:
                    waiting += _attributes_of_tensors((part for part in _parts(value) if part is not None), found)
        for slots in _slots_of(module):
            found.containers[_identity(slots)] = slots
    looked_into: set[int] = set()
    for value in waiting:  # which grows
        if type(value) not in _PLAIN and id(value) not in looked_into:
            looked_into.add(id(value))
            waiting += _look_into(value, found)
    return found


def _attributes_of_tensors(tensors: Iterable[Tensor], found: Found) -> list[Any]:
    """Notes what holds the attributes of these, and returns these attributes."""
    values: list[Any] = []
    for tensor in tensors:
        found.containers[id(tensor)] = tensor.__dict__
        values += tensor.__dict__.values()
    return values


def _look_into(value: Any, found: Found) -> Iterable[Any]:
    """Notes a value and what it holds, where that is data; returns what else is to be looked into."""
    if isinstance(value, Tensor):
        found.tensors[id(value)] = value
        return _attributes_of_tensors([value], found)
    walk = _Walk()
    if walk.is_data(value):
        found.add(walk.found)
        return ()
    if isinstance(value, _CONTAINERS):  # of modules or functions, say: itself, but nothing in it
        found.containers[id(value)] = value
    parts = list(_parts(value)) if isinstance(value, _COLLECTIONS) else []
    if len(parts) > _MOST_PARTS:
        return ()
    return [part for part in parts if isinstance(part, Tensor) or is_generator(part)]


class _Walk:
    """Finds all there is in one value, as long as that is data, and not much."""

    def __init__(self) -> None:
        self.found = Found()
        self._parts_left, self._bytes_left = _MOST_PARTS, _MOST_BYTES

    def is_data(self, value: Any) -> bool:
        """Whether a value holds nothing but data."""
        # What lies near the surface comes first: where that is no data, as in a trainer, the rest is not looked at.
        waiting = deque([value])
        while waiting:
            if not self._take(waiting.popleft(), waiting):
                return False
        return True

    def _take(self, value: Any, waiting: deque[Any]) -> bool:
        """Whether this may be data; its parts then wait to be looked at."""
        if type(value) in _PLAIN or isinstance(value, _CONSTANT):
            return True
        if isinstance(value, Tensor):
            return self._take_tensor(value, waiting)
        if isinstance(value, (np.ndarray, *_ARRAYS)):
            return self._take_array(value)
        if is_generator(value):
            self.found.generators[id(value)] = value
            return True
        self._parts_left -= 1
        held = _attributes_of(value)
        if isinstance(value, _COLLECTIONS):
            held.append(value)
        for container in held:
            if _identity(container) not in self.found.containers:
                self.found.containers[_identity(container)] = container
                waiting += _not_plain(container)
        return bool(held) and self._parts_left >= 0

    def _take_tensor(self, value: Tensor, waiting: deque[Any]) -> bool:
        # Parameters are kept by themselves, if at all: copies of all would not fit.
        if id(value) not in self.found.tensors and not isinstance(value, nn.Parameter):
            self.found.tensors[id(value)] = value
            waiting += _attributes_of_tensors([value], self.found)
            self._bytes_left -= value.numel() * value.element_size()
        return self._bytes_left >= 0

    def _take_array(self, value: Any) -> bool:
        if not isinstance(value, np.ndarray) or value.flags.writeable:
            self.found.containers[id(value)] = value
            self._bytes_left -= memoryview(value).nbytes if isinstance(value, _ARRAYS) else value.nbytes
        return self._bytes_left >= 0 and not (isinstance(value, np.ndarray) and value.dtype.hasobject)


def is_generator(value: Any) -> bool:
    """Whether it is a random generator, of torch, NumPy or Python."""
    return isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom)  # which has no state


# Parts of one object --------------------------------------------------------------------------------------------------


class _Slots:
    """The attributes of an object that lie in slots."""

    def __init__(self, value: Any, slots: Sequence[MemberDescriptorType]) -> None:
        self.value, self._slots = value, slots

    def read(self) -> list[Any]:
        """What is in each; `_EMPTY` where nothing is."""
        return [self._in(slot) for slot in self._slots]

    def write(self, values: Sequence[Any]) -> None:
        """Puts values back where others are now."""
        for slot, value in zip(self._slots, values, strict=True):
            if self._in(slot) is value:
                continue
            if value is _EMPTY:
                slot.__delete__(self.value)
            else:
                slot.__set__(self.value, value)

    def _in(self, slot: MemberDescriptorType) -> Any:
        try:
            return slot.__get__(self.value)
        except AttributeError:
            return _EMPTY


def _attributes_of(value: Any) -> list[Any]:
    """What holds all there is to an object written in Python, `__dict__` or slots; none of modules, files, locks."""
    kind: Any = type(value)
    if isinstance(value, nn.Module) or not _lies_open(kind):
        return []
    held: list[Any] = _slots_of(value)
    return [*held, value.__dict__] if hasattr(value, "__dict__") else held


@functools.cache
def _lies_open(kind: Any) -> bool:
    """Whether all there is to an object of this class lies in its `__dict__` and slots, and is no part of vizlog."""
    if kind in _BARE:
        return False
    # A probe, a backend or a monitor, of a person's own class too, changes in a pass, and on the worker beside it.
    is_ours = any(str(base.__module__).startswith("vizlog.") for base in kind.__mro__)
    return not is_ours and all(base.__flags__ & _HEAP_TYPE or base in _BUILT_IN for base in kind.__mro__[:-1])


def _slots_of(value: Any) -> list[Any]:
    """What holds its attributes that lie in slots, where it has any."""
    kind: Any = type(value)
    return [_Slots(value, slots)] if (slots := _slots_in(kind)) else []


@functools.cache
def _slots_in(kind: Any) -> list[MemberDescriptorType]:
    written = [base for base in kind.__mro__ if vars(base).get("__slots__")]  # Generic and the like have empty ones
    return [slot for base in written for slot in vars(base).values() if isinstance(slot, MemberDescriptorType)]


def _identity(container: Any) -> int:
    return -id(container.value) if isinstance(container, _Slots) else id(container)  # a list may have slots beside


def _parts(container: Any) -> Iterable[Any]:
    if isinstance(container, _Slots):
        return [part for part in container.read() if part is not _EMPTY]
    if type(container) is dict:
        return container.values()
    kind: Any = next(kind for kind in _COLLECTIONS if isinstance(container, kind))
    found: Iterable[Any] = kind.values(container) if kind is dict else kind.__iter__(container)
    return found


def _not_plain(container: Any) -> list[Any]:
    """Its parts but for plain values, of which a list may hold a million."""
    return [part for part in _parts(container) if type(part) not in _PLAIN]
