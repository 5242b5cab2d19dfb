"""What histograms of weights and of gradients have in common: which parameters, counted how, drawn which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vizlog.compute.histogram import BitCounts, Counts, Uncountable, count_each, histograms, prepare
from vizlog.probes.base import Figures, Probe
from vizlog.probes.health import Depth, layer_of
from vizlog.records import Record
from vizlog.requests import Gradients, Request, Weights
from vizlog.schedules import Schedule, Thinning
from vizlog.selection import Select, check_select, device_of, matcher, named_parameters, selected_parameters, spread
from vizlog.survey import Survey

__all__ = ["ParameterHistograms", "added_or_skipped"]


class ParameterHistograms(Probe):
    """Histograms of something that each parameter has.

    Args:
        select: which parameters, by their own or their module's name; None: all.
        every: a number of steps, or a schedule.
        most: how many tensors to draw, spread over the depth and matrices before biases (None: all that were selected);
            health figures cover all.
    """

    picture = False
    kind: ClassVar[str]
    request: ClassVar[type[Weights] | type[Gradients]]

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
        self._drawn: list[str] = []
        self._met: set[str] = set()
        self._matrices: set[str] = set()
        self._depth = Depth()

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        found = self._names(models)
        check_select(self._select, named_parameters(models), found, "parameter")
        self._depth = Depth(survey)
        prepare(device_of(models))

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        selected = selected_parameters(models, self._select)
        self._matrices = {name for name, parameter in selected.items() if parameter.ndim > 1}
        return {"counts": self.request(tuple(selected), count_or_skip, added_or_skipped)}

    def finish(self, measured: Any) -> Iterable[Record | Figures]:
        counts = {name: count for name, count in measured["counts"].items() if isinstance(count, BitCounts)}
        skipped = {name: reason for name, reason in measured["counts"].items() if isinstance(reason, str)}
        left_out = f"; {len(skipped)} skipped ({next(iter(skipped.values()))})" if skipped else ""
        self._meet(list(counts))
        chosen = set(self._drawn)
        drawn = [name for name in counts if name in chosen]
        left_out += f"; {len(drawn)} of {len(counts)} tensors are drawn" if len(drawn) < len(counts) else ""
        yield from histograms([(f"{self.kind}/{name}", counts[name], self.caption(name) + left_out) for name in drawn])
        yield from self.figures(counts)

    def caption(self, name: str) -> str:
        """What one histogram's caption says."""
        raise NotImplementedError

    def figures(self, counts: Mapping[str, BitCounts]) -> Iterable[Figures]:
        """Health figures of all counted tensors: here the share that is not finite, of each layer's worst tensor."""
        share: dict[str, float] = {}
        for name, counted in counts.items():
            layer, nonfinite = layer_of(name), counted.nonfinite
            share[layer] = max(share.get(layer, 0.0), nonfinite / counted.count if nonfinite else 0.0)
        share = self._depth.order(share)
        yield Figures("nonfinite", share, caption="share of elements that are NaN or infinite", source=self.source)

    @property
    def source(self) -> str:
        """What the line of its figures is called beside those of others."""
        return self.kind

    def _names(self, models: Mapping[str, nn.Module]) -> list[str]:
        return list(selected_parameters(models, self._select))

    def _meet(self, names: Sequence[str]) -> None:
        """Chooses which of the tensors that have not been there before are drawn: at most `most` with those chosen.

        Once chosen, a tensor stays, since histograms of one tag are compared over time. Those that appear later, as
        layers are unfrozen, get the room there is, and at least their share.
        """
        are_gone = set(self._drawn).isdisjoint(names)
        new = [name for name in names if are_gone or name not in self._met]
        if not new:
            return
        self._met.update(names)
        most = self._most or len(names) + len(self._drawn)
        places = max(most - len(self._drawn), most * len(new) // len(names))
        matrices = [name for name in new if name in self._matrices]
        joined = spread(matrices if len(matrices) >= places else new, places)
        self._drawn = [*spread(self._drawn, most - len(joined)), *joined]


def count_or_skip(tensors: list[Tensor]) -> list[Counts | str]:
    """The counts of each tensor, or the reason why it has none."""
    try:
        return list(count_each(tensors))
    except Uncountable:
        return [_one(tensor) for tensor in tensors]


def added_or_skipped(one: Any, other: Any) -> Any:
    """What was found of two ranks' parts of one tensor, added; a part that was skipped leaves out all of it."""
    if isinstance(one, str) or isinstance(other, str):
        return one if isinstance(one, str) else other
    return one + other


def _one(tensor: Tensor) -> Counts | str:
    try:
        return count_each([tensor])[0]
    except Uncountable as reason:
        return str(reason)
