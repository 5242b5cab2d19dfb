"""Which modules and parameters: names, patterns and types -> what a probe looks at.

Canonical names are those of `named_modules()` with every wrapper's part taken out, so that an eager, a compiled and a
distributed run write the same tags. With several models each name begins with the model's own, or its number.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

__all__ = [
    "Select",
    "bare",
    "check_select",
    "device_of",
    "float_type",
    "given_models",
    "is_leaf",
    "matcher",
    "named_models",
    "named_modules",
    "named_once",
    "named_parameters",
    "nothing_matches",
    "parts_of",
    "selected_parameters",
    "spread",
]

Select: TypeAlias = "str | re.Pattern[str] | type[nn.Module] | Callable[[str, Any], bool] | Sequence[Select] | None"
"""A glob over canonical names, `"re:…"` or a compiled pattern, a module type, a function of (name, module or
parameter), a list of these (any of them), or None for everything."""

Matcher: TypeAlias = Callable[[str, Any], bool]
T = TypeVar("T")

# Where a wrapper keeps what it wraps: torch.compile, FSDP1, activation checkpointing.
_WRAPPED_AS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# These keep it as `module`; so do people's own residual blocks, whose names are theirs.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def bare(model: nn.Module) -> nn.Module:
    """`model` without the wrappers of torch.compile, DataParallel, DistributedDataParallel and Fabric around it."""
    while not isinstance(model, torch.jit.ScriptModule):  # which wraps nothing, and has no dict of modules
        inner = model._modules.get("_orig_mod")
        if inner is None:
            inner = model._modules.get("_original_module")  # Fabric's, beside `_forward_module`
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner
    return model


def is_leaf(module: nn.Module) -> bool:
    """Whether it computes its output itself: it has no parts but those that make its parameters, or calls none."""
    return (
        not module._modules
        or {"parametrizations"}.issuperset(module._modules.keys())  # which are a list where the module is scripted
        or isinstance(module, nn.MultiheadAttention)  # of its `out_proj` it takes the weights alone
    )


def parts_of(models: Iterable[nn.Module], found: set[int] | None = None) -> list[nn.Module]:
    """The modules and all their parts, each once, as by `modules()`, which takes several times as long.

    Args:
        found: ids of those that are left out; those of all others are added.
    """
    parts: list[nn.Module] = []
    found = set() if found is None else found
    for model in models:
        _find_parts(model, parts, found)
    return parts


def _find_parts(module: nn.Module, parts: list[nn.Module], found: set[int]) -> None:
    if id(module) in found:
        return
    found.add(id(module))
    parts.append(module)
    for part in module._modules.values():
        if part is not None:
            _find_parts(part, parts, found)


def named_models(model: Any) -> dict[str, nn.Module]:
    """What a person gave as model -> {name: bare module}; one alone is named "".

    Raises:
        TypeError: it is neither a module, nor a list or dict of modules.
    """
    return {name: bare(part) for name, part in given_models(model).items()}


def given_models(model: Any) -> dict[str, nn.Module]:
    """`named_models` with their wrappers on, as the training calls them; Fabric's alone is off.

    Raises:
        TypeError: it is neither a module, nor a list or dict of modules.
    """
    holds_models = isinstance(model, (nn.ModuleList, nn.ModuleDict)) and type(model).forward is nn.Module.forward
    if isinstance(model, nn.Module) and not holds_models:
        return {"": _without_fabric(model)}
    if isinstance(model, (Mapping, nn.ModuleDict)):
        models = {str(name): part for name, part in model.items()}
    elif isinstance(model, (list, tuple)) and len(model) == 1:  # the only pipeline part of this rank
        models = {"": model[0]}
    elif isinstance(model, (Sequence, nn.ModuleList)) and not isinstance(model, str):
        models = {str(number): part for number, part in enumerate(model)}
    else:
        raise TypeError(f"model must be an nn.Module, a list or a dict of them, got {type(model).__name__}")
    wrong = [f"{name}: {type(part).__name__}" for name, part in models.items() if not isinstance(part, nn.Module)]
    if wrong or not models:
        raise TypeError(f"every model must be an nn.Module, got {', '.join(wrong) or 'none at all'}")
    return {name: _without_fabric(part) for name, part in models.items()}


def named_modules(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Canonical name -> module, in order of definition; no wrappers, a shared module once, under its first name."""
    return dict(_once(_modules, models))


