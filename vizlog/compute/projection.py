"""Vectors put on a plane (PCA, t-SNE, UMAP), and scores of how well they separate classes or order a quantity.

All of it is for some hundreds of points, as a fixed batch has: the distances between them lie in one matrix.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["knn_accuracy", "knn_r2", "neighbours", "pca", "procrustes", "silhouette", "tsne", "umap"]

# This module imports numpy alone, so that the low-priority process that runs it starts in a tenth of a second.

Floats: TypeAlias = NDArray[np.float64]

_PERPLEXITY = 30.0
"""About how many neighbours t-SNE gives each point."""

_EXAGGERATION = 12.0
_EXAGGERATED, _PATIENT, _WARM = 250, 750, 200
"""Iterations of t-SNE's gradient descent: exaggerated, those after them, and those from an earlier layout."""

_CHUNK = 1 << 20
"""Numbers in flight at a time where distances are computed point by point."""

_CANCELLED = 1e-9
"""A squared distance below this share of the squared lengths has lost half of its digits to their difference."""


def pca(vectors: ArrayLike, k: int = 2) -> Floats:
    """The scores of the first `k` principal components, exactly.

    Args:
        vectors: (N, D), finite.

    Returns:
        (N, k), centred, in the unit of the vectors; columns beyond the rank are zero. A column's sign means nothing.
    """
    scaled, scale = _scaled(vectors)
    rows, columns = scaled.shape
    layout = np.zeros((rows, k))
    # The smaller of the two Gram matrices has the same leading eigenpairs.
    gram = scaled @ scaled.T if rows <= columns else scaled.T @ scaled
    values, basis = np.linalg.eigh(gram)
    leading = basis[:, ::-1][:, :k]
    scores = leading * np.sqrt(values[::-1][:k].clip(min=0)) if rows <= columns else scaled @ leading
    layout[:, : scores.shape[1]] = scores * scale
    return layout


def tsne(vectors: ArrayLike, *, start: ArrayLike | None = None) -> tuple[Floats, float]:
    """t-SNE (van der Maaten & Hinton 2008): neighbours stay neighbours; distances and sizes of clusters mean nothing.

    From a `start` (an earlier layout) it goes on without early exaggeration, so that clusters stay where they are.
    Exact, so its cost grows with the square of the points, and nothing in it is random.

    Args:
        vectors: (N, D), finite, N >= 4.
        start: (N, 2), or None for the first two principal components.

    Returns:
        The layout (N, 2), and its Kullback-Leibler divergence in nats.
    """
    scaled, _ = _scaled(vectors)
    joint = _joint_probabilities(scaled, max(1.0, min(_PERPLEXITY, (len(scaled) - 1) / 3)))
    if start is None:
        layout = _descend(joint * _EXAGGERATION, _cold_start(scaled), _EXAGGERATED, momentum=0.5)
        layout = _descend(joint, layout, _PATIENT, momentum=0.8)
    else:
        layout = _descend(joint, np.array(start, dtype=np.float64), _WARM, momentum=0.8)
    return layout, _divergence(joint, layout)


