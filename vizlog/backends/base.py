"""What a destination is: one verb, `write`, and `close`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from vizlog.messages import LOG, one_line

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["Backend", "Drawable", "OwnedElsewhere", "Summarises"]

T = TypeVar("T")


@runtime_checkable
class Backend(Protocol):
    """A destination of records. Called from one thread at a time (the worker's), never from the training thread.

    Anything that has these two methods is a backend; there is nothing to register.
    """

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Writes what was found at `step`; an error raised here disables this backend alone, with one warning."""

    def close(self) -> None:
        """Writes what is left and closes what this backend opened itself. May be called twice."""


class Drawable:
    """Keeps a record that cannot be drawn from the others: it is left out, and named once."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def each(self, draw: Callable[[Record], T], records: Sequence[Record]) -> Iterator[T]:
        """What `draw` makes of each record that it can draw.

        Raises:
            OSError: whatever record it comes from, for a full disk is the fault of none.
        """
        for record in records:
            try:
                drawn = draw(record)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever is wrong with one record, the others can be drawn
                if record.tag not in self._named:
                    self._named.add(record.tag)
                    LOG.warning("vizlog: %s could not be drawn and is left out: %s", record.tag, one_line(error))
            else:
                yield drawn


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


@runtime_checkable
class OwnedElsewhere(Protocol):
    """What a backend may have besides: a destination to which its owner writes too, and which may be ended any time."""

    def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
        """Takes what tells of the training.

        Args:
            now: says which step it is at; records come later, and of earlier ones.
            deliver: to be called before the end; comes back once all that is under way has been written.
        """
