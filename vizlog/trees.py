"""Examples as models take them: tensors in tuples, lists and mappings, whatever else lies among them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = [
    "Tree",
    "are_mappings",
    "are_several",
    "are_words",
    "has_places",
    "is_as_long",
    "is_leaf",
    "leaves",
    "lent",
    "mapped",
    "named",
    "tensors_in",
]

Tree: TypeAlias = Any
"""A tensor, or tuples, lists and mappings of tensors; anything else in it passes through."""

_LARGE = 64 << 20
"""Bytes from which on a constant is not copied for each forward: the model is given the user's own."""


def tensors_in(tree: Tree) -> list[Tensor]:
    """All tensors in it, those of no dimension aside."""
    if isinstance(tree, Tensor):
        return [tree] if tree.ndim else []
    if isinstance(tree, Mapping):
        return [tensor for part in tree.values() for tensor in tensors_in(part)]
    if isinstance(tree, (tuple, list)):
        return [tensor for part in tree for tensor in tensors_in(part)]
    return []


def _is_tensor(tree: Tree) -> bool:
    return isinstance(tree, Tensor)


def mapped(function: Callable[[Any], Any], tree: Tree, is_leaf: Callable[[Tree], bool] = _is_tensor) -> Tree:
    """The same tree, with what the function makes of each leaf; what is neither leaf nor branch stays as it is."""
    if is_leaf(tree):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(function, part, is_leaf) for name, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(function, part, is_leaf) for part in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(function, part, is_leaf) for part in tree)
    return tree


def named(tree: Tree, depth: int = 3) -> dict[Any, Any]:
    """The parts of a mapping, a dataclass or a named tuple by name, those within by both names, `heads.a`; else {}.

    Several tensors in a tuple or list, and words beside them, are named by their places: 0, 1 ….
    """
    parts: Mapping[Any, Any] = {}
    if isinstance(tree, Mapping):
        parts = tree
    elif is_dataclass(tree) and not isinstance(tree, type):
        parts = {field.name: getattr(tree, field.name, None) for field in fields(tree)}
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = dict(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, (tuple, list)) and are_several(tree, Tensor):
        parts = dict(enumerate(tree))
    found: dict[Any, Any] = {}
    for name, part in parts.items():
        within = named(part, depth - 1) if depth > 1 else {}
        found |= {f"{name}.{inner}": leaf for inner, leaf in within.items()} or {name: part}
    return found


def has_places(tree: Tree) -> bool:
    """Whether its parts have places, and no names: a tuple or list, and no named tuple."""
    return isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields")


def are_several(parts: Sequence[Any], of: type | tuple[type, ...]) -> bool:
    """Whether these are two parts or more, some of a type, such as tensors, all others words."""
    others = [part for part in parts if not isinstance(part, of)]
    return len(others) < len(parts) > 1 and all(map(are_words, others))


def is_leaf(part: Tree) -> bool:
    """Whether this is what rows are taken out of: a tensor, or a list of a mapping or a string for each example.

    A loader gives strings in a tuple.
    """
    return isinstance(part, Tensor) or are_words(part) or (isinstance(part, list) and are_mappings(part))


def leaves(tree: Tree) -> list[Any]:
    """All that `is_leaf`, in order."""
    found: list[Any] = []
    mapped(found.append, tree, is_leaf)
    return found


def is_as_long(leaf: Any, number: int) -> bool:
    """Whether a leaf has as many rows."""
    return not (isinstance(leaf, Tensor) and leaf.ndim == 0) and len(leaf) == number


def lent(tree: Tree, has_rows: Callable[[Any], bool]) -> Tree:
    """The tree as a model is given it: with copies of the constants, which a forward might change in place.

    Parts with rows are copies already, made when rows were taken. What cannot be copied is given as it is; so are
    modules, whose copies would learn nothing, and large constants.
    """

    def copied(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part if has_rows(part) or part.nbytes > _LARGE else part.clone()
        if isinstance(part, nn.Module):
            return part
        try:
            return copy.deepcopy(part)
        except Exception:  # noqa: BLE001 -- an object of the user's own, which may raise anything
            return part

    def is_no_branch(part: Tree) -> bool:
        return not isinstance(part, (Mapping, tuple, list)) or are_mappings(part)

    return mapped(copied, tree, is_no_branch)


def are_mappings(tree: Tree) -> bool:
    """Whether this is a list of mappings, as detectors take targets: one an example, with a row for each box."""
    return isinstance(tree, (list, tuple)) and bool(tree) and all(isinstance(part, Mapping) for part in tree)


def are_words(tree: Tree) -> bool:
    """Whether this is a list of strings, and None where there is none, as a loader gives classes by name."""
    if not isinstance(tree, (list, tuple)) or not all(part is None or isinstance(part, str) for part in tree):
        return False
    return any(part is not None for part in tree)
