"""Colours: two colormaps, what NaN looks like, and a palette for classes that colour-blind people can tell apart.

Both colormaps run through a few control points in OKLCH (Ottosson 2020), a space in which equal steps look equal:
lightness changes evenly along them, and so equal steps of the value look equal too.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CLASSES",
    "DIVERGING",
    "NAN",
    "NO_CLASS",
    "QUANTITY",
    "SEQUENTIAL",
    "Colormap",
    "attention_top",
    "class_color",
    "colorize",
    "look_up",
    "point_colors",
    "positions",
    "readable_on",
]

Colormap: TypeAlias = Literal["sequential", "diverging"]
Pixels: TypeAlias = NDArray[np.uint8]

# An odd number of entries, so that the centre of the diverging map is one of them.
ENTRIES = 255
NAN = (150, 150, 150)
NO_CLASS = (176, 182, 190)

# Petroff 2021, "Accessible Color Sequences for Data Visualization", ten colours; two of the greys moved to the end.
CLASSES = (
    (63, 144, 218), (255, 169, 14), (189, 31, 1), (131, 45, 182), (231, 99, 0),
    (185, 172, 112), (169, 107, 89), (146, 218, 221), (148, 164, 162), (113, 117, 129),
)  # fmt: skip


def _from_oklch(lightness: ArrayLike, chroma: ArrayLike, hue: ArrayLike) -> Pixels:
    """OKLCH (hue in degrees) to sRGB; what lies outside the gamut is clipped."""
    lightness, chroma, turn = np.asarray(lightness), np.asarray(chroma), np.radians(np.asarray(hue))
    lab = np.stack([lightness, chroma * np.cos(turn), chroma * np.sin(turn)])
    cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    mix = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(mix @ (cones @ lab) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels: Pixels = np.rint(255 * encoded).astype(np.uint8).T.copy()
    return pixels


def _sequential() -> Pixels:
    """Dark violet over teal to pale yellow, lightness rising in a straight line."""
    at = np.linspace(0, 1, ENTRIES)
    stops = [0, 0.25, 0.5, 0.75, 1]
    hue = np.interp(at, stops, [305, 262, 202, 150, 105])
    chroma = np.interp(at, stops, [0.085, 0.105, 0.088, 0.138, 0.150])
    return _from_oklch(np.linspace(0.24, 0.94, ENTRIES), chroma, hue)


def _diverging() -> Pixels:
    """Blue over near-white, at the centre, to red; as dark on one side as on the other."""
    away = np.abs(np.linspace(-1, 1, ENTRIES))
    chroma = np.interp(away, [0, 0.45, 0.8, 1], [0, 0.105, 0.145, 0.112])
    hue = np.where(np.arange(ENTRIES) < ENTRIES // 2, 255.0, 29.0)
    return _from_oklch(0.975 - 0.595 * away, chroma, hue)


SEQUENTIAL = _sequential()
DIVERGING = _diverging()
QUANTITY = SEQUENTIAL[: round(0.88 * ENTRIES)]
"""Of points on paper: the palest of the sequential colours could not be seen there."""


def positions(values: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float64]:
    """Where values lie between the limits, 0 to 1, clipped; NaN stays. What equals both limits is in the middle."""
    low, high = (float(limit) for limit in limits)
    values = np.asarray(values, np.float64)
    if not (np.isfinite(low) and np.isfinite(high)):
        return np.where(np.isnan(values), np.nan, 0.5)
    if high <= low:
        return np.where(np.isnan(values), np.nan, 0.5 + 0.5 * np.sign(values - low))
    half = high / 2 - low / 2  # halves, so that limits near the largest float do not overflow
    with np.errstate(over="ignore"):
        return np.clip((values / 2 - low / 2) / half, 0.0, 1.0)


def attention_top(weights: NDArray[Any]) -> float:
    """The attention that is shown in the brightest color, one for a whole record (examples, heads, queries, keys).

    Of each head the median over its queries of their largest weight; the highest of these, or 1 where it is 0.5 or
    more. Attention that is spread over a hundred tokens would look dark throughout, were 1 the brightest. At least
    four times what each key gets where all get the same: a head that has learnt nothing yet is of the middle colour,
    and would be ablaze, were that the brightest.
    """
    favourites = np.where(np.isnan(weights), 0.0, weights).max(axis=-1)
    top = max(float(np.median(favourites, axis=-1).max()), 4 / weights.shape[-1])
    return top if top < 0.5 else 1.0


def colorize(values: NDArray[Any], limits: tuple[float, float], colormap: Colormap) -> Pixels:
    """Values of any shape (...) as pixels (..., 3); beyond the limits they take the end colours, NaN takes `NAN`."""
    return look_up(positions(values, limits), colormap)


def look_up(at: NDArray[np.floating[Any]], colormap: Colormap) -> Pixels:
    """Positions 0 to 1 of any shape (...) as pixels (..., 3)."""
    table: Pixels = np.vstack([SEQUENTIAL if colormap == "sequential" else DIVERGING, np.array([NAN], np.uint8)])
    index = np.rint(np.where(np.isnan(at), ENTRIES, at * (ENTRIES - 1))).astype(np.uint8)
    return table[index]


def class_color(index: int) -> tuple[int, int, int]:
    """The colour of a class number or of the n-th curve; they repeat after ten. Below 0: no class."""
    return NO_CLASS if index < 0 else CLASSES[index % len(CLASSES)]


def point_colors(labels: NDArray[Any]) -> tuple[Pixels, tuple[float, float]]:
    """Colours (N, 3) of a quantity (N,), NaN for none, and the values that have the first and the last of `QUANTITY`.

    What lies beyond them, 2% at either end, takes the end's colour: one value far off would leave all others alike.
    """
    finite = labels[np.isfinite(labels)]
    low, high = (float(at) for at in np.quantile(finite, (0.02, 0.98))) if len(finite) else (0.0, 1.0)
    at = positions(labels, (low, high))
    found = QUANTITY[np.rint(np.where(np.isnan(at), 0, at) * (len(QUANTITY) - 1)).astype(int)]
    return np.where(np.isnan(at)[:, None], np.array(NO_CLASS, np.uint8), found), (low, high)


def readable_on(color: ArrayLike) -> tuple[int, int, int]:
    """Black or white, whichever reads better on this colour (relative luminance, WCAG 2)."""
    shares = (np.asarray(color, np.float64) / 255) ** 2.2
    return (24, 24, 24) if float(shares @ [0.2126, 0.7152, 0.0722]) > 0.24 else (255, 255, 255)
