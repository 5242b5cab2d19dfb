"""Histograms of weights."""

from __future__ import annotations

from vizlog.probes.parameters import ParameterHistograms
from vizlog.requests import Weights

__all__ = ["WeightHistograms"]


class WeightHistograms(ParameterHistograms):
    """How the values of each parameter are distributed after the step: tags `weights/…`."""

    kind = "weights"
    request = Weights

    def caption(self, name: str) -> str:
        return f"values of {name} after the step"
