"""Records drawn in a process of low priority: a thread that draws takes the interpreter from training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from vizlog.messages import LOG, one_line
from vizlog.process import shared
from vizlog.records import Record
from vizlog.views import png
from vizlog.views.figures import plain
from vizlog.views.raster import raster

__all__ = ["Picture", "Pictures", "drawn"]

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A PNG and its size in pixels."""

    width: int
    height: int
    png: bytes


class Pictures:
    """Draws records elsewhere; in this process only where no other can be started, which is said once.

    A record that ends the other process, or keeps it busy for too long, would do the same to this one.

    Measured on a network whose steps take 4 ms: pictures of a due step drawn by a thread held training up for half a
    second, since whoever runs Python holds the interpreter.
    """

    def __init__(self) -> None:
        self._process = shared("pictures")
        self._elsewhere = True

    def of(self, record: Record) -> Picture:
        """Its raster; blocks the calling thread alone, which waits without the interpreter.

        Raises:
            Exception: the record cannot be drawn, or not be sent there; never an OSError.
        """
        return self._made(drawn, record)

    def chart(self, record: Record) -> dict[str, Any]:
        """As `of`, the record as an interactive figure: plotly's JSON."""
        return self._made(plain, record)

    def _made(self, make: Callable[[Record], T], record: Record) -> T:
        if not self._elsewhere:
            return make(record)
        try:
            return self._process.call(make, record)
        except Exception as error:
            if self._can_be_had():
                if isinstance(error, OSError):  # whoever writes takes one, and a timeout is one, for the disk's trouble
                    raise RuntimeError(one_line(error)) from error
                raise
            self._elsewhere = False
            LOG.warning("vizlog draws in the training process from now on, which slows it: %s", one_line(error))
            return make(record)

    def _can_be_had(self) -> bool:
        """Whether the process starts and answers, so that what went wrong is the record's own."""
        try:
            self._process.call(os.getpid)
        except Exception:  # noqa: BLE001 -- whatever keeps it from running
            return False
        return True


def drawn(record: Record) -> Picture:
    """The record's raster as a PNG."""
    pixels = raster(record)
    height, width = pixels.shape[:2]
    return Picture(width, height, png.encode(pixels))
