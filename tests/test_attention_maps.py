"""AttentionMaps as a person meets it: which layers, which labels, what the caption owns up to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizlog.backends.memory import Memory
from vizlog.batch import FixedBatch
from vizlog.capture import Capture
from vizlog.compute.transfer import to_host
from vizlog.monitor import Monitor
from vizlog.probes.attention import AttentionMaps
from vizlog.probes.base import Context, Figures
from vizlog.records import Attention
from vizlog.survey import survey


class Encoder(nn.Module):
    """Token ids (N, T) -> logits (N, 2)."""

    def __init__(self, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        layer = nn.TransformerEncoderLayer(24, heads, 32, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(24, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        padding = None if attention_mask is None else attention_mask == 0
        return self.head(self.blocks(self.embed(input_ids), src_key_padding_mask=padding).mean(1))


def maps(probe: AttentionMaps, model: nn.Module, batch: FixedBatch) -> dict[str, Attention]:
    """The records of one pass, by tag."""
    models = {"": model.eval()}
    probe.bind(models, survey(models, batch))
    capture = Capture(models, probe.wants(models))
    with torch.no_grad(), capture.forward():
        batch.run(models)
    assert not capture.errors, capture.errors
    measured = probe.measure(Context(0, None, models, captured=capture.results, batch=batch))
    return {record.tag: record for record in probe.finish(to_host(measured).wait()) if isinstance(record, Attention)}


def ids(length: int = 6, number: int = 4) -> Tensor:
    return torch.randint(2, 20, (number, length))


def test_each_layer_is_a_record_with_the_probabilities_of_the_first_examples():
    model, x = Encoder(), ids()
    records = maps(AttentionMaps(), model, FixedBatch(x))
    assert list(records) == ["attention/blocks.layers.0.self_attn", "attention/blocks.layers.1.self_attn"]
    record = records["attention/blocks.layers.0.self_attn"]
    hidden = model.embed(x)
    expected = model.blocks.layers[0].self_attn(hidden, hidden, hidden, average_attn_weights=False)[1]
    torch.testing.assert_close(torch.from_numpy(record.weights), expected[:2], rtol=0, atol=1e-6)
    assert (list(record.examples), list(record.heads)) == ([0, 1], [0, 1, 2, 3])
    assert "of" not in record.caption.split()  # nothing was left out, so nothing is said about it


@pytest.mark.parametrize(("length", "examples"), [(6, 40), (1100, 2)], ids=["more than a chunk", "a text a chunk"])
def test_examples_of_several_chunks_are_put_together(length: int, examples: int):
    model, batch, memory = Encoder(1), FixedBatch(ids(length, 48)), Memory()
    assert batch.chunk < examples
    monitor = Monitor(model.eval(), [AttentionMaps(examples=examples, tokens=5)], to=memory, batch=batch)
    with monitor, monitor.step():
        pass
    (record,) = (record for _, record in memory.records if isinstance(record, Attention))
    assert list(record.examples) == batch.ids[:examples].tolist()
    last = model.embed(batch.inputs[examples - 1 : examples])
    expected = model.blocks.layers[0].self_attn(last, last, last, average_attn_weights=False)[1]
    torch.testing.assert_close(torch.from_numpy(record.weights[-1]), expected[0, :, :5, :5], rtol=0, atol=1e-6)
    assert f"on the first {examples} examples" in memory.of("health/attention_sinks_mean")[0][1].caption


def test_texts_of_another_length_in_a_later_chunk_leave_the_first_alone():
    class Cuts(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            longest = int(attention_mask.sum(1).max())
            return super().forward(input_ids[:, :longest], attention_mask[:, :longest])

    mask = torch.ones(48, 6, dtype=torch.int64)
    mask[32:, 4:] = 0
    batch, memory = FixedBatch({"input_ids": ids(number=48), "attention_mask": mask}), Memory()
    monitor = Monitor(Cuts(1).eval(), [AttentionMaps(examples=40)], to=memory, batch=batch)
    with monitor, monitor.step():
        pass
    (record,) = (record for _, record in memory.records if isinstance(record, Attention))
    assert record.weights.shape == (32, 4, 6, 6)
    assert list(record.examples) == list(range(32))


def test_examples_have_their_ids_and_layers_not_selected_are_counted():
    batch = FixedBatch(ids(), torch.tensor([1, 0, 1, 0]))  # the first of each class comes first
    (record,) = maps(AttentionMaps("*.1.*"), Encoder(), batch).values()
    assert list(record.examples) == batch.ids[:2].tolist() == [1, 0]
    assert "1 of 2 layers with attention are drawn" in record.caption


class Biased(nn.Module):
    """Queries look at keys by given probabilities, in two layers."""

    def __init__(self, *shares: list[list[float]]) -> None:
        super().__init__()
        self.shares = [torch.tensor(each) for each in shares]
        self.layers = nn.ModuleList(nn.Identity() for _ in shares)

    def forward(self, x: Tensor) -> Tensor:
        for share in self.shares:
            x = x + F.scaled_dot_product_attention(0 * x, 0 * x, x, attn_mask=share.log())
        return x.flatten(1)


def test_hardly_anything_that_goes_to_keys_not_shown_is_said():
    share = [[0.33, 0.33, 0.33, 0.01]] * 4
    (record,) = maps(AttentionMaps(tokens=3), Biased(share), FixedBatch(torch.randn(3, 4, 2))).values()
    assert "1.0% of the attention goes to keys not shown" in record.caption


def test_a_query_that_may_look_at_nothing_misses_nothing():
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            allowed = torch.ones(4, 4, dtype=torch.bool)
            allowed[0] = False
            return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed).nan_to_num().flatten(1)

    (record,) = maps(AttentionMaps(), Masked(), FixedBatch(torch.randn(3, 4, 2))).values()
    assert not record.weights[:, :, 0].any()
    assert "not shown" not in record.caption


def test_the_worst_entropy_is_that_of_the_layer_where_it_is_lowest():
    narrow, even = [[0.97, 0.01, 0.01, 0.01]] * 4, [[0.25] * 4] * 4
    for layers in ((narrow, even), (even, narrow)):
        memory = Memory()
        batch = FixedBatch(torch.randn(3, 4, 2))
        with Monitor(Biased(*layers), [AttentionMaps()], to=memory, batch=batch) as monitor, monitor.step():
            pass
        ((_, worst),) = memory.of("health/attention_entropy_worst")
        share = torch.tensor(narrow[0])
        assert worst.value == pytest.approx(float(-(share * share.log()).sum() / math.log(4)), abs=1e-4)
        assert worst.caption.startswith("the lowest of 2 layers; ")


def test_what_is_left_out_stands_in_the_caption():
    torch.manual_seed(0)
    probe = AttentionMaps(layers=2, heads=2, examples=1, tokens=4)
    records = maps(probe, Encoder(layers=5), FixedBatch(ids(length=9)))
    assert list(records) == ["attention/blocks.layers.0.self_attn", "attention/blocks.layers.4.self_attn"]
    record = records["attention/blocks.layers.4.self_attn"]
    assert record.weights.shape == (1, 2, 4, 4)
    assert list(record.heads) == [0, 3]
    assert "2 of 4 heads" in record.caption
    assert "the first 4 of 9 queries and the first 4 of 9 keys" in record.caption
    assert f"{1 - record.weights.sum(-1).mean():.1%} of the attention goes to keys not shown" in record.caption
    assert "2 of 5 layers" in record.caption


def test_tokens_are_named_and_padding_behind_the_longest_example_is_not_shown():
    names = [f"word{number}" for number in range(20)]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    x = {"input_ids": ids(number=2), "attention_mask": mask}
    (record,) = maps(AttentionMaps(), Encoder(layers=1), FixedBatch(x, tokens=names)).values()
    assert record.weights.shape[-2:] == (4, 4)
    expected = [[names[token] for token in row[:4]] for row in x["input_ids"].tolist()]
    assert record.query_tokens == record.key_tokens == expected


def test_positions_are_numbered_where_two_texts_could_be_meant():
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            memory = self.embed(source)
            return self.cross(self.embed(target), memory, memory)[0]

    def labels(inputs: Any, targets: Any = None, **given: Any) -> tuple[Any, Any]:
        (record,) = maps(AttentionMaps(examples=1), Translate(), FixedBatch(inputs, targets, **given)).values()
        return record.query_tokens[0], record.key_tokens[0]

    source, target, numbers = ids(length=3), ids(length=3), ["0", "1", "2"]
    own = [str(token) for token in source[0].tolist()]
    assert labels((source, target)) == (numbers, numbers)
    assert labels((source, target), target) == (numbers, numbers)  # the model is given what it is to say
    assert labels({"source": source, "target": target}) == (numbers, numbers)
    assert labels((source, ids(length=4))) == (["0", "1", "2", "3"], own)
    moved = {"forward": lambda model, inputs: model(inputs[0], inputs[1][:, :-1])}
    assert labels((source, ids(length=4)), **moved) == (numbers, numbers)


def test_a_language_model_that_is_given_its_targets_reads_one_text():
    class Decoder(Encoder):
        def forward(self, x: Tensor, targets: Tensor) -> Tensor:
            return super().forward(x)

    text = ids(length=7)
    (record,) = maps(AttentionMaps(), Decoder(layers=1), FixedBatch((text[:, :-1], text[:, 1:]))).values()
    assert record.key_tokens[0] == [str(token) for token in text[0, :-1].tolist()]


def test_heads_and_windows_folded_into_the_batch_are_those_of_their_example():
    class Folded(nn.Module):
        """Images (N, 16, 8) in 4 windows, of 2 heads in a dimension of their own, or all in the first."""

        def __init__(self, *, heads_apart: bool) -> None:
            super().__init__()
            self.heads_apart, self.kept = heads_apart, torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            heads = x.view(len(x), 4, 4, 2, 4).transpose(2, 3)  # examples, windows, heads, positions, features
            self.kept = (heads @ heads.mT / 2).softmax(-1).flatten(1, 2)
            rows = heads.flatten(0, 1 if self.heads_apart else 2)
            return F.scaled_dot_product_attention(rows, rows, rows).sum()[None].expand(len(x))

    for heads_apart in (True, False):
        model = Folded(heads_apart=heads_apart)
        (record,) = maps(AttentionMaps(heads=3), model, FixedBatch(torch.randn(5, 16, 8))).values()
        assert (list(record.examples), list(record.heads)) == ([0, 1], [0, 4, 7])
        torch.testing.assert_close(torch.from_numpy(record.weights), model.kept[:2, [0, 4, 7]])
        assert ("4 windows of each example, with 2 heads each" in record.caption) is heads_apart


def test_heads_in_the_place_of_the_examples_are_no_examples():
    class Graph(nn.Module):
        """Nodes (N, 5) that attend to one another, as 3 heads see it."""

        def forward(self, x: Tensor) -> Tensor:
            self.kept = (torch.arange(1.0, 4)[:, None, None] * (x @ x.mT)).softmax(-1)
            return (self.kept @ x).mean(0)

    x, model = torch.randn(20, 5), Graph()
    batch = FixedBatch(torch.arange(20), torch.arange(20) % 5, forward=lambda model, nodes: model(x)[nodes])
    (record,) = maps(AttentionMaps(), model, batch).values()
    assert list(record.heads) == [0, 1, 2]
    torch.testing.assert_close(torch.from_numpy(record.weights), model.kept[None])
    assert "its first dimension, of 3, is not that of the examples: all of it is heads" in record.caption
    alone = FixedBatch(x[None], forward=lambda model, x: model(x[0])[None])
    (record,) = maps(AttentionMaps(), model, alone).values()
    assert record.weights.shape == (1, 3, 20, 20)
    assert "first dimension" not in record.caption  # heads of the only example


def test_queries_that_are_padding_do_not_count():
    class Sink(nn.Module):
        """Tokens look at themselves; padding at the first token."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            length = input_ids.shape[1]
            at = torch.where(attention_mask.bool(), torch.arange(length), 0)
            scores = 50.0 * F.one_hot(at, length)
            return scores[:, None].softmax(-1).sum((1, 2))

    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    batch, model = FixedBatch({"input_ids": ids(number=2), "attention_mask": mask}), {"": Sink()}
    probe = AttentionMaps()
    probe.bind(model, survey(model, batch))
    capture = Capture(model, probe.wants(model))
    with capture.forward():
        batch.run(model)
    measured = probe.measure(Context(0, None, model, captured=capture.results, batch=batch))
    figures = {part.kind: part.values for part in probe.finish(measured) if isinstance(part, Figures)}
    assert figures["attention_sinks"] == {"attention": 0.0}  # 2 of 8 tokens, not 6 of 12
    assert figures["attention_entropy"]["attention"] == pytest.approx(0.0, abs=1e-6)


