"""Records drawn as PNGs in a process of low priority: a thread that draws takes the interpreter from training."""

from __future__ import annotations

from dataclasses import dataclass

from vizlog.messages import LOG, told
from vizlog.process import shared
from vizlog.records import Record
from vizlog.views import png
from vizlog.views.raster import raster

__all__ = ["Picture", "Pictures", "drawn"]


@dataclass(frozen=True)
class Picture:
    """A PNG and its size in pixels."""

    width: int
    height: int
    png: bytes


class Pictures:
    """Draws records elsewhere; in this process only where no other can be had, which is said once.

    Measured on a network whose steps take 4 ms: pictures of a due step drawn by a thread held training up for half a
    second, since whoever runs Python holds the interpreter.
    """

    def __init__(self) -> None:
        self._process = shared("pictures")
        self._elsewhere = True

    def of(self, record: Record) -> Picture:
        """Blocks the calling thread alone, which waits without the interpreter.

        Raises:
            Exception: the record cannot be drawn.
        """
        if not self._elsewhere:
            return drawn(record)
        try:
            return self._process.call(drawn, record)
        except Exception as error:  # noqa: BLE001 -- the process's trouble or the record's: drawing it here tells
            picture = drawn(record)
            self._elsewhere = False
            LOG.warning("vizlog draws in the training process from now on, which slows it: %s", told(error))
            return picture


def drawn(record: Record) -> Picture:
    """The record's raster as a PNG."""
    pixels = raster(record)
    height, width = pixels.shape[:2]
    return Picture(width, height, png.encode(pixels))
