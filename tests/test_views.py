"""Every record drawn: as pixels, as PNG, as an interactive figure, in a notebook."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from typing import Any, TypeAlias, get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from vizlog.records import (
    Attention,
    Curves,
    Embedding,
    Heatmaps,
    Histogram,
    Images,
    Record,
    Scalar,
    Surface,
    Text,
)
from vizlog.views import axes, colors, layout, notebook, plots, png, tiles, typeset
from vizlog.views.axes import Axis, chart, names_as_ticks
from vizlog.views.figures import figure, plain
from vizlog.views.layout import ramp, shape_of_grid
from vizlog.views.raster import raster
from vizlog.views.tiles import _LEAST_LABEL, _fit, _readable

Said: TypeAlias = list[tuple[str, float, float]]

FRAME = (190, 196, 203)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def histogram_of(values: Any, **changes: Any) -> Histogram:
    counts, edges = np.histogram(values, 64)
    fields = {
        "edges": edges, "counts": counts, "count": values.size, "zeros": int((values == 0).sum()),
        "nans": 0, "pos_infs": 0, "neg_infs": 0, "min": float(values.min()), "max": float(values.max()),
        "mean": float(values.mean()), "std": float(values.std()),
        "quantiles": {q: float(np.quantile(values, q)) for q in QUANTILES},
    }  # fmt: skip
    return Histogram("weights/conv1", caption="after step 10", **{**fields, **changes})


def attention_of(examples: int, heads: int, tokens: list[str]) -> Attention:
    scores = np.exp(np.random.default_rng(0).normal(0, 2, (examples, heads, len(tokens), len(tokens))))
    weights = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    return Attention("attention/0", weights, range(examples), range(heads), [tokens] * examples, [tokens] * examples)


def embedding_of(points: int, classes: int, **changes: Any) -> Embedding:
    generator = np.random.default_rng(0)
    xyz = generator.normal(0, 1, (points, 3))
    labels = np.arange(points) % classes
    names = [f"class {i}" for i in range(classes)]
    fields = {"layouts": {"PCA": xyz[:, :2], "t-SNE": xyz[:, 1:]}, "layouts_3d": {"PCA": xyz}, "labels": labels}
    fields |= {"class_names": names, "ids": np.arange(points), "scores": {"silhouette": 0.5}}
    return Embedding("embeddings/fc", xyz, **{**fields, **changes})


def samples() -> dict[str, Record]:
    """One record of each kind, of real digits where it holds pictures."""
    digits = load_digits()
    pictures = (digits.images[:8, ..., None] / 16 * 255).astype(np.uint8)
    maps = (digits.images[:8] / 16 - 0.5).astype(np.float32)
    names = [f"digit {label}" for label in digits.target[:8]]
    x = np.linspace(-1, 1, 9)
    layers = ["encoder.0.weight", "encoder.1.weight", "encoder.2.weight"]
    return {
        "Scalar": Scalar("health/dead_units_worst", 0.25, caption="worst of 3 layers"),
        "Histogram": histogram_of(np.random.default_rng(0).normal(0, 1, 1000)),
        "Images": Images("filters/conv1", pictures, names, (-1.0, 1.0), norms=np.ones(8)),
        "Heatmaps": Heatmaps("saliency/gradient", maps, names, [""] * 8, (-0.5, 0.5), "diverging", over=pictures),
        "Attention": attention_of(2, 4, ["the", "Ġcat", "sat"]),
        "Embedding": embedding_of(60, 12, thumbnails=np.zeros((60, 8, 8, 1), np.uint8)),
        "Curves": Curves("health/gradient_norm", np.arange(3), {"step 1": np.ones(3)}, "layer", "norm", layers),
        "Surface": Surface("landscape/loss", x, x, x[:, None] ** 2 + x**2, np.stack([x, x], 1), "x", "y", "loss"),
        "Text": Text("health/summary", "# Model\n\n- a CNN\n- of **3** layers", caption="by name"),
    }


SAMPLES = samples()


def where(pixels: Any, color: Any) -> tuple[slice, slice]:
    """The smallest box that holds every pixel of this colour."""
    rows, columns = np.nonzero((pixels == np.asarray(color)).all(axis=-1))
    assert rows.size, f"no pixel is {color}"
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def solid_images(count: int, side: int = 3) -> tuple[Images, Any]:
    """Tiles of one colour each, no colour twice and none of them a grey."""
    palette = np.array([(200, (7 * i) % 256, i // 37 + 1) for i in range(count)], np.uint8)
    pixels = np.broadcast_to(palette[:, None, None], (count, side, side, 3)).copy()
    return Images("filters/conv1", pixels, [""] * count, (-1.0, 1.0)), palette


def one_map(values: Any, limits: tuple[float, float], colormap: Any) -> Heatmaps:
    return Heatmaps("feature_maps/conv1", np.asarray(values, np.float32), ["map"], [""], limits, colormap)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Every line that is written from here on, and where on the image that it is written on: text, x and top."""
    lines: Said = []
    put = typeset.put

    def noted(draw: Any, at: tuple[float, float], text: str, **how: Any) -> None:
        lines.append((text, *at))
        put(draw, at, text, **how)

    for module in (axes, layout, plots, tiles, typeset):
        monkeypatch.setattr(module, "put", noted)
    typeset.sideways.cache_clear()
    return lines


def words(said: Said, record: Record, **how: Any) -> list[str]:
    """What the drawing of a record says, line by line."""
    said.clear()
    raster(record, **how)
    return [text for text, _, _ in said]


def plot_of(drawn: Any) -> tuple[int, int, int, int]:
    """Left, top, width and height of the inside of a chart, which its frame tells."""
    rows, columns = where(drawn, FRAME)
    return columns.start + 1, rows.start + 1, columns.stop - columns.start - 2, rows.stop - rows.start - 2


# Every kind


def test_the_narrowest_raster_has_240_pixels() -> None:
    assert raster(SAMPLES["Images"], width=240).shape[1] == 240


def test_the_tag_stands_over_a_picture(said: Said) -> None:
    assert words(said, SAMPLES["Curves"])[0] != SAMPLES["Curves"].tag  # the body is drawn before it is put together
    assert SAMPLES["Curves"].tag in words(said, SAMPLES["Curves"])


def test_there_is_a_sample_of_every_kind() -> None:
    assert set(SAMPLES) == {kind.__name__ for kind in get_args(Record)}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_raster_is_rgb_on_white_of_a_size_that_can_be_read(name: str) -> None:
    pixels = raster(SAMPLES[name])
    height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8
    assert channels == 3
    assert 480 <= width <= 1000
    assert height * width <= 4_000_000
    assert (pixels[:8] == 255).all()  # the margin
    assert (pixels[:, -4:] == 255).all()
    assert (pixels != 255).any()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_raster_has_the_width_asked_for(name: str) -> None:
    for width in (320, 700):
        assert raster(SAMPLES[name], width=width).shape[1] == width


def test_a_width_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 240 pixels, got 100"):
        raster(SAMPLES["Scalar"], width=100)


@pytest.mark.parametrize("name", SAMPLES)
def test_drawing_twice_gives_the_same_pixels(name: str) -> None:
    assert np.array_equal(raster(SAMPLES[name]), raster(SAMPLES[name]))


def test_the_caption_stands_under_the_picture_and_wraps() -> None:
    bare, one, three = (raster(Scalar("a/b", 1.0, caption=caption)) for caption in ("", "word", "word " * 200))
    assert bare.shape[0] < one.shape[0] < three.shape[0]
    assert np.array_equal(one[: bare.shape[0] - 16], bare[:-16])


def test_drawing_needs_neither_torch_nor_plotly() -> None:
    code = "import sys, vizlog.views.figures, vizlog.views.notebook; print({'torch', 'plotly'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Colours


def test_the_centre_of_the_diverging_map_is_neutral_and_its_ends_blue_and_red() -> None:
    low, centre, high = colors.colorize(np.array([-2.0, 0.0, 2.0]), (-2.0, 2.0), "diverging").astype(int)
    assert centre.min() == centre.max() >= 240
    assert low[2] == low.max()
    assert high[0] == high.max()
    assert np.array_equal(low, colors.DIVERGING[0])
    assert np.array_equal(high, colors.DIVERGING[254])


def test_values_beyond_the_limits_take_the_end_colours() -> None:
    shown = colors.colorize(np.array([-np.inf, -9.0, 9.0, np.inf]), (0.0, 1.0), "sequential")
    assert np.array_equal(shown, colors.SEQUENTIAL[[0, 0, 254, 254]])


def test_lightness_changes_evenly_along_both_maps() -> None:
    """CIE L* by its own formula, which the tables were not made with."""
    for table in (colors.SEQUENTIAL, colors.DIVERGING[127:][::-1], colors.DIVERGING[:128]):
        channels = table / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        steps = np.diff(116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16)
        assert steps.mean() > 0
        smooth = np.convolve(steps, np.ones(16) / 16, "valid")
        assert smooth.min() > 0.4 * steps.mean()
        assert smooth.max() < 1.8 * steps.mean()


def test_nan_has_a_colour_that_no_value_has() -> None:
    assert not (np.vstack([colors.SEQUENTIAL, colors.DIVERGING]) == colors.NAN).all(axis=1).any()
    assert np.array_equal(colors.colorize(np.array([np.nan]), (0.0, 1.0), "diverging")[0], colors.NAN)


def test_limits_that_are_equal_put_what_equals_them_in_the_middle() -> None:
    assert colors.positions(np.array([3.0, 2.0, 4.0]), (3.0, 3.0)).tolist() == [0.5, 0.0, 1.0]


