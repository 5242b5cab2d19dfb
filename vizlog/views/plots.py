"""Records that are charts, numbers or words: Histogram, Curves, Embedding, Surface, Scalar, Text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from vizlog.views.axes import FINER, LONGEST_NAME, Axis, Place, chart, names_as_ticks
from vizlog.views.colors import CLASSES, NO_CLASS, QUANTITY, SEQUENTIAL, class_color, look_up, point_colors
from vizlog.views.layout import beside, framed, ramp, stack
from vizlog.views.typeset import (
    BODY,
    INK,
    MUTED,
    PAPER,
    WARNING,
    Color,
    clean,
    line_height,
    measure,
    number,
    paragraph,
    put,
    set_lines,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vizlog.records import Curves, Embedding, Histogram, Pixels, Scalar, Surface, Text

__all__ = ["curves", "embedding", "histogram", "scalar", "shared_start", "surface", "text"]

_MOST_NAMES = 24  # in a legend
_MOST_THUMBNAILS = 120  # beyond this they hide each other
_PATH: Color = (214, 40, 40)
_CORNERS = (  # of a square, a triangle and a diamond about as large as a dot of radius 1
    ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    ((0.0, -1.25), (1.15, 0.8), (-1.15, 0.8)),
    ((0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)),
)


def scalar(record: Scalar, width: int) -> Image.Image:
    """The number, large."""
    value = f"{record.value:,.6g}"
    return set_lines([shorten(value, width, 40)], size=40, fill=INK if math.isfinite(record.value) else WARNING)


def text(record: Text, width: int) -> Image.Image:
    """Markdown, lightly: headings larger, list items indented, the rest wrapped."""
    blocks: list[Image.Image | None] = []
    lines = record.text.splitlines()
    for line in lines[:100]:
        heading = len(line) - len(line.lstrip("#"))
        if heading and line[heading : heading + 1] == " ":
            blocks.append(paragraph(line[heading:].strip(), width, size=max(BODY, 18 - heading), heavy=True, most=2))
        elif line.lstrip().startswith(("- ", "* ")):
            item = paragraph(line.lstrip()[2:].replace("**", ""), width - 20, size=BODY)
            blocks.append(beside([set_lines(["  ·"], size=BODY), item], 6))
        elif line.strip():
            blocks.append(paragraph(line.replace("**", ""), width, size=BODY))
        else:
            blocks.append(Image.new("RGB", (1, 6), PAPER))
    if len(lines) > 100:
        blocks.append(paragraph(f"… and {len(lines) - 100:,} more lines", width, fill=WARNING))
    return _cut(stack(blocks, 2))


def _cut(block: Image.Image, tallest: int = 2200) -> Image.Image:
    return block if block.height <= tallest else block.crop((0, 0, block.width, tallest))


def histogram(record: Histogram, width: int) -> Image.Image:
    """Bars over the values, and beside them the figures that bars cannot show."""
    figures = _histogram_figures(record)
    edges = np.asarray(record.edges, np.float64)
    widths = np.diff(edges)
    even = float(widths.max()) <= 1.01 * float(widths.min())
    heights = np.asarray(record.counts, np.float64) / (1.0 if even else widths)
    shown, cut = _without_spike(heights)
    top = float(shown.max()) * 1.06 or 1.0

    def bars(canvas: Image.Image, place: Place) -> None:
        draw = ImageDraw.Draw(canvas)
        low, high = place(edges[:-1], np.zeros_like(shown)), place(edges[1:], shown)
        for (left, bottom), (right, peak), height in zip(low, high, shown, strict=True):
            if height > 0:
                gap = FINER if right - left > 4 * FINER else 0
                draw.rectangle((left, min(peak, bottom - FINER), max(right - gap, left + 1), bottom), fill=CLASSES[0])
        for i in cut:
            _mark_cut(draw, low[i, 0], high[i, 0], high[i, 1])
        _mark_quantiles(draw, record.quantiles, place, canvas.height)

    size = (width - max(figure.width for figure in figures) - 28, 340)
    unit = "elements" if even else "elements per unit"
    label = unit if even else f"{unit} (bins differ in width)"
    drawn = chart(size, Axis(edges[0], edges[-1]), Axis(0.0, top), bars, x_label="value", y_label=label)
    notes = [f"bar cut off: {heights[i]:,.6g} {unit} from {number(edges[i])} to {number(edges[i + 1])}" for i in cut]
    if record.quantiles:
        notes.append("shaded: the middle 90% of the values; dark line: the median")
    below = [paragraph(note, width, fill=MUTED, most=2) for note in notes]
    return stack([beside([drawn, stack(figures, 10)], 24), *below], 4)


def _without_spike(heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """The heights, and which bar is cut off: one over six times as high as the next (the zeros after a ReLU)."""
    if len(heights) < 3:
        return heights, []
    second, first = np.sort(heights)[-2:]
    if second <= 0 or first <= 6 * second:
        return heights, []
    return np.minimum(heights, 1.6 * second), [int(heights.argmax())]


def _mark_cut(draw: ImageDraw.ImageDraw, left: float, right: float, top: float) -> None:
    """A white slash through the bar: it goes on."""
    y = top + 22 * FINER
    draw.line((left - 3 * FINER, y + 4 * FINER, right + 3 * FINER, y - 4 * FINER), fill=PAPER, width=3 * FINER)


def _mark_quantiles(draw: ImageDraw.ImageDraw, quantiles: Mapping[float, float], place: Place, height: int) -> None:
    """A band along the bottom from the 5% to the 95% quantile, and a line at the median."""
    if not {0.05, 0.5, 0.95} <= set(quantiles):
        return
    at = place([quantiles[q] for q in (0.05, 0.5, 0.95)], [0.0] * 3)[:, 0]
    if np.isnan(at).any():
        return
    draw.rectangle((at[0], height - 7 * FINER, at[2], height), fill=(197, 206, 216))
    draw.rectangle((at[1] - FINER, height - 14 * FINER, at[1] + FINER, height), fill=INK)


def _histogram_figures(record: Histogram) -> list[Image.Image]:
    """Columns of figures: what the values are like; how many are zero or not finite."""
    share = 100 / max(record.count, 1)
    spread = {"mean": record.mean, "std": record.std, "min": record.min, "max": record.max}
    lines = [(name, number(value)) for name, value in spread.items()]
    names = {0.05: "5% quantile", 0.5: "median", 0.95: "95% quantile"}
    lines += [(name, number(record.quantiles[q])) for q, name in names.items() if q in record.quantiles]
    counted = [("elements", f"{record.count:,}"), ("zeros", f"{record.zeros:,} ({number(record.zeros * share)}%)")]
    bad = {"NaN": record.nans, "+inf": record.pos_infs, "-inf": record.neg_infs}
    counted += [(name, f"{count:,} ({number(count * share)}%)" if count else "0") for name, count in bad.items()]
    width = max(measure(name) + measure(value) for name, value in lines + counted) + 24
    return [_figures(lines, width, ()), _figures(counted, width, [name for name, count in bad.items() if count])]


def _figures(lines: Sequence[tuple[str, str]], width: int, alarming: Sequence[str]) -> Image.Image:
    """Names to the left, numbers to the right."""
    page = Image.new("RGB", (width, line_height() * len(lines)), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (name, value) in enumerate(lines):
        put(draw, (0, i * line_height()), name, fill=WARNING if name in alarming else MUTED)
        put(draw, (page.width - 1, i * line_height()), value, fill=WARNING if name in alarming else INK, align="right")
    return page


def curves(record: Curves, width: int) -> Image.Image:
    """Lines with their legend; a gap where a value is NaN, and what cannot be drawn is counted."""
    ys = {name: np.asarray(y, np.float64) for name, y in record.ys.items()}
    values = np.concatenate([*ys.values()]) if ys else np.empty(0)
    x = np.asarray(record.x, np.float64)
    x_axis, y_axis = Axis.around(x, log=record.log_x, pad=0.02), Axis.of_heights(values, log=record.log_y)

    def lines(canvas: Image.Image, place: Place) -> None:
        for i, y in enumerate(each := list(ys.values())):
            # What a later line would hide stands out on both sides of it.
            wider = 2.5 * sum(_coincide(y, later) for later in each[i + 1 :])
            _line(ImageDraw.Draw(canvas), place(x, y), class_color(i), wider=wider)

    x_label, x_ticks, height = clean(record.x_label), None, 400
    if record.x_names is not None:
        shared = shared_start(record.x_names)
        names = [clean(name[len(shared) :]) for name in record.x_names]
        x_ticks = names_as_ticks(x, names)
        height = 320 + min(max(measure(name[:100]) for name in names), LONGEST_NAME)
        x_label += f" (each name starts with {shared})" if shared else ""
    drawn = chart(
        (width, height), x_axis, y_axis, lines, x_ticks=x_ticks, x_label=x_label, y_label=clean(record.y_label)
    )
    legend = _legend([(name, class_color(i), None) for i, name in enumerate(ys)], width) if len(ys) > 1 else None
    # Over names a NaN says that this line has nothing of that name; over a quantity it is a value that got lost.
    lost = values if record.x_names is None else values[~np.isnan(values)]
    # A line at the foot of an axis up to 1 is easily taken for none.
    zero = paragraph("every value is 0", width, fill=MUTED) if lost.size and not lost.any() else None
    return stack([legend, drawn, zero, _missing(lost, width, log=record.log_y)], 8)


def _coincide(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether most values that both have are the same."""
    both = np.isfinite(one) & np.isfinite(other)
    return bool(both.any() and np.mean(one[both] == other[both]) > 0.5)


