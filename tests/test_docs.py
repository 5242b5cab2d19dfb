"""The fixed batches of docs/batch.md, each given to a model of its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vizlog

SECTIONS = Path(__file__, "../../docs/batch.md").resolve().read_text(encoding="utf-8").split("\n### ")[1:]
BLOCKS = {part.partition("\n")[0]: part.partition("```python\n")[2].partition("```")[0] for part in SECTIONS}
Y = torch.arange(12) % 3


class Calls(nn.Module):
    """A small network and how it is called."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.call = nn.ModuleDict(parts), call

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.call(self.parts, *inputs, **named)


def images() -> Tensor:
    return torch.rand(12, 3, 8, 8)


def segmentation() -> tuple[Any, dict[str, Any]]:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)), {
        "images": images(), "names": ["road", "sky", "tree"]
    }  # fmt: skip


def detection() -> tuple[Any, dict[str, Any]]:
    def call(parts: Any, x: Tensor) -> dict[str, Tensor]:
        seen = parts["c"](x).flatten(2).transpose(1, 2)
        return {"pred_boxes": parts["boxes"](seen).sigmoid(), "pred_logits": parts["kinds"](seen)}

    model = Calls(call, c=nn.Conv2d(3, 4, 4, 4), boxes=nn.Linear(4, 4), kinds=nn.Linear(4, 3))
    return model, {"images": images()}


def forecasting() -> tuple[Any, dict[str, Any]]:
    return nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4)), {
        "past": torch.randn(12, 9), "future": torch.randn(12, 4)
    }  # fmt: skip


def time_first() -> tuple[Any, dict[str, Any]]:
    model = Calls(lambda parts, x: parts["head"](parts["rnn"](x)[0][-1]), rnn=nn.GRU(4, 5), head=nn.Linear(5, 3))
    return model, {"x": torch.randn(7, 12, 4), "y": Y}


def denoising() -> tuple[Any, dict[str, Any]]:
    def call(parts: Any, x: Tensor, times: Tensor) -> Tensor:
        out: Tensor = parts["b"](parts["a"](x).relu() + parts["time"](times)[:, :, None, None])
        return out

    model = Calls(call, a=nn.Conv2d(3, 4, 3, padding=1), time=nn.Linear(1, 4), b=nn.Conv2d(4, 3, 3, padding=1))
    return model, {"noisy": images(), "times": torch.rand(12, 1), "noise": images()}


def tasks() -> tuple[Any, dict[str, Any]]:
    model = Calls(
        lambda parts, x: {name: parts[name](parts["base"](x).relu()) for name in ("age", "kind")},
        base=nn.Linear(5, 6), age=nn.Linear(6, 1), kind=nn.Linear(6, 3),
    )  # fmt: skip
    return model, {"x": torch.randn(12, 5), "ages": torch.rand(12, 1) * 90, "kinds": Y, "names": list("abc")}


def table() -> tuple[Any, dict[str, Any]]:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), {
        "table": torch.randn(12, 5), "y": Y, "columns": list("vwxyz")
    }  # fmt: skip


def normalised() -> tuple[Any, dict[str, Any]]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return model, {"images": images() * 4 - 2, "y": Y, "names": list("abc")}


def text() -> tuple[Any, dict[str, Any]]:
    def call(parts: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = parts["head"]((parts["embed"](input_ids) * attention_mask[..., None]).mean(1))
        return out

    ids = torch.randint(1, 20, (12, 6))
    scope = {"ids": ids, "mask": torch.ones_like(ids), "y": Y, "tokenizer": [f"word{i}" for i in range(20)]}
    return Calls(call, embed=nn.Embedding(20, 5), head=nn.Linear(5, 3)), scope


def graph() -> tuple[Any, dict[str, Any]]:
    def call(parts: Any, x: Tensor, edges: Tensor) -> Tensor:
        summed = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        out: Tensor = parts["a"](x + summed)
        return out

    edges = torch.stack([torch.arange(12), torch.arange(12).roll(1)])
    return Calls(call, a=nn.Linear(5, 3)), {"x": torch.randn(12, 5), "edges": edges, "y": Y}


def adversaries() -> tuple[Any, dict[str, Any]]:
    generator = nn.Sequential(nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4)))
    return {"G": generator, "D": nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())}, {"noise": torch.randn(12, 4)}


EXAMPLES: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any]]], set[str]]] = {
    "Segmentation": (segmentation, {"saliency", "embeddings", "feature_maps"}),
    "Detection": (detection, {"saliency", "embeddings", "feature_maps"}),
    "Forecasting, and whatever has a loss": (forecasting, {"saliency", "embeddings"}),
    "Sequences with time first": (time_first, {"saliency", "embeddings"}),
    "Denoising": (denoising, {"saliency", "embeddings", "feature_maps"}),
    "Several tasks": (tasks, {"saliency", "embeddings"}),
    "A table": (table, {"saliency", "embeddings"}),
    "Images that were normalised": (normalised, {"saliency", "embeddings", "feature_maps"}),
    "Text": (text, {"saliency", "embeddings"}),
    "Nodes of a graph": (graph, {"embeddings"}),
    "A generator and a discriminator": (adversaries, {"saliency", "embeddings"}),
}


def test_every_batch_of_the_page_is_tried() -> None:
    assert list(BLOCKS) == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_batch_as_the_page_gives_it_makes_pictures(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, expected = EXAMPLES[name]
    model, scope = make()
    scope |= {"vizlog": vizlog, "torch": torch}
    exec(BLOCKS[name], scope)
    memory = vizlog.Memory()
    with vizlog.Monitor(model, to=memory, batch=scope["batch"]) as monitor, monitor.step():
        pass
    kinds = {record.tag.partition("/")[0] for _, record in memory.records}
    assert {"activations", *expected} <= kinds
    assert kinds & {"saliency", "embeddings"} == expected & {"saliency", "embeddings"}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message for message in warnings if "had a gradient" not in message] == []  # nothing trains here
