"""Attention probabilities of any model: read from the calls its forward makes, for a few examples, heads and tokens.

Fused kernels keep no probabilities: they are computed again from what a kernel was given, in float32, without dropout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator

from vizlog.selection import spread

__all__ = ["AttentionCall", "Shown", "attention_probabilities", "by_identity", "normalised_entropy", "sinks"]

SINK = 0.3
"""Mean attention to the first key over which a head counts as a sink."""

_MASKED = -9e3
"""Scores at or below this are masks: some add −10⁴ or a type's lowest value in the place of −inf."""


@dataclass(frozen=True)
class Shown:
    """The part of the probabilities that is wanted.

    Args:
        examples: numbers along the batch dimension; what a call does not have is left out.
        heads: at most so many, spread over all of them.
        tokens: at most so many queries and so many keys, the first ones.
        batch: how many examples there are, where known: tells apart what is folded into the batch dimension, an
            example's heads or windows behind one another; all of it counts as heads. A dimension that is no multiple
            of it holds no examples and counts as heads of one: those of a graph, of which nodes are the examples.
    """

    examples: Sequence[int] = range(2)
    heads: int = 8
    tokens: int = 128
    batch: int | None = None

    def of(self, rows: int, heads: int) -> _Places:
        """What is shown of a call with so many entries along the batch dimension and so many heads in each."""
        folded = 1
        if self.batch:
            folded = rows if rows % self.batch else rows // self.batch
        examples = [example for example in self.examples if example < rows // folded]
        return _Places(examples, spread(range(folded * heads), self.heads), rows, heads, folded)


@dataclass(frozen=True)
class _Places:
    """The examples and heads of a call that are shown, and where they lie in its tensors (rows, heads, ...).

    Args:
        examples, heads: their numbers; those of heads count over all rows of an example.
        total_rows, heads_a_row: of the call.
        folded: how many rows an example has.
    """

    examples: list[int]
    heads: list[int]
    total_rows: int
    heads_a_row: int
    folded: int

    @property
    def totals(self) -> tuple[int, int]:
        """How many examples and heads the call has."""
        return self.total_rows // self.folded, self.folded * self.heads_a_row

    def of(self, example: int) -> list[tuple[int, int]]:
        """Row and head in it, of each head shown of an example."""
        return [(example * self.folded + head // self.heads_a_row, head % self.heads_a_row) for head in self.heads]

    @property
    def rows(self) -> list[int]:
        """The rows that are needed, rising."""
        return sorted({row for example in self.examples for row, _ in self.of(example)})

    # Picked one by one: indexing with a list would wait for the device.
    def pick(self, tensor: Tensor, example: int) -> Tensor:
        """(heads, ...) of one example; a dimension smaller than the call's is shared evenly (broadcast, grouped)."""
        rows, heads = tensor.shape[:2]
        places = self.of(example)
        return torch.stack([tensor[row * rows // self.total_rows, h * heads // self.heads_a_row] for row, h in places])

    def pick_all(self, of_rows: Mapping[int, Tensor]) -> Tensor:
        """(examples, heads, ...), of what is known of each row: (heads, ...)."""
        return torch.stack(
            [torch.stack([of_rows[row][head] for row, head in self.of(example)]) for example in self.examples]
        )

    def call(self, weights: Tensor, entropy: Tensor, queries: int, keys: int) -> AttentionCall:
        """What is shown, with the numbers of queries and keys of the call."""
        windows = self.folded if self.heads_a_row > 1 else 1  # rows of one head each are heads
        examples, heads = tuple(self.examples), tuple(self.heads)
        return AttentionCall(weights, entropy, examples, heads, *self.totals, queries, keys, windows, self.folded)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one call of an attention function attended to.

    Args:
        weights: (examples, heads, queries, keys) float32. A row sums to 1 over all keys; one that sees no key is 0.
        entropy: (examples, heads, queries) float32, what `normalised_entropy` makes of the rows over all keys.
        examples, heads: the numbers of those shown.
        total_examples, total_heads, total_queries, total_keys: of the call itself.
        windows: how many separate parts of each example heads attend within (windows of an image). Heads are numbered
            through: head h of window w is w · heads + h.
        folded: how many entries of the batch dimension an example has.
    """

    weights: Tensor
    entropy: Tensor
    examples: tuple[int, ...]
    heads: tuple[int, ...]
    total_examples: int
    total_heads: int
    total_queries: int
    total_keys: int
    windows: int = 1
    folded: int = 1


def attention_probabilities(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, shown: Shown
) -> AttentionCall | None:
    """The probabilities behind `output = function(*args, **kwargs)`, or None where they cannot be read.

    Read are `F.scaled_dot_product_attention`; `F.multi_head_attention_forward`, which nn.MultiheadAttention calls; the
    operator of flex_attention; and the softmax of attention that is written out, (N, heads, L, S) or (N, L, S). Other
    functions and nested tensors are not read.

    Dropout is left out, no gradient is kept, and nothing waits for the device.
    """
    read = _flex if isinstance(function, HigherOrderOperator) else _READ.get(function)
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if read is None or not tensors or any(tensor.is_nested for tensor in tensors):
        return None
    with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
        return read(_Seen(function, args, kwargs, output), shown)


def normalised_entropy(rows: Tensor, allowed: Tensor) -> Tensor:
    """How evenly each query looks at the keys it may look at: −Σ p log p / log n, 0 (at one) to 1 (at all alike).

    Args:
        rows: (..., keys) probabilities.
        allowed: (..., keys) bool, which keys a query may look at; n is their number.

    Returns:
        (...) float32; NaN for a query that has no choice, n < 2.
    """
    number = allowed.sum(-1)
    entropy: Tensor = torch.special.entr(rows.float()).sum(-1) / number.clamp_min(2).log()
    return entropy.masked_fill(number < 2, torch.nan)


def sinks(weights: Tensor, queries: Tensor) -> Tensor:
    """(heads,) bool: which heads give the first key over 0.3 of the attention of their queries, on average.

    Σ_i A_i1 / T over queries and examples (Gu et al. 2024, "When Attention Sink Emerges in Language Models"); even
    causal attention over fewer than 10 tokens passes the 0.3 by itself.

    Args:
        weights: (examples, heads, queries, keys).
        queries: (examples, queries) bool, which of them count: padding does not.
    """
    first = weights[..., 0].float() * queries[:, None]
    return first.sum((0, 2)) / queries.sum().clamp_min(1) > SINK


@dataclass(frozen=True, eq=False)
class _Seen:
    """A function call, after it returned."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any

    def arguments(self, signature: inspect.Signature) -> dict[str, Any]:
        bound = signature.bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments


def by_identity(
    attend: Callable[[Tensor], Tensor],
    keys: int,
    head_dim: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Attention probabilities out of any attention kernel, by what it makes of an identity matrix as values.

    The output is softmax(…)V: with V = I it is the probabilities. A kernel takes `head_dim` columns of I at a time.

    Args:
        attend: values (keys, head_dim) -> output (..., head_dim): the kernel on given queries and keys, which expands
            the values over batch and heads.

    Returns:
        (..., keys).
    """

    def columns(start: int) -> Tensor:
        # A kernel may take one head_dim only: the last block is filled up with zeros.
        block = torch.zeros(keys, head_dim, device=device, dtype=dtype)
        block[start : start + head_dim].fill_diagonal_(1)
        return block

    return torch.cat([attend(columns(start)) for start in range(0, keys, head_dim)], dim=-1)[..., :keys]


def _scaled_dot_product(seen: _Seen, shown: Shown) -> AttentionCall | None:
    call = seen.arguments(_SCALED_DOT_PRODUCT)
    query: Tensor = call["query"]
    key: Tensor = call["key"]
    masks = [mask for mask in (call["attn_mask"],) if mask is not None]
    scale: float = query.shape[-1] ** -0.5 if call["scale"] is None else call["scale"]
    query, key, *masks = _four_dimensional(query, key, *masks)
    places = shown.of(*(max(sizes) for sizes in zip(*(x.shape[:2] for x in (query, key, *masks)), strict=True)))
    if not places.examples:
        return None
    weights, entropies = [], []
    for example in places.examples:  # one at a time: a row over all keys is long
        q = places.pick(query, example)[:, : shown.tokens].float()
        scores = (q * scale) @ places.pick(key, example).float().transpose(-2, -1)
        if call["is_causal"]:  # aligned at the top left, whatever the two lengths are
            scores = scores.masked_fill(~scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        for mask in masks:
            scores = scores + _additive(places.pick(mask, example)[:, : shown.tokens])
        rows = _softmax(scores)
        weights.append(rows[..., : shown.tokens])
        entropies.append(normalised_entropy(rows, scores > _MASKED))
    return places.call(torch.stack(weights), torch.stack(entropies), query.shape[-2], key.shape[-2])


def _multi_head(seen: _Seen, shown: Shown) -> AttentionCall | None:
    """nn.MultiheadAttention arrives as one call, (L, N, E) or (L, E): run again, an example at a time, with weights."""
    call = seen.arguments(_MULTI_HEAD)
    if call["query"].ndim == 2:
        call |= {name: call[name].unsqueeze(1) for name in ("query", "key", "value")}
        if call["key_padding_mask"] is not None:
            call["key_padding_mask"] = call["key_padding_mask"].unsqueeze(0)
    total_queries, total_rows, _ = call["query"].shape
    places = shown.of(total_rows, call["num_heads"])
    if not places.examples or call["static_k"] is not None:
        return None
    run = {row: _multi_head_row(call, row, shown.tokens) for row in places.rows}
    weights, allowed = (places.pick_all({row: run[row][part] for row in run}) for part in (0, 1))
    entropy = normalised_entropy(weights, allowed)
    return places.call(weights[..., : shown.tokens], entropy, total_queries, weights.shape[-1])


def _multi_head_row(call: Mapping[str, Any], row: int, queries: int) -> tuple[Tensor, Tensor]:
    """(heads, queries, keys) of one entry of the batch dimension, and which of them may be looked at."""
    mask = _multi_head_mask(call, row, queries)
    again = dict(call)
    again["query"] = call["query"][:queries, row : row + 1]
    again |= {name: call[name][:, row : row + 1] for name in ("key", "value")}
    again = {name: a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for name, a in again.items()}
    again |= {"training": False, "need_weights": True, "average_attn_weights": False, "is_causal": False}
    again |= {"attn_mask": mask, "key_padding_mask": None}
    weights: Tensor = F.multi_head_attention_forward(**again)[1]  # type: ignore[assignment]
    # A row that may attend to nothing: the fused kernel, which runs where no weights are needed, makes it 0.
    if mask is not None and weights.shape[-1] == mask.shape[-1] and not call["need_weights"]:
        weights = weights.masked_fill(mask.isneginf().all(-1, keepdim=True), 0.0)
    allowed = torch.ones_like(weights[0], dtype=torch.bool)
    if mask is not None:  # keys that the module adds itself have none
        allowed[..., : mask.shape[-1]] = mask > _MASKED
    return weights[0], allowed


def _multi_head_mask(call: Mapping[str, Any], row: int, queries: int) -> Tensor | None:
    """Both masks of one entry of the batch dimension as one to be added, (heads, queries, keys)."""
    mask, padding, heads = call["attn_mask"], call["key_padding_mask"], call["num_heads"]
    shape = (heads, min(queries, len(call["query"])), len(call["key"]))
    device = call["query"].device
    if call["is_causal"] and padding is None and not call["need_weights"]:
        # Here `is_causal` is taken at its word, and the mask beside it never looked at.
        mask = torch.ones(shape[1:], dtype=torch.bool, device=device).triu(1)
    if mask is None and padding is None:
        return None
    total = torch.zeros(shape, device=device)
    if mask is not None:
        own = mask[row * heads : (row + 1) * heads] if mask.ndim == 3 and len(mask) > 1 else mask
        total = total + _additive(own[..., :queries, :], true_means_attend=False)
    if padding is not None:
        total = total + _additive(padding[row], true_means_attend=False)
    return total


def _flex(seen: _Seen, shown: Shown) -> AttentionCall | None:
    query: Tensor = seen.args[0]
    key: Tensor = seen.args[1]
    settings = seen.args[3:]
    total_rows, total_heads, total_queries, _ = query.shape
    total_keys = key.shape[-2]
    places = shown.of(total_rows, total_heads)
    if not places.examples:
        return None
    # score_mod and mask_mod see the numbers of rows, heads and tokens, so only what comes after the last can go.
    query = query[: places.rows[-1] + 1, :, : shown.tokens].float()
    key = key[: places.rows[-1] + 1].float()

    def attend(values: Tensor) -> Tensor:
        output: Tensor = seen.function(query, key, values.expand(*key.shape[:2], -1, -1), *settings, **seen.kwargs)[0]
        return output

    weights = by_identity(attend, total_keys, min(shown.tokens, total_keys), device=key.device)
    weights = places.pick_all({row: weights[row] for row in places.rows})
    # The masks are functions: what no head looks at is taken as masked.
    entropy = normalised_entropy(weights, (weights > 0).any(1, keepdim=True).expand_as(weights))
    return places.call(weights[..., : shown.tokens], entropy, total_queries, total_keys)


def _softmax_written_out(seen: _Seen, shown: Shown) -> AttentionCall | None:
    (everything,) = _four_dimensional(seen.output.detach())
    places = shown.of(*everything.shape[:2])
    if not places.examples:
        return None
    (scores,) = _four_dimensional((seen.args[0] if seen.args else seen.kwargs["input"]).detach())
    rows, given = (
        torch.stack([places.pick(part[..., : shown.tokens, :], example) for example in places.examples])
        for part in (everything, scores)
    )
    entropy = normalised_entropy(rows, given > _MASKED)
    return places.call(rows[..., : shown.tokens].float(), entropy, *everything.shape[-2:])


def _four_dimensional(*tensors: Tensor) -> list[Tensor]:
    """(..., L, S) -> (rows, heads, L, S): three dimensions are rows of one head each, more than four are all rows.

    Dimensions of 1, which are broadcast, stay so, unless several leading ones have to be flattened into one.
    """
    most = max(tensor.ndim for tensor in tensors)
    if most == 3:
        tensors = tuple(tensor[:, None] if tensor.ndim == 3 else tensor for tensor in tensors)
    filled = [tensor[(None,) * (4 - tensor.ndim)] for tensor in tensors]
    if most <= 4:
        return filled
    lead = torch.broadcast_shapes(*(tensor.shape[:-3] for tensor in filled))
    return [tensor.expand(*lead, *tensor.shape[-3:]).flatten(0, -4) for tensor in filled]


def _additive(mask: Tensor, *, true_means_attend: bool = True) -> Tensor:
    """A mask to be added to the scores: float32, −inf where it says no."""
    if mask.dtype != torch.bool:
        return mask.float()
    forbidden = ~mask if true_means_attend else mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(forbidden, -torch.inf)


def _softmax(scores: Tensor) -> Tensor:
    nothing_allowed = scores.isneginf().all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(nothing_allowed, 0.0)


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
# A builtin, which has no signature to look at.
_SCALED_DOT_PRODUCT = inspect.signature(
    lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False: None
)
_READ: dict[Any, Callable[[_Seen, Shown], AttentionCall | None]] = {
    F.scaled_dot_product_attention: _scaled_dot_product,
    F.multi_head_attention_forward: _multi_head,
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax), _softmax_written_out),
}
