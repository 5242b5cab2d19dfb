"""What an embedding is made of: a layer's features as vectors, and the points that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vizlog.batch import FixedBatch, examples_run, on_device
from vizlog.records import Pixels
from vizlog.requests import Call
from vizlog.survey import Layer, Survey

__all__ = [
    "CONVOLUTIONS",
    "Features",
    "Points",
    "Reader",
    "classifies_tokens",
    "features_of",
    "has_two_texts",
    "points_of",
]

_MOST_TOKENS = 500
"""More points than that cover each other."""

_THUMBNAIL = 32
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Features:
    """Which tensor of which layer is looked at, and where in it features, examples and tokens lie.

    Args:
        layer: name of the call.
        is_input: whether it is what goes into the layer, and not what comes out.
        by_token: whether each token is a point.
        channel_dim: which holds the features.
        examples_dim: 0 or 1; −1 where the first dimension holds the tokens of all examples.
        tokens: how many tokens an example has.
        row_numbers: of a layer that gives a row for each node of a graph, which rows are those of the examples.
        nodes: how many it has, whichever examples are run.
        averaged: whether an example has a vector at several positions, of which a point is the mean.
    """

    layer: str
    is_input: bool
    by_token: bool
    channel_dim: int
    examples_dim: int
    tokens: int
    row_numbers: Tensor | None = None
    nodes: int = 0
    averaged: bool = False

    @property
    def name(self) -> str:
        """How its tag calls it."""
        return f"{self.layer}.input" if self.is_input else self.layer

    def __str__(self) -> str:
        return f"{'input' if self.is_input else 'output'} of {self.layer}"

    def read(self, call: Call) -> Tensor:
        """(N, ..., D) float32, examples first and features last; a complex number is two features."""
        tensor = call.input if self.is_input else call.tensor
        if tensor is None:
            raise ValueError(f"the {self} is no tensor any more")
        values = _arranged(tensor.detach(), self.channel_dim, self.examples_dim, self.tokens)
        return (torch.view_as_real(values.resolve_conj()).flatten(-2) if values.is_complex() else values).float()


@dataclass(frozen=True)
class Points:
    """P points: which examples they are, and what colours them.

    Args:
        ids: (P,) ids of their examples; labels: (P,) class numbers (−1: none), or floating, a quantity (NaN: none).
        class_names: of a quantity its own name alone.
        thumbnails: (P, H, W, C) uint8, or None.
        words, coloured_by: for the caption.
        examples: how many of the batch's examples must be run.
        rows, positions: (P,) by token, the row and position of each; else None.
        mask: (N, T) bool, False for padding; None where there are no tokens.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | NDArray[np.float64]
    class_names: tuple[str, ...]
    thumbnails: Pixels | None
    words: str
    coloured_by: str
    examples: int
    rows: NDArray[np.int64] | None = None
    positions: NDArray[np.int64] | None = None
    mask: NDArray[np.bool_] | None = None

    def pick(self, values: Tensor, start: int) -> Tensor:
        """The points' vectors (p, D), of the examples that start at row `start`: values (n, ..., D)."""
        stop = start + len(values)
        if self.rows is not None and self.positions is not None:
            here = np.flatnonzero((self.rows >= start) & (self.rows < stop))
            rows, positions = (torch.from_numpy(index[here]) for index in (self.rows - start, self.positions))
            return values[on_device(rows, values.device), on_device(positions, values.device)]
        if values.ndim == 2:
            return values.clone()
        if self.mask is not None and values.shape[1:-1] == self.mask.shape[1:]:
            values = values[: max(len(self.mask) - start, 0)]  # another probe may want more examples
            weights = on_device(torch.from_numpy(self.mask[start:stop]), values.device).to(values.dtype).unsqueeze(-1)
            return (values * weights).sum(1) / weights.sum(1).clamp(min=1)
        return values.flatten(1, -2).mean(1)


class Reader:
    """Reads the points' vectors out of one pass over the fixed batch, which comes in chunks of examples."""

    def __init__(self, features: Iterable[Features], points: Mapping[bool, Points]) -> None:
        self._features = {each.layer: each for each in features}
        self._points = points
        self._seen: Counter[str] = Counter()

    def wants(self, layer: str, module: nn.Module | None) -> bool:
        """Whether this layer is looked at."""
        return layer in self._features

    def read(self, call: Call) -> Tensor:
        """(p, D) float32, of the points in this chunk."""
        features = self._features[call.layer]
        values = features.read(call)
        start = self._seen[call.layer]
        if features.row_numbers is not None:
            if len(values) != features.nodes:
                raise ValueError(
                    f"the {features} has {len(values)} rows here and had {features.nodes}, as of parts of the examples "
                    "and not of a graph's nodes: name another layer"
                )
            values = values[on_device(features.row_numbers[start : start + (examples_run() or 0)], values.device)]
        self._seen[call.layer] += len(values)
        return self._points[features.by_token].pick(values, start)


