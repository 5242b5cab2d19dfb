"""A chart's axes: what they span, where their ticks stand, and the frame that marks are painted into."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vizlog.views.typeset import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    SMALL,
    line_height,
    measure,
    number,
    put,
    shorten,
    sideways,
    stick,
)

__all__ = ["FINER", "LONGEST_NAME", "Axis", "Marks", "Place", "chart", "names_as_ticks"]

Ticks: TypeAlias = Sequence[tuple[float, str]]
Place: TypeAlias = Callable[[Any, Any], NDArray[np.float64]]
"""(x, y) in data units to (N, 2) in pixels of the canvas."""
Marks: TypeAlias = Callable[[Image.Image, Place], None]

FINER = 3
"""Marks are painted this many times larger and then shrunk: Pillow draws no smooth lines by itself."""
_FAR = 1.5e308
"""Beyond it there would be no room for an axis between the values and the largest float."""

LONGEST_NAME = 200
"""Pixels of an upright name under the x-axis; longer ones lose their middle."""


@dataclass(frozen=True)
class Axis:
    """One axis from low to high; on a log axis both are above 0."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: NDArray[Any], *, log: bool = False, pad: float = 0.04) -> Axis:
        """An axis that holds every value it can show, with some room; (0, 1) or (1, 10) where there is none."""
        values = np.asarray(values, np.float64).ravel()
        values = np.clip(values[np.isfinite(values) & ((values > 0) | (not log))], -_FAR, _FAR)
        if values.size == 0:
            return cls(1.0, 10.0, log) if log else cls(0.0, 1.0)
        low, high = float(values.min()), float(values.max())
        if log:
            room = max(pad * math.log10(high / low), 0.1 if high > low else 0.5) if high / low < np.inf else 1.0
            return cls(low / 10**room or low, min(high * 10**room, sys.float_info.max), log)
        spread = high - low if high - low < np.inf else sys.float_info.max
        room = spread * pad or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    @classmethod
    def of_heights(cls, values: NDArray[Any], *, log: bool = False) -> Axis:
        """An axis for the y of lines: what is never negative starts at zero if it comes near it, or never changes.

        A little below zero: the frame would cover half of a line along it.
        """
        axis = cls.around(values, log=log, pad=0.06)
        finite = values[np.isfinite(values)]
        if log or not finite.size or finite.min() < 0 or finite.max() / 2 < finite.min() < finite.max():
            return axis
        high = axis.high if finite.max() > 0 else 1.0
        return cls(-0.03 * high, high)

    def place(self, values: Any) -> NDArray[np.float64]:
        """Where values stand, 0 at low and 1 at high; NaN where they cannot be shown."""
        values = np.asarray(values, np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.log:
                shown = np.where(values > 0, values, np.nan)
                share = (np.log10(shown) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
            else:
                scale = 1.0 if self.high - self.low < np.inf else 0.5  # from one end of floats to the other
                share = (values * scale - self.low * scale) / (self.high * scale - self.low * scale)
        return np.where(np.isfinite(share), share, np.nan)

    def ticks(self, most: int) -> Ticks:
        """At most about `most` round numbers within the axis, and how they are written."""
        decades = math.log10(self.high) - math.log10(self.low) if self.log else 0.0
        if decades >= 2.5:
            return self._powers(most)
        return self._ones_twos_fives() if decades >= 0.7 else self._steps(most)

    def _ones_twos_fives(self) -> Ticks:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [(value, number(value)) for value in values if self.low <= value <= self.high]

    def _powers(self, most: int) -> Ticks:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / max(most, 2)))
        return [(10.0**power, _power(power)) for power in range(first, last + 1, stride)]

    def _steps(self, most: int) -> Ticks:
        spread = self.high - self.low
        raw = spread / max(most, 1) if spread < np.inf else self.high / max(most, 1) - self.low / max(most, 1)
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)] if last - first <= 50 else []
        largest = max((abs(value) for value in values), default=0.0)
        if largest >= 1e6 or 0 < largest < 1e-3:
            return [(value, "0" if value == 0 else _short(value, step)) for value in values]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if abs(step / unit - 2.5) < 0.01 else 0))
        return [(value, f"{value:,.{decimals}f}") for value in values]


def _power(power: int) -> str:
    return f"1e{power}" if not -3 <= power <= 4 else f"{10**power:,g}" if power >= 0 else f"{10.0**power:g}"


def _short(value: float, step: float) -> str:
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
    mantissa, exponent = f"{value:.{min(digits + 1, 9)}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def names_as_ticks(x: NDArray[Any], names: Sequence[str]) -> Ticks:
    """A tick at each x, written as its name."""
    return [(float(value), name) for value, name in zip(x, names, strict=True)]


