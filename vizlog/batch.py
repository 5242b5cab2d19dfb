"""The fixed batch: the held-out examples that pictures are made of, and how to run the model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
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
    describe,
    is_edges,
    is_graph,
    makes_a_batch,
    number_of_examples,
)
from vizlog.targets import NO_LABEL, as_tensor, balanced, class_numbers, kind_of, names_in, numbered, quantities, whole
from vizlog.trees import Tree, are_mappings, are_words, is_as_long, is_leaf, leaves, lent, mapped, named, tensors_in

__all__ = ["BatchDoesNotFit", "FixedBatch", "as_fixed_batch", "examples_run", "on_device"]

MOST = 256
"""The most examples a batch keeps."""

CHUNK = 32
TOKENS = 2048
"""How many examples go through the model at once, and how many tokens, at most; of longer texts one."""

_EMBEDDED = (
    "hidden_state",
    "hidden_states",
    "pooler_output",
    "embeds",
    "embedding",
    "embeddings",
    "features",
    "latents",
)
"""Endings of the names of an output's parts that are embeddings, and no scores."""

_EMBEDDING = 64
"""From how many columns on an output is rather embeddings, where it is a little wider than there are classes."""

_OF_EXAMPLES = (
    "ids",
    "inputs",
    "targets",
    "_constants",
    "_are_classes",
    "_classes",
    "_targets_are",
    "_regressed",
    "_words",
)
"""Attributes of a batch that say what its examples are, not what to do with them."""

_run: ContextVar[int | None] = ContextVar("run", default=None)