def has_two_texts(survey: Survey) -> bool:
    """Whether a second text of the same length passes through the model, so that lengths do not say whose a layer is.

    A decoder's, that is: another input; one that is a token longer and loses it on the way; or the labels, where there
    are two embeddings of one vocabulary. (Those of places on a page are many of one size too, but take no tokens.)
    """
    batch, ids = survey.batch, survey.batch.token_ids
    if ids is None:
        return False
    embeddings = [layer for layer in survey.of_type(nn.Embedding) if layer.input_shape[1:] == ids.shape[1:]]
    if batch.second_text is not None:
        return batch.second_text.shape == ids.shape or len(embeddings) > 1
    labels = batch.inputs.get("labels") if isinstance(batch.inputs, Mapping) else None
    if not isinstance(labels, Tensor) or labels.shape != ids.shape or torch.equal(labels, ids):
        return False
    sizes = Counter(layer.module.num_embeddings for layer in embeddings if isinstance(layer.module, nn.Embedding))
    return any(sizes[number] > 1 for number in survey.vocabularies)


def classifies_tokens(survey: Survey) -> bool:
    """Whether the model gives each token one of a few classes, which the targets say, and does not predict tokens."""
    labels = survey.batch.token_labels
    if labels is None or not survey.scores_a_position or int(labels.max()) >= survey.classes:
        return False
    return survey.classes not in survey.vocabularies


def features_of(layer: Layer, batch: FixedBatch, *, is_input: bool, by_token: bool | None) -> Features:
    """How to read a layer that was met in a first look.

    Args:
        by_token: whether each token is to be a point; None: where the layer keeps them apart.

    Raises:
        ValueError: its examples or tokens cannot be told apart; says what to do.
    """
    shape = layer.input_shape if is_input else layer.output_shape
    channel_dim = layer.channel_dim
    if is_input:
        channel_dim = 1 if isinstance(layer.module, CONVOLUTIONS) else -1
    examples, numbers = min(2, len(batch)), None
    tokens = batch.token_ids.shape[1] if batch.token_ids is not None else 0
    if len(shape) > 1 and shape[0] == examples:
        examples_dim = 0
    elif len(shape) == 2 and batch.row_numbers is not None and shape[0] > int(batch.row_numbers.max()):
        examples_dim, numbers = 0, batch.row_numbers.long()
    elif len(shape) == 3 and shape[1] == examples:
        examples_dim = 1
    elif tokens and len(shape) == 2 and shape[0] == examples * tokens:
        examples_dim = -1
    else:
        raise ValueError(
            f"the {'input' if is_input else 'output'} of {layer.name} for {examples} examples is {shape}, "
            "which has no dimension for examples and one for features: name another layer"
        )
    arranged = _arranged(torch.empty(shape, device="meta"), channel_dim, examples_dim, tokens).shape
    has_tokens = tokens > 0 and len(arranged) == 3 and arranged[1] == tokens
    of_tokens = has_tokens if by_token is None else by_token
    nodes = shape[0] if numbers is not None else 0
    averaged = not of_tokens and arranged[1:-1].numel() > 1
    features = Features(layer.name, is_input, of_tokens, channel_dim, examples_dim, tokens, numbers, nodes, averaged)
    if features.by_token and not has_tokens:
        raise ValueError(
            f"a point for each token needs a layer that gives one vector a token, but the {features} is {shape}: "
            "name another layer, or take label='class'"
        )
    return features


def points_of(batch: FixedBatch, label: Any, *, by_token: bool, two_texts: bool = False) -> Points:
    """The points of a batch: an example each, or a token each.

    Args:
        label: "class" (by token: those of the tokens), "token", an array (N,) or (N, T) of labels for the examples as
            they were given, or None.
        two_texts: whether a layer's positions may be another text's, so that the mask says nothing about them.

    Raises:
        ValueError: the batch has no such labels; says what to give.
    """
    given = _given(batch, label) if isinstance(label, np.ndarray) else None
    if by_token:
        return _tokens(batch, given, by_class=isinstance(label, str) and label == "class")
    mask = batch.token_mask.numpy() if batch.token_ids is not None and not two_texts else None
    labels: NDArray[np.int64] | NDArray[np.float64]
    names: tuple[str, ...] = ()
    if given is not None:
        (labels, names), coloured_by = _as_labels(given), "given labels"
    elif batch.groups is not None:
        classes, names = batch.groups
        labels, coloured_by = classes.clamp_min(-1).numpy(), "class"
    elif label == "class" and batch.quantity is not None and not _has_fractions(batch.quantity.numpy()):
        (labels, names), coloured_by = _numbered(batch.quantity.numpy()), "class"
    elif label is None and (shade := batch.shade) is not None:
        labels, names, coloured_by = shade[0].numpy(), (shade[1],), shade[1]
    elif label is None:
        labels, coloured_by = np.full(len(batch), -1), "nothing"
    else:
        raise ValueError(
            "label='class' needs targets that are whole numbers or words (N,): give them to the batch, or labels"
        )
    words = f"{len(batch)} examples"
    return Points(batch.ids.numpy(), labels, names, _thumbnails(batch), words, coloured_by, len(batch), mask=mask)


