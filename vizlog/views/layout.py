"""Putting pictures together: stacks, rows, grids, colour bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from vizlog.views.colors import NAN, Colormap, look_up
from vizlog.views.typeset import FAINT, INK, MUTED, PAPER, SMALL, line_height, measure, number, put

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["TALLEST", "beside", "color_bar", "framed", "grid", "ramp", "shape_of_grid", "stack"]

TALLEST = 2200
"""The most pixels in height that the body of a picture takes: with its caption it stays under four megapixels."""


def stack(blocks: Iterable[Image.Image | None], gap: int = 8) -> Image.Image:
    """Blocks under each other, left-aligned; None is left out, and a single one comes back as it is."""
    present = [block for block in blocks if block is not None]
    if len(present) == 1:
        return present[0]
    height = sum(block.height for block in present) + gap * (len(present) - 1)
    page = Image.new("RGB", (max((block.width for block in present), default=1), max(1, height)), PAPER)
    top = 0
    for block in present:
        page.paste(block, (0, top))
        top += block.height + gap
    return page


def beside(blocks: Iterable[Image.Image | None], gap: int = 12) -> Image.Image:
    """Blocks from left to right, top-aligned; None is left out."""
    present = [block for block in blocks if block is not None]
    width = sum(block.width for block in present) + gap * (len(present) - 1)
    page = Image.new("RGB", (max(1, width), max((block.height for block in present), default=1)), PAPER)
    left = 0
    for block in present:
        page.paste(block, (left, 0))
        left += block.width + gap
    return page


def shape_of_grid(number_of_tiles: int, tile_width: int, width: int, gap: int) -> tuple[int, int]:
    """(rows, columns) for tiles of this width: full rows where nearly as many columns allow them, else even ones."""
    fit = max(1, (width + gap) // (tile_width + gap))
    for columns in range(fit, int(fit * 0.7), -1):
        if number_of_tiles % columns == 0:
            return number_of_tiles // columns, columns
    rows = -(-number_of_tiles // fit)
    return rows, -(-number_of_tiles // rows)


def grid(tiles: Sequence[Image.Image], columns: int, gap: int = 10) -> Image.Image:
    """Tiles row by row; every column is as wide, and every row as high, as its largest tile. One alone is returned."""
    if len(tiles) == 1:
        return tiles[0]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    widths = [max(tile.width for tile in tiles[column::columns]) for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile, width in zip(row, widths, strict=False):
            page.paste(tile, (left, top))
            left += width + gap
        top += height + gap
    return page


def framed(image: Image.Image) -> Image.Image:
    """The image with a one-pixel frame around it, so that white pixels have an edge too."""
    page = Image.new("RGB", (image.width + 2, image.height + 2), FAINT)
    page.paste(image, (1, 1))
    return page


def color_bar(
    limits: tuple[float, float], colormap: Colormap, *, label: str = "", nans: int = 0, width: int = 220
) -> Image.Image:
    """A horizontal colour bar with the values of its ends (of its centre too, where it diverges), and NaN's colour."""
    names = {0.0: number(limits[0]), 1.0: number(limits[1])}
    if colormap == "diverging":
        names = {**names, 0.5: number(limits[0] / 2 + limits[1] / 2)}
    return ramp(look_up(np.linspace(0, 1, width), colormap), names, label=label, nans=nans)


def ramp(colors: np.ndarray, names: Mapping[float, str], *, label: str = "", nans: int = 0) -> Image.Image:
    """A bar of colors (W, 3) with names under it, a label to its left, and what NaN looks like to its right.

    Args:
        names: what is written at each place, 0 (the left end) to 1; left out where it would touch another, the ends'
            names coming first.
    """
    wide = max(len(colors), sum(measure(name) for name in names.values()) + 20 * len(names))
    colors = colors[np.linspace(0, len(colors) - 1, wide).astype(int)]
    left = measure(label) + 8 if label else 0
    spare = f"NaN ({nans:,})" if nans else ""
    right = 12 + 14 + 5 + measure(spare) if nans else 0
    page = Image.new("RGB", (left + wide + right + 1, 14 + line_height() + 1), PAPER)
    draw = ImageDraw.Draw(page)
    put(draw, (0, -1), label, fill=MUTED)
    page.paste(framed(Image.fromarray(np.repeat(colors[None, 1:-1].astype(np.uint8), 12, 0))), (left, 0))
    taken: list[tuple[float, float]] = []
    for at in sorted(names, key=lambda at: (0 < at < 1, at)):
        long = measure(names[at], SMALL)
        start = min(max(wide * at - long / 2, 0), wide - long)
        if all(start > end + 3 or start + long + 3 < begin for begin, end in taken):
            taken.append((start, start + long))
            put(draw, (left + start, 14), names[at], fill=INK, size=SMALL)
    if nans:
        x = left + wide + 12
        draw.rectangle((x, 0, x + 13, 13), fill=NAN)
        put(draw, (x + 19, -1), spare, fill=INK)
    return page
