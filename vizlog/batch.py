"""The fixed batch: the held-out examples that pictures are made of, and how to run the model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vizlog.given import (
    INTEGERS,
    OF_A_GRAPH,
    OF_AN_OBJECT,
    PLAIN,
    check_shown,
    check_words,
    describe,
    is_edges,
    is_graph,
    makes_a_batch,
    number_of_examples,
)
from vizlog.targets import (
    NO_LABEL,
    Kind,
    as_tensor,
    balanced,
    class_numbers,
    names_in,
    numbered,
    numbers_among,
    of_each,
    only_one,
    quantities,
    whole,
)
from vizlog.trees import Tree, are_mappings, are_words, is_as_long, is_leaf, leaves, lent, mapped, named, tensors_in

__all__ = ["BatchDoesNotFit", "FixedBatch", "as_fixed_batch", "examples_run", "on_device"]

MOST = 256
"""The most examples a batch keeps."""

CHUNK = 32
TOKENS = 2048
"""How many examples go through the model at once, and how many tokens, at most; of longer texts one."""

_OF_EXAMPLES = ("ids", "inputs", "targets", "known", "_constants", "_has_adjacency")
"""Attributes of a batch that say what its examples are, not what to do with them."""

_run: ContextVar[int | None] = ContextVar("run", default=None)


class BatchDoesNotFit(ValueError):
    """The model could not be run on the fixed batch, or its output not be read; says what came and what to give."""


@dataclass(frozen=True)
class Known:
    """How to read targets and outputs: by all examples, and later by a first output.

    Of all, and not of each part of them: of a few examples numbers may be 0 or 1 by chance.

    Args:
        kind: what the targets that are shown are.
        numbers: of targets by name, and not by place, those that are numbers, and no classes.
        words: the classes that targets in words name.
        task: of outputs and targets by name those that are shown; the output's is None where there is one target of
            any output.
        scored: whether outputs are class scores; None while no output has told.
        padding: the token that fills texts up.
    """

    kind: Kind
    numbers: frozenset[Any] = frozenset()
    words: tuple[str, ...] = ()
    task: tuple[Any, Any] | None = None
    scored: bool | None = None
    padding: int | None = None


class FixedBatch:
    """Examples to look at the model with, the same at every step.

    At most 256 are kept, balanced over the classes; they are put in the order class 0, 1, 2 …, 0, 1, 2 …, so that the
    first few already show every class. Of more than 32 classes 32 that have several examples come before the others,
    and examples without a label last. `ids` says which example of the given ones each is.

    Args:
        inputs: what the model takes, examples along dimension 0. A mapping goes in as `model(**inputs)`, a tuple as
            `model(*inputs)`, anything else as `model(inputs)`. Of a list of mappings, as detectors take their targets,
            or of strings each is of one example. What is no tensor, or has another length, passes through; the model is
            given a copy of it each time.
        targets: (N,) class numbers, as a tensor, an array or a list, or whatever `loss` takes; by default
            `inputs["labels"]` of a mapping. The number −100, which cross-entropy ignores, is no label. Words are
            classes: by their places in `class_names`, else of numbers that the model does not know. Real numbers, or
            whole ones that the model predicts by one number, are a quantity. Of a mapping, as several tasks have, the
            first is shown whose name an output of class scores has, else an output of as many numbers, and of a tuple
            the one whose place it has; one alone is shown whatever its name is. A dataclass becomes a mapping.
        forward: (model, inputs) -> output, where the model is called in another way; with several models it is given
            all of them as a dict, those of a list under "0", "1" ….
        score: output -> (N, classes) logits, where they cannot be found in the output.
        loss: (output, targets) -> scalar or (N,), what examples are scored by where there are no classes.
        class_names: a name for each class number, as a list or by number; by default those of a Hugging Face model's
            `config.id2label`.
        tokens: how token ids read: a sequence or mapping of strings by id, a tokenizer, or a function of a list of ids.
        feature_names: a name for each column of a table (N, F), for showing what saliency says of it.
        mean, std: per channel, what the inputs were normalised with; only for showing them.

    Raises:
        TypeError, ValueError: what was given is no batch; says what was expected.
    """

    def __init__(
        self,
        inputs: Tree,
        targets: Any = None,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        score: Callable[[Any], Tensor] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        tokens: Any = None,
        feature_names: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        for name, value in (("forward", forward), ("score", score), ("loss", loss)):
            if value is not None and not callable(value):
                raise TypeError(f"FixedBatch({name}=) takes a function, got {type(value).__name__}")
        if targets is None and isinstance(inputs, Mapping):
            targets = inputs.get("labels")
        check_shown({"class_names": class_names, "feature_names": feature_names}, tokens, {"mean": mean, "std": std})
        targets = as_tensor(named(targets, 1) if is_dataclass(targets) else targets)
        number = number_of_examples(inputs, targets)
        self.class_names = _in_order(class_names) if class_names is not None else ()
        if names_in(targets) and is_as_long(targets, number) and self.class_names:
            targets = numbered(targets, self.class_names)
        if loss is None:  # which may take anything, and may want them floating
            check_words(targets, number)
            targets = whole(targets, len(self.class_names))
        if isinstance(targets, (Mapping, tuple, list)) and not are_words(targets):
            targets = of_each(targets, number, self.class_names)
        alone = only_one(targets, number)
        words = names_in(alone) if is_leaf(alone) and is_as_long(alone, number) else ()
        self.ids = balanced(numbered(alone, words) if words else alone, number, MOST)
        targets = list(targets) if are_mappings(targets) else targets
        # By themselves, for what has no rows may come to be as long as a part of the batch.
        self._constants = [leaf for leaf in leaves((inputs, targets)) if not is_as_long(leaf, number)]
        tensors = tensors_in(inputs)
        self._has_adjacency = len(tensors) > 1 and any(not x.is_nested and x.shape == (number, number) for x in tensors)
        self.inputs: Tree = self._take(inputs, self.ids)
        self.targets: Any = self._take(targets, self.ids)
        self.known = Known(Kind.of(self.targets), numbers_among(self.targets), words)
        self.forward, self.score, self.loss = forward, score, loss
        self.tokens = dict(tokens) if isinstance(tokens, Mapping) else tokens
        self.feature_names = tuple(str(name) for name in feature_names) if feature_names is not None else ()
        self.mean, self.std = mean, std
        pictures = self.pictures
        channels = pictures.shape[1] if pictures is not None else 0
        for name, numbers in (("mean", mean), ("std", std)):
            if channels and np.size(numbers if numbers is not None else 0) not in (1, channels):
                raise ValueError(f"FixedBatch({name}=) takes a number for each of {channels} channels, got {numbers!r}")
        explained = [tuple(x.shape[1:]) for x in self.float_inputs[:1]]
        if feature_names is not None and explained != [(len(self.feature_names),)]:
            raise ValueError(
                "FixedBatch(feature_names=) takes a name for each column of a table (N, F), the first floating point "
                f"input, got {len(self.feature_names)} names for {describe(self.inputs)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"FixedBatch({describe(self.inputs)}, targets={describe(self.targets)})"

    @property
    def chunk(self) -> int:
        """How many examples go through the model at once, and how many activations are counted on: 32, or fewer texts.

        A step of training sees thousands of tokens, so 32 long texts would take as long as several steps.
        """
        ids = self.token_ids
        return CHUNK if ids is None else max(1, min(CHUNK, TOKENS // max(1, ids.shape[1])))

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 class numbers on the CPU, −100 where there is none; None where the targets are no classes."""
        return class_numbers(self.shown_targets, known=True) if self.known.kind.are_classes else None

    @property
    def groups(self) -> tuple[Tensor, tuple[str, ...]] | None:
        """Classes, whether the model knows their numbers or not: (N,) int64 on the CPU, negative: none; and names."""
        words = self.shown_targets
        if self.known.words and are_words(words):
            return numbered(words, self.known.words), self.known.words
        return None if self.labels is None else (self.labels, self.class_names)

    @property
    def has_texts(self) -> bool:
        """Whether targets are words that are no classes, being nearly all different."""
        return are_words(self.shown_targets) and not self.known.words

    @property
    def quantity(self) -> Tensor | None:
        """(N,) float64 on the CPU, where each target is one real number; None where the targets are something else.

        NaN where there is none: of whole numbers −100, too.
        """
        targets = self.shown_targets
        if not isinstance(targets, Tensor) or self.labels is not None:
            return None
        if targets.is_floating_point():
            return quantities(targets)
        found = quantities(targets) if self.known.kind.columns == "numbers" else None
        return None if found is None else found.masked_fill(found == NO_LABEL, math.nan)

    @property
    def shade(self) -> tuple[Tensor, str] | None:
        """What may colour examples that have no classes, (N,) float64 on the CPU, NaN: none; and what it is called.

        The `quantity`; of several columns (N, D) the first that varies, unless they are an input itself.
        """
        targets, name = self.shown_targets, "target" if self.known.task is None else self.known.task[1]
        name = name if isinstance(name, str) else f"target[{name}]"
        if self.quantity is not None:
            return self.quantity, name
        if self.known.kind.columns != "numbers" or any(_are_alike(x, targets) for x in self.float_inputs):
            return None
        columns = targets.detach().cpu().double()
        varies = ((columns != columns[:1]) & ~columns.isnan()).any(0)
        first = int(varies.int().argmax())
        return columns[:, first], f"{name} {first + 1} of {columns.shape[1]}"

    @property
    def shown_targets(self) -> Any:
        """The targets, or of several tasks those of the one that is shown."""
        return self.targets if self.known.task is None else named(self.targets)[self.known.task[1]]

    @property
    def token_labels(self) -> Tensor | None:
        """(N, T) int64 on the CPU, a number for each token, −100 where there is none; None for other targets."""
        ids, targets = self.token_ids, self.shown_targets
        if ids is None or not isinstance(targets, Tensor) or targets.shape != ids.shape or self.labels is not None:
            return None
        return targets.detach().cpu().long() if targets.dtype in INTEGERS else None

    @property
    def label_sets(self) -> Tensor | None:
        """(N, C) bool on the CPU, which of C labels each example has, or None where it has one class or none."""
        return self.shown_targets.detach().cpu() > 0 if self.known.kind.columns == "sets" else None

    def class_name(self, number: int) -> str:
        """What a class is called: its name where given; the token where tokens are predicted; else its number."""
        if 0 <= number < len(self.class_names):
            return self.class_names[number]
        targets = self.shown_targets
        sequences = isinstance(targets, Tensor) and targets.ndim == 2 and not targets.is_floating_point()
        predicts_tokens = sequences and self.labels is None
        return self.token_name(number) if predicts_tokens and self.tokens is not None else str(number)

    def part(self, start: int, stop: int, device: torch.device | None = None) -> FixedBatch:
        """Examples start … stop of this batch, on `device`."""
        part = self.take(torch.arange(len(self), device="cpu")[start:stop])
        return part if device is None else part.each(lambda x: on_device(x, device), of_targets=True)

    def take(self, rows: Tensor) -> FixedBatch:
        """The examples of these rows (an int64 tensor on the CPU) in their order; one may come several times."""
        inputs, targets = self._take(self.inputs, rows), self._take(self.targets, rows)
        return self._with(ids=self.ids[rows], inputs=inputs, targets=targets)

    def substitute(self, old: Tensor, new: Tensor) -> FixedBatch:
        """The same examples with `new` in the place of the input `old` (noisy, or requiring a gradient)."""
        return self.each(lambda x: new if x is old else x)

    def cast(self, old: torch.dtype | None, new: torch.dtype) -> FixedBatch:
        """The same examples, with inputs of one floating type as another."""
        return self.each(lambda x: x.to(new) if x.dtype == old else x)

    @property
    def examples(self) -> dict[str, Any]:
        """What another rank needs to have the same examples, in one piece: see `with_examples`."""
        return {name: self.__dict__[name] for name in _OF_EXAMPLES}

    def with_examples(self, examples: Mapping[str, Any]) -> FixedBatch:
        """The `examples` of another batch, to be shown and run as those of this one."""
        return self._with(**examples)

    def _with(self, **changes: Any) -> FixedBatch:
        other = object.__new__(FixedBatch)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def each(self, function: Callable[[Tensor], Tensor], *, of_targets: bool = False) -> FixedBatch:
        """The same examples, with what the function makes of each tensor in the inputs; `of_targets`: in both."""
        constants: list[Any] = []

        def change(leaf: Any) -> Any:
            made = function(leaf) if isinstance(leaf, Tensor) else mapped(function, leaf)
            if not self._has_rows(leaf):
                constants.append(made)
            return made

        if of_targets:
            inputs, targets = mapped(change, (self.inputs, self.targets), is_leaf)
            return self._with(inputs=inputs, targets=targets, _constants=constants)
        inputs = mapped(change, self.inputs, is_leaf)
        return self._with(inputs=inputs, _constants=[*self._constants, *constants])

    def _has_rows(self, leaf: Any) -> bool:
        """Whether a tensor, or a list of mappings or strings, has one row for each example."""
        return not any(leaf is constant for constant in self._constants)

    def _take(self, tree: Tree, rows: Tensor) -> Tree:
        """What belongs to these rows of the examples: of tensors, and of lists of one mapping or string for each."""

        def take(leaf: Any) -> Any:
            if not self._has_rows(leaf):
                return leaf
            return leaf[on_device(rows, leaf.device)] if isinstance(leaf, Tensor) else [leaf[k] for k in rows.tolist()]

        return mapped(take, tree, is_leaf)

    def run(self, models: Mapping[str, nn.Module]) -> Any:
        """The output of the model on these examples, in whatever mode the caller has put it.

        What the model raises comes with what to give instead, where that is known.
        """
        before = _run.set(len(self))
        try:
            return self._run(models)
        except (TypeError, IndexError, RuntimeError) as error:
            if advice := self._advice(error):
                kind = next(kind for kind in (TypeError, IndexError, RuntimeError) if isinstance(error, kind))
                raise kind(f"{error}; {advice}") from error
            raise
        finally:
            _run.reset(before)

    def _run(self, models: Mapping[str, nn.Module]) -> Any:
        model, inputs = next(iter(models.values())), lent(self.inputs, self._has_rows)
        if self.forward is not None:
            return self.forward(model if len(models) == 1 else dict(models), inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, tuple):
            return model(*inputs)
        return model(inputs)

    def _advice(self, error: Exception) -> str:
        """What to give instead of inputs that a model raised this on; "" where that is not known."""
        if self.forward is not None:
            return ""
        if isinstance(error, TypeError) and "missing" in str(error) and isinstance(self.inputs, Tensor):
            return (
                "the second of batch=(x, y) are targets, which the model is not given: "
                "two inputs are given as vizlog.FixedBatch((x, t)), with targets as vizlog.FixedBatch((x, t), y)"
            )
        if isinstance(error, TypeError) and "unexpected keyword" in str(error) and isinstance(self.inputs, Mapping):
            return (
                "a mapping goes in as model(**inputs): where the model takes it as it is, give "
                "vizlog.FixedBatch(inputs, targets, forward=lambda model, inputs: model(inputs))"
            )
        # Torch raises either where nodes are missing, by what the library gathers them with; of ours none is meant.
        if isinstance(error, IndexError) or type(error) is RuntimeError:
            whole = [x for x in tensors_in(self.inputs) if not self._has_rows(x)]
            return OF_A_GRAPH if self._has_adjacency or any(map(is_edges, whole)) else ""
        return ""

    def knowing(self, **told: Any) -> FixedBatch:
        """The same examples, once a first output has told more of what is `known` of them.

        The values of later outputs are not asked again: one or two examples may have any length by chance.
        """
        return self._with(known=replace(self.known, **told))

    def of_task(self, task: tuple[Any, Any]) -> FixedBatch:
        """The same examples; of outputs and targets by name these are shown."""
        return self.knowing(task=task, kind=Kind.of(named(self.targets)[task[1]]))

    def numbered(self, numbers: Sequence[int]) -> FixedBatch:
        """The same examples, with what they are in the dataset that they were taken of as their `ids`.

        Where it is not one number for each, as of texts that were packed, they keep the ids that they have.
        """
        return self if len(numbers) != len(self) else self._with(ids=torch.tensor(numbers, device="cpu")[self.ids])

    def calling(self, class_names: tuple[str, ...]) -> FixedBatch:
        """The same examples, with what the model calls its classes where nobody gave names."""
        return self._with(class_names=self.class_names or class_names)

    @property
    def images(self) -> Tensor | None:
        """The input that is images, (N, C, H, W) floating with C 1, 3 or 4, or None."""
        return next((x for x in self.float_inputs if _is_image(x, x.dtype)), None)

    @property
    def pictures(self) -> Tensor | None:
        """What can be shown as images, (N, C, H, W): `images`; else gray squares (N, S, S), or laid flat (N, S²).

        Squares need sides of at least 5, and rows that are like those below them, which a table's features are not.
        """
        if self.images is not None or self.token_ids is not None:
            return self.images
        for x in self.float_inputs[:1]:
            side = math.isqrt(x[0].numel())
            if side >= 5 and x.shape[1:] in ((side, side), (side * side,)):
                squares = x.detach().reshape(len(x), side, side)
                return squares[:, None] if _is_picture(squares.float()) else None
        return None

    @property
    def pictures_one_input(self) -> bool:
        """Whether there is no other input that pictures could as well be of: a second image, or row of pixels."""
        first, *others = self.float_inputs or [torch.empty(0)]
        alike = [x for x in others if x.shape == first.shape or (x.ndim == 4 and x.shape[2] > 1)]
        return not alike

    @property
    def float_inputs(self) -> list[Tensor]:
        """All floating inputs with one row an example."""
        return [x for x in self._rows if x.is_floating_point()]

    def of_several(self, one: Tensor) -> str:
        """Which of several inputs this is, by its name or its place: "of 2 inputs the first"; "" of a single one."""
        rows = self._rows
        if len(rows) < 2:
            return ""
        by_name = self.inputs if isinstance(self.inputs, Mapping) else {}
        place = next(number for number, row in enumerate(rows, 1) if row is one)
        name = next((str(name) for name, part in by_name.items() if part is one), f"number {place}")
        return f"of {len(rows)} inputs {'the first' if name == 'number 1' else name}"

    @property
    def has_twins(self) -> bool:
        """Whether two inputs are alike, as those of a model that compares what it makes of each."""
        shapes = [x.shape for x in self.float_inputs]
        return len(set(shapes)) < len(shapes) or self.second_text is not None

    @property
    def token_ids(self) -> Tensor | None:
        """The input that is token ids, (N, T) integers, or None."""
        ids = self.inputs.get("input_ids") if isinstance(self.inputs, Mapping) else None
        candidates = [ids] if isinstance(ids, Tensor) else self._rows
        return next((x for x in candidates if x.ndim == 2 and x.dtype in INTEGERS), None)

    @property
    def row_numbers(self) -> Tensor | None:
        """(N,) whole numbers that are all the input: rows of what `forward` knows, as nodes of a graph; or None."""
        x = self.inputs
        return x if isinstance(x, Tensor) and x.ndim == 1 and x.dtype in INTEGERS and self.forward is not None else None

    @property
    def second_text(self) -> Tensor | None:
        """Another input (N, T), or (N, T + 1), that reads as token ids, as a decoder takes them; None where none does.

        Not the same text again, nor moved on by one, as a language model takes its targets.
        """
        ids = self.token_ids
        if ids is None:
            return None
        beside = ("position_ids", "token_type_ids", "labels", "mask")
        parts = self.inputs.items() if isinstance(self.inputs, Mapping) else (("", part) for part in [self.inputs])
        others = [x for name, part in parts if not str(name).endswith(beside) for x in tensors_in(part) if x is not ids]
        return next((x for x in others if x.shape[:1] == ids.shape[:1] and _is_another_text(x, ids)), None)

    def is_token_ids(self, given: Tensor | None) -> bool:
        """Whether this tensor, on whatever device, holds the token ids as they are."""
        ids = self.token_ids
        if ids is None or given is None or given.is_nested or given.is_meta or given.shape != ids.shape:
            return False
        return torch.equal(on_device(given, ids.device), ids)

    @property
    def token_mask(self) -> Tensor:
        """(N, T) bool on the CPU, False where a token is padding: by a mapping's `attention_mask`, else by its number.

        Its number is the `padding_idx` of the embedding that takes the tokens, if it has one.
        """
        ids = self.token_ids
        assert ids is not None, "only for token inputs"
        mask = self.inputs.get("attention_mask") if isinstance(self.inputs, Mapping) else None
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            return mask.detach().cpu().bool()
        if self.known.padding is None:
            return torch.ones(ids.shape, dtype=torch.bool, device="cpu")
        known = ids.detach().cpu() != self.known.padding
        return known | ~known.any(1, keepdim=True)  # a text of nothing else is shown as it is

    @property
    def last_positions(self) -> Tensor:
        """(N,) the last position of each example that is no padding."""
        return _last(self.token_mask)

    @property
    def scored_positions(self) -> Tensor:
        """(N,) whose scores are looked at, where each has some: the last position with a label, else `last_positions`.

        What a model says where nothing was to be learnt, at a separator or a word that is not masked, is chance.
        """
        mask, labels = self.token_mask, self.token_labels
        labelled = mask if labels is None else mask & (labels != NO_LABEL)
        return _last(torch.where(labelled.any(1, keepdim=True), labelled, mask))

    def token_names(self, example: int) -> list[str]:
        """The tokens of one example as strings, padding included."""
        ids = self.token_ids
        assert ids is not None, "only for token inputs"
        return self._token_names(ids[example].tolist())

    def token_name(self, number: int) -> str:
        """One token id as a string."""
        return self._token_names([number])[0]

    def _token_names(self, row: list[int]) -> list[str]:
        if self.tokens is None:
            return [str(token) for token in row]
        if hasattr(self.tokens, "convert_ids_to_tokens"):
            return [str(token) for token in self.tokens.convert_ids_to_tokens(row)]
        if callable(self.tokens):
            return [str(token) for token in self.tokens(row)]
        if isinstance(self.tokens, Mapping):
            return [str(self.tokens.get(token, token)) for token in row]
        return [str(self.tokens[token]) if 0 <= token < len(self.tokens) else str(token) for token in row]

    def thumbnails(self, number: int | None = None) -> NDArray[np.uint8] | None:
        """The first `number` of `pictures` as (N, H, W, C) uint8, or None where there are none.

        De-normalised by `mean` and `std` where given; else values in [0, 1] are taken as they are and others stretched
        over their range. Of four channels the first three: a depth, a frame or a latent is no opacity. Where nothing is
        floating, images of bytes as they are, which a model scales itself.
        """
        images = self.pictures
        if images is None:
            raw = None if self.float_inputs else next((x for x in self._rows if _is_image(x, torch.uint8)), None)
            return None if raw is None else raw[:number, :3].detach().cpu().numpy().transpose(0, 2, 3, 1)
        values = images[:number].detach().float().cpu().numpy()
        if self.mean is not None or self.std is not None:
            values = values * _per_channel(self.std, 1.0) + _per_channel(self.mean, 0.0)
        else:
            finite = images[:, :3].detach().float().cpu().numpy()
            finite = finite[np.isfinite(finite)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            if low < 0 or high > 1:
                values = (values - low) / max(high - low, 1e-12)
        values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
        pixels: NDArray[np.uint8] = (values[:, :3] * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        return pixels

    @property
    def _rows(self) -> list[Tensor]:
        """The inputs with one row an example; labels and masks of a mapping explain nothing."""
        inputs = self.inputs
        if isinstance(inputs, Mapping):
            beside = ("labels", "mask")
            inputs = {name: value for name, value in inputs.items() if not str(name).endswith(beside)}
        return [leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor) and self._has_rows(leaf)]


def _is_image(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether this is (N, C, H, W) with C 1, 3 or 4, of this type."""
    return x.dtype == dtype and x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[2] > 1


def _in_order(names: Iterable[str] | Mapping[int, str]) -> tuple[str, ...]:
    """Names by number as a sequence; a number without one is called by itself."""
    if isinstance(names, Mapping):
        return tuple(str(names.get(number, number)) for number in range(max(names, default=-1) + 1))
    return tuple(map(str, names))


def examples_run() -> int | None:
    """How many examples go through a model in this moment; None outside of `FixedBatch.run`."""
    return _run.get()


def as_fixed_batch(batch: Any) -> FixedBatch | None:
    """What a person gave as `batch=` -> a FixedBatch.

    Raises:
        TypeError: it is neither a FixedBatch, (inputs, targets), a tensor, nor a mapping.
    """
    if batch is None or isinstance(batch, FixedBatch):
        return batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return FixedBatch(*batch)
    if isinstance(batch, (Tensor, Mapping)):
        return FixedBatch(batch)
    advice = "" if isinstance(batch, PLAIN) or makes_a_batch(batch) else f"; {OF_AN_OBJECT}"
    if isinstance(batch, (tuple, list)) and len(batch) > 2 and all(isinstance(part, Tensor) for part in batch):
        advice = "; of several inputs and targets make vizlog.FixedBatch((a, b), y)"
    if isinstance(batch, Iterator) or hasattr(batch, "dataset"):  # any loader, by what wraps it too
        advice = "; of a loader give its examples, batch=lambda: next(iter(loader))"
    elif (
        hasattr(batch, "__getitem__")
        and hasattr(batch, "__len__")
        and not (isinstance(batch, PLAIN) or is_graph(batch))
    ):
        advice = (
            "; of a dataset give some examples, put together as a DataLoader does: "
            "batch=torch.utils.data.default_collate([dataset[k] for k in range(64)])"
        )
    raise TypeError(
        "batch= takes (inputs, targets), a vizlog.FixedBatch or a function that returns one, "
        f"got {describe(batch)}{advice}"
    )


def _last(mask: Tensor) -> Tensor:
    """(N,) the last position of each row of a mask (N, T) that is True; 0 where none is."""
    positions = torch.arange(mask.shape[1], device="cpu").expand(mask.shape)
    return positions.masked_fill(~mask, 0).amax(1)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; nothing waits for what that is doing."""
    pins = device.type == "cuda" and tensor.device.type == "cpu" and tensor.layout == torch.strided
    if pins and not (tensor.is_quantized or tensor.is_pinned()):  # out of other memory the copy would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _are_alike(x: Tensor, targets: Tensor) -> bool:
    """Whether targets (N, D) are the values of an input, whatever its shape: an autoencoder's."""
    given, wanted = (each.detach().cpu().double().flatten() for each in (x, targets))
    return torch.equal(given, wanted)


def _is_picture(squares: Tensor) -> bool:
    """Whether pixels below one another are more alike than pixels anywhere: squares (N, S, S)."""
    pixels = squares.flatten(1)
    order = torch.randperm(pixels.shape[1], generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    order = order.to(pixels.device)
    anywhere = pixels[:, order].reshape(squares.shape)
    return bool(squares.diff(dim=1).abs().mean() < 0.75 * anywhere.diff(dim=1).abs().mean())


def _is_another_text(other: Tensor, ids: Tensor) -> bool:
    """Whether these integers are tokens beside `ids` that cannot be told from them by their number."""
    length = ids.shape[1]
    if other.ndim != 2 or other.shape[1] not in (length, length + 1) or other.dtype not in INTEGERS:
        return False
    other, ids = other.cpu(), ids.cpu()
    if not other.numel() or int(other.min()) < 0 or int(other.max()) < 2:  # targets to be ignored; a mask
        return False
    if bool((other.long().diff(dim=1) == 1).all()):  # positions
        return False
    return not torch.equal(other[:, :length], ids) and not torch.equal(other[:, : length - 1], ids[:, 1:])


def _per_channel(value: float | Sequence[float] | None, default: float) -> NDArray[np.float32]:
    array = np.asarray(default if value is None else value, dtype=np.float32)
    return array.reshape(-1, 1, 1)
