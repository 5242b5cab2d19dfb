"""The guard: run a model again so that training cannot tell."""

from __future__ import annotations

import enum
import functools
import operator
import random
import re
import sys
import threading
import weakref
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from pathlib import PurePath
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from vizlog.messages import LOG
from vizlog.ranks import has_memory, is_given_up, is_sharded, reshard, sharded_modules
from vizlog.selection import parts_of

__all__ = [
    "Setting",
    "changes_learnt",
    "contents_kept",
    "eager",
    "generators_kept",
    "is_generator",
    "isolated",
    "start_noise",
]


@contextmanager
def isolated(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the models are in eval mode and run eagerly; afterwards all is as it was before, whatever was raised.

    So are modules that they hold without registering them, in an attribute or a list: a teacher, an average.

    Kept and put back: the random states of torch (CPU and the models' devices), Python and NumPy, and of generators
    that a module holds; the contents of every buffer and other tensor attribute (metric states), of embeddings whose
    norm is limited, and of parameters that a forward is known to change in place (a momentum encoder: see
    `changes_learnt`); every module's attributes, lists, dicts and NumPy arrays, and those of tensors, and of objects in
    them that hold nothing but data (a cache, a memory bank), each training flag separately (a frozen BatchNorm stays
    frozen); every `.grad`, which is None inside, and whether a parameter takes one. Hooks that a forward adds to
    modules and to gradients of parameters go again, and those that it removes come back. A LightningModule's `log` does
    nothing inside, and a DistributedDataParallel calls what it wraps, with no word to other ranks.

    Modules that `fully_shard` was applied to hold their own shards again afterwards; all ranks go inside together.

    What cannot be kept: objects that hold more than data, such as a file, a lock, an iterator or a function, or more
    than 64 MB of it or 10,000 parts, and are changed by a forward from within; a parameter that a forward changes in
    place where it is sharded or of a class of its own, or where the first forward did not change it (from the second
    time on it is put back, unless that is done through `.data`); and what a hook of the user's own, which runs here
    too, does elsewhere.
    """
    models = list(models)
    modules = _modules(models)
    with ExitStack() as stack:
        parameters, left_alone = _parameters_of(modules), _left_alone(models)
        data = _Data(modules, left_alone)
        others = _others(modules, data.tensors.values())
        of_autograd = [*parameters, *(tensor for tensor in others if tensor.is_leaf)]
        stack.enter_context(_random_states(parameters))
        stack.enter_context(eager())
        stack.enter_context(_no_cached_weights())
        stack.enter_context(_UNCHECKPOINTED.held())
        stack.enter_context(_saved_as_is())
        stack.enter_context(_gradients(of_autograd))
        stack.callback(reshard, models)
        if not left_alone:
            _remember_renormed(modules)
            stack.enter_context(_parameters(models, parameters))
        stack.enter_context(_tensors(others))
        stack.enter_context(generators_kept(data.generators.values()))
        stack.enter_context(contents_kept((*(module.__dict__ for module in modules), *data.containers.values())))
        stack.enter_context(_hooks(modules))
        stack.enter_context(_derived(of_autograd))
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # its flag lies beyond Python
                stack.callback(setattr, module, "training", module.training)
                module.training = False
                continue
            # Through __dict__: a user's __setattr__ or a metric's must not see it.
            module.__dict__["training"] = False
            if isinstance(module, nn.parallel.DistributedDataParallel):  # itself it would wait for the other ranks
                module.__dict__["forward"] = module.module
            for name in ("log", "log_dict"):
                if hasattr(type(module), name) and hasattr(type(module), "training_step"):
                    module.__dict__[name] = _silent
        yield


def _modules(models: list[nn.Module]) -> list[nn.Module]:
    """All modules of these, each once, and of those that stand in their attributes without being registered."""
    modules: list[nn.Module] = []
    found: set[int] = set()
    looked_into: set[int] = set()
    roots = list(models)
    for root in roots:
        parts = parts_of([root], found)
        modules += parts
        roots += [held for part in parts for value in _own(part) for held in _held(value, 0, looked_into)]
    return modules


def _own(module: nn.Module) -> list[Any]:
    """What stands in its attributes that torch has not put there, but for plain values and tuples of these."""
    own = [
        value
        for name, value in module.__dict__.items()
        if type(value) not in _PLAIN
        and name not in _OF_TORCH
        and not (type(value) is tuple and _PLAIN.issuperset(map(type, value)))  # as a convolution's sizes
    ]
    kind: Any = type(module)
    return own + [part for slots in _slots_of(module) for part in _parts(slots)] if _slots_in(kind) else own


def _held(value: Any, depth: int, looked_into: set[int]) -> Iterator[nn.Module]:
    """Modules that a value is or holds, also in objects that a `class` statement made; into each is looked once."""
    if type(value) in _PLAIN:  # a weak proxy too, of what may be gone
        return
    if isinstance(value, nn.Module):
        yield value
        return
    if depth >= _DEEPEST_MODULE or isinstance(value, Tensor):
        return
    collects = isinstance(value, _COLLECTIONS)
    parts = [part for container in ([value] if collects else _attributes_of(value)) for part in _parts(container)]
    if id(value) in looked_into or len(parts) + len(looked_into) > _MOST_PARTS:
        return
    looked_into.add(id(value))
    for part in parts:
        yield from _held(part, depth + (1 if collects else 2), looked_into)


@contextmanager
def _random_states(parameters: list[nn.Parameter]) -> Iterator[None]:
    devices = {parameter.device for parameter in parameters}
    python, shared = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 -- the one that all share
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {device.type for device in devices} - {"cpu", "meta"}:
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(shared)  # noqa: NPY002


def start_noise(models: Iterable[nn.Module]) -> None:
    """Inside `isolated`: random numbers begin anew, so that a model that samples is the same in every pass."""
    random.seed(0)
    of_numpy: Any = np.random  # whose types leave this out
    bits = of_numpy.get_bit_generator()  # of the one that all share, which a person may have set
    if isinstance(bits, np.random.MT19937):
        np.random.seed(0)  # noqa: NPY002
    else:
        bits.state = type(bits)(0).state
    torch.default_generator.manual_seed(0)
    for device in {parameter.device for model in models for parameter in model.parameters()}:
        if device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.default_generators[device.index or 0].manual_seed(0)


def eager() -> AbstractContextManager[Any]:
    """Inside, what is compiled runs eagerly."""
    # Calling a compiled module in another mode or shape would add a graph for each. Where dynamo was never imported
    # nothing is compiled, but flex_attention would import it and compile itself.
    if sys.modules.keys().isdisjoint(("torch._dynamo", "torch.nn.attention.flex_attention")):
        return nullcontext()
    return _EAGER.held()


@contextmanager
def _no_cached_weights() -> Iterator[None]:
    # Where the whole training runs inside one autocast, a weight cast without a gradient would cut the next forward's.
    enabled, parametrized = torch.is_autocast_cache_enabled(), parametrize._cache_enabled  # noqa: SLF001
    torch.set_autocast_cache_enabled(False)
    if parametrized:  # likewise inside `parametrize.cached()`
        parametrize._cache_enabled = 0  # noqa: SLF001
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        if parametrized:
            parametrize._cache_enabled = parametrized  # noqa: SLF001


class Setting:
    """A setting of the whole process, for as long as any thread wants it.

    Args:
        put_on: changes it, and returns what changes it back.
    """

    def __init__(self, put_on: Callable[[], Callable[[], object]]) -> None:
        self._put_on = put_on
        self._lock, self._wanted = threading.Lock(), 0
        self._take_off: Callable[[], object] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, it is on."""
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._take_off = self._put_on()
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if not self._wanted:
                    self._take_off()


def _force_eager() -> Callable[[], object]:
    stance: Any = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return lambda: stance.__exit__(None, None, None)


def _uncheckpoint() -> Callable[[], object]:
    # Nothing can be derived by an input through reentrant checkpoints, as saliency does; under no_grad they warn.
    kept = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Uncheckpointed  # type: ignore[misc, assignment]
    return lambda: setattr(checkpoint, "CheckpointFunction", kept)


_EAGER, _UNCHECKPOINTED = Setting(_force_eager), Setting(_uncheckpoint)


class _Uncheckpointed:
    """Stands in for torch's reentrant checkpoint: calls the function, and keeps what it keeps."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: object, *args: Any) -> Any:
        return function(*args)


@contextmanager
def _saved_as_is() -> Iterator[None]:
    # Who hooks what is saved for backward around the whole loop may count it, or write it to disk.
    innermost = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # noqa: SLF001 -- since torch 2.8
    if innermost is None or innermost(True) is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):  # the innermost alone are called
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _gradients(tensors: list[Tensor]) -> Iterator[None]:
    # A strided gradient of a sparse parameter, as some are given, could not be put back.
    kept = [(tensor, tensor.grad) for tensor in tensors if tensor.layout == torch.strided and tensor.is_leaf]
    # Nor could one of another type, as of an optimizer that makes the weights wide only while it steps, or of another
    # shape, as of a layer that was pruned or grown since.
    kept = [(t, gradient) for t, gradient in kept if gradient is None or _fits(gradient, t)]
    for tensor, gradient in kept:
        if gradient is not None:
            tensor.grad = None
    try:
        yield
    finally:
        with ExitStack() as stack:  # each, whatever happens to another
            for tensor, gradient in kept:
                if tensor.is_leaf and tensor.grad is not gradient:
                    stack.callback(setattr, tensor, "grad", gradient)


def _fits(gradient: Tensor, tensor: Tensor) -> bool:
    return gradient.dtype == tensor.dtype and gradient.shape == tensor.shape


def _parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """Theirs, each once."""
    found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return list(found.values())


_CHANGING: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()
"""Parameters that a forward changes in place, by id: of these each pass has a copy, as of buffers."""


@contextmanager
def changes_learnt(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside `isolated`, around a first forward: learns which parameters it changes in place, and puts them back.

    Each is copied just before it is first written to: copies of all would not fit. Sharded models are left alone.
    """
    models = list(models)
    parameters = _parameters_of(_modules(models))
    if _left_alone(models) or any(map(is_sharded, parameters)):
        yield
        return
    writes = _Writes(filter(_is_plain, parameters))
    try:
        with writes:
            yield
    finally:
        for parameter, data, copy in writes.before:
            _CHANGING[id(parameter)] = parameter
            if copy is not None:
                _fill(data, copy)


class _Writes(TorchDispatchMode):
    """Sees each operator that this thread calls, and copies parameters that one is about to change, by `.data` too.

    Attributes:
        before: each parameter that was written to, its `.data`, and a copy of that.
    """

    supports_higher_order_operators = True

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no types
        self.before: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
        self._at: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}  # some share their memory, as those of an LSTM
        for parameter in parameters:
            self._at.setdefault(_place(parameter), []).append((parameter, parameter.data))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for number, name in _written_by(func):
            value = args[number] if number < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if type(tensor) in (Tensor, nn.Parameter) and has_memory(tensor) and tensor.numel():
                    self.before += [(p, data, _copied(data)) for p, data in self._at.pop(_place(tensor), ())]
        return func(*args, **kwargs)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@functools.cache
def _written_by(func: Any) -> list[tuple[int, str]]:
    """Number and name of the arguments that an operator changes."""
    arguments = getattr(getattr(func, "_schema", None), "arguments", ())
    return [(n, each.name) for n, each in enumerate(arguments) if each.alias_info and each.alias_info.is_write]


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and has_memory(parameter)


def _version(parameter: nn.Parameter) -> int:
    """How often torch has changed it in place; operations on its `.data` are not counted."""
    return 0 if parameter.is_inference() else parameter._version  # noqa: SLF001 -- it has no public name


def _remember_renormed(modules: list[nn.Module]) -> None:
    """An embedding of limited norm shortens the rows that it looks up."""
    for module in modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            weight: Any = module.weight
            _CHANGING[id(weight)] = weight


@contextmanager
def _parameters(models: list[nn.Module], parameters: list[nn.Parameter]) -> Iterator[None]:
    # A forward may give them other memory: an average of another network, prototypes of length 1. Or change them where
    # they are; all are too many to copy, so these must be known.
    kept = [(p, p.data, _version(p)) for p in parameters if _is_plain(p)]
    places = [data.data_ptr() for _, data, _ in kept]
    known = [(data, _copied(data)) for p, data, _ in kept if id(p) in _CHANGING]
    try:
        with _versions_kept(p for p, *_ in kept if id(p) in _CHANGING):
            yield
    finally:
        changed = [p for p, _, version in kept if _version(p) != version and id(p) not in _CHANGING]
        for (parameter, data, _), place in zip(kept, places, strict=True):
            if parameter.data_ptr() != place:
                parameter.data = data
        for data, copy in known:
            if copy is not None and has_memory(data):
                _fill(data, copy)
        if changed:
            _CHANGING.update((id(parameter), parameter) for parameter in changed)
            _say_changed(models, changed)


def _say_changed(models: list[nn.Module], changed: list[nn.Parameter]) -> None:
    names = {id(p): name for model in models for name, p in model.named_parameters()}
    which = ", ".join(names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in changed[:4])
    LOG.warning(
        "vizlog: what ran in a pass of vizlog's has changed parameters in place for the first time, which cannot be "
        "undone: %s. From now on they are put back after each pass",
        which + (f" and {len(changed) - 4} more" if len(changed) > 4 else ""),
    )


def _others(modules: list[nn.Module], held: Iterable[Tensor]) -> list[Tensor]:
    """Buffers and the other tensors, each once, without those that have no values yet."""
    buffers = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
    found = {id(tensor): tensor for tensor in (*buffers, *held) if not is_lazy(tensor)}
    return list(found.values())


@contextmanager
def _tensors(tensors: list[Tensor]) -> Iterator[None]:
    kept = [(tensor, copy) for tensor in tensors if (copy := _copied(tensor)) is not None]
    with _versions_kept(tensor for tensor, _ in kept):
        try:
            yield
        finally:
            with ExitStack() as stack:  # each, whatever happens to another
                for tensor, copy in kept:
                    stack.callback(_fill, tensor, copy)


@contextmanager
def _versions_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards a graph that saved one of these, which are put back, can still run its backward."""
    kept: list[Any] = [_unsafe_preserve_version_counter(tensor) for tensor in tensors if not tensor.is_inference()]
    try:
        yield
    finally:
        for version in kept:
            version.__exit__()


def _fill(tensor: Tensor, copy: Tensor) -> None:
    if tensor.layout == torch.sparse_coo:  # its `.data` shares the memory alone, and other is put in its place
        if not _same_sparse(tensor, copy):
            with torch.no_grad(), _unsafe_preserve_version_counter(tensor):
                tensor.copy_(copy)
        return
    if tensor.shape != copy.shape:  # an observer's, which is as large as what it has seen
        with torch.no_grad():
            tensor.resize_(copy.shape)
    # What has not changed is not written, for it may lie in a file that is only read; it is where to look at it would
    # wait for a device. `.data` leaves the version counter alone: a graph that saved it can still run its backward.
    if tensor.device.type != "cpu" or not _same_bits(tensor.data, copy):
        tensor.data.copy_(copy)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether they are known to hold the same; of what is no plain tensor nothing is."""
    word = _WORDS.get(one.element_size()) if type(one) is Tensor and has_memory(one) else None
    if word is None or one.dtype not in _COMPARABLE:
        return False
    one, other = one.resolve_conj().resolve_neg(), other.resolve_conj().resolve_neg()  # lazy ones have no such view
    return torch.equal(one.view(word), other.view(word))


def _same_sparse(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_coalesced() != other.is_coalesced():
        return False
    read = (torch.Tensor._indices, torch.Tensor._values)  # noqa: SLF001 -- the others are of coalesced ones alone
    return all(_same_bits(part(one), part(other)) for part in read)


_COMPARABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _copied(tensor: Tensor) -> Tensor | None:
    """A copy, or None of what torch cannot copy (int4, bits8) or is expanded, and so cannot be changed in place."""
    if is_given_up(tensor) or (tensor.layout == torch.strided and not tensor.is_nested and _is_expanded(tensor)):
        return None
    try:
        return tensor.clone()
    except RuntimeError:
        return None


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@contextmanager
def generators_kept(generators: Iterable[Any]) -> Iterator[None]:
    """Afterwards random generators have the states that they had."""
    kept = [_state(generator) for generator in generators]
    try:
        yield
    finally:
        with ExitStack() as stack:  # each, whatever happens to another
            for state, put_back in kept:
                stack.callback(put_back, state)


def _state(generator: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The state of a generator and what sets it."""
    if isinstance(generator, random.Random):
        return generator.getstate(), generator.setstate
    if hasattr(generator, "get_state"):  # torch's, and NumPy's old one
        return generator.get_state(), generator.set_state
    bits = getattr(generator, "bit_generator", generator)
    return bits.state, lambda state: setattr(bits, "state", state)


@contextmanager
def contents_kept(containers: Iterable[Any]) -> Iterator[None]:
    """Afterwards lists, dicts, sets, deques, arrays and tensors hold what they held."""
    kept = [(container, copy) for container in containers if (copy := _shallow(container)) is not None]
    try:
        yield
    finally:
        _put_all_back(kept)


@contextmanager
def _hooks(modules: list[nn.Module]) -> Iterator[None]:
    # Some models of transformers add them at their first forward, and keep that they did in an attribute; one that
    # makes something at the first forward takes itself off.
    all_hooks = [hooks for module in modules for name in _HOOKS if (hooks := module.__dict__.get(name)) is not None]
    kept = [(hooks, dict(hooks) if hooks else _NONE) for hooks in all_hooks]
    try:
        yield
    finally:
        _put_all_back((hooks, before) for hooks, before in kept if hooks or before)


@contextmanager
def _derived(tensors: list[Tensor]) -> Iterator[None]:
    # Some models freeze layers where they evaluate, or hook a gradient at their first forward; and what one adds to a
    # buffer has a gradient where the input is derived by, as by saliency.
    kept = list(map(_OF_AUTOGRAD, tensors))
    with contents_kept(hooks for _, early, late in kept for hooks in (early, late) if hooks is not None):
        try:
            yield
        finally:
            with ExitStack() as stack:  # each, whatever happens to another
                for tensor, before in zip(tensors, kept, strict=True):
                    if _OF_AUTOGRAD(tensor) != before:
                        stack.callback(_put_back_derived, tensor, before)


def _put_back_derived(tensor: Tensor, before: tuple[Any, ...]) -> None:
    if not tensor.is_leaf:
        tensor.detach_()
    tensor.requires_grad, *hooks = before
    for name, kept in zip(_GRADIENT_HOOKS, hooks, strict=True):
        if (now := getattr(tensor, name)) is not kept:
            (now or {}).clear()  # torch goes on with those that it was given, also once None is in their place
            setattr(tensor, name, kept)


class _Data:
    """What modules hold in their attributes that a forward may change from within; each once, by id.

    Attributes:
        containers: lists, dicts, sets, deques and arrays, and what holds the attributes of objects and of tensors.
    """

    def __init__(self, modules: Iterable[nn.Module], left_alone: frozenset[str]) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.generators: dict[int, Any] = {}
        self.containers: dict[int, Any] = {}
        self._known: set[int] = set()
        for module in modules:
            for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                value = module.__dict__.get(name)
                if name not in left_alone and isinstance(value, (dict, set)):  # a ScriptModule's lie beyond Python
                    self.containers[id(value)] = value
                    if value and name in {"_parameters", "_buffers"}:
                        self._add_attributes(held for held in _parts(value) if held is not None)
            kind: Any = type(module)
            if _slots_in(kind):
                self.containers.update((_identity(slots), slots) for slots in _slots_of(module))
            for value in _own(module):
                self._add_once(value)

    def _add_once(self, value: Any) -> None:
        if type(value) not in _PLAIN and id(value) not in self._known:
            self._known.add(id(value))
            self._add(value)

    def _add_attributes(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.containers[id(tensor)] = tensor.__dict__
            if tensor.__dict__:
                for value in tensor.__dict__.values():
                    self._add_once(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
            self._add_attributes([value])
            return
        found = _Walk()
        if found.is_data(value):
            self.tensors.update(found.tensors)
            self.generators.update(found.generators)
            self.containers.update(found.containers)
            return
        if isinstance(value, _COLLECTIONS) and len(parts := list(_parts(value))) <= _MOST_PARTS:
            for part in parts:
                if isinstance(part, Tensor) or is_generator(part):
                    self._add(part)
        if isinstance(value, _CONTAINERS):  # of modules or functions, say: itself, but nothing in it
            self.containers[id(value)] = value


class _Walk:
    """Finds all there is in one value, as long as that is data, and not much."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.generators: dict[int, Any] = {}
        self.containers: dict[int, Any] = {}
        self._parts_left, self._bytes_left = _MOST_PARTS, 64 << 20

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
        if type(value) in _PLAIN or isinstance(value, (nn.Parameter, *_CONSTANT)):
            return True
        if isinstance(value, (np.ndarray, *_ARRAYS)):
            return self._take_array(value)
        if is_generator(value):
            self.generators[id(value)] = value
            return True
        if isinstance(value, Tensor):
            if id(value) not in self.tensors:
                self.tensors[id(value)] = value
                self.containers[id(value)] = value.__dict__
                self._bytes_left -= value.numel() * value.element_size()
                waiting += value.__dict__.values()
            return self._bytes_left >= 0
        self._parts_left -= 1
        held = _attributes_of(value)
        if isinstance(value, _COLLECTIONS):
            held.append(value)
        for container in held:
            if _identity(container) not in self.containers:
                self.containers[_identity(container)] = container
                waiting += _parts(container)
        return bool(held) and self._parts_left >= 0

    def _take_array(self, value: Any) -> bool:
        if not isinstance(value, np.ndarray) or value.flags.writeable:
            self.containers[id(value)] = value
            self._bytes_left -= memoryview(value).nbytes if isinstance(value, _ARRAYS) else value.nbytes
        return self._bytes_left >= 0 and not (isinstance(value, np.ndarray) and value.dtype.hasobject)


def is_generator(value: Any) -> bool:
    """Whether it is a random generator, of torch, NumPy or Python."""
    return isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom)  # which has no state


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
    kind = type(value)
    if kind in _BARE or isinstance(value, nn.Module):
        return []
    if not all(base.__flags__ & _HEAP_TYPE or base in _BUILT_IN for base in kind.__mro__[:-1]):
        return []
    held: list[Any] = _slots_of(value)
    return [*held, value.__dict__] if hasattr(value, "__dict__") else held


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
    # By the methods of the plain kind, here and below: those of a class of one's own may do more, such as count reads.
    kind: Any = next(kind for kind in _COLLECTIONS if isinstance(container, kind))
    found: Iterable[Any] = kind.values(container) if kind is dict else kind.__iter__(container)
    return found


_EMPTY = object()
_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, *weakref.ProxyTypes}
)
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
# Of a state dict they change nothing in training, and those that `fully_shard` adds in the first forward must stay.
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.startswith(("_forward_", "_backward_")))
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OF_AUTOGRAD = operator.attrgetter("requires_grad", *_GRADIENT_HOOKS)
_NONE: dict[Any, Any] = {}
_DEEPEST_MODULE = 3
_MOST_PARTS = 10_000
_HEAP_TYPE = 1 << 9  # of CPython's type flags: a class that a `class` statement made