def test_limits_at_the_largest_float_do_not_overflow() -> None:
    largest = float(np.finfo(np.float64).max)
    assert colors.positions(np.array([-largest, 0.0, largest]), (-largest, largest)).tolist() == [0.0, 0.5, 1.0]


def test_ten_classes_have_ten_colours_and_no_class_has_its_own() -> None:
    assert len({colors.class_color(i) for i in range(-1, 10)}) == 11
    assert colors.class_color(10) == colors.class_color(0)


def test_words_can_be_read_on_every_colour_of_a_map() -> None:
    """By the ratio of contrast of WCAG 2, which asks for 3 of large letters."""

    def luminance(color: Any) -> float:
        channels = np.asarray(color) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color in (*colors.SEQUENTIAL, *colors.DIVERGING):
        dark, light = sorted((luminance(color), luminance(colors.readable_on(color))))
        assert (light + 0.05) / (dark + 0.05) > 3


def test_a_colour_bar_says_what_its_ends_its_centre_and_nan_are(said: Said) -> None:
    bar = np.asarray(layout.color_bar((-2.0, 6.0), "diverging", label="value", nans=1234))
    at = {text: x for text, x, _ in said}
    assert sorted(at, key=lambda text: at[text]) == ["value", "-2", "2", "6", "NaN (1,234)"]
    low, high, lost = (where(bar, color)[1] for color in (colors.DIVERGING[2], colors.DIVERGING[252], colors.NAN))
    assert at["value"] < low.start < at["2"] < high.start < lost.start < at["NaN (1,234)"]


def test_the_ends_of_a_colour_bar_are_named_before_what_is_between(said: Said) -> None:
    ramp(np.zeros((240, 3)), {0.0: "0", 0.97: "0.0301", 1.0: "0.0312"})
    assert [text for text, _, _ in said if text] == ["0", "0.0312"]


# Tiles


def test_tiles_stand_in_order_in_rows_of_equal_pitch() -> None:
    record, palette = solid_images(12)
    boxes = [where(raster(record), color) for color in palette]
    rows, columns = sorted({box[0].start for box in boxes}), sorted({box[1].start for box in boxes})
    assert len(rows) * len(columns) == 12
    assert [(box[0].start, box[1].start) for box in boxes] == [(row, column) for row in rows for column in columns]
    assert len(set(np.diff(rows))) <= 1
    assert len(set(np.diff(columns))) == 1


def test_small_pictures_are_enlarged_by_a_whole_factor_with_sharp_pixels() -> None:
    pixels = np.zeros((1, 3, 3, 3), np.uint8)
    pixels[0] = [[(200, 10 * row, 10 * column + 1) for column in range(3)] for row in range(3)]
    drawn = raster(Images("filters/conv1", pixels, ["filter 0"], (-1.0, 1.0)))
    sizes = set()
    for row in range(3):
        for column in range(3):
            box = where(drawn, pixels[0, row, column])
            assert (drawn[box] == pixels[0, row, column]).all()
            sizes.add((box[0].stop - box[0].start, box[1].stop - box[1].start))
    ((height, width),) = sizes
    assert height == width >= 30


@pytest.mark.parametrize(("count", "side"), [(1, 400), (4, 224), (16, 128)])
def test_pictures_hardly_larger_than_a_tile_keep_their_own_pixels(count: int, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 200, (count, side, side, 3), np.uint8)
    drawn = raster(Images("samples", noise, [""] * count, (0.0, 1.0)))
    for pixels in noise[0], noise[-1]:
        rows = np.lib.stride_tricks.sliding_window_view(drawn, (1, 8, 3))[..., 0, 0, :, :]
        starts = np.argwhere((rows == pixels[0, :8]).all(axis=(-2, -1)))
        assert len(starts) == 1
        top, left = starts[0]
        assert (drawn[top : top + side, left : left + side] == pixels).all()


def test_pictures_hardly_larger_than_a_tile_are_shrunk_to_it_where_they_do_not_fit() -> None:
    high = [14 * (side + 34 + 10) for side in (140, 112)]  # one under the other, with words and gaps
    assert high[0] > 2200 > high[1]
    assert _fit(14, (140, 140), 112, 208, extra_height=34).width == 112


def test_grey_pictures_are_grey_and_transparent_ones_show_their_ground() -> None:
    grey = raster(Images("filters/conv1", np.full((1, 2, 2, 1), 77, np.uint8), ["a"], (0.0, 1.0)))
    where(grey, (77, 77, 77))
    half = np.full((1, 2, 2, 4), 255, np.uint8)
    half[..., :3], half[..., 3] = (100, 0, 0), 51  # a fifth of it: 0.2 * 100 + 0.8 * 232
    where(raster(Images("filters/conv1", half, ["a"], (0.0, 1.0))), (206, 186, 186))


def test_a_grid_prefers_full_rows() -> None:
    assert shape_of_grid(64, 88, 928, 10) == (8, 8)
    assert shape_of_grid(7, 100, 928, 10) == (1, 7)
    assert shape_of_grid(1, 5000, 928, 10) == (1, 1)


def test_a_map_shows_each_value_in_its_colour_and_nan_in_its_own() -> None:
    drawn = raster(one_map([[[-1.0, 0.0], [1.0, np.nan]]], (-1.0, 1.0), "diverging"))
    cells = [colors.DIVERGING[0], colors.DIVERGING[127], colors.DIVERGING[254], colors.NAN]
    high, wide = 192, 192  # 384 pixels for one map, two cells each way
    for cell, color in enumerate(cells):
        same = (drawn == np.asarray(color)).all(axis=-1)
        assert same.sum() >= high * wide
        rows, columns = np.nonzero(same)
        assert (np.median(rows) > drawn.shape[0] / 2 + 20) == (cell >= 2)
        assert (np.median(columns) > 16 + wide) == (cell % 2 == 1)


def test_a_map_lies_beside_and_over_its_picture() -> None:
    over = np.zeros((1, 4, 4, 3), np.uint8)
    over[...] = (10, 200, 30)
    values = np.zeros((1, 4, 4), np.float32)
    values[0, 0, 0] = 1.0
    record = Heatmaps("saliency/gradient", values, ["example 0"], ["target 3"], (-1.0, 1.0), "diverging", over=over)
    drawn = raster(record)
    picture = where(drawn, (10, 200, 30))
    top, side = picture[0].start, picture[0].stop - picture[0].start
    left, pitch = picture[1].start, side + 2 + 4  # a frame of one pixel, a gap of four
    assert tuple(drawn[top, left + pitch]) == tuple(colors.DIVERGING[254])
    assert tuple(drawn[top, left + 2 * pitch]) == tuple(colors.DIVERGING[254])  # the strongest value hides the picture
    assert tuple(drawn[top + side - 1, left + pitch]) == tuple(colors.DIVERGING[127])
    red, green, blue = drawn[top + side - 1, left + 2 * pitch]
    assert red == green == blue  # no value: the picture in grey


