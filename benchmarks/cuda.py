"""On a CUDA device: how fast tensors are counted, beside a copy on it, and what a logged step of GPT-2 small costs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

import vizlog
from benchmarks.models import gpt2_small
from benchmarks.results import Found, Row, at_least, at_most, told
from vizlog.compute.histogram import count_bits, count_each

ELEMENTS = 100_000_000
AHEAD = 20_000_000
"""Cycles for which the device is kept busy before it is timed, so that it need not wait for the host."""

MIDST = 10_000
"""The step that is measured first: in the midst of a run, where the first pictures of health have long been drawn."""


def run() -> Found:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks cuda needs a CUDA device")
    counting = _counting()
    steps = {name: _logged_step(probes) for name, probes in _PROBES.items()}
    return Found(_rows(counting, steps), {"counting": counting, "GPT-2 small, 8 x 1,024 tokens": steps})


def _rows(counting: dict[str, dict[str, float]], steps: dict[str, dict[str, float]]) -> list[Row]:
    def share_of_bandwidth(name: str) -> float:
        found = counting[name]
        read, copied = found["bytes"] / found["milliseconds"], 2 * found["bytes"] / found["copy"]
        return 100 * read / copied

    rows = [
        at_least(
            "10⁸ float32 values of N(0, 1): bytes read, of those that a copy moves",
            50,
            share_of_bandwidth("N(0, 1)"),
            "%",
        )
    ]
    rows += [
        told(f"10⁸ values, {name}", share_of_bandwidth(name), "%")
        for name in counting
        if name not in ("N(0, 1)", "GPT-2 small")
    ]
    rows.append(told("all 148 parameters of GPT-2 small", counting["GPT-2 small"]["milliseconds"], "ms"))
    for name, found in steps.items():
        share = 100 * (found["logged"] - found["plain"]) / found["plain"]
        what = f"a logged step of GPT-2 small, {name}: more than a plain one"
        rows.append(at_most(what, 5, share, "%") if name in _ASKED else told(what, share, "%"))
    return rows


def _counting() -> dict[str, dict[str, float]]:
    """Milliseconds on the device to count tensors of several kinds, and to copy them."""
    normal = torch.randn(ELEMENTS, device="cuda")
    kinds = {
        "N(0, 1)": normal,
        "ReLU of it": normal.relu(),
        "all equal": torch.full_like(normal, 0.5),
        "N(1000, 1)": normal + 1000,
        "over 200 octaves": torch.exp(normal * 15),
        "bfloat16": normal.bfloat16(),
        "float16": normal.half(),
    }
    found = {}
    for name, tensor in kinds.items():
        target = torch.empty_like(tensor)
        found[name] = {
            "bytes": float(tensor.nbytes),
            "milliseconds": _milliseconds(partial(count_bits, tensor)),
            "copy": _milliseconds(partial(target.copy_, tensor)),
        }
    parameters = [parameter.detach() for parameter in gpt2_small().model.parameters()]
    found["GPT-2 small"] = {"milliseconds": _milliseconds(lambda: count_each(parameters))}
    return found


def _milliseconds(work: Callable[[], object], *, repeats: int = 15) -> float:
    """Median time on the device, after two runs that are not counted."""
    times = []
    for _ in range(2 + repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times[2:]))


def _weights() -> list[vizlog.Probe]:
    return [vizlog.WeightHistograms(every=1, most=None), vizlog.GradientHistograms(every=1, most=None)]


_PROBES: dict[str, Callable[[], Sequence[vizlog.Probe]]] = {
    "every weight and gradient histogram": _weights,
    "and every activation of the live forward": lambda: [
        *_weights(),
        vizlog.ActivationHistograms(every=1, most=None, source="live"),
    ],
}
_ASKED = ("every weight and gradient histogram",)


def _logged_step(probes: Callable[[], Sequence[vizlog.Probe]], *, pairs: int = 12) -> dict[str, float]:
    """Median seconds of a plain and of a logged step, in turns; until the device is done with it."""
    work, steps = gpt2_small(), itertools.count(MIDST)
    monitor = vizlog.Monitor(work.model, probes(), to=vizlog.Memory(), optimizer=work.optimizer)

    def logged() -> None:
        with monitor.step(next(steps)):
            work.backward()
        work.optimizer.step()

    seconds: dict[str, list[float]] = {"logged": [], "plain": []}
    for _ in range(2 + pairs):
        for kind, step in (("logged", logged), ("plain", work.step)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds[kind].append(time.perf_counter() - start)
            monitor.flush()
    monitor.close()
    return {kind: statistics.median(times[2:]) for kind, times in seconds.items()}