def chart(
    size: tuple[int, int],
    x: Axis,
    y: Axis,
    marks: Marks,
    *,
    x_label: str = "",
    y_label: str = "",
    x_ticks: Ticks | None = None,
) -> Image.Image:
    """A chart of this outer size (width, height): axes, grid and labels around what `marks` paints.

    `x_ticks` take the place of numbers; names that do not fit side by side stand upright and are thinned out.
    """
    width, height = size
    y_ticks = y.ticks(max(2, height // 55))
    left = max((measure(name) for _, name in y_ticks), default=0) + 8 + (line_height() + 2 if y_label else 0)
    plot_width = max(40, width - left - 12)
    x_ticks = x.ticks(max(2, plot_width // 90)) if x_ticks is None else x_ticks
    names, upright = _fit_names(x, x_ticks, plot_width)
    below = (max((measure(n) for _, n in names), default=0) if upright else line_height()) if names else 0
    below += 6 + (line_height() if x_label else 0)
    plot_height = max(40, height - below - 8)
    page = Image.new("RGB", (width, 8 + plot_height + below), PAPER)
    grid_at = x.place([value for value, _ in names]), y.place([value for value, _ in y_ticks])
    page.paste(_painted((plot_width, plot_height), (x, y), grid_at, marks), (left, 8))
    draw = ImageDraw.Draw(page)
    draw.rectangle((left - 1, 7, left + plot_width, 8 + plot_height), outline=(190, 196, 203))
    for share, (_, name) in zip(grid_at[1], y_ticks, strict=True):
        put(draw, (left - 6, 8 + (1 - share) * plot_height - line_height() / 2), name, align="right", fill=MUTED)
    at = [(left + share * plot_width, name) for share, (_, name) in zip(grid_at[0], names, strict=True)]
    _write_names(page, at, 12 + plot_height, upright=upright)
    if x_label:
        label = shorten(x_label, plot_width)
        put(draw, (left + plot_width / 2, page.height - line_height()), label, align="centre", fill=INK)
    if y_label:
        label_image = sideways(shorten(y_label, plot_height))
        page.paste(label_image, (0, 8 + max(0, plot_height - label_image.height) // 2))
    return page


def _painted(
    size: tuple[int, int], axes: tuple[Axis, Axis], grid_at: tuple[NDArray[np.float64], ...], marks: Marks
) -> Image.Image:
    """The inside of the chart: grid lines at these shares of its sides, then marks, drawn large and shrunk."""
    x, y = axes
    width, height = size[0] * FINER, size[1] * FINER
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for share in grid_at[0]:
        draw.line((share * width, 0, share * width, height), fill=FAINT, width=FINER)
    for share in grid_at[1]:
        draw.line((0, (1 - share) * height, width, (1 - share) * height), fill=FAINT, width=FINER)

    def place(xs: Any, ys: Any) -> NDArray[np.float64]:
        return np.stack([x.place(xs) * width, (1 - y.place(ys)) * height], axis=-1)

    marks(canvas, place)
    return canvas.reduce(FINER)


def _fit_names(x: Axis, ticks: Ticks, width: int) -> tuple[Ticks, bool]:
    """The ticks whose names can be written without touching, and whether they stand upright."""
    shown = [(value, name) for value, name in ticks if 0 <= float(x.place(value)) <= 1]
    if len(shown) <= 1:
        return [(value, shorten(name, width)) for value, name in shown], False
    at = x.place([value for value, _ in shown]) * width
    room = float(np.abs(np.diff(at)).min())
    if max(measure(name) for _, name in shown) + 8 <= room:
        return shown, False
    if all(_is_number(name) for _, name in shown):
        stride = math.ceil((max(measure(name) for _, name in shown) + 8) / max(room, 1e-9))
        return shown[::stride], False
    stride = max(1, math.ceil(line_height(SMALL) / max(room, 1e-9)))
    return [(value, shorten(name, LONGEST_NAME)) for value, name in shown[::stride]], True


def _is_number(name: str) -> bool:
    return name.replace(",", "").replace(".", "").replace("-", "").replace("e", "").isdigit()


def _write_names(page: Image.Image, names: Ticks, top: int, *, upright: bool) -> None:
    """Names centred under their places, in pixels from the left."""
    draw = ImageDraw.Draw(page)
    for at, name in names:
        if upright:
            image = sideways(name, fill=MUTED)
            stick(page, image, (round(at - image.width / 2), top))
        else:
            half = measure(name) / 2
            put(draw, (min(max(at, half), page.width - half), top - 1), name, align="centre", fill=MUTED)