@pytest.mark.parametrize(
    ("shape", "columns", "least"), [((224, 224), 2, 140), ((160, 160), 2, 140), ((64, 256), 3, 256), ((256, 64), 4, 64)]
)
def test_maps_of_large_pictures_use_the_width_of_the_page(shape: tuple[int, int], columns: int, least: int) -> None:
    over = np.full((8, *shape, 3), (10, 200, 30), np.uint8)
    record = Heatmaps(
        "saliency/gradient",
        np.ones((8, *shape), np.float32),
        [f"example {number}" for number in range(8)],
        ["target 3; predicted 3 (100%)"] * 8,
        (-1.0, 1.0),
        "diverging",
        over=over,
    )
    drawn = raster(record)
    green, red = ((drawn[80:] == np.array(color)).all(2) for color in ((10, 200, 30), tuple(colors.DIVERGING[254])))
    starts, stops = (np.flatnonzero(np.diff(green.any(0).astype(int), prepend=0, append=0) == way) for way in (1, -1))
    assert len(starts) == columns
    wide = stops - starts
    assert wide.min() >= least
    high = green.any(1).sum() / -(-8 // columns)
    assert abs(high * shape[1] / shape[0] / wide[0] - 1) < 0.02  # in proportion
    shares = red.sum() / green.sum()
    assert 1.9 < shares < 2.1  # the map, and the map over the input
    below = bool(red[:, starts[0]].any())
    assert below == (shape[1] > shape[0])  # beside their picture, or under one that is wide


def test_wide_maps_without_pictures_use_the_width_of_the_page() -> None:
    values, notes = np.ones((6, 32, 128), np.float32), ["target 3; predicted 3 (100%)"] * 6
    record = Heatmaps("saliency/gradient", values, ["example 0"] * 6, notes, (-1.0, 1.0), "diverging")
    red = (raster(record)[80:] == colors.DIVERGING[254]).all(2)
    assert red.any(0).sum() == 2 * 3 * 128
    assert red.any(1).sum() == 3 * 3 * 32


@pytest.mark.parametrize("shape", [(8, 8), (2, 40)], ids=["in a grid", "strips"])
def test_one_picture_of_several_maps_stands_once_before_them(shape: tuple[int, int]) -> None:
    over = np.full((1, *shape, 3), (10, 200, 30), np.uint8)
    maps = np.stack([np.full(shape, -1, np.float32), np.full(shape, 1, np.float32)])
    record = Heatmaps("feature_maps/0", maps, ["a", "b"], ["", ""], (-1.0, 1.0), "diverging", over=over)
    drawn = raster(record)
    picture = where(drawn, (10, 200, 30))
    first, last = where(drawn[80:], colors.DIVERGING[0]), where(drawn[80:], colors.DIVERGING[254])
    size = [each.stop - each.start for each in picture]
    assert [each.stop - each.start for each in first][1] == [each.stop - each.start for each in last][1] == size[1]
    at = [picture[0].start - 80, first[0].start, last[0].start], [picture[1].start, first[1].start, last[1].start]
    assert sorted(set(at[shape == (8, 8)])) == at[shape == (8, 8)]  # in this order, side by side or under each other
    assert len(set(at[shape != (8, 8)])) == 1


def test_a_map_has_its_title_over_it_and_its_note_under_it(said: Said) -> None:
    maps = Heatmaps("a/b", np.ones((2, 8, 8), np.float32), ["one", "two"], ["first note", "second note"], (0.0, 1.0))
    told = [text for text in words(said, maps) if text.endswith(("note", "one", "two"))]
    assert told == ["one", "first note", "two", "second note"]


def test_a_note_has_room_under_a_map_that_is_higher_than_wide(said: Said) -> None:
    note = "target class 0; predicted class 1 (52%, wrong)"
    maps = Heatmaps("saliency/gradcam", np.ones((8, 32, 16), np.float32), [""] * 8, [note] * 8, (0.0, 1.0))
    told = words(said, maps)
    assert not [text for text in told if "..." in text or "…" in text]
    assert [text for text in told if "target class 0" in text]


def test_a_map_of_rows_that_are_channels_is_not_smoothed_over_them() -> None:
    over = np.full((1, 96, 800, 1), 255, np.uint8)
    maps = np.zeros((1, 2, 200), np.float32)
    maps[0, 0], maps[0, 1] = 1.0, -1.0
    drawn = raster(Heatmaps("saliency/gradient", maps, ["a"], [""], (-1.0, 1.0), "diverging", over=over))
    drawn = drawn[90:]  # below the scale
    top, bottom = (where(drawn, colors.DIVERGING[end]) for end in (254, 0))
    panels = drawn[top[0].start : bottom[0].stop, top[1]]  # the map, and the map over the input
    assert len(panels) > 3 * (bottom[0].start - top[0].start)  # two rows of the map, and two over the input
    assert len(np.unique(panels.reshape(-1, 3), axis=0)) <= 5  # the two ends, a frame and what is between the panels


def test_notes_have_room_for_what_stands_last() -> None:
    """Whether a prediction is wrong, behind two names of ImageNet's."""
    name, maps = "soft-coated wheaten terrier", np.ones((8, 8, 8), np.float32)
    right, wrong = (
        Heatmaps("saliency/gradient", maps, [""] * 8, [f"target {name}; predicted {name} (57%{said})"] * 8, (-1, 1))
        for said in ("", ", wrong")
    )
    assert raster(right).shape != raster(wrong).shape or (raster(right) != raster(wrong)).any()


@pytest.mark.parametrize("newline", ["\n", "Ċ"])
def test_a_row_of_tokens_is_text_on_the_colours_of_its_values(newline: str) -> None:
    tokens = ["the", "Ġcat", newline, "sat"]
    record = Heatmaps(
        "saliency/gradient", np.array([[[-1.0, 0.0, 0.5, 1.0]]], np.float32), ["example 0"], [""], (-1.0, 1.0),
        "diverging", column_labels=[tokens],
    )  # fmt: skip
    drawn = raster(record)[90:]  # below the colour bar
    first, last = where(drawn, colors.DIVERGING[0]), where(drawn, colors.DIVERGING[254])
    assert first[0].stop - first[0].start == last[0].stop - last[0].start >= 16
    assert last[0].start > first[0].stop  # "sat" stands on a line of its own, after the newline
    assert last[1].start == first[1].start


def test_attention_draws_a_weight_by_its_square_root_on_one_scale() -> None:
    weights = np.zeros((1, 1, 2, 2), np.float32)
    weights[0, 0] = [[1.0, 0.0], [0.25, 0.75]]
    drawn = raster(Attention("attention/0", weights, [0], [0], [["a", "b"]], [["a", "b"]]))
    for weight in (0.0, 0.25, 1.0):
        box = where(drawn[110:], colors.SEQUENTIAL[round(np.sqrt(weight) * 254)])
        assert box[0].stop - box[0].start == box[1].stop - box[1].start >= 20


def test_attention_over_many_tokens_is_not_all_dark() -> None:
    alike, tokens = np.full((1, 2, 100, 100), 0.01, np.float32), [str(i) for i in range(100)]
    alike[0, 1, :, 3] = 0.2
    assert colors.attention_top(alike) == pytest.approx(0.2)
    drawn = raster(Attention("attention/0", alike, [0], [0, 1], [tokens], [tokens]))
    for weight in (0.01, 0.2):  # by its square root, as ever
        where(drawn[110:], colors.SEQUENTIAL[round(np.sqrt(weight / 0.2) * 254)])
    causal = np.tril(np.ones((1, 1, 100, 100))) / np.arange(1, 101)[:, None]
    assert colors.attention_top(causal) == pytest.approx(0.04)
    for most, top in ((0.4, 0.4), (0.6, 1.0)):
        assert colors.attention_top(np.where(np.eye(20), most, (1 - most) / 19)[None, None]) == pytest.approx(top)
    assert colors.attention_top(np.eye(4)[None, None]) == colors.attention_top(np.full((1, 1, 2, 2), np.nan)) == 1.0


def test_numbers_under_a_colour_bar_do_not_touch() -> None:
    def bar(**names: str) -> np.ndarray:
        at = {"low": 0.0, "tenth": 0.1, "half": 0.5, "high": 1.0}
        return np.asarray(ramp(np.zeros((240, 3)), {at[name]: text for name, text in names.items()}))[15:]

    ends, between = {"low": "0", "high": "0.0312"}, {"half": "0.0156"}
    assert (bar(**ends, **between, tenth="0.01") != bar(**ends, **between)).any()
    assert (bar(**ends, **between, tenth="0.000313") == bar(**ends, **between)).all()
    assert (bar(**ends, **between) != bar(**ends)).any()


def test_attention_that_is_all_alike_is_of_the_middle_colour() -> None:
    alike, tokens = np.full((1, 1, 32, 32), 1 / 32, np.float32), [str(i) for i in range(32)]
    where(raster(Attention("attention/0", alike, [0], [0], [tokens], [tokens]))[110:], colors.SEQUENTIAL[127])


def test_pictures_say_their_size_their_norms_and_their_scale(said: Said) -> None:
    pixels = np.zeros((2, 3, 5, 1), np.uint8)
    shown = words(said, Images("filters/a", pixels, ["first", "second"], (-0.5, 2.0), norms=np.array([1.5, 2.5])))
    assert "2 images of 3 x 5" in shown
    told = [text for text in shown if text.startswith(("first", "second", "norm"))]
    assert told == ["first", "norm 1.5", "second", "norm 2.5"]
    at = {text: x for text, x, _ in said}
    assert at["-0.5"] < at["2"]


def test_a_picture_that_is_shrunk_is_averaged() -> None:
    board = np.where((np.indices((768, 768)).sum(0) % 2)[..., None], (200, 0, 40), (0, 0, 40)).astype(np.uint8)
    rows, columns = where(raster(Images("a/b", board[None], [""], (0.0, 1.0))), (100, 0, 40))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (384, 384)


def test_attention_calls_heads_examples_and_tokens_by_their_own_names(said: Said) -> None:
    weights = np.full((2, 2, 2, 3), 1 / 3, np.float32)
    queries, keys = [["qa", "qb"], ["qc", "qd"]], [["ka", "kb", "kc"], ["kd", "ke", "kf"]]
    shown = words(said, Attention("attention/0", weights, [4, 9], [3, 7], queries, keys))
    named = [text for text in shown if text.startswith(("head ", "example "))]
    assert named == ["head 3", "head 7", "example 4", "head 3", "head 7", "example 9"]
    assert [text for text in shown if text[0] in "qk" and len(text) == 2] == [*"qa qb ka kb kc qc qd kd ke kf".split()]


def test_the_colour_bar_of_attention_goes_by_square_roots(said: Said) -> None:
    tokens = [str(i) for i in range(100)]
    one, spread = np.eye(100)[None, None], np.full((1, 1, 100, 100), 0.01)
    spread[0, 0, 0] = np.eye(100)[0]
    shown = words(said, Attention("attention/0", one, [0], [0], [tokens], [tokens]))
    ends = {text: (left, left + typeset.measure(text)) for text, left, top in said if top == 14}
    low, high = ends["0"][0], ends["1"][1]
    for text in ("0.1", "0.25", "0.5"):
        assert (sum(ends[text]) / 2 - low) / (high - low) == pytest.approx(np.sqrt(float(text)), abs=0.01)
    assert not [text for text in shown if "or more" in text]
    assert "0.04 or more" in words(said, Attention("attention/0", spread, [0], [0], [tokens], [tokens]))
    shown = " ".join(words(said, attention_of(1, 3000, ["a"]), width=240))
    assert re.search(r"; the first [\d,]+ of 3,000 heads are drawn", shown)


def test_how_much_lies_beyond_the_scale_of_a_map_is_said(said: Said) -> None:
    shown = " ".join(words(said, one_map([[[-3.0, 0.0, 0.5, 1.0, 3.0]]], (-1.0, 1.0), "diverging")))
    assert "40% of the values lie beyond the scale and take its end colours" in shown


def test_over_a_picture_nothing_is_grey_and_nan_keeps_its_colour() -> None:
    over, values = np.full((1, 4, 4, 3), (10, 200, 30), np.uint8), np.zeros((1, 4, 4), np.float32)
    values[0, 0, 0], values[0, 3, 3] = 1.0, np.nan
    drawn = raster(Heatmaps("saliency/gradcam", values, ["a"], [""], (0.0, 1.0), "sequential", over=over))
    picture = where(drawn, (10, 200, 30))
    top, side = picture[0].start, picture[0].stop - picture[0].start
    left = picture[1].start + 2 * (side + 2 + 4)  # a frame of one pixel, a gap of four
    assert tuple(drawn[top, left]) == tuple(colors.SEQUENTIAL[254])
    assert tuple(drawn[top + side - 1, left + side - 1]) == colors.NAN
    assert len(set(drawn[top + side - 1, left])) == 1


def test_a_coarse_map_is_smooth_over_its_picture_alone() -> None:
    over = np.full((1, 64, 64, 3), (10, 200, 30), np.uint8)
    values = np.array([[[0.3, 0.5], [0.7, 1.0]]], np.float32)
    drawn = raster(Heatmaps("saliency/gradcam", values, ["a"], [""], (0.0, 1.0), "sequential", over=over))
    rows, columns = where(drawn, (10, 200, 30))
    pitch, wide = columns.stop - columns.start + 2 + 4, columns.stop - columns.start
    alone, laid_over = (
        np.unique(drawn[rows, columns.start + shift : columns.start + shift + wide].reshape(-1, 3), axis=0)
        for shift in (pitch, 2 * pitch)
    )
    assert len(alone) == 4
    assert len(laid_over) > 50


def test_rows_and_columns_of_a_map_have_their_names_in_order(said: Said) -> None:
    names = ["top", "middle", "bottom"], ["left", "centre", "right"]
    values = np.ones((1, 3, 3), np.float32)
    record = Heatmaps("a/b", values, [""], [""], (0.0, 1.0), row_labels=names[:1], column_labels=names[1:])
    shown = words(said, record)
    assert [text for text in shown if text in names[0]] == names[0]
    assert [text for text in shown if text in names[1]] == names[1]
    tops = [top for text, _, top in said if text in names[0]]
    assert np.diff(tops).min() > 50
    assert np.ptp(np.diff(tops)) <= 2


def test_what_has_no_room_is_counted(said: Said) -> None:
    tokens = words(said, EXTREMES["20,000 tokens"])
    assert f"… and {20_000 - tokens.count('word'):,} more tokens" in tokens
    maps = Heatmaps("a/b", np.ones((2000, 3, 3), np.float32), [""] * 2000, [""] * 2000, (0.0, 1.0))
    assert any(re.fullmatch(r"the first [\d,]+ of 2,000 are drawn", text) for text in words(said, maps, width=240))
    notes = Heatmaps("a/b", np.ones((1, 1, 2), np.float32), ["a"], ["my note"], (0, 1), column_labels=[["x", "y"]])
    assert "my note" in words(said, notes)


# Charts


def test_ticks_stand_beside_what_they_name(said: Said) -> None:
    red, blue = (200, 0, 0), (0, 0, 200)

    def paint(canvas: Image.Image, place: Any) -> None:
        (x, y), draw = place([3.0], [20.0])[0], ImageDraw.Draw(canvas)
        draw.rectangle((0, y - 7, canvas.width, y + 7), fill=red)
        draw.rectangle((x - 7, 0, x + 7, canvas.height), fill=blue)

    names = names_as_ticks(np.array([0, 1, 3]), ["zero", "one", "three"])
    x, y = Axis(0.0, 4.0), Axis(0.0, 90.0)
    drawn = np.asarray(chart((400, 300), x, y, paint, x_label="across", y_label="up", x_ticks=names))
    at = {text: (x, top) for text, x, top in said}
    assert list(at) == ["0", "20", "40", "60", "80", "zero", "one", "three", "across", "up"]
    rows, columns = where(drawn, red)[0], where(drawn, blue)[1]
    assert at["20"][1] + typeset.line_height() / 2 == pytest.approx((rows.start + rows.stop) / 2, abs=1)
    assert at["three"][0] == pytest.approx((columns.start + columns.stop) / 2, abs=1)
    assert at["up"] == (0, 0)  # on a strip of its own, which is turned
    assert at["across"][1] > at["zero"][1]
    left, top, _, height = plot_of(drawn)
    lines = [top + height * (1 - value / 90) for value in (80, 60, 40)]
    grid = top + np.flatnonzero((drawn[top : top + height - 3, left + 12] < 250).all(axis=-1))
    assert all(np.abs(grid - line).min() <= 1 for line in lines)
    assert all(row in range(rows.start - 1, rows.stop + 1) or np.abs(row - lines).min() <= 1.5 for row in grid)


def test_numbers_along_an_axis_reach_its_ends(said: Said) -> None:
    chart((400, 300), Axis(0.0, 4.0), Axis(0.0, 1.0), lambda canvas, place: None)
    assert [text for text, _, top in said if "." not in text] == ["0", "1", "2", "3", "4"]


def test_upright_names_are_thinned_out_until_they_do_not_touch(said: Said) -> None:
    names = [f"layer.{i}.weight" for i in range(1000)]
    shown = words(said, Curves("a/b", np.arange(1000), {"a": np.ones(1000)}, "layer", "norm", names))
    kept = [text for text in shown if text.endswith(".weight")]
    assert 20 <= len(kept) <= 928 / typeset.line_height()
    assert kept[0] == names[0]


def test_an_axis_has_some_room_around_its_values() -> None:
    assert Axis.around(np.array([0.0, 10.0])) == Axis(-0.4, 10.4)
    assert Axis.around(np.full(3, 50.0)) == Axis(45.0, 55.0)
    assert Axis.around(np.array([0.0])) == Axis(-1.0, 1.0)


def test_lines_start_at_zero_where_they_come_near_it_or_never_change() -> None:
    for values in ([1.0, 5.0], [5.0, 5.0]):
        assert -0.2 < Axis.of_heights(np.array(values)).low < 0
    assert Axis.of_heights(np.array([4.0, 5.0])).low > 3.9
    assert Axis.of_heights(np.array([-1.0, 5.0])).low < -1


def test_bars_of_unequal_width_are_as_high_as_their_values_are_dense(said: Said) -> None:
    drawn = raster(histogram_of(np.arange(15.0), edges=np.array([0.0, 1.0, 4.0]), counts=np.array([6, 9])))
    left, _, width, _ = plot_of(drawn)
    blue = (drawn == np.asarray(colors.CLASSES[0])).all(axis=-1)
    first, second = (int(np.ptp(np.flatnonzero(blue[:, left + int(width * share)]))) for share in (0.1, 0.6))
    assert first == pytest.approx(2 * second, rel=0.1)  # 6 a unit, and 9 over three units
    assert "elements per unit (bins differ in width)" in [text for text, _, _ in said]


def test_a_bar_that_is_cut_off_is_said_with_its_count_and_range(said: Said) -> None:
    edges = np.arange(5.0) / 2
    spike = histogram_of(np.zeros(94), edges=edges, counts=np.array([5, 70, 9, 10]))
    assert "bar cut off: 70 elements from 0.5 to 1" in words(said, spike)
    high = histogram_of(np.zeros(79), edges=edges, counts=np.array([5, 55, 9, 10]))
    assert not [text for text in words(said, high) if "cut off" in text]


def test_the_band_under_a_histogram_holds_the_middle_90_percent() -> None:
    quantiles = dict(zip(QUANTILES, (0.5, 1.0, 2.0, 3.0, 6.0, 8.0, 9.5), strict=True))
    drawn = raster(histogram_of(np.linspace(0, 10, 1000), quantiles=quantiles))
    left, top, width, height = plot_of(drawn)
    foot = drawn[top + height - 6 : top + height - 1]
    line = where(foot, typeset.INK)[1]
    assert (line.start + line.stop) / 2 == pytest.approx(left + 0.3 * width, abs=2)
    band = where(foot, (197, 206, 216))[1]
    assert (band.start, band.stop) == pytest.approx((left + 0.1 * width, left + 0.8 * width), abs=2)


def test_the_figures_of_a_histogram_are_those_of_its_record(said: Said) -> None:
    record = histogram_of(
        np.zeros(175), edges=np.linspace(-3, 4, 6), counts=np.full(5, 35), count=200, zeros=30, nans=20, pos_infs=5,
        min=-3.0, max=4.0, mean=1.5, std=0.5,
        quantiles=dict(zip(QUANTILES, (-2.9, -2.0, -1.0, 0.25, 1.0, 3.0, 3.9), strict=True)),
    )  # fmt: skip
    shown = words(said, record)
    expected = {
        "mean": "1.5", "std": "0.5", "min": "-3", "max": "4", "5% quantile": "-2", "median": "0.25",
        "95% quantile": "3", "elements": "200", "zeros": "30 (15%)", "NaN": "20 (10%)", "+inf": "5 (2.5%)", "-inf": "0",
    }  # fmt: skip
    assert {name: shown[shown.index(name) + 1] for name in expected} == expected
    where(raster(record), typeset.WARNING)
    assert not (raster(histogram_of(np.arange(100.0))) == np.asarray(typeset.WARNING)).all(axis=-1).any()


@pytest.mark.parametrize("axis", ["x", "y"])
def test_on_a_logarithmic_axis_powers_of_ten_stand_at_even_distances(axis: str) -> None:
    even, powers = np.array([1.0, 2.0, 3.0]), np.array([1.0, 100.0, 10000.0])
    x, y = (powers, even) if axis == "x" else (even, powers)
    drawn = raster(Curves("a/b", x, {"a": y}, "x", "y", log_x=axis == "x", log_y=axis == "y"))
    rows, columns = where(drawn, colors.CLASSES[0])
    middle = (columns.start + columns.stop) // 2
    dot = where(drawn[:, middle - 2 : middle + 2], colors.CLASSES[0])[0]
    assert (dot.start + dot.stop) / 2 == pytest.approx((rows.start + rows.stop) / 2, abs=3)


def test_what_a_line_leaves_out_is_counted(said: Said) -> None:
    y = np.array([1.0, np.nan, np.inf, -np.inf, 0.0, -1.0, -2.0, 10.0])
    shown = words(said, Curves("a/b", np.arange(8), {"a": y}, "x", "y", log_y=True))
    assert "not drawn: 1 NaN, 2 infinite, 3 zero or negative (the axis is logarithmic)" in shown
    assert "not drawn: 1 NaN, 2 infinite" in words(said, Curves("a/b", np.arange(8), {"a": y}, "x", "y"))
    named = Curves("a/b", np.arange(2), {"a": np.array([1.0, np.nan])}, "x", "y", ["one", "two"])
    assert not [text for text in words(said, named) if "not drawn" in text]  # there is nothing of that name


def test_names_lose_the_dotted_beginning_that_all_share() -> None:
    assert plots.shared_start(["encoder.layer.0.a", "encoder.layer.0.b", "encoder.layer.01"]) == "encoder.layer."
    assert plots.shared_start(["encoder.0", "encoder.1"]) == "encoder."
    assert plots.shared_start(["a.0", "a.1"]) == ""  # too short to be worth a word
    assert plots.shared_start(["encoder.0"]) == plots.shared_start([]) == ""


def test_a_legend_shows_each_line_in_its_colour_and_counts_those_it_leaves_out(said: Said) -> None:
    def lines(number: int) -> Curves:
        return Curves("a/b", np.arange(3), {f"line {i}": np.full(3, float(i)) for i in range(number)}, "x", "y")

    drawn = raster(lines(2))
    above = drawn[: plot_of(drawn)[1] - 1]
    assert where(above, colors.CLASSES[0])[1].stop < where(above, colors.CLASSES[1])[1].start
    shown = words(said, lines(30))
    assert [text for text in shown if text.startswith("line ")] == [f"line {i}" for i in range(24)]
    assert "and 6 more" in shown


def test_an_embedding_says_how_many_points_of_how_many_dimensions_and_its_scores(said: Said) -> None:
    xy = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, np.nan], [3.0, 0.0], [4.0, 1.0]])
    record = embedding_of(5, 2, labels=np.array([0, 1, -1, 0, 1]), layouts={"PCA": xy}, layouts_3d={})
    shown = words(said, record)
    assert "5 points of 3 dimensions" in shown
    assert "silhouette: 0.5" in shown
    assert [text for text in shown if "class" in text] == ["no class", "class 0", "class 1"]
    assert "not drawn: 1 points that are not finite" in shown


