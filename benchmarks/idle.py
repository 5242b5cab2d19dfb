"""A step at which nothing is due: time, allocation and hooks."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import torch
from torch import nn

import vizlog
from benchmarks.measure import in_turns
from benchmarks.results import Found, at_most

_STEPS = 1000


def run() -> Found:
    model, optimizer = _training()
    _, plain_optimizer = _training()
    monitor = vizlog.watch(model, optimizer, to=vizlog.Memory(), every=10**9)
    optimizer.step()  # the first is due
    monitor.flush()
    explicit = vizlog.Monitor(nn.Linear(4, 4), to=vizlog.Memory(), every=10**9)
    with explicit.step():
        pass
    explicit.flush()
    times = in_turns(
        {
            "watched": optimizer.step,
            "plain": plain_optimizer.step,
            "monitor.step()": lambda: _explicit(explicit),
        },
        repeats=101,
    )
    kept, transient = _allocated(optimizer.step)
    _, plain_transient = _allocated(plain_optimizer.step)
    monitor.close()
    explicit.close()
    rows = [
        at_most("time, watched optimizer", 20, 1e6 * (times["watched"] - times["plain"]), "µs"),
        at_most("time, monitor.step()", 20, 1e6 * times["monitor.step()"], "µs"),
        at_most("memory kept by a step", 1, kept / _STEPS, "bytes"),
        at_most("memory in passing, a step", 2000, transient - plain_transient, "bytes"),
        at_most("hooks on modules and tensors", 0, _hooks(model), "hooks"),
    ]
    return Found(rows, {"seconds": times})


def _training() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def _explicit(monitor: vizlog.Monitor) -> None:
    with monitor.step():
        pass


def _allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that many runs leave behind, beyond what measuring itself does, and the most that lie about in one."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    for _ in range(_STEPS):
        work()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(_STEPS):
        work()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.enable()
    return max(0, after - before), peak - before


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return on_modules + sum(len(parameter._backward_hooks or ()) for parameter in model.parameters())
