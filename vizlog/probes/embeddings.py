"""Embeddings: where a layer puts the examples, and how well it separates their classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from vizlog.batch import FixedBatch
from vizlog.compute.layouts import Layouts, Projected, check_methods, project
from vizlog.compute.projection import knn_accuracy, knn_r2, neighbours, silhouette
from vizlog.probes.base import Context, Probe, only_arranges
from vizlog.probes.features import (
    CONVOLUTIONS,
    Features,
    Points,
    Reader,
    classifies_tokens,
    features_of,
    has_two_texts,
    points_of,
)
from vizlog.process import shared
from vizlog.records import Embedding, Record, Scalar
from vizlog.requests import Outputs, Request
from vizlog.schedules import LogSpaced, Schedule
from vizlog.selection import Select, check_select, matcher, spread
from vizlog.survey import Layer, Survey
from vizlog.trees import tensors_in

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Embeddings"]

Label: TypeAlias = "Literal['class', 'token'] | ArrayLike | None"

_NEIGHBOURS = 10
_SCORES = {
    "knn_accuracy": "share of the points whose class most of their {k} nearest others have, by the features",
    "knn_r2": "share of the quantity's variance that the mean of each point's {k} nearest others explains (R²)",
    "silhouette": "how much nearer points are to their own class than to the next, by the features: -1 to 1",
}


class Embeddings(Probe):
    """A layer's features of the fixed batch on a plane, comparable from step to step: tags `embeddings/LAYER`.

    By itself it takes what goes into the last linear layer, or into the last convolution where that runs later, tagged
    `LAYER.input`; of an autoencoder what the narrowest layer puts out, and of a model whose output is embeddings what
    the last layer that is as wide does. Maps and sequences are averaged to one vector an example; texts without a class
    of their own become one point a token, 500 at most. With two classes of several points or more `LAYER/knn_accuracy`
    and `LAYER/silhouette` score the features themselves, not the picture; where each target is a number to
    be predicted, or several, `LAYER/knn_r2` does, for the one that colours the points.

    Args:
        select: layers whose output to take; None: the features before the last layer.
        methods: some of "pca", "tsne", "umap"; too few points for a layout quietly get PCA alone.
        every: a number of steps, or a schedule.
        label: what colours the points: "class", the targets, of each token where the model classifies tokens; "token",
            a point for each token; or labels of one's own, numbers or words, (N,) for the examples as they were given
            or (N, T) for their tokens; numbers with fractions are a quantity, and −1, None or NaN is no label. None:
            the class where there is one, else the target where it is a real number, or the first of several, else the
            token.
        layers: how many of the selected layers to draw, spread over the depth.
        examples: how many of the fixed batch's examples, the first ones.

    Raises:
        ImportError: "umap" without umap-learn.
    """

    slow = True

    def __init__(
        self,
        select: Select = None,
        *,
        methods: Sequence[str] = ("pca", "tsne"),
        every: int | Schedule = LogSpaced(every=100),  # noqa: B008 (frozen)
        label: Label = None,
        layers: int = 6,
        examples: int = 256,
    ) -> None:
        super().__init__(every=every)
        self._check_numbers(examples=examples, layers=layers)
        if isinstance(label, str) and label not in {"class", "token"}:
            raise ValueError(f"{self.name}(label=) takes 'class', 'token' or an array of labels, got {label!r}")
        self._select, self._matches = select, matcher(select)
        self._methods = check_methods(methods)
        self._label = label if label is None or isinstance(label, str) else np.asarray(label)
        self._most, self._examples = layers, examples
        self._process = shared("layouts")
        self._features: list[Features] = []
        self._left_out = self._classes = 0
        self._points: dict[bool, Points] = {}
        self._layouts: dict[str, Layouts] = {}

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        if survey is None:
            raise ValueError(f"{self.name} needs batch=: it shows where the model puts examples")
        batch = survey.batch.part(0, self._examples)
        shown = _bottleneck(survey) or (None if self._by_token(batch) else _embedding(survey))
        is_input = self._select is None and shown is None
        layers = self._selected(survey) if self._select is not None else [shown or _last(survey)]
        chosen = spread(layers, self._most)
        self._left_out, self._classes = len(layers) - len(chosen), survey.classes
        two_texts = has_two_texts(survey)
        by_class = self._label is None or (isinstance(self._label, str) and self._label == "class")
        of_tokens = by_class and classifies_tokens(survey)
        by_token = None if of_tokens else self._by_token(batch)
        by_token = False if by_token is None and two_texts else by_token
        self._features = [features_of(layer, batch, is_input=is_input, by_token=by_token) for layer in chosen]
        self._points = {
            each: points_of(batch, "class" if each and of_tokens else self._label, by_token=each, two_texts=two_texts)
            for each in {features.by_token for features in self._features}
        }
        self._layouts = {features.name: Layouts(self._methods) for features in self._features}

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        reader = Reader(self._features, self._points)
        examples = max(points.examples for points in self._points.values())
        return {"vectors": Outputs(reader.wants, reader.read, examples=examples)}

    @only_arranges
    def measure(self, context: Context) -> Mapping[str, list[Tensor]]:
        found: Mapping[str, list[Tensor]] = context.captured["vectors"]
        if not found:
            raise ValueError(f"{', '.join(features.layer for features in self._features)} did not run, but ran before")
        return found

    def finish(self, measured: Mapping[str, list[Tensor]]) -> Iterable[Record]:
        for features in self._features:
            if features.layer in measured:
                # The pass goes over whole chunks of examples, perhaps for another probe over more of them.
                points = self._points[features.by_token]
                yield from self._records(
                    features, points, torch.cat(measured[features.layer])[: len(points.ids)].numpy()
                )

    def _records(self, features: Features, points: Points, vectors: NDArray[np.float32]) -> Iterable[Record]:
        projected = self._layouts[features.name].update(vectors, np.arange(len(vectors)), by=self._project)
        k, scores = _scores(vectors, points.labels)
        tag = f"embeddings/{features.name}"
        yield Embedding(
            tag,
            vectors,
            projected.layouts,
            projected.layouts_3d,
            points.labels,
            points.class_names,
            points.ids,
            points.thumbnails,
            scores,
            caption=self._caption(features, points, vectors, projected),
        )
        for name, score in scores.items():
            yield Scalar(f"{tag}/{name}", score, caption=f"{_SCORES[name].format(k=k)}; {features} for {points.words}")

    def _project(self, *arguments: Any) -> Projected:
        return project(*arguments) if self._methods == ("pca",) else self._process.call(project, *arguments)

    def _selected(self, survey: Survey) -> list[Layer]:
        ran = {layer.name: layer for layer in survey.layers if len(layer.output_shape) > 1}
        found = [layer for name, layer in ran.items() if self._matches(name, layer.module)]
        check_select(self._select, ran, [layer.name for layer in found], "layer that ran on the batch")
        return found

    def _by_token(self, batch: FixedBatch) -> bool | None:
        """Whether each token is a point; None: where the layer keeps them apart."""
        if isinstance(self._label, np.ndarray):
            return self._label.ndim > 1
        if self._label is None:
            has_targets = batch.groups is not None or batch.shade is not None
            return None if batch.token_ids is not None and not has_targets else False
        return self._label == "token"

    def _caption(self, features: Features, points: Points, vectors: NDArray[np.float32], projected: Projected) -> str:
        number = f"{vectors.shape[1]} features{', averaged over positions' if features.averaged else ''}"
        parts = [f"{features} for {points.words}, eval mode: {number}; colour: {points.coloured_by}"]
        shown = len(np.unique(points.labels[points.labels >= 0]))
        if points.coloured_by == "class" and shown < self._classes:
            parts.append(f"{shown} of {self._classes} classes")
        if lost := int((~np.isfinite(vectors).all(1)).sum()):
            parts.append(f"{lost} of {len(vectors)} points hold NaN or inf and have no place")
        parts += [f"{method}: {note}" for method, note in projected.notes.items() if note]
        if len(projected.layouts) < len(self._methods):
            parts.append("too few different points for more than PCA")
        if self._left_out:
            parts.append(f"{len(self._features)} of {len(self._features) + self._left_out} selected layers are drawn")
        if {"tsne", "umap"} & set(projected.layouts):
            parts.append("distances and cluster sizes in t-SNE and UMAP mean nothing, who is near whom does")
        return "; ".join(parts)


def _scores(vectors: NDArray[np.float32], labels: NDArray[Any]) -> tuple[int, dict[str, float]]:
    """How many neighbours were asked, and what can be said of these labels."""
    if np.issubdtype(labels.dtype, np.floating):
        k = min(_NEIGHBOURS, max(1, len(labels) - 1))
        scores = {"knn_r2": knn_r2(vectors, labels, k=k)}
    else:
        k = neighbours(labels, _NEIGHBOURS)
        scores = {"knn_accuracy": knn_accuracy(vectors, labels, k=k), "silhouette": silhouette(vectors, labels)}
    return k, {name: score for name, score in scores.items() if np.isfinite(score)}


def _last(survey: Survey) -> Layer:
    """The linear layer or convolution that ran last.

    A linear layer that convolutions follow is on a side branch: it makes scales of channels (squeeze-and-excitation),
    or embeds a denoiser's time.
    """
    candidates = survey.of_type(nn.Linear, *CONVOLUTIONS) or [
        layer for layer in survey.layers if _is_like_linear(layer)
    ]
    if not candidates:
        raise ValueError("no linear layer and no convolution ran on the batch: name a layer whose output to show")
    return _trained(candidates, survey)


def _trained(candidates: Sequence[Layer], survey: Survey) -> Layer:
    """The last of some layers, or what stands for it.

    Where one network encodes several inputs (twins), its first call, of which the thumbnails are. Of a momentum encoder
    or teacher, which is not trained, the same layer of the part that is.
    """
    last = next((layer for layer in candidates if _is_trained_twin(layer, candidates[-1])), candidates[-1])
    shapes = [x.shape for x in survey.batch.float_inputs]
    if len(shapes) > len(set(shapes)):
        return next(layer for layer in candidates if layer.module is last.module)
    return last


def _is_like_linear(layer: Layer) -> bool:
    """Whether a layer is a linear one of a library's own class, as torch_geometric's, by its matrix of weights."""
    weight = getattr(layer.module, "weight", None)
    is_table = isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag))  # which takes numbers of rows, and no features
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not is_table


def _bottleneck(survey: Survey) -> Layer | None:
    """The first of the narrowest layers of an autoencoder (a VAE's means); None where none is narrower than the input.

    Of a model of several inputs, as a denoiser, that may be what embeds the time.
    """
    inputs = survey.batch.float_inputs
    if not survey.rebuilds or len(tensors_in(survey.batch.inputs)) != 1 or len(inputs) != 1:
        return None
    widths = {
        layer: math.prod(layer.output_shape[1:])
        for layer in survey.of_type(nn.Linear, *CONVOLUTIONS)
        if layer.output_shape[:1] == (min(2, len(survey.batch)),)
        and not (_scales_channels(layer, survey.layers) or _is_head(layer, survey))
    }
    narrowest = min(widths, key=widths.__getitem__, default=None)
    return narrowest if narrowest is not None and widths[narrowest] < inputs[0][0].numel() else None


def _embedding(survey: Survey) -> Layer | None:
    """The last layer to put out what is the model's output, where that is embeddings; None where it is not."""
    width, _ = survey.embeds
    candidates = [layer for layer in survey.layers if layer.output_shape == (min(2, len(survey.batch)), width)]
    return _trained(candidates, survey) if candidates else None


def _is_head(layer: Layer, survey: Survey) -> bool:
    """Whether a layer gives a number for each class, which no layer takes: a classifier's beside the autoencoder."""
    labels, at = survey.batch.labels, survey.layers.index(layer)
    scores = () if labels is None else (int(labels.max()) + 1,)
    return layer.output_shape[1:] == scores and all(x.input_shape[1:] != scores for x in survey.layers[at + 1 :])


def _scales_channels(layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether a layer has to do with one number a channel of maps that go past it (squeeze-and-excitation)."""
    at, channels = layers.index(layer), max(math.prod(shape[1:]) for shape in (layer.input_shape, layer.output_shape))
    maps = {x.output_shape for x in layers[:at] if len(x.output_shape) > 2 and x.output_shape[1] == channels}
    return any(x.input_shape in maps and math.prod(x.input_shape[2:]) > 1 for x in layers[at + 1 :])


def _is_trained_twin(layer: Layer, other: Layer) -> bool:
    """Whether a layer is trained and another, which is not, is its copy in another part: `online.fc`, `target.fc`.

    So are two parts themselves, `online` and `target`, where they are no single layers.
    """
    names, others = layer.name.partition("@")[0].split("."), other.name.partition("@")[0].split(".")
    differing = [name for name, there in zip(names, others, strict=False) if name != there]
    return (
        len(names) == len(others)
        and len(differing) == 1
        and not differing[0].isdigit()  # a numbered one is the layer before
        and (names[-1] == others[-1] or (len(names) == 1 and layer.module is not None and any(layer.module.children())))
        and [p.shape for p in _parameters(layer)] == [p.shape for p in _parameters(other)]
        and any(p.requires_grad for p in _parameters(layer))
        and not any(p.requires_grad for p in _parameters(other))
    )


def _parameters(layer: Layer) -> list[nn.Parameter]:
    return list(layer.module.parameters()) if layer.module is not None else []