def test_a_quantity_colours_the_points_from_its_lowest_to_its_highest_value(said: Said) -> None:
    xy = np.column_stack([np.arange(5.0), np.zeros(5)])
    record = embedding_of(
        5, 2, labels=np.array([2.5, -1.0, np.nan, 1.0, 6.0]), class_names=["target"], layouts={"PCA": xy}, layouts_3d={}
    )
    shown = words(said, record)
    assert "target" in shown
    assert {"-0.88 or less", "5.79 or more", "none (1)"} <= set(shown)  # numpy.quantile of 2% and of 98%
    assert not [text for text in shown if "class" in text]
    drawn = raster(record)[120:]
    lowest, highest = (where(drawn, colors.QUANTITY[at])[1] for at in (0, -1))
    none = where(drawn, colors.NO_CLASS)[1]
    assert lowest.stop < none.start < none.stop < highest.start
    assert len({tuple(color) for color in colors.point_colors(record.labels)[0].tolist()}) == 5


def test_of_a_quantity_that_no_point_has_no_values_are_said(said: Said) -> None:
    record = embedding_of(5, 2, labels=np.full(5, np.nan), class_names=["target"])
    shown = words(said, record)
    assert "none (5)" in shown
    assert not {"target", "0", "1"} & set(shown)


def test_one_value_of_a_quantity_has_the_colour_of_the_middle() -> None:
    found, limits = colors.point_colors(np.full(3, 4.0))
    assert limits == (4.0, 4.0)
    assert (found == colors.QUANTITY[round((len(colors.QUANTITY) - 1) / 2)]).all()
    none, _ = colors.point_colors(np.full(2, np.nan))
    assert (none == np.array(colors.NO_CLASS)).all()


