"""Records kept in memory: for notebooks, and for tests of one's own probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vizlog.diagnosis import STOPPED_BECAUSE
from vizlog.views import notebook  # with it, each record shows itself too

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["Memory"]


class Memory:
    """Keeps every record, unbounded; in a notebook it shows them.

    Attributes:
        records: (step, record) in the order written.
        summary: the run's health: `vizlog/dead_units_worst` and the others -> number, `vizlog/stopped_because` -> text.
    """

    def __init__(self) -> None:
        self.records: list[tuple[int, Record]] = []
        self.summary: dict[str, float | str] = {}

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.records.extend((step, record) for record in records)

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        """Keeps the latest summary."""
        self.summary = {**scalars, STOPPED_BECAUSE: stopped_because}

    def close(self) -> None:
        """Nothing to do: what was written stays readable."""

    def of(self, tag: str) -> list[tuple[int, Record]]:
        """The (step, record) written under `tag`, in the order written; empty where there are none."""
        return [(step, record) for step, record in self.records if record.tag == tag]

    def _repr_html_(self) -> str:
        return notebook.html_many(self.records)
