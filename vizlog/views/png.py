"""Pixels as PNG bytes."""

from __future__ import annotations

import operator
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vizlog.records import Pixels

__all__ = ["encode"]

# Measured on pictures of every kind, one core, zlib 1.2.13: milliseconds and KB, in the better of two filters.
#
#                                 level 1     level 3     level 6     run lengths alone
#   curves, 960 x 486             4.6, 58     5.2, 52      15, 42     4.6, 106
#   64 filters, 790 x 1014        4.0, 46     4.1, 45      13, 37     5.7, 178
#   attention, 829 x 1864          10, 192     11, 171     33, 129     15, 568
#   embedding, 964 x 625          3.4, 45     3.5, 43      11, 32     3.5, 60
#   photographs, 566 x 348        5.6, 200    7.6, 195     17, 187    4.2, 191
#   noise, 560 x 498               11, 455     11, 454     12, 451    5.7, 468
#
# Drawn pictures are flat colours and repeated letters: level 3 takes a third of level 6's time for a quarter more
# bytes. In photographs and noise nothing repeats that is worth a search, so run lengths serve. Which filter is the
# better one, and whether anything repeats, a sample of the rows tells. What does not shrink at all is stored as it is.
_LEVEL = 3
_DENSE = 0.25
_NOISE = 0.995
_SMALL, _LARGE = 24 * 1024, 96 * 1024
"""Bytes of a sample. Whether a picture is dense shows in a small one. Of a drawing most is paper, so that it takes a
large one to tell which filter suits it: one of half the size chose worse."""
_BLOCK = 8
"""Rows of a sample that stand together."""
_NONE, _UP = 0, 2
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}


def encode(pixels: Pixels) -> bytes:
    """Writes pixels (H, W, C) uint8, C 1 (grey), 3 (RGB) or 4 (RGBA), as a PNG without loss.

    Raises:
        ValueError: where shape or dtype is another one.
    """
    if pixels.ndim != 3 or pixels.shape[-1] not in _COLOR_TYPES or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"a PNG needs pixels (H, W, C) uint8 with C 1, 3 or 4, got {pixels.shape} {pixels.dtype}")
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    share, lines = _filtered(rows)
    strategy = zlib.Z_RLE if share > _DENSE else zlib.Z_DEFAULT_STRATEGY
    data = _compressed(lines, _LEVEL if share < _NOISE else 0, strategy)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _compressed(lines: Pixels, level: int, strategy: int) -> bytes:
    compressor = zlib.compressobj(level, strategy=strategy)
    return compressor.compress(lines.data) + compressor.flush()


def _filtered(rows: Pixels) -> tuple[float, Pixels]:
    """Rows behind the filter that lets them shrink more, and to which share about."""
    both = _repeats(rows), _differences(rows)
    shares = [_sampled_share(lines, _SMALL) for lines in both]
    if min(shares) < 2 * _DENSE:
        shares = [_sampled_share(lines, _LARGE) for lines in both]
    return min(zip(shares, both, strict=True), key=operator.itemgetter(0))


def _sampled_share(lines: Pixels, size: int) -> float:
    """What rows from all over the picture, of some `size` bytes, shrink to at the fastest level."""
    number = max(1, min(len(lines) // (2 * _BLOCK), size // (_BLOCK * lines.shape[1])))
    tops = np.linspace(0, max(len(lines) - _BLOCK, 0), number + 2)[1:-1].astype(np.intp)
    rows = tops[:, np.newaxis] + np.arange(min(_BLOCK, len(lines)))
    sample: Pixels = lines[rows.ravel()]  # a copy, so that its memory is in one piece
    return len(_compressed(sample, 1, zlib.Z_DEFAULT_STRATEGY)) / sample.size


def _repeats(rows: Pixels) -> Pixels:
    """Rows as they are, but zeros for those that are equal to the row above."""
    lines = _behind(_NONE, rows)
    same = np.flatnonzero((rows[1:] == rows[:-1]).all(axis=1)) + 1
    lines[same] = 0
    lines[same, 0] = _UP
    return lines


def _differences(rows: Pixels) -> Pixels:
    """The difference of each row to the row above, modulo 256."""
    lines = _behind(_UP, rows)
    lines[1:, 1:] -= rows[:-1]
    return lines


def _behind(kind: int, rows: Pixels) -> Pixels:
    """Rows, each behind the number of its filter."""
    lines = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    lines[:, 0] = kind
    lines[:, 1:] = rows
    return lines


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
