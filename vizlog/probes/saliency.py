"""Saliency maps: which parts of an example the model's score depends on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizlog.batch import FixedBatch
from vizlog.compute.saliency import (
    Gap,
    NoGradientError,
    Score,
    choose_targets,
    gradient,
    integrated_gradients,
    per_token,
    smoothgrad,
)
from vizlog.given import INTEGERS, describe
from vizlog.messages import LOG
from vizlog.probes.base import Context, Probe
from vizlog.probes.features import classifies_tokens
from vizlog.probes.inputs import (
    COLUMNS,
    as_images,
    axes_of,
    channels_in,
    is_only_series,
    lies_along,
    map_of_positions,
    map_of_values,
    pictures_of,
    series_of,
    shrunk,
    slices_of,
)
from vizlog.probes.subject import Subject, input_values, logits_of, met
from vizlog.records import Floats, Heatmaps, Pixels
from vizlog.schedules import LogSpaced, Schedule
from vizlog.selection import Select, check_select, device_of, matcher, named_modules
from vizlog.survey import Survey
from vizlog.targets import NO_LABEL, as_tensor, class_numbers

__all__ = ["SaliencyMaps"]

_METHODS = ("gradient", "smoothgrad", "integrated_gradients", "gradcam")


class SaliencyMaps(Probe):
    """Which parts of the first examples of the fixed batch the score of a class depends on: tags `saliency/METHOD`.

    The score is the pre-softmax logit of the target class (less the mean logit, where the model itself ends in softmax
    or log-softmax); where the model has no classes, minus the loss. Images and other floating point inputs are
    explained value by value, summed over channels; tokens through their embeddings, the gradient being multiplied with
    them. Of several inputs one is explained: images, else tokens, else the first of floating point. Where a
    model scores each token, the last one that has a label is looked at, else the last one.

    Args:
        select: the convolution that Grad-CAM reads, the last one that matches and runs; None: the last of the model.
        methods: any of "gradient" (Simonyan et al. 2014), "smoothgrad" (Smilkov et al. 2017), "integrated_gradients"
            (Sundararajan et al. 2017) and "gradcam" (Selvaraju et al. 2017). None: "gradient", and "gradcam" where the
            model has convolutions and no attention.
        target: "true" explains the true class, and where an example is misclassified the predicted one too, tagged
            `saliency/METHOD/predicted`, as it is for one that has no label; without true classes it is as "predicted".
            A class's number or name is tagged `saliency/METHOD/class-NAME`.
        every: a number of steps, or a schedule.
        examples: how many examples.
        samples, noise: of SmoothGrad: noisy copies, and their standard deviation as a share of the example's range.
        steps, baseline: of integrated gradients: points on the path, and where it starts: a number, or a tensor that
            broadcasts to one example as the model takes it (to its embeddings, for tokens).
    """

    def __init__(
        self,
        select: Select = None,
        *,
        methods: str | Sequence[str] | None = None,
        target: int | str = "true",
        every: int | Schedule = LogSpaced(every=100),  # noqa: B008 (frozen)
        examples: int = 8,
        samples: int = 50,
        noise: float = 0.15,
        steps: int = 50,
        baseline: Tensor | Floats | float = 0.0,
    ) -> None:
        super().__init__(every=every)
        self._check_numbers(examples=examples, samples=samples, steps=steps)
        if not _is_number(noise) or not noise >= 0:
            raise ValueError(f"SaliencyMaps(noise=) takes a share of the example's range, 0 or more, got {noise!r}")
        if isinstance(baseline, np.ndarray):
            baseline = torch.from_numpy(baseline.copy())
        if not isinstance(baseline, Tensor) and not _is_number(baseline):
            raise TypeError(f"SaliencyMaps(baseline=) takes a number or a tensor, got {baseline!r}")
        if isinstance(target, bool) or not isinstance(target, int | str):
            raise TypeError(f"SaliencyMaps(target=) takes 'true', 'predicted' or a class, got {target!r}")
        self._asked = None if methods is None else _known(methods)
        self._select, self._matches = select, matcher(select)
        self._target, self._examples = target, examples
        self._samples, self._noise = samples, noise
        self._steps, self._baseline = steps, baseline
        self._methods: tuple[str, ...] = ()
        self._convolution = ""
        self._others: list[str] = []  # convolutions of other parts, where the score depends on none of that one's
        self._tokens = self._is_table = self._sums = False
        self._next_tokens = self._hidden_tokens = self._of_tokens = self._at_labels = self._of_sets = False
        self._where = self._answers = ""
        self._slices = self._axes = self._input = ""
        self._one_number = False
        self._two: tuple[int, int] | None = None  # that one number tells apart, and where
        self._threshold = 0.0
        self._shown: FixedBatch | None = None
        self._pictures: Pixels | None = None
        self._series: Pixels | None = None

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        if survey is None:
            raise ValueError("SaliencyMaps needs examples to explain: give batch=(inputs, targets)")
        if not survey.scored:
            _, why = survey.embeds
            read = f", read as embeddings since {why}" if why else ""
            raise ValueError(
                f"SaliencyMaps finds no score to explain in the model's output{read}: "
                f"give FixedBatch(score=…), which returns (N, classes){_of_pixels(survey.batch)}, or FixedBatch(loss=…)"
            )
        self._shown = survey.batch.part(0, self._examples)
        self._one_number = survey.classes == 1
        self._two, self._threshold = _two_classes(survey)
        self._at_labels = survey.scores_a_position and _labels_choose_positions(survey.batch)
        self._where = ", at the last position" if survey.scores_a_position else ""
        self._where += " that has a label" if self._at_labels else ""
        sets = self._shown.label_sets  # of a loss they may be anything of 0 and 1: the pixels of a drawing
        self._of_sets = sets is not None and sets.shape[1] == survey.classes
        self._check_target(self._shown, survey)
        self._tokens = _explains_tokens(self._shown, survey)
        self._answers = survey.answers
        self._next_tokens = self._tokens and not self._answers and _predicts_tokens(self._shown, survey)
        self._hidden_tokens = self._next_tokens and _hides_tokens(survey.batch)
        self._of_tokens = self._hidden_tokens or classifies_tokens(survey)
        self._pictures = pictures_of(survey.batch if self._tokens else as_images(survey.batch), self._examples)
        explained = self._shown.token_ids if self._tokens else input_values(self._shown)
        self._input = self._shown.of_several(explained) if explained is not None else ""
        shape = () if self._tokens else input_values(self._shown).shape
        self._is_table = len(shape) == 2
        self._slices = slices_of(shape)
        self._sums = len(shape) > 3 and max(shape[2:]) > 1 and shape[channels_in(shape)] > 1
        self._axes = axes_of(shape) if self._pictures is None else ""
        self._series = None if self._tokens or self._pictures is not None else series_of(self._shown)
        if isinstance(self._baseline, Tensor) and not self._tokens:
            _check_baseline(self._baseline, input_values(self._shown))
        convolution, *self._others = self._convolutions(survey) or [""]
        self._convolution = convolution.partition("@")[0]
        if self._asked is not None:
            self._methods = self._asked
        else:
            says_much = convolution and not self._says_little(survey, convolution)
            self._methods = ("gradient", "gradcam") if says_much else ("gradient",)
        if "gradcam" in self._methods and not convolution:
            raise ValueError("Grad-CAM needs a convolution whose output has more than one position; none ran")

    def measure(self, context: Context) -> _Measured:
        assert context.batch is not None
        batch = context.batch.part(0, self._examples, device_of(context.models))
        with context.forward_context(), _recurrent_backward(context.models):
            subject, output = met(context.models, batch, tokens=self._tokens)
            logits = logits_of(batch, output)
            found = list(self._found(subject, self._questions(batch, logits), context.rank))
            if logits is None:
                return _Measured(_Prediction(None, subject.losses(output).float(), "loss"), found)
        return _Measured(_prediction(logits, sets=self._of_sets), found)

    def finish(self, measured: _Measured) -> Iterable[Heatmaps]:
        for found in measured.found:
            yield self._heatmaps(found, measured.prediction)

    def _check_target(self, shown: FixedBatch, survey: Survey) -> None:
        if survey.scored == "loss" and self._target != "true":
            raise ValueError(f"SaliencyMaps(target={self._target!r}) needs class scores, but the model gives a loss")
        if survey.scored == "logits" and (self._target != "true" or shown.labels is not None):
            logits, labels = torch.empty(len(shown), survey.classes, device="cpu"), shown.labels
            rows = _labelled(labels, logits)
            choose_targets(logits[rows], None if labels is None else labels[rows], self._target, shown.class_names)

    def _convolutions(self, survey: Survey) -> list[str]:
        """The last convolution of each part of the model whose output has positions, the last to run first.

        Grad-CAM reads the first of these, unless the score does not depend on it.
        """
        rows = min(2, len(survey.batch))
        found = {
            layer.name: layer.module
            for layer in survey.of_type(nn.Conv1d, nn.Conv2d, nn.Conv3d)
            if layer.output_shape[0] == rows and max(layer.output_shape[2:], default=1) > 1
        }
        matching = [name for name, module in found.items() if self._matches(name, module)]
        check_select(self._select, found, matching, "convolution that runs on the batch")
        paths = [tuple(name.split(".")) for name in matching]
        # Parts are told apart where the names part: what is above holds all convolutions.
        above = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
        parts = 1 + sum(1 for _ in above)
        last = {path[:parts]: name for path, name in zip(paths, matching, strict=True)}
        return sorted(last.values(), key=matching.index, reverse=True)

    def _says_little(self, survey: Survey, convolution: str) -> bool:
        """Whether Grad-CAM of this convolution would be hard to make sense of, so that it is to be asked for.

        Called again it sees another input; where attention follows it is of patches, mostly; and what rebuilds an image
        or its noise ends in a convolution that is the output itself.
        """
        rebuilds = survey.scored == "loss" and survey.rebuilds
        return "@" in convolution or bool(survey.attention) or rebuilds or not self._has_places(survey, convolution)

    def _has_places(self, survey: Survey, convolution: str) -> bool:
        """Whether the positions of a convolution are places in what is explained, as those of a generator's are not."""
        assert self._shown is not None
        if self._tokens or self._pictures is not None or input_values(self._shown).ndim > 2:
            return True
        return any(layer.name == convolution and len(layer.output_shape) == 3 for layer in survey.layers)

    def _questions(self, batch: FixedBatch, logits: Tensor | None) -> Iterator[_Question]:
        """Which examples to explain for which class."""
        every = torch.arange(len(batch), device="cpu")
        if logits is None:
            yield _Question("", every, None)
            return
        predicted, labels = logits.argmax(1).cpu(), self._labels(batch)
        if self._target not in ("true", "predicted"):
            chosen = choose_targets(logits, None, self._target, batch.class_names).cpu()
            name = batch.token_name if self._next_tokens and not batch.class_names else batch.class_name
            yield _Question(f"class-{name(int(chosen[0]))}", every, chosen)
        elif self._target == "predicted" or (labels is None and logits.shape[1] > 1):
            yield _Question("predicted", every, predicted)
        else:
            rows = _labelled(labels, logits)
            known = None if labels is None else labels[rows]
            true = torch.full_like(predicted, NO_LABEL)
            true[rows] = choose_targets(logits[rows.to(logits.device)], known, "true").cpu()
            if len(rows):
                yield _Question("", rows, true[rows])
            wrong = ((predicted != true) & ~logits.isnan().any(1).cpu()).nonzero().flatten()  # of NaN none is predicted
            if len(wrong):
                yield _Question("predicted", wrong, predicted[wrong])

    def _labels(self, batch: FixedBatch) -> Tensor | None:
        """(N,) the true classes; of a text whose tokens have one each, that of the token which is looked at.

        Of an answer in a text the position of the token where it starts.
        """
        if self._answers and batch.labels is None:
            return _true_positions(batch, self._answers)
        labels = batch.token_labels if self._of_tokens else None
        return batch.labels if labels is None else labels.gather(1, batch.scored_positions[:, None])[:, 0]

    def _found(self, subject: Subject, questions: Iterable[_Question], rank: int) -> Iterator[_Found]:
        """Each question explained by each method; Grad-CAM only as long as there is something that it can read."""
        for question in questions:
            for method in self._methods:
                try:
                    yield self._explain(method, subject.take(question.rows), question)
                except NoGradientError as error:
                    if method != "gradcam" or len(self._methods) == 1:
                        raise
                    self._methods = tuple(other for other in self._methods if other != method)
                    if rank == 0:
                        LOG.warning("vizlog: %s goes on without Grad-CAM: %s", self.name, error)

    def _explain(self, method: str, subject: Subject, question: _Question) -> _Found:
        score, values, gap = subject.score(question.targets), subject.values, None
        images = self._pictures is not None
        if method == "gradcam":
            cam = self._gradcam(subject, score)
            maps = map_of_positions(cam, values, tokens=self._tokens)
            if self._series is not None and maps.shape[1] > maps.shape[2]:  # a series lies along W
                maps = maps.transpose(1, 2)
            sides = tuple(maps.shape[1:])
            return _Found(method, question, shrunk(maps, images=images), gap, sides, flat=cam.ndim < 4)
        if method == "gradient":
            found = gradient(score, values, chunk=subject.chunk)
        elif method == "smoothgrad":
            found = smoothgrad(score, values, samples=self._samples, noise=self._noise, chunk=subject.chunk)
        else:
            found, gap = integrated_gradients(
                score, values, baseline=self._baseline, steps=self._steps, chunk=subject.chunk
            )
        if not self._tokens:
            maps = map_of_values(found)
            if images and found.ndim == 2:  # pixels laid flat
                maps = maps.unflatten(2, (math.isqrt(maps.shape[2]), -1)).squeeze(1)
            return _Found(method, question, shrunk(maps, images=images), gap, tuple(maps.shape[1:]))
        # The dimensions of an embedding mean nothing by themselves. The gradient along the embedding does: what the
        # token adds to the score, to first order. Integrated gradients are that already.
        parts = found if gap is not None else found * values.float()
        return _Found(method, question, per_token(parts)[:, None], gap)

    def _gradcam(self, subject: Subject, score: Score) -> Tensor:
        """Of the last convolution, or, where it is a teacher's or a momentum encoder's, of another part's last one."""
        tried = []
        while True:
            try:
                return subject.gradcam(score, self._convolution)
            except NoGradientError:
                tried.append(self._convolution)
                if not self._others:
                    raise NoGradientError(
                        f"the score depends on none of the convolutions that Grad-CAM could read ({', '.join(tried)}), "
                        "or something on the way detaches it"
                    ) from None
                self._convolution = self._others.pop(0).partition("@")[0]

    def _heatmaps(self, found: _Found, prediction: _Prediction) -> Heatmaps:
        assert self._shown is not None
        rows = found.question.rows
        shown = self._shown.take(rows)
        values = found.maps.numpy()
        one_row, signed, labels = values.shape[1] == 1, found.method != "gradcam", None
        if self._tokens and one_row:
            values = values[..., : int(self._shown.last_positions.max()) + 1]  # all further on is padding
            labels = [shown.token_names(i)[: values.shape[-1]] for i in range(len(shown))]
        elif one_row and values.shape[-1] == len(shown.feature_names):
            labels = [list(shown.feature_names)] * len(shown)
        elif one_row and signed and self._is_table and values.shape[-1] <= COLUMNS:
            labels = [[f"x{column}" for column in range(values.shape[-1])]] * len(shown)
        return Heatmaps(
            "/".join(part for part in ("saliency", found.method, found.question.suffix) if part),
            values,
            self._titles(shown),
            self._notes(shown, found, prediction),
            _limits(values, signed=signed),
            "diverging" if signed else "sequential",
            column_labels=labels,
            over=self._below(found),
            caption=f"{self._what(found.method)}. {self._of_what(found.question, shown)}{self._which(found)}",
        )

    def _below(self, found: _Found) -> Pixels | None:
        """The pictures that maps are of, where Grad-CAM's are known to be of them, side by side."""
        assert self._shown is not None
        pictures = self._pictures if self._series is None else self._series
        cam, one_row = found.method == "gradcam", found.maps.shape[1] == 1
        if self._series is not None:
            alike = lies_along(found.maps.shape[1:], input_values(self._shown).shape)
            known = not cam or (alike and is_only_series(self._shown))
        else:  # nor which of several images one sees
            known = not one_row and (not cam or self._shown.pictures_one_input)
        if pictures is None or not known:
            return None
        shown: Pixels = pictures[found.question.rows.numpy()]
        return shown

    def _what(self, method: str) -> str:
        """What was computed, for the caption."""
        assert self._shown is not None
        if method == "gradcam":
            where = f"where channels of layer {self._convolution} that raise the score are active"
            return f"Grad-CAM (Selvaraju et al. 2017): {where}"
        unit = "token" if self._tokens else "value" if self._pictures is None else "pixel"
        summed = ", summed over channels" if self._sums else ""
        if method == "integrated_gradients":
            start = "a given baseline" if isinstance(self._baseline, Tensor) else f"{self._baseline:g}"
            return (
                f"Integrated gradients (Sundararajan et al. 2017), {self._steps} steps from {start}: what each {unit} "
                f"adds to the score{summed}, negative where it takes from it; gap: what the total misses of the change"
            )
        found = f"positive where raising a {unit} raises the score, negative where it lowers it{summed}"
        if self._tokens:
            found = "times embedding, what each token adds to the score to first order, negative where it takes from it"
        if method == "gradient":
            return f"Gradient (Simonyan et al. 2014){' ' if self._tokens else ': '}{found}"
        copies = f"{self._samples} copies with noise of {self._noise:.0%} of the example's range"
        return f"SmoothGrad (Smilkov et al. 2017), {copies}{' ' if self._tokens else ': '}{found}"

    def _of_what(self, question: _Question, shown: FixedBatch) -> str:
        """Which score of which examples, for the caption."""
        kind = ("token" if self._hidden_tokens else "next token") if self._next_tokens else "class"
        kind = f"position, by {self._answers}" if self._answers else kind
        kind = "label" if self._of_sets else kind + self._where
        logit = f"the logit (before {'sigmoid' if self._of_sets else 'softmax'})"
        if question.targets is None:
            score = "minus the loss"
        elif self._one_number:
            score = "the model's output, one number an example"
            score += f", over {self._threshold:g} {self._class_name(self._two[1])}" if self._two else ""
        elif question.suffix.startswith("class-"):
            score = f"{logit} of {self._class_name(int(question.targets[0]))}"
        else:
            score = f"{logit} of the {'likeliest' if self._of_sets else question.suffix or 'true'} {kind}"
        which = f"{len(shown)} examples of the fixed batch"
        labels = self._labels(shown)
        if question.suffix == "predicted" and labels is not None and self._target == "true":
            which = "only examples that are misclassified"
            which += " or have no label" if bool((labels < 0).any()) else ""
        return f"Score: {score}; {which}, eval mode"

    def _which(self, found: _Found) -> str:
        """Which values are where in the maps, and which are not shown, for the caption."""
        cam = found.method == "gradcam"  # a convolution leaves another number of slices, or sees all as channels
        slices = f"the {self._slices.partition(' ')[2]}" if cam else self._slices
        middle = f"; of {slices} the middle one" if self._slices and not (cam and found.flat) else ""
        which = "" if cam else f"{f'; {self._input} is explained' if self._input else ''}{self._axes}"
        which += (
            "; the input on one scale in all examples"
            if self._below(found) is not None and self._series is not None
            else ""
        )
        return f"{which}{middle}{found.left_out}{found.empty}"

    def _titles(self, shown: FixedBatch) -> list[str]:
        names = [f"example {number}" for number in shown.ids.tolist()]
        if self._of_sets and (sets := shown.label_sets) is not None:
            those = [[self._class_name(label) for label in each.nonzero().flatten().tolist()] for each in sets]
            return [f"{name}: {', '.join(labels) or 'none'}" for name, labels in zip(names, those, strict=True)]
        labels = self._labels(shown)
        if labels is None and shown.groups is not None:  # words, of which no class of the model's is known
            numbers, words = shown.groups
            said = [words[number] if number >= 0 else "no label" for number in numbers.tolist()]
            return [f"{name}: {word}" for name, word in zip(names, said, strict=True)]
        if labels is None:
            return names
        lowest = NO_LABEL + 1 if self._one_number else 0  # of a margin −1 is a class
        for i, label in enumerate(labels.tolist()):
            names[i] += f": {self._class_name(label, shown, i) if label >= lowest else 'no label'}"
        return names

    def _notes(self, shown: FixedBatch, found: _Found, prediction: _Prediction) -> list[str]:
        """For each map: the class it explains, or its target, what the model predicts, and the completeness gap."""
        notes = []
        quantity = shown.quantity
        numbers = [math.nan] * len(shown) if quantity is None else quantity.tolist()
        targets = ["" if math.isnan(number) else f", target {number:.3g}" for number in numbers]
        labels, positions = self._labels(shown), shown.scored_positions.tolist() if self._at_labels else []
        for i, row in enumerate(found.question.rows.tolist()):
            parts = []
            if prediction.kind == "output" and self._two and not prediction.shares[row].isnan():
                value, label = float(prediction.shares[row]), NO_LABEL if labels is None else int(labels[i])
                guess = self._two[value > self._threshold]
                wrong = ", wrong" if label in self._two and guess != label else ""
                parts.append(f"predicted {self._class_name(guess)} (output {value:.3g}{wrong})")
            elif prediction.classes is None:
                parts.append(f"{prediction.kind} {float(prediction.shares[row]):.3g}{targets[i]}")
            elif found.question.targets is not None:
                guess, share = int(prediction.classes[row]), float(prediction.shares[row])
                label = NO_LABEL if labels is None else int(labels[i])
                wrong = ", wrong" if label >= 0 and guess != label else ""
                explained = "explains" if found.question.suffix else "target"
                at = f" at {shown.token_names(i)[positions[i]]!r}" if self._at_labels else ""
                parts.append(f"{explained} {self._class_name(int(found.question.targets[i]), shown, i)}{at}")
                said = "likeliest" if self._of_sets else "predicted"
                predicted = f"{said} {self._class_name(guess, shown, i)} ({share:.0%}{wrong})"
                parts.append("no class is predicted: scores are NaN" if math.isnan(share) else predicted)
            if found.gap is not None:
                parts.append(f"gap {float(found.gap.absolute[i]):+.2g} ({100 * float(found.gap.relative[i]):.2g}%)")
            notes.append("; ".join(parts))
        return notes

    def _class_name(self, number: int, shown: FixedBatch | None = None, example: int = 0) -> str:
        """A class by its name; a token, where tokens are predicted; else by its number.

        A position in a text, of which an answer is one, by the token there, where an example is named.
        """
        assert self._shown is not None
        if self._answers:
            named = shown is not None and shown.tokens is not None
            return f"position {number}{f', {shown.token_names(example)[number]!r}' if shown and named else ''}"
        if self._shown.class_names:
            return self._shown.class_name(max(number, 0) if self._two else number)  # of a margin −1 is the first
        if self._next_tokens:
            return repr(self._shown.token_name(number)) if self._shown.tokens is not None else f"token {number}"
        return f"class {number}"


