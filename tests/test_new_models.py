"""Models as courses, papers and repositories write them: they are watched without any configuration."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vizlog
from vizlog import FixedBatch
from vizlog.reading import Reading
from vizlog.views.colors import look_up
from vizlog.views.raster import raster

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
    assert Reading(FixedBatch(IMAGES, labels), output).logits() is None


def test_as_many_classes_as_features_are_class_scores() -> None:
    scores = torch.rand(20, 4)
    assert Reading(FixedBatch(torch.rand(20, 4), torch.arange(20) % 4).part(0, 2), scores[:2]).logits() is not None


def test_scores_of_one_position_are_class_scores() -> None:
    ids = torch.arange(40).reshape(10, 4)
    generating = torch.rand(10, 1, 50)
    found = Reading(FixedBatch(ids), (generating, None)).logits()
    assert found is not None
    assert torch.equal(found, generating[:, 0])


def test_one_number_an_example_is_one_score() -> None:
    numbers = torch.rand(20)
    for targets in (None, torch.rand(20), LABELS % 2):
        found = Reading(FixedBatch(torch.rand(20, 8), targets), numbers).logits()
        assert found is not None
        assert torch.equal(found, numbers[:, None])


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.rand(20, 1), torch.rand(20, 1)),  # a curve
        (torch.rand(20, 1), None),
        ({"age": torch.rand(20), "income": torch.rand(20), "city": LABELS}, LABELS % 2),  # a table, column by column
        ((torch.rand(20, 6), torch.rand(20)), torch.rand(20)),
    ],
)
def test_one_number_is_one_score_though_an_input_is_one_number_too(inputs: Any, targets: Tensor | None) -> None:
    numbers = torch.rand(20, 1)
    batch = FixedBatch(inputs, targets)
    assert not Reading(batch, numbers).rebuilds()
    for output in (numbers, numbers[:, 0]):
        found = Reading(batch, output).logits()
        assert found is not None
        assert torch.equal(found, numbers)


@pytest.mark.parametrize(
    "targets",
    [
        torch.randn(20, 3) * 5,  # a regression of three numbers
        torch.ones(20),  # pairs that are alike or not, and a model that embeds them
    ],
)
def test_outputs_compared_with_numbers_are_no_classes(targets: Tensor) -> None:
    assert Reading(FixedBatch(torch.rand(20, 8), targets), torch.randn(20, 3)).logits() is None


def test_several_labels_an_example_are_classes() -> None:
    assert Reading(FixedBatch(torch.rand(3, 8), torch.eye(3)), torch.randn(3, 3)).logits() is not None


def watched(model: nn.Module, batch: FixedBatch, loss: Any = F.cross_entropy) -> vizlog.Memory:
    """One step of training on the batch itself, looked at."""
    memory = vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, batch=batch):
        loss(batch.run({"": model}), batch.targets).backward()
        optimizer.step()
    return memory


def tags(memory: vizlog.Memory) -> set[str]:
    return {record.tag for _, record in memory.records}


def only(memory: vizlog.Memory, tag: str) -> Any:
    ((_, record),) = memory.of(tag)
    return record


def test_digits_laid_flat_are_shown_as_digits() -> None:
    digits = torch.tensor(load_digits().data, dtype=torch.float32)[:32] / 16
    memory = watched(
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), FixedBatch(digits, torch.arange(32) % 10)
    )
    saliency, embedding = only(memory, "saliency/gradient"), only(memory, "embeddings/2.input")
    assert saliency.values.shape == (8, 8, 8)
    assert np.array_equal(saliency.over, (digits[saliency_ids(saliency)] * 255).round().reshape(8, 8, 8, 1))
    assert embedding.thumbnails.shape == (32, 8, 8, 1)


def saliency_ids(record: Any) -> list[int]:
    return [int(title.split()[1].rstrip(":")) for title in record.titles]


def test_a_table_of_a_square_number_of_features_is_no_picture() -> None:
    assert FixedBatch(torch.randn(64, 64)).thumbnails() is None


def test_the_caption_of_one_output_speaks_of_no_class() -> None:
    memory = watched(nn.Sequential(nn.Linear(6, 1)), FixedBatch(torch.randn(8, 6), torch.randn(8, 1)), F.mse_loss)
    assert "class" not in only(memory, "saliency/gradient").caption


@pytest.mark.parametrize(
    ("inputs", "number", "scored"),
    [
        ((torch.randn(20, 6), torch.randn(20, 6)), 2, False),  # two views, as of SimCLR
        ((torch.randn(20, 6), torch.randn(20, 6), torch.randn(20, 6)), 3, False),  # a triplet
        ((torch.randint(9, (20, 4)), torch.randint(9, (20, 4))), 2, False),  # sentences
        ((torch.randn(20, 6), torch.randn(20, 6)), 1, True),  # a classifier of pairs
        (torch.randn(20, 6), 2, True),  # a classifier with one beside it that helps it learn
        ({"input_ids": torch.randint(9, (20, 4)), "token_type_ids": torch.zeros(20, 4).long()}, 2, True),
    ],
)
def test_a_view_of_each_of_several_inputs_is_no_class_scores(inputs: Any, number: int, *, scored: bool) -> None:
    output = tuple(torch.randn(20, 8) for _ in range(number))
    assert (Reading(FixedBatch(inputs), output).logits() is not None) is scored
    if number > 1:  # labels say how many classes there are
        assert Reading(FixedBatch(inputs, torch.arange(20) % 8), output).logits() is output[0]


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(left), self.body(right)


def test_pictures_of_twins_are_of_the_input_that_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    model, alike = Twins(), torch.ones(8)
    left, right = torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4)

    def distances(output: Any, targets: Tensor) -> Tensor:
        return targets * F.pairwise_distance(*output)

    batch = FixedBatch((left, right), alike, loss=distances)
    memory = watched(model, batch, lambda output, y: distances(output, y).mean())
    embedding = only(memory, "embeddings/body")
    assert np.allclose(embedding.vectors, model.body(left).detach()[list(embedding.ids)], atol=1e-6)
    assert "saliency/gradient" in tags(memory)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_convolution_down_to_one_pixel_is_no_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 10, 2), nn.Flatten())
    assert {tag for tag in tags(watched(model, FixedBatch(IMAGES, LABELS))) if tag.startswith("feature_maps")} == {
        "feature_maps/0"
    }


class Generator(nn.Module):
    """As language models are written that take their targets, too, and generate from the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(20, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.embed(ids)
        x = self.attention(x, x, x, need_weights=False)[0]
        if targets is None:
            return self.head(x[:, [-1]]), None
        scores = self.head(x)
        return scores, F.cross_entropy(scores.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("with_targets", [True, False])
def test_a_language_model_that_is_given_its_targets_shows_its_tokens(with_targets: bool) -> None:  # noqa: FBT001
    text = torch.randint(2, 20, (8, 7))
    ids, targets = text[:, :-1], text[:, 1:]
    inputs = (ids, targets) if with_targets else ids
    names = [f"token{number}" for number in range(20)]
    memory = watched(Generator(), FixedBatch(inputs, targets, tokens=names), lambda output, _: output[0].mean())
    first = [names[number] for number in ids[only(memory, "attention/attention").examples[0]]]
    assert only(memory, "attention/attention").key_tokens[0] == first
    assert only(memory, "saliency/gradient/predicted").column_labels[0] == first


def test_a_model_of_a_single_layer_is_watched_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    memory = watched(nn.Linear(6, 3), FixedBatch(torch.randn(9, 6), torch.arange(9) % 3))
    assert {"weights/weight", "gradients/bias", "saliency/gradient"} <= tags(memory)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_norm_of_a_gradient_of_nans_is_not_zero() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    memory = watched(model, FixedBatch(torch.full((9, 6), math.nan), torch.arange(9) % 3))
    assert np.isinf(only(memory, "health/gradient_norm").ys["gradient_norm"]).all()


def test_a_model_that_never_trains_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    with vizlog.watch(model, torch.optim.SGD(model.parameters()), to=vizlog.Memory()):
        pass
    with vizlog.watch(model, to=vizlog.Memory()):
        model(torch.ones(1, 2)).sum().backward()
    never, nowhere = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the watched optimizer never stepped" in never
    assert "with monitor.step()" in nowhere


def test_a_series_lies_along_the_width() -> None:
    class Forecast(nn.GRU):
        def forward(self, series: Tensor) -> Tensor:  # type: ignore[override]
            outputs: Tensor = super().forward(series)[0]
            return outputs[:, -1].mean(1)

    memory = watched(Forecast(3, 8, batch_first=True), FixedBatch(torch.randn(8, 24, 3), torch.randn(8)), F.mse_loss)
    assert only(memory, "saliency/gradient").values.shape == (8, 3, 24)


def test_a_map_much_wider_than_high_is_drawn_over_the_whole_width() -> None:
    values = np.zeros((2, 1, 30), np.float32)
    values[1, 0, -1] = 1.0
    drawn = raster(vizlog.Heatmaps("saliency/x", values, ["a", "b"], ["", ""], (0.0, 1.0), "sequential"))
    brightest = (drawn == np.array([look_up(np.ones(1), "sequential")[0]])).all(-1)
    rows, columns = np.nonzero(brightest[150:])  # below the colour bar
    assert np.ptp(rows) >= 20
    assert columns.min() > drawn.shape[1] * 0.8


def test_a_mean_of_other_channels_than_the_images_have_is_said() -> None:
    with pytest.raises(ValueError, match=r"std=\) takes a number for each of 1 channels, got \(0.2, 0.2, 0.2\)"):
        FixedBatch(IMAGES, LABELS, mean=0.5, std=(0.2, 0.2, 0.2))
    FixedBatch(torch.rand(4, 3, 8, 8), mean=(0.5, 0.5, 0.5), std=torch.ones(3).tolist())


def test_what_needs_an_optimizer_is_not_announced_without_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vizlog")
    vizlog.watch(nn.Linear(2, 2), to=vizlog.Memory()).close()
    looks, leaves, *_ = [record.getMessage() for record in caplog.records]
    assert "UpdateRatios" not in looks
    assert "UpdateRatios (needs optimizer=)" in leaves
    assert "FeatureMaps (needs batch=" in leaves
