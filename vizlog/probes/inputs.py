"""How an input is laid out: as a picture, and as the maps that stand on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vizlog.batch import FixedBatch
from vizlog.compute.traces import traces
from vizlog.probes.subject import input_values
from vizlog.records import Pixels

__all__ = [
    "COLUMNS",
    "as_images",
    "axes_of",
    "block_of",
    "channels_in",
    "is_only_series",
    "lies_along",
    "map_of_positions",
    "map_of_values",
    "pictures_of",
    "series_of",
    "shrunk",
    "slices_of",
]

COLUMNS = 64
"""How many columns of a table are numbered, where they have no names: more are rather a signal."""

_STEPS = 16
"""Of fewer steps a line says less than the map alone."""

_SIDE = 256
"""Larger maps are averaged down to at most this many pixels a side."""


def map_of_values(found: Tensor) -> Tensor:
    """Attributions of an input as maps (N, H, W): channels are summed, of a volume or a video the middle is shown.

    A series lies along W, whichever of its dimensions comes first in the input.
    """
    if found.ndim == 2:
        return found[:, None]
    if found.ndim == 4 and found.shape[2:] == (1, 1):
        return found.flatten(1)[:, None]
    if found.ndim == 3:
        return found.transpose(1, 2) if _lies_along_1(found.shape) else found
    return _middle(found.sum(channels_in(found.shape)))


def channels_in(shape: Sequence[int]) -> int:
    """Which dimension of an input of four or five holds channels: the last where only that may be colours."""
    if len(shape) == 4 and shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        return 3
    return 2 if _is_video(shape) else 1


def _lies_along_1(shape: Sequence[int]) -> bool:
    """Whether a series (N, ., .) has its steps in dimension 1, of which there are mostly more than channels."""
    return shape[1] > shape[2]


def lies_along(cam: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether Grad-CAM (h, w) is known to lie as the map of a series of this shape does, its steps along w.

    A convolution over one dimension runs over the last one of (N, C, L); over which of (N, L, C) nobody knows. One over
    both has its proportions, more or less.
    """
    if len(shape) == 2 or min(shape[1:]) == 1:
        return True
    if cam[0] == 1:
        return not _lies_along_1(shape)
    return 0.5 <= cam[1] / cam[0] * min(shape[1:]) / max(shape[1:]) <= 2 and cam[1] > cam[0]


def axes_of(shape: Sequence[int]) -> str:
    """For the caption: which dimension of a series is which axis of its map; "" for one channel, and other inputs."""
    if len(shape) != 3 or min(shape[1:]) == 1:
        return ""
    rows, columns = (2, 1) if _lies_along_1(shape) else (1, 2)
    return f"; rows: dimension {rows} of the input, columns: dimension {columns}"


def _is_video(shape: Sequence[int]) -> bool:
    """Whether an input is frames (N, T, C, H, W), and no volume (N, C, D, H, W); four frames of colours are."""
    if len(shape) != 5:
        return False
    return (shape[1] not in (1, 3, 4) and shape[2] in (1, 3, 4)) or tuple(shape[1:3]) == (4, 3)


def slices_of(shape: Sequence[int]) -> str:
    """For the caption: of how many slices of an input the middle one is shown; those of colours are frames."""
    if len(shape) != 5:
        return ""
    channels = channels_in(shape)
    return f"{shape[3 - channels]} {'frames' if channels == 2 or shape[1] == 3 else 'slices'}"


def map_of_positions(cam: Tensor, values: Tensor, *, tokens: bool) -> Tensor:
    """Grad-CAM of a convolution over one, two or three dimensions as maps (N, H, W)."""
    if cam.ndim == 2:
        cam = cam[:, None]
        return F.interpolate(cam, values.shape[1:2], mode="linear") if tokens else cam
    return _middle(cam)


def _middle(maps: Tensor) -> Tensor:
    return maps[:, maps.shape[1] // 2] if maps.ndim == 4 else maps


def shrunk(maps: Tensor, *, images: bool) -> Tensor:
    """Fewer where a side is longer than 256, of each block the value furthest from 0; images keep their proportions.

    An average would lose what is of either sign in turn, as gradients are.
    """
    block = block_of(maps.shape[1:], images=images)
    if max(block) == 1:
        return maps
    high, low = (F.max_pool2d(sign * maps[:, None], block, ceil_mode=True)[:, 0] for sign in (1, -1))
    return torch.where(high >= low, high, -low)


def block_of(shape: Sequence[int], *, images: bool) -> list[int]:
    """How many values along each side are shown as one."""
    block = [-(-side // _SIDE) for side in shape]
    return [min(max(block), side) for side in shape] if images else block


def as_images(batch: FixedBatch) -> FixedBatch:
    """The examples, to be looked at: of a video or a volume the slice of which the map is; of images channels first."""
    values = next(iter(batch.float_inputs), None)
    if batch.images is not None or values is None or values.ndim not in (4, 5):
        return batch
    channels = channels_in(values.shape)
    seen = values.movedim(channels, 1)
    if seen.shape[1] == 4:  # rather what was measured at each place than colours
        return batch
    seen = seen[:, :, seen.shape[2] // 2] if values.ndim == 5 else seen
    normalised = [np.size(each) for each in (batch.mean, batch.std) if each is not None]
    return batch.substitute(values, seen) if {*normalised} <= {1, seen.shape[1]} else batch


def pictures_of(batch: FixedBatch, examples: int) -> Pixels | None:
    """The examples themselves, (N, H, W, C), where they are images."""
    pixels = batch.thumbnails(examples)
    if pixels is None or max(pixels.shape[1:3]) <= _SIDE:
        return pixels
    channels = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    averaged = F.avg_pool2d(channels, block_of(pixels.shape[1:3], images=True), ceil_mode=True)
    found: Pixels = averaged.permute(0, 2, 3, 1).round().byte().numpy()
    return found


def series_of(shown: FixedBatch) -> Pixels | None:
    """The examples themselves, where they are series: (N, L), longer than most tables, (N, C, L) or (N, L, C)."""
    values = input_values(shown)
    shortest = {2: COLUMNS + 1, 3: _STEPS}.get(values.ndim)
    if shortest is None or max(values.shape[1:]) < shortest or not values.numel() or shown.feature_names:
        return None
    along_1 = values.ndim == 3 and _lies_along_1(values.shape)
    return traces(values.transpose(1, 2) if along_1 else values.reshape(len(values), -1, values.shape[-1]))


def is_only_series(shown: FixedBatch) -> bool:
    """Whether there is no other input that a convolution could as well run over; a mask of a series has its length."""
    values = input_values(shown)
    others = [x.shape[1:] for x in shown.float_inputs if x is not values]
    return not any(len(s) > 1 or (len(s) == 1 and s[0] > COLUMNS and s[0] not in values.shape[1:]) for s in others)
