"""Attention probabilities against nn.MultiheadAttention's own weights and the softmax written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vizlog.capture import is_attention
from vizlog.compute.attention import AttentionCall, Shown, attention_probabilities, by_identity

EVERYTHING = Shown(range(99), heads=99, tokens=999)


class Watch(TorchFunctionMode):
    """Reads every attention that runs inside."""

    def __init__(self, shown: Shown = EVERYTHING) -> None:
        super().__init__()
        self.shown = shown
        self.calls: list[AttentionCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        if is_attention(func, args, kwargs or {}, output):
            call = attention_probabilities(func, args, kwargs or {}, output, self.shown)
            self.calls += [] if call is None else [call]
        return output


def watched(run: Callable[[], Any], shown: Shown = EVERYTHING) -> list[AttentionCall]:
    with torch.no_grad(), Watch(shown) as watch:
        run()
    return watch.calls


def one(run: Callable[[], Any], shown: Shown = EVERYTHING) -> AttentionCall:
    (call,) = watched(run, shown)
    return call


def written_out(query: Tensor, key: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d + bias) over the allowed keys, in float64; a row without any is 0."""
    scores = query.double() @ key.double().transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias.double()
    allowed = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.expand_as(scores)
    odds = torch.where(allowed, (scores - scores.amax(-1, keepdim=True)).exp(), 0.0)
    return odds / odds.sum(-1, keepdim=True).clamp_min(1e-300)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


def qkv(*, queries: int = 5, keys: int = 7, heads: int = 4, key_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, heads, queries, 8), torch.randn(3, key_heads, keys, 8), torch.randn(3, key_heads, keys, 8)


# F.scaled_dot_product_attention


def test_probabilities_times_values_are_what_the_kernel_returned():
    query, key, value = qkv()
    call = one(lambda: F.scaled_dot_product_attention(query, key, value))
    assert_close(call.weights @ value, F.scaled_dot_product_attention(query, key, value))
    assert_close(call.weights, written_out(query, key))


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (3, 1, 5, 7), (1, 4, 5, 7), (3, 4, 5, 7), (3, 1, 1, 7)])
def test_masks_of_every_broadcast_shape(shape):
    query, key, value = qkv()
    allowed = torch.rand(shape) < 0.6
    allowed[..., 0] = True
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=allowed))
    assert_close(call.weights, written_out(query, key, allowed))
    bias = torch.randn(shape)
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, bias))
    assert_close(call.weights, written_out(query, key, bias=bias))


def test_a_row_that_may_attend_to_nothing_is_zero():
    query, key, value = qkv()
    allowed = torch.rand(3, 1, 5, 7) < 0.5
    allowed[1, :, 2] = False
    for mask in (allowed, torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)):
        weights = one(lambda mask=mask: F.scaled_dot_product_attention(query, key, value, mask)).weights
        assert_close(weights, written_out(query, key, allowed))
        assert weights[1, :, 2].abs().max() == 0


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 7), (7, 5)])
def test_causal_is_aligned_at_the_top_left(queries, keys):
    query, key, value = qkv(queries=queries, keys=keys)
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True))
    assert_close(call.weights, written_out(query, key, torch.ones(queries, keys, dtype=torch.bool).tril()))
    assert_close(call.weights @ value, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_a_scale_of_its_own():
    query, key, value = qkv()
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, scale=0.1))
    assert_close(call.weights, written_out(query * 0.1 * math.sqrt(8), key))


@pytest.mark.parametrize("key_heads", [1, 2])
def test_grouped_queries(key_heads):
    query, key, value = qkv(key_heads=key_heads)
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True))
    assert_close(call.weights, written_out(query, key.repeat_interleave(4 // key_heads, 1)))
    assert call.total_heads == 4


def test_dropout_is_left_out():
    query, key, value = qkv()
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, dropout_p=0.5))
    assert_close(call.weights, written_out(query, key))


def test_no_gradient_is_kept_and_no_random_number_drawn():
    query, key, value = (x.requires_grad_() for x in qkv())
    before = torch.get_rng_state()
    with Watch() as watch:
        F.scaled_dot_product_attention(query, key, value)
    assert not watch.calls[0].weights.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_three_dimensions_are_one_head_unless_the_batch_says_otherwise():
    query, key, value = (x.flatten(0, 1) for x in qkv())
    mask = torch.randn(12, 5, 7)

    def run() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    assert_close(one(run).weights, written_out(query, key, bias=mask).unsqueeze(1))
    call = one(run, Shown(range(99), heads=99, tokens=99, batch=3))
    assert_close(call.weights, written_out(query, key, bias=mask).view(3, 4, 5, 7))


def test_what_is_broadcast_may_be_the_larger():
    """One query of 200 positions for three examples: by the number of its elements it is none of the smaller ones."""
    query, (_, key, value), mask = torch.randn(1, 4, 200, 8), qkv(), torch.randn(3, 1, 200, 7)
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, mask))
    assert_close(call.weights, written_out(query, key, bias=mask))
    assert (call.total_examples, call.total_heads) == (3, 4)


