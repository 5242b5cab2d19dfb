"""What a probe may ask for: parameters, gradients, updates, outputs and attention; and how it is shown a call.

The optimizer's step answers the first three (`vizlog.due`), a forward the others (`vizlog.capture`).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vizlog.ranks import is_elsewhere, whole

__all__ = [
    "ACTIVATIONS",
    "AttentionCalls",
    "Call",
    "Gradients",
    "Outputs",
    "Request",
    "Updates",
    "Weights",
    "first_tensor",
    "readable",
]


@dataclass(frozen=True)
class Weights:
    """Parameters after the step. `reduce` takes a list of tensors and gives a small result for each.

    Where the model is sharded, `reduce` sees each rank's own shards, which may be empty, and `merge` makes one result
    of two ranks'; with `whole` it sees whole tensors, put together for it one by one.
    """

    names: tuple[str, ...]
    reduce: Callable[[list[Tensor]], list[Any]]
    merge: Callable[[Any, Any], Any] = operator.add
    whole: bool = False


@dataclass(frozen=True)
class Gradients:
    """Gradients as the optimizer uses them: unscaled, clipped, reduced over ranks. A parameter may have none.

    `reduce` and `merge` are as in `Weights`.
    """

    names: tuple[str, ...]
    reduce: Callable[[list[Tensor]], list[Any]]
    merge: Callable[[Any, Any], Any] = operator.add
    whole: ClassVar[bool] = False


@dataclass(frozen=True)
class Updates:
    """Parameters before and after the step; `reduce` takes (before, after), of which the first is a copy of ours.

    Where the model is sharded, it sees each rank's own shards, and `merge` makes one result of two ranks'.
    """

    names: tuple[str, ...]
    reduce: Callable[[Tensor, Tensor], Any]
    merge: Callable[[Any, Any], Any] = operator.add
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of parameters too large to copy whole: which part, and of how many along dimension 0."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of modules and of functional activations; captured is a list for each layer, one result a call.

    Args:
        matches: (layer, module or None for a functional activation) -> whether it is wanted.
        reduce: run inside the forward, under no_grad; what it returns must be small and its own.
        examples: how many of the fixed batch's examples to run.
        live: whether the training forward is looked at instead of a pass over the fixed batch.
    """

    matches: Callable[[str, nn.Module | None], bool]
    reduce: Callable[[Call], Any]
    examples: int = 32
    live: bool = False


@dataclass(frozen=True)
class AttentionCalls:
    """Calls of attention functions (see `is_attention`), by the layer that calls them; None is left out."""

    reduce: Callable[[Call], Any]
    examples: int = 2
    live: ClassVar[bool] = False


Request: TypeAlias = Weights | Gradients | Updates | Outputs | AttentionCalls


@dataclass(eq=False, slots=True)  # a frozen one takes several times as long to make
class Call:
    """One call of a module or function, seen from inside the forward.

    Args:
        layer: canonical name; a second call in one forward is `name@2`. A functional call is named by enclosing module
            and function.
        module: the module called, None for a function.
        function: the function called, None for a module.
        args, kwargs: what it was called with.
        output: what it returned.
        channel_dim: the dimension of `tensor` that counts units: 1 for convolutions and what follows them, else −1;
            another where a permute has moved it.
    """

    layer: str
    module: nn.Module | None
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    channel_dim: int = -1

    @property
    def tensor(self) -> Tensor | None:
        """The first tensor of the output."""
        return first_tensor(self.output)

    @property
    def input(self) -> Tensor | None:
        """The first tensor that it was called with."""
        found = first_tensor(self.args)
        found = found if found is not None else first_tensor(self.kwargs)
        return found if found is None else readable(found, found)

    @property
    def kind(self) -> str:
        """The module's class name or the function's name: "Conv2d", "relu"."""
        if self.module is not None:
            return type(self.module).__name__
        return ACTIVATIONS.get(self.function, getattr(self.function, "__name__", "function"))


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists, dicts, model outputs and dataclasses."""
    if isinstance(value, Tensor):
        return value
    if type(value) is tuple and value and isinstance(value[0], Tensor):  # the usual, found in a tenth of the time
        return value[0]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, part.name) for part in dataclasses.fields(value)]
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            return leaf
    return None


def readable(tensor: Tensor, output: Any) -> Any:
    """What to look at of an output: where other ranks hold parts of its first tensor, that one, put together."""
    if not is_elsewhere(tensor):
        return output
    with torch.no_grad():
        return whole(tensor)


_NAMES = (
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish "
    "hardtanh hardtanh_ hardsigmoid sigmoid sigmoid_ tanh tanh_ softmax softplus softsign prelu rrelu rrelu_ glu"
).split()
ACTIVATIONS: dict[Any, str] = {
    getattr(home, name): name.rstrip("_") for name in _NAMES for home in (F, torch, Tensor) if hasattr(home, name)
}
"""Activations as functions -> their names."""
