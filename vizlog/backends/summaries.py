"""Records as TensorBoard's own summaries, in the form that both of its loaders read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from vizlog.backends.pictures import Picture, Pictures
from vizlog.messages import LOG
from vizlog.records import Attention, Curves, Embedding, Heatmaps, Histogram, Images, Record, Scalar, Surface, Text

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

__all__ = ["Summaries", "bins", "is_drawn"]

_Plugin: TypeAlias = Literal["scalars", "histograms", "images", "text"]
_LARGEST = float(np.finfo(np.float32).max)


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

    def of(self, record: Record) -> Summary:
        """The summary of one record: one value, and a second where a histogram has had non-finite values."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._tags.add(record.tag)
        return Summary(value=self._values(record))

    def caption_again(self) -> None:
        """Sends every caption once more: what was written so far may be lost."""
        self._captioned.clear()

    def _values(self, record: Record) -> Iterator[Summary.Value]:
        match record:
            case Scalar():
                yield self._value("scalars", record.tag, _scalar(record.value), record.caption)
            case Text():
                yield self._value("text", record.tag, _strings(record.text.encode()), record.caption)
            case Histogram():
                yield self._value("histograms", record.tag, _floats(bins(record)), record.caption)
                yield from self._nonfinite(record)
            case Images() | Heatmaps() | Attention() | Curves() | Surface() | Embedding():
                yield self._value("images", record.tag, _picture(self._pictures.of(record)), record.caption)
            case _:
                assert_never(record)

    def _nonfinite(self, record: Histogram) -> Iterator[Summary.Value]:
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
            yield self._value("scalars", tag, _scalar(number), caption)

    def _say_taken(self, tag: str) -> None:
        if tag not in self._said:
            self._said.add(tag)
            LOG.warning("vizlog: something else is logged as %s, so that values that are not finite go uncounted", tag)

    def _value(self, plugin: _Plugin, tag: str, tensor: TensorProto, caption: str) -> Summary.Value:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
        if tag not in self._captioned:
            self._captioned.add(tag)
            metadata.summary_description = caption
        return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def is_drawn(record: Record) -> bool:
    """Whether a record becomes a picture."""
    return not isinstance(record, (Scalar, Histogram, Text))


def bins(record: Histogram) -> NDArray[np.float32]:
    """(B, 3) float32: left edge, right edge, count. Bins that float32 cannot tell apart are joined."""
    edges = np.minimum(np.maximum(record.edges, -_LARGEST), _LARGEST).astype(np.float32)
    counts = record.counts
    if not (edges[1:] > edges[:-1]).all():
        edges, first = np.unique(edges, return_index=True)
        if len(edges) == 1:
            edges = np.sort(np.append(edges, np.nextafter(edges, np.float32(0 if edges[0] else 1))))
            first = np.array([0, 0])
        counts = np.add.reduceat(counts, first[:-1])
    table = np.empty((len(counts), 3), np.float32)
    table[:, 0], table[:, 1], table[:, 2] = edges[:-1], edges[1:], counts
    return table


def _scalar(value: float) -> TensorProto:
    from tensorboard.compat.proto import tensor_pb2, types_pb2

    return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape={}, float_val=[value])


def _floats(array: NDArray[np.float32]) -> TensorProto:
    from tensorboard.compat.proto import tensor_pb2, types_pb2

    shape = {"dim": [{"size": size} for size in array.shape]}
    raw = array.astype("<f4").tobytes()
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=raw)


def _strings(*values: bytes) -> TensorProto:
    """One string as a scalar, several as a vector."""
    from tensorboard.compat.proto import tensor_pb2, types_pb2

    shape = {"dim": [{"size": len(values)}]} if len(values) > 1 else {}
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=values)


def _picture(picture: Picture) -> TensorProto:
    """As the Images tab wants it: width, height and a PNG."""
    return _strings(str(picture.width).encode(), str(picture.height).encode(), picture.png)
