"""Several destinations as one: each gets every record, and none can stop the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vizlog.backends.base import Backend, OwnedElsewhere, Summarises
from vizlog.messages import LOG, one_line

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["FanOut"]


class FanOut:
    """Writes the same records to several backends.

    A backend that raises is named in one warning, closed and left out from then on; the others go on.

    Raises:
        TypeError, ValueError: no backend was given, or something that has no `write` and `close`.
    """

    def __init__(self, *backends: Backend) -> None:
        if not backends:
            raise ValueError("FanOut needs at least one backend, got none")
        for backend in backends:
            if not isinstance(backend, Backend):
                raise TypeError(f"FanOut takes backends, which have write and close, got {backend!r}")
        self._backends = list(backends)

    def write(self, step: int, records: Sequence[Record]) -> None:
        for backend in tuple(self._backends):
            try:
                backend.write(step, records)
            except Exception as error:  # noqa: BLE001 -- whatever one destination raises, the others go on
                self._leave_out(backend, f"failed at step {step} and gets nothing more", error)

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        """Passes the summary on to the backends that have one."""
        for backend in tuple(self._backends):
            if isinstance(backend, Summarises):
                try:
                    backend.summarise(step, scalars, stopped_because)
                except Exception as error:  # noqa: BLE001 -- whatever one destination raises, the others go on
                    self._leave_out(backend, f"could not take the summary at step {step} and gets nothing more", error)

    def _leave_out(self, backend: Backend, what: str, error: Exception) -> None:
        self._backends.remove(backend)
        _report(backend, what, error)
        with contextlib.suppress(Exception):  # that it is broken has been said
            backend.close()

    def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
        """Passes it on to the backends that have owners."""
        for backend in self._backends:
            if isinstance(backend, OwnedElsewhere):
                backend.accompany(now, deliver)

    def close(self) -> None:
        """Closes every backend, also where one of them raises."""
        for backend in self._backends:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001 -- the next one must be closed too
                _report(backend, "could not be closed", error)


def _report(backend: Backend, what: str, error: Exception) -> None:
    LOG.warning("%s %s: %s", type(backend).__name__, what, one_line(error))
    LOG.debug("where it was raised", exc_info=error)
