"""Health figures drawn: of each kind the worst and the mean over layers, and all layers in order of depth."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vizlog.probes.base import Figures
from vizlog.records import Curves, Record, Scalar
from vizlog.survey import Survey

__all__ = ["Depth", "draw", "layer_of"]

_MADE_OF = re.compile(r"\.original\d*$")
"""How the parts of a parametrized weight end: `conv1.parametrizations.weight.original1`."""

_RATIOS = ("gradient_norm", "update_ratio")
"""Kinds that differ between layers by orders of magnitude; the others are shares."""


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to, or what its weight is made of: `conv1.weight` -> `conv1`."""
    parameter = _MADE_OF.sub("", parameter.replace(".parametrizations.", "."))
    return parameter.rpartition(".")[0] or parameter


class Depth:
    """In which order layers ran on the fixed batch; without one, the order in which they were registered stands."""

    def __init__(self, survey: Survey | None = None) -> None:
        self._places: dict[str, int] = {}  # of each module the place of the first layer in it that ran, or its own
        for place, layer in enumerate(survey.layers if survey is not None else ()):
            name = layer.name.partition("@")[0]
            while name:
                self._places.setdefault(name, place)
                name = name.rpartition(".")[0]

    def order(self, values: Mapping[str, float]) -> dict[str, float]:
        """The same figures of layers, in that order; one that did not run comes behind the one registered before it."""
        placed, place = [], -1
        for number, layer in enumerate(values):
            place = self._places.get(layer, place)
            placed.append((place, number, layer))
        return {layer: values[layer] for _, _, layer in sorted(placed)}


def draw(figures: Sequence[Figures]) -> list[Record]:
    """Figures -> for each kind two scalars and one `Curves` over the layers, one line a source."""
    records: list[Record] = []
    for kind in dict.fromkeys(part.kind for part in figures):
        records.extend(_draw_kind(kind, [part for part in figures if part.kind == kind and part.values]))
    return records


def _draw_kind(kind: str, parts: Sequence[Figures]) -> list[Record]:
    if not parts:
        return []
    layers = _in_order(parts)
    lines: dict[str, dict[str, float]] = {}
    for part in parts:  # of several probes with one source: two selections of layers
        lines.setdefault(part.source or kind, {}).update(part.values)
    ys = {name: np.array([values.get(layer, np.nan) for layer in layers]) for name, values in lines.items()}
    worst = parts[0].worst
    together = np.fmax if worst == "highest" else np.fmin  # of a layer's sources: NaN is no source
    each = functools.reduce(together, ys.values())
    known = each[~np.isnan(each)]
    caption = "; ".join(dict.fromkeys(part.caption for part in parts if part.caption))
    records: list[Record] = []
    if known.size:
        value = float(known.max() if worst == "highest" else known.min())
        those = "1 layer" if known.size == 1 else f"{known.size} layers"
        records.append(Scalar(f"health/{kind}_worst", value, caption=f"the {worst} of {those}; {caption}"))
        records.append(Scalar(f"health/{kind}_mean", float(known.mean()), caption=f"over {those}; {caption}"))
    quiet = frozenset[str]().union(*(part.quiet for part in parts))
    shown = [i for i, layer in enumerate(layers) if not (layer in quiet and each[i] == 0)]
    if 0 < len(shown) < len(layers) and (each[shown] != 0).any():
        layers, ys = [layers[i] for i in shown], {name: values[shown] for name, values in ys.items()}
        caption += f"; not drawn: {len(each) - len(shown)} of {len(each)} layers, linear ones in which it is 0"
    records.append(
        Curves(
            f"health/{kind}",
            np.arange(len(layers)),
            ys,
            "layer, in order of depth",
            kind.replace("_", " "),
            layers,
            log_y=kind in _RATIOS and bool((known > 0).any()),
            caption=caption,
        )
    )
    return records


def _in_order(parts: Sequence[Figures]) -> list[str]:
    """All layers; one that only a later source knows stands behind the one that precedes it there."""
    following: dict[str, str] = {}  # each layer -> the next; "" stands before the first and behind the last
    last = ""
    for part in parts:
        before = "" if any(layer in following for layer in part.values) else last
        for layer in part.values:
            if layer not in following:
                following[layer], following[before] = following.get(before, ""), layer
                last = last if following[layer] else layer
            before = layer
    layers, layer = [], following.get("", "")
    while layer:
        layers.append(layer)
        layer = following[layer]
    return layers
