"""How things are measured: side by side and in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "in_turns",
    "less_extra",
    "median",
    "memory_in_use",
    "memory_peak",
    "output_of",
    "reset_memory_peak",
    "turns",
]

_SHORTEST, _LONG = 2e-3, 0.1


def in_turns(works: Mapping[str, Callable[[], object]], *, repeats: int = 7) -> dict[str, float]:
    """Median seconds of each, run one after the other `repeats` times; a first round is not counted.

    What takes under two milliseconds is run as often in a row as makes two.
    """
    return {name: statistics.median(found) for name, found in turns(works, repeats=repeats).items()}


def turns(works: Mapping[str, Callable[[], object]], *, repeats: int = 7) -> dict[str, list[float]]:
    """As `in_turns`, the seconds of every round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    loops: dict[str, int] = {}
    for name, work in works.items():
        first = _seconds(work, 1)
        again = first if first > _LONG else _seconds(work, 1)
        loops[name] = max(1, round(_SHORTEST / max(again, 1e-7)))
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(_seconds(work, loops[name]) / loops[name])
    return times


def less_extra(times: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """How many times less `ours` adds to the "plain" step than `theirs`, by medians of the rounds' differences.

    What is lost in the noise counts as the noise (a quarter of the rounds differ by more): the ratio is a lower bound.
    """
    extra = {name: [a - b for a, b in zip(times[name], times["plain"], strict=True)] for name in (ours, theirs)}
    low, _, high = statistics.quantiles(extra[ours], n=4)
    noise = (high - low) / len(extra[ours]) ** 0.5
    return statistics.median(extra[theirs]) / max(statistics.median(extra[ours]), noise)


def median(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(found) for name, found in times.items()}


def _seconds(work: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        work()
    return time.perf_counter() - start


def output_of(code: str, *arguments: str) -> str:
    """What a fresh Python prints that runs this code."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def memory_in_use() -> int:
    """Bytes of this process that lie in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def reset_memory_peak() -> None:
    """From here on `memory_peak` counts anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_peak() -> int:
    """The most bytes of this process that lay in memory since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
