"""Records as TensorBoard's own summaries, in the form that both of its loaders read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from typing_extensions import assert_never

from vizlog.backends.pictures import Picture, Pictures
from vizlog.messages import LOG
from vizlog.records import Attention, Curves, Embedding, Heatmaps, Histogram, Images, Record, Scalar, Surface, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

__all__ = ["Summaries", "bins", "is_drawn"]

_Table: TypeAlias = "NDArray[np.float32]"
_Plugin: TypeAlias = Literal["scalars", "histograms", "images", "text"]
_LARGEST = float(np.finfo(np.float32).max)
_DT_FLOAT, _DT_STRING = 1, 7  # tensorboard/compat/proto/types.proto


class Summaries:
    """Turns a run's records into `Summary` protos; remembers which tags have had a caption or non-finite values.

    A tag's caption goes out with its first summary alone: TensorBoard keeps no other.
    """

    def __init__(self) -> None:
        self._pictures = Pictures()
        self._captioned: set[str] = set()
        self._had_nonfinite: set[str] = set()
        self._tags: set[str] = set()
        self._said: set[str] = set()
        self._empty: dict[str, Summary] = {}  # of each histogram's tag, without bins
        self._tables: dict[int, _Table] = {}

    def expect(self, records: Sequence[Record]) -> None:
        """Bins all histograms among the records that come next: numpy takes hardly longer for many than for one."""
        try:
            self._tables = _tables([record for record in records if isinstance(record, Histogram)])
        except Exception:  # noqa: BLE001 -- one cannot be drawn: each is binned by itself, which tells which
            self._tables = {}

    def of(self, record: Record) -> Summary:
        """The summary of one record: one value, and a second where a histogram has had non-finite values."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._tags.add(record.tag)
        summary = Summary()
        self._fill(summary, record)
        return summary

    def caption_again(self) -> None:
        """Sends every caption once more: what was written so far may be lost."""
        self._captioned.clear()

    def _fill(self, summary: Summary, record: Record) -> None:
        match record:
            case Scalar():
                _set_scalar(self._add(summary, "scalars", record.tag, record.caption), record.value)
            case Text():
                text = record.text.encode()
                _set_strings(self._add(summary, "text", record.tag, record.caption), text)
            case Histogram():
                table = self._tables.pop(id(record), None)
                self._add_histogram(summary, record, bins(record) if table is None else table)
                self._add_nonfinite(summary, record)
            case Images() | Heatmaps() | Attention() | Curves() | Surface() | Embedding():
                picture = self._pictures.of(record)
                _set_picture(self._add(summary, "images", record.tag, record.caption), picture)
            case _:
                assert_never(record)

    def _add_histogram(self, summary: Summary, record: Histogram, table: _Table) -> None:
        empty = self._empty.get(record.tag)
        if empty is None or record.tag not in self._captioned:
            _set_floats(self._add(summary, "histograms", record.tag, record.caption), table)
            # What is the same at every step is copied in a fraction of the time that it takes to make it.
            empty = self._empty[record.tag] = type(summary)()
            empty.CopyFrom(summary)
            empty.value[0].metadata.ClearField("summary_description")
            empty.value[0].tensor.ClearField("tensor_content")
            return
        summary.CopyFrom(empty)
        tensor = summary.value[0].tensor
        tensor.tensor_shape.dim[0].size = len(table)
        tensor.tensor_content = table.tobytes()

    def _add_nonfinite(self, summary: Summary, record: Histogram) -> None:
        """How many values are not finite; at every step from the first such on: the curve must come down too."""
        number = record.nans + record.pos_infs + record.neg_infs
        if number:
            self._had_nonfinite.add(record.tag)
        if record.tag in self._had_nonfinite:
            tag = f"{record.tag}/nonfinite"
            if tag in self._tags:
                self._say_taken(tag)
                return
            caption = f"How many values of {record.tag} are NaN or infinite; its histogram shows the others."
            _set_scalar(self._add(summary, "scalars", tag, caption), number)

    def _say_taken(self, tag: str) -> None:
        if tag not in self._said:
            self._said.add(tag)
            LOG.warning("vizlog: something else is logged as %s, so that values that are not finite go uncounted", tag)

    def _add(self, summary: Summary, plugin: _Plugin, tag: str, caption: str) -> TensorProto:
        """A further value, whose tensor is still to be set."""
        # Field by field: with keywords protobuf takes three times as long, which a step of hundreds of records feels.
        value = summary.value.add()
        value.tag = tag
        value.metadata.plugin_data.plugin_name = plugin
        if tag not in self._captioned:
            self._captioned.add(tag)
            value.metadata.summary_description = caption
        return value.tensor


def is_drawn(record: Record) -> bool:
    """Whether a record becomes a picture."""
    return not isinstance(record, (Scalar, Histogram, Text))


def _tables(records: Sequence[Histogram]) -> dict[int, _Table]:
    """What `bins` gives, by id, for those with as many bins as the first, if float32 can tell all of theirs apart."""
    if not records:
        return {}
    alike = [record for record in records if len(record.counts) == len(records[0].counts)]
    edges = np.array([record.edges for record in alike], np.float64).clip(-_LARGEST, _LARGEST)
    tables = np.empty((len(alike), len(records[0].counts), 3), "<f4")
    tables[..., 0], tables[..., 1] = edges[:, :-1], edges[:, 1:]
    tables[..., 2] = [record.counts for record in alike]
    rise = np.all(tables[..., 1] > tables[..., 0], axis=1)
    return {id(record): table for record, table, rises in zip(alike, tables, rise, strict=True) if rises}


def bins(record: Histogram) -> _Table:
    """(B, 3) float32: left edge, right edge, count. Bins that float32 cannot tell apart are joined."""
    edges, counts = np.asarray(record.edges), np.asarray(record.counts)
    if edges[0] < -_LARGEST or edges[-1] > _LARGEST:
        edges = np.minimum(np.maximum(edges, -_LARGEST), _LARGEST)
    table = _table(edges, counts)
    if (table[:, 1] > table[:, 0]).all():
        return table
    edges, first = np.unique(edges.astype(np.float32), return_index=True)
    if len(edges) == 1:
        edges = np.sort(np.append(edges, np.nextafter(edges, np.float32(0 if edges[0] else 1))))
        first = np.array([0, 0])
    return _table(edges, np.add.reduceat(counts, first[:-1]))


def _table(edges: NDArray[Any], counts: NDArray[Any]) -> _Table:
    table = np.empty((len(counts), 3), "<f4")
    table[:, 0], table[:, 1], table[:, 2] = edges[:-1], edges[1:], counts
    return table


def _set_scalar(tensor: TensorProto, value: float) -> None:
    tensor.dtype = _DT_FLOAT
    tensor.tensor_shape.SetInParent()
    tensor.float_val.append(value)


def _set_floats(tensor: TensorProto, array: NDArray[np.float32]) -> None:
    tensor.dtype = _DT_FLOAT
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    tensor.tensor_content = array.tobytes()


def _set_strings(tensor: TensorProto, *values: bytes) -> None:
    """One string as a scalar, several as a vector."""
    tensor.dtype = _DT_STRING
    tensor.tensor_shape.SetInParent()
    if len(values) > 1:
        tensor.tensor_shape.dim.add().size = len(values)
    tensor.string_val.extend(values)


def _set_picture(tensor: TensorProto, picture: Picture) -> None:
    """As the Images tab wants it: width, height and a PNG."""
    _set_strings(tensor, str(picture.width).encode(), str(picture.height).encode(), picture.png)
