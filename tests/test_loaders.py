"""Examples out of a loader's data, where nobody gave a fixed batch: which ones, and what is left as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from vizlog.loaders import spread_examples


class Noisy(Dataset[Any]):
    """Draws from generators of its own and of its transform, as augmentations do."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.of_torch, self.of_python = torch.Generator().manual_seed(1), random.Random(1)
        self.transform = transform

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.rand(1, generator=self.of_torch) + self.of_python.random()
        return self.transform(torch.tensor([float(index)]) + noise)


class Jitter:
    def __init__(self) -> None:
        self.new, self.old = np.random.default_rng(1), np.random.RandomState(1)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.new.random() + self.old.rand()


class Masking:
    """Makes its generator when it is first called, as transformers' seeded masking does."""

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None

    def __call__(self, examples: list[Tensor], scale: float = 1.0) -> Tensor:
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(3)
        return default_collate(examples) + scale * torch.rand(len(examples), 1, generator=self.generator)


@pytest.mark.parametrize("bound", [True, False])
def test_generators_that_the_data_keeps_are_left_as_they_were(*, bound: bool) -> None:
    def batches(*, looks: bool) -> list[Tensor]:
        masking = Masking()
        collate = partial(masking, scale=2.0) if bound else masking
        loader = DataLoader(Subset(Noisy(Jitter()), range(0, 1000, 2)), batch_size=4, collate_fn=collate)
        if looks:
            spread_examples(loader)
        found = iter(loader)
        return [next(found) for _ in range(3)]

    plain, looked_at = batches(looks=False), batches(looks=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, looked_at, strict=True))


def test_examples_are_spread_from_the_first_to_the_last() -> None:
    found = spread_examples(DataLoader(list(torch.arange(1000.0)), batch_size=4, shuffle=True))
    expected = np.linspace(0, 999, 256).round()
    np.testing.assert_array_equal(found.numpy(), expected)


def test_large_examples_are_fewer() -> None:
    found = spread_examples(DataLoader(list(torch.zeros(100, 1 << 20)), batch_size=4))  # 4 MB each
    assert len(found) == 32