def test_a_key_that_is_no_token_is_called_a_sink():
    class Sink(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.attention(x, x, x)[0]

    (record,) = maps(AttentionMaps(examples=1), Sink(), FixedBatch(ids(length=3))).values()
    assert record.key_tokens[0] == [*record.query_tokens[0], "sink"]


class Head(nn.Module):
    """A single causal head in plain tensor code, as courses teach it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / 2
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -torch.inf)
        return F.softmax(scores, dim=-1) @ self.value(x)


class WrittenOut(nn.Module):
    """Two heads, and a classifier's softmax behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.heads = nn.Embedding(20, 8), nn.ModuleList([Head(), Head()])
        self.out = nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return F.softmax(self.out(torch.cat([head(x) for head in self.heads], -1)), dim=-1)


def test_heads_written_out_are_seen_and_the_classifier_is_not():
    records = maps(AttentionMaps(), WrittenOut(), FixedBatch(ids()))
    assert list(records) == ["attention/heads.0", "attention/heads.1"]
    weights = torch.from_numpy(records["attention/heads.0"].weights)
    assert weights.shape == (2, 1, 6, 6)
    assert weights.triu(1).max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 6))


def test_a_layer_that_runs_twice_has_a_record_for_each_call():
    model = Encoder(layers=1)
    again = nn.Sequential(model.embed, model.blocks.layers[0], model.blocks.layers[0])
    assert list(maps(AttentionMaps(), again, FixedBatch(ids()))) == ["attention/1.self_attn", "attention/1.self_attn@2"]


