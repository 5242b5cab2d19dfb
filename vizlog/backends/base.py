"""What a destination is: one verb, `write`, and `close`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["Backend", "Summarises"]


@runtime_checkable
class Backend(Protocol):
    """A destination of records. Called from one thread at a time (the worker's), never from the training thread.

    Anything that has these two methods is a backend; there is nothing to register.
    """

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Writes what was found at `step`; an error raised here disables this backend alone, with one warning."""

    def close(self) -> None:
        """Writes what is left and closes what this backend opened itself. May be called twice."""


@runtime_checkable
class Summarises(Protocol):
    """What a backend may have besides: a place for how the run is as a whole."""

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        """Replaces the run's summary; called as it changes, from the worker's thread.

        Args:
            step: of what was written last.
            scalars: the run's health so far, `vizlog/…` -> a finite number; the same keys each time.
            stopped_because: why `stop_when` stops the training; "" while it does not.
        """
