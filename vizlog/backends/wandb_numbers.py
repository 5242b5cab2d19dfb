"""Numbers as W&B gets them: as text, and again in the summary, so with no more digits than can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vizlog.records import Histogram

__all__ = ["bins_of", "short", "short_histograms"]

Floats: TypeAlias = NDArray[np.float64]

_DIGITS = 5
_POWERS = np.array([10.0**power for power in range(23)])  # those that a float64 holds exactly
_SHIFT = 0.01
"""How far an edge may be moved, in widths of the narrowest bin."""


_FINEST = 64
_COARSEST = 16


def bins_of(record: Histogram) -> int:
    """How many bins show its values: their square root, as numpy's `bins="sqrt"`, to the nearest power of two.

    Finer ones of a layer's 100 biases show chance, and W&B's process takes a microsecond for each bin of each. Other
    bins than the 64 that vizlog draws somebody has chosen: they stay.
    """
    bins, drawn = _COARSEST, len(record.counts)
    if drawn != _FINEST:
        return drawn
    while bins < _FINEST and 2 * bins * bins < record.count:
        bins *= 2
    return bins


def short_histograms(records: Sequence[Histogram], most: int) -> list[tuple[list[float], list[float]]]:
    """(counts, edges) of each, of at most so many bins; at once, since numpy takes as long for few as for many."""
    alike: dict[tuple[int, int], list[int]] = {}
    for k, record in enumerate(records):
        alike.setdefault((len(record.counts), min(most, bins_of(record))), []).append(k)
    found: dict[int, tuple[list[float], list[float]]] = {}
    for (_, bins), those in alike.items():
        edges = np.array([records[k].edges for k in those], np.float64)
        counts = np.array([records[k].counts for k in those], np.float64)
        edges, counts = _at_most_bins(bins, edges, counts)
        found |= zip(those, zip(_short_counts(counts), _short_edges(edges), strict=True), strict=True)
    return [found[k] for k in range(len(records))]


def _at_most_bins(most: int, edges: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Merges neighbouring bins of each where there are more; no count crosses an edge that is kept."""
    number = counts.shape[1]
    if number <= most:
        return edges, counts
    starts = np.arange(0, number, -(-number // most))
    return edges[:, [*starts, number]], np.add.reduceat(counts, starts, axis=1)


def _short_edges(edges: Floats) -> list[list[float]]:
    """Edges (T, B+1) to 5 significant digits, or as many as show each bin as wide as it is."""
    with np.errstate(over="ignore"):  # a range may be wider than any number
        allowed = _SHIFT * np.diff(edges).min(axis=1)
    rounded = short(edges)
    for digits in range(_DIGITS + 1, 18):  # 17 tell all
        moved = np.abs(rounded - edges).max(axis=1) > allowed
        if not moved.any():
            break
        rounded[moved] = short(edges[moved], digits)
    return list(rounded.tolist())


def _short_counts(counts: Floats) -> list[list[float]]:
    """Whole counts (T, B) as they are; where some of a histogram were interpolated, all of its to 5 digits."""
    whole = ((np.rint(counts) == counts) & (counts < 1 << 53)).all(axis=1)
    as_they_are, rounded = iter(counts[whole].astype(np.int64).tolist()), iter(short(counts[~whole]).tolist())
    return [next(as_they_are if each else rounded) for each in whole.tolist()]


def short(values: NDArray[Any], digits: int = _DIGITS) -> Floats:
    """Each value as a float64 of so many significant digits; half-way between two it may become either."""
    values = np.asarray(values, np.float64)
    magnitudes = np.abs(values)
    places = digits - 1 - np.floor(np.log10(np.where(magnitudes > 0, magnitudes, 1.0)))
    exact = np.abs(places) < len(_POWERS)
    # Whole numbers and these powers are exact, so that one division or product gives the nearest float there is.
    power = _POWERS[np.where(exact, np.abs(places), 0).astype(int)]
    behind_the_point = places >= 0
    whole = np.rint(np.where(behind_the_point, values * power, values / power))
    found = np.where(behind_the_point, whole / power, whole * power)
    if not exact.all():
        found[~exact] = [float(f"{value:.{digits}g}") for value in values[~exact].tolist()]
    return np.where(np.isfinite(found), found, values)  # the largest numbers there are would become infinite