def test_heads_folded_into_the_rows_of_multihead_attention():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(6, 5, 8)
    mask = torch.randn(12, 5, 5)
    expected = attention(x, x, x, attn_mask=mask, average_attn_weights=False)[1]
    call = one(lambda: attention(x, x, x, attn_mask=mask), Shown(range(9), heads=3, batch=2))
    assert (call.examples, call.heads, call.total_heads, call.windows) == ((0, 1), (0, 2, 5), 6, 3)
    assert_close(call.weights, expected.view(2, 6, 5, 5)[:, [0, 2, 5]])


def test_two_and_five_dimensions():
    query, key = torch.randn(5, 8), torch.randn(7, 8)
    call = one(lambda: F.scaled_dot_product_attention(query, key, key))
    assert_close(call.weights, written_out(query, key)[None, None])
    query, key, mask = torch.randn(2, 3, 4, 5, 8), torch.randn(2, 3, 4, 7, 8), torch.randn(2, 1, 1, 5, 7)
    call = one(lambda: F.scaled_dot_product_attention(query, key, key, mask))
    assert_close(call.weights, written_out(query, key, bias=mask).flatten(0, 1))


def test_only_the_examples_heads_and_tokens_asked_for():
    query, key, value = torch.randn(5, 12, 40, 8), torch.randn(5, 12, 50, 8), torch.randn(5, 12, 50, 8)
    mask = torch.randn(5, 1, 40, 50)
    call = one(lambda: F.scaled_dot_product_attention(query, key, value, mask), Shown([1, 4, 9], heads=4, tokens=16))
    assert (call.examples, call.heads) == ((1, 4), (0, 4, 7, 11))
    assert (call.total_examples, call.total_heads, call.total_queries, call.total_keys) == (5, 12, 40, 50)
    everything = written_out(query, key, bias=mask)
    assert_close(call.weights, everything[[1, 4]][:, [0, 4, 7, 11], :16, :16])


def test_no_wanted_example_is_no_call():
    query, key, value = qkv()
    assert watched(lambda: F.scaled_dot_product_attention(query, key, value), Shown([7])) == []


def test_low_precision_is_read_in_float32_also_under_autocast():
    query, key, value = (x.bfloat16() for x in qkv())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = one(lambda: F.scaled_dot_product_attention(query, key, value)).weights
    assert weights.dtype == torch.float32
    assert_close(weights, written_out(query, key))


# nn.MultiheadAttention


def own_weights(attention: nn.MultiheadAttention, *inputs: Tensor, **masks: Tensor) -> Tensor:
    return attention(*inputs, need_weights=True, average_attn_weights=False, **masks)[1]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "bool", "float", "per head", "padding and float"])
def test_multihead_attention(batch_first, need_weights, masks):
    attention = nn.MultiheadAttention(24, 4, dropout=0.3, batch_first=batch_first).eval()
    x, memory = torch.randn(3, 5, 24), torch.randn(3, 7, 24)
    padding = torch.arange(7)[None] >= torch.tensor([[7], [4], [2]])
    per_head = torch.randn(12, 5, 7)
    given: dict[str, Tensor] = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": per_head[0] > 1},
        "float": {"attn_mask": per_head[0]},
        "per head": {"attn_mask": per_head},
        "padding and float": {
            "attn_mask": per_head[0],
            "key_padding_mask": torch.zeros(3, 7).masked_fill(padding, -math.inf),
        },
    }[masks]
    inputs = (x, memory, memory) if batch_first else (x.transpose(0, 1), *[memory.transpose(0, 1)] * 2)
    expected = own_weights(attention, *inputs, **given)
    attention.train()  # dropout of the weights is not shown
    call = one(lambda: attention(*inputs, need_weights=need_weights, **given))
    assert_close(call.weights, expected)
    part = one(lambda: attention(*inputs, need_weights=need_weights, **given), Shown([2, 0], heads=2, tokens=3))
    assert_close(part.weights, expected[[2, 0]][:, [0, 3], :3, :3])


