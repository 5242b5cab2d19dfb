"""How far the 64 bins that are shown are from numpy's on the same edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.histogram import counted
from benchmarks.models import resnet18
from benchmarks.results import Found, at_most
from vizlog.compute.histogram import histogram


def run() -> Found:
    far = {name: _total_variation(tensor) for name, tensor in _distributions()}
    rows = [at_most(f"total variation to numpy.histogram, {name}", 1, 100 * found, "%") for name, found in far.items()]
    return Found(rows)


def _distributions() -> Iterator[tuple[str, Tensor]]:
    torch.manual_seed(0)
    normal = torch.randn(10**6)
    yield "N(0, 1)", normal
    yield "ReLU of it", normal.relu()
    yield "Laplace", torch.distributions.Laplace(0.0, 1.0).sample((10**6,))
    modes = torch.randint(0, 2, normal.shape).float() * 2 - 1
    yield "two narrow modes", modes + 0.01 * normal
    yield "N(10, 1)", normal + 10
    yield "N(1000, 1)", normal + 1000
    yield "N(1, 0.01)", normal * 0.01 + 1
    work = resnet18()
    for _ in range(3):
        work.step()
    for name, parameter in work.model.named_parameters():
        if parameter.numel() > 10**6:
            yield f"{name} after training", parameter.detach()
            return


def _total_variation(tensor: Tensor) -> float:
    shown = histogram("weights/a", counted(tensor))
    exact, _ = np.histogram(tensor.flatten().double().numpy(), shown.edges)
    return float(np.abs(shown.counts - exact).sum()) / 2 / tensor.numel()
