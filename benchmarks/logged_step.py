"""One step at which every weight, gradient and activation histogram is due, beside the same by the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import wandb
from torch.utils.tensorboard import SummaryWriter

import vizlog
from benchmarks.measure import less_extra, median, turns
from benchmarks.models import WORKLOADS, Workload
from benchmarks.peers import SummaryWriterLoop, offline_run
from benchmarks.results import Found, Row, at_least, told

_REPEATS = 4


def run() -> Found:
    rows: list[Row] = []
    numbers = {}
    for name, make in WORKLOADS.items():
        beside_writer, beside_watch = _beside_writer(make()), _beside_watch(make)
        numbers[name] = {
            "beside a SummaryWriter loop": median(beside_writer),
            "beside wandb.watch": median(beside_watch),
        }
        what = f"{name}: less extra time than"
        rows += [
            at_least(f"{what} a SummaryWriter loop", 40, less_extra(beside_writer, "vizlog", "writer")),
            told("and until all is written, worker's time too", less_extra(beside_writer, "vizlog, written", "writer")),
            told("and on a fixed batch of 32, a forward more", less_extra(beside_writer, "vizlog, batch", "writer")),
            at_least(f"{what} wandb.watch, weights and gradients", 8, less_extra(beside_watch, "vizlog", "watch")),
        ]
    return Found(rows, numbers)


def _beside_writer(work: Workload) -> dict[str, list[float]]:
    """Seconds of two steps: plain ones, the first logged by vizlog, and by a loop over `add_histogram`.

    What vizlog's worker does meanwhile slows the second. Activations are those of the training forward, as in the loop;
    the default is a pass over a fixed batch.
    """
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(str(Path(folder, "writer"))) as writer:
        loop = SummaryWriterLoop(work.model, writer)
        live, batch = (_monitor(work, Path(folder, source), source) for source in ("live", "batch"))

        def logged(monitor: vizlog.Monitor) -> None:
            with monitor.step():
                work.backward()
            work.optimizer.step()

        def by_writer() -> None:
            with loop.activations():
                work.backward()
            work.optimizer.step()
            loop.log(0)

        works: dict[str, Callable[[], object]] = {
            "plain": work.step,
            "vizlog": lambda: logged(live),
            "vizlog, written": lambda: (logged(live), live.flush()),
            "vizlog, batch": lambda: logged(batch),
            "writer": by_writer,
        }
        times = turns({name: _and_a_step(one, work) for name, one in works.items()}, repeats=_REPEATS)
        live.close()
        batch.close()
    return times


def _monitor(work: Workload, folder: Path, source: Any) -> vizlog.Monitor:
    probes = [
        vizlog.WeightHistograms(every=1, most=None),
        vizlog.GradientHistograms(every=1, most=None),
        vizlog.ActivationHistograms(every=1, most=None, source=source),
    ]
    held_out = vizlog.FixedBatch(*work.held_out)
    return vizlog.Monitor(work.model, probes, to=folder, optimizer=work.optimizer, batch=held_out)


def _and_a_step(logged: Callable[[], object], work: Workload) -> Callable[[], None]:
    def both() -> None:
        logged()
        work.step()

    return both


def _beside_watch(make: Callable[[], Workload]) -> dict[str, list[float]]:
    """Seconds of two steps: plain ones, the first logged by vizlog to W&B (weights, gradients), and by `wandb.watch`.

    Each is logged every second step, so that the same work is compared.
    """
    with ExitStack() as stack:
        run = stack.enter_context(offline_run())
        plain, ours, theirs = make(), make(), make()
        probes = [vizlog.WeightHistograms(every=2, most=None), vizlog.GradientHistograms(every=2, most=None)]
        monitor = vizlog.watch(ours.model, ours.optimizer, to=run, probes=probes)
        stack.callback(monitor.close)
        run.watch(theirs.model, log="all", log_freq=2)

        def watched() -> None:
            theirs.step()
            run.log({})

        works = {"plain": plain.step, "vizlog": ours.step, "watch": watched}
        times = turns({name: _twice(step) for name, step in works.items()}, repeats=_REPEATS)
        wandb.unwatch(theirs.model)
    return times


def _twice(step: Callable[[], object]) -> Callable[[], None]:
    def both() -> None:
        step()
        step()

    return both