@pytest.mark.parametrize(
    "options", [{"kdim": 10, "vdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False}]
)
def test_multihead_attention_with_options(options):
    attention = nn.MultiheadAttention(24, 4, batch_first=True, **options).eval()
    inputs = (
        torch.randn(3, 5, 24),
        torch.randn(3, 7, options.get("kdim", 24)),
        torch.randn(3, 7, options.get("vdim", 24)),
    )
    padding = torch.arange(7)[None] >= torch.tensor([[7], [4], [0]])
    expected = own_weights(attention, *inputs, key_padding_mask=padding)
    call = one(lambda: attention(*inputs, need_weights=False, key_padding_mask=padding))
    assert_close(call.weights, expected.nan_to_num(0.0))
    assert call.total_keys == expected.shape[-1]


def test_multihead_attention_without_a_batch_dimension():
    attention = nn.MultiheadAttention(24, 4).eval()
    x, padding = torch.randn(6, 24), torch.arange(6) >= 4
    expected = own_weights(attention, x, x, x, key_padding_mask=padding)
    call = one(lambda: attention(x, x, x, key_padding_mask=padding, need_weights=False))
    assert_close(call.weights, expected[None])


def test_multihead_attention_takes_is_causal_at_its_word_where_the_kernel_does():
    attention = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    x, no_mask = torch.randn(2, 6, 24), torch.zeros(6, 6)
    call = one(lambda: attention(x, x, x, attn_mask=no_mask, is_causal=True, need_weights=False))
    assert call.weights.triu(1).abs().max() == 0
    call = one(lambda: attention(x, x, x, attn_mask=no_mask, is_causal=True, need_weights=True))
    assert call.weights.triu(1).abs().max() > 0


def test_multihead_attention_in_low_precision_under_autocast():
    attention = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    x = torch.randn(2, 6, 24)
    expected = own_weights(attention, x, x, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call = one(lambda: attention(x, x, x, need_weights=False))
    assert_close(call.weights, expected, 1e-5)


# nn.Transformer


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("train", [True, False])
def test_transformer_encoder_layers_are_all_seen_and_its_output_stays(train):
    layer = nn.TransformerEncoderLayer(24, 4, dim_feedforward=32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3).train(train)
    x = torch.randn(3, 6, 24)
    padding = torch.arange(6)[None] >= torch.tensor([[6], [4], [3]])
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padding)
        with Watch() as watch:
            output = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(output[~padding], expected[~padding], rtol=0, atol=1e-6)
    assert len(watch.calls) == 3
    hidden = x
    for layer, call in zip(encoder.layers, watch.calls, strict=True):
        assert_close(call.weights, own_weights(layer.self_attn, hidden, hidden, hidden, key_padding_mask=padding))
        hidden = layer(hidden, src_key_padding_mask=padding)


def test_transformer_decoder_attends_to_itself_causally_and_to_the_memory():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 32, batch_first=True), 1).eval()
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 9, 24)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    own, cross = watched(lambda: decoder(x, memory, tgt_mask=causal, tgt_is_causal=True))
    assert_close(own.weights, own_weights(decoder.layers[0].self_attn, x, x, x, attn_mask=causal))
    assert cross.weights.shape == (2, 4, 5, 9)


# Attention written out


@pytest.mark.parametrize(
    "softmax",
    [lambda x: x.softmax(-1), lambda x: F.softmax(x, dim=-1), lambda x: torch.softmax(x, 3), nn.Softmax(dim=-1)],
)
def test_a_softmax_over_keys_is_attention(softmax):
    scores = torch.randn(3, 4, 5, 7)
    call = one(lambda: softmax(scores), Shown([0, 2], heads=2, tokens=4))
    assert_close(call.weights, scores.double().softmax(-1)[[0, 2]][:, [0, 3], :4, :4])
    assert (call.total_examples, call.total_heads, call.total_queries, call.total_keys) == (3, 4, 5, 7)


