"""Attention maps: what each token looks at, head by head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vizlog.batch import examples_run
from vizlog.compute.attention import AttentionCall, Shown, attention_probabilities, sinks
from vizlog.probes.base import Context, Figures, Probe, only_arranges
from vizlog.probes.features import has_two_texts
from vizlog.records import Attention, Floats
from vizlog.requests import AttentionCalls, Call, Request
from vizlog.schedules import LogSpaced, Schedule
from vizlog.selection import Select, check_select, matcher, named_modules, spread
from vizlog.survey import Survey

__all__ = ["AttentionMaps"]


class AttentionMaps(Probe):
    """Attention probabilities of each head on the first examples of the fixed batch: tags `attention/LAYER`.

    Also `health/attention_entropy` (how evenly each layer's most narrow head looks at what it may look at: 0 at one
    token, 1 at all alike) and `health/attention_sinks` (the share of heads that look at the first token most).

    Any model, with nothing changed in it: `F.scaled_dot_product_attention`, `nn.MultiheadAttention`,
    `nn.TransformerEncoder`, Hugging Face models on their default implementation, flex_attention, and attention that is
    written out with a softmax. What a model folds into the batch dimension, heads or windows, counts as heads of the
    example that it is of. Positions have the names of the tokens only where these are the only text that goes in.

    Args:
        select: which layers, by the module that calls an attention function; None: all.
        every: a number of steps, or a schedule.
        layers: how many of them to draw, spread over the depth.
        heads: how many heads of each, spread over all.
        examples: how many examples.
        tokens: how many queries and keys, the first ones.
    """

    def __init__(
        self,
        select: Select = None,
        *,
        every: int | Schedule = LogSpaced(every=100),  # noqa: B008 (frozen)
        layers: int = 6,
        heads: int = 8,
        examples: int = 2,
        tokens: int = 128,
    ) -> None:
        super().__init__(every=every)
        self._check_numbers(layers=layers, heads=heads, examples=examples, tokens=tokens)
        self._select, self._matches = select, matcher(select)
        self._most_layers = layers
        self._shown = Shown(range(examples), heads, tokens)
        self._layers: list[str] = []
        self._total_layers = 0
        self._ids: list[int] = []
        self._tokens: list[list[str]] = []
        self._mask: Tensor | None = None
        self._longest = 0
        self._together = False

    def bind(self, models: Mapping[str, nn.Module], survey: Survey | None) -> None:
        if survey is None:
            raise ValueError("AttentionMaps needs examples to run the model on: give batch=(inputs, targets)")
        modules = named_modules(models)
        matching = [name for name in survey.attention if self._matches(name, modules.get(name))]
        check_select(self._select, survey.attention, matching, "layer with attention")
        if not matching:
            raise ValueError("AttentionMaps found no attention in the model")
        self._layers, self._total_layers = spread(matching, self._most_layers), len(survey.attention)
        shown = survey.batch.part(0, len(self._shown.examples))
        self._ids = shown.ids.tolist()
        self._together = min(survey.batch.chunk, len(survey.batch)) > 1
        self._tokens, self._mask, self._longest = [], None, 0
        if shown.token_ids is not None and not has_two_texts(survey):
            self._tokens = [shown.token_names(example) for example in range(len(shown))]
            self._mask = shown.token_mask
            self._longest = int(shown.last_positions.max()) + 1

    def wants(self, models: Mapping[str, nn.Module]) -> Mapping[str, Request]:
        return {"attention": AttentionCalls(self._read, examples=len(self._shown.examples))}

    @only_arranges
    def measure(self, context: Context) -> dict[str, AttentionCall]:
        assert context.batch is not None
        chunk, calls = context.batch.chunk, context.captured["attention"]
        found = {layer: _first_of_each_chunk(made, len(self._ids), chunk) for layer, made in calls.items()}
        if not found:
            raise ValueError(f"no attention ran in {', '.join(self._layers)}, where it ran before")
        return {layer: found[layer] for layer in spread(list(found), self._most_layers)}

    def finish(self, measured: Mapping[str, AttentionCall]) -> Iterable[Attention | Figures]:
        entropy: dict[str, float] = {}
        share: dict[str, float] = {}
        number = max(len(call.examples) for call in measured.values())
        for layer, call in measured.items():
            queries, keys = call.weights.shape[-2:]
            if self._are_tokens(call.total_queries):
                queries = min(queries, self._longest)
            if self._are_tokens(call.total_keys):
                keys = min(keys, self._longest)
            sink = self._are_tokens(call.total_queries) and call.total_keys == call.total_queries + 1
            counted = self._counted(call, queries)
            entropy[layer] = _lowest(call.entropy[..., :queries].masked_fill(~counted[:, None], math.nan).numpy())
            share[layer] = float(sinks(call.weights[..., :queries, :], counted).float().mean())
            weights = call.weights[..., :queries, :keys].numpy()
            yield Attention(
                f"attention/{layer}",
                weights,
                [self._ids[row] if row < len(self._ids) else row for row in call.examples],
                call.heads,
                [self._labels(row, call.total_queries, queries) for row in call.examples],
                [self._labels(row, call.total_keys, keys, sink=sink) for row in call.examples],
                caption=self._caption(call, weights),
            )
        of_heads = f"heads shown, on the first {number} examples of the fixed batch"
        yield Figures(
            "attention_entropy",
            entropy,
            caption=f"lowest of the {of_heads}: mean over queries of −Σ p log p / log(keys it may look at)",
            worst="lowest",
        )
        yield Figures("attention_sinks", share, caption=f"share of the {of_heads} that give the first key over 0.3")

    def _read(self, call: Call) -> AttentionCall | None:
        if call.function is None or call.layer not in self._layers:
            return None
        shown = replace(self._shown, batch=examples_run())
        return attention_probabilities(call.function, call.args, call.kwargs, call.output, shown)

    def _are_tokens(self, total: int) -> bool:
        return bool(self._tokens) and total == len(self._tokens[0])

    def _counted(self, call: AttentionCall, queries: int) -> Tensor:
        """(examples, queries) bool, False for a query that is padding."""
        if self._mask is None or not self._are_tokens(call.total_queries) or max(call.examples) >= len(self._mask):
            return torch.ones(len(call.examples), queries, dtype=torch.bool, device="cpu")
        return self._mask[list(call.examples), :queries]

    def _labels(self, example: int, total: int, shown: int, *, sink: bool = False) -> list[str]:
        """Tokens where the positions are those of the input's tokens, else their numbers.

        A sink is one key more than there are tokens, learnt or zero, for what should go nowhere.
        """
        names = self._tokens[example] if example < len(self._tokens) else []
        names = [*names, "sink"] if sink else names
        return names[:shown] if total == len(names) else [str(position) for position in range(shown)]

    def _caption(self, call: AttentionCall, weights: Floats) -> str:
        _, heads, queries, keys = weights.shape
        parts = ["attention probabilities (softmax over the keys), without dropout"]
        if self._together and call.total_examples == 1 < call.folded:
            parts.append(f"its first dimension, of {call.folded}, is not that of the examples: all of it is heads")
        if heads < call.total_heads:
            parts.append(f"{heads} of {call.total_heads} heads, spread over all")
        if call.windows > 1:
            each = call.total_heads // call.windows
            parts.append(
                f"{call.windows} windows of each example, with {each} heads each: "
                f"head {each} is the first of the second window"
            )
        if queries < call.total_queries or keys < call.total_keys:
            parts.append(
                f"the first {queries} of {call.total_queries} queries and the first {keys} of {call.total_keys} keys"
            )
        sums = weights.sum(-1)[weights.any(-1)]
        if sums.size and (missing := 1 - sums.mean()) > 0.0005:  # more than rounding
            parts.append(f"{missing:.1%} of the attention goes to keys not shown")
        if len(self._layers) < self._total_layers:
            parts.append(f"{len(self._layers)} of {self._total_layers} layers with attention are drawn")
        return "; ".join(parts)


def _first_of_each_chunk(calls: Sequence[AttentionCall], number: int, chunk: int) -> AttentionCall:
    """The first call of a layer in each pass over `chunk` examples, as one call on the first `number` of all.

    The first pass alone, where the layer did not run as often, or on as many tokens, in each.
    """
    often, rest = divmod(len(calls), -(-number // chunk))
    firsts = calls[:: max(often, 1)]
    shapes = {(call.weights.shape[1:], call.total_heads, call.total_queries, call.total_keys) for call in firsts}
    if rest or len(shapes) > 1:
        return calls[0]
    return replace(
        calls[0],
        weights=torch.cat([call.weights for call in firsts])[:number],
        entropy=torch.cat([call.entropy for call in firsts])[:number],
        examples=tuple(start * chunk + row for start, call in enumerate(firsts) for row in call.examples)[:number],
    )


def _lowest(entropy: Floats) -> float:
    """The lowest head's mean over examples and queries (axes 0 and 2); NaN where no query has a choice of keys."""
    has = ~np.isnan(entropy)
    number = has.sum((0, 2))
    means = np.where(has, entropy, 0).sum((0, 2))[number > 0] / number[number > 0]
    return float(means.min()) if means.size else math.nan
