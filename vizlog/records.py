"""The record types: what a probe found, as data and not as pixels.

A record is a frozen dataclass of numpy arrays with a `tag` (where it goes) and a `caption` (what was computed, on which
examples, from which source, with which settings, and what was left out). Records compare by identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Attention",
    "Curves",
    "Embedding",
    "Heatmaps",
    "Histogram",
    "Images",
    "Record",
    "Scalar",
    "Surface",
    "Text",
    "shown_in_notebooks_by",
    "without_surrogates",
]

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.integer[Any]]
Pixels: TypeAlias = NDArray[np.uint8]
Limits: TypeAlias = tuple[float, float]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, eq=False)
class _Tagged:
    """What every record has: a tag, `kind/module.path`, and a caption."""

    tag: str
    caption: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.tag, str) and self.tag.strip()):
            raise ValueError(f"a record needs a tag such as 'weights/conv1', got {self.tag!r}")
        if type(self.tag) is not str or not self.tag.isascii():
            object.__setattr__(self, "tag", without_surrogates(self.tag))
        if type(self.caption) is not str or not self.caption.isascii():
            object.__setattr__(self, "caption", without_surrogates(self.caption))


def without_surrogates(text: str) -> str:
    """A plain text with lone surrogates, as file names may hold, as escapes: they can be written nowhere.

    (Nor can an enum's member that is a text be read in another process.)
    """
    return text.encode("utf-8", "backslashreplace").decode()


def shown_in_notebooks_by(draw: Callable[[Any], str]) -> None:
    """Lets every record show itself in a notebook, as the HTML that `draw` makes of it: this layer cannot draw."""
    setattr(_Tagged, "_repr_html_", draw)  # noqa: B010  (mypy: the class itself has no such method)


@dataclass(frozen=True, eq=False)
class Scalar(_Tagged):
    """One number, which may be NaN or infinite."""

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "value", float(self.value))


@dataclass(frozen=True, eq=False)
class Histogram(_Tagged):
    """How the values of one tensor are distributed.

    Args:
        edges: (B+1,) float64, finite and rising; bin i is [edges[i], edges[i+1]), the last one closed.
        counts: (B,) finite values in each bin, none below 0; whole numbers where the bins are exact, fractions where
            they were interpolated.
        count: every element, non-finite ones too, so `counts.sum() + nans + pos_infs + neg_infs == count`.
        zeros: elements equal to 0, −0.0 too.
        min, max, mean, std: of the finite elements (population standard deviation); NaN where there are none.
        quantiles: value at each of `QUANTILES`; empty where no element is finite.
    """

    edges: Floats
    counts: Floats | Ints
    count: int
    zeros: int
    nans: int
    pos_infs: int
    neg_infs: int
    min: float
    max: float
    mean: float
    std: float
    quantiles: Mapping[float, float]

    @classmethod
    def unchecked(cls, **fields: Any) -> Histogram:
        """One of counts that were seen to add up: to check them once more took longer than to draw them.

        Args:
            fields: all there are, by name; none is looked at.

        Raises:
            ValueError: it has no tag.
        """
        record = object.__new__(cls)
        object.__setattr__(record, "__dict__", fields)
        _Tagged.__post_init__(record)
        return record

    def __post_init__(self) -> None:
        super().__post_init__()
        edges, counts = np.asarray(self.edges), np.asarray(self.counts)
        if not (edges.ndim == 1 and counts.ndim == 1 and len(edges) == len(counts) + 1 and len(counts) >= 1):
            raise ValueError(
                f"a histogram of B bins needs edges (B+1,) and counts (B,), got {edges.shape} and {counts.shape}"
            )
        # Between finite ends that rise, every edge that rises is finite too.
        if not (math.isfinite(edges[0]) and math.isfinite(edges[-1]) and (edges[1:] > edges[:-1]).all()):
            raise ValueError(
                f"histogram edges must be finite and rising, got {len(edges)} from {edges[0]} to {edges[-1]}"
            )
        total = float(counts.sum()) + self.nans + self.pos_infs + self.neg_infs
        precision = max(1e-6 * self.count, 1e-6)
        lowest = min(counts.min(), self.zeros, self.nans, self.pos_infs, self.neg_infs)
        if not lowest >= -precision:
            raise ValueError(f"the counts of a histogram must be 0 or more, got {lowest}")
        if not abs(total - self.count) <= precision:
            raise ValueError(f"counts and non-finite add up to {total:g}, but count is {self.count}")


@dataclass(frozen=True, eq=False)
class Images(_Tagged):
    """A grid of pictures: pixels (N, H, W, C) uint8 with C 1, 3 or 4.

    Args:
        titles: one per picture.
        limits: (low, high), the values that pixel 0 and pixel 255 stand for.
        norms: (N,) a number per picture (a filter's norm), or None.
    """

    pixels: Pixels
    titles: Sequence[str]
    limits: Limits
    norms: Floats | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.pixels
        _require(
            pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[-1] in (1, 3, 4) and pixels.size > 0,
            f"pixels must be (N, H, W, C) uint8 with C 1, 3 or 4, got {pixels.shape} {pixels.dtype}",
        )
        _require_one_each("titles", self.titles, len(pixels))


@dataclass(frozen=True, eq=False)
class Heatmaps(_Tagged):
    """Maps of values (N, H, W) float32, drawn in a colormap over stated limits.

    Args:
        titles, notes: one per map; a note says what is particular to it (target class, completeness gap).
        limits: (low, high) of the colormap; for "diverging" low == −high.
        row_labels, column_labels: per map the labels of its rows and columns, or None.
        over: (N, H', W', C) uint8, the picture each map lies over; one for several maps is what all are of, and is
            drawn once, before them; or None.
    """

    values: Floats
    titles: Sequence[str]
    notes: Sequence[str]
    limits: Limits
    colormap: Literal["sequential", "diverging"] = "sequential"
    row_labels: Sequence[Sequence[str]] | None = None
    column_labels: Sequence[Sequence[str]] | None = None
    over: Pixels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.values.ndim == 3 and self.values.size > 0,
            f"heatmap values must be (N, H, W), got {self.values.shape}",
        )
        _require(
            self.colormap in ("sequential", "diverging"),
            f"colormap must be 'sequential' or 'diverging', got {self.colormap!r}",
        )
        number = len(self.values)
        _require_one_each("titles", self.titles, number)
        _require_one_each("notes", self.notes, number)
        for name in ("row_labels", "column_labels", "over"):
            value = getattr(self, name)
            if value is not None and not (name == "over" and len(value) == 1):
                _require_one_each(name, value, number)


@dataclass(frozen=True, eq=False)
class Attention(_Tagged):
    """Attention probabilities: weights (examples, heads, queries, keys) float32.

    Args:
        examples: ids of the examples shown; heads: the numbers of the heads shown.
        query_tokens, key_tokens: per example the tokens along each axis.
    """

    weights: Floats
    examples: Sequence[int]
    heads: Sequence[int]
    query_tokens: Sequence[Sequence[str]]
    key_tokens: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.weights.ndim == 4 and self.weights.size > 0,
            f"attention weights must be (examples, heads, queries, keys), got {self.weights.shape}",
        )
        examples, heads = self.weights.shape[:2]
        _require_one_each("examples", self.examples, examples)
        _require_one_each("heads", self.heads, heads)
        _require_one_each("query_tokens", self.query_tokens, examples)
        _require_one_each("key_tokens", self.key_tokens, examples)


@dataclass(frozen=True, eq=False)
class Embedding(_Tagged):
    """Vectors (N, D) and where each projection method puts them.

    Args:
        layouts: method -> (N, 2); layouts_3d: method -> (N, 3).
        labels: (N,) class numbers (−1: none), or floating: a quantity (NaN: none).
        class_names: name of each class number, may be empty; of a quantity its own name alone.
        ids: (N,) which example of the fixed batch each row is.
        thumbnails: (N, H, W, C) uint8, or None.
        scores: figures such as k-nearest-neighbour accuracy.
    """

    vectors: Floats
    layouts: Mapping[str, Floats]
    layouts_3d: Mapping[str, Floats]
    labels: Ints | Floats
    class_names: Sequence[str]
    ids: Ints
    thumbnails: Pixels | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.vectors.ndim == 2 and self.vectors.size > 0,
            f"embedding vectors must be (N, D), got {self.vectors.shape}",
        )
        number = len(self.vectors)
        for dimensions, layouts in ((2, self.layouts), (3, self.layouts_3d)):
            for method, layout in layouts.items():
                _require(
                    layout.shape == (number, dimensions),
                    f"layout {method!r} must be ({number}, {dimensions}), got {layout.shape}",
                )
        _require_one_each("labels", self.labels, number)
        _require_one_each("ids", self.ids, number)
        if self.thumbnails is not None:
            _require_one_each("thumbnails", self.thumbnails, number)

    @property
    def is_of_quantity(self) -> bool:
        """Whether the labels are a quantity and no classes."""
        return np.issubdtype(np.asarray(self.labels).dtype, np.floating)


@dataclass(frozen=True, eq=False)
class Curves(_Tagged):
    """Lines over one x: x (N,), ys name -> (N,); NaN where a line has no value.

    Args:
        x_names: a name for each x (a layer's), or None where x is a quantity.
    """

    x: Floats | Ints
    ys: Mapping[str, Floats]
    x_label: str
    y_label: str
    x_names: Sequence[str] | None = None
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.x.ndim == 1 and len(self.x) >= 1, f"curves need x (N,), got {self.x.shape}")
        for name, y in self.ys.items():
            _require(y.shape == self.x.shape, f"curve {name!r} must be {self.x.shape}, got {y.shape}")
        if self.x_names is not None:
            _require_one_each("x_names", self.x_names, len(self.x))


@dataclass(frozen=True, eq=False)
class Surface(_Tagged):
    """Heights z (H, W) over a plane x (W,), y (H,), and a path (T, 2 or 3) on it, or None."""

    x: Floats
    y: Floats
    z: Floats
    path: Floats | None
    x_label: str
    y_label: str
    z_label: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.z.shape == (len(self.y), len(self.x)) and self.z.size > 0,
            f"a surface needs z (H, W) over y (H,) and x (W,), got {self.z.shape}, {self.y.shape}, {self.x.shape}",
        )
        if self.path is not None:
            _require(
                self.path.ndim == 2 and self.path.shape[1] in (2, 3),
                f"a surface's path must be (T, 2) or (T, 3), got {self.path.shape}",
            )


@dataclass(frozen=True, eq=False)
class Text(_Tagged):
    """A text in markdown."""

    text: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.text, str):
            raise TypeError(f"the text of {self.tag} must be a str, got {self.text!r}")
        object.__setattr__(self, "text", without_surrogates(self.text))


Record: TypeAlias = Scalar | Histogram | Images | Heatmaps | Attention | Embedding | Curves | Surface | Text


def _require_one_each(name: str, values: Any, number: int) -> None:
    _require(len(values) == number, f"expected {number} {name}, one for each item, got {len(values)}")
