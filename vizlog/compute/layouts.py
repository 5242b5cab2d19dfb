"""Layouts of the same points over time: each starts from, or is turned onto, the one before, so that they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vizlog.compute.projection import Floats, pca, procrustes, tsne, umap

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["METHODS", "Layouts", "Projected", "check_methods", "project"]

METHODS = ("pca", "tsne", "umap")
FEWEST = 4
"""Points below which only PCA is made: fewer have no neighbourhoods."""


@dataclass(frozen=True)
class Projected:
    """Where each method puts each point; rows of NaN for points that have no place (their vector is not finite).

    Args:
        layouts: method -> (N, 2); layouts_3d: "pca" -> (N, 3).
        notes: method -> what is particular to this layout, such as t-SNE's divergence or PCA's share of the variance.
    """

    layouts: Mapping[str, Floats] = field(default_factory=dict)
    layouts_3d: Mapping[str, Floats] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


Project: TypeAlias = Callable[..., Projected]


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, known and installed.

    Raises:
        ValueError: an unknown method, or none.
        ImportError: UMAP without umap-learn.
    """
    methods = (methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods))
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods= takes some of {', '.join(map(repr, METHODS))}, got {unknown or methods!r}")
    # Only looked for: importing umap-learn takes up to 15 seconds.
    if "umap" in methods and find_spec("umap") is None:
        raise ImportError("UMAP needs umap-learn: pip install 'vizlog[embeddings]'")
    return methods


def project(vectors: ArrayLike, methods: Sequence[str], previous: Projected | None = None) -> Projected:
    """Every method's layout of the points, comparable with the previous ones.

    PCA is turned onto the previous layout, t-SNE starts from it, UMAP starts from it and is turned onto it. Points that
    the previous layouts do not know (NaN) start where the nearest known one is. Fewer than four different finite points
    get PCA alone.

    Args:
        vectors: (N, D); previous: layouts of the same N points.
    """
    vectors, previous = np.asarray(vectors), previous or Projected()
    finite = np.isfinite(vectors).all(1)
    points = vectors[finite].astype(np.float64)
    if len(np.unique(points, axis=0)) < FEWEST:
        methods = ("pca",)
    layouts, layouts_3d, notes = {}, {}, {}
    for method in methods:
        start = _start(points, finite, previous.layouts.get(method))
        if method == "pca":
            layouts[method], notes[method] = _pca(points, 2, start)
            layouts_3d[method], _ = _pca(points, 3, _start(points, finite, previous.layouts_3d.get(method)))
        elif method == "tsne":
            layouts[method], divergence = tsne(points, start=start)
            notes[method] = f"KL divergence {divergence:.2f}"
        else:
            layouts[method] = umap(points, start=start)
    return Projected(_spread(layouts, finite), _spread(layouts_3d, finite), notes)


class Layouts:
    """Remembers where each point was, and projects it again.

    Args:
        methods: some of `METHODS`.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = check_methods(methods)
        self._places: dict[tuple[str, int], dict[int, Floats]] = {}

    def update(self, vectors: ArrayLike, ids: ArrayLike, *, by: Project = project) -> Projected:
        """The layouts of `vectors` (N, D), whose `ids` (N,) say which point each is.

        Args:
            by: what runs `project`, perhaps in another process.
        """
        keys = [int(key) for key in np.asarray(ids)]
        previous = Projected(
            {method: self._places_of(keys, method, 2) for method in self.methods},
            {"pca": self._places_of(keys, "pca", 3)},
        )
        projected = by(vectors, self.methods, previous)
        for layouts in (projected.layouts, projected.layouts_3d):
            for method, layout in layouts.items():
                places = self._places.setdefault((method, layout.shape[1]), {})
                places.update({keys[row]: layout[row] for row in np.flatnonzero(np.isfinite(layout).all(1))})
        return projected

    def _places_of(self, keys: Sequence[int], method: str, k: int) -> Floats:
        places, nowhere = self._places.get((method, k), {}), np.full(k, np.nan)
        return np.array([places.get(key, nowhere) for key in keys]).reshape(len(keys), k)


def _pca(points: Floats, k: int, start: Floats | None) -> tuple[Floats, str]:
    if not len(points):
        return np.empty((0, k)), ""
    layout = pca(points, k)
    unit = np.abs(points).max() or 1.0  # so that no square overflows or vanishes
    total = (((points - points.mean(0)) / unit) ** 2).sum()
    note = f"{((layout / unit) ** 2).sum() / total:.0%} of the variance" if total else ""
    return (layout if start is None else procrustes(layout, start)), note


def _start(points: Floats, finite: NDArray[np.bool_], previous: Floats | None) -> Floats | None:
    """The previous places of the finite points, unknown ones put on their nearest known; None where few are known."""
    if previous is None:
        return None
    start = previous[finite]
    known = np.isfinite(start).all(1)
    if known.sum() < max(FEWEST, len(start) / 2):
        return None
    for row in np.flatnonzero(~known):
        start[row] = start[known][((points[known] - points[row]) ** 2).sum(1).argmin()]
    return start


def _spread(layouts: Mapping[str, Floats], finite: NDArray[np.bool_]) -> dict[str, Floats]:
    """Layouts of the finite points, as layouts of all: NaN for the others."""
    spread = {}
    for method, layout in layouts.items():
        spread[method] = np.full((len(finite), layout.shape[1]), np.nan)
        spread[method][finite] = layout
    return spread