@dataclass(frozen=True)
class _Question:
    """Examples (rows, int64) and the class to explain each for; None: minus the loss. `suffix` is of the tag."""

    suffix: str
    rows: Tensor
    targets: Tensor | None


@dataclass(frozen=True)
class _Found:
    """One record to be: maps (N, H, W) of the question's examples, and how many values a side there were.

    `flat`: whether those of Grad-CAM had no slices to take the middle one of.
    """

    method: str
    question: _Question
    maps: Tensor
    gap: Gap | None
    sides: tuple[int, ...] = ()
    flat: bool = False

    @property
    def left_out(self) -> str:
        """What the caption says of values that are not shown."""
        if self.sides in ((), tuple(self.maps.shape[1:])):
            return ""
        whole = " x ".join(map(str, self.sides))
        return f"; of {whole} values the one furthest from 0 of each block is shown"

    @property
    def empty(self) -> str:
        """What the caption says of maps of Grad-CAM that are all dark, which is no failure of it."""
        number = int((self.maps.flatten(1) == 0).all(1).sum()) if self.method == "gradcam" else 0
        return f"; {number} of {len(self.maps)} maps are 0 all over, as no such channel is active" if number else ""


@dataclass(frozen=True)
class _Prediction:
    """What the model says of all examples shown, (M,): the likeliest class and its share; else its output or loss."""

    classes: Tensor | None
    shares: Tensor
    kind: str = "output"


