"""One histogram of one tensor, with its zeros, non-finite values, extremes, mean and standard deviation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from benchmarks.measure import in_turns
from benchmarks.peers import offline_run, wandb_counts
from benchmarks.results import Found, Plot, at_least, at_most, told
from vizlog.compute.histogram import BitCounts, count_bits, histogram, prepare

SIZES = (10**6, 10**7, 10**8)
SMALL = (10, 100, 1000, 10_000, 100_000)


def run() -> Found:
    torch.manual_seed(0)
    prepare()
    with tempfile.TemporaryDirectory() as folder, offline_run(), SummaryWriter(folder) as writer:
        large = {size: _beside_peers(torch.randn(size), writer) for size in SIZES}
    one_thread = {size: _on_one_thread(torch.randn(size)) for size in SIZES}
    shapes = {name: in_turns(_alone(tensor)) for name, tensor in _other_shapes().items()}
    small = {size: in_turns(_alone(torch.randn(size)), repeats=15) for size in SMALL}
    rows = [
        at_least("faster than SummaryWriter.add_histogram, least of 10⁶ to 10⁸", 30, _least(large, "SummaryWriter")),
        at_least("faster than what wandb.watch does per tensor, least of 10⁶ to 10⁸", 8, _least(large, "wandb")),
        at_most(
            "both on one thread: counted, beside a torch.sum, most of 10⁶ to 10⁸",
            8,
            1 / _least(one_thread, "torch.sum", "count"),
            "x",
        ),
        told("drawn from the counts: 64 bins and quantiles, whatever the size", 1e6 * small[1000]["record"], "µs"),
        at_most("a tensor of up to 10⁵, training thread", 60, 1e6 * max(t["count"] for t in small.values()), "µs"),
    ]
    lines = {name: [large[size][name] for size in SIZES] for name in large[SIZES[0]]}
    lines |= {f"{name}, one thread": [one_thread[size][name] for size in SIZES] for name in ("vizlog", "torch.sum")}
    plot = Plot(
        "one histogram",
        f"Seconds for one histogram of a float32 tensor; torch has {torch.get_num_threads()} threads",
        "elements",
        "seconds",
        list(SIZES),
        lines,
    )
    numbers = {"large": large, "one thread": one_thread, "shapes of 10⁶": shapes, "small": small}
    return Found(rows, numbers, [plot])


def counted(tensor: Tensor) -> BitCounts:
    """The counts of a tensor on the CPU."""
    counts = count_bits(tensor)
    assert isinstance(counts, BitCounts)
    return counts


def _beside_peers(tensor: Tensor, writer: SummaryWriter) -> dict[str, float]:
    watch = wandb_counts()
    works = {
        "vizlog": lambda: histogram("weights/a", counted(tensor)),
        "SummaryWriter": lambda: writer.add_histogram("weights/a", tensor, 0),
        "wandb": lambda: watch(tensor),
    }
    return in_turns(works, repeats=_repeats(tensor), rests=True)


def _on_one_thread(tensor: Tensor) -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return in_turns(_alone(tensor), repeats=_repeats(tensor))
    finally:
        torch.set_num_threads(threads)


def _repeats(tensor: Tensor) -> int:
    return 3 if tensor.numel() > 10**7 else 15


def _alone(tensor: Tensor) -> dict[str, Callable[[], object]]:
    counts = counted(tensor)
    return {
        "vizlog": lambda: histogram("weights/a", counted(tensor)),
        "count": lambda: counted(tensor),
        "record": lambda: histogram("weights/a", counts),
        "torch.sum": lambda: torch.sum(tensor),
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


def _least(times: Mapping[int, Mapping[str, float]], peer: str, ours: str = "vizlog") -> float:
    return min(found[peer] / found[ours] for found in times.values())