def test_both_axes_of_an_embedding_have_one_scale() -> None:
    xy = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 2.0]])
    drawn = raster(embedding_of(3, 3, layouts={"PCA": xy}, layouts_3d={}))[110:]
    corner, right, up = (where(drawn, colors.CLASSES[i]) for i in range(3))
    assert (right[1].start - corner[1].start) / (corner[0].start - up[0].start) == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("shades", [[(200, 1, 1), (1, 1, 200)], [(61,), (201,)]], ids=["colour", "grey"])
def test_thumbnails_stand_at_their_points_in_frames_of_the_colour_of_their_class(shades: list[tuple[int, ...]]) -> None:
    thumbnails = np.zeros((2, 4, 4, len(shades[0])), np.uint8)
    thumbnails[0], thumbnails[1] = shades
    xy = np.array([[0.0, 0.0], [1.0, 1.0]])
    drawn = raster(embedding_of(2, 2, layouts={"PCA": xy}, layouts_3d={}, thumbnails=thumbnails))[110:]
    first, second = boxes = [where(drawn, color) for color in thumbnails[:, 0, 0]]
    assert first[1].stop < second[1].start
    assert first[0].start > second[0].stop
    for number, (rows, columns) in enumerate(boxes):
        assert (drawn[rows.start - 2, columns] == np.asarray(colors.CLASSES[number])).all()


def test_classes_of_one_colour_have_markers_of_other_shapes() -> None:
    xy, drawn = np.zeros((1, 2)), []
    for label in (0, 10, 20, 30, 40):
        record = embedding_of(
            1, 1, labels=np.array([label]), class_names=["x"] * 50, layouts={"PCA": xy}, layouts_3d={}
        )
        drawn.append(raster(record).tobytes())
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


def test_a_line_that_others_would_hide_stands_out_beside_them() -> None:
    ys = {"weights": np.ones(8), "gradients": np.ones(8), "activations": np.ones(8)}
    drawn = raster(Curves("health/nonfinite", np.arange(8), ys, "layer", "share"))
    for number in range(3):
        assert (drawn[60:] == np.asarray(colors.CLASSES[number])).all(axis=-1).sum() > 500


def test_the_highest_bar_is_where_the_most_values_are() -> None:
    values = np.concatenate([np.zeros(10), np.linspace(0.9, 1.0, 60), np.linspace(-1, 1, 40)])
    drawn = raster(histogram_of(values))
    blue = (drawn == np.asarray(colors.CLASSES[0])).all(axis=-1)
    rows, columns = np.nonzero(blue)
    peak = columns[rows == rows.min()].mean()
    assert peak > 0.9 * columns.max()


def test_that_every_value_is_zero_is_said_in_words() -> None:
    """A line along the frame looks like none, and a dark map like one that was forgotten."""
    zeros, one = np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0])
    plain, told = (raster(Curves("health/x", np.arange(4), {"a": y}, "x", "y")) for y in (one, zeros))
    assert len(told) > len(plain)
    nothing = raster(Curves("health/x", np.arange(4), {"a": zeros * np.nan}, "x", "y", list("abcd")))
    assert len(nothing) <= len(plain)

    def header(values: np.ndarray) -> int:
        """How far the words over the maps go to the right."""
        record = Heatmaps("saliency/gradcam", values.reshape(1, 2, 2).astype(np.float32), ["a"], [""], (0.0, 1.0))
        return int(np.nonzero((raster(record)[45:75] < 200).any(axis=(0, 2)))[0].max())

    assert header(zeros) > header(one) + 60


def test_a_line_has_gaps_where_values_are_nan() -> None:
    y = np.ones(100)
    y[40:60] = np.nan
    drawn = raster(Curves("health/x", np.arange(100), {"a": y}, "x", "y"))
    columns = np.unique(np.nonzero((drawn == np.asarray(colors.CLASSES[0])).all(axis=-1))[1])
    steps = np.diff(columns)
    gap = steps.max()
    assert (steps > 1).sum() == 1
    assert gap == pytest.approx(21 / 99 * (columns[-1] - columns[0]), abs=4)


@pytest.mark.parametrize("values", [[0.0, 0.5], [0.0, 0.0], [0.0, 1e-9], [0.1, 1e300]])
def test_a_line_along_zero_is_not_half_covered_by_the_frame(values: list[float]) -> None:
    axis = Axis.of_heights(np.array(values))
    assert 0.02 < axis.place(0.0) < 0.04
    assert axis.ticks(6)[0][0] == 0


def test_ticks_are_round_and_lie_within_the_axis() -> None:
    assert [name for _, name in Axis(0.0, 1.0).ticks(5)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [name for _, name in Axis(1e-3, 1e3, log=True).ticks(7)] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
    ]
    assert [name for _, name in Axis(0.9, 6.0, log=True).ticks(7)] == ["1", "2", "5"]
    assert [name for _, name in Axis(1.0, 1e3, log=True).ticks(7)] == ["1", "10", "100", "1,000"]
    assert [name for _, name in Axis(0.0, 1.0).ticks(4)] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    for low, high in ((-3.7, 12.1), (1e-9, 2e-9), (1e12, 1.5e12), (1000.0, 1000.01), (-1.7e308, 1.7e308)):
        assert Axis(low, high).place([low, low / 2 + high / 2, high]).tolist() == pytest.approx([0.0, 0.5, 1.0])
        ticks = Axis(low, high).ticks(6)
        assert 2 <= len(ticks) <= 8
        assert all(
            low <= value <= high and float(name.replace(",", "")) == pytest.approx(value) for value, name in ticks
        )


