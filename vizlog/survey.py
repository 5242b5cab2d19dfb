"""A first look: what one forward over examples of the fixed batch meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vizlog.batch import BatchDoesNotFit, FixedBatch
from vizlog.capture import Capture
from vizlog.channel import RanksApart
from vizlog.given import describe
from vizlog.messages import LOG, one_line
from vizlog.ranks import CommunicatesError, FailedElsewhereError
from vizlog.reading import Reading
from vizlog.requests import AttentionCalls, Call, Outputs
from vizlog.selection import device_of, named_modules
from vizlog.targets import NO_LABEL, Kind
from vizlog.trees import named
from vizlog.units import shape_of

__all__ = ["Layer", "Survey", "survey"]


_EMBEDDING = 32
"""Columns from which on scores of unnamed classes may well be embeddings."""


@dataclass(frozen=True)
class Layer:
    """One call met in a forward: name, module (None: a functional activation), and shapes of input and output."""

    name: str
    module: nn.Module | None
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channel_dim: int


@dataclass(frozen=True)
class Survey:
    """What one forward over the first examples of the fixed batch met.

    Args:
        batch: the fixed batch.
        layers: modules and functional activations in the order they ran.
        attention: names of the layers in which an attention function ran.
        scored: "logits", "loss" or "" : what examples can be scored by.
        classes: how many classes the logits have; 0 where there are none.
        scores_a_position: whether they are of one position of each example, where the model scores every one.
        answers: the name of the logits in the output, where they are of a text's tokens, as of where an answer starts.
        rebuilds: whether it gives as many values as it takes, as an autoencoder.
        token_embeddings: those that took the token ids as they are.
        embeds: where its output is embeddings, as a contrastive model's, how wide they are and how that is known.
    """

    batch: FixedBatch
    layers: tuple[Layer, ...]
    attention: tuple[str, ...]
    scored: str
    classes: int = 0
    scores_a_position: bool = False
    answers: str = ""
    rebuilds: bool = False
    token_embeddings: tuple[nn.Embedding, ...] = ()
    embeds: tuple[int, str] = (0, "")

    @property
    def vocabularies(self) -> set[int]:
        """How many tokens the model knows, by what takes the token ids; where they go in changed, by all embeddings.

        An embedding of segments knows two, as many as a tagger or a classifier has classes.
        """
        found = [layer.module for layer in self.of_type(nn.Embedding)]
        embeddings = self.token_embeddings or [module for module in found if isinstance(module, nn.Embedding)]
        return {module.num_embeddings for module in embeddings}

    def of_type(self, *types: type[nn.Module]) -> list[Layer]:
        """Layers of these module types, in the order they ran."""
        return [layer for layer in self.layers if isinstance(layer.module, types)]


def survey(models: Mapping[str, nn.Module], batch: FixedBatch) -> Survey:
    """Runs the first two examples once and notes what ran; the caller isolates.

    Raises:
        BatchDoesNotFit: the model could not be run on them; says which shapes came and what it raised.
        CommunicatesError: it waits for other ranks, which do not run it.
        FailedElsewhereError, RanksApart: other ranks no longer run it with this one.
    """
    _check_initialised(models)
    first, output = batch.part(0, 2), None
    calls = _Calls(first)
    every = Outputs(lambda name, module: True, calls.note)
    capture = Capture(models, {"o": every, "a": AttentionCalls(calls.note_attention)})
    try:
        first = batch.part(0, 2, device_of(models))
        with torch.no_grad(), capture.forward():
            output = first.run(models)
        batch = _read_by(output, batch, first)
        first = batch.part(0, 2, device_of(models))
        logits = Reading(first, output).logits()
        if logits is not None and batch.score is None and _is_square(logits, batch, models):
            batch, first, logits = batch.knowing(scored=False), first.knowing(scored=False), None
        scored = "logits" if logits is not None else _scored_by_loss(first, output, models)
    except (CommunicatesError, FailedElsewhereError, RanksApart, BatchDoesNotFit):
        raise
    except Exception as error:
        raise _does_not_fit(error, models, batch, first, output) from error
    for unexpected in capture.errors.values():
        raise unexpected
    classes = logits.shape[1] if logits is not None else 0
    embeddings = tuple(dict.fromkeys(calls.token_embeddings))
    padding = embeddings[0].padding_idx if embeddings else None
    batch = batch.knowing(scored=logits is not None, padding=padding).calling(_class_names(models, classes))
    read = Reading(first, output)
    scores_a_position = logits is not None and read.scores_a_position()
    if not scores_a_position:
        _tell_of_many(batch, classes)
    return Survey(
        batch,
        tuple(calls.layers),
        tuple(dict.fromkeys(calls.attention)),
        scored,
        classes,
        scores_a_position=scores_a_position,
        answers="" if logits is None else read.answers(logits),
        rebuilds=read.rebuilds(),
        token_embeddings=embeddings,
        embeds=(0, "") if logits is not None else read.embeds(),
    )


class _Calls:
    """What one forward over these examples meets, as it runs."""

    def __init__(self, examples: FixedBatch) -> None:
        self.layers: list[Layer] = []
        self.attention: list[str] = []
        self.token_embeddings: list[nn.Embedding] = []
        self._examples = examples

    def note(self, call: Call) -> None:
        tensor, given = call.tensor, call.input
        assert tensor is not None  # calls that return none are not told
        if isinstance(call.module, nn.Embedding) and self._examples.is_token_ids(given):
            self.token_embeddings.append(call.module)
        shapes = shape_of(given) if given is not None else (), shape_of(tensor)
        self.layers.append(Layer(call.layer, call.module, call.kind, *shapes, call.channel_dim))

    def note_attention(self, call: Call) -> None:
        self.attention.append(call.layer)


def _check_initialised(models: Mapping[str, nn.Module]) -> None:
    """Raises where parameters are lazy: a pass would draw their first values, at another place in the random stream."""
    lazy = [name for model in models.values() for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise BatchDoesNotFit(
            f"the model has parameters that are not initialised yet ({lazy[0]}): run it once on a batch before vizlog"
        )


def _read_by(output: Any, batch: FixedBatch, first: FixedBatch) -> FixedBatch:
    """The batch, with its targets read as the output of its first examples says."""
    if (task := Reading(first, output).task(batch.targets, len(batch))) is not None:
        batch = batch.of_task(task)
        first = batch.part(0, len(first))
    _tell_of_words(batch)
    if _more_than_two(batch.labels) and not batch.class_names and Reading(first, output).is_one_number():
        batch = batch.knowing(kind=Kind("numbers"))  # predicted by one number each
    sets, groups, shade = batch.label_sets, batch.groups, batch.shade
    kind = "sets of labels" if sets is not None else "classes" if groups else "numbers" if shade else ""
    if task is not None and kind:
        LOG.info("vizlog: of the targets %s those of %r are shown, as %s", describe(batch.targets), task[1], kind)
    elif task is None and batch.loss is None and len(named(batch.targets)) > 1:
        LOG.info(
            "vizlog: which of the targets %s belongs to the output is not known, and none is shown: give it alone, or "
            "under the name of its output",
            describe(batch.targets),
        )
    return batch


def _more_than_two(labels: Tensor | None) -> bool:
    """Whether labels are other numbers than those of two classes, 0 and 1 or −1 and 1."""
    return labels is not None and bool((labels[labels != NO_LABEL].abs() > 1).any())


def _tell_of_words(batch: FixedBatch) -> None:
    """Says what was made of targets in words that are no class numbers."""
    if batch.labels is None and batch.groups is not None:
        LOG.info(
            "vizlog: of targets in words embeddings show the classes (%d); which of the model's each is stays unknown "
            "without FixedBatch(class_names=…), names in the order of its classes",
            len(batch.groups[1]),
        )
    elif batch.has_texts:
        LOG.info("vizlog: targets in words, most of them different, are read as texts and no classes")


def _tell_of_many(batch: FixedBatch, classes: int) -> None:
    """Says so where scores are of many more classes than the targets have, as a contrastive model's output would be.

    Which of the two it is cannot be known: examples of a few classes are what a loader that does not shuffle gives.
    """
    labels = batch.labels
    known = classes if batch.score is not None or batch.class_names or labels is None else int(labels.max()) + 1
    if classes >= _EMBEDDING and classes > 2 * known:
        LOG.info(
            "vizlog: the output (N, %d) is read as scores of %d classes, of which the targets have %d at most; "
            "if it is embeddings, say so by FixedBatch(class_names=…), a name for each class",
            *(classes, classes, known),
        )


def _class_names(models: Mapping[str, nn.Module], classes: int) -> tuple[str, ...]:
    """What a Hugging Face model's configuration calls its classes; () where it names others, as a language model's.

    Of models inside another, such as a LightningModule, only of classifiers: an encoder's are of an earlier training.
    """
    inside = [part for part in named_modules(models).values() if type(part).__name__.endswith("Classification")]
    for parts in (models.values(), inside):
        configured = [getattr(getattr(part, "config", None), "id2label", None) for part in parts]
        fitting = [names for names in configured if isinstance(names, Mapping) and set(names) == set(range(classes))]
        found = {tuple(str(names[number]) for number in range(classes)) for names in fitting}
        if classes > 1 and len(found) == 1:  # of two that call them otherwise the scores are of either
            return found.pop()
    return ()


def _does_not_fit(
    error: Exception, models: Mapping[str, nn.Module], batch: FixedBatch, first: FixedBatch, output: Any
) -> BatchDoesNotFit:
    """What to say of an error that the model raised, or what makes scores of its output."""
    raised = one_line(error)
    if output is not None and (given := [name for name in ("score", "loss") if getattr(batch, name) is not None]):
        return BatchDoesNotFit(
            f"the model's output on the fixed batch is {describe(output)}, "
            f"of which FixedBatch({given[0]}=) raised {raised}"
        )
    advice = "Give inputs as the model takes them, or say how to run it with FixedBatch(forward=…)"
    if "does not require grad" in str(error):
        advice = "It runs without gradients here; where it needs some, FixedBatch(forward=…) may torch.enable_grad()"
    return BatchDoesNotFit(
        f"{type(next(iter(models.values()))).__name__} could not be run on the fixed batch: "
        f"its inputs are {describe(first.inputs)}, and the model raised {raised}. {advice}"
    )


def _scored_by_loss(first: FixedBatch, output: Any, models: Mapping[str, nn.Module]) -> str:
    """What `Survey.scored` is where there are no logits: a loss must say something of each example.

    One number for all is asked again of one example alone; it is 0 where examples are compared with each other (CLIP).
    """
    loss = Reading(first, output).losses()
    if loss is None:
        return ""
    if loss.ndim or len(first) < 2:
        return "loss"
    alone = first.part(0, 1)
    try:
        # Whatever the loss is: ranks of a sharded model run it equally often, though their losses may differ.
        with torch.no_grad():
            found = Reading(alone, alone.run(models)).losses()
    except (CommunicatesError, FailedElsewhereError, RanksApart):
        raise
    except Exception:  # noqa: BLE001 -- a model may raise anything of one example; what explains it says so
        return "loss"
    return "" if loss and found is not None and not found.any() else "loss"


def _is_square(logits: Tensor, batch: FixedBatch, models: Mapping[str, nn.Module]) -> bool:
    """Whether there are as many columns as examples, whatever their number: each is compared with each, as by CLIP."""
    if len(logits) < 2 or logits.shape[1] != len(logits):
        return False
    more = batch.part(0, len(logits) + 1 if len(batch) > len(logits) else 1, device_of(models))
    with torch.no_grad():
        found = Reading(more, more.run(models)).logits()
    return found is not None and found.shape[1] == len(more)
