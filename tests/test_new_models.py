"""Models as courses, papers and repositories write them: they are watched without any configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vizlog import FixedBatch

IMAGES, LABELS = torch.rand(20, 1, 4, 4), torch.arange(20) % 10


@pytest.mark.parametrize(
    "output",
    [
        (torch.rand(20, 1, 4, 4), torch.rand(20, 10), torch.rand(20, 10)),  # a convolutional VAE: image, mu, logvar
        (torch.rand(20, 16), torch.rand(20, 10), torch.rand(20, 10)),  # whose images are laid flat
        torch.rand(20, 16),
    ],
)
@pytest.mark.parametrize("labels", [None, LABELS])
def test_what_rebuilds_its_input_has_no_class_scores(output: Any, labels: Tensor | None) -> None:
    assert FixedBatch(IMAGES, labels).logits(output) is None


def test_as_many_classes_as_features_are_class_scores() -> None:
    scores = torch.rand(20, 4)
    assert FixedBatch(torch.rand(20, 4), torch.arange(20) % 4).part(0, 2).logits(scores[:2]) is not None


def test_scores_of_one_position_are_class_scores() -> None:
    ids = torch.arange(40).reshape(10, 4)
    generating = torch.rand(10, 1, 50)
    found = FixedBatch(ids).logits((generating, None))
    assert found is not None
    assert torch.equal(found, generating[:, 0])


def test_one_number_an_example_is_one_score() -> None:
    numbers = torch.rand(20)
    for targets in (None, torch.rand(20), LABELS % 2):
        found = FixedBatch(torch.rand(20, 8), targets).logits(numbers)
        assert found is not None
        assert torch.equal(found, numbers[:, None])


@pytest.mark.parametrize(
    "targets",
    [
        torch.randn(20, 3) * 5,  # a regression of three numbers
        torch.ones(20),  # pairs that are alike or not, and a model that embeds them
    ],
)
def test_outputs_compared_with_numbers_are_no_classes(targets: Tensor) -> None:
    assert FixedBatch(torch.rand(20, 8), targets).logits(torch.randn(20, 3)) is None


def test_several_labels_an_example_are_classes() -> None:
    assert FixedBatch(torch.rand(3, 8), torch.eye(3)).logits(torch.randn(3, 3)) is not None
