"""What a model's output says of the examples that it was made of: scores of classes, losses, or neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vizlog.batch import BatchDoesNotFit, FixedBatch, on_device
from vizlog.given import describe
from vizlog.targets import TARGET_NAMES, Kind, class_numbers, is_one_each
from vizlog.trees import are_words, has_places, named

__all__ = ["Reading"]

_WIDE = 64
"""From how many columns on an output is rather embeddings, where it is a little wider than there are classes."""

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


class Reading:
    """An output, read by what is known of the examples: by their targets, and once a first output has told.

    Args:
        batch: the N examples that the model was run on.
        output: what it gave for them.
    """

    def __init__(self, batch: FixedBatch, output: Any) -> None:
        self._batch, self._known, self._output = batch, batch.known, output

    def logits(self) -> Tensor | None:
        """(N, classes) pre-softmax scores found in the output, or None where there are none.

        They are `.logits`, or else the first floating point part (N, classes), or (N,) as (N, 1); of several parts the
        one with as many columns as there are classes. Where the inputs are tokens also (N, T, classes), of which the
        `scored_positions` are taken.

        No scores are: a part of two numbers or more, as many as an input, which it rebuilds; an output whose targets
        are numbers (a regression), or a part of it whose own targets, those of its name, are; and embeddings, which are
        known by their name in the output, by another part of the same width that is far beyond the number of classes
        (of inputs that are alike: that is not this number), or as `embeds` says.

        Raises:
            BatchDoesNotFit: what `score` returns is no such scores.
        """
        batch = self._batch
        if batch.score is not None:
            logits = batch.score(self._output)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
                raise BatchDoesNotFit(
                    f"FixedBatch(score=) must return (N, classes) with N={len(batch)}, got {describe(logits)}"
                )
            return logits
        if self._known.scored is False or self._reconstruct(self._parts):
            return None
        found = self._scoring
        if found is None:
            return self._parts[0][:, None] if self._scored_alone else None
        if found.ndim == 3:
            ids = batch.token_ids
            if ids is None or found.shape[1] != ids.shape[1] or self._is_of_second_text:
                return None
            rows = torch.arange(len(found), device=found.device)
            found = found[rows, on_device(batch.scored_positions, found.device)]
        told = found.shape[1] == 1 or self._known.scored
        return found if told or not (self._regresses(found) or self._embedding(found)) else None

    def losses(self) -> Tensor | None:
        """(N,) loss of each example, a scalar loss of all, or None where there is no way to tell.

        Raises:
            BatchDoesNotFit: what `loss` returns is no tensor.
        """
        if self._batch.loss is not None:
            found = self._batch.loss(self._output, self._batch.targets)
            if not isinstance(found, Tensor):
                raise BatchDoesNotFit(
                    f"FixedBatch(loss=) must return a tensor, (N,) or a scalar, got {describe(found)}"
                )
            return found
        loss = self._named("loss")
        return loss if isinstance(loss, Tensor) else None

    def embeds(self) -> tuple[int, str]:
        """How wide an output is that would be class scores, were it not embeddings, and how that is known; or 0, "".

        As a contrastive model's are: by rows of length 1, by many more columns than there are `class_names`, by class
        numbers far beyond all columns, or by being a view of each of several inputs.
        """
        if self._batch.score is not None or self._known.scored is False:  # the latter: examples are compared
            return 0, ""
        if self._are_views and self._parts[0].ndim == 2:
            return self._parts[0].shape[1], "it has one part for each of several inputs"
        found = self._scoring
        if found is None or found.ndim != 2 or found.shape[1] == 1:
            return 0, ""
        told = "" if self._reconstruct(self._parts) or self._regresses(found) else self._embedding(found)
        return (found.shape[1] if told else 0), told

    def scores_a_position(self) -> bool:
        """Whether `logits` are those of one position alone, of an output that scores each."""
        return self._batch.score is None and self._scoring is not None and self._scoring.ndim == 3

    def answers(self, logits: Tensor) -> str:
        """The name of these logits in the output, where they score the tokens of a text (N, T): where an answer starts.

        "" where they are of classes.
        """
        if self._batch.token_ids is None or logits.shape != self._batch.token_ids.shape:
            return ""
        return next((name for name in ("start_logits", "end_logits") if self._named(name) is logits), "")

    def rebuilds(self) -> bool:
        """Whether a part of the output has as many values as an input, as an autoencoder's."""
        return self._batch.score is None and self._reconstruct(self._parts)

    def is_one_number(self) -> bool:
        """Whether it is one real number for each example; a whole one may be the class that was chosen."""
        alone = len(self._parts) == 1 and self._parts[0].numel() == len(self._batch)
        return self._batch.score is None and alone and self._parts[0].is_floating_point()

    def task(self, targets: Any, number: int) -> tuple[Any, Any] | None:
        """Of an output and targets by name the names of those that are shown; None where nothing tells.

        The first targets that are classes of the output of their name, else one number that it predicts, which can be
        explained, else several. One target alone is shown whatever its name is, and beside others the one that is
        called as targets are, where there is one output or outputs have no names: (None, its name).

        Args:
            targets: those of all examples, for of a few numbers may be 0 or 1 by chance.
            number: how many these are.
        """
        by_name = named(targets)
        outputs = {} if self._batch.score is not None else named(self._output)
        pairs = [(name, self._target_of(name)) for name in outputs]
        pairs = [(name, of) for name, of in pairs if of is not None and is_one_each(by_name[of], number)]
        if has_places(targets) and not self._are_in_one_order(outputs, by_name):
            return None
        for fits in (_scores, self._predicts_one, self._predicts):
            for name, of in pairs:
                if isinstance(outputs[name], Tensor) and fits(outputs[name], by_name[of]):
                    return name, of
        alone = list(by_name) if len(by_name) == 1 else [name for name in by_name if name in TARGET_NAMES]
        if len(alone) != 1 or not isinstance(targets, Mapping):
            return None
        (of,) = alone
        if pairs:
            return pairs[0] if are_words(by_name[of]) and len(by_name) == 1 else None
        have_names = any(isinstance(name, str) for name in outputs)
        may = is_one_each(by_name[of], number) and (not have_names or len(self._parts) == 1)
        return (None, of) if may else None

    def _are_in_one_order(self, outputs: Mapping[Any, Any], targets: Mapping[Any, Any]) -> bool:
        """Whether outputs and targets without names are as many, and no output is of another target than its own."""
        if outputs.keys() != targets.keys():
            return False
        plain = [place for place, part in outputs.items() if isinstance(part, Tensor) and part.ndim in (1, 2)]
        return all(
            _scores(outputs[place], targets[place]) or self._is_as_many(outputs[place], targets[place])
            for place in plain
        )

    # What it is made of -----------------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> list[Tensor]:
        """The tensors in it that may be scores: its `.logits`, those of the task, or else all at its surface."""
        output = self._output
        outputs = named(output)
        found = outputs.get(self._known.task[0]) if self._known.task is not None else None
        found = self._named("logits") if found is None else found
        parts: Iterable[Any] = ()
        if isinstance(found, Tensor) or isinstance(output, Tensor):
            parts = [found if isinstance(found, Tensor) else output]
        elif outputs:  # at its surface, or else further in
            parts = self._scores_by_name(named(output, 1)) or self._scores_by_name(outputs)
        elif isinstance(output, (tuple, list)):
            parts = output
        tensors = [part for part in parts if isinstance(part, Tensor) and part.ndim and not part.is_nested]
        return [tensor for tensor in tensors if len(tensor) == len(self._batch)]

    def _scores_by_name(self, outputs: Mapping[Any, Any]) -> list[Tensor]:
        """Tensors of these that are by their names no embeddings, and no numbers to be predicted."""
        scores = {name: part for name, part in outputs.items() if not _names_embeddings(name)}
        found = [part for name, part in scores.items() if self._target_of(name) not in self._known.numbers]
        return [part for part in found if isinstance(part, Tensor) and part.ndim]

    @cached_property
    def _scoring(self) -> Tensor | None:
        """Of the parts the one that may score classes, (N, classes) or (N, T, classes)."""
        kind = self._known.kind
        each = [x for x in self._parts if x.ndim in (2, 3) and x.is_floating_point()]
        in_targets = self._batch.shown_targets.shape[1] if kind.columns in ("shares", "sets") else kind.classes
        known = len(self._batch.class_names) or in_targets
        if known and len(each) > 1:
            exact = [x for width in (known, 1 if known == 2 else known) for x in each if x.shape[-1] == width]
            fitting = exact or [x for x in each if x.shape[-1] > known]
            width, *others = {x.shape[-1] for x in fitting} or [known]
            are_alike = len(fitting) > 1 and not others and width > known
            # Two views of an example, which are compared with each other; or exits, and a class is missing.
            if are_alike and (self._batch.has_twins or (known > 1 and _is_beyond(width, known))):
                return None
            each = fitting or each
        elif self._are_views:
            return None
        found = next(iter(each), None)
        # One position: a language model that generates, a sequence that was pooled.
        return found[:, 0] if found is not None and found.ndim == 3 and found.shape[1] == 1 else found

    @property
    def _are_views(self) -> bool:
        """Whether its parts are alike, as its inputs are, and nothing says how many classes there are."""
        alike = len(self._parts) > 1 and len({x.shape for x in self._parts}) == 1 and self._batch.has_twins
        return alike and not self._batch.class_names and self._known.kind == Kind()

    @property
    def _scored_alone(self) -> bool:
        """Whether it is one number an example (N,): a regression's, or a logit of two classes."""
        one = self._parts[0] if len(self._parts) == 1 else None
        return one is not None and one.ndim == 1 and one.is_floating_point() and self._known.kind.classes <= 2

    @property
    def _is_of_second_text(self) -> bool:
        """Whether its positions are a decoder's, and only by chance as many as the tokens that went in."""
        return self._batch.second_text is not None or self._named("encoder_last_hidden_state") is not None

    def _named(self, name: str) -> Any:
        """A part of it by name, or None."""
        output = self._output
        return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)

    def _target_of(self, name: Any) -> Any:
        """The name of the targets of a part: its own, or the last of its names; None where there are none."""
        targets, last = named(self._batch.targets), name.rpartition(".")[2] if isinstance(name, str) else name
        return name if name in targets else last if last in targets else None

    # What a part of it is ---------------------------------------------------------------------------------------------

    def _reconstruct(self, parts: Sequence[Tensor]) -> bool:
        """Whether one of these has as many values as an input: what rebuilds it (an autoencoder) scores none.

        As many classes as values are believed where the labels say so, or the names of the classes. One number is a
        score, though an input is one number too: a column of a table, the x of a curve, a time.
        """
        sizes = {x[0].numel() for x in self._batch.float_inputs}
        sizes -= {1, self._known.kind.classes, len(self._batch.class_names)}
        return any(part[0].numel() in sizes for part in parts)

    def _embedding(self, found: Tensor) -> str:
        """How it is known that a part (N, D) is rather embeddings than scores of the classes; "" where it is not.

        Probabilities of one class alone have rows of length 1 too, but are no negative numbers.
        """
        columns, names, classes = found.shape[1], len(self._batch.class_names), self._known.kind.classes
        known = max(names, classes)
        if names and _is_beyond(columns, known):
            return f"it has {columns} columns for {known} classes"
        if classes > 2 * columns:  # a few too many are a mistake, which is said where one is explained
            return f"it has {columns} columns and there is a class {classes - 1}"
        values = found.detach().float()
        rounding = 1e-4 if found.dtype in (torch.float32, torch.float64) else 2e-2
        unit = bool(((values.norm(dim=1) - 1).abs() < rounding).all() and (values < 0).any())
        return "its rows have length 1" if unit else ""

    def _regresses(self, scores: Tensor) -> bool:
        """Whether the targets are numbers, and no shares of the classes."""
        targets = self._batch.shown_targets
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            return False
        return targets.shape != scores.shape or self._known.kind.columns == "numbers"

    def _predicts(self, part: Tensor, target: Any) -> bool:
        """Whether a part is as many numbers as a target, and rebuilds no input: that tells no examples apart."""
        return self._is_as_many(part, target) and not self._reconstruct([part])

    def _predicts_one(self, part: Tensor, target: Any) -> bool:
        """Whether a part is the one number that each target is."""
        return self._predicts(part, target) and part.numel() == len(part)

    def _is_as_many(self, part: Tensor, target: Any) -> bool:
        """Whether a part is as many numbers as a target; whole ones with names are classes."""
        if not isinstance(target, Tensor) or part.ndim not in (1, 2) or not part.is_floating_point():
            return False
        may = target.is_floating_point() or (target.numel() == len(target) and not self._batch.class_names)
        return may and part[0].numel() == target[0].numel()


def _is_beyond(columns: int, classes: int) -> bool:
    """Whether an output is too wide to score classes: a head may be a little wider, for the background or padded."""
    return columns > (2 if columns < _WIDE else 1.2) * classes


def _names_embeddings(name: Any) -> bool:
    """Whether a part of an output, or what it is in, is called as embeddings are."""
    return any(each.endswith(_EMBEDDED) for each in str(name).split("."))


def _scores(part: Tensor, target: Any) -> bool:
    """Whether a part of an output scores the classes of a target: (N, C), or (N,) and (N, 1) as logits of two."""
    labels = class_numbers(target)
    width = part.shape[1] if part.ndim == 2 else 1
    may = labels is not None and part.ndim in (1, 2) and part.is_floating_point()
    return may and labels is not None and max(width, 2) > int(labels.max()) >= 0