class BatchDoesNotFit(ValueError):
    """The model could not be run on the fixed batch, or its output not be read; says what came and what to give."""


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
            first is shown whose name an output of class scores has, else an output of as many numbers; one alone is
            shown whatever its name is.
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
        targets = as_tensor(targets)
        number = number_of_examples(inputs, targets)
        self.class_names = _in_order(class_names) if class_names is not None else ()
        if names_in(targets) and is_as_long(targets, number) and self.class_names:
            targets = numbered(targets, self.class_names)
        if loss is None:  # which may want them floating
            targets = whole(targets, len(self.class_names))
        if isinstance(targets, Mapping):
            targets = _of_each(targets, number, self.class_names)
        alone = _alone(targets, number)
        self._words = names_in(alone) if is_leaf(alone) and is_as_long(alone, number) else ()
        self.ids = balanced(numbered(alone, self._words) if self._words else alone, number, MOST)
        targets = list(targets) if are_mappings(targets) else targets
        # By themselves, for what has no rows may come to be as long as a part of the batch.
        self._constants = [leaf for leaf in leaves((inputs, targets)) if not is_as_long(leaf, number)]
        tensors = tensors_in(inputs)
        self._has_adjacency = len(tensors) > 1 and any(not x.is_nested and x.shape == (number, number) for x in tensors)
        self.inputs: Tree = self._take(inputs, self.ids)
        self.targets: Any = self._take(targets, self.ids)
        # Of all examples, here and below: of a few, numbers may be 0 or 1, or between them, by chance.
        self._are_classes, self._classes, self._targets_are = _reading(self.targets)
        self._regressed = _numbers_among(self.targets)
        # Of outputs and targets by name those that are shown, once a first output has told; of one target any output.
        self._task: tuple[Any, Any] | None = None
        self._padding: int | None = None  # the token that fills texts up, once a first pass has told
        self.forward, self.score, self.loss = forward, score, loss
        self.tokens = dict(tokens) if isinstance(tokens, Mapping) else tokens
        self.feature_names = tuple(str(name) for name in feature_names) if feature_names is not None else ()
        self.mean, self.std = mean, std
        self._scored: bool | None = None  # whether outputs are class scores, once a first one has told
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
        return class_numbers(self._shown_targets, known=True) if self._are_classes else None

    @property
    def groups(self) -> tuple[Tensor, tuple[str, ...]] | None:
        """Classes, whether the model knows their numbers or not: (N,) int64 on the CPU, negative: none; and names."""
        words = self._shown_targets
        if self._words and are_words(words):
            return numbered(words, self._words), self._words
        return None if self.labels is None else (self.labels, self.class_names)

    @property
    def has_texts(self) -> bool:
        """Whether targets are words that are no classes, being nearly all different."""
        return are_words(self._shown_targets) and not self._words

    @property
    def quantity(self) -> Tensor | None:
        """(N,) float64 on the CPU, where each target is one real number; None where the targets are something else.

        NaN where there is none: of whole numbers −100, too.
        """
        targets = self._shown_targets
        if not isinstance(targets, Tensor) or self.labels is not None:
            return None
        if targets.is_floating_point():
            return quantities(targets)
        found = quantities(targets) if self._targets_are == "numbers" else None
        return None if found is None else found.masked_fill(found == NO_LABEL, math.nan)

    @property
    def shade(self) -> tuple[Tensor, str] | None:
        """What may colour examples that have no classes, (N,) float64 on the CPU, NaN: none; and what it is called.

        The `quantity`; of several columns (N, D) the first that varies, unless they are an input itself.
        """
        targets, name = self._shown_targets, "target" if self._task is None else str(self._task[1])
        if self.quantity is not None:
            return self.quantity, name
        if self._targets_are != "numbers" or any(_are_alike(x, targets) for x in self.float_inputs):
            return None
        columns = targets.detach().cpu().double()
        varies = (columns != columns[:1]).any(0)
        first = int(varies.int().argmax())
        return columns[:, first], f"{name} {first + 1} of {columns.shape[1]}"

    @property
    def _shown_targets(self) -> Any:
        return self.targets if self._task is None else named(self.targets)[self._task[1]]

    @property
    def token_labels(self) -> Tensor | None:
        """(N, T) int64 on the CPU, a number for each token, −100 where there is none; None for other targets."""
        ids, targets = self.token_ids, self._shown_targets
        if ids is None or not isinstance(targets, Tensor) or targets.shape != ids.shape or self.labels is not None:
            return None
        return targets.detach().cpu().long() if targets.dtype in INTEGERS else None

    @property
    def label_sets(self) -> Tensor | None:
        """(N, C) bool on the CPU, which of C labels each example has, or None where it has one class or none."""
        return self._shown_targets.detach().cpu() > 0 if self._targets_are == "sets" else None

    def class_name(self, number: int) -> str:
        """What a class is called: its name where given; the token where tokens are predicted; else its number."""
        if 0 <= number < len(self.class_names):
            return self.class_names[number]
        targets = self._shown_targets
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

    def logits(self, output: Any) -> Tensor | None:
        """(N, classes) pre-softmax scores found in `output`, or None where there are none.

        They are `.logits`, or else the first floating point part (N, classes), or (N,) as (N, 1); of several parts the
        one with as many columns as there are classes. Where the inputs are tokens also (N, T, classes), of which the
        `scored_positions` are taken.

        No scores are: a part of two numbers or more, as many as an input, which it rebuilds; an output whose targets
        are numbers (a regression), or a part of it whose own targets, those of its name, are; and embeddings, which are
        known by their name in the output, by another part of the same width that is not the number of classes (where
        nothing says that number, of inputs that are alike), or as `embeds` says.
        """
        if self.score is not None:
            logits = self.score(output)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(self):
                raise BatchDoesNotFit(
                    f"FixedBatch(score=) must return (N, classes) with N={len(self)}, got {describe(logits)}"
                )
            return logits
        parts = self._parts(output)
        if self._scored is False or self._reconstruct(parts):
            return None
        found = self._scoring(parts)
        if found is None:
            return parts[0][:, None] if self._scored_alone(parts) else None
        if found.ndim == 3:
            if self.token_ids is None or found.shape[1] != self.token_ids.shape[1] or self._of_second_text(output):
                return None
            found = found[torch.arange(len(found), device=found.device), on_device(self.scored_positions, found.device)]
        told = found.shape[1] == 1 or self._scored
        return found if told or not (self._regresses(found) or self._embeds(found)) else None

    def embeds(self, output: Any) -> tuple[int, str]:
        """How wide an output is that would be class scores, were it not embeddings, and how that is known; or 0, "".

        As a contrastive model's are: by rows of length 1, by many more columns than there are `class_names`, or by
        class numbers far beyond all columns.
        """
        parts = self._parts(output)
        found = self._scoring(parts)
        if self.score is not None or found is None or found.ndim != 2 or found.shape[1] == 1:
            return 0, ""
        told = "" if self._reconstruct(parts) or self._regresses(found) else self._embeds(found)
        return (found.shape[1] if told else 0), told

    def scores_a_position(self, output: Any) -> bool:
        """Whether `logits` are those of one position alone, of an output that scores each."""
        found = self._scoring(self._parts(output))
        return self.score is None and found is not None and found.ndim == 3

    def answers(self, output: Any, logits: Tensor) -> str:
        """The name of these logits in an output, where they score the tokens of a text (N, T): where an answer starts.

        "" where they are of classes.
        """
        if self.token_ids is None or logits.shape != self.token_ids.shape:
            return ""
        return next((name for name in ("start_logits", "end_logits") if _named(output, name) is logits), "")

    def as_met(self, *, scored: bool, padding: int | None = None, class_names: tuple[str, ...] = ()) -> FixedBatch:
        """The same examples, once a first output has told whether it is class scores, and which token is padding.

        The values of later outputs are not asked again: one or two examples may have any length by chance. Names of
        classes are those that the model knows, for where nobody gave any.
        """
        return self._with(_scored=scored, _padding=padding, class_names=self.class_names or class_names)

    def is_rebuilt(self, output: Any) -> bool:
        """Whether a part of an output has as many values as an input, as an autoencoder's."""
        return self.score is None and self._reconstruct(self._parts(output))

    def task(self, output: Any) -> tuple[Any, Any] | None:
        """Of an output and targets by name the names of those that are shown; None where nothing tells.

        The first targets that are classes of the output of their name, else numbers that it predicts. One target alone
        is shown whatever its name is, where there is one output or outputs have no names: (None, its name).
        """
        targets = named(self.targets)
        outputs = {} if self.score is not None else named(output)
        pairs = [(name, self._target_of(name)) for name in outputs]
        pairs = [(name, of) for name, of in pairs if of is not None and _is_one_each(targets[of], len(self))]
        for fits in (_scores, self._predicts):
            for name, of in pairs:
                if isinstance(outputs[name], Tensor) and fits(outputs[name], targets[of]):
                    return name, of
        if len(targets) != 1 or not isinstance(self.targets, Mapping):
            return None
        (of,) = targets
        if pairs:
            return pairs[0] if are_words(targets[of]) else None
        may = _is_one_each(targets[of], len(self)) and (not outputs or self.part(0, 2).is_one_part(output))
        return (None, of) if may else None

    def of_task(self, task: tuple[Any, Any]) -> FixedBatch:
        """The same examples; of outputs and targets by name these are shown."""
        are_classes, classes, targets_are = _reading(named(self.targets)[task[1]])
        return self._with(_task=task, _are_classes=are_classes, _classes=classes, _targets_are=targets_are)

    def _target_of(self, name: Any) -> Any:
        """The name of the targets of an output: its own, or the last of its names; None where there are none."""
        targets, last = named(self.targets), name.rpartition(".")[2] if isinstance(name, str) else name
        return name if name in targets else last if last in targets else None

    def _predicts(self, part: Tensor, target: Any) -> bool:
        """Whether a part of an output is as many numbers as a target; whole ones with names are classes.

        A part that rebuilds an input is not what examples are told apart by.
        """
        if not isinstance(target, Tensor) or part.ndim not in (1, 2) or not part.is_floating_point():
            return False
        if self._reconstruct([part]):
            return False
        may = target.is_floating_point() or (target.numel() == len(target) and not self.class_names)
        return may and part[0].numel() == target[0].numel()

    def of_numbers(self) -> FixedBatch:
        """The same examples; their whole numbers are no classes, for they are predicted by one number each."""
        return self._with(_are_classes=False, _classes=0, _targets_are="numbers")

    def is_one_part(self, output: Any) -> bool:
        """Whether an output has one part alone that may be scores."""
        return len(self._parts(output)) == 1

    def is_one_number(self, output: Any) -> bool:
        """Whether an output is one real number for each example; a whole one may be the class that was chosen."""
        parts = self._parts(output)
        alone = len(parts) == 1 and parts[0].numel() == len(self)
        return self.score is None and alone and parts[0].is_floating_point()

    @property
    def has_more_than_two(self) -> bool:
        """Whether the labels are other numbers than those of two classes, 0 and 1 or −1 and 1."""
        labels = None if self.labels is None else self.labels[self.labels != NO_LABEL]
        return labels is not None and bool((labels.abs() > 1).any())

    def _parts(self, output: Any) -> list[Tensor]:
        """The tensors in an output that may be scores: its `.logits`, those of the task, or else all at its surface."""
        outputs = named(output)
        found = outputs.get(self._task[0]) if self._task is not None else None
        found = _named(output, "logits") if found is None else found
        parts: Iterable[Any] = ()
        if isinstance(found, Tensor) or isinstance(output, Tensor):
            parts = [found if isinstance(found, Tensor) else output]
        elif outputs:  # at its surface, or else further in
            parts = self._scores_by_name(named(output, 1)) or self._scores_by_name(outputs)
        elif isinstance(output, (tuple, list)):
            parts = output
        tensors = [part for part in parts if isinstance(part, Tensor) and part.ndim and not part.is_nested]
        return [tensor for tensor in tensors if len(tensor) == len(self)]

    def _scores_by_name(self, outputs: Mapping[Any, Any]) -> list[Tensor]:
        """Tensors of these that are by their names no embeddings, and no numbers to be predicted."""
        scores = {name: part for name, part in outputs.items() if not _names_embeddings(name)}
        found = [part for name, part in scores.items() if self._target_of(name) not in self._regressed]
        return [part for part in found if isinstance(part, Tensor)]

    def _scoring(self, parts: Sequence[Tensor]) -> Tensor | None:
        """Of the parts of an output the one that may score classes, (N, classes) or (N, T, classes)."""
        each = [x for x in parts if x.ndim in (2, 3) and x.is_floating_point()]
        in_targets = self._shown_targets.shape[1] if self._targets_are in ("shares", "sets") else self._classes
        known = len(self.class_names) or in_targets
        if known and len(each) > 1:
            exact = [x for width in (known, 1 if known == 2 else known) for x in each if x.shape[-1] == width]
            fitting = exact or [x for x in each if x.shape[-1] > known]
            widths = {x.shape[-1] for x in fitting}
            if len(fitting) > 1 and len(widths) == 1 and min(widths) > known:
                return None  # two views of an example, which are compared with each other
            each = fitting or each
        elif len(each) > 1 and len({x.shape for x in each}) == 1 and self._are_twins:
            return None  # nothing says how many classes there are: a view of each input
        found = next(iter(each), None)
        # One position: a language model that generates, a sequence that was pooled.
        return found[:, 0] if found is not None and found.ndim == 3 and found.shape[1] == 1 else found

    def _of_second_text(self, output: Any) -> bool:
        """Whether the positions of an output are a decoder's, and only by chance as many as the tokens that went in."""
        return self.second_text is not None or _named(output, "encoder_last_hidden_state") is not None

    def _reconstruct(self, parts: Sequence[Tensor]) -> bool:
        """Whether a part of an output has as many values as an input: what rebuilds it (an autoencoder) scores none.

        As many classes as values are believed where the labels say so, or the names of the classes. One number is a
        score, though an input is one number too: a column of a table, the x of a curve, a time.
        """
        sizes = {x[0].numel() for x in self.float_inputs} - {1, self._classes, len(self.class_names)}
        return any(part[0].numel() in sizes for part in parts)

    def _scored_alone(self, parts: Sequence[Tensor]) -> bool:
        """Whether an output is one number an example (N,): a regression's, or a logit of two classes."""
        return len(parts) == 1 and parts[0].ndim == 1 and parts[0].is_floating_point() and self._classes <= 2

    def _embeds(self, found: Tensor) -> str:
        """How it is known that an output (N, D) is rather embeddings than scores of the classes; "" where it is not.

        Probabilities of one class alone have rows of length 1 too, but are no negative numbers.
        """
        columns, names = found.shape[1], len(self.class_names)
        known = max(names, self._classes)
        padded = 2 if columns < _EMBEDDING else 1.2  # a head may be wider, for the background or to be padded
        if names and columns > padded * known:
            return f"it has {columns} columns for {known} classes"
        if self._classes > 2 * columns:  # a few too many are a mistake, which is said where one is explained
            return f"it has {columns} columns and there is a class {self._classes - 1}"
        values = found.detach().float()
        rounding = 1e-4 if found.dtype in (torch.float32, torch.float64) else 2e-2
        unit = bool(((values.norm(dim=1) - 1).abs() < rounding).all() and (values < 0).any())
        return "its rows have length 1" if unit else ""

    def _regresses(self, scores: Tensor) -> bool:
        """Whether the targets are numbers, and no shares of the classes."""
        targets = self._shown_targets
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            return False
        return targets.shape != scores.shape or self._targets_are == "numbers"

    def losses(self, output: Any) -> Tensor | None:
        """(N,) loss of each example, a scalar loss of all, or None where there is no way to tell."""
        if self.loss is not None:
            found = self.loss(output, self.targets)
            if not isinstance(found, Tensor):
                raise BatchDoesNotFit(
                    f"FixedBatch(loss=) must return a tensor, (N,) or a scalar, got {describe(found)}"
                )
            return found
        loss = _named(output, "loss")
        return loss if isinstance(loss, Tensor) else None

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
        named = self.inputs if isinstance(self.inputs, Mapping) else {}
        place = next(number for number, row in enumerate(rows, 1) if row is one)
        name = next((str(name) for name, part in named.items() if part is one), f"number {place}")
        return f"of {len(rows)} inputs {'the first' if name == 'number 1' else name}"

    @property
    def _are_twins(self) -> bool:
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
        named = self.inputs.items() if isinstance(self.inputs, Mapping) else (("", part) for part in [self.inputs])
        others = [x for name, part in named if not str(name).endswith(beside) for x in tensors_in(part) if x is not ids]
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
        if self._padding is None:
            return torch.ones(ids.shape, dtype=torch.bool, device="cpu")
        known = ids.detach().cpu() != self._padding
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


