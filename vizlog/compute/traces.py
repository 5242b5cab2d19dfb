"""Series as pictures, so that a map of what a score depends on stands on what it is of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["traces"]

_LANES = 8
"""More channels than that are seen as an image, as those of a spectrogram are, and not as lines."""

_WIDTH, _HEIGHT, _LANE = 800, 96, 32
_LINE, _BETWEEN, _PAPER = 40, 215, 255
_MARGIN, _THICK = 3, 2
_SIDE = 512

Floats = NDArray[np.float64]


def traces(series: Tensor) -> NDArray[np.uint8]:
    """Series (N, C, L) of real numbers as gray pictures (N, H, W, 1), L from left to right.

    Of up to 8 channels each is a line in a lane of its own, the first on top; where several values fall into one column
    of pixels the line covers all of them, and where they are not finite there is none. More channels are the rows of an
    image, bright where values are high. The scale goes from the lowest to the highest value, of each channel of lines,
    and of all from the 1st to the 99th percentile of an image: the same for all N, which so can be compared.
    """
    values = series.detach().cpu().float()
    values = torch.where(values.isfinite(), values, torch.nan)
    if values.shape[1] > _LANES:
        return _image(values)
    low, high = _extent(values.double().numpy())  # in which the range of the largest numbers is one, too
    lane = max(_HEIGHT // values.shape[1], _LANE)
    top, bottom = _rows(high, high, low, lane) - _THICK / 2, _rows(low, high, low, lane) + _THICK / 2
    rows = np.arange(lane)[:, None] + 0.5
    lines = (top[:, :, None] <= rows) & (rows <= bottom[:, :, None])  # (N, C, lane, W)
    pixels = np.where(lines, _LINE, _PAPER).astype(np.uint8)
    pixels[:, 1:, 0] = np.where(lines[:, 1:, 0], _LINE, _BETWEEN)
    return pixels.reshape(len(pixels), -1, pixels.shape[-1], 1)


def _extent(values: Floats) -> tuple[Floats, Floats]:
    """(N, C, W) lowest and highest value in each column of pixels, joined to the column before; NaN where none is."""
    length = values.shape[-1]
    if length < _WIDTH:  # value k lies in the middle of its share of the width, as its part of a map does
        places = np.clip((np.arange(_WIDTH) + 0.5) * length / _WIDTH - 0.5, 0, length - 1)
        left = np.minimum(places.astype(int), max(length - 2, 0))
        right, share = np.minimum(left + 1, length - 1), places - left
        points = values[..., left] + (values[..., right] - values[..., left]) * share
        points = np.where(share == 0, values[..., left], points)  # beside a gap
        low = high = last = points
    else:
        starts = np.arange(_WIDTH) * length // _WIDTH
        low, high = np.fmin.reduceat(values, starts, axis=-1), np.fmax.reduceat(values, starts, axis=-1)
        last = values[..., [*(starts[1:] - 1), length - 1]]
    before = np.where(np.isnan(low[..., 1:]), np.nan, last[..., :-1])
    low, high = low.copy(), high.copy()
    low[..., 1:], high[..., 1:] = np.fmin(low[..., 1:], before), np.fmax(high[..., 1:], before)
    return low, high


def _rows(values: Floats, high: Floats, low: Floats, lane: int) -> Floats:
    """At which height of a lane values lie, by the lowest and the highest of each channel."""
    known = np.isfinite(low).any(axis=(0, 2), keepdims=True)  # of none nothing is drawn
    bottom = np.nanmin(np.where(known, low, 0), axis=(0, 2), keepdims=True)
    top = np.nanmax(np.where(known, high, 0), axis=(0, 2), keepdims=True)
    wide = top > bottom
    share = np.where(wide, (values - bottom) / np.where(wide, top - bottom, 1), 0.5 + 0 * values)
    return np.asarray(_MARGIN + (1 - share) * (lane - 2 * _MARGIN), np.float64)


def _image(values: Tensor) -> NDArray[np.uint8]:
    known = values[~values.isnan()].double().numpy()
    low, high = np.quantile(known, (0.01, 0.99)).tolist() if known.size else (0.0, 1.0)
    shares = ((values.double() - low) / max(high - low, 1e-300)).clamp(0, 1).nan_to_num(0).float()
    size = min(values.shape[1], _SIDE), min(values.shape[2], _SIDE)
    shares = torch.nn.functional.adaptive_avg_pool2d(shares[:, None], size)[:, 0]
    return (shares * 255).round().byte()[..., None].numpy()
