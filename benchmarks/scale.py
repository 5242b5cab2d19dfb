"""How the cost of histograms grows with the number of elements and of tensors."""

from __future__ import annotations

import torch
from torch import nn

import vizlog
from benchmarks.measure import in_turns
from benchmarks.results import Found, Plot, at_most
from vizlog.compute.histogram import count_bits, prepare

_ELEMENTS = [10**n for n in range(3, 9)]
_TENSORS = [10, 30, 100, 300, 1000, 2000]
_SMALL = 1000


def run() -> Found:
    torch.set_num_threads(1)
    prepare()
    counting = {n: _counting(n) for n in _ELEMENTS}
    logging = {n: _logging(n) for n in _TENSORS}
    a_tensor = {n: (times["logged"] - times["plain"]) / n for n, times in logging.items()}
    largest, smaller = _ELEMENTS[-1], 10**6
    growth = counting[largest]["vizlog"] / counting[smaller]["vizlog"] / (largest / smaller)
    rows = [
        at_most("an element of 10⁸, beside one of 10⁶", 2, growth, "x"),
        at_most("a tensor of 2,000, beside one of 100", 1.5, a_tensor[2000] / a_tensor[100], "x"),
        at_most("a tensor of 1,000 elements, of 2,000 in a logged step", 60, 1e6 * a_tensor[2000], "µs"),
    ]
    plots = [
        Plot(
            "elements",
            "Counting one float32 tensor, on one thread",
            "elements",
            "seconds",
            [float(n) for n in _ELEMENTS],
            {name: [counting[n][name] for n in _ELEMENTS] for name in ("vizlog", "torch.sum")},
        ),
        Plot(
            "tensors",
            f"What a logged step takes longer on the training thread, for n weights of {_SMALL} elements",
            "tensors",
            "seconds",
            [float(n) for n in _TENSORS],
            {"vizlog": [n * a_tensor[n] for n in _TENSORS], "60 µs a tensor": [n * 60e-6 for n in _TENSORS]},
        ),
    ]
    return Found(rows, {"elements": counting, "tensors": logging}, plots)


def _counting(elements: int) -> dict[str, float]:
    tensor = torch.randn(elements)
    return in_turns(
        {"vizlog": lambda: count_bits(tensor), "torch.sum": tensor.sum}, repeats=15 if elements < 10**8 else 5
    )


def _logging(tensors: int) -> dict[str, float]:
    """Seconds of a step with and without histograms of this many weights."""
    model = nn.ParameterList([torch.randn(_SMALL) for _ in range(tensors)])
    for parameter in model:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [vizlog.WeightHistograms(every=1, most=64)]
    with vizlog.watch(model, optimizer, to=None, probes=probes) as monitor:

        def logged() -> None:
            optimizer.step()

        seconds = in_turns({"logged": logged, "plain": plain.step}, repeats=15)
        monitor.flush()
    return seconds
