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
    return list(zip(_short_counts([c for _, c in binned]), _short_edges([e for e, _ in binned]), strict=True))


def _at_most_bins(most: int, edges: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Merges neighbouring bins where there are more; no count crosses an edge that is kept."""
    if len(counts) <= most:
        return edges, counts
    starts = np.arange(0, len(counts), -(-len(counts) // most))
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _short_edges(each: Sequence[NDArray[Any]]) -> list[list[float]]:
    """Edges to 5 significant digits, or as many as show each bin as wide as it is."""
    return [_near(edges, rounded).tolist() for edges, rounded in zip(each, _short_each(each), strict=True)]


def _near(edges: NDArray[Any], rounded: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a range may be wider than any number
        allowed = _SHIFT * np.diff(edges).min()
    for digits in range(_DIGITS + 1, 18):  # 17 tell all
        if np.abs(rounded - edges).max() <= allowed:
            break
        rounded = short(edges, digits)
    return rounded


def _short_counts(each: Sequence[NDArray[Any]]) -> list[list[float]]:
    """Whole counts as they are; where some of a histogram were interpolated, all of its to 5 significant digits."""
    return [
        list(map(int, counts.tolist())) if (np.rint(counts) == counts).all() else rounded.tolist()
        for counts, rounded in zip(each, _short_each(each), strict=True)
    ]


def _short_each(each: Sequence[NDArray[Any]]) -> list[NDArray[np.float64]]:
    """`short` of each (N,)."""
    if not each:
        return []
    return np.split(short(np.concatenate(each)), np.cumsum([len(values) for values in each])[:-1])


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
