"""How large each update is beside the weight it changes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from vizlog.messages import one_line
from vizlog.probes.base import Context, Figures, Probe, only_arranges
from vizlog.probes.health import Depth, layer_of
from vizlog.probes.parameters import added_or_skipped
from vizlog.ranks import GIVEN_UP, is_given_up, shards
from vizlog.records import Record, Scalar
from vizlog.requests import Request, Updates
from vizlog.schedules import Schedule, Thinning
from vizlog.selection import Select, check_select, matcher, named_parameters, selected_parameters, spread
from vizlog.survey import Survey

__all__ = ["UpdateRatios"]

_CHUNK_BYTES = 40 << 20
"""How much is copied before a step: with the differences made from it, and what else lies about, below 64 MB."""


class UpdateRatios(Probe):
    """The ratio ‖Δw‖ / ‖w‖ of each step's update to the weight it changed: tags `updates/…`.

    Around 1e-3 is usual; 1e-5 hardly learns, 1e-1 is unstable. `health/update_ratio` has it for each layer, over all
    its parameters. Models too large to be copied at once are looked at in turns: each due step takes the next 40 MB of
    parameters (of a larger one, the next rows), and the caption says how many.

    Args:
        select: which parameters, by their own or their module's name; None: all that are trained.
        every: a number of steps, or a schedule.
        most: how many tensors get a scalar of their own, spread over the depth; None: all.
    """

    picture = False
    needs_optimizer = True

    def __init__(
        self,
        select: Select = None,
        *,
        every: int | Schedule = Thinning(),  # noqa: B008 (frozen)
        most: int | None = 64,
    ) -> None:
        super().__init__(every=every)
        self._check_numbers(most=most, or_none=True)
        matcher(select)  # raises where it is no selection
        self._select, self._most = select, most
        self._position: tuple[str, int] = ("", 0)
        self._all: list[str] = []
        self._turn = 0  # how many of them are looked at this time
        self._parts: dict[str, tuple[int, int]] = {}
        self._depth = Depth()

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        check_select(self._select, named_parameters(models), self._found(models), "parameter")
        self._depth = Depth(survey)

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        found = self._found(models)
        self._all = list(found)
        names, parts = self._next_chunk(found)
        self._turn, self._parts = len(names), parts
        return {"squares": Updates(tuple(names), _squares, added_or_skipped, parts)}

    @only_arranges
    def measure(self, context: Context) -> Any:
        asked = {"all": self._all, "turn": self._turn, "parts": self._parts}
        return {"squares": context.captured["squares"], **asked}

    def finish(self, measured: Any) -> Iterable[Record | Figures]:
        seen: dict[str, Tensor | str] = measured["squares"]
        squares = {name: pair.tolist() for name, pair in seen.items() if not isinstance(pair, str)}
        skipped = [f"{name}: {reason}" for name, reason in seen.items() if isinstance(reason, str)]
        # Fewer are seen than there are also where no watched optimizer has the others, whose turn never comes.
        in_turn = measured["turn"] < len(measured["all"])
        looked = f"; {len(seen)} of {len(measured['all'])} tensors this time, in turn" if in_turn else ""
        of_part = {name: f"part {k + 1} of {n} of its rows" for name, (k, n) in measured["parts"].items()}
        looked += "".join(f"; of {name} {part}" for name, part in of_part.items())
        looked += f"; {len(skipped)} skipped ({skipped[0]})" if skipped else ""
        drawn = set(spread(measured["all"], self._most or len(measured["all"]))) if measured["all"] else set()
        layers: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for name, (update, weight) in squares.items():
            if name in drawn and weight != 0:  # a weight of nothing but zeros has no ratio; one with NaN has NaN
                part = f"; {of_part[name]}, in turn" if name in of_part else ""
                caption = f"|Δw| / |w| of {name}, Euclidean norms{part}"
                yield Scalar(f"updates/{name}", _ratio(update, weight), caption=caption)
            layers[layer_of(name)][0] += update
            layers[layer_of(name)][1] += weight
        # What is not finite is the worst of all, and not a layer that has no ratio.
        ratios = {layer: _ratio(*pair) if math.isfinite(sum(pair)) else math.inf for layer, pair in layers.items()}
        lost = "; infinite where a weight became NaN" if math.inf in ratios.values() else ""
        yield Figures(
            "update_ratio",
            self._depth.order(ratios),
            caption="|Δw| / |w| over each layer's parameters, Euclidean norms; about 1e-3 is usual" + lost + looked,
        )

    def _found(self, models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
        return {name: p for name, p in selected_parameters(models, self._select).items() if p.requires_grad}

    def _next_chunk(self, parameters: Mapping[str, nn.Parameter]) -> tuple[list[str], dict[str, tuple[int, int]]]:
        """The parameters whose turn it is, at most a chunk of bytes, and the part of one that alone is larger."""
        names = list(parameters)
        sizes = {name: -(-p.numel() // shards(p)) * p.element_size() for name, p in parameters.items()}
        if sum(sizes.values()) <= _CHUNK_BYTES:
            return names, {}
        # The parameter that stood next may have been frozen since.
        start, part = self._position if self._position[0] in parameters else (names[0], 0)
        first = names.index(start)
        ahead = names[first:] + names[:first]
        if sizes[start] > _CHUNK_BYTES:
            rows = max(1, parameters[start].shape[0] // shards(parameters[start]))
            parts = min(-(-sizes[start] // _CHUNK_BYTES), rows)
            self._position = (start, part + 1) if part + 1 < parts else (ahead[1 % len(ahead)], 0)
            return [start], {start: (part, parts)}
        fitting = sum(total <= _CHUNK_BYTES for total in accumulate(sizes[name] for name in ahead))
        self._position = (ahead[fitting], 0)
        return ahead[:fitting], {}


def _squares(before: Tensor, after: Tensor) -> Tensor | str:
    """(2,) float64: sums of squares of the update and of the weight before it, or why they cannot be had.

    `before` is ours and is overwritten.
    """
    if before.is_meta:
        return "a meta tensor has no values"
    if is_given_up(after):
        return GIVEN_UP
    try:
        if before.is_floating_point() and before.element_size() < 2:  # of 8 bits: there is no arithmetic on them
            before, after = before.float(), after.float()
        exact = torch.promote_types(torch.float32, before.dtype)  # half precision is widened, double and complex stay
        weight = torch.linalg.vector_norm(before, dtype=exact)
        update = torch.linalg.vector_norm(before.sub_(after), dtype=exact)
        return torch.stack([update, weight]).double().square()
    except RuntimeError as error:  # sparse or nested
        return one_line(error)


def _ratio(update: float, weight: float) -> float:
    return math.sqrt(update / weight) if weight != 0 else math.nan
