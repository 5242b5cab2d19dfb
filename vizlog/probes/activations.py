"""Histograms of activations, and what they say of a layer's health: dead units, zeros, saturation."""

from __future__ import annotations

import functools
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vizlog.capture import is_compiling
from vizlog.compute import health
from vizlog.compute.bits_cuda import Kernels, kernels_for
from vizlog.compute.health import LIMITS, alive, saturated, saturated_rows, stuck
from vizlog.compute.histogram import BitCounts, Uncountable, count_bits, histograms, prepare
from vizlog.messages import LOG
from vizlog.probes.base import Context, Figures, Probe, only_arranges
from vizlog.records import Record
from vizlog.requests import Call, Outputs, Request
from vizlog.schedules import Schedule, Thinning
from vizlog.selection import Matcher, Select, check_select, device_of, is_leaf, matcher, named_modules, spread
from vizlog.survey import Survey

__all__ = ["ActivationHistograms"]

_HAND_ON = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Layers that may return their input, as it is."""

_PASS_ON = (*_HAND_ON, nn.Flatten, nn.Unflatten)
"""Layers whose zeros are those of their input, as blank pixels are, and say nothing of the layer."""

_BLEND = (
    *(nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd),
    *(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
"""Layers whose outputs are sums over inputs: one that is zero is so by chance, or dead."""

_TURNS = 8
"""How many calls of a layer are drawn where one with parameters runs more often: over time steps, or image by image."""


@dataclass(eq=False, slots=True)
class _Seen:
    """A layer's output, reduced; several calls (chunks, micro-batches) add up.

    Args:
        counts: of its values, `BitCounts` once they are on the host; None where they cannot be counted, for the reason
            in `skipped`.
        passed_on: whether its zeros are those of its input.
        blends: whether it is one of those whose outputs are sums over inputs.
        learns: whether it has parameters.
        alive: (units,) bool, which units were ever other than zero; True: all of them; None: it has no units.
        saturated: how many of `could_saturate` values (of a softmax: rows) were, or None for a layer without limits.
    """

    counts: Any
    alive: Any = None
    saturated: Any = None
    could_saturate: int = 0
    skipped: str = ""
    passed_on: bool = False
    blends: bool = False
    learns: bool = False

    def __add__(self, other: _Seen) -> _Seen:
        if self.counts is None or other.counts is None:
            return other if self.counts is None else self
        return _Seen(
            self.counts + other.counts,
            _either(self.alive, other.alive),
            self.saturated + other.saturated if self.saturated is not None else None,
            self.could_saturate + other.could_saturate,
            passed_on=self.passed_on,
            blends=self.blends,
            learns=self.learns,
        )


def _together(calls: Sequence[_Seen]) -> _Seen:
    """All calls of a layer as one."""
    if len({seen.counts.grid for seen in calls if seen.counts is not None}) > 1:
        return _Seen(None, skipped="its calls differ in precision, and so in their bins")
    return functools.reduce(operator.add, calls)


def _either(alive: Tensor | Literal[True] | None, other: Tensor | Literal[True] | None) -> Any:
    """Which units were alive in one of two calls."""
    if alive is True or other is True:
        return True
    if alive is None or other is None:
        return alive if other is None else other
    return alive | other if alive.shape == other.shape else alive


class ActivationHistograms(Probe):
    """How the outputs of modules and of functional activations are distributed: tags `activations/…`.

    On the fixed batch they come from a pass in eval mode after the step, over its first 32 examples (of texts, those of
    the first 2,048 tokens), so that they compare from step to step; the live forward is looked at where there is no
    batch, or where `source="live"` asks for it. Also `health/dead_units` (units that are zero for every example and
    position; a unit is a channel of a convolution, else an entry of the last dimension) and `health/zeros`, both not of
    layers that pass on what they are given (Flatten, Unflatten, Identity, dropouts) nor of embeddings with a padding
    token; `health/saturated` (within 2% of the range of either limit of a sigmoid, tanh or hard variant; softmax: rows
    whose maximum is over 0.98), and `health/nonfinite`.

    The first look at a forward, and every eighth after it, listens to all torch functions; those between only where
    activation functions were called before, or a module is new. One that a module calls for the first time is seen from
    the next of these on.

    Args:
        select: which layers; None: leaf modules and functional activations (`F.relu`, `torch.tanh` …, named by
            enclosing module and call).
        every: a number of steps, or a schedule.
        source: "batch", "live", or "auto": the batch if there is one, else the live forward, but where something has
            been given to torch.compile. There "live" runs the steps looked at eagerly, which changes their rounding
            and random draws.
        most: how many layers to draw, spread over the depth, of one that runs many times some of its calls (None:
            all); health figures cover all.
    """

    picture = False

    def __init__(
        self,
        select: Select = None,
        *,
        every: int | Schedule = Thinning(),  # noqa: B008 (frozen)
        source: Literal["auto", "batch", "live"] = "auto",
        most: int | None = 64,
    ) -> None:
        super().__init__(every=every)
        if source not in ("auto", "batch", "live"):
            raise ValueError(f"{self.name}(source=) takes 'auto', 'batch' or 'live', got {source!r}")
        self._check_numbers(most=most, or_none=True)
        self._select, self._source, self._most = select, source, most
        self._matches: Matcher = matcher(select) if select is not None else _leaf_or_function
        self._live = source == "live"
        self._examples = self._looked_at = 0
        self._beyond = False
        self._drawn: list[str] = []
        self._met: set[str] = set()
        self._warned = False

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        if survey is None and self._source == "batch":
            raise ValueError(f"{self.name}(source='batch') needs batch=(inputs, targets) or a vizlog.FixedBatch")
        self._drawn, self._met = [], set()  # of this model
        self._live = self._source == "live" or survey is None
        self._examples = survey.batch.chunk if survey is not None else 0
        self._looked_at = min(self._examples, len(survey.batch)) if survey is not None else 0
        self._beyond = survey is not None and _runs_beyond(survey)
        prepare(device_of(models))
        health.prepare()
        modules = named_modules(models)
        if survey is None or self._live:
            found = [name for name, module in modules.items() if self._matches(name, module)]
            check_select(self._select, modules, found, "module")
        else:
            names = {layer.name: layer.module for layer in survey.layers}
            found = [name for name, module in names.items() if self._matches(name, module)]
            check_select(self._select, names, found, "layer that runs on the batch")

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        if self._live and self._source == "auto" and is_compiling():
            self._warn_once(
                "without batch= sees no activations once anything was compiled in this process, as that may be what "
                "calls the model: give batch=, or source='live', which runs the steps looked at eagerly"
            )
            return {}
        return {"seen": Outputs(self._matches, _Reduction(), examples=self._examples, live=self._live)}

    @only_arranges
    def measure(self, context: Context) -> Any:
        seen = context.captured.get("seen", {})
        if not seen:
            where = "in the live forward" if self._live else "on the batch"
            self._warn_once(f"selected layers but captured nothing: none of them ran {where}")
        return seen

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            LOG.warning("vizlog: %s %s", self.name, message)

    def finish(self, measured: Mapping[str, list[_Seen]]) -> Iterable[Record | Figures]:
        layers = {name: _together(calls) for name, calls in measured.items()}
        counted = {name: seen for name, seen in layers.items() if seen.counts is not None and seen.counts.count}
        counts = {name: seen.counts for name, seen in counted.items()}
        new = [name for name in counted if name not in self._met]
        self._met.update(new)
        if self._most is None:
            self._drawn += new
        elif (room := self._most - len(self._drawn)) > 0:
            self._drawn += _spread_calls({name: counted[name] for name in new}, room)
        chosen = [name for name in self._drawn if name in counted]
        skipped = [f"{name}: {seen.skipped}" for name, seen in layers.items() if seen.skipped]
        left_out = f"; {len(skipped)} layers skipped ({skipped[0]})" if skipped else ""
        left_out += f"; {len(chosen)} of {len(counted)} layers are drawn" if len(chosen) < len(counted) else ""
        where = {name: self._where(len(measured[name])) for name in chosen}
        yield from histograms(
            [(f"activations/{name}", counts[name], f"output of {name}, {where[name]}{left_out}") for name in chosen]
        )
        most = max((len(calls) for calls in measured.values()), default=0)
        yield from _figures(counted, counts, self._where(most))

    def _where(self, forwards: int) -> str:
        """What was looked at, for captions; `forwards`: in how many of them, if they are live."""
        if self._live:
            return "live forward of this step" if forwards == 1 else f"{forwards} live forwards of this step"
        examples = f"first {self._looked_at} examples of the fixed batch, eval mode"  # of few, many units look dead
        return f"all rows that run for the {examples}" if self._beyond else examples


def _runs_beyond(survey: Survey) -> bool:
    """Whether examples are rows of what runs as a whole for any of them, as nodes of a graph."""
    numbers = survey.batch.row_numbers
    if numbers is None:
        return False
    most = max(2, int(numbers.max()))  # of the two examples of a first look
    return any(layer.output_shape[:1] > (most,) for layer in survey.layers)


def _spread_calls(seen: Mapping[str, _Seen], most: int) -> list[str]:
    """At most `most` of these, spread over the depth: of layers that run several times as many calls of each."""
    calls: dict[str, list[str]] = {}
    for name in seen:
        calls.setdefault(name.partition("@")[0], []).append(name)
    turns = max(map(len, calls.values()), default=0)
    if any(seen[of_one[0]].learns for of_one in calls.values() if len(of_one) > _TURNS):
        turns = _TURNS
    while turns > 1 and sum(min(len(of_one), turns) for of_one in calls.values()) > most:
        turns -= 1
    kept = {name for of_one in calls.values() for name in spread(of_one, turns)}
    return spread([name for name in seen if name in kept], most)


def _leaf_or_function(name: str, module: Any) -> bool:
    # What makes a parameter (a spectral norm) puts out weights, and no activations.
    return (module is None or is_leaf(module)) and not (
        "parametrizations" in name and "parametrizations" in name.split(".")
    )


class _Reduction:
    """Reduces one output after another; what a layer hands on as it is has been reduced already."""

    def __init__(self) -> None:
        self._latest: Callable[[], Tensor | None] = lambda: None
        self._version: float = 0
        self._dim = 0
        self._seen = _Seen(None)

    def __call__(self, call: Call) -> _Seen | None:
        tensor = call.tensor
        if tensor is None:
            return None
        # NaN is like no version, not even itself: inference tensors have none.
        version = math.nan if tensor.is_inference() else tensor._version  # noqa: SLF001
        # Of other layers one cannot know: a kernel of one's own writes in place and changes no version.
        handed_on = type(call.module) in _HAND_ON and self._latest() is tensor
        if handed_on and version == self._version and call.channel_dim == self._dim:
            return _Seen(self._seen.counts, self._seen.alive, skipped=self._seen.skipped, passed_on=True)
        seen = _reduced(call, tensor)
        seen.learns = call.module is not None and bool(call.module._parameters)
        seen.passed_on = type(call.module) in _PASS_ON or _pads(call.module)
        seen.blends = isinstance(call.module, _BLEND)
        self._latest, self._version, self._dim, self._seen = weakref.ref(tensor), version, call.channel_dim, seen
        return seen


def _pads(module: Any) -> bool:
    """Whether a layer's zeros are what it makes of padding, which says how long texts are."""
    return isinstance(module, nn.Embedding) and module.padding_idx is not None


