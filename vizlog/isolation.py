"""The guard: run a model again so that training cannot tell."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from vizlog.ranks import reshard, sharded_modules

__all__ = ["isolated"]


@contextmanager
def isolated(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the models are in eval mode and run eagerly; afterwards all is as it was before, whatever was raised.

    Kept and put back: the random states of torch (CPU and the models' devices), Python and NumPy; the contents of every
    buffer and other tensor attribute (metric states); every module's attributes, lists and dicts, each training flag
    separately (a frozen BatchNorm stays frozen); every `.grad`, which is None inside. A LightningModule's `log` does
    nothing inside.

    Modules that `fully_shard` was applied to hold their own shards again afterwards; all ranks go inside together.

    What cannot be kept: objects of other kinds that a forward changes from within, such as a key-value cache.
    """
    models = list(models)
    modules = list({id(module): module for model in models for module in model.modules()}.values())
    with ExitStack() as stack:
        stack.enter_context(_random_states(models))
        stack.enter_context(_eager())
        stack.enter_context(_no_cached_casts())
        stack.enter_context(_no_reentrant_checkpoints())
        stack.enter_context(_gradients(models))
        stack.callback(reshard, models)
        stack.enter_context(_tensors(modules))
        stack.enter_context(_attributes(modules, _left_alone(models)))
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # its flag lies beyond Python
                stack.callback(setattr, module, "training", module.training)
                module.training = False
                continue
            # Through __dict__: a user's __setattr__ or a metric's must not see it.
            module.__dict__["training"] = False
            for name in ("log", "log_dict"):
                if hasattr(type(module), name) and hasattr(type(module), "training_step"):
                    module.__dict__[name] = _silent
        yield


@contextmanager
def _random_states(models: list[nn.Module]) -> Iterator[None]:
    devices = {parameter.device for model in models for parameter in model.parameters()}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {device.type for device in devices} - {"cpu", "meta"}:
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(legacy)


def _eager() -> AbstractContextManager[Any]:
    # Calling a compiled module in another mode or shape would add a graph for each. Where dynamo was never imported
    # nothing is compiled, but flex_attention would import it and compile itself.
    if sys.modules.keys().isdisjoint(("torch._dynamo", "torch.nn.attention.flex_attention")):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    # Where the whole training runs inside one autocast, a weight cast without a gradient would cut the next forward's.
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _no_reentrant_checkpoints() -> Iterator[None]:
    # Nothing can be derived by an input through them, as saliency does; under no_grad they warn.
    kept = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Uncheckpointed  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = kept  # type: ignore[misc]


class _Uncheckpointed:
    """Stands in for torch's reentrant checkpoint: calls the function, and keeps what it keeps."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: object, *args: Any) -> Any:
        return function(*args)


@contextmanager
def _gradients(models: list[nn.Module]) -> Iterator[None]:
    kept = [(parameter, parameter.grad) for model in models for parameter in model.parameters()]
    for parameter, gradient in kept:
        if gradient is not None:
            parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def _tensors(modules: list[nn.Module]) -> Iterator[None]:
    kept = {
        id(tensor): (tensor, tensor.detach().clone())
        for module in modules
        for values in (module._buffers, module.__dict__)
        for tensor in values.values()
        if isinstance(tensor, Tensor) and not tensor.is_meta
    }
    try:
        yield
    finally:
        for tensor, copy in kept.values():
            # `.data` leaves the version counter alone: a graph that saved this buffer can still run its backward.
            tensor.data.copy_(copy)


@contextmanager
def _attributes(modules: list[nn.Module], left_alone: frozenset[str]) -> Iterator[None]:
    kept = []
    for module in modules:
        attributes = dict(module.__dict__)
        containers = [
            (value, value.copy())
            for name, value in attributes.items()
            if type(value) in _CONTAINERS and name not in left_alone
        ]
        kept.append((module.__dict__, attributes, containers))
    try:
        yield
    finally:
        for current, attributes, containers in kept:
            if not _same(current, attributes):
                current.clear()
                current.update(attributes)
            for container, copy in containers:
                _put_back(container, copy)


_CONTAINERS = (list, dict, set)


def _left_alone(models: list[nn.Module]) -> frozenset[str]:
    # A forward of sharded modules puts whole parameters in place of the shards, and keeps a book of its own on that.
    return frozenset({"_parameters"} if sharded_modules(models) else ())


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return len(a) == len(b) and all(a.get(name, a) is value for name, value in b.items())


def _put_back(container: Any, copy: Any) -> None:
    if isinstance(container, list):
        if len(container) != len(copy) or any(a is not b for a, b in zip(container, copy, strict=True)):
            container[:] = copy
    elif isinstance(container, set):
        if container != copy:
            container.clear()
            container.update(copy)
    elif not _same(container, copy):
        container.clear()
        container.update(copy)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for LightningModule.log, which would add our pass to the run's own metrics."""
