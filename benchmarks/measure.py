"""How things are measured: side by side and in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = [
    "in_turns",
    "memory_in_use",
    "memory_peak",
    "once_in_turns",
    "output_of",
    "reset_memory_peak",
]

_SHORTEST, _LONG = 2e-3, 0.1

_REST = 0.2
"""Seconds. Threads of numpy's BLAS, which `add_histogram` calls, go on spinning for a tenth of one, on a core that what
is measured next would have."""


def in_turns(works: Mapping[str, Callable[[], object]], *, repeats: int = 7, rests: bool = False) -> dict[str, float]:
    """Median seconds of each, run one after the other `repeats` times; a first round is not counted.

    What takes under two milliseconds is run as often in a row as makes two. With `rests`, threads that one left behind
    are waited for before the next.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    loops: dict[str, int] = {}
    for name, work in works.items():
        first = _seconds(work, 1)
        again = first if first > _LONG else _seconds(work, 1)
        loops[name] = max(1, round(_SHORTEST / max(again, 1e-7)))
    for _ in range(repeats):
        for name, work in works.items():
            if rests:
                time.sleep(_REST)
            times[name].append(_seconds(work, loops[name]) / loops[name])
    return {name: statistics.median(found) for name, found in times.items()}


def once_in_turns(
    works: Mapping[str, Callable[[], object]], *, at_once: str, repeats: int = 9
) -> dict[str, list[float]]:
    """The seconds of each in every round, of works that lean on the one before, and so are run once a round.

    There is a rest before each but `at_once`, which has to do with what the one before left behind. A first round is
    not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + repeats):
        for name, work in works.items():
            if name != at_once:
                time.sleep(_REST)
            times[name].append(_seconds(work, 1))
    return {name: found[1:] for name, found in times.items()}


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