def _tokens(batch: FixedBatch, given: NDArray[Any] | None, *, by_class: bool) -> Points:
    if batch.token_ids is None:
        raise ValueError("a point for each token needs token ids (N, T) in the batch")
    examples = min(len(batch), batch.chunk)
    rows, positions = np.nonzero(batch.token_mask.numpy()[:examples])
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_TOKENS)).round().astype(np.int64)
    rows, positions = rows[chosen], positions[chosen]
    classes = batch.token_labels if by_class else None
    names: tuple[str, ...]
    if classes is not None:
        labels, names, coloured_by = classes.clamp_min(-1).numpy()[rows, positions], batch.class_names, "class"
    elif given is None:
        spelt = [batch.token_names(row) for row in range(examples)]
        tokens = np.array([_visible(spelt[row][at]) for row, at in zip(rows, positions, strict=True)])
        (labels, names), coloured_by = _numbered(tokens, frequent_first=True), "token"
    elif given.shape == batch.token_ids.shape:
        (labels, names), coloured_by = _as_labels(given[rows, positions]), "given labels"
    else:
        raise ValueError(
            f"labels for tokens must be {tuple(batch.token_ids.shape)}, as the batch's token ids, got {given.shape}"
        )
    words = f"{len(rows)} tokens, spread over {examples} examples"
    ids = batch.ids.numpy()[rows]
    return Points(ids, labels, names, None, words, coloured_by, examples, rows, positions)


def _given(batch: FixedBatch, label: NDArray[Any]) -> NDArray[Any]:
    """Labels of the batch's examples, from those of the examples that it was made of."""
    needed = int(batch.ids.max()) + 1
    if label.ndim not in (1, 2) or len(label) < needed:
        raise ValueError(
            f"label= takes (N,) or (N, T) labels with N >= {needed}, one for each example given, got {label.shape}"
        )
    return np.asarray(label[batch.ids.numpy()])


def _as_labels(given: NDArray[Any]) -> tuple[NDArray[np.int64] | NDArray[np.float64], tuple[str, ...]]:
    """Labels (P,) as a quantity, where they are numbers with fractions; else as class numbers; and their names."""
    if _has_fractions(given):
        return np.asarray(given, np.float64), ("label",)
    return _numbered(given)


def _has_fractions(given: NDArray[Any]) -> bool:
    return np.issubdtype(given.dtype, np.floating) and bool(np.mod(given[np.isfinite(given)], 1).any())


def _numbered(labels: NDArray[Any], *, frequent_first: bool = False) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (P,) as class numbers in order of the names, and the names; −1, None and NaN stay no label."""
    # NaN alone is not what it equals; NaT is None in a list.
    given = np.array([label is not None and label == label for label in labels.tolist()], dtype=bool)  # noqa: PLR0124
    names, numbers, counts = np.unique(labels[given], return_inverse=True, return_counts=True)
    is_class = names != -1 if np.issubdtype(names.dtype, np.number) else np.ones(len(names), dtype=bool)
    classes = np.flatnonzero(is_class)
    if frequent_first:
        classes = classes[np.argsort(-counts[classes], kind="stable")]
    rank = np.full(len(names), -1)
    rank[classes] = np.arange(len(classes))
    found = np.full(len(labels), -1)
    found[given] = rank[numbers.reshape(-1)]
    spelt = [str(names[number]) for number in classes]
    are_floating = np.issubdtype(names.dtype, np.floating)
    return found, tuple(name.removesuffix(".0") if are_floating else name for name in spelt)


def _arranged(tensor: Tensor, channel_dim: int, examples_dim: int, tokens: int) -> Tensor:
    """(N, ..., D), examples first and features last."""
    if examples_dim == -1:
        return tensor.reshape(-1, tokens, tensor.shape[-1])
    if examples_dim == 1:
        return tensor.transpose(0, 1)
    return tensor.movedim(channel_dim, -1)


def _thumbnails(batch: FixedBatch) -> Pixels | None:
    pixels = batch.thumbnails()
    if pixels is None or max(pixels.shape[1:3]) <= _THUMBNAIL:
        return pixels
    size = (min(pixels.shape[1], _THUMBNAIL), min(pixels.shape[2], _THUMBNAIL))
    small = nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), size)
    return small.round().byte().permute(0, 2, 3, 1).numpy()


def _visible(token: str) -> str:
    """White space as it is written in code."""
    return token if token.strip() else repr(token)