def umap(vectors: ArrayLike, *, start: ArrayLike | None = None) -> Floats:
    """UMAP (McInnes 2018) by umap-learn: neighbours stay neighbours; distances and sizes of clusters mean nothing.

    Args:
        vectors: (N, D), finite, N >= 4.
        start: (N, 2), an earlier layout: 100 epochs from there, turned onto it; None: its own start and epochs.

    Returns:
        The layout (N, 2).

    Raises:
        ImportError: umap-learn is not installed.
    """
    scaled, _ = _scaled(vectors)
    library = _umap_learn()
    # Spectral initialisation has fewer eigenvectors than it asks for where points are very few.
    init = ("spectral" if len(scaled) > 16 else "random") if start is None else np.array(start, dtype=np.float32)
    epochs = None if start is None else 100
    near = min(15, len(scaled) - 1)
    model = library.UMAP(n_neighbors=near, init=init, n_epochs=epochs, random_state=0, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about disconnected neighbourhoods and its own dependencies
        layout = np.asarray(model.fit_transform(scaled.astype(np.float32)), dtype=np.float64)
    return layout if start is None else procrustes(layout, start)


def procrustes(layout: ArrayLike, reference: ArrayLike) -> Floats:
    """`layout` turned, mirrored and moved (not stretched) to lie as near as it can to `reference` (Schönemann 1966).

    Args:
        layout, reference: (N, k); rows of the reference that hold NaN are not looked at.
    """
    layout, reference = np.asarray(layout, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    known = np.isfinite(reference).all(1) & np.isfinite(layout).all(1)
    if not known.any():
        return layout
    here, there = layout[known].mean(0), reference[known].mean(0)
    left, _, right = np.linalg.svd((layout[known] - here).T @ (reference[known] - there))
    return np.asarray((layout - here) @ (left @ right) + there)


def neighbours(labels: ArrayLike, most: int) -> int:
    """How many neighbours to ask for a point's class: `most`, and no more than classes have other points on average.

    Among more of them than its class has, the points of other classes outvote it however well the classes separate.
    Classes of one point are not counted, as they are not scored.
    """
    found = np.asarray(labels)
    _, counts = np.unique(found[found != -1], return_counts=True)
    counts = counts[counts > 1]
    return max(1, min(most, int(counts.sum()) // max(1, len(counts)) - 1))


def knn_accuracy(vectors: ArrayLike, labels: ArrayLike, k: int = 10) -> float:
    """Share of the points whose class most of their `k` nearest others have (leave-one-out, Euclidean distance).

    Args:
        vectors: (N, D); labels: (N,) ints. Rows that are not finite, have label −1 or are alone in their class are left
            out.

    Returns:
        0 to 1; NaN with fewer than two classes of several points.
    """
    points, classes, number = _labelled(vectors, labels)
    if number < 2:
        return float("nan")
    nearest = _nearest(points, k)
    votes = np.zeros((len(points), number))
    np.add.at(votes, (np.arange(len(points))[:, None], classes[nearest]), 1)
    return float((votes.argmax(1) == classes).mean())


def knn_r2(vectors: ArrayLike, values: ArrayLike, k: int = 10) -> float:
    """How much of the variance of a quantity the mean over each point's `k` nearest others explains (R²).

    Leave-one-out, by Euclidean distance. It is to a quantity what `knn_accuracy` is to classes.

    Args:
        vectors: (N, D); values: (N,). Rows that are not finite, or whose value is not, are left out.

    Returns:
        1 at most; about 0 or below where near points are no more alike than others; NaN where the values are fewer
        than three, or all the same.
    """
    points, quantity = np.asarray(vectors, dtype=np.float64), np.asarray(values, dtype=np.float64)
    kept = np.isfinite(points).all(1) & np.isfinite(quantity)
    points, quantity = points[kept], quantity[kept]
    if len(quantity) < 3 or quantity.min() == quantity.max():
        return float("nan")
    quantity = quantity / np.abs(quantity).max()  # so that no square overflows
    missed = quantity - quantity[_nearest(_centred(points), k)].mean(1)
    return float(1 - (missed**2).sum() / ((quantity - quantity.mean()) ** 2).sum())


def silhouette(vectors: ArrayLike, labels: ArrayLike) -> float:
    """Mean silhouette (Rousseeuw 1987): (b − a) / max(a, b), a point's mean distance to its own and to the next class.

    Args:
        vectors: (N, D); labels: (N,) ints. Rows that are not finite, have label −1 or are alone in their class are left
            out.

    Returns:
        −1 to 1 (0: classes overlap); NaN with fewer than two classes of several points.
    """
    points, classes, number = _labelled(vectors, labels)
    if number < 2:
        return float("nan")
    members, own = np.eye(number)[classes], classes[:, None]
    sizes = members.sum(0)
    sums = np.sqrt(_squared_distances(points)) @ members
    inside = np.take_along_axis(sums, own, 1)[:, 0] / (sizes[classes] - 1)
    means = sums / sizes
    np.put_along_axis(means, own, np.inf, 1)
    outside = means.min(1)
    larger = np.maximum(inside, outside)
    apart = larger > 0
    return float(((outside - inside)[apart] / larger[apart]).sum()) / len(points)


def _scaled(vectors: ArrayLike) -> tuple[Floats, float]:
    """Centred float64 within ±2, and the factor that restores the unit, so that no square overflows."""
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a projection needs vectors (N, D), got {values.shape}")
    scale = float(np.abs(values).max())
    if not np.isfinite(scale):
        raise ValueError("a projection needs finite vectors: leave out the rows that hold NaN or inf")
    scale = scale or 1.0
    values = values / scale
    return values - values.mean(0), scale


def _labelled(vectors: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.intp], int]:
    """The finite, labelled points that are not alone in their class; classes counted from 0; how many there are."""
    values, labels = np.asarray(vectors, dtype=np.float64), np.asarray(labels)
    kept = np.isfinite(values).all(1) & (labels != -1)
    _, classes, counts = np.unique(labels[kept], return_inverse=True, return_counts=True)
    kept[kept] = counts[classes] > 1
    names, classes = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        return values[:0], np.asarray(classes), len(names)
    return _centred(values[kept]), np.asarray(classes), len(names)


def _centred(points: Floats) -> Floats:
    """Within ±2, so that no square overflows, and near zero, so that distances keep their digits."""
    scaled = points / (float(np.abs(points).max()) or 1.0)
    # Of the median, and not of the mean: a point far off would shift all others, and take the last digits from them.
    return np.asarray(scaled - np.median(scaled, axis=0))


def _nearest(points: Floats, k: int) -> NDArray[np.intp]:
    """(N, k), each point's nearest others, in no order; all of them where there are fewer."""
    squared = _squared_distances(points)
    np.fill_diagonal(squared, np.inf)
    k = min(k, len(points) - 1)
    return np.asarray(np.argpartition(squared, k - 1, axis=1)[:, :k])


def _squared_distances(points: Floats) -> Floats:
    """(N, N), by |a|² + |b|² − 2ab; again by (a − b)² where that has lost its digits: near points, far from zero."""
    norms = (points**2).sum(1)
    both = norms[:, None] + norms
    squared = both - 2 * points @ points.T
    np.fill_diagonal(squared, 0)
    pairs = np.argwhere(squared < _CANCELLED * both)
    step = max(1, _CHUNK // points.shape[1])
    for first in range(0, len(pairs), step):
        i, j = pairs[first : first + step].T
        squared[i, j] = ((points[i] - points[j]) ** 2).sum(1)
    return np.asarray(squared.clip(min=0))


def _cold_start(scaled: Floats) -> Floats:
    """The first two principal components, very small, as t-SNE likes to start."""
    layout = pca(scaled)
    return np.asarray(layout / (layout[:, 0].std() or 1.0) * 1e-4)


def _joint_probabilities(points: Floats, perplexity: float) -> Floats:
    """P of equations 1 and 2: (N, N), symmetric, adding up to 1; each row's entropy was log(perplexity) before."""
    number = len(points)
    others = ~np.eye(number, dtype=bool)
    squared = _squared_distances(points)[others].reshape(number, number - 1)
    squared -= squared.min(1, keepdims=True)
    squared /= squared.mean() or 1.0
    low, high, precision = np.zeros(number), np.full(number, np.inf), np.ones(number)
    chances = np.empty_like(squared)
    for _ in range(64):
        np.exp(-squared * precision[:, None], out=chances)
        sums = chances.sum(1)
        chances /= sums[:, None]
        error = np.log(sums) + precision * (squared * chances).sum(1) - np.log(perplexity)
        if np.abs(error).max() < 1e-5:
            break
        low, high = np.where(error > 0, precision, low), np.where(error > 0, high, precision)
        precision = np.where(np.isinf(high), precision * 2, (low + high) / 2)
    joint = np.zeros((number, number))
    joint[others] = chances.ravel()
    return (joint + joint.T) / (2 * number)


def _descend(joint: Floats, layout: Floats, iterations: int, momentum: float) -> Floats:
    """Gradient descent on equation 5, with momentum and, for each coordinate, a gain (Jacobs 1988)."""
    rate = _rate(len(layout))
    step, gains = np.zeros_like(layout), np.ones_like(layout)
    kernel, forces = np.empty_like(joint), np.empty_like(joint)
    ones = np.ones((len(layout), 1))
    for _ in range(iterations):
        _student_kernel(layout, kernel)
        np.multiply(kernel, -1 / kernel.sum(), out=forces)
        forces += joint
        forces *= kernel
        pulled = forces @ np.hstack([layout, ones])
        gradient = 4 * (pulled[:, 2:] * layout - pulled[:, :2])
        gains = np.where(step * gradient < 0, gains + 0.2, gains * 0.8).clip(min=0.01)
        step = momentum * step - rate * gains * gradient
        layout = layout + step
        layout -= layout.mean(0)
    return layout


def _student_kernel(layout: Floats, out: Floats) -> Floats:
    """1 / (1 + squared distance), the unnormalised Q of equation 4, with a diagonal of zeros; one matrix product."""
    norms, ones = (layout**2).sum(1, keepdims=True), np.ones((len(layout), 1))
    np.matmul(np.hstack([-2 * layout, norms + 1, ones]), np.hstack([layout, ones, norms]).T, out=out)
    np.maximum(out, 1, out=out)
    np.reciprocal(out, out=out)
    np.fill_diagonal(out, 0)
    return out


def _divergence(joint: Floats, layout: Floats) -> float:
    kernel = _student_kernel(layout, np.empty_like(joint))
    positive = joint > 0
    return float((joint[positive] * np.log(joint[positive] / (kernel / kernel.sum())[positive])).sum())


def _rate(number: int) -> float:
    """The learning rate, for gradients with their factor of 4; it grows with the points (Belkina et al. 2019).

    Found by trial: scikit-learn's floor of 50 throws few points about; on up to 300 digits this reaches a lower
    divergence.
    """
    return max(number / 24, 4.0)


def _umap_learn() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("umap")
    except ImportError as error:
        raise ImportError("UMAP needs umap-learn: pip install 'vizlog[embeddings]'") from error
