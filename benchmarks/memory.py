"""Memory: the most that a logged step takes for a while, and what many of them leave behind."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence

import torch
from torch import nn

import vizlog
from benchmarks.measure import memory_in_use, memory_peak, reset_memory_peak
from benchmarks.results import Found, at_most
from vizlog.records import Histogram, Record, Scalar

_TENSORS, _STEPS = 200, 2000


def run() -> Found:
    peaks = _peaks()
    objects, kept = _growth()
    parameters = f"{_TENSORS} tensors, 100 M parameters"
    rows = [
        at_most(f"peak of the first logged step beyond what was in use, {parameters}", 64, peaks[0] / 1e6, "MB"),
        at_most("peak of the second and third", 64, max(peaks[1:]) / 1e6, "MB"),
        at_most(f"memory kept by {_STEPS} logged steps, without garbage collection", 4, kept / 1e6, "MB"),
        at_most("objects kept by each of them", 0.5, objects / _STEPS, "objects"),
    ]
    return Found(rows, {"peaks": peaks})


def _peaks() -> list[int]:
    """Bytes beyond what was in use before, at the peak of each of three logged steps."""
    model = nn.ParameterList([torch.randn(500, 1000) for _ in range(_TENSORS)])
    for parameter in model:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    probes = [
        vizlog.WeightHistograms(every=1),
        vizlog.GradientHistograms(every=1),
        vizlog.UpdateRatios(every=1),
    ]
    peaks = []
    with tempfile.TemporaryDirectory() as folder, vizlog.watch(model, optimizer, to=folder, probes=probes) as monitor:
        for _ in range(3):
            before = memory_in_use()
            reset_memory_peak()
            optimizer.step()
            monitor.flush()
            peaks.append(memory_peak() - before)
    return peaks


class _DrawsSometimes:
    """Passes records on, but of what is drawn only one in 50: drawing would take minutes."""

    def __init__(self, backend: vizlog.TensorBoard) -> None:
        self._backend = backend

    def write(self, step: int, records: Sequence[Record]) -> None:
        self._backend.write(step, [r for r in records if step % 50 == 0 or isinstance(r, (Scalar, Histogram))])

    def close(self) -> None:
        self._backend.close()


def _growth() -> tuple[int, int]:
    """Objects and bytes more after many logged steps, the garbage collector being off."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    images, labels = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = [
        vizlog.WeightHistograms(every=1),
        vizlog.GradientHistograms(every=1),
        vizlog.UpdateRatios(every=1),
        vizlog.ActivationHistograms(every=1),
        vizlog.FeatureMaps(every=50),
        vizlog.SaliencyMaps(every=50),
    ]
    with tempfile.TemporaryDirectory() as folder:
        backend = _DrawsSometimes(vizlog.TensorBoard(folder))
        monitor = vizlog.watch(model, optimizer, to=backend, probes=probes, batch=(images, labels))

        def train(steps: int) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                monitor.flush()

        train(200)
        gc.collect()
        gc.disable()
        objects, memory = len(gc.get_objects()), memory_in_use()
        train(_STEPS)
        kept = len(gc.get_objects()) - objects, memory_in_use() - memory
        gc.enable()
        monitor.close()
    return kept
