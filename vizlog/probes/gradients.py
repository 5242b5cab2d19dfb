"""Histograms of gradients, and the gradient norm of each layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vizlog.compute.histogram import BitCounts
from vizlog.diagnosis import SKIPPED
from vizlog.messages import LOG
from vizlog.probes.base import Context, Figures, only_arranges
from vizlog.probes.health import layer_of
from vizlog.probes.parameters import ParameterHistograms
from vizlog.records import Record
from vizlog.requests import Gradients, Request
from vizlog.selection import selected_parameters

__all__ = ["GradientHistograms"]


class GradientHistograms(ParameterHistograms):
    """How the gradient of each parameter is distributed, as the optimizer used it: tags `gradients/…`.

    Gradients are read where they are final: unscaled, clipped, accumulated, reduced over ranks. Where no optimizer is
    watched they are read before it, and the caption says so. Also `health/gradient_norm`: the Euclidean norm over a
    layer's parameters, but for steps that a gradient scaler skipped.
    """

    kind = "gradients"
    request = Gradients
    _warned = False
    _asked = False
    _of_what = ""

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        wanted = super().wants(models)
        self._asked = any(request.names for request in wanted.values() if isinstance(request, Gradients))
        return wanted

    @only_arranges
    def measure(self, context: Context) -> Any:
        # Lazy parameters were none yet when the step began.
        if self._asked and not context.captured["counts"] and not self._warned:
            self._warned = True
            LOG.warning("vizlog: none of the selected parameters %s", self._why_none(context))
        return {**context.captured, "watched": bool(context.optimizers), "skipped": list(context.skipped)}

    def finish(self, measured: Any) -> Iterable[Record | Figures]:
        self._skipped = any(bool(torch.any(found > 0)) for found in measured["skipped"])
        self._of_what = SKIPPED if self._skipped else ""
        if self._skipped:
            self._how = "not used, since the gradient scaler skipped this step, and perhaps still scaled"
        elif measured["watched"]:
            self._how = "as the optimizer used it: unscaled, after clipping"
        else:
            self._how = "before the optimizer: not clipped, scaled as the loss was"
        yield from super().finish(measured)

    def _why_none(self, context: Context) -> str:
        if not any(p.requires_grad for p in selected_parameters(context.models, self._select).values()):
            return "requires a gradient"
        if context.optimizers:
            return "had a gradient when the optimizer stepped"
        return (
            "had a gradient at the end of the step: give optimizer=, or zero them later; "
            "what torch.func returns is in no parameter, and is not seen"
        )

    def caption(self, name: str) -> str:
        return f"gradient of {name}, {self._how}"

    def figures(self, counts: Mapping[str, BitCounts]) -> Iterable[Figures]:
        yield from super().figures(counts)
        if self._skipped:
            return
        squares: dict[str, float] = defaultdict(float)
        for name, count in counts.items():
            # What is not finite is the worst of all, and not a layer of which nothing is known.
            squares[layer_of(name)] += math.inf if count.nonfinite else count.squares
        norms = self._depth.order({layer: math.sqrt(square) for layer, square in squares.items()})
        lost = "; infinite where a gradient holds NaN" if math.inf in norms.values() else ""
        yield Figures("gradient_norm", norms, caption=f"Euclidean norm of each layer's gradient, {self._how}{lost}")

    @property
    def source(self) -> str:
        return f"{self.kind} {self._of_what}".strip()