def _modules(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, model in models.items():
        _walk(name, model, found, seen)
    return found


def named_parameters(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, in order of definition; a shared parameter once, under its first name.

    A lazy parameter is there from its first forward on.
    """
    return dict(_once(_parameters, models))


def _parameters(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, module in _once(_modules, models).items():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen and not is_lazy(parameter):
                seen.add(id(parameter))
                found[_join(prefix, name)] = parameter
    return found


@contextmanager
def named_once() -> Iterator[None]:
    """Inside, modules and parameters are named when somebody first asks for them, and keep their names."""
    if _named.get() is not None:
        yield
        return
    before = _named.set({})
    try:
        yield
    finally:
        _named.reset(before)


_named: ContextVar[dict[Any, Any] | None] = ContextVar("named", default=None)


def _once(find: Callable[[Mapping[str, nn.Module]], dict[str, T]], models: Mapping[str, nn.Module]) -> dict[str, T]:
    named = _named.get()
    if named is None:
        return find(models)
    key = find, *((name, id(model)) for name, model in models.items())
    if key not in named:
        named[key] = find(models)
    found: dict[str, T] = named[key]
    return found


def device_of(models: Mapping[str, nn.Module]) -> torch.device:
    """Where the first parameter of the models that has values lies; the CPU where there is none."""
    parameters = (parameter for model in models.values() for parameter in model.parameters())
    return next((parameter.device for parameter in parameters if not parameter.is_meta), torch.device("cpu"))


def float_type(models: Mapping[str, nn.Module]) -> torch.dtype | None:
    """Of the first parameter of the models that holds floating point numbers; None where none does."""
    parameters = (parameter for model in models.values() for parameter in model.parameters())
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)


def selected_parameters(models: Mapping[str, nn.Module], select: Select) -> dict[str, nn.Parameter]:
    """`named_parameters` that `select` means, by their own or their module's name, or their module's type."""
    if select is None:
        return named_parameters(models)
    matches = matcher(select)
    kinds = tuple(
        part for part in (select if isinstance(select, (list, tuple)) else [select]) if isinstance(part, type)
    )
    modules = named_modules(models)
    return {
        name: parameter
        for name, parameter in named_parameters(models).items()
        if matches(name, parameter) or isinstance(modules[name.rpartition(".")[0]], kinds)
    }


def matcher(select: Select) -> Matcher:
    """A function of (canonical name, module or parameter) that says whether `select` means it.

    A glob or regex matches a parameter by its own name or its module's. It pickles where `select` does.

    Raises:
        TypeError, ValueError: `select` is no selection; says what is one.
    """
    if select is None:
        return _everything
    if isinstance(select, type) and issubclass(select, nn.Module):
        return partial(_by_type, select)
    if isinstance(select, str) and not select.startswith("re:"):
        return partial(_by_name, re.compile(fnmatch.translate(select)))
    if isinstance(select, str):
        return partial(_by_name, _compiled(select[3:]))
    if isinstance(select, re.Pattern):
        return partial(_by_name, select)
    if isinstance(select, Sequence):
        return partial(_by_any, [matcher(part) for part in select])
    if callable(select) and not isinstance(select, type):
        return select
    raise TypeError(
        "select takes a glob such as 'encoder.*', 're:…', a compiled pattern, a module type, "
        f"a function of (name, module), or a list of these, got {select!r}"
    )


def check_select(select: Select, names: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raises where a pattern found nothing.

    Args:
        names: what could have been found, for the near names of the message.
        found: what was found.
        what: "module", "parameter" …, in the message.

    Raises:
        ValueError: `no module matches 'encodr.*'; the nearest names are 'encoder.0', 'encoder.1'`.
    """
    if select is None or any(True for _ in found):
        return
    raise ValueError(nothing_matches(select, names, what))


def nothing_matches(select: Select, names: Iterable[str], what: str) -> str:
    """The message for a selection that found nothing, with the nearest names there are."""
    names = [name for name in names if name]
    wanted = [part for part in (select if isinstance(select, (list, tuple)) else [select]) if part is not None]
    shown = " or ".join(
        repr(part) if isinstance(part, str) else getattr(part, "__name__", str(part)) for part in wanted
    )
    stems = [part.removeprefix("re:").strip("*. ") for part in wanted if isinstance(part, str)]
    near = [name for stem in stems for name in difflib.get_close_matches(stem, names, n=4, cutoff=0.4)] or names[:4]
    if not near:
        return f"no {what} matches {shown}; there is none"
    return f"no {what} matches {shown}; the nearest names are {', '.join(repr(name) for name in dict.fromkeys(near))}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spread and always with the first and the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _everything(_name: str, _value: Any) -> bool:
    return True


def _by_type(kind: type[nn.Module], _name: str, value: Any) -> bool:
    return isinstance(value, kind)


def _by_name(pattern: re.Pattern[str], name: str, value: Any) -> bool:
    if pattern.fullmatch(name) is not None:
        return True
    return isinstance(value, nn.Parameter) and pattern.fullmatch(name.rpartition(".")[0]) is not None


def _by_any(parts: Sequence[Matcher], name: str, value: Any) -> bool:
    return any(part(name, value) for part in parts)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'re:{pattern}' is not a regular expression: {error}") from error


def _without_fabric(model: nn.Module) -> nn.Module:
    """What is inside Lightning Fabric's wrapper, as that calls it: compiled, in DDP; it holds it bare as well."""
    inside = dict(model._modules.items()).get("_forward_module")
    return model if inside is None else inside


def _walk(name: str, module: nn.Module, found: dict[str, nn.Module], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    parts = module._modules
    if len(parts) == 1 and (inner := _wrapped(module)) is not None:
        _walk(name, inner, found, seen)
        return
    found[name] = module
    for part, child in parts.items():
        if child is not None:
            _walk(_join(name, part), child, found, seen)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps: its only child, kept under a wrapper's name, beside no parameters of its own."""
    if module._parameters:
        return None
    ((name, inner),) = module._modules.items()
    return inner if name in _WRAPPED_AS or isinstance(module, _WRAPPERS) else None


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
