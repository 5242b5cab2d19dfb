"""A small transformer learns English letter by letter in a plain loop, and `vizlog.watch` looks inside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

import vizlog

CONTEXT = 48


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.merge(seen.transpose(1, 2).flatten(2))
        return x + self.contract(F.gelu(self.expand(self.before_mlp(x))))


class CharacterTransformer(nn.Module):
    def __init__(self, characters: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.positions(torch.arange(text.shape[1], device=text.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def english() -> tuple[Tensor, list[str]]:
    """Half a megabyte of English that comes with Python, as numbers, and the character of each number."""
    text = "\n".join(topics.values())
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    return torch.tensor([number[character] for character in text]), alphabet


def excerpts(text: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random excerpts, and the same one character later."""
    starts = torch.randint(len(text) - CONTEXT - 1, (number, 1), generator=generator)
    rows = text[starts + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def main(backend: str = "tensorboard", steps: int = 400, folder: str = "runs") -> str:
    """Trains, and returns where the logs are."""
    torch.set_num_threads(1)  # of a model this small a second thread would only wait
    torch.manual_seed(0)
    text, alphabet = english()
    training, held_out = text[:-20_000], text[-20_000:]
    model = CharacterTransformer(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    fixed = vizlog.FixedBatch(*excerpts(held_out, 32, torch.Generator().manual_seed(1)), tokens=alphabet)

    to: Any = Path(folder) / "text"
    if backend == "wandb":
        import wandb

        to = wandb.init(project="vizlog-demo", name="text", dir=folder, mode="offline")

    monitor = vizlog.watch(model, optimizer, to=to, batch=fixed, every=50)  # the line before the loop
    generator = torch.Generator().manual_seed(2)
    for _ in trange(steps, desc="text"):
        characters, following = excerpts(training, 32, generator)
        loss = F.cross_entropy(model(characters).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log({"loss/train": loss})
    monitor.close()
    if backend == "wandb":
        to.finish()
    return str(Path(to.dir).parent if backend == "wandb" else to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["tensorboard", "wandb"], default="tensorboard")
    print("text: logs in", main(parser.parse_args().backend))
