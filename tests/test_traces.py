"""Series drawn as lines or as an image, against what was put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vizlog.compute.traces import traces

PAPER = 255


def lanes(series: torch.Tensor) -> NDArray[np.bool_]:
    """(N, C, lane, W) where there is a line."""
    pixels = traces(series)
    assert pixels.dtype == np.uint8
    assert pixels.shape[-1] == 1
    number, channels = series.shape[:2]
    return pixels.reshape(number, channels, -1, pixels.shape[2]) < 128


def middles(drawn: NDArray[np.bool_]) -> NDArray[np.floating]:
    """The middle of the line in each column, as a share of the lane from its bottom; NaN where there is none."""
    heights = 1 - (np.arange(drawn.shape[-2]) + 0.5) / drawn.shape[-2]
    with np.errstate(invalid="ignore"):
        return (drawn * heights[:, None]).sum(-2) / drawn.sum(-2)


@pytest.mark.parametrize("length", [800, 200, 17])
def test_a_ramp_is_a_line_from_corner_to_corner(length: int) -> None:
    line = middles(lanes(torch.arange(float(length))[None, None]))[0, 0]
    columns = np.clip((np.arange(800) + 0.5) * length / 800 - 0.5, 0, length - 1) / (length - 1)
    lane, margin = 96, 3
    expected = margin / lane + columns * (1 - 2 * margin / lane)
    np.testing.assert_allclose(line, expected, atol=2 / lane)


def test_where_several_values_fall_into_a_column_the_line_covers_them() -> None:
    values = torch.zeros(1, 1, 8000)
    values[0, 0, 4005], values[0, 0, 4007] = 1.0, -1.0  # both in column 400, of ten values
    drawn = lanes(values)[0, 0]
    heights = drawn.sum(0)
    assert heights[400] >= 88
    assert heights[399] <= 3
    assert heights[402] <= 3


def test_all_examples_have_one_scale_and_each_channel_its_own() -> None:
    series = torch.stack([torch.stack([torch.full((20,), a), torch.full((20,), 100 * a)]) for a in (0.0, 0.5, 1.0)])
    found = middles(lanes(series)).mean(-1)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)
    assert found[0, 0] < 0.1
    assert found[1, 0] == pytest.approx(0.5, abs=0.03)
    assert found[2, 0] > 0.9


def test_what_is_not_finite_leaves_a_gap_and_no_scale() -> None:
    values = torch.linspace(0, 1, 800)[None, None].clone()
    values[0, 0, 100:200], values[0, 0, 300] = torch.nan, torch.inf
    drawn = lanes(values)[0, 0]
    assert not drawn[:, 100:200].any()
    assert not drawn[:, 300].any()
    assert drawn[:, [99, 200, 299, 301]].any(0).all()
    assert middles(drawn)[799] > 0.9


@pytest.mark.parametrize("value", [0.0, -7.0, 3e38])
def test_a_constant_is_a_line_in_the_middle(value: float) -> None:
    np.testing.assert_allclose(middles(lanes(torch.full((1, 1, 30), value))), 0.5, atol=0.03)


def test_nothing_but_nan_is_blank_paper() -> None:
    assert (traces(torch.full((2, 1, 30), torch.nan)) == PAPER).all()


def test_the_largest_numbers_there_are_fit() -> None:
    drawn = lanes(torch.tensor([-3e38, 3e38]).repeat(400)[None, None])[0, 0]
    assert drawn.any(0).all()


def test_many_channels_are_rows_of_an_image_bright_where_values_are_high() -> None:
    values = torch.zeros(2, 16, 40)
    values[:, 3, 10:20] = 1.0
    values[1, 5, 0] = torch.nan
    pixels = traces(values)
    assert pixels.shape == (2, 16, 40, 1)
    assert (pixels[:, 3, 10:20] == 255).all()
    assert pixels.sum() == 255 * 20
    assert traces(torch.randn(1, 600, 4000)).shape == (1, 512, 512, 1)


def test_integers_and_half_precision_are_drawn_as_floats() -> None:
    values = torch.arange(50)[None, None]
    np.testing.assert_array_equal(traces(values), traces(values.float()))
    np.testing.assert_array_equal(traces(values.bfloat16()), traces(values.float()))