@pytest.mark.parametrize("value", [3.615960232016773, 8.44557927891468e188, 1.0])
def test_an_axis_of_neighbouring_floats_can_be_drawn(value: float) -> None:
    axis = Axis.around(np.array([value, np.nextafter(value, np.inf)]))
    assert axis.low <= value < axis.high
    for most in range(2, 10):
        assert [tick for tick, _ in axis.ticks(most)] == pytest.approx([value] * len(axis.ticks(most)))


def test_points_of_a_class_are_drawn_in_its_colour() -> None:
    xy = np.array([[0.0, 0.0], [1.0, 1.0]])
    record = embedding_of(2, 2, layouts={"PCA": xy}, layouts_3d={})
    drawn = raster(record)[110:]
    first, second = where(drawn, colors.CLASSES[0]), where(drawn, colors.CLASSES[1])
    assert first[1].stop < second[1].start  # to the left
    assert first[0].start > second[0].stop  # and below


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_goes_as_far_as_floats_do(*, log: bool) -> None:
    values = np.array([1e-300 if log else -1.7e308, 1e300, 1.7e308])
    axis = Axis.around(values, log=log)
    assert axis.low <= values[0] * 0.9
    assert 1.5e308 < axis.high < np.inf
    places = axis.place(values)
    assert np.diff(places).min() > 0
    assert places.max() < 1.05


def test_a_legend_holds_the_classes_that_occur_and_no_others() -> None:
    """However large their numbers are: they may be ids."""
    few, many = (embedding_of(3, 3, labels=np.array(labels), class_names=()) for labels in ([0, 1, 2], [7, 8, 10**5]))
    drawn = raster(many)
    assert drawn.shape == raster(few).shape  # one line
    for label in (7, 8, 10**5):
        assert where(drawn[:110], colors.class_color(label))[1].start > 0


def test_the_first_labels_of_a_map_are_not_cut() -> None:
    """Where cells are smaller than a line, the first and the last name end where the map does."""
    record = attention_of(1, 1, [f"token {i}" for i in range(300)])
    for pixels in (300, 301, 450, 90):
        centres = [centre for _, centre in _readable(record.query_tokens[0], 300, pixels)]
        assert centres[0] == _LEAST_LABEL / 2
        assert centres[-1] <= pixels - _LEAST_LABEL / 2
        assert np.diff(centres).min() >= _LEAST_LABEL
    assert [centre for _, centre in _readable("abc", 3, 60)] == [10, 30, 50]


def test_a_surface_is_darkest_at_its_minimum_and_its_y_axis_points_up() -> None:
    x, y = np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)
    z = (x[None] + 0.5) ** 2 + (y[:, None] - 0.5) ** 2
    drawn = raster(Surface("landscape/loss", x, y, z, None, "a", "b", "loss"))[100:]
    box = where(drawn, colors.SEQUENTIAL[0])
    height, width = drawn.shape[:2]
    assert (box[1].start + box[1].stop) / 2 < 0.5 * width
    assert (box[0].start + box[0].stop) / 2 < 0.5 * height


def test_a_surface_is_the_same_whichever_way_its_axes_are_given() -> None:
    x, y = np.linspace(-1, 1, 7), np.linspace(0, 3, 5)
    z = x[None] + 3 * y[:, None]
    straight = Surface("a/b", x, y, z, None, "a", "b", "loss")
    turned = Surface("a/b", x[::-1], y[::-1], z[::-1, ::-1], None, "a", "b", "loss")
    assert np.array_equal(raster(straight), raster(turned))


def test_the_path_on_a_surface_goes_from_the_ring_to_the_dot() -> None:
    x, y = np.linspace(-1, 1, 3), np.linspace(0, 4, 3)
    path = np.array([[-0.5, 1.0], [0.5, 1.0], [0.5, 3.0]])
    drawn = raster(Surface("a/b", x, y, np.add.outer(y, x), path, "a", "b", "loss"))
    left, top, width, height = plot_of(drawn)

    def at(px: float, py: float) -> tuple[int, ...]:
        """The pixel there: whole cells stand around the first and the last value, of -1.5 to 1.5 and of -1 to 5."""
        return tuple(drawn[round(top + height * (1 - (py + 1) / 6)), round(left + width * (px + 1.5) / 3)].tolist())

    assert at(*path[0]) == typeset.PAPER  # in the ring
    assert at(*path[-1]) == at(0.0, 1.0) == at(0.5, 2.0) == plots._PATH


def test_a_surface_says_its_range_and_its_axes(said: Said) -> None:
    z = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 90.0]])
    shown = words(said, Surface("a/b", np.arange(3.0), np.arange(2.0), z, None, "across", "up", "loss"))
    at = {text: (x, top) for text, x, top in said}
    assert at["1"][0] < at["90"][0]
    assert at["up"] == (0, 0)  # on a strip of its own, which is turned
    assert at["across"] != (0, 0)
    assert "loss" in shown
    shown = words(said, Surface("a/b", np.arange(3.0), np.arange(2.0), z * z, None, "a", "b", "loss"))
    assert "loss, logarithmic colours" in shown


def test_a_number_that_is_not_finite_alarms() -> None:
    where(raster(Scalar("a/b", np.nan)), typeset.WARNING)
    assert not (raster(Scalar("a/b", 1.0)) == np.asarray(typeset.WARNING)).all(axis=-1).any()


def test_what_is_not_finite_on_a_surface_is_not_drawn_as_high() -> None:
    z = np.array([[1.0, 2.0, np.inf]] * 3)
    drawn = raster(Surface("landscape/loss", np.arange(3.0), np.arange(3.0), z, None, "a", "b", "loss"))[100:]
    high, missing = where(drawn, colors.SEQUENTIAL[254]), where(drawn, colors.NAN)
    assert high[1].stop <= missing[1].start + 1
    assert missing[1].stop - missing[1].start > 100


# Extremes: drawn, and within bounds


