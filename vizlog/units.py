"""In which dimension outputs have their units: the channels of a convolution, the features of a linear layer."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

__all__ = ["Units", "shape_of"]


class Units:
    """Where units lie in the outputs of one forward, which are asked for in the order they come."""

    def __init__(self) -> None:
        self._dims: dict[tuple[int, ...], int] = {}  # of outputs so far, by shape

    def forget(self) -> None:
        """Before each further forward."""
        self._dims.clear()

    def dim(self, module: nn.Module | None, output: Tensor) -> int:
        """The dimension of a module's output, or of a function's (None), that counts units."""
        shape = shape_of(output)
        kind: Any = type(module)
        dim = _of_class(kind)
        if dim is None or (dim == 1 and len(shape) < 3):
            dim = self._as_before(shape)
        self._dims.pop(shape, None)  # the last comes last
        self._dims[shape] = dim
        return dim

    def _as_before(self, shape: tuple[int, ...]) -> int:
        """Of an activation or a block: units lie where they lay in the last output of this shape.

        Where there was none, as after pooling, where they lay in the last one that had as many of them; or to where
        those of the last output have moved, as a permute does.
        """
        if shape in self._dims:
            return self._dims[shape]
        alike = [(other, dim) for other, dim in reversed(self._dims.items()) if len(other) == len(shape) > 0]
        for number, (other, dim) in enumerate(alike):
            if other[dim] == shape[dim]:
                return dim
            if number == 0 and (moved := _moved_to(other[dim], shape)) is not None:
                return moved
        return 1 if len(shape) > 3 else -1


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Its shape; () for a nested tensor, which has one for each of its parts."""
    return () if tensor.is_nested else tuple(tensor.shape)


_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


@functools.cache
def _of_class(kind: Any) -> int | None:
    """In which dimension of its output a module of this class has its units; None where that depends on the input."""
    if issubclass(kind, _CHANNELS_FIRST):
        return 1
    return -1 if issubclass(kind, (nn.Linear, nn.LayerNorm, nn.Embedding)) else None


def _moved_to(units: int, shape: tuple[int, ...]) -> int | None:
    """The dimension that has as many entries: the last one, or the only one behind that of the examples."""
    if units < 2:
        return None
    places = [dim for dim in range(1, len(shape)) if shape[dim] == units]
    if len(shape) - 1 in places:
        return -1
    return places[0] if len(places) == 1 else None
