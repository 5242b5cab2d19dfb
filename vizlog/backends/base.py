"""What a destination is: one verb, `write`, and `close`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["Backend"]


@runtime_checkable
class Backend(Protocol):
    """A destination of records. Called from one thread at a time (the worker's), never from the training thread.

    Anything that has these two methods is a backend; there is nothing to register.
    """

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Writes what was found at `step`; an error raised here disables this backend alone, with one warning."""

    def close(self) -> None:
        """Writes what is left and closes what this backend opened itself. May be called twice."""
