"""What a person gives as a batch: in a few words, and what to say where it is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from vizlog.trees import Tree, are_mappings, are_words, tensors_in

__all__ = [
    "INTEGERS",
    "OF_AN_OBJECT",
    "OF_A_GRAPH",
    "PLAIN",
    "check_shown",
    "check_words",
    "describe",
    "is_edges",
    "is_graph",
    "makes_a_batch",
    "number_of_examples",
]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)

PLAIN = (np.ndarray, list, tuple, Mapping, str, bytes, int, float, type(None), Tensor)
"""What is no object of some library's own, as a graph or a dataset is."""

OF_A_GRAPH = (
    "a graph, whose nodes cannot be run a few at a time, is given by their numbers as the examples, "
    "vizlog.FixedBatch(torch.arange(nodes), y, forward=lambda model, i: model(x, edges)[i])"
)
"""What to give in place of a graph, for messages."""

OF_AN_OBJECT = (
    "of an object give the tensors in it, vizlog.FixedBatch(batch.x, batch.y, forward=lambda model, x: …), where "
    f"forward makes of them what the model takes; {OF_A_GRAPH}"
)
"""What to give in place of an object of some library's own."""


def describe(value: Any) -> str:
    """A value in a few words, for messages: `float32 (8, 3, 32, 32)`."""
    if isinstance(value, Tensor):
        shape = "nested" if value.is_nested else tuple(value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} {shape}"
    if isinstance(value, Mapping):
        end = ", …}" if len(value) > 8 else "}"
        return "{" + ", ".join(f"{name}: {describe(part)}" for name, part in list(value.items())[:8]) + end
    if isinstance(value, (tuple, list)) and len(value) > 1 and are_words(value):
        return f"strings ({len(value)},)"
    if isinstance(value, (tuple, list)):
        end = ", …)" if len(value) > 8 else ",)" if len(value) == 1 else ")"
        return "(" + ", ".join(describe(part) for part in value[:8]) + end
    return "None" if value is None else type(value).__name__


def check_shown(names: Mapping[str, Any], tokens: Any, numbers: Mapping[str, Any]) -> None:
    """Raises where what only matters for showing examples is of a wrong type."""
    for name, value in names.items():
        if value is not None and (isinstance(value, str) or not isinstance(value, Iterable)):
            raise TypeError(f"FixedBatch({name}=) takes a list of names, got {value!r}")
    if isinstance(names["class_names"], Mapping) and not all(isinstance(key, Integral) for key in names["class_names"]):
        raise TypeError(
            f"FixedBatch(class_names=) takes names by the number of the class, got {names['class_names']!r}"
        )
    if isinstance(tokens, Mapping) and not all(isinstance(key, Integral) for key in tokens):
        raise TypeError(
            "FixedBatch(tokens=) takes strings by id; of a vocabulary of ids by string give sorted(vocabulary, "
            f"key=vocabulary.get), got {type(tokens).__name__} of {len(tokens)}"
        )
    reads = callable(tokens) or hasattr(tokens, "convert_ids_to_tokens")
    if tokens is not None and not reads and not (hasattr(tokens, "__getitem__") and hasattr(tokens, "__len__")):
        raise TypeError(
            "FixedBatch(tokens=) takes a list of strings by id, a tokenizer, or a function of a list of ids, "
            f"got {tokens!r}"
        )
    for name, value in numbers.items():
        try:
            np.asarray(0 if value is None else value, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"FixedBatch({name}=) takes a number, or one for each channel, got {value!r}") from None