@dataclass(frozen=True)
class _Measured:
    prediction: _Prediction
    found: list[_Found]


def _known(methods: str | Sequence[str]) -> tuple[str, ...]:
    asked = (methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods))
    unknown = [method for method in asked if method not in _METHODS]
    if unknown or not asked:
        raise ValueError(
            f"SaliencyMaps(methods=) takes any of {', '.join(_METHODS)}, got {', '.join(map(str, unknown)) or 'none'}"
        )
    return asked


def _explains_tokens(shown: FixedBatch, survey: Survey) -> bool:
    """Whether it is tokens that are explained, and not the values of a floating point input.

    Raises:
        ValueError: neither can be.
    """
    if shown.images is not None:
        return False
    ids = shown.token_ids
    if ids is not None and survey.token_embeddings:
        return True
    if not shown.float_inputs:
        raise ValueError(
            "SaliencyMaps needs a floating point input, or token ids (N, T) that an nn.Embedding takes all at once, "
            f"got {describe(shown.inputs)}{', taken otherwise' if ids is not None else ''}"
        )
    if not 2 <= shown.float_inputs[0].ndim <= 5:
        raise ValueError(f"SaliencyMaps draws inputs of 2 to 5 dimensions, got {describe(shown.float_inputs[0])}")
    return False