def _reduced(call: Call, tensor: Tensor) -> _Seen:
    if tensor.numel() == 0:
        return _Seen(None, skipped="it has no elements")
    try:
        if kernels := kernels_for(tensor):
            return _looked(call, tensor, kernels)
        counts = count_bits(tensor)
    except Uncountable as reason:
        return _Seen(None, skipped=str(reason))
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return _Seen(counts)  # it has values, but no units to tell apart
    # Without a zero no unit is dead: most layers need no second look.
    no_zeros = isinstance(counts, BitCounts) and not counts.zeros
    seen = _Seen(counts, True if no_zeros else alive(tensor, call.channel_dim))
    kind = call.kind.lower()
    if limits := _limits(kind, call, tensor):
        seen.saturated, seen.could_saturate = saturated(tensor, *limits), tensor.numel()
    elif kind == "softmax":
        _add_rows(seen, call, tensor)
    return seen


def _looked(call: Call, tensor: Tensor, kernels: Kernels) -> _Seen:
    """The same on a device, all at once."""
    kind = call.kind.lower()
    limits = _limits(kind, call, tensor)
    counts, living, beyond = kernels.look(tensor, call.channel_dim, limits and stuck(*limits))
    seen = _Seen(counts, living or alive(tensor, call.channel_dim))
    if limits:
        seen.saturated, seen.could_saturate = beyond, tensor.numel()
    elif kind == "softmax":
        _add_rows(seen, call, tensor)
    return seen


