"""Records kept in memory: for notebooks, and for tests of one's own probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vizlog.views import notebook  # with it, each record shows itself too

if TYPE_CHECKING:
    from vizlog.records import Record

__all__ = ["Memory"]


class Memory:
    """Keeps every record, unbounded; in a notebook it shows them.

    Attributes:
        records: (step, record) in the order written.
    """

    def __init__(self) -> None:
        self.records: list[tuple[int, Record]] = []

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.records.extend((step, record) for record in records)

    def close(self) -> None:
        """Nothing to do: what was written stays readable."""

    def of(self, tag: str) -> list[tuple[int, Record]]:
        """The (step, record) written under `tag`, in the order written; empty where there are none."""
        return [(step, record) for step, record in self.records if record.tag == tag]

    def _repr_html_(self) -> str:
        return notebook.html_many(self.records)