def test_layers_are_selected_by_name_and_by_type():
    batch = FixedBatch(ids())
    assert list(maps(AttentionMaps("*.1.*"), Encoder(), batch)) == ["attention/blocks.layers.1.self_attn"]
    assert len(maps(AttentionMaps(nn.MultiheadAttention), Encoder(), batch)) == 2


def test_a_selection_that_finds_nothing_raises_and_shows_near_names():
    models = {"": Encoder()}
    with pytest.raises(
        ValueError, match=r"no layer with attention matches 'blocks.layer.0.*'.*'blocks.layers.0.self_attn'"
    ):
        AttentionMaps("blocks.layer.0*").bind(models, survey(models, FixedBatch(ids())))


def test_a_model_without_attention_raises():
    models = {"": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Softmax(-1))}
    with pytest.raises(ValueError, match="AttentionMaps found no attention in the model"):
        AttentionMaps().bind(models, survey(models, FixedBatch(torch.randn(4, 4))))


def test_no_batch_raises():
    with pytest.raises(ValueError, match="AttentionMaps needs examples"):
        AttentionMaps().bind({"": Encoder()}, None)


@pytest.mark.parametrize("option", ["layers", "heads", "examples", "tokens"])
def test_numbers_below_one_raise(option):
    with pytest.raises(ValueError, match=rf"AttentionMaps\({option}=\) needs a number >= 1, got 0"):
        AttentionMaps(**{option: 0})


def test_a_causal_layer_cut_short_misses_nothing():
    (record, _) = maps(AttentionMaps(tokens=4), WrittenOut(), FixedBatch(ids(length=9))).values()
    assert "the first 4 of 9 keys" in record.caption
    assert "not shown" not in record.caption