def _limits(kind: str, call: Call, tensor: Tensor) -> tuple[float, float] | None:
    """Where an activation of this kind saturates."""
    if kind not in LIMITS or not _compares(tensor):
        return None
    low, high = LIMITS[kind]
    if kind == "hardtanh":
        low, high = _given(call, "min_val", 1, low), _given(call, "max_val", 2, high)
    return (low, high) if math.isfinite(high - low) and low < high else None


def _add_rows(seen: _Seen, call: Call, tensor: Tensor) -> None:
    """Of a softmax: how many rows were saturated, and of how many."""
    if not _compares(tensor):
        return
    dim = _given(call, "dim", 1)
    if dim is None:  # torch's own choice where nobody says
        dim = 0 if tensor.ndim in (0, 1, 3) else 1
    seen.saturated = saturated_rows(tensor, dim)
    seen.could_saturate = tensor.numel() // max(tensor.shape[dim], 1) if tensor.ndim else 1


def _compares(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1  # floats of 8 bits cannot be compared


def _given(call: Call, name: str, place: int, default: Any = None) -> Any:
    """An option of the module, or an argument of the function."""
    if call.module is not None:
        return getattr(call.module, name, default)
    return call.kwargs.get(name, call.args[place] if len(call.args) > place else default)


def _figures(layers: Mapping[str, _Seen], counts: Mapping[str, BitCounts], where: str) -> Iterable[Figures]:
    own = {name: seen for name, seen in layers.items() if not seen.passed_on}
    dead = {
        name: 0.0 if seen.alive is True else 1 - float(seen.alive.float().mean())
        for name, seen in own.items()
        if seen.alive is not None
    }
    zeros = {name: counts[name].zeros / counts[name].count for name in own}
    nonfinite = {name: count.nonfinite / count.count for name, count in counts.items()}
    saturation = {
        name: float(seen.saturated) / seen.could_saturate for name, seen in layers.items() if seen.saturated is not None
    }
    # All NaN or infinite: how many units are dead, or saturated, cannot be told any more, and 0 would look healthy.
    gone = {name for name, share in nonfinite.items() if share == 1}
    for shares in (dead, zeros, saturation):
        shares.update(dict.fromkeys(gone & shares.keys(), math.nan))
    # Between activations they would take the line down to 0 and up again.
    blend = frozenset(name for name, seen in own.items() if seen.blends)
    yield Figures("dead_units", dead, caption=f"share of units that are zero for every example, {where}", quiet=blend)
    yield Figures("zeros", zeros, caption=f"share of outputs that are zero, {where}", quiet=blend)
    yield Figures(
        "saturated", saturation, caption=f"share of outputs within 2% of a limit (softmax: rows over 0.98), {where}"
    )
    yield Figures("nonfinite", nonfinite, caption="share of elements that are NaN or infinite", source="activations")
