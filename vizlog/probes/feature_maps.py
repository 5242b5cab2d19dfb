"""Feature maps: what convolutions make of one example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizlog.batch import examples_run
from vizlog.probes.base import Context, Probe, only_arranges
from vizlog.records import Heatmaps, Pixels, Record
from vizlog.requests import Call, Outputs, Request
from vizlog.schedules import LogSpaced, Schedule
from vizlog.selection import Select, check_select, matcher, spread
from vizlog.survey import Survey

__all__ = ["FeatureMaps"]

_SIDE = 64
"""Larger maps are averaged down, in proportion, to this many pixels a side before they leave the device."""

_THINNEST = 8
"""Pixels that are left of the shorter side, if it has as many: rows of a spectrogram, say."""


class FeatureMaps(Probe):
    """The output of convolutions for a fixed example, channels tiled, on each layer's own scale: `feature_maps/…`.

    Where the example is an image, it stands before them.

    Args:
        select: which layers (any whose output is (N, C, H, W)); None: four convolutions spread over the depth.
        every: a number of steps, or a schedule.
        example: which example of the fixed batch.
        channels: how many channels to draw, the first ones.
    """

    def __init__(
        self,
        select: Select = None,
        *,
        every: int | Schedule = LogSpaced(every=100),  # noqa: B008 (frozen)
        example: int = 0,
        channels: int = 32,
    ) -> None:
        super().__init__(every=every)
        self._check_numbers(channels=channels)
        given: Any = example
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise TypeError(f"{self.name}(example=) takes the number of an example, got {given!r}")
        self._select, self._example, self._channels = select, int(example), channels
        self._layers: set[str] = set()
        self._row = self._example
        self._picture: Pixels | None = None

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        if survey is None:
            raise ValueError(f"{self.name} needs batch=: feature maps are made of an example")
        if not 0 <= self._example < len(survey.batch):
            raise ValueError(
                f"{self.name}(example=) needs one of the batch's {len(survey.batch)} examples, got {self._example}"
            )
        self._row = self._example % survey.batch.chunk
        example = survey.batch.part(self._example, self._example + 1)
        self._picture = example.thumbnails() if survey.batch.pictures_one_input else None
        maps = {layer.name: layer for layer in survey.layers if len(layer.output_shape) == 4}
        if self._select is None:
            convolutions = [
                layer.name
                for layer in survey.of_type(nn.Conv2d, nn.ConvTranspose2d)
                if layer.name in maps and max(layer.output_shape[2:]) > 1  # a single pixel is no map
            ]
            if not convolutions:
                raise ValueError("no 2-D convolution ran on the batch")
            self._layers = set(spread(convolutions, 4))
            return
        matches = matcher(self._select)
        found = [name for name, layer in maps.items() if matches(name, layer.module)]
        check_select(self._select, maps, found, "layer with (N, C, H, W) output")
        self._layers = set(found)

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        return {"maps": Outputs(lambda layer, module: layer in self._layers, self._reduce, examples=self._example + 1)}

    @only_arranges
    def measure(self, context: Context) -> Any:
        assert context.batch is not None
        return {"maps": context.captured["maps"], "id": int(context.batch.ids[self._example])}

    def finish(self, measured: Any) -> Iterable[Record]:
        for layer, calls in measured["maps"].items():
            yield self._heatmaps(layer, calls[-1], measured["id"])  # the last chunk is the one that holds the example

    def _reduce(self, call: Call) -> dict[str, Any] | None:
        tensor = call.tensor
        row = self._row
        if tensor is None or tensor.ndim != 4 or len(tensor) <= row:
            return None
        maps = tensor[row, : self._channels].float()
        if (largest := max(maps.shape[1:])) > _SIDE:
            height, width = (max(round(side * _SIDE / largest), min(side, _THINNEST)) for side in maps.shape[1:])
            maps = torch.nn.functional.adaptive_avg_pool2d(maps, (height, width))
        whole = len(tensor) == examples_run()
        return {"maps": maps.clone(), "channels": tensor.shape[1], "side": tuple(tensor.shape[2:]), "whole": whole}

    def _heatmaps(self, layer: str, seen: Mapping[str, Any], example: int) -> Heatmaps:
        maps: Tensor = seen["maps"]
        values = maps.numpy()
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        signed = low < 0
        most = max(abs(low), abs(high)) or 1.0
        shrunk = (
            f", averaged down from {seen['side'][0]}x{seen['side'][1]}"
            if tuple(values.shape[1:]) != seen["side"]
            else ""
        )
        again = "@" in layer
        # A model that takes images one by one calls its layers again for the next of them.
        which = (
            "in one of its calls, for some of the examples" if again and not seen["whole"] else f"for example {example}"
        )
        return Heatmaps(
            f"feature_maps/{layer}",
            values,
            [f"channel {number}" for number in range(len(values))],
            [""] * len(values),
            (-most, most) if signed else (0.0, most),
            "diverging" if signed else "sequential",
            over=None if again else self._picture,  # called again it may see something else
            caption=f"output of {layer} {which}, eval mode: {len(values)} of {seen['channels']} channels"
            f"{shrunk}; one scale for this layer at this step",
        )
