"""Histograms of gradients, and the gradient norm of each layer."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vizlog.capture import Gradients
from vizlog.compute.histogram import BitCounts
from vizlog.diagnosis import SKIPPED
from vizlog.probes.base import Context, Figures
from vizlog.probes.health import layer_of
from vizlog.probes.parameters import ParameterHistograms
from vizlog.records import Record

__all__ = ["GradientHistograms"]

_LOG = logging.getLogger("vizlog")


class GradientHistograms(ParameterHistograms):
    """How the gradient of each parameter is distributed, as the optimizer used it: tags `gradients/…`.

    Gradients are read where they are final: unscaled, clipped, accumulated, summed over ranks. Where no optimizer is
    watched they are read before it, and the caption says so. Also `health/gradient_norm`: the Euclidean norm over a
    layer's parameters.
    """

    kind = "gradients"
    request = Gradients
    _warned = False
    _of_what = ""

    def measure(self, context: Context) -> Any:
        if not context.captured["counts"] and not self._warned:
            self._warned = True
            why = (
                "when the optimizer stepped" if context.optimizers else "at end(): give optimizer=, or zero them later"
            )
            _LOG.warning("vizlog: none of the selected parameters had a gradient %s", why)
        return {**context.captured, "watched": bool(context.optimizers), "skipped": list(context.skipped)}

    def finish(self, measured: Any) -> Iterable[Record | Figures]:
        self._how = (
            "as the optimizer used it"
            if measured["watched"]
            else "before the optimizer: not clipped, scaled as the loss was"
        )
        self._of_what = ""
        if any(bool(torch.any(found > 0)) for found in measured["skipped"]):
            self._how += "; the gradient scaler skipped this step"
            self._of_what = SKIPPED
        yield from super().finish(measured)

    def caption(self, name: str) -> str:
        return f"gradient of {name}, {self._how}"

    def figures(self, counts: Mapping[str, BitCounts]) -> Iterable[Figures]:
        yield from super().figures(counts)
        squares: dict[str, float] = defaultdict(float)
        for name, count in counts.items():
            squares[layer_of(name)] += math.nan if count.nonfinite else count.norm**2
        norms = {layer: math.sqrt(square) for layer, square in squares.items()}
        caption = f"Euclidean norm of each layer's gradient, {self._how}"
        yield Figures("gradient_norm", norms, caption=caption, source=self._of_what)

    @property
    def source(self) -> str:
        return f"{self.kind} {self._of_what}".strip()
