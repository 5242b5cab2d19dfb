"""A record drawn as pixels, with nothing but numpy and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image
from typing_extensions import assert_never

from vizlog.records import (
    Attention,
    Curves,
    Embedding,
    Heatmaps,
    Histogram,
    Images,
    Pixels,
    Record,
    Scalar,
    Surface,
    Text,
)
from vizlog.views import plots, tiles
from vizlog.views.layout import stack
from vizlog.views.typeset import MUTED, PAPER, TITLE, paragraph

__all__ = ["raster"]

WIDEST = 960
_NARROWEST = 480
_MARGIN = 16


def raster(record: Record, *, width: int | None = None) -> Pixels:
    """Draws a record: its tag as the title, the picture with its scale, and its caption in words under it.

    Args:
        width: of the picture in pixels, at least 240; None: as wide as the record needs, from 480 to 960.

    Returns:
        (H, W, 3) uint8 on white, under four megapixels. What does not fit is left out, and the picture says how much.
    """
    if width is not None and width < 240:
        raise ValueError(f"raster(width=) needs at least 240 pixels, got {width}")
    room = (width or WIDEST) - 2 * _MARGIN
    body = _body(record, room)
    text_width = room if width is not None else max(body.width, _NARROWEST - 2 * _MARGIN)
    title = paragraph(record.tag, text_width, size=TITLE, heavy=True, most=2)
    caption = paragraph(record.caption, text_width, fill=MUTED, most=12)
    content = stack([title, body, caption], 12)
    page_width = width or max(content.width, _NARROWEST - 2 * _MARGIN) + 2 * _MARGIN
    page = Image.new("RGB", (page_width, content.height + 2 * _MARGIN), PAPER)
    page.paste(content, (_MARGIN, _MARGIN))
    return np.array(page)


def _body(record: Record, width: int) -> Image.Image:
    match record:
        case Scalar():
            return plots.scalar(record, width)
        case Histogram():
            return plots.histogram(record, width)
        case Images():
            return tiles.images(record, width)
        case Heatmaps():
            return tiles.heatmaps(record, width)
        case Attention():
            return tiles.attention(record, width)
        case Embedding():
            return plots.embedding(record, width)
        case Curves():
            return plots.curves(record, width)
        case Surface():
            return plots.surface(record, width)
        case Text():
            return plots.text(record, width)
        case _:
            assert_never(record)
