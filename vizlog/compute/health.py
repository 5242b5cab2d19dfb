"""Signs of a sick layer: units that are never active, activations stuck at their limits.

Each function counts what adds up or can be or-ed over calls, so that many calls of a layer make one figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizlog.compute import loops

__all__ = ["LIMITS", "alive", "prepare", "saturated", "saturated_rows", "stuck"]

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "sigmoid": (0.0, 1.0),
        "tanh": (-1.0, 1.0),
        "hardsigmoid": (0.0, 1.0),
        "hardtanh": (-1.0, 1.0),
    }
)
"""Activation -> the limits that it saturates at; give a Hardtanh's own where it has others."""

MARGIN = 0.02
"""Share of the range within which a value counts as stuck at a limit."""

CERTAIN = 0.98
"""Largest probability over which a softmax row counts as saturated."""

_ONE_THREAD = (1 << 15) - 1
"""Of more elements torch shares the work out to threads, and waits for each: long, where the processor is busy."""


def prepare() -> None:
    """Loads what is compiled, so that the first forward that is looked at waits for nothing."""
    _find_alive()


def alive(output: Tensor, channel_dim: int = -1) -> Tensor:
    """(units,) bool: whether each unit is other than zero for any example at any position; NaN is not zero.

    Calls combine with `|`; what is False in the end is a dead unit. No synchronisation.
    """
    output = output.detach()
    if not output.dim():
        return (output != 0).reshape(1)
    others = [d for d in range(output.dim()) if d != channel_dim % output.dim()]
    if not others:
        return output != 0
    if output.numel() == 0:
        return torch.zeros(output.shape[channel_dim], dtype=torch.bool, device=output.device)
    if output.device.type != "cpu":  # asking would wait for it
        return _any(output, others)
    find, place = _find_alive(), _in_memory(output, channel_dim % output.dim())
    if find is not None and place is not None:
        return torch.from_numpy(find(*place, wide=output.dtype == torch.float64))
    found = _any(_first(output, others), others)
    unseen = (~found).nonzero().flatten()
    if 2 * len(unseen) > len(found):
        return _any(output, others)
    if len(unseen):
        found[unseen] = _any(output.index_select(channel_dim, unseen), others)
    return found


def _in_memory(output: Tensor, dim: int) -> tuple[int, tuple[int, int, int]] | None:
    """Where the values lie, and how many before, of and behind the units; None where they do not lie in one piece."""
    if output.dtype not in (torch.float32, torch.float64) or type(output) is not Tensor or output.is_neg():
        return None
    if not output.is_contiguous():
        order = sorted(range(output.dim()), key=output.stride, reverse=True)
        output, dim = output.permute(order), order.index(dim)
        if not output.is_contiguous():
            return None
    shape = output.shape
    try:
        address = output.data_ptr()
    except RuntimeError:  # inside a transformation of torch.func
        return None
    return address, (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))


def _find_alive() -> Callable[..., NDArray[np.bool_]] | None:
    """Compiled, where there are compiled loops."""
    if not loops.are_compiled():
        return None
    from vizlog.compute.health_numba import find_alive

    return find_alive


def _first(output: Tensor, dims: list[int]) -> Tensor:
    """So much of the output, from its start along `dims`, as torch reduces on one thread: most units show there."""
    for dim in dims:
        room = max(1, _ONE_THREAD * output.shape[dim] // output.numel())
        output = output.narrow(dim, 0, min(room, output.shape[dim]))
    return output


def _any(output: Tensor, dims: list[int]) -> Tensor:
    # A comparison would write a flag for every element, and `any` takes three to seven times as long as an extreme.
    if output.dtype in (torch.float32, torch.float64):
        return (output.amax(dims) != 0) | (output.amin(dims) != 0)
    return torch.any(output, dim=dims)


def saturated(output: Tensor, low: float, high: float) -> Tensor:
    """0-d int64: how many elements lie within 2% of the range (low, high) of either limit; NaN does not.

    Divide by `output.numel()` for the share; counts and sizes add up over calls.

    Raises:
        ValueError: the limits are not finite and rising.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"saturated needs finite limits with low < high, got {low} and {high}")
    low, high = stuck(low, high)
    output = output.detach()
    return torch.count_nonzero(output <= low) + torch.count_nonzero(output >= high)


def stuck(low: float, high: float) -> tuple[float, float]:
    """From where on a value counts as stuck at one of these limits."""
    margin = MARGIN * (high - low)
    return low + margin, high - margin


def saturated_rows(probabilities: Tensor, dim: int = -1) -> Tensor:
    """0-d int64: how many rows of a softmax over `dim` put more than 0.98 on one entry.

    Divide by `probabilities.numel() / probabilities.shape[dim]` for the share.
    """
    if probabilities.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=probabilities.device)
    return torch.count_nonzero(probabilities.detach().amax(dim) > CERTAIN)