def _left_alone(models: list[nn.Module]) -> frozenset[str]:
    # A forward of sharded modules puts whole parameters in place of the shards, and keeps a book of its own on that.
    return frozenset({"_parameters"} if sharded_modules(models) else ())


def _same(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether they hold the same objects, in one order."""
    if b is _NONE:
        return not a
    kind: Any = OrderedDict if isinstance(a, OrderedDict) else dict
    if dict.__len__(a) != len(b) or not all(map(operator.is_, kind.keys(a), b)):
        return False
    return all(map(operator.is_, kind.values(a), b.values()))


def _shallow(container: Any) -> Any:
    """Its parts, as the plain container or array that holds them; None of what cannot be changed in place."""
    if type(container) is dict:  # nearly all are
        return container.copy() if container else _NONE
    if type(container) is set:
        return container.copy() if container else frozenset()
    if isinstance(container, np.ndarray):
        return container.copy()
    if isinstance(container, Tensor):
        return _copied(container)
    if isinstance(container, _Slots):
        return container.read()
    if isinstance(container, _ARRAYS):
        return container[:]
    if isinstance(container, (tuple, frozenset)):
        return None
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    if kind is dict:
        return dict(OrderedDict.items(container) if isinstance(container, OrderedDict) else dict.items(container))
    return kind(kind.__iter__(container))


def _put_all_back(kept: Iterable[tuple[Any, Any]]) -> None:
    """Each, whatever happens to another; then the first error is raised."""
    errors = []
    for container, copy in kept:
        try:
            _put_back(container, copy)
        except Exception as error:  # noqa: BLE001 -- raised below
            errors.append(error)
    if errors:
        raise errors[0]


def _put_back(container: Any, copy: Any) -> None:
    # What has not changed is not touched: the training may be in the middle of a loop over it. And by the methods of
    # the plain kind: those of a class of one's own may do more.
    if isinstance(container, dict):
        if not _same(container, copy):
            of_dicts: Any = OrderedDict if isinstance(container, OrderedDict) else dict
            of_dicts.clear(container)
            of_dicts.update(container, copy)
    elif isinstance(container, set):
        if set.__ne__(container, copy):
            set.clear(container)
            set.update(container, copy)
    elif isinstance(container, (Tensor, np.ndarray, *_ARRAYS)):
        _put_back_numbers(container, copy)
    elif isinstance(container, _Slots):
        container.write(copy)
    else:
        of_lists: Any = deque if isinstance(container, deque) else list
        if of_lists.__len__(container) != len(copy) or any(map(operator.is_not, of_lists.__iter__(container), copy)):
            of_lists.clear(container)
            of_lists.extend(container, copy)


def _put_back_numbers(held: Any, copy: Any) -> None:
    if isinstance(held, Tensor):
        _fill(held, copy)
    elif isinstance(held, np.ndarray):
        if held.shape != copy.shape:
            np.ndarray.resize(held, copy.shape, refcheck=False)  # others hold it, as they did where it was resized
        if held.tobytes() != copy.tobytes():
            held[...] = copy
    elif bytes(held) != bytes(copy):
        held[:] = copy


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for LightningModule.log, which would add our pass to the run's own metrics."""
