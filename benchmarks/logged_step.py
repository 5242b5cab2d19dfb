"""What every weight, gradient and activation histogram adds to one step, beside the same by the peers."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import wandb
from torch.utils.tensorboard import SummaryWriter

import vizlog
from benchmarks.measure import once_in_turns
from benchmarks.models import MANY_SMALL, WORKLOADS, Workload, replayed
from benchmarks.peers import SummaryWriterLoop, offline_run
from benchmarks.results import Found, Row, at_least, told

MIDST = 10_000
"""The step that is measured first: in the midst of a run, where the first pictures of health, which no peer makes, have
long been drawn."""

_STEPS = 4
"""Steps in a row of which the first is logged, by us or by `wandb.watch`: what threads and processes do later falls on
the others."""

_ROUNDS = 25
"""Beside `wandb.watch`: there two processes share the cores, and one round differs from the next by as much as vizlog
takes."""


def run() -> Found:
    rows: list[Row] = []
    numbers = {}
    for name, make in (WORKLOADS | MANY_SMALL).items():
        beside_writer, beside_watch = (
            _beside_writer(replayed(make())),
            _beside_watch(partial(_replayed, make)),
        )
        numbers[name] = {"beside a SummaryWriter loop": beside_writer, "beside wandb.watch": beside_watch}
        rows += [
            _row(name, "a SummaryWriter loop", 40, _less_extra(beside_writer, "vizlog", "writer")),
            told(
                "and until all is written, worker's time too", _less_extra(beside_writer, "vizlog, written", "writer")
            ),
            _row(name, "wandb.watch, weights and gradients", 8, _less_extra(beside_watch, "vizlog", "watch")),
        ]
    return Found(rows, numbers)


def _replayed(make: Callable[[], Workload]) -> Workload:
    return replayed(make())


def _row(name: str, peer: str, asked: float, measured: float) -> Row:
    what = f"{name}: less extra time than {peer}"
    return at_least(what, asked, measured) if name in WORKLOADS else told(what, measured)


def _less_extra(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """By the median over rounds of what each takes more than a plain one beside it: machines change their speed."""

    def extra(name: str) -> float:
        return statistics.median(logged - plain for logged, plain in zip(seconds[name], seconds["plain"], strict=True))

    return extra(theirs) / extra(ours)


def _beside_writer(work: Workload) -> dict[str, list[float]]:
    """Seconds of a step in each round: plain, logged by vizlog, and by a loop over `add_histogram`.

    Activations are those of the training forward, as in the loop. What a due step costs a real training, with the pass
    over a fixed batch that is the default and all that the worker takes from the steps after it, is in `training`.
    """
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(str(Path(folder, "writer"))) as writer:
        loop = SummaryWriterLoop(work.model, writer)
        probes = [
            vizlog.WeightHistograms(every=1, most=None),
            vizlog.GradientHistograms(every=1, most=None),
            vizlog.ActivationHistograms(every=1, most=None, source="live"),
        ]
        monitor = vizlog.Monitor(work.model, probes, to=Path(folder, "vizlog"), optimizer=work.optimizer)

        steps = itertools.count(MIDST)

        def logged() -> None:
            with monitor.step(next(steps)):
                work.backward()
            work.optimizer.step()

        def by_writer() -> None:
            with loop.activations():
                work.backward()
            work.optimizer.step()
            loop.log(0)

        works = {"vizlog": logged, "vizlog's worker": monitor.flush, "plain": work.step, "writer": by_writer}
        seconds = once_in_turns(works, at_once="vizlog's worker")
        monitor.close()
    written = zip(seconds["vizlog"], seconds["vizlog's worker"], strict=True)
    return seconds | {"vizlog, written": [sum(both) for both in written]}


def _beside_watch(make: Callable[[], Workload]) -> dict[str, list[float]]:
    """Seconds of some steps in each round: plain, and with weights and gradients of one logged by vizlog and by watch.

    Each has a run of its own, to which its owner logs at every step, as a person does: until then vizlog holds its rows
    back, and what watch has found would go into vizlog's rows.
    """
    with ExitStack() as stack:
        run = stack.enter_context(offline_run())  # the active one, which is where watch logs
        plain_run, our_run = (
            stack.enter_context(wandb.init(mode="offline", project="benchmarks", reinit="create_new")) for _ in range(2)
        )
        plain, ours, theirs = make(), make(), make()
        probes = [vizlog.WeightHistograms(every=_STEPS, most=None), vizlog.GradientHistograms(every=_STEPS, most=None)]
        done = [MIDST]
        monitor = vizlog.watch(ours.model, ours.optimizer, to=our_run, probes=probes, step=lambda: done[0])
        stack.callback(monitor.close)
        run.watch(theirs.model, log="all", log_freq=_STEPS)
        for _ in range(_STEPS - 1):  # it logs the last of so many
            theirs.step()

        def logged() -> None:
            ours.step()
            done[0] += 1

        works = {
            "plain": _in_a_row(plain.step, plain_run),
            "vizlog": _in_a_row(logged, our_run),
            "vizlog's worker": monitor.flush,
            "watch": _in_a_row(theirs.step, run),
        }
        seconds = once_in_turns(works, at_once="vizlog's worker", repeats=_ROUNDS)
        wandb.unwatch(theirs.model)
    return seconds


def _in_a_row(step: Callable[[], object], run: wandb.Run) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(_STEPS):
            step()
            run.log({})

    return steps
