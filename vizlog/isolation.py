"""The guard: run a model again so that training cannot tell."""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils import checkpoint

from vizlog.changes import learnt, parameters_kept, remember_renormed
from vizlog.contents import all_modules, contents_kept, data_in, generators_kept
from vizlog.copies import put_all_back, tensors_kept
from vizlog.ranks import is_sharded, reshard, sharded_modules
from vizlog.setting import Setting

__all__ = ["changes_learnt", "eager", "hidden_states", "isolated", "start_noise"]

# Of a state dict they change nothing in training, and those that `fully_shard` adds in the first forward must stay.
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.startswith(("_forward_", "_backward_")))
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STATES = (Tensor, tuple, type(None))
_OF_AUTOGRAD = operator.attrgetter("requires_grad", *_GRADIENT_HOOKS)


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
    modules, values = all_modules(models)
    sharded = bool(sharded_modules(models))
    with ExitStack() as stack:
        parameters, data = _parameters_of(modules), data_in(modules, values, sharded=sharded)
        tensors = _with_values((*_buffers_of(modules), *data.tensors.values()))
        of_autograd = [*parameters, *(tensor for tensor in tensors if tensor.is_leaf)]
        stack.enter_context(_random_states(parameters))
        stack.enter_context(eager())
        stack.enter_context(_no_cached_weights())
        stack.enter_context(_UNCHECKPOINTED.held())
        stack.enter_context(_saved_as_is())
        stack.enter_context(_gradients(of_autograd))
        stack.callback(reshard, models)
        if not sharded:
            remember_renormed(modules)
            stack.enter_context(parameters_kept(models, parameters))
        stack.enter_context(tensors_kept(tensors))
        stack.enter_context(generators_kept(data.generators.values()))
        attributes, hooks = (module.__dict__ for module in modules), _hooks_of(modules)
        stack.enter_context(contents_kept((*attributes, *data.containers.values(), *hooks)))
        stack.enter_context(_derived(of_autograd))
        for module in modules:
            _evaluate(module, stack)
        yield


@contextmanager
def changes_learnt(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside `isolated`, around a first forward: learns which parameters it changes in place, and puts them back.

    Sharded models are left alone.
    """
    models = list(models)
    modules, _ = all_modules(models)
    parameters = _parameters_of(modules)
    sharded = sharded_modules(models) or any(map(is_sharded, parameters))
    with nullcontext() if sharded else learnt(parameters):
        yield


def hidden_states(models: Iterable[nn.Module]) -> Callable[[], None]:
    """Inside `isolated`: what puts hidden states back, so that each of several forwards starts from those of now.

    They are tensors, or tuples of them, that a forward replaces in the attributes and buffers of a module. What it
    changes in place stays as it is until the isolation ends.
    """
    modules, _ = all_modules(models)
    places: list[dict[str, Any]] = [held for m in modules for held in (m.__dict__, m.__dict__.get("_buffers", {}))]
    kept = [(held, name, now) for held in places for name, now in held.items() if isinstance(now, _STATES)]

    def put_back() -> None:
        for held, name, before in kept:
            if (now := held.get(name)) is not before and isinstance(now, _STATES):
                held[name] = before

    return put_back


def _parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """Theirs, each once."""
    found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return list(found.values())


def _buffers_of(modules: list[nn.Module]) -> list[Tensor]:
    return [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]


def _with_values(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each once, without those that have no values yet."""
    return list({id(tensor): tensor for tensor in tensors if not is_lazy(tensor)}.values())


def _hooks_of(modules: list[nn.Module]) -> list[Any]:
    # Some models of transformers add them at their first forward, and keep that they did in an attribute; one that
    # makes something at the first forward takes itself off.
    return [hooks for module in modules for name in _HOOKS if (hooks := module.__dict__.get(name)) is not None]


def _evaluate(module: nn.Module, stack: ExitStack) -> None:
    """Puts a module, whose attributes will be put back, in eval mode, and has it tell nobody of what it does."""
    if isinstance(module, torch.jit.ScriptModule):  # its flag lies beyond Python
        stack.callback(setattr, module, "training", module.training)
        module.training = False
        return
    # Through __dict__: a user's __setattr__ or a metric's must not see it.
    module.__dict__["training"] = False
    if isinstance(module, nn.parallel.DistributedDataParallel):  # itself it would wait for the other ranks
        module.__dict__["forward"] = module.module
    for name in ("log", "log_dict"):
        if hasattr(type(module), name) and hasattr(type(module), "training_step"):
            module.__dict__[name] = _silent


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for LightningModule.log, which would add our pass to the run's own metrics."""


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
    kept = [(tensor, tensor.grad) for tensor in tensors if tensor.layout == torch.strided and tensor.is_leaf]
    kept = [(tensor, gradient) for tensor, gradient in kept if gradient is None or _fits(gradient, tensor)]
    for tensor, gradient in kept:
        if gradient is not None:
            tensor.grad = None
    try:
        yield
    finally:
        changed = [(t, gradient) for t, gradient in kept if t.is_leaf and t.grad is not gradient]
        put_all_back((_set_gradient, tensor, gradient) for tensor, gradient in changed)


def _set_gradient(tensor: Tensor, gradient: Tensor | None) -> None:
    tensor.grad = gradient


def _fits(gradient: Tensor, tensor: Tensor) -> bool:
    """Whether torch would let it be put back."""
    # Not one of another type, as of an optimizer that makes the weights wide only while it steps, or of another shape,
    # as of a layer that was pruned or grown since; nor, as the caller knows, a strided one of a sparse parameter.
    return gradient.dtype == tensor.dtype and gradient.shape == tensor.shape


@contextmanager
def _derived(tensors: list[Tensor]) -> Iterator[None]:
    # Some models freeze layers where they evaluate, or hook a gradient at their first forward; and what one adds to a
    # buffer has a gradient where the input is derived by, as by saliency.
    kept = list(map(_OF_AUTOGRAD, tensors))
    with contents_kept(hooks for _, early, late in kept for hooks in (early, late) if hooks is not None):
        try:
            yield
        finally:
            both = zip(tensors, kept, strict=True)
            put_all_back(
                (_put_back_derived, tensor, before) for tensor, before in both if _OF_AUTOGRAD(tensor) != before
            )


def _put_back_derived(tensor: Tensor, before: tuple[Any, ...]) -> None:
    if not tensor.is_leaf:
        tensor.detach_()
    tensor.requires_grad, *hooks = before
    for name, kept in zip(_GRADIENT_HOOKS, hooks, strict=True):
        if (now := getattr(tensor, name)) is not kept:
            (now or {}).clear()  # torch goes on with those that it was given, also once None is in their place
            setattr(tensor, name, kept)