NAN_HISTOGRAM = {
    "edges": np.array([0.0, 1.0]), "counts": np.array([0]), "count": 5, "zeros": 0, "nans": 5,
    "min": np.nan, "max": np.nan, "mean": np.nan, "std": np.nan, "quantiles": {},
}  # fmt: skip
ODD_TOKENS = ["", " ", "\n", "\t", "\x00", "中文", "é", "🙂", "a" * 5000, "<b>&amp;</b>", "\u202e", "e\u0301"]
EXTREMES: dict[str, Record] = {
    "1x1 image": Images("a/b", np.zeros((1, 1, 1, 1), np.uint8), [""], (0.0, 0.0)),
    "a thread": Images("a/b", np.zeros((2, 1, 3000, 3), np.uint8), ["", ""], (0.0, 1.0)),
    "a large photograph": Images("a/b", np.zeros((1, 3000, 2000, 3), np.uint8), ["x"], (0.0, 1.0)),
    "500 tiles": solid_images(500, 8)[0],
    "20,000 tiles": Images("a/b", np.zeros((20000, 3, 3, 1), np.uint8), ["t"] * 20000, (0.0, 1.0)),
    "huge titles": Images("a/b", np.zeros((3, 8, 8, 1), np.uint8), ["word " * 400, "x" * 9000, "a\nb\tc"], (0.0, 1.0)),
    "limits that are not finite": Images("a/b", np.zeros((1, 2, 2, 1), np.uint8), ["a"], (np.nan, np.inf)),
    "all-NaN map": one_map(np.full((1, 4, 4), np.nan), (np.nan, np.nan), "sequential"),
    "constant map": one_map(np.full((1, 4, 4), 3.0), (3.0, 3.0), "diverging"),
    "infinite map": one_map(np.full((1, 4, 4), np.inf), (-np.inf, np.inf), "diverging"),
    "1x1 map": one_map(np.zeros((1, 1, 1)), (0.0, 1.0), "sequential"),
    "odd tokens": Heatmaps(
        "a/b", np.zeros((2, 1, 12), np.float32), ["", ""], ["", ""], (-1.0, 1.0), "diverging", None, [ODD_TOKENS] * 2
    ),
    "missing labels": Heatmaps("a/b", np.zeros((1, 1, 5), np.float32), [""], [""], (0.0, 1.0), column_labels=[["a"]]),
    "20,000 tokens": Heatmaps(
        "a/b", np.zeros((1, 1, 20000), np.float32), [""], [""], (0.0, 1.0), column_labels=[["word"] * 20000]
    ),
    "long row names": Heatmaps(
        "a/b", np.zeros((1, 40, 3), np.float32), [""], [""], (0.0, 1.0), row_labels=[["n" * 300] * 40],
        column_labels=[["m" * 300] * 3],
    ),
    "attention to odd tokens": attention_of(1, 2, ODD_TOKENS),
    "attention of one token": attention_of(1, 1, ["a"]),
    "attention of 200 heads": attention_of(2, 200, ["a", "b"]),
    "attention of 300 tokens": attention_of(1, 3, ["tok"] * 300),
    "cross attention": Attention("a/b", np.ones((1, 2, 1, 40), np.float32), [0], [0, 1], [["q"]], [["k"] * 40]),
    "2,000 points of 200 classes": embedding_of(2000, 200),
    "one point": embedding_of(1, 1),
    "points that are all equal": embedding_of(5, 2, layouts={"PCA": np.zeros((5, 2))}),
    "points that are not finite": embedding_of(5, 2, layouts={"PCA": np.full((5, 2), np.nan)}),
    "points of a quantity": embedding_of(40, 2, labels=np.linspace(0, 1, 40)),
    "points without classes": embedding_of(5, 2, labels=np.full(5, -1), class_names=[]),
    "no layout": embedding_of(5, 2, layouts={}, layouts_3d={}),
    "1,000 layers": Curves(
        "a/b", np.arange(1000), {"a": np.ones(1000)}, "layer", "norm", [f"layer.{i}.weight" for i in range(1000)]
    ),
    "1,000 curves": Curves("a/b", np.arange(5), {f"curve {i}": np.full(5, float(i)) for i in range(1000)}, "x", "y"),
    "no curve": Curves("a/b", np.arange(5), {}, "x", "y"),
    "one point of a curve": Curves("a/b", np.array([3.0]), {"a": np.array([2.0])}, "x", "y", ["name"]),
    "nothing to draw on a log axis": Curves(
        "a/b", np.arange(4) - 5, {"a": np.array([np.nan, -1.0, 0.0, np.inf])}, "x", "y", log_x=True, log_y=True
    ),
    "the largest floats": Curves("a/b", np.arange(2), {"a": np.array([-1.7e308, 1.7e308])}, "x", "y"),
    "the smallest floats": Curves("a/b", np.arange(2), {"a": np.array([5e-324, 1e308])}, "x", "y", log_y=True),
    "a flat surface": Surface("a/b", np.zeros(1), np.zeros(1), np.zeros((1, 1)), None, "", "", ""),
    "a surface of NaN": Surface("a/b", np.arange(3.0), np.arange(3.0), np.full((3, 3), np.nan), None, "", "", ""),
    "a surface with holes": Surface(
        "a/b", np.arange(3.0), np.arange(3.0), np.array([[1, 2, np.inf]] * 3), np.full((1, 2), np.nan), "x", "y", "z"
    ),
    "a histogram of NaN": histogram_of(np.zeros(5), **NAN_HISTOGRAM),
    "a histogram of one value": histogram_of(np.full(9, 3.0)),
    "a histogram of huge values": histogram_of(np.array([-1e150, 1e150, 5.0])),
    "NaN": Scalar("a/b", np.nan),
    "infinity": Scalar("a/" + "b" * 3000, np.inf, caption="é\n\t" * 3000),
    "an empty text": Text("a/b", ""),
    "a long text": Text("a/b", "# " + "word " * 5000 + "\n" * 5000 + "- x\n" * 500),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_are_drawn_within_bounds(name: str) -> None:
    height, width, _ = raster(EXTREMES[name]).shape
    assert width <= 1000
    assert height * width <= 4_000_000


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_have_interactive_figures(name: str) -> None:
    assert figure(EXTREMES[name]).to_json()


def test_500_tiles_are_all_there() -> None:
    record, palette = solid_images(500, 8)
    packed = raster(record).astype(np.int64) @ [65536, 256, 1]
    assert set(palette.astype(np.int64) @ [65536, 256, 1]) <= set(np.unique(packed))


# Words


def test_tokens_show_what_cannot_be_seen() -> None:
    shown = {
        " the": "·the",
        "Ġthe": "·the",
        "a b": "a b",
        "\n": "\\n",
        "\t": "\\t",
        "  ": "··",
        "": "''",
        "\x00": "\\x00",
    }
    assert {token: typeset.token(token) for token in shown} == shown


def test_numbers_are_short() -> None:
    shown = {
        0.0: "0",
        -4.5e-5: "-4.5e-5",
        0.123456: "0.123",
        12345.0: "12345",
        1.5e8: "1.5e8",
        np.nan: "nan",
        -0.2: "-0.2",
    }
    assert {value: typeset.number(value) for value in shown} == shown


def test_wrapped_lines_keep_every_word_and_fit() -> None:
    words = [f"word{i}" for i in range(60)]
    lines = typeset.wrap(" ".join(words), 200, most=60)
    assert " ".join(lines).split() == words
    assert max(typeset.measure(line) for line in lines) <= 200
    assert typeset.wrap(" ".join(words), 200, most=2)[-1].endswith("…")


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("size", [typeset.SMALL, typeset.BODY, typeset.TITLE])
@pytest.mark.parametrize("text", ["weights/layer1.weight", "gjy_|", " f ", "0.00123", "a" * 100, " ", ""])
def test_a_line_is_set_as_pillow_sets_it_also_the_second_time(text: str, size: int, *, heavy: bool) -> None:
    expected = Image.new("RGB", (1200, 40), typeset.PAPER)
    draw, font = ImageDraw.Draw(expected), ImageFont.load_default(size)
    baseline = round(typeset.line_height(size) * 0.75)
    draw.text((5, baseline), text, fill=typeset.INK, font=font, anchor="ls", stroke_width=0.35 if heavy else 0)
    for _ in range(2):
        drawn = Image.new("RGB", (1200, 40), typeset.PAPER)
        typeset.put(ImageDraw.Draw(drawn), (5, 0), text, size=size, heavy=heavy)
        assert (np.asarray(drawn) == np.asarray(expected)).all()


def test_words_on_their_side_are_read_from_below() -> None:
    assert np.array_equal(np.asarray(typeset.sideways("Loss")), np.rot90(np.asarray(typeset.set_lines(["Loss"]))))


def test_a_label_hides_nothing_under_its_white() -> None:
    page = Image.new("RGB", (20, 20), typeset.INK)
    typeset.stick(page, Image.new("RGB", (10, 10), typeset.PAPER), (5, 5))
    assert (np.asarray(page) == np.asarray(typeset.INK)).all()


def test_a_line_ends_or_is_centred_where_it_is_told_to() -> None:
    for align, expected in (
        ("left", (100, 100 + typeset.measure("HHHH"))),
        ("right", (100 - typeset.measure("HHHH"), 100)),
    ):
        drawn = Image.new("RGB", (200, 20), typeset.PAPER)
        typeset.put(ImageDraw.Draw(drawn), (100, 0), "HHHH", align=align)
        ink = np.flatnonzero((np.asarray(drawn) < 200).any(axis=(0, 2)))
        assert (ink[0], ink[-1]) == pytest.approx(expected, abs=2)
    drawn = Image.new("RGB", (200, 20), typeset.PAPER)
    typeset.put(ImageDraw.Draw(drawn), (100, 0), "HHHH", align="centre")
    assert np.flatnonzero((np.asarray(drawn) < 200).any(axis=(0, 2))).mean() == pytest.approx(100, abs=1)


def test_a_name_that_is_too_long_keeps_its_ends() -> None:
    for width in (90, 110, 140, 200):
        shown = typeset.shorten("encoder.layer.11.attention.self.query.weight", width)
        assert shown.startswith("e.l.11." if width > 100 else "e.l.11")
        assert shown.endswith("weight")
        assert typeset.measure(shown) <= width
    assert typeset.shorten("a sentence. It goes on and on", 90).startswith("a sent")


def test_each_character_is_set_in_the_font_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typeset, "_spelled", lambda character: (int(character == "中"), character))
    assert list(typeset._runs("a中bc")) == [(0, "a"), (1, "中"), (0, "bc")]


def test_characters_without_a_glyph_are_still_told_apart() -> None:
    first, second = (raster(Text("a/b", text)) for text in ("\ue000", "\ue001"))  # no font has these
    assert first.shape != second.shape or not np.array_equal(first, second)


# PNG


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_decodes_to_the_same_pixels(channels: int) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (37, 53, channels), dtype=np.uint8)
    slope = np.add.outer(np.arange(37), np.arange(53))[..., None].astype(np.uint8).repeat(channels, axis=-1)
    enlarged = noise[:4, :4].repeat(9, axis=0).repeat(9, axis=1)  # rows that repeat
    for pixels in (noise, slope, noise[::2, ::3], enlarged, np.zeros((1, 1, channels), np.uint8)):
        decoded = np.asarray(Image.open(io.BytesIO(png.encode(pixels))))
        assert np.array_equal(decoded.reshape(pixels.shape), pixels)


def test_pngs_cost_little_time_and_few_bytes() -> None:
    """Pillow spends three times as long: it tries a filter a row, and searches as hard as level 6 does."""
    ours = theirs = 0
    for name in SAMPLES:
        pixels = raster(SAMPLES[name])
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        ours, theirs = ours + len(png.encode(pixels)), theirs + len(buffer.getvalue())
    assert ours < 1.15 * theirs


def test_a_png_of_noise_is_hardly_larger_than_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert noise.size < len(png.encode(noise)) < 1.01 * noise.size


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("got (2, 2, 3) float64")):
        png.encode(np.zeros((2, 2, 3)))  # type: ignore[arg-type]


def test_drawing_64_tiles_costs_no_more_than_a_few_png_encodings() -> None:
    record, _ = solid_images(64, 7)
    pixels = raster(record)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)

    def fastest(call: Any) -> float:
        seconds = []
        for _ in range(3):
            start = time.thread_time()
            call()
            seconds.append(time.thread_time() - start)
        return min(seconds)

    assert fastest(lambda: raster(record)) < 5 * fastest(lambda: png.encode(noise))


# Interactive figures


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_has_an_interactive_figure_with_its_tag_and_caption(name: str) -> None:
    made = figure(SAMPLES[name])
    assert len(made.data) >= 1
    if name not in ("Images", "Text"):  # these are the raster, which has both in it
        assert SAMPLES[name].tag in made.layout.title.text
        assert SAMPLES[name].caption in made.layout.title.text


def test_figures_hold_the_values_themselves() -> None:
    maps, heads = SAMPLES["Heatmaps"], SAMPLES["Attention"]
    assert isinstance(maps, Heatmaps)
    assert isinstance(heads, Attention)
    assert np.array_equal(np.asarray(figure(maps).data[3].z, np.float32), maps.values[3])
    drawn = figure(heads)
    assert np.array_equal(np.asarray(drawn.data[5].z, np.float32), heads.weights[1, 1])
    assert [trace.visible for trace in drawn.data] == [True] * 4 + [False] * 4
    assert drawn.layout.updatemenus[0].buttons[1].args[0]["visible"] == [False] * 4 + [True] * 4