def shared_start(names: Sequence[str]) -> str:
    """The dotted beginning that all names share ("encoder.layer."), if it is long; "" for one name alone."""
    if len(set(names)) < 2:
        return ""
    first, last = min(names), max(names)  # in alphabetical order: what these two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = first[: first.rfind(".", 0, same) + 1]
    return shared if len(shared) > 6 else ""


def _line(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], color: Color, *, wider: float = 0.0) -> None:
    """A line through the points, broken where one is NaN; dots where the points are few or stand alone."""
    present = np.asarray(np.isfinite(points).all(axis=1))
    pieces = np.split(np.arange(len(points)), np.flatnonzero(np.diff(present.astype(int))) + 1)
    dots = present.sum() <= 60
    for piece in pieces:
        if not present[piece[0]]:
            continue
        if len(piece) > 1:
            draw.line([(x, y) for x, y in points[piece]], fill=color, width=round((2 + wider) * FINER), joint="curve")
        if dots or len(piece) == 1:
            for x, y in points[piece]:
                _dot(draw, (x, y), (3.2 + wider / 2) * FINER, color)


def _missing(values: NDArray[np.float64], width: int, *, log: bool) -> Image.Image | None:
    """How many values the lines leave out, in words, or None."""
    parts = {
        "NaN": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
        "zero or negative (the axis is logarithmic)": int((values <= 0).sum() - np.isneginf(values).sum())
        if log
        else 0,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    return paragraph(f"not drawn: {said}", width, fill=WARNING) if said else None


def _legend(names: Sequence[tuple[str, Color, int | None]], width: int) -> Image.Image:
    """Names, their colours, and the numbers of their markers (None: a line), in lines from left to right."""
    entries = [_legend_entry(shorten(clean(name), 240), color, marker) for name, color, marker in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        entries.append(set_lines([f"and {len(names) - _MOST_NAMES:,} more"], fill=MUTED))
    lines: list[list[Image.Image]] = [[]]
    room = width
    for entry in entries:
        if room < entry.width and lines[-1]:
            lines.append([])
            room = width
        lines[-1].append(entry)
        room -= entry.width + 16
    return stack([beside(line, 16) for line in lines], 3)


def _legend_entry(name: str, color: Color, marker: int | None) -> Image.Image:
    label = set_lines([name or "(no name)"])
    swatch = Image.new("RGB", (14 * FINER, label.height * FINER), PAPER)
    draw = ImageDraw.Draw(swatch)
    centre = (7 * FINER, swatch.height / 2)
    if marker is None:
        draw.rectangle((0, centre[1] - 1.5 * FINER, swatch.width, centre[1] + 1.5 * FINER), fill=color)
    else:
        _marker(draw, centre, 5 * FINER, color, marker)
    return beside([swatch.reduce(FINER), label], 5)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Color) -> None:
    x, y = at
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _marker(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Color, index: int) -> None:
    """A dot for the first ten classes, then a square, a triangle, a diamond: no pair repeats before forty."""
    kind = index // len(CLASSES) % 4 if index >= 0 else 0
    if kind == 0:
        _dot(draw, at, radius, color)
        return
    draw.polygon([(at[0] + x * radius, at[1] + y * radius) for x, y in _CORNERS[kind - 1]], fill=color)


def embedding(record: Embedding, width: int) -> Image.Image:
    """A scatter per method, coloured by class, with the scores and a legend."""
    layouts = dict(record.layouts) or {
        f"{name}, two of three axes": xyz[:, :2] for name, xyz in record.layouts_3d.items()
    }
    legend = _quantity_legend(record) if record.is_of_quantity else _class_legend(record, width)
    scores = "   ".join(f"{name}: {number(score)}" for name, score in record.scores.items())
    facts = f"{len(record.vectors):,} points of {record.vectors.shape[1]:,} dimensions"
    header = stack([paragraph(facts, width, fill=MUTED), paragraph(scores, width, size=BODY), legend], 5)
    if not layouts:
        return stack([header, paragraph("no layout was made", width, fill=WARNING)])
    per_row = min(len(layouts), 3)
    side = min((width - 16 * (per_row - 1)) // per_row, 560)
    scatters = [_scatter(record, name, np.asarray(xy, np.float64), side) for name, xy in layouts.items()]
    rows = [beside(scatters[i : i + per_row], 16) for i in range(0, len(scatters), per_row)]
    return _cut(stack([header, *rows], 12))


def _class_legend(record: Embedding, width: int) -> Image.Image | None:
    """The classes that occur, in order of their numbers."""
    present = [int(label) for label in np.unique(record.labels)]
    classes = [(_class_name(record, label), class_color(label), label) for label in present if label >= 0]
    if not classes:
        return None
    without = [("no class", NO_CLASS, -1)] if present[0] < 0 else []
    return _legend([*without, *classes], width)


def _quantity_legend(record: Embedding) -> Image.Image:
    """What the colours mean, from the lowest to the highest, where any point has a value."""
    values = np.asarray(record.labels, np.float64)
    missing = int(np.isnan(values).sum())
    without = _legend_entry(f"none ({missing:,})", NO_CLASS, -1) if missing else None
    if without is not None and missing == len(values):
        return without
    _, (low, high) = point_colors(values)
    names = {0.0: number(low), 1.0: number(high)}
    if (values < low).any() or (values > high).any():
        names = {0.0: f"{names[0.0]} or less", 1.0: f"{names[1.0]} or more"}
    bar = ramp(QUANTITY, names, label=shorten(clean(", ".join(record.class_names)) or "value", 220))
    return beside([bar, without], 16) if without is not None else bar


def _class_name(record: Embedding, label: int) -> str:
    return str(record.class_names[label]) if 0 <= label < len(record.class_names) else str(label)


def _scatter(record: Embedding, method: str, xy: NDArray[np.float64], side: int) -> Image.Image:
    """Points on the plane, one scale for both axes; no ticks, as coordinates of a projection have no unit."""
    finite = np.isfinite(xy).all(axis=1)
    canvas = Image.new("RGB", (side * FINER, side * FINER), PAPER)
    if finite.any():
        low, high = xy[finite].min(axis=0), xy[finite].max(axis=0)
        scale = 0.9 / (float((high - low).max()) or 1.0)
        at = (((xy - (low + high) / 2) * scale * [1, -1]) + 0.5) * side * FINER
        order = np.random.default_rng(0).permutation(np.flatnonzero(finite))  # so that no class lies over all others
        if record.thumbnails is not None and len(xy) <= _MOST_THUMBNAILS:
            _draw_thumbnails(canvas, at, order, record)
        else:
            radius = FINER * min(5.0, max(1.8, side / 9 / math.sqrt(len(xy))))
            draw = ImageDraw.Draw(canvas)
            marks = _marks(record)
            for i in order:
                _marker(draw, (at[i, 0], at[i, 1]), radius, *marks[i])
    missing = int((~finite).sum())
    lost = paragraph(f"not drawn: {missing:,} points that are not finite", side, fill=WARNING) if missing else None
    title = set_lines([shorten(clean(method), side, 15)], size=15, heavy=True)
    return stack([title, framed(canvas.reduce(FINER)), lost], 4)


def _marks(record: Embedding) -> list[tuple[Color, int]]:
    """A colour for each point, and the number of its marker."""
    if record.is_of_quantity:
        found, _ = point_colors(np.asarray(record.labels, np.float64))
        return [((int(r), int(g), int(b)), -1) for r, g, b in found]
    return [(class_color(int(label)), int(label)) for label in record.labels]


def _draw_thumbnails(canvas: Image.Image, at: NDArray[np.float64], order: NDArray[Any], record: Embedding) -> None:
    """Each point as its picture in a frame of its colour."""
    thumbnails: Pixels = record.thumbnails  # type: ignore[assignment]
    inner, edge = 22 * FINER, 2 * FINER
    marks = _marks(record)
    for i in order:
        pixels = thumbnails[i][..., 0] if thumbnails.shape[-1] == 1 else thumbnails[i][..., :3]
        picture = (
            Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize((inner, inner), Image.Resampling.BOX)
        )
        stamp = Image.new("RGB", (inner + 2 * edge, inner + 2 * edge), marks[i][0])
        stamp.paste(picture, (edge, edge))
        x, y = (round(float(v)) - stamp.width // 2 for v in at[i])
        most = canvas.width - stamp.width
        canvas.paste(stamp, (min(max(x, 0), most), min(max(y, 0), most)))


def surface(record: Surface, width: int) -> Image.Image:
    """The surface from above: colours, contour lines, and the path from its start to its end."""
    z = np.asarray(record.z, np.float64)
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    log = low > 0 and high / low > 100
    shares = Axis(low, high if high > low else low + 1.0, log).place(np.where(np.isfinite(z), z, np.nan))
    x, y = np.asarray(record.x, np.float64), np.asarray(record.y, np.float64)

    def paint(canvas: Image.Image, place: Place) -> None:
        _paint_surface(canvas, shares, x, y)
        if record.path is not None:
            _paint_path(ImageDraw.Draw(canvas), place(record.path[:, 0], record.path[:, 1]))

    side = min(width, 640)
    drawn = chart(
        (side, side - 40), _span(x), _span(y), paint, x_label=clean(record.x_label), y_label=clean(record.y_label)
    )
    z_label = clean(record.z_label) or "height"
    bar_label = shorten(f"{z_label}, logarithmic colours" if log else z_label, 220)
    bar = ramp(SEQUENTIAL, {0.0: number(low), 1.0: number(high)}, label=bar_label, nans=int((~np.isfinite(z)).sum()))
    path = None
    if record.path is not None:
        path = paragraph(f"red: the path of {len(record.path):,} points, from the ring to the dot", width, fill=MUTED)
    return stack([bar, drawn, path], 10)


def _span(values: NDArray[np.float64]) -> Axis:
    """From half a cell before the first value to half a cell after the last, as colours fill whole cells."""
    low, high = float(values.min()), float(values.max())
    half = (high - low) / (2 * (len(values) - 1)) if len(values) > 1 and high > low else 0.5
    return Axis(low - half, high + half)


def _paint_surface(canvas: Image.Image, shares: NDArray[np.float64], x: NDArray[Any], y: NDArray[Any]) -> None:
    """Smooth colours with a thin line at every tenth of the range; where a value is missing, plain cells."""
    grid = shares[:: -1 if len(y) < 2 or y[-1] >= y[0] else 1, :: 1 if len(x) < 2 or x[-1] >= x[0] else -1]
    missing = bool(np.isnan(grid).any())
    smooth = Image.Resampling.NEAREST if missing else Image.Resampling.BICUBIC
    fine = np.asarray(Image.fromarray(grid.astype(np.float32)).resize(canvas.size, smooth))
    pixels = look_up(np.clip(fine, 0, 1), "sequential")
    if not missing:
        level = (fine * 10).astype(np.int8)
        edge = np.zeros(level.shape, bool)
        edge[:, 1:] = level[:, 1:] != level[:, :-1]
        edge[1:] |= level[1:] != level[:-1]
        edge[:, :-1] |= edge[:, 1:]
        pixels[edge] = (pixels[edge] * 0.4 + 255 * 0.6).astype(np.uint8)
    canvas.paste(Image.fromarray(pixels))


def _paint_path(draw: ImageDraw.ImageDraw, points: NDArray[np.float64]) -> None:
    points = points[~np.isnan(points).any(axis=1)]
    if len(points) == 0:
        return
    line = [(x, y) for x, y in points]
    for color, extra in ((PAPER, 2), (_PATH, 0)):
        if len(line) > 1:
            draw.line(line, fill=color, width=(2 + extra) * FINER, joint="curve")
        _dot(draw, line[-1], (5 + extra / 2) * FINER, color)
        _dot(draw, line[0], (5 + extra / 2) * FINER, color)
    _dot(draw, line[0], 2.5 * FINER, PAPER)