def test_single_heads_and_heads_folded_into_the_batch():
    scores = torch.randn(6, 5, 5)
    assert one(lambda: scores.softmax(-1)).weights.shape == (6, 1, 5, 5)
    call = one(lambda: scores.softmax(-1), Shown(range(99), batch=2))
    assert_close(call.weights, scores.double().softmax(-1).view(2, 3, 5, 5))


@pytest.mark.parametrize(("shape", "dim"), [((8, 10), -1), ((8, 5, 10), -1), ((2, 10, 6, 6), 1), ((8, 10), 0)])
def test_a_classifier_is_no_attention(shape, dim):
    assert watched(lambda: F.softmax(torch.randn(shape), dim=dim)) == []


def test_probabilities_are_our_own():
    scores = torch.randn(2, 3, 4, 4)
    probabilities = scores.softmax(-1)
    call = attention_probabilities(torch.softmax, (scores, -1), {}, probabilities, EVERYTHING)
    expected = probabilities.clone()
    probabilities.zero_()
    assert torch.equal(call.weights, expected)


# What a device sees


class NothingWaits(TorchDispatchMode):
    """Raises on operators that wait for the device: a number read, a mask or a list as an index."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "index"), func
        return func(*args, **kwargs or {})


def test_reading_never_waits_for_the_device():
    query, key, value = qkv()
    mask = torch.rand(3, 1, 5, 7) < 0.5
    attention, x = nn.MultiheadAttention(24, 4, batch_first=True), torch.randn(3, 5, 24)
    padding = torch.arange(5)[None] >= torch.tensor([[5], [4], [0]])
    runs: list[Callable[[], Any]] = [
        lambda: F.scaled_dot_product_attention(query, key, value, mask),
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True),
        lambda: attention(x, x, x, key_padding_mask=padding, attn_mask=torch.zeros(5, 5) > 0, need_weights=False),
        lambda: torch.randn(3, 4, 5, 7).softmax(-1),
    ]
    with NothingWaits():
        for run in runs:
            assert one(run, Shown([0, 2], heads=3)).weights.shape[:2] == (2, 3)


# Any other kernel


@pytest.mark.parametrize("head_dim", [3, 7, 16])
def test_an_identity_as_values_reads_any_kernel(head_dim):
    query, key, _ = qkv()

    def attend(values: Tensor) -> Tensor:
        assert values.shape == (7, head_dim)
        return F.scaled_dot_product_attention(query, key, values.expand(3, 4, -1, -1))

    assert_close(by_identity(attend, 7, head_dim), written_out(query, key))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("key_heads", [4, 2])
def test_flex_attention(key_heads):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    query, key, value = qkv(queries=6, keys=6, key_heads=key_heads)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])

    def alibi(score: Tensor, example: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + slopes[head] * (k - q) + 0.1 * example

    block_mask = flex.create_block_mask(lambda b, h, q, k: (q >= k) & (k >= b), 3, None, 6, 6, device="cpu")
    with torch.compiler.set_stance("force_eager"):
        call = one(
            lambda: flex.flex_attention(query, key, value, alibi, block_mask, enable_gqa=key_heads < 4),
            Shown([0, 2], heads=2, tokens=5),
        )
    place = torch.arange(6)
    allowed = (place[:, None] >= place) & (place >= torch.arange(3)[:, None, None, None])
    bias = slopes[:, None, None] * (place - place[:, None])
    expected = written_out(query, key.repeat_interleave(4 // key_heads, 1), allowed, bias.expand(3, 4, 6, 6))
    assert_close(call.weights, expected[[0, 2]][:, [0, 3], :5, :5])
    rows = expected[[0, 2]][:, [0, 3], :5]  # all keys, of which five are shown
    entropy = -torch.where(rows > 0, rows * rows.log(), 0).sum(-1) / (rows > 0).sum(-1).log()
    choice = (rows > 0).sum(-1) > 1
    assert_close(call.entropy[choice], entropy[choice])
    assert call.entropy[~choice].isnan().all()
    assert (call.total_queries, call.total_keys) == (6, 6)
