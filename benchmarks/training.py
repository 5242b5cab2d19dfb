"""The share of training time that the default probes take on their default schedules."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import vizlog
from benchmarks.models import WORKLOADS, Workload
from benchmarks.results import Found, Row, at_most
from vizlog.probes.base import Probe

_DUE = 4
_PLAIN = 4


def run() -> Found:
    rows: list[Row] = []
    numbers = {}
    for name, make in WORKLOADS.items():
        found, numbers[name] = measured(name, make)
        rows += found
    return Found(rows, numbers)


def measured(name: str, make: Callable[[], Workload]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one workload, and what they were made of."""
    histograms, everything = _measured(make(), histograms=True), _measured(make(), histograms=False)
    rows = [
        at_most(f"{name}: histograms and health, of 500 steps", 1, 100 * _share(500, histograms, histograms), "%"),
        at_most(f"{name}: everything, of 500 steps", 3, 100 * _share(500, histograms, everything), "%"),
        at_most(f"{name}: everything, of 5,000 steps", 1, 100 * _share(5000, histograms, everything), "%"),
    ]
    return rows, {"histograms": histograms, "everything": everything}


def _measured(work: Workload, *, histograms: bool) -> dict[str, Any]:
    """Seconds of a plain step, and how many more the first due step and later ones take: until all is written.

    While vizlog's threads and its process are at work the training goes on, and what slows its steps counts too.
    """
    with tempfile.TemporaryDirectory() as folder:
        probes = _histograms() if histograms else None
        monitor = vizlog.Monitor(
            work.model, probes, to=folder, batch=vizlog.FixedBatch(*work.held_out), optimizer=work.optimizer
        )
        work.step()
        plain: list[float] = []
        extra: list[float] = []
        for number in range(_DUE):
            plain += [_timed(work) for _ in range(_PLAIN)]
            start, steps = time.perf_counter(), 1
            with monitor.step(100 * number):
                work.backward()
            work.optimizer.step()
            written = threading.Thread(target=monitor.flush)
            written.start()
            while written.is_alive():
                work.step()
                steps += 1
            extra.append(time.perf_counter() - start - steps * statistics.median(plain[-2 * _PLAIN :]))
        on_training_thread = {turn.probe.name: turn.seconds / _DUE for turn in monitor._turns}
        monitor.close()
    return {
        "plain step": statistics.median(plain),
        "first due step": extra[0],
        "due step": statistics.median(extra[1:]),
        "each, on the training thread": on_training_thread,
    }


def _histograms() -> Sequence[Probe]:
    return [
        vizlog.WeightHistograms(),
        vizlog.GradientHistograms(),
        vizlog.UpdateRatios(),
        vizlog.ActivationHistograms(),
    ]


def _timed(work: Workload) -> float:
    start = time.perf_counter()
    work.step()
    return time.perf_counter() - start


def _share(steps: int, histograms: dict[str, Any], everything: dict[str, Any]) -> float:
    """Of the time that this many steps take: what the schedules make due, at the measured costs."""
    numbers, pictures = (_due(schedule, steps) for schedule in (vizlog.Thinning(), vizlog.LogSpaced(every=100)))
    with_pictures = len(pictures) - 1  # beside the first
    without = len(numbers - pictures)
    spent = everything["first due step"] + with_pictures * everything["due step"] + without * histograms["due step"]
    return float(spent / (steps * everything["plain step"]))


def _due(schedule: vizlog.Schedule, steps: int) -> set[int]:
    due, step = set(), schedule.next_step(-1)
    while step is not None and step < steps:
        due.add(step)
        step = schedule.next_step(step)
    return due
