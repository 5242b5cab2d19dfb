"""Records that are many small pictures, drawn as tiles in order: Images, Heatmaps, Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from vizlog.views.colors import attention_top, colorize, look_up, positions, readable_on
from vizlog.views.layout import TALLEST, beside, color_bar, framed, grid, ramp, shape_of_grid, stack
from vizlog.views.typeset import (
    BODY,
    INK,
    MUTED,
    PAPER,
    WARNING,
    clean,
    line_height,
    measure,
    number,
    paragraph,
    put,
    set_lines,
    shorten,
    sideways,
    stick,
    token,
    wrap,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vizlog.records import Attention, Heatmaps, Images, Pixels

__all__ = ["attention", "heatmaps", "images"]

_GAP = 10
_TRANSPARENT = 232  # what shows through transparent pixels: neither black nor the paper's white
_SMALLEST = 4  # pixels; tiles are shrunk to this before any is left out
_LEGIBLE = 208  # pixels in width of tiles with notes under them
_LEAST_LABEL = 12  # pixels from one label to the next
_COMFORTABLE = 1400  # pixels in height that attention maps take, unless their cells would be under _COARSE pixels
_COARSE = 6


@dataclass(frozen=True)
class _Fit:
    """How tiles fit on the page: the size of each picture, columns, and how many tiles of how many groups are drawn."""

    width: int
    height: int
    columns: int
    tiles: int
    groups: int = 1


def images(record: Images, width: int) -> Image.Image:
    """A grid of pictures in order; small ones enlarged with their pixels kept sharp."""
    count, height, wide, channels = record.pixels.shape
    norms = [f"norm {number(norm)}" for norm in record.norms] if record.norms is not None else [""] * count
    fit = _fit(count, (height, wide), _side(count), width, extra_height=(2 + any(norms)) * line_height())
    titles = _words(record.titles[: fit.tiles], fit.width)
    below = _words(norms[: fit.tiles], fit.width)
    tiles = [
        _tile(framed(_resized(_picture(pixels), fit.width, fit.height)), title, note)
        for pixels, title, note in zip(record.pixels[: fit.tiles], titles, below, strict=True)
    ]
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    label = "value" if channels == 1 else "value of each channel"
    bar = ramp(grey, {0.0: number(record.limits[0]), 1.0: number(record.limits[1])}, label=label)
    facts = f"{_many(count, 'image')} of {height} x {wide}" + _left_out(fit.tiles, count)
    return stack([_side_by_side(facts, bar, width), grid(tiles, fit.columns, _GAP)], 12)


def heatmaps(record: Heatmaps, width: int) -> Image.Image:
    """Maps with their colour bar; beside and over their pictures where there are any; rows of tokens as tinted text."""
    header, common = _heatmap_header(record, width), None
    if _are_of_one(record):
        common, record = _picture(record.over[0]), replace(record, over=None)  # type: ignore[index]
    as_text = record.values.shape[1] == 1 and record.column_labels is not None and record.over is None
    body = _token_lines(record, width) if as_text and common is None else _maps(record, width, common)
    return stack([header, body], 12)


def attention(record: Attention, width: int) -> Image.Image:
    """One map per head, examples under each other, tokens along both axes."""
    examples, heads, queries, keys = record.weights.shape
    left, below = _longest_label(record.query_tokens, 90), _longest_label(record.key_tokens, 70)
    fit = _fit_heads(record, width - left - 6, line_height() + below + 6, tallest=_COMFORTABLE)
    if fit.width < _COARSE * keys:
        fit = _fit_heads(record, width - left - 6, line_height() + below + 6, tallest=TALLEST)
    nans = int(np.isnan(record.weights).sum())
    facts = "rows: the token that looks (query); columns: the token it looks at (key)"
    shown = _left_out(fit.tiles, heads, "heads") + _left_out(fit.groups, examples, "examples")
    top = attention_top(record.weights)
    names = {math.sqrt(share): number(share * top) for share in (0, 0.01, 0.1, 0.25, 0.5, 1)}
    if (record.weights > top).any():
        names[1.0] = f"{number(top)} or more"
    bar = ramp(look_up(np.linspace(0, 1, 240), "sequential"), names, label="attention", nans=nans)
    blocks: list[Image.Image | None] = [_side_by_side(facts + shown, bar, width)]
    titles = _words([f"head {head}" for head in record.heads[: fit.tiles]], fit.width)
    for example in range(fit.groups):
        rows, columns = list(record.query_tokens[example]), list(record.key_tokens[example])
        tiles = []
        for head in range(fit.tiles):
            # Square roots, for over a hundred tokens most weights are under 0.01 and would all look like 0.
            shares = np.sqrt(positions(record.weights[example, head], (0.0, top)))
            map_ = Image.fromarray(look_up(shares, "sequential"))
            picture = _resized(map_, fit.width, fit.height)
            first = head % fit.columns == 0
            labelled = _labelled(picture, rows if first else [], columns, (queries, keys), (90, 70))
            tiles.append(_tile(labelled, titles[head], []))
        blocks.append(set_lines([f"example {record.examples[example]}"], size=BODY, heavy=True))
        blocks.append(grid(tiles, fit.columns, _GAP))
    return stack(blocks, 8)


def _fit_heads(record: Attention, width: int, extra_height: int, *, tallest: int) -> _Fit:
    """Maps large enough for the names of their tokens, if there is room."""
    examples, heads, queries, keys = record.weights.shape
    largest = min(520, max(_LEAST_LABEL * max(queries, keys), 96))
    return _fit(heads, (queries, keys), largest, width, extra_height=extra_height, groups=examples, tallest=tallest)


def _side(count: int) -> int:
    """How large a tile wants to be, by how many there are."""
    return next((side for most, side in ((1, 384), (4, 216), (16, 112), (80, 88), (300, 56)) if count <= most), 40)


def _fit(
    count: int,
    shape: tuple[int, int],
    largest: int,
    width: int,
    *,
    extra_height: int,
    extra_width: int = 0,
    panels: int = 1,
    levels: int = 1,
    groups: int = 1,
    tallest: int = TALLEST,
) -> _Fit:
    """The largest tiles, of at most `largest` pixels, that fit the page's width and height; if none do, fewer tiles.

    An array that is hardly larger than that is not shrunk where it fits: its own pixels show more than averages do.
    Panels side by side are shrunk: a column more shows more than their own pixels do.
    """
    own, room = max(shape), (width - extra_width) // panels - 4
    as_it_is = panels == 1 and largest < own <= min(1.25 * largest, room)
    side = float(own if as_it_is else min(largest, room))
    while True:
        wide, high = _scaled(shape, int(side))
        rows, columns = shape_of_grid(count, panels * (wide + 6) + extra_width, width, _GAP)
        row_height = levels * (high + 6) - 6 + extra_height + _GAP
        if rows * groups * row_height <= tallest:
            return _Fit(wide, high, columns, count, groups)
        if side <= _SMALLEST:
            break
        side = float(largest) if side > largest else max(side * 0.92, _SMALLEST)
        if side < 3 * line_height():  # too small for words around it
            extra_height, extra_width = 0, 0
    rows = max(1, tallest // row_height)
    kept = min(groups, rows)
    return _Fit(wide, high, columns, min(count, columns * max(1, rows // kept)), kept)


def _scaled(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of an array (H, W) drawn about `side` pixels large: grown by whole factors, never a thread."""
    height, width = shape
    factor = side / max(height, width)
    if factor >= 1:
        factor = math.floor(factor)
    thinnest = min(24, side)
    return max(round(width * factor), thinnest), max(round(height * factor), thinnest)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Enlarged with its pixels kept sharp, or shrunk with them averaged."""
    if width < image.width or height < image.height:
        image = image.resize((min(width, image.width), min(height, image.height)), Image.Resampling.BOX)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.NEAREST)


def _picture(pixels: Pixels) -> Image.Image:
    """(H, W, C) with C 1, 3 or 4 as an RGB image."""
    if pixels.shape[-1] == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0])).convert("RGB")
    if pixels.shape[-1] == 3:
        return Image.fromarray(np.ascontiguousarray(pixels))
    alpha = pixels[..., 3:] / 255.0
    return Image.fromarray(np.rint(pixels[..., :3] * alpha + _TRANSPARENT * (1 - alpha)).astype(np.uint8))


def _tile(picture: Image.Image, title: Sequence[str], note: Sequence[str]) -> Image.Image:
    """A picture with its title over it and its note under it."""
    above = set_lines(title, fill=INK) if title else None
    below = set_lines(note, fill=MUTED) if note else None
    return stack([above, picture, below], 1)


def _words(texts: Sequence[str], width: int, *, most: int = 2) -> list[list[str]]:
    """Texts as lines of at most `width` pixels, all on as many; for narrow tiles without the words they share."""
    cleaned = [clean(text) for text in texts]
    if width < 12 or not any(cleaned):
        return [[] for _ in cleaned]
    if all(measure(text) <= width for text in cleaned):
        return [[text] for text in cleaned]
    if width < 100:
        return [[shorten(text, width)] for text in _without_shared_start(cleaned)]
    lines = [wrap(text, width, most=most) for text in cleaned]
    longest = max(len(each) for each in lines)
    return [[*each, *[""] * (longest - len(each))] for each in lines]


def _without_shared_start(texts: Sequence[str]) -> list[str]:
    """'filter 0', 'filter 1' as '0', '1'."""
    words = [text.split(" ") for text in texts]
    shared = 0
    while (
        len(texts) > 1 and all(len(each) > shared + 1 for each in words) and len({each[shared] for each in words}) == 1
    ):
        shared += 1
    return [" ".join(each[shared:]) for each in words]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _left_out(drawn: int, count: int, noun: str = "") -> str:
    return "" if drawn == count else f"; the first {drawn:,} of {count:,} {noun}".rstrip() + " are drawn"


def _side_by_side(facts: str, bar: Image.Image, width: int) -> Image.Image:
    """What is drawn, in words, and its scale: on one line where there is room."""
    text = paragraph(facts, width, fill=MUTED)
    return stack([text, bar]) if text is None or text.width + 24 + bar.width > width else beside([bar, text], 24)


def _heatmap_header(record: Heatmaps, width: int) -> Image.Image:
    values = record.values
    count, height, wide = values.shape
    nans = int(np.isnan(values).sum())
    beyond = int(((values < record.limits[0]) | (values > record.limits[1])).sum())
    facts = f"{_many(count, 'map')} of {height} x {wide}"
    if _are_of_one(record):
        facts += ", after the input that they are of"
    elif record.over is not None:
        facts += "; each: the input, the map, the map over the input"
    if not values.any():  # of NaN there is none that is 0
        facts += "; every value is 0"
    if beyond:
        facts += f"; {number(100 * beyond / values.size)}% of the values lie beyond the scale and take its end colours"
    return _side_by_side(facts, color_bar(record.limits, record.colormap, label="value", nans=nans), width)


def _are_of_one(record: Heatmaps) -> bool:
    """Whether there is one picture for several maps."""
    return record.over is not None and len(record.over) < len(record.values)


def _input_tile(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return _tile(framed(_resized(picture, *size)), _words(["input"], size[0])[0], ())


def _strips(record: Heatmaps, width: int, common: Image.Image | None) -> Image.Image:
    """Maps much wider than high (a sound, a row of a table) under each other, each over the whole width."""
    _, height, wide = record.values.shape
    size = (wide * max(1, (width - 2) // wide) if wide < width else width - 2, height * max(1, round(30 / height)))
    blocks: list[Image.Image | None] = []
    if common is not None:
        in_proportion = size[0] * common.height // common.width
        blocks.append(_input_tile(common, (size[0], min(max(in_proportion, 8), size[0] // 4))))
    for i, (title, note) in enumerate(zip(record.titles, record.notes, strict=True)):
        if sum(block.height for block in blocks if block is not None) > TALLEST - size[1]:
            blocks.append(paragraph(_left_out(i, len(record.titles)).lstrip("; "), width, fill=WARNING))
            break
        words = [shorten("; ".join(part for part in (clean(title), clean(note)) if part), width)]
        blocks.append(_tile(framed(_panels(record, i, size)[0]), words, ()))
    return stack(blocks, _GAP)


def _maps(record: Heatmaps, width: int, common: Image.Image | None) -> Image.Image:
    """Maps in a grid, after the picture that all are of, if there is one; each beside its own, if there are such."""
    count, height, wide = record.values.shape
    rows, columns = record.row_labels, record.column_labels
    panels = 1 if record.over is None else 3
    if wide >= 8 * height and panels == 1 and rows is None and columns is None:
        return _strips(record, width, common)
    left, below = _longest_label(rows or (), 120), _longest_label(columns or (), 90)
    labelled = rows is not None or columns is not None
    shape = (height, wide) if record.over is None else (record.over.shape[1], record.over.shape[2])
    is_wide = shape[1] >= 2 * shape[0]  # as a spectrogram is: beside each other they would be threads
    stacked = panels > 1 and is_wide
    across, levels = (1, panels) if stacked else (panels, 1)
    largest = _side(count) if panels == 1 else _side_of_panels(count, shape, width)
    if any(record.notes) and panels == 1:
        upright = min(max(shape[0] / shape[1], 1), 2)  # a note has the width of its map
        largest = max(largest, _side_of_panels(count, shape, width) if is_wide else round(_LEGIBLE * upright))
    if labelled:
        largest = max(largest, min(2 * _side(count), 34 * max(shape)))
    notes_height = (2 + 3 * any(record.notes)) * line_height()
    before, room = int(common is not None), {"extra_height": notes_height + below + 6, "extra_width": left + 6}
    fit = _fit(before + count, shape, largest, width, panels=across, levels=levels, **room)
    shown, reach = fit.tiles - before, across * (fit.width + 6) - 4
    # Of two long names of classes two lines may have no room for "wrong", which stands last.
    titles, notes = _words(record.titles[:shown], reach), _words(record.notes[:shown], reach, most=3)
    tiles = []
    if common is not None:
        larger = max(fit.width, fit.height) / max(common.width, common.height)
        tiles.append(_input_tile(common, (max(round(common.width * larger), 1), max(round(common.height * larger), 1))))
    for i in range(shown):
        pictures = _panels(record, i, (fit.width, fit.height))
        if labelled and panels == 1:
            names = (list(rows[i]) if rows else [], list(columns[i]) if columns else [])
            picture = _labelled(pictures[0], *names, (height, wide), (120, 90))
        else:
            picture = (stack if stacked else beside)([framed(each) for each in pictures], 4)
        tiles.append(_tile(picture, titles[i], notes[i]))
    left_out = paragraph(_left_out(shown, count).lstrip("; "), width, fill=WARNING)
    return stack([grid(tiles, fit.columns, _GAP + (6 if panels > 1 else 0)), left_out])


def _side_of_panels(count: int, shape: tuple[int, int], width: int) -> int:
    """How large pictures of this shape want to be that stand beside or above their map: two columns fit the page."""
    height, wide = shape
    if wide >= 2 * height:
        return (width - _GAP) // (2 if count > 2 else 1) - 12
    side = 145 if count > 2 else 280
    return min(side * height // wide, 2 * side) if height >= 2 * wide else side


def _panels(record: Heatmaps, i: int, size: tuple[int, int]) -> list[Image.Image]:
    """The map alone; or the input, the map, and the map over the input."""
    map_ = _resized(Image.fromarray(colorize(record.values[i], record.limits, record.colormap)), *size)
    if record.over is None:
        return [map_]
    below = _resized(_picture(record.over[i]), *size)
    return [below, map_, _overlay(below, record, i)]


def _overlay(below: Image.Image, record: Heatmaps, i: int) -> Image.Image:
    """The map over its input in grey: the further a value is from nothing, the more of its colour is seen."""
    at = positions(record.values[i], record.limits)
    # A map coarser than the picture (Grad-CAM's) is smoothed here, and here alone: beside it its own cells are seen.
    # Not where it is much coarser one way than the other: rows that are channels would run into each other.
    down, across = below.height / at.shape[0], below.width / at.shape[1]
    coarse = 2 <= down <= 2 * across and across <= 2 * down and at.shape[0] < record.over.shape[1]  # type: ignore[union-attr]
    smooth = Image.Resampling.BICUBIC if coarse else Image.Resampling.NEAREST
    colors = np.asarray(
        Image.fromarray(colorize(record.values[i], record.limits, record.colormap)).resize(below.size, smooth),
        np.float64,
    )
    strength = np.nan_to_num(np.abs(at - 0.5) * 2 if record.colormap == "diverging" else at, nan=1.0)
    alpha = Image.fromarray(strength.astype(np.float32)).resize(below.size, smooth)
    share = np.clip(np.asarray(alpha), 0, 1)[..., None] ** 0.7
    grey = 64 + 0.75 * np.asarray(below.convert("L"), np.float64)[..., None]  # lightened: colours stand out against it
    return Image.fromarray(np.rint(grey * (1 - share) + colors * share).astype(np.uint8))


def _longest_label(labels: Sequence[Sequence[str]], most: int) -> int:
    """The width in pixels of the widest label, up to `most`."""
    longest = 0
    for name in {name for names in labels for name in names}:
        longest = max(longest, measure(token(name)[:40]))
    return min(longest, most)


def _labelled(
    picture: Image.Image,
    rows: Sequence[str],
    columns: Sequence[str],
    shape: tuple[int, int],
    longest: tuple[int, int],
) -> Image.Image:
    """A drawn map (H, W) with the names of its rows to the left and of its columns below, as many as can be read."""
    if min(picture.size) < 3 * _LEAST_LABEL:
        return framed(picture)
    left = _longest_label([rows], longest[0]) + 4 if rows else 0
    below = _longest_label([columns], longest[1]) + 4 if columns else 0
    picture = framed(picture)
    page = Image.new("RGB", (left + picture.width, picture.height + below), PAPER)
    page.paste(picture, (left, 0))
    draw = ImageDraw.Draw(page)
    for name, centre in _readable(rows, shape[0], picture.height):
        put(draw, (left - 4, centre - line_height() / 2), shorten(token(name), longest[0]), fill=MUTED, align="right")
    for name, centre in _readable(columns, shape[1], picture.width):
        label = sideways(shorten(token(name), longest[1]), fill=MUTED)
        stick(page, label, (round(left + centre - label.width / 2), picture.height + 4))
    return page


def _readable(names: Sequence[str], cells: int, pixels: int) -> list[tuple[str, float]]:
    """Every k-th name with the centre of its line in pixels, k as small as leaves room for a line of text.

    That is the centre of its cell, but for cells at an end that are less than a line high: there the line ends with
    the map, and a name that it would cover is left out.
    """
    stride, half = math.ceil(_LEAST_LABEL * cells / pixels), _LEAST_LABEL / 2
    found: list[tuple[str, float]] = []
    for i in range(0, min(len(names), cells), stride):
        centre = min(max((i + 0.5) * pixels / cells, half), pixels - half)
        if not found or centre - found[-1][1] >= _LEAST_LABEL:
            found.append((names[i], centre))
    return found


def _token_lines(record: Heatmaps, width: int) -> Image.Image:
    """Each one-row map as its tokens in running text, every token on the colour of its value."""
    blocks: list[Image.Image | None] = []
    height = 0
    for i, title in enumerate(record.titles):
        if height > TALLEST:
            blocks.append(paragraph(_left_out(i, len(record.titles), "texts").lstrip("; "), width, fill=WARNING))
            break
        names = list((record.column_labels or ())[i])
        values = record.values[i, 0]
        names = [names[k] if k < len(names) else f"[{k}]" for k in range(len(values))]
        colors = colorize(values, record.limits, record.colormap)
        text = _tinted(names, colors, width, TALLEST - height)
        heading = [paragraph(title, width, size=BODY, heavy=True, most=2), text]
        blocks.append(stack([*heading, paragraph(record.notes[i], width, fill=MUTED, most=2)], 3))
        height += blocks[-1].height + 14 if blocks[-1] else 0
    return stack(blocks, 14)


def _tinted(names: Sequence[str], colors: NDArray[np.uint8], width: int, tallest: int) -> Image.Image:
    """Tokens in boxes of these colours, wrapped, a new line after each newline token; what does not fit is counted."""
    box, pad = line_height(BODY) + 4, 3
    places: list[tuple[int, int, int, str]] = []
    x, row, farthest = 0, 0, 0
    for name in names:
        label = shorten(token(name), width - 2 * pad, BODY)
        wide = max(measure(label, BODY) + 2 * pad, 10)
        if x + wide > width:
            x, row = 0, row + 1
        if (row + 1) * (box + 3) > max(tallest, 4 * box):
            break
        places.append((x, row, wide, label))
        x += wide + 1
        farthest = max(farthest, x)
        if name.endswith(("\n", "Ċ")):
            x, row = 0, row + 1
    page = Image.new("RGB", (max(farthest, 1), (places[-1][1] + 1) * (box + 3)), PAPER)
    draw = ImageDraw.Draw(page)
    for (left, line, wide, label), color in zip(places, colors, strict=False):
        top = line * (box + 3)
        fill = (int(color[0]), int(color[1]), int(color[2]))
        draw.rectangle((left, top, left + wide - 1, top + box - 1), fill=fill)
        put(draw, (left + wide / 2, top + 2), label, size=BODY, fill=readable_on(color), align="centre")
    missing = len(names) - len(places)
    return stack([page, paragraph(f"… and {missing:,} more tokens", width, fill=WARNING) if missing else None], 2)
