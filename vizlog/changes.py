"""Parameters that a forward changes in place: learnt in a first pass, and put back after each that follows.

Copies of all would not fit, so it must be known which are needed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vizlog.copies import copied, fill, versions_kept
from vizlog.messages import LOG
from vizlog.ranks import has_memory

__all__ = ["learnt", "parameters_kept", "remember_renormed"]

_CHANGING: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()
"""Parameters that a forward changes in place, by id: of these each pass has a copy, as of buffers."""


@contextmanager
def learnt(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, around a first forward: learns which of these it changes in place, and puts them back.

    Each is copied just before it is first written to.
    """
    writes = _Writes(filter(_is_plain, parameters))
    try:
        with writes:
            yield
    finally:
        for parameter, data, copy in writes.before:
            _CHANGING[id(parameter)] = parameter
            if copy is not None:
                fill(data, copy)


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
                    self.before += [(p, data, copied(data)) for p, data in self._at.pop(_place(tensor), ())]
        return func(*args, **kwargs)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@functools.cache
def _written_by(func: Any) -> list[tuple[int, str]]:
    """Number and name of the arguments that an operator changes."""
    arguments = getattr(getattr(func, "_schema", None), "arguments", ())
    return [(n, each.name) for n, each in enumerate(arguments) if each.alias_info and each.alias_info.is_write]


def remember_renormed(modules: Iterable[nn.Module]) -> None:
    """An embedding of limited norm shortens the rows that it looks up."""
    for module in modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            weight: Any = module.weight
            _CHANGING[id(weight)] = weight


@contextmanager
def parameters_kept(models: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Afterwards parameters lie where they lay, and those that a forward is known to change hold what they held.

    Which others have been changed is said, with their names in the models, and known from then on.
    """
    # A forward may also give one other memory: an average of another network, prototypes of length 1.
    kept = [(p, p.data, p.data_ptr(), _version(p)) for p in parameters if _is_plain(p)]
    known = [(p, data, copied(data)) for p, data, *_ in kept if id(p) in _CHANGING]
    try:
        with versions_kept(p for p, *_ in known):
            yield
    finally:
        changed = [p for p, *_, version in kept if _version(p) != version and id(p) not in _CHANGING]
        for parameter, data, place, _ in kept:
            if parameter.data_ptr() != place:
                parameter.data = data
        for _, data, copy in known:
            if copy is not None and has_memory(data):
                fill(data, copy)
        if changed:
            _CHANGING.update((id(parameter), parameter) for parameter in changed)
            _say_changed(models, changed)


def _say_changed(models: Iterable[nn.Module], changed: Sequence[nn.Parameter]) -> None:
    names = {id(p): name for model in models for name, p in model.named_parameters()}
    which = ", ".join(names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in changed[:4])
    LOG.warning(
        "vizlog: what ran in a pass of vizlog's has changed parameters in place for the first time, which cannot be "
        "undone: %s. From now on they are put back after each pass",
        which + (f" and {len(changed) - 4} more" if len(changed) > 4 else ""),
    )


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and has_memory(parameter)


def _version(parameter: nn.Parameter) -> int:
    """How often torch has changed it in place; operations on its `.data` are not counted."""
    return 0 if parameter.is_inference() else parameter._version  # noqa: SLF001 -- it has no public name
