"""Targets as a person gives them: what they are, and which examples show all classes among the first few."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vizlog.trees import are_several, are_words, has_places, is_as_long, mapped, named

__all__ = [
    "NO_LABEL",
    "TARGET_NAMES",
    "Kind",
    "as_tensor",
    "balanced",
    "class_numbers",
    "is_one_each",
    "kind_of",
    "names_in",
    "numbered",
    "numbers_among",
    "of_each",
    "only_one",
    "quantities",
    "whole",
]

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""What targets are called in batches that are mappings."""

NO_LABEL = -100
"""What cross-entropy ignores, and Hugging Face writes where there is nothing to learn."""

_FIRST_CLASSES = 32
"""Where there are more classes, the first examples are all of so many of them."""

_NUMBERS = (int, float, np.number, np.bool_)


@dataclass(frozen=True)
class Kind:
    """What targets are.

    Args:
        columns: what floating columns are, as `kind_of` says.
        are_classes: whether they are class numbers.
        classes: how many classes there are at least.
    """

    columns: Literal["shares", "sets", "numbers", ""] = ""
    are_classes: bool = False
    classes: int = 0

    @classmethod
    def of(cls, targets: Any) -> Kind:
        """That of targets as `as_tensor` gives them."""
        labels = class_numbers(targets)
        if labels is None or bool((labels == NO_LABEL).all()):
            return cls(kind_of(targets))
        return cls(kind_of(targets), are_classes=True, classes=int(labels.max()) + 1)


def as_tensor(targets: Any) -> Any:
    """Targets that are an array or a list of numbers as a tensor, words as a list of them, all others as they are."""
    words = targets.tolist() if isinstance(targets, np.ndarray) and targets.dtype.kind in "UOT" else targets
    if are_words(words):
        return list(words)
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(each, _NUMBERS) for each in targets):
        targets = np.asarray(targets)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biufc":
        kind = np.dtype(np.int64) if targets.dtype.kind == "u" else targets.dtype.newbyteorder("=")
        # In order, native and its own: torch takes none that is reversed or byte-swapped, and warns of a read-only one.
        return torch.as_tensor(np.array(targets, kind, order="C"), device="cpu")
    return targets


def kind_of(targets: Any) -> Literal["shares", "sets", "numbers", ""]:
    """What floating targets (N, C) are, with C of 2 or more; "" for all others.

    Shares of classes add up to 1, as one-hot rows do; of a set of labels an example has any number, 0.0 or 1.0 each.
    """
    if not isinstance(targets, Tensor) or targets.ndim != 2 or targets.shape[1] < 2 or not targets.is_floating_point():
        return ""
    found = targets.detach().cpu().double()
    if bool((found >= 0).all()) and bool(((found.sum(1) - 1).abs() < 1e-2).all()):
        return "shares"
    return "sets" if bool(((found == 0) | (found == 1)).all()) else "numbers"


def class_numbers(targets: Any, *, known: bool = False) -> Tensor | None:
    """(N,) int64 on the CPU of targets that are integers (N,) or (N, 1), or 0.0 and 1.0: of two classes, or one-hot.

    Args:
        targets: as `as_tensor` gives them.
        known: whether they are classes, as more of them have shown: one 0.0 alone may be any number.
    """
    if kind_of(targets) == "shares" and bool(((targets == 0) | (targets == 1)).all()):
        numbers: Tensor = targets.detach().cpu().argmax(1)
        return numbers
    if not isinstance(targets, Tensor) or targets.is_complex() or (targets.ndim != 1 and targets.shape[1:] != (1,)):
        return None
    found = targets.detach().cpu().reshape(-1)
    known = known or bool(((found == 0) | (found == 1)).all() and len(found.unique()) == 2)
    if targets.is_floating_point() and not known:
        return None
    return found.long()


