"""Numbers as W&B gets them: as text, and again in the summary, so with no more digits than can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizlog.records import Histogram

__all__ = ["short", "short_histograms"]

_DIGITS = 5
_POWERS = np.array([10.0**power for power in range(23)])  # those that a float64 holds exactly
_SHIFT = 0.01
"""How far an edge may be moved, in widths of the narrowest bin."""


def short_histograms(records: Sequence[Histogram], most: int) -> list[tuple[list[float], list[float]]]:
    """(counts, edges) of each, of at most so many bins; at once, since numpy takes as long for few as for many."""
    binned = [_at_most_bins(most, np.asarray(record.edges), np.asarray(record.counts)) for record in records]
    found: dict[int, tuple[list[float], list[float]]] = {}
    for number in {len(counts) for _, counts in binned}:
        alike = [k for k, (_, counts) in enumerate(binned) if len(counts) == number]
        edges, counts = (np.array([binned[k][part] for k in alike], np.float64) for part in (0, 1))
        found |= zip(alike, zip(_short_counts(counts), _short_edges(edges), strict=True), strict=True)
    return [found[k] for k in range(len(binned))]


def _at_most_bins(most: int, edges: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Merges neighbouring bins where there are more; no count crosses an edge that is kept."""
    if len(counts) <= most:
        return edges, counts
    starts = np.arange(0, len(counts), -(-len(counts) // most))
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _short_edges(edges: NDArray[np.float64]) -> list[list[float]]:
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


def _short_counts(counts: NDArray[np.float64]) -> list[list[float]]:
    """Whole counts (T, B) as they are; where some of a histogram were interpolated, all of its to 5 digits."""
    whole = ((np.rint(counts) == counts) & (counts < 1 << 53)).all(axis=1)
    as_they_are, rounded = iter(counts[whole].astype(np.int64).tolist()), iter(short(counts[~whole]).tolist())
    return [next(as_they_are if each else rounded) for each in whole.tolist()]


def short(values: NDArray[Any], digits: int = _DIGITS) -> NDArray[np.float64]:
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