def _named(output: Any, name: str) -> Any:
    """A part of an output by name, or None."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _names_embeddings(name: Any) -> bool:
    """Whether a part of an output, or what it is in, is called as embeddings are."""
    return any(each.endswith(_EMBEDDED) for each in str(name).split("."))


def _of_each(part: Any, number: int, class_names: Sequence[str]) -> Any:
    """Targets by name as tensors; what is not one for each example as it is, for the loss may take anything."""
    if isinstance(part, Mapping):
        return {name: _of_each(within, number, class_names) for name, within in part.items()}
    found = as_tensor(part)
    if are_words(found) and len(found) == number:
        return numbered(found, class_names) if {word for word in found if word is not None} <= {*class_names} else found
    return found if isinstance(found, Tensor) and is_as_long(found, number) else part


def _alone(targets: Any, number: int) -> Any:
    """Of targets by name those that are the only ones, one for each example; all others as they are."""
    parts = list(named(targets).values()) if isinstance(targets, Mapping) else []
    return parts[0] if len(parts) == 1 and _is_one_each(parts[0], number) else targets


def _is_one_each(target: Any, number: int) -> bool:
    """Whether a target is a row, or a word, for each example."""
    return (isinstance(target, Tensor) or are_words(target)) and is_as_long(target, number)


def _scores(part: Tensor, target: Any) -> bool:
    """Whether a part of an output scores the classes of a target: (N, C), or (N,) and (N, 1) as logits of two."""
    labels = class_numbers(target)
    width = part.shape[1] if part.ndim == 2 else 1
    may = labels is not None and part.ndim in (1, 2) and part.is_floating_point()
    return may and labels is not None and max(width, 2) > int(labels.max()) >= 0


def _reading(targets: Any) -> tuple[bool, int, str]:
    """Whether targets are classes, how many of these there are at least, and what kind of columns they are."""
    labels = class_numbers(targets)
    if labels is None or bool((labels == NO_LABEL).all()):
        return False, 0, kind_of(targets)
    return True, int(labels.max()) + 1, kind_of(targets)


def _are_alike(x: Tensor, targets: Tensor) -> bool:
    """Whether targets (N, D) are the values of an input, whatever its shape: an autoencoder's."""
    given, wanted = (each.detach().cpu().double().flatten() for each in (x, targets))
    return torch.equal(given, wanted)


def _numbers_among(targets: Any) -> frozenset[Any]:
    """Names of the targets, where they are given by name, that are numbers and no classes: a regression's."""
    if not isinstance(targets, Mapping):
        return frozenset()
    floating = {name: x for name, x in named(targets).items() if isinstance(x, Tensor) and x.is_floating_point()}
    of_classes = {name for name, x in floating.items() if kind_of(x) in ("shares", "sets")}
    return frozenset(name for name in floating.keys() - of_classes if class_numbers(floating[name]) is None)


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