def _of_pixels(batch: FixedBatch) -> str:
    """What else to say of a score, where each pixel of an image has a label."""
    masks = batch.targets
    each = isinstance(masks, Tensor) and masks.ndim > 2 and masks.dtype in INTEGERS and batch.images is not None
    return ", as output.mean((2, 3)) of scores for each pixel" if each else ""


def _labelled(labels: Tensor | None, logits: Tensor) -> Tensor:
    """The rows whose true class is known; of one score alone all, since that is explained whatever the label is."""
    if labels is None or logits.shape[1] == 1:
        return torch.arange(len(logits), device="cpu")
    return (labels >= 0).nonzero().flatten()


def _predicts_tokens(shown: FixedBatch, survey: Survey) -> bool:
    """Whether the classes are the tokens that go in, so that they have their names.

    Where those have none, scores of every position tell: what has one score a text may have as many classes by chance.
    """
    may = shown.tokens is not None or survey.scores_a_position
    return may and not shown.class_names and survey.classes in survey.vocabularies


def _two_classes(survey: Survey) -> tuple[tuple[int, int] | None, float]:
    """Where one number an example tells two classes apart, these, and from where on it is the second; else None.

    That of a sigmoid is a probability, and any other a logit or a margin.
    """
    labels, names = survey.batch.labels, survey.batch.class_names
    if survey.classes != 1 or survey.batch.score is not None or labels is None or len(names) > 2:
        return None, 0.0
    known = labels[labels != NO_LABEL]
    if bool((known.abs() > 1).any()):
        return None, 0.0
    number = min(2, len(survey.batch))
    # A gate's is a share as well, but other layers follow it.
    sigmoids, weighs = ("sigmoid", "hardsigmoid"), (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    single = [layer for layer in survey.layers if math.prod(layer.output_shape) == number]
    shares = [layer.kind.lower() in sigmoids for layer in single]
    telling = [share for share, layer in zip(shares, single, strict=True) if share or isinstance(layer.module, weighs)]
    ends = telling[-1:] == [True]
    return (-1 if bool((known < 0).any()) else 0, 1), 0.5 if ends else 0.0


def _true_positions(batch: FixedBatch, scores: str) -> Tensor | None:
    """(N,) where answers start, by the targets or inputs that have the name of these scores; −100 beyond the text."""
    ids, name = batch.token_ids, scores.replace("logits", "positions")
    named = [tree for tree in (batch.targets, batch.inputs) if isinstance(tree, Mapping) and name in tree]
    found = class_numbers(as_tensor(named[0][name]), known=True) if named else None
    if ids is None or found is None or len(found) != len(batch):
        return None
    return found.masked_fill((found < 0) | (found >= ids.shape[1]), NO_LABEL)


def _labels_choose_positions(batch: FixedBatch) -> bool:
    """Whether it is not always the last token whose scores are looked at, since that has no label."""
    return batch.token_labels is not None and not torch.equal(batch.scored_positions, batch.last_positions)


def _hides_tokens(batch: FixedBatch) -> bool:
    """Whether the tokens to predict are masked ones, and not those that come next: by the labels, if there are any."""
    ids, labels = batch.token_ids, batch.token_labels
    if ids is None or labels is None:
        return False
    ids, known = ids.detach().cpu(), labels != NO_LABEL
    here, next_ = labels == ids, labels[:, :-1] == ids[:, 1:]  # moved on by the model, or beforehand
    return bool(known.any()) and not bool(here[known].all()) and not bool(next_[known[:, :-1]].all())


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_baseline(baseline: Tensor, values: Tensor) -> None:
    try:
        baseline.expand(values.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"SaliencyMaps(baseline=) needs a tensor that broadcasts to one example, {tuple(values.shape[1:])}, "
            f"got {tuple(baseline.shape)}"
        ) from None


def _recurrent_backward(models: Mapping[str, nn.Module]) -> AbstractContextManager[Any]:
    """Where there are recurrent layers, torch's own instead of cuDNN's, which have no backward in eval mode."""
    if any(isinstance(module, nn.RNNBase) for module in named_modules(models).values()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def _prediction(logits: Tensor, *, sets: bool) -> _Prediction:
    """What the model predicts; of labels that an example may have several of, the likeliest."""
    if logits.shape[1] == 1:
        return _Prediction(None, logits[:, 0].float())
    logits = logits.float()
    if sets:
        are_shares = bool(((logits >= 0) & (logits <= 1)).all())
        shares, classes = (logits if are_shares else logits.sigmoid()).max(1)
    else:
        shares, classes = logits.softmax(1).max(1)
    return _Prediction(classes, shares)


def _limits(values: Floats, *, signed: bool) -> tuple[float, float]:
    """One scale for a record, to the 99th percentile: a few large values must not leave the rest pale."""
    sizes = np.abs(values[np.isfinite(values)])
    most = (float(np.quantile(sizes, 0.99)) or float(sizes.max()) or 1.0) if sizes.size else 1.0
    return -most if signed else 0.0, most