def test_a_menu_chooses_the_method_of_an_embedding() -> None:
    made = figure(embedding_of(20, 2))
    assert [button.label for button in made.layout.updatemenus[0].buttons] == ["PCA", "t-SNE", "PCA 3-D"]
    assert [trace.type for trace in made.data] == ["scatter"] * 4 + ["scatter3d"] * 2


def test_a_figure_of_maps_has_their_scale_names_and_order() -> None:
    values = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    names, notes = [f"map {i}" for i in range(5)], ["a note", "", "", "", ""]
    rows, columns = [["r0", "r1"]] * 5, [["c0", "c1", "c2"]] * 5
    record = Heatmaps("a/b", values, names, notes, (-2.0, 7.0), "diverging", row_labels=rows, column_labels=columns)
    made = figure(record)
    bar = made.layout.coloraxis
    assert (bar.cmin, bar.cmax) == (-2.0, 7.0)
    assert [bar.colorscale[0][1], bar.colorscale[-1][1]] == [css(colors.DIVERGING[0]), css(colors.DIVERGING[254])]
    assert made.layout.yaxis.autorange == "reversed"
    assert (list(made.layout.yaxis.ticktext), list(made.layout.xaxis.ticktext)) == (rows[0], columns[0])
    assert [title.text for title in made.layout.annotations] == ["map 0<br>a note", *names[1:]]
    assert [trace.xaxis for trace in made.data] == ["x", "x2", "x3", "x4", "x5"]
    assert [trace["z"] for trace in plain(record)["data"]] == values.tolist()


def css(color: Any) -> str:
    return f"rgb({color[0]},{color[1]},{color[2]})"


def test_a_figure_of_attention_says_who_looks_at_whom() -> None:
    spread = np.full((2, 2, 20, 30), 1 / 30, np.float32)
    queries, keys = ([[f"{kind}{i}.{k}" for k in range(n)] for i in range(2)] for kind, n in (("q", 20), ("k", 30)))
    made = figure(Attention("attention/0", spread, [4, 9], [3, 7], queries, keys))
    assert [title.text for title in made.layout.annotations] == ["head 3", "head 7"]
    first, second = made.layout.updatemenus[0].buttons
    assert (first.label, second.label) == ("example 4", "example 9")
    changed = {"xaxis.ticktext": keys[1], "xaxis2.ticktext": keys[1], "yaxis.ticktext": queries[1]}
    assert second.args[1] == changed
    assert made.data[0].text[1][2] == "q0.1 looks at k0.2"
    assert made.data[3].text[1][2] == "q1.1 looks at k1.2"
    bar = made.layout.coloraxis
    assert (bar.cmin, bar.cmax) == (0, pytest.approx(4 / 30))
    assert bar.colorscale[16] == (pytest.approx(0.25), css(colors.SEQUENTIAL[127]))  # by the square root
    assert "head" not in made.layout.title.text
    many = figure(attention_of(1, 70, ["a", "b"]))
    assert len(many.data) == 64
    assert "the first 64 of 70 are drawn" in many.layout.title.text


def test_a_figure_of_an_embedding_names_its_classes_and_examples() -> None:
    record = embedding_of(4, 2, labels=np.array([2, -1, 2, 0]), class_names=["cat", "dog"], ids=np.arange(4) + 5)
    made = figure(record)
    shown = [(trace.name, trace.marker.color, list(trace.hovertext)) for trace in made.data[:3]]
    assert shown == [
        ("no class", css(colors.NO_CLASS), ["example 6<br>no class"]),
        ("cat", css(colors.CLASSES[0]), ["example 8<br>cat"]),
        ("2", css(colors.CLASSES[2]), ["example 5<br>2", "example 7<br>2"]),
    ]
    assert made.layout.yaxis.scaleanchor == "x"
    assert "silhouette 0.5" in made.layout.title.text
    assert "methods: PCA, t-SNE, PCA 3-D" in made.layout.title.text


def test_a_figure_of_a_quantity_has_a_bar_of_its_colours() -> None:
    labels = np.array([0.25, np.nan, -1.0, 3.0])
    record = embedding_of(4, 2, labels=labels, class_names=["target"], ids=np.arange(4) + 5)
    points, none = figure(record).data[:2]
    assert points.marker.color.tolist() == [0.25, -1.0, 3.0]
    assert (points.marker.cmin, points.marker.cmax) == pytest.approx(tuple(np.quantile([-1, 0.25, 3], (0.02, 0.98))))
    assert points.marker.colorbar.title.text == "target"
    ends = points.marker.colorscale[0][1], points.marker.colorscale[-1][1]
    assert ends == (css(colors.QUANTITY[0]), css(colors.QUANTITY[-1]))
    assert list(points.hovertext) == ["example 5<br>target: 0.25", "example 7<br>target: -1", "example 8<br>target: 3"]
    assert (none.marker.color, list(none.hovertext)) == (css(colors.NO_CLASS), ["example 6<br>target: none"])


def test_a_figure_gives_infinite_values_of_a_quantity_the_colours_of_the_ends() -> None:
    labels = np.array([2.0, np.inf, 2.0, 3.0, -np.inf])
    points = figure(embedding_of(5, 2, labels=labels, class_names=["target"])).data[0]
    low, high = points.marker.cmin, points.marker.cmax
    assert points.marker.color.tolist() == [2.0, high, 2.0, 3.0, low]
    assert list(points.hovertext)[1] == "example 1<br>target: inf"


def test_a_figure_of_curves_has_their_axes_and_names() -> None:
    ys = {"a": np.array([1.0, 10.0])}
    for log in ({"log_x": True}, {"log_y": True}):
        made = figure(Curves("a/b", np.array([1, 10]), ys, "across", "up", **log))
        kinds = made.layout.xaxis.type, made.layout.yaxis.type
        assert kinds == (("log", "linear") if "log_x" in log else ("linear", "log"))
        assert (made.layout.xaxis.title.text, made.layout.yaxis.title.text) == ("across", "up")
    made = figure(Curves("a/b", np.array([3, 5]), ys, "layer", "up", ["encoder.0", "encoder.1"]))
    ticks = dict(zip(made.layout.xaxis.tickvals, made.layout.xaxis.ticktext, strict=True))
    assert ticks == {3: "0", 5: "1"}
    assert made.layout.xaxis.title.text == "layer (each name starts with encoder.)"


def test_a_figure_of_a_histogram_has_its_bins_and_what_they_leave_out() -> None:
    bad = {"nans": 1, "pos_infs": 2, "neg_infs": 3, "count": 16, "zeros": 4}
    record = histogram_of(np.zeros(10), edges=np.array([0.0, 1.0, 3.0, 4.0]), counts=np.array([2, 3, 5]), **bad)
    made = figure(record)
    (bars,) = made.data
    assert (list(bars.x), list(bars.width), list(bars.y)) == ([0.5, 2.0, 3.5], [1.0, 2.0, 1.0], [2, 3, 5])
    assert bars.hovertext[1] == "1 to 3: 3"
    assert "zeros 4; NaN 1, +inf 2, -inf 3" in made.layout.title.text


def test_the_path_lies_on_its_surface() -> None:
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
    z = 3 * x[None] + 2 * y[:, None]  # flat, so that linear interpolation is exact
    path = np.array([[0.25, -1.1], [-0.8, 1.7]])
    made = figure(Surface("landscape/loss", x, y, z, path, "a", "b", "loss"))
    heights = 3 * path[:, 0] + 2 * path[:, 1]
    assert np.allclose(made.data[1].z, heights, atol=0.011 * np.ptp(z))
    assert (made.data[1].z > heights).all()  # where it is seen from above


@pytest.mark.parametrize("lost", [np.inf, -np.inf, np.nan])
def test_a_plain_figure_is_json_whatever_its_values_are(lost: float) -> None:
    z, xy = np.array([[1.0, lost], [0.0, 1.0]]), np.array([[0.0, lost], [1.0, 1.0]])
    for record in (
        Scalar("a/b", lost),
        one_map([z], (0.0, 1.0), "sequential"),
        Surface("a/b", np.arange(2.0), np.arange(2.0), z, None, "a", "b", "loss"),
        Curves("a/b", np.arange(2), {"a": np.array([1.0, lost])}, "x", "y"),
        embedding_of(2, 2, layouts={"PCA": xy}, layouts_3d={}),
    ):
        assert json.dumps(plain(record), allow_nan=False)


def test_labels_in_figures_are_text_and_not_markup() -> None:
    made = figure(Curves("a/<b>", np.arange(2), {"<script>": np.ones(2)}, "x & y", "y", caption="<i>"))
    assert made.data[0].name == "&lt;script&gt;"
    assert "<b>a/&lt;b&gt;</b>" in made.layout.title.text
    assert made.layout.xaxis.title.text == "x &amp; y"


def test_without_plotly_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=re.escape("need plotly: pip install 'vizlog[wandb]'")):
        figure(SAMPLES["Scalar"])


# Notebooks


def test_a_record_shows_itself_in_a_notebook() -> None:
    record = Scalar("health/<x>", 0.5, caption='says "this" & <that>')
    shown = record._repr_html_()  # type: ignore[attr-defined]
    assert shown == notebook.html(record)
    assert "health/&lt;x&gt;" in shown
    assert "says &quot;this&quot; &amp; &lt;that&gt;" in shown
    data = base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])  # type: ignore[index]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), raster(record))


def test_many_records_show_the_newest_and_say_how_many_are_left_out() -> None:
    written: list[tuple[int, Record]] = [(step, Scalar("health/x", step)) for step in range(25)]
    shown = notebook.html_many(written, most=3)
    assert re.findall(r"<figcaption>step (\d+)", shown) == ["24", "23", "22"]
    assert "22 earlier records are not shown" in shown
    assert "No records" in notebook.html_many([])
