"""One step at which every weight, gradient and activation histogram is due, beside the same by the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import wandb
from torch.utils.tensorboard import SummaryWriter

import vizlog
from benchmarks.measure import in_turns
from benchmarks.models import WORKLOADS, Workload
from benchmarks.peers import SummaryWriterLoop, offline_run
from benchmarks.results import Found, Row, at_least

_REPEATS = 3


def run() -> Found:
    rows: list[Row] = []
    numbers = {}
    for name, make in WORKLOADS.items():
        beside_writer, beside_watch = _beside_writer(make()), _beside_watch(make)
        numbers[name] = {"beside a SummaryWriter loop": beside_writer, "beside wandb.watch": beside_watch}
        extra = {each: seconds - beside_writer["plain"] for each, seconds in beside_writer.items()}
        rows += [
            at_least(f"{name}: less extra time than a SummaryWriter loop", 40, extra["writer"] / extra["vizlog"]),
            at_least(
                f"{name}: the same until all is written, worker's time too",
                20,
                extra["writer"] / extra["vizlog, written"],
            ),
        ]
        extra = {each: seconds - beside_watch["plain"] for each, seconds in beside_watch.items()}
        what = "less extra time than wandb.watch, weights and gradients"
        rows.append(at_least(f"{name}: {what}", 8, extra["watch"] / extra["vizlog"]))
    return Found(rows, numbers)


def _beside_writer(work: Workload) -> dict[str, float]:
    """Seconds of a step: plain, logged by vizlog, and logged by a loop over `add_histogram`."""
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(str(Path(folder, "writer"))) as writer:
        loop = SummaryWriterLoop(work.model, writer)
        probes = [
            vizlog.WeightHistograms(every=1, most=None),
            vizlog.GradientHistograms(every=1, most=None),
            vizlog.ActivationHistograms(every=1, most=None, source="live"),
        ]
        monitor = vizlog.Monitor(work.model, probes, to=Path(folder, "vizlog"), optimizer=work.optimizer)

        def logged() -> None:
            with monitor.step():
                work.backward()
            work.optimizer.step()

        def by_writer() -> None:
            with loop.activations():
                work.backward()
            work.optimizer.step()
            loop.log(0)

        def logged_and_written() -> None:
            logged()
            monitor.flush()

        works: dict[str, Callable[[], object]] = {
            "plain": work.step,
            "vizlog": logged,
            "vizlog, written": logged_and_written,
            "writer": by_writer,
        }
        times = in_turns(works, repeats=_REPEATS)
        monitor.close()
    return times


def _beside_watch(make: Callable[[], Workload]) -> dict[str, float]:
    """Seconds of a step: plain, weights and gradients logged by vizlog to W&B, and by `wandb.watch`."""
    with ExitStack() as stack:
        run = stack.enter_context(offline_run())
        plain, ours, theirs = make(), make(), make()
        probes = [vizlog.WeightHistograms(every=1, most=None), vizlog.GradientHistograms(every=1, most=None)]
        monitor = vizlog.watch(ours.model, ours.optimizer, to=run, probes=probes)
        stack.callback(monitor.close)
        run.watch(theirs.model, log="all", log_freq=1)

        def watched() -> None:
            theirs.step()
            run.log({})

        times = in_turns({"plain": plain.step, "vizlog": ours.step, "watch": watched}, repeats=_REPEATS)
        wandb.unwatch(theirs.model)
    return times
