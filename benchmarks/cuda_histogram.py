"""How fast a histogram is counted on a CUDA device, beside a copy of the same tensor on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from vizlog.compute.histogram import count_bits, count_each


def milliseconds(work: Callable[[], object], *, repeats: int = 20) -> float:
    """Median time on the device, after a first run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'tensor':28}{'copy ms':>10}{'count ms':>10}{'ratio':>8}{'GB/s read':>11}")
    for n in (10_000, 1_000_000, 10_000_000, 100_000_000):
        normal = torch.randn(n, device="cuda")
        for name, tensor in {
            "normal": normal,
            "ReLU": normal.relu(),
            "zeros": torch.zeros_like(normal),
            "N(1, 0.01)": normal * 0.01 + 1,
            "bfloat16": normal.bfloat16(),
        }.items():
            copy, target = tensor.clone(), torch.empty_like(tensor)
            copying = milliseconds(lambda target=target, copy=copy: target.copy_(copy))
            counting = milliseconds(lambda tensor=tensor: count_bits(tensor))
            speed = tensor.numel() * tensor.element_size() / counting / 1e6
            print(f"{f'{n:.0e} {name}':28}{copying:10.3f}{counting:10.3f}{counting / copying:8.1f}{speed:11.0f}")
    weights = [torch.randn(768, device="cuda") for _ in range(100)]
    weights += [torch.randn(768, 768, device="cuda") for _ in range(48)]
    print(f"148 tensors of a GPT-2, 28 M values: {milliseconds(lambda: count_each(weights)):.2f} ms")


if __name__ == "__main__":
    main()