def whole(targets: Any, classes: int) -> Any:
    """Floating targets (N,) that are all class numbers below `classes`, or NaN, as int64, −100; others as they are."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.ndim != 1:
        return targets
    known = targets[~targets.isnan()]
    if not len(known) or not bool(((known >= 0) & (known < classes) & (known % 1 == 0)).all()):
        return targets
    return targets.nan_to_num(NO_LABEL).long()


def names_in(targets: Any) -> tuple[str, ...]:
    """The classes that targets in words name, in order of the words; () of other targets, and of texts.

    Texts are words of which most are different, and which are many or long.
    """
    if not are_words(targets):
        return ()
    given = [word for word in targets if word is not None]
    names = sorted(set(given))
    are_short = sum(len(word.split()) for word in given) <= 4 * len(given)
    return tuple(names) if 2 * len(names) <= len(given) or (are_short and len(names) <= _FIRST_CLASSES) else ()


def numbered(words: Sequence[str | None], names: Sequence[str]) -> Tensor:
    """(N,) int64 on the CPU: the place of each word among the names; −100 for None.

    Raises:
        ValueError: one is none of them; says which are near.
    """
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    for word in words:
        if word is not None and word not in places:
            near = difflib.get_close_matches(word, names, n=3, cutoff=0.0)
            raise ValueError(
                f"targets in words must be among FixedBatch(class_names=), got {word!r}; "
                f"the nearest names are {', '.join(map(repr, near))}"
            )
    return torch.tensor([NO_LABEL if word is None else places[word] for word in words], device="cpu")


def quantities(targets: Any) -> Tensor | None:
    """(N,) float64 on the CPU of targets that are one real number each, (N,) or (N, 1); None for all others.

    Args:
        targets: as `as_tensor` gives them, and no classes.
    """
    if not isinstance(targets, Tensor) or targets.is_complex():
        return None
    return targets.detach().cpu().double().reshape(-1) if targets.ndim == 1 or targets.shape[1:] == (1,) else None


def balanced(targets: Any, number: int, most: int) -> Tensor:
    """Which examples to keep, in which order: round-robin over the classes if there are any, else evenly spread.

    Of more than 32 classes 32 that have several examples, spread over these, come before all others: of each there are
    then enough among the first examples to say how well they separate. Examples without a label come last: −100, and
    other negative numbers beside two classes or more (of −1 and 1 each is a class).

    Args:
        targets: as `as_tensor` gives them.
        number: how many examples there are.
        most: how many are kept.
    """
    labels = class_numbers(targets)
    if labels is None:
        return torch.linspace(0, number - 1, min(number, most), device="cpu").round().long()
    classes = labels.numpy()
    by_class = np.argsort(classes, kind="stable")
    names, starts, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    turn = np.empty(number, np.int64)  # which of its class each example is
    turn[by_class] = np.arange(number) - np.repeat(starts, counts)
    unlabelled = (classes < 0) if int((names >= 0).sum()) > 1 else (classes == NO_LABEL)
    several = names[(counts > 1) & (names >= 0)]
    first = several[np.linspace(0, len(several) - 1, min(len(several), _FIRST_CLASSES)).round().astype(int)]
    behind = (len(names) > _FIRST_CLASSES) & ~np.isin(classes, first)
    return torch.as_tensor(np.lexsort((classes, turn, behind, unlabelled))[:most], device="cpu")


def is_one_each(target: Any, number: int) -> bool:
    """Whether a target is a row, or a word, for each of so many examples."""
    return (isinstance(target, Tensor) or are_words(target)) and is_as_long(target, number)


def of_each(targets: Any, number: int, class_names: Sequence[str]) -> Any:
    """Several targets as tensors; what is not one for each example as it is, for the loss may take anything."""

    def is_one(part: Any) -> bool:
        several = isinstance(part, (tuple, list)) and are_several(part, (Tensor, np.ndarray))
        return not (isinstance(part, Mapping) or hasattr(part, "_fields") or several)

    def read(part: Any) -> Any:
        found = as_tensor(part)
        if are_words(found) and len(found) == number:
            are_named = {word for word in found if word is not None} <= {*class_names}
            return numbered(found, class_names) if are_named else found
        return found if isinstance(found, Tensor) and is_as_long(found, number) else part

    return mapped(read, targets, is_one)


def only_one(targets: Any, number: int) -> Any:
    """Of targets by name those that are the only ones, one for each example; all others as they are."""
    parts = list(named(targets).values()) if isinstance(targets, Mapping) else []
    return parts[0] if len(parts) == 1 and is_one_each(parts[0], number) else targets


def numbers_among(targets: Any) -> frozenset[Any]:
    """Names of the targets, where they have some, that are numbers and no classes: a regression's.

    Places are no names: which output is of the first target is not known before the output has told.
    """
    parts = {} if has_places(targets) else named(targets)
    floating = {name: x for name, x in parts.items() if isinstance(x, Tensor) and x.is_floating_point()}
    of_classes = {name for name, x in floating.items() if kind_of(x) in ("shares", "sets")}
    return frozenset(name for name in floating.keys() - of_classes if class_numbers(floating[name]) is None)