def number_of_examples(inputs: Tree, targets: Any) -> int:
    """How many examples these are.

    Raises:
        TypeError, ValueError: they are no batch; says what was expected.
    """
    if isinstance(inputs, list) and any(isinstance(example, Mapping) for example in inputs):
        raise TypeError(
            "a list of examples is no batch yet: put them together as a DataLoader does, "
            "torch.utils.data.default_collate(examples)"
        )
    if are_mappings(targets) and isinstance(inputs, (list, tuple)) and len(inputs) == len(targets):
        raise TypeError(
            "a list of images is no batch yet: give vizlog.FixedBatch(torch.stack(images), targets, "
            "forward=lambda model, images: model(list(images)))"
        )
    tensors = tensors_in(inputs)
    if not tensors:
        advice = "torch.as_tensor makes one of a NumPy array or a list of numbers"
        raise TypeError(
            f"a fixed batch needs at least one tensor with examples along dimension 0, got {describe(inputs)}; "
            f"{advice if isinstance(inputs, PLAIN) else OF_AN_OBJECT}"
        )
    whole = next((x for x in (*tensors, targets) if isinstance(x, Tensor) and _is_in_one_piece(x)), None)
    if whole is not None and len(whole) == len(tensors[0]):
        kind = "nested" if whole.is_nested else "sparse"
        advice = f"give dense ones, padded, and let vizlog.FixedBatch(inputs, targets, forward=…) make them {kind}"
        raise TypeError(
            f"examples cannot be taken out of a {kind} tensor, got {describe(inputs)}: "
            f"{OF_A_GRAPH if _is_adjacency(whole) else advice}"
        )
    if _is_packed(inputs):
        raise TypeError(
            "examples cannot be taken out of a PackedSequence: give them padded, with their lengths, and let "
            "vizlog.FixedBatch((padded, lengths), targets, forward=lambda model, inputs: …) pack them"
        )
    number = len(tensors[0])
    if number == 0:
        raise ValueError(f"a fixed batch needs at least one example, got {describe(inputs)}")
    if isinstance(targets, Tensor) and (targets.ndim == 0 or len(targets) != number):
        raise ValueError(_not_one_each(inputs, targets, number))
    return number


def check_words(targets: Any, number: int) -> None:
    """Raises where targets are words, and not one for each of so many examples."""
    if are_words(targets) and len(targets) != number:
        raise ValueError(f"targets must be one for each of the {number} examples, got {len(targets)} words")


def _not_one_each(inputs: Tree, targets: Tensor, number: int) -> str:
    """What to say of targets that are not one for each of the examples."""
    name, advice, tensors = "targets", "several inputs are given as FixedBatch((a, b), targets)", tensors_in(inputs)
    if isinstance(inputs, Mapping) and targets is inputs.get("labels"):
        name, advice = "inputs['labels']", "labels of another kind are left out of a fixed batch"
    elif any(map(is_edges, tensors)):
        advice = OF_A_GRAPH
    elif targets.ndim and all(x.ndim > 2 and x.shape[1] == len(targets) for x in tensors):
        advice = (
            "inputs (T, N, …) are given with the examples first, vizlog.FixedBatch(x.transpose(0, 1), y, "
            "forward=lambda model, x: model(x.transpose(0, 1)))"
        )
    elif isinstance(inputs, tuple) and len(tensors) > 1:  # a bag of all tokens, and where each example's begin
        advice = "of several inputs the first needs a row for each: FixedBatch(forward=…) may make the others of it"
    return (
        f"{name} must be one for each of the {number} examples, got {describe(targets)}; "
        f"examples lie along dimension 0 of the inputs; {advice}"
    )


def _is_packed(tree: Tree) -> bool:
    """Whether these are, or hold, packed sequences, whose rows are time steps."""
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    return isinstance(tree, PackedSequence) or any(map(_is_packed, parts))


def is_edges(tensor: Tensor) -> bool:
    """Whether these may be the edges of a graph, as numbers of nodes (2, E)."""
    return tensor.ndim == 2 and len(tensor) == 2 and tensor.dtype in INTEGERS


def is_graph(value: Any) -> bool:
    """Whether this is a graph of torch_geometric, which can be indexed and called: no dataset, and no function."""
    return hasattr(value, "edge_index")


def makes_a_batch(given: Any) -> bool:
    """Whether what was given as `batch=` is a function that returns it."""
    return callable(given) and not is_graph(given)


def _is_adjacency(tensor: Tensor) -> bool:
    return not tensor.is_nested and tensor.layout != torch.strided and len(set(tensor.shape)) == 1 < tensor.ndim


def _is_in_one_piece(tensor: Tensor) -> bool:
    """Whether rows cannot be picked out of it by their numbers."""
    return tensor.is_nested or tensor.layout != torch.strided
