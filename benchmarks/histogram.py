"""One histogram of one tensor, with its zeros, non-finite values, extremes, mean and standard deviation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from benchmarks.measure import in_turns
from benchmarks.peers import offline_run, wandb_counts
from benchmarks.results import Found, Plot, at_least, at_most, told
from vizlog.compute.histogram import count_bits, histogram, prepare

SIZES = (10**6, 10**7, 10**8)
SMALL = (10, 100, 1000, 10_000, 100_000)


def run() -> Found:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prepare()
    with tempfile.TemporaryDirectory() as folder, offline_run(), SummaryWriter(folder) as writer:
        large = {size: in_turns(_beside(torch.randn(size), writer), repeats=3 if size > 10**7 else 7) for size in SIZES}
    shapes = {name: in_turns(_alone(tensor)) for name, tensor in _other_shapes().items()}
    small = {size: in_turns(_alone(torch.randn(size)), repeats=15) for size in SMALL}
    rows = [
        at_least("faster than SummaryWriter.add_histogram, least of 10⁶ to 10⁸", 30, _least(large, "SummaryWriter")),
        at_least("faster than what wandb.watch does per tensor, least of 10⁶ to 10⁸", 8, _least(large, "wandb")),
        at_most(
            "counted, beside a torch.sum on one thread, most of 10⁶ to 10⁸", 8, 1 / _least(large, "sum", "count"), "x"
        ),
        told("drawn from the counts: 64 bins and quantiles, whatever the size", 1e6 * small[1000]["record"], "µs"),
        at_most("a tensor of up to 10⁵, training thread", 60, 1e6 * max(t["count"] for t in small.values()), "µs"),
    ]
    plot = Plot(
        "one histogram",
        "Seconds for one histogram of a float32 tensor, and for one torch.sum of it, on one thread",
        "elements",
        "seconds",
        list(SIZES),
        {name: [large[size][name] for size in SIZES] for name in large[SIZES[0]]},
    )
    return Found(rows, {"large": large, "shapes of 10⁶": shapes, "small": small}, [plot])


def _beside(tensor: Tensor, writer: SummaryWriter) -> dict[str, Callable[[], object]]:
    watch = wandb_counts()
    return {
        "count": lambda: count_bits(tensor),
        "vizlog": lambda: histogram("weights/a", count_bits(tensor)),
        "SummaryWriter": lambda: writer.add_histogram("weights/a", tensor, 0),
        "wandb": lambda: watch(tensor),
        "sum": lambda: torch.sum(tensor),
    }


def _alone(tensor: Tensor) -> dict[str, Callable[[], object]]:
    counts = count_bits(tensor)
    return {
        "vizlog": lambda: histogram("weights/a", count_bits(tensor)),
        "count": lambda: count_bits(tensor),
        "record": lambda: histogram("weights/a", counts),
        "sum": lambda: torch.sum(tensor),
    }


def _other_shapes() -> dict[str, Tensor]:
    normal = torch.randn(10**6)
    return {
        "ReLU": normal.relu(),
        "zeros": torch.zeros_like(normal),
        "N(1, 0.01)": normal * 0.01 + 1,
        "N(1000, 1)": normal + 1000,
        "some NaN": normal.masked_fill(normal > 3, torch.nan),
        "transposed": normal.view(1000, 1000).t(),
        "float64": normal.double(),
    }


def _least(times: dict[int, dict[str, float]], peer: str, ours: str = "vizlog") -> float:
    return min(found[peer] / found[ours] for found in times.values())
