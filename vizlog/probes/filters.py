"""Filter images: what the first layer looks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vizlog.probes.base import Probe
from vizlog.ranks import is_given_up
from vizlog.records import Images, Record
from vizlog.requests import Request, Weights
from vizlog.schedules import LogSpaced, Schedule
from vizlog.selection import Select, check_select, matcher, named_modules, named_parameters
from vizlog.survey import Survey

__all__ = ["FilterImages"]


class FilterImages(Probe):
    """The filters of a convolution as images, in filter order, on one common scale: tags `filters/…`.

    By default the first convolution with 1, 3 or 4 input channels; where there is none, a fully-connected first layer
    whose rows are images (the fixed batch tells their shape). Mid-grey is zero, black and white are ∓ the largest
    absolute weight of the filters shown.

    Args:
        select: other convolutions, deeper ones too: theirs are drawn an input channel at a time.
        every: a number of steps, or a schedule.
        most: how many filters to draw, the first ones.
    """

    def __init__(self, select: Select = None, *, every: int | Schedule = LogSpaced(every=100), most: int = 64) -> None:  # noqa: B008
        super().__init__(every=every)
        self._check_numbers(most=most)
        self._select, self._most = select, most
        self._shapes: dict[str, tuple[int, int, int] | None] = {}
        self._weights: dict[str, str] = {}

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        modules = named_modules(models)
        known = {id(parameter): name for name, parameter in named_parameters(models).items()}
        self._weights = {  # under the name that it is known by, where it is shared
            name: known.get(id(module.get_parameter(weight)), f"{name}.{weight}".lstrip("."))
            for name, module in modules.items()
            if (weight := _weight(module))
        }
        convolutions = {
            name: module for name, module in modules.items() if isinstance(module, nn.Conv2d) and name in self._weights
        }
        if self._select is not None:
            matches = matcher(self._select)
            found = [name for name, module in convolutions.items() if matches(name, module)]
            check_select(self._select, convolutions, found, "2-D convolution")
            self._shapes = dict.fromkeys(found)
            return
        first = next((name for name, module in convolutions.items() if _inputs(module) in (1, 3, 4)), None)
        if first is not None:
            self._shapes = {first: None}
            return
        linear = _first_linear(survey) if survey is not None else {}
        self._shapes = {name: shape for name, shape in linear.items() if name in self._weights}
        if not self._shapes:
            raise ValueError("no 2-D convolution of 1, 3 or 4 input channels, and no first linear layer over images")

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        return {"weights": Weights(tuple(self._weights[name] for name in self._shapes), self._first, whole=True)}

    def finish(self, measured: Any) -> Iterable[Record]:
        for name, shape in self._shapes.items():
            taken = measured["weights"].get(self._weights[name])
            if taken is not None:  # of one whose memory has been given up there is nothing to see at this step
                weight, number = taken
                yield self._images(name, weight.numpy(), int(number), shape)

    def _first(self, weights: list[Tensor]) -> list[tuple[Tensor, int] | None]:
        return [
            None if is_given_up(weight) else (weight[: self._most].float().clone(), len(weight)) for weight in weights
        ]

    def _images(self, name: str, weight: np.ndarray, number: int, shape: tuple[int, int, int] | None) -> Images:
        if shape is not None:
            weight = weight.reshape(-1, *shape)
        filters, channels, height, width = weight.shape
        how = "one image a filter" if shape is None else "one image an output unit, its weights laid out as the input"
        titles = [str(index) for index in range(filters)]
        of = f"; {len(titles)} of {number} filters"
        if channels not in (1, 3):  # four may be red, green, blue and opacity, and as well be four frames
            wide = max(1, self._most // min(filters, 8))
            titles = [f"{f}, input {c}" for f in range(min(filters, 8)) for c in range(min(channels, wide))]
            weight = weight[:8, :wide].reshape(-1, 1, height, width)
            how = "one image an input channel of a filter"
            of = f"; {min(filters, 8)} of {number} filters, {min(channels, wide)} of {channels} input channels"
        made = "" if self._weights[name].rpartition(".")[2] == "weight" else ", before its norm"
        scale = float(np.abs(weight[np.isfinite(weight)]).max(initial=0.0)) or 1.0
        pixels = np.nan_to_num(weight / scale, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1) * 127.5 + 127.5
        return Images(
            f"filters/{name}",
            pixels.round().astype(np.uint8).transpose(0, 2, 3, 1),
            titles,
            (-scale, scale),
            # In double precision: squares of weights that diverge overflow, of which NumPy would warn.
            np.sqrt(np.square(weight.reshape(len(weight), -1), dtype=np.float64).sum(1)),
            caption=f"weights of {name}{made}: {how}{of}",
        )


_WEIGHTS = (
    "weight",
    *("parametrizations.weight.original", "parametrizations.weight.original1"),  # spectral and weight norm
    *("weight_orig", "weight_v"),  # as they were before, and pruning
)
"""What a layer's weight is made of: the filters themselves, or what a norm scales."""


def _weight(module: nn.Module) -> str:
    """The parameter that a convolution's or linear layer's filters are read of; "" where there is none.

    Not `module.weight`: where that is made anew each time, to look at it is to take a step of a spectral norm.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return ""
    shape = (
        (module.out_channels, _inputs(module))
        if isinstance(module, nn.Conv2d)
        else (module.out_features, module.in_features)
    )
    found = {name: parameter for name, parameter in module.named_parameters() if not is_lazy(parameter)}
    return next((name for name in _WEIGHTS if name in found and tuple(found[name].shape[:2]) == shape), "")


def _inputs(convolution: nn.Conv2d) -> int:
    """Input channels of one filter."""
    return convolution.in_channels // convolution.groups


def _first_linear(survey: Survey) -> dict[str, tuple[int, int, int] | None]:
    """The first linear layer that ran, where its inputs are the batch's images laid flat."""
    images = survey.batch.images
    rows = [x for x in (images, *survey.batch.float_inputs) if isinstance(x, torch.Tensor)]
    linear = next(iter(survey.of_type(nn.Linear)), None)
    if linear is None or not isinstance(linear.module, nn.Linear):
        return {}
    for given in rows:
        shape = _image_shape(tuple(given.shape[1:]))
        if shape is not None and int(np.prod(shape)) == linear.module.in_features:
            return {linear.name.partition("@")[0]: shape}
    return {}


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(C, H, W) of inputs (C, H, W) or (H, W), or of pixels laid flat if they make a square of at least 5x5."""
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return shape
    if len(shape) == 2 and min(shape) >= 5:
        return (1, *shape)
    side = round(shape[0] ** 0.5) if len(shape) == 1 else 0
    return (1, side, side) if side >= 5 and side * side == shape[0] else None
