"""SaliencyMaps: from a model and a fixed batch to records, held against Captum and calculations by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vizlog
from vizlog.batch import FixedBatch
from vizlog.capture import replaced
from vizlog.compute.traces import traces
from vizlog.compute.transfer import to_host
from vizlog.isolation import isolated
from vizlog.probes.base import Context
from vizlog.probes.inputs import block_of
from vizlog.probes.saliency import SaliencyMaps
from vizlog.records import Heatmaps
from vizlog.survey import survey

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning:captum")


def bound(probe: SaliencyMaps, model: nn.Module, batch: FixedBatch | None) -> SaliencyMaps:
    with isolated([model]):
        probe.bind({"": model}, survey({"": model}, batch) if batch is not None else None)
    return probe


def drawn(
    probe: SaliencyMaps, model: nn.Module, batch: FixedBatch, forward_context: Callable[[], Any] = nullcontext
) -> dict[str, Heatmaps]:
    """What a due step makes of it: tag -> record."""
    bound(probe, model, batch)
    with isolated([model]), torch.no_grad():
        measured = probe.measure(Context(0, None, {"": model}, batch=batch, forward_context=forward_context))
    return {record.tag: record for record in probe.finish(to_host(measured).wait())}


@pytest.fixture
def model(digits: tuple[Tensor, Tensor]) -> nn.Sequential:
    """A CNN in training mode that reads digits fairly well; it works in place and has BatchNorm and dropout."""
    images, labels = digits
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(384, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for rows in torch.randperm(1500)[:1280].split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor]) -> FixedBatch:
    images, labels = digits
    return FixedBatch(images[1500:1600], labels[1500:1600])


def frozen(model: nn.Module) -> nn.Module:
    """A copy to ask Captum about: in eval mode, nothing in place."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def captum_gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> np.ndarray:
    from captum.attr import Saliency

    return Saliency(frozen(model)).attribute(inputs, target=targets, abs=False).sum(1).numpy()


def mistaken(model: nn.Module, batch: FixedBatch) -> tuple[FixedBatch, Tensor]:
    """The batch with two labels changed, so that at least two examples are misclassified; and what is predicted."""
    predicted = frozen(model)(batch.inputs).argmax(1)
    labels = predicted.clone()
    labels[2] = (labels[2] + 1) % 10
    labels[5] = (labels[5] + 3) % 10
    wrong = batch.take(torch.arange(len(batch)))
    wrong.targets = labels
    return wrong, predicted


class Reviews(nn.Module):
    """Two classes of a text: mean of token and position embeddings, the latter looked up first and in as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(16, 6)
        self.token = nn.Embedding(20, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        hidden = self.position(positions) + self.token(input_ids)
        hidden = torch.tanh(self.mix(hidden))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        return self.head(hidden.mean(1))


WORDS = [f"w{number}" for number in range(20)]


# Which class, which examples -----------------------------------------------------------------------------------------


def test_a_cnn_gets_gradients_and_gradcam_of_the_true_class(model: nn.Sequential, batch: FixedBatch) -> None:
    from captum.attr import LayerGradCam

    batch.targets = frozen(model)(batch.inputs).argmax(1)
    records = drawn(SaliencyMaps(), model, batch)
    assert list(records) == ["saliency/gradient", "saliency/gradcam"]

    inputs, targets = batch.inputs[:8], batch.targets[:8]
    gradient, cam = records.values()
    np.testing.assert_allclose(gradient.values, captum_gradient(model, inputs, targets), atol=1e-5)
    reference = frozen(model)
    expected = LayerGradCam(reference, reference[3]).attribute(inputs, target=targets, relu_attributions=True)
    np.testing.assert_allclose(cam.values, expected.squeeze(1).detach().numpy(), atol=1e-6)
    for record in records.values():
        assert record.values.dtype == np.float32
        np.testing.assert_array_equal(record.over, batch.thumbnails(8))
        assert record.titles == [f"example {n}: class {t}" for n, t in zip(batch.ids[:8], targets, strict=True)]


def test_maps_of_gradcam_that_are_0_all_over_are_counted(model: nn.Sequential, batch: FixedBatch) -> None:
    with torch.no_grad():
        model[-1].weight[1:].clamp_(max=0)  # type: ignore[union-attr, operator]  # nothing raises any but class 0
    cam = drawn(SaliencyMaps(), model, batch)["saliency/gradcam"]
    dark = int((cam.values == 0).all((1, 2)).sum())
    assert dark > 0
    assert cam.caption.endswith(f"; {dark} of 8 maps are 0 all over, as no such channel is active")


@pytest.mark.parametrize("inside", [False, True])
def test_gradcam_is_of_a_part_that_the_score_depends_on(
    model: nn.Sequential, batch: FixedBatch, *, inside: bool
) -> None:
    class Distiller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = model, copy.deepcopy(model)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.student(x)
            with torch.no_grad():
                return scores, self.teacher(x)

    whole = nn.Sequential(Distiller()) if inside else Distiller()
    records = drawn(SaliencyMaps(target="predicted"), whole, batch)
    assert list(records) == ["saliency/gradient/predicted", "saliency/gradcam/predicted"]
    assert "student.3" in records["saliency/gradcam/predicted"].caption
    alone = drawn(SaliencyMaps(target="predicted"), model, batch)
    for tag, record in alone.items():
        np.testing.assert_array_equal(record.values, records[tag].values)


class Apart(nn.Module):
    """Ten classes by a linear layer, beside convolutions whose output goes elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.first(x) + self.second(x)


def test_where_the_score_depends_on_no_convolution_the_other_maps_are_made(
    batch: FixedBatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, memory = Apart(), vizlog.Memory()
    expected = captum_gradient(model.head, batch.inputs[:8], batch.labels[:8])  # type: ignore[index]
    probe = SaliencyMaps(methods=("gradcam", "gradient"), every=1)
    monitor = vizlog.Monitor(model, [probe], to=memory, batch=batch)
    for _ in range(2):
        with monitor.step():
            model(batch.inputs)[0].sum().backward()
    monitor.close()
    assert {record.tag for _, record in memory.records if isinstance(record, Heatmaps)} == {
        "saliency/gradient",
        "saliency/gradient/predicted",
    }
    for _, record in memory.of("saliency/gradient"):
        np.testing.assert_allclose(record.values, expected, atol=1e-6)
    (line,) = [line for line in caplog.messages if "Grad-CAM" in line]
    assert line == (
        "vizlog: SaliencyMaps goes on without Grad-CAM: the score depends on none of the convolutions "
        "that Grad-CAM could read (second, first), or something on the way detaches it"
    )


def test_gradcam_alone_where_the_score_depends_on_no_convolution_says_which_were_tried(batch: FixedBatch) -> None:
    with pytest.raises(ValueError, match=r"none of the convolutions that Grad-CAM could read \(second, first\)"):
        drawn(SaliencyMaps(methods="gradcam"), Apart(), batch)


def test_of_scores_that_are_nan_none_is_the_predicted_class(model: nn.Sequential, batch: FixedBatch) -> None:
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    assert list(drawn(SaliencyMaps(methods="gradient"), model, batch)) == ["saliency/gradient"]


def test_misclassified_examples_are_explained_for_the_predicted_class_too(
    model: nn.Sequential, batch: FixedBatch
) -> None:
    wrong, predicted = mistaken(model, batch)
    records = drawn(SaliencyMaps(methods="gradient"), model, wrong)
    assert list(records) == ["saliency/gradient", "saliency/gradient/predicted"]

    true, mistake = records.values()
    np.testing.assert_allclose(true.values, captum_gradient(model, wrong.inputs[:8], wrong.targets[:8]), atol=1e-5)
    rows = torch.tensor([2, 5])
    np.testing.assert_allclose(mistake.values, captum_gradient(model, wrong.inputs[rows], predicted[rows]), atol=1e-5)
    np.testing.assert_array_equal(mistake.over, wrong.thumbnails(8)[rows])
    assert mistake.titles == [true.titles[2], true.titles[5]]
    assert f"explains class {int(predicted[2])}; predicted class {int(predicted[2])} (" in mistake.notes[0]
    assert [note.endswith(", wrong)") for note in true.notes] == [False, False, True, False, False, True, False, False]


def test_scores_that_are_nan_predict_no_class(model: nn.Sequential, batch: FixedBatch) -> None:
    with torch.no_grad():
        model[-1].bias.fill_(torch.nan)
    (true, *_) = drawn(SaliencyMaps(methods="gradient"), model, batch).values()
    targets = batch.targets[:8].tolist()
    assert true.notes == [f"target class {target}; no class is predicted: scores are NaN" for target in targets]


@pytest.mark.parametrize("target", ["predicted", 3, "three"])
def test_another_class_can_be_asked_for(model: nn.Sequential, batch: FixedBatch, target: int | str) -> None:
    batch.class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    records = drawn(SaliencyMaps(methods="gradient", target=target), model, batch)
    predicted = frozen(model)(batch.inputs[:8]).argmax(1)
    tag, record = next(iter(records.items()))
    assert len(records) == 1
    assert tag == ("saliency/gradient/predicted" if target == "predicted" else "saliency/gradient/class-three")
    classes = predicted if target == "predicted" else torch.full((8,), 3)
    np.testing.assert_allclose(record.values, captum_gradient(model, batch.inputs[:8], classes), atol=1e-5)
    assert f"explains {batch.class_name(int(classes[0]))}; predicted " in record.notes[0]


def test_without_true_classes_the_predicted_one_is_explained(model: nn.Sequential, batch: FixedBatch) -> None:
    records = drawn(SaliencyMaps(), model, FixedBatch(batch.inputs))
    assert list(records) == ["saliency/gradient/predicted", "saliency/gradcam/predicted"]


def test_an_example_without_a_label_is_explained_for_the_predicted_class(
    model: nn.Sequential, batch: FixedBatch
) -> None:
    predicted = frozen(model)(batch.inputs).argmax(1)
    batch.targets = predicted.clone()
    batch.targets[[2, 5]] = -100
    records = drawn(SaliencyMaps(methods="gradient"), model, batch)
    assert list(records) == ["saliency/gradient", "saliency/gradient/predicted"]

    true, unknown = records.values()
    rows = torch.tensor([0, 1, 3, 4, 6, 7])
    np.testing.assert_allclose(true.values, captum_gradient(model, batch.inputs[rows], predicted[rows]), atol=1e-5)
    rows = torch.tensor([2, 5])
    np.testing.assert_allclose(unknown.values, captum_gradient(model, batch.inputs[rows], predicted[rows]), atol=1e-5)
    assert unknown.titles == [f"example {batch.ids[row]}: no label" for row in (2, 5)]
    assert "wrong" not in unknown.notes[0]
    assert "only examples that are misclassified or have no label" in unknown.caption
    assert "no label" not in true.caption


def test_more_examples_than_fit_at_once_give_the_same_maps(model: nn.Sequential, batch: FixedBatch) -> None:
    probes = (SaliencyMaps(examples=n, target="predicted", methods=["gradient", "gradcam"]) for n in (3, 20))
    few, many = (drawn(probe, model, batch) for probe in probes)
    for tag, record in few.items():
        assert many[tag].values.shape == (20, 8, 8)
        np.testing.assert_allclose(record.values, many[tag].values[:3], atol=1e-5)


@pytest.mark.parametrize(("text", "most"), [(False, 8), (True, 2)])
def test_no_more_rows_are_run_at_once_than_there_is_room_for_their_graphs(*, text: bool, most: int) -> None:
    rows: list[int] = []
    if text:
        model: nn.Module = Reviews()
        model.position = nn.Embedding(1000, 6)
        batch = FixedBatch(torch.randint(20, (6, 1000)))
    else:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
        batch = FixedBatch(torch.rand(20, 1, 8, 8))
    probe = bound(SaliencyMaps(methods=None if text else ["gradient", "gradcam"], examples=20), model, batch)
    model.register_forward_hook(lambda _, args, output: rows.append(len(output)) if torch.is_grad_enabled() else None)
    with isolated([model]), torch.no_grad():
        probe.measure(Context(0, None, {"": model}, batch=batch))
    assert max(rows) == most


# What each picture says ----------------------------------------------------------------------------------------------


def test_the_completeness_gap_is_noted(model: nn.Sequential, batch: FixedBatch) -> None:
    from captum.attr import IntegratedGradients

    steps = 5
    record = drawn(SaliencyMaps(methods="integrated_gradients", target=4, steps=steps), model, batch).popitem()[1]
    reference = frozen(model)
    expected, delta = IntegratedGradients(reference).attribute(
        batch.inputs[:8], target=4, n_steps=steps, return_convergence_delta=True
    )
    np.testing.assert_allclose(record.values, expected.sum(1).numpy(), atol=1e-5)
    for note, missed in zip(record.notes, delta.tolist(), strict=True):
        absolute = float(note.partition("gap ")[2].partition(" (")[0])
        assert absolute == pytest.approx(missed, rel=0.1, abs=1e-3)
        assert note.endswith("%)")
    before, after = (reference(inputs)[:, 4].detach() for inputs in (0 * batch.inputs[:8], batch.inputs[:8]))
    shares = [float(note.rpartition("(")[2].removesuffix("%)")) for note in record.notes]
    np.testing.assert_allclose(shares, 100 * (delta / (after - before)).abs(), rtol=0.06, atol=1e-3)
    assert "5 steps from 0" in record.caption


def test_options_of_a_method_reach_it(model: nn.Sequential, batch: FixedBatch) -> None:
    from captum.attr import IntegratedGradients

    rows = []
    model[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    plain = drawn(SaliencyMaps(methods="gradient", target=4), model, batch)["saliency/gradient/class-4"]
    rows.clear()
    smooth = drawn(SaliencyMaps(methods="smoothgrad", target=4, samples=3, noise=0.0), model, batch).popitem()[1]
    np.testing.assert_allclose(smooth.values, plain.values, atol=1e-5)
    assert sum(rows[1:]) == 8 + 3 * 8  # one look, and each copy; the first is the survey's
    assert "3 copies with noise of 0% of the example's range" in smooth.caption

    reference = IntegratedGradients(frozen(model))
    for baseline in (0.5, torch.full((8, 8), 0.5)):
        probe = SaliencyMaps(methods="integrated_gradients", target=4, steps=7, baseline=baseline)
        record = drawn(probe, model, batch).popitem()[1]
        expected = reference.attribute(batch.inputs[:8], baselines=0.5, target=4, n_steps=7)
        np.testing.assert_allclose(record.values, expected.sum(1).numpy(), atol=1e-5)
        start = "a given baseline" if isinstance(baseline, Tensor) else "0.5"
        assert f"7 steps from {start}:" in record.caption


def test_a_default_device_is_not_where_we_count(model: nn.Sequential, batch: FixedBatch) -> None:
    methods = ["gradient", "smoothgrad", "integrated_gradients", "gradcam"]
    expected = drawn(SaliencyMaps(methods=methods, samples=2, steps=2), model, batch)
    with torch.device("meta"):
        found = drawn(SaliencyMaps(methods=methods, samples=2, steps=2), model, batch)
    assert found.keys() == expected.keys()
    for tag, record in found.items():
        np.testing.assert_array_equal(record.values, expected[tag].values)


def test_one_scale_for_a_record_centred_on_zero(model: nn.Sequential, batch: FixedBatch) -> None:
    batch.targets = frozen(model)(batch.inputs).argmax(1)
    records = drawn(SaliencyMaps(methods=["smoothgrad", "gradcam"], samples=2), model, batch)
    signed, cam = records["saliency/smoothgrad"], records["saliency/gradcam"]
    assert signed.colormap == "diverging"
    assert signed.limits[0] == -signed.limits[1]
    assert signed.limits[1] == pytest.approx(np.quantile(np.abs(signed.values), 0.99))
    assert cam.colormap == "sequential"
    assert cam.limits[0] == 0
    assert cam.values.min() == 0


def test_the_scale_of_a_map_of_which_hardly_anything_is_other_than_zero_is_its_largest_value() -> None:
    model, x = nn.Linear(400, 2), torch.randn(2, 400)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, 7] = 3.0
    record = drawn(SaliencyMaps(), model, FixedBatch(x, torch.tensor([0, 1])))["saliency/gradient"]
    assert record.limits == (-3.0, 3.0)


def test_values_of_nothing_or_nan_are_still_drawn(model: nn.Sequential, batch: FixedBatch) -> None:
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
    for record in drawn(SaliencyMaps(target=0), model, batch).values():
        assert not record.values.any()
        assert record.limits[1] == 1
    with torch.no_grad():
        last.weight.fill_(float("nan"))
    for record in drawn(SaliencyMaps(target=0, methods="gradient"), model, batch).values():
        assert np.isnan(record.values).any()
        assert np.isfinite(record.limits).all()


def test_gradcam_reads_the_layer_that_is_named(model: nn.Sequential, batch: FixedBatch) -> None:
    from captum.attr import LayerGradCam

    record = drawn(SaliencyMaps("0", methods="gradcam", target=2), model, batch)["saliency/gradcam/class-2"]
    reference = frozen(model)
    expected = LayerGradCam(reference, reference[0]).attribute(batch.inputs[:8], target=2, relu_attributions=True)
    np.testing.assert_allclose(record.values, expected.squeeze(1).detach().numpy(), atol=1e-6)
    assert "layer 0 " in record.caption


def test_gradcam_of_a_convolution_that_is_called_twice_is_of_its_last_call() -> None:
    first, second, head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)
    second.load_state_dict(first.state_dict())
    batch = FixedBatch(torch.rand(4, 1, 8, 8))
    maps = [
        drawn(SaliencyMaps(layer, methods="gradcam", target=1), model, batch)["saliency/gradcam/class-1"].values
        for layer, model in (
            ("0", nn.Sequential(first, nn.ReLU(), first, nn.Flatten(), head)),
            ("2", nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), head)),
        )
    ]
    np.testing.assert_allclose(*maps, atol=1e-6)
    assert maps[0].any()


def test_of_numbers_and_an_image_the_image_is_explained_wherever_it_stands() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.pixels = nn.Linear(5, 2), nn.Linear(64, 2)

        def forward(self, numbers: Tensor, image: Tensor) -> Tensor:
            return self.table(numbers) + self.pixels(image.flatten(1))

    model, inputs = Both(), (torch.rand(3, 5), torch.rand(3, 1, 8, 8))
    record = drawn(SaliencyMaps(target=1), model, FixedBatch(inputs))["saliency/gradient/class-1"]
    expected = model.pixels.weight[1].detach().view(8, 8).expand(3, 8, 8)
    np.testing.assert_allclose(record.values, expected.numpy(), atol=1e-6)


def test_of_large_images_the_strongest_of_each_block_is_shown() -> None:
    images, labels = torch.rand(2, 3, 300, 520), torch.tensor([0, 1])
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 300 * 520, 3))
    record = drawn(SaliencyMaps(methods="gradient"), model, FixedBatch(images, labels))["saliency/gradient"]
    assert record.values.shape == (2, 100, 174)
    assert record.over is not None
    assert record.over.shape == (2, 100, 174, 3)
    cell = captum_gradient(model, images, labels)[:, 30:33, 60:63].reshape(2, 9)
    strongest = cell[[0, 1], np.abs(cell).argmax(1)]
    np.testing.assert_allclose(record.values[:, 10, 20], strongest, atol=1e-7)
    assert "of 300 x 520 values the one furthest from 0 of each block is shown" in record.caption
    np.testing.assert_allclose(record.over[0, 10, 20], 255 * images[0, :, 30:33, 60:63].mean((1, 2)), atol=1.5)


# Other inputs and outputs --------------------------------------------------------------------------------------------


def test_columns_of_a_table_are_named_where_their_names_are_known() -> None:
    table, linear = torch.randn(5, 3), nn.Linear(3, 2)
    batch = FixedBatch(table, torch.zeros(5).long(), feature_names=["age", "height", "weight"])
    record = drawn(SaliencyMaps(examples=2), linear, batch)["saliency/gradient"]
    assert record.column_labels == [["age", "height", "weight"]] * 2
    np.testing.assert_array_equal(record.values, linear.weight.detach()[:1].expand(2, 1, 3))


def test_columns_of_a_table_without_names_are_numbered_and_those_of_a_signal_are_not() -> None:
    table, signal = torch.randn(2, 3), torch.randn(2, 800)
    record = drawn(SaliencyMaps(), nn.Linear(3, 2), FixedBatch(table, torch.zeros(2).long()))["saliency/gradient"]
    assert record.column_labels == [["x0", "x1", "x2"]] * 2
    record = drawn(SaliencyMaps(), nn.Linear(800, 2), FixedBatch(signal, torch.zeros(2).long()))["saliency/gradient"]
    assert record.column_labels is None
    waves = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(20, 2))
    records = drawn(SaliencyMaps(), waves, FixedBatch(signal[:, :12], torch.zeros(2).long()))
    assert records["saliency/gradcam"].column_labels is None  # of the convolution's positions


def test_positions_of_a_generators_convolution_are_no_places_in_what_goes_in() -> None:
    generator = nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, (1, 4, 4)), nn.ConvTranspose2d(1, 2, 4, 2, 1))
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 1))
    records = drawn(SaliencyMaps(), nn.Sequential(generator, critic), FixedBatch(torch.randn(4, 6)))
    assert list(records) == ["saliency/gradient"]


def test_tokens_are_explained_through_their_embeddings() -> None:
    from captum.attr import IntegratedGradients, LayerGradientXActivation

    model, ids = Reviews(), torch.randint(0, 20, (5, 7))
    records = drawn(
        SaliencyMaps(methods=["gradient", "integrated_gradients"], target=1, steps=20),
        model,
        FixedBatch(ids, tokens=WORDS),
    )
    gradient, integrated = records.values()
    expected = LayerGradientXActivation(model, model.token).attribute(ids, target=1).sum(2)
    np.testing.assert_allclose(gradient.values[:, 0], expected.detach().numpy(), atol=1e-6)

    def from_embeddings(embedded: Tensor, ids: Tensor) -> Tensor:
        with replaced(model.token, lambda output: embedded):
            return model(ids)

    expected = IntegratedGradients(from_embeddings).attribute(
        model.token(ids).detach(), additional_forward_args=ids, target=1, n_steps=20
    )
    np.testing.assert_allclose(integrated.values[:, 0], expected.sum(2).detach().numpy(), atol=1e-6)
    assert gradient.column_labels == [[WORDS[token] for token in row] for row in ids.tolist()]
    assert ") times embedding, what each token adds to the score to first order" in gradient.caption
    assert gradient.over is None


class Answers(nn.Module):
    """Where in a text an answer starts, and where it ends: two scores of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(20, 6)
        self.ends = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, **positions: Tensor) -> dict[str, Tensor]:
        start, end = self.ends(self.token(input_ids)).unbind(2)
        return {"start_logits": start, "end_logits": end}


@pytest.mark.parametrize("where", ["inputs", "targets", "score"])
def test_of_an_answer_in_a_text_the_token_is_told_where_it_starts(where: str) -> None:
    model = Answers()
    ids = torch.stack([torch.randperm(20)[:7] for _ in range(4)])
    starts = torch.tensor([3, 6, 0, 7])  # the last lies beyond the text, and is ignored
    inputs = {"input_ids": ids}
    batch = {
        "inputs": FixedBatch({**inputs, "start_positions": starts, "end_positions": starts}, tokens=WORDS),
        "targets": FixedBatch(inputs, {"end_positions": starts, "start_positions": starts}, tokens=WORDS),
        "score": FixedBatch(
            inputs,
            starts.masked_fill(starts == 7, -100),
            tokens=WORDS,
            score=lambda output: output["start_logits"],
        ),
    }[where]
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient"]
    scores = model(ids)["start_logits"].detach().softmax(1)
    assert sorted(record.titles) == [f"example {k}: position {starts[k]}, 'w{ids[k, starts[k]]}'" for k in range(3)]
    for title, note, values in zip(record.titles, record.notes, record.values, strict=True):
        k = int(title.removeprefix("example ")[0])
        guess, share = int(scores[k].argmax()), float(scores[k].max())
        assert note == (
            f"target position {starts[k]}, 'w{ids[k, starts[k]]}'; predicted position {guess}, "
            f"'w{ids[k, guess]}' ({share:.0%}{', wrong' * (guess != starts[k])})"
        )
        expected = torch.zeros(7)  # the score of a token depends on no other
        expected[starts[k]] = model.token(ids[k, starts[k]]) @ model.ends.weight[0]
        np.testing.assert_allclose(values[0], expected.detach(), atol=1e-6)
    assert "the logit (before softmax) of the true position, by start_logits; 3 examples" in record.caption


def test_as_many_classes_as_tokens_are_classes() -> None:
    model = nn.Sequential(nn.Embedding(20, 6), nn.Flatten(), nn.Linear(24, 4))
    batch = FixedBatch(torch.randint(20, (6, 4)), torch.arange(6) % 4)
    assert drawn(SaliencyMaps(), model, batch)["saliency/gradient"].titles[0] == "example 0: class 0"


def test_padding_after_the_longest_text_is_left_out() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    inputs = {"input_ids": torch.randint(0, 20, (2, 5)), "attention_mask": mask}
    record = drawn(SaliencyMaps(), Reviews(), FixedBatch(inputs, tokens=WORDS))["saliency/gradient/predicted"]
    assert record.values.shape == (2, 1, 3)
    assert record.column_labels is not None
    assert [len(labels) for labels in record.column_labels] == [3, 3]
    assert record.values[1, 0, 2] == 0


def test_embeddings_are_explained_as_they_were_before_the_model_changed_them_in_place() -> None:
    class Scales(Reviews):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.token(input_ids).mul_(3).sum(1))

    model, ids = Scales(), torch.randint(0, 20, (3, 4))
    record = drawn(SaliencyMaps(target=1), model, FixedBatch(ids))["saliency/gradient/class-1"]
    expected = 3 * model.token(ids) @ model.head.weight[1]
    np.testing.assert_allclose(record.values[:, 0], expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_an_embedding_that_is_called_twice_is_explained_where_it_takes_the_tokens(order: int) -> None:
    class Twice(Reviews):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            texts = [torch.zeros_like(input_ids), input_ids][::order]
            start, embedded = [self.token(text) for text in texts][::order]
            return self.head((3 * embedded + start).sum(1))

    model, ids = Twice(), torch.randint(1, 20, (3, 4))
    record = drawn(SaliencyMaps(target=1), model, FixedBatch(ids))["saliency/gradient/class-1"]
    expected = 3 * model.token(ids) @ model.head.weight[1]
    np.testing.assert_allclose(record.values[:, 0], expected.detach().numpy(), atol=1e-5)


def test_a_language_model_is_explained_for_the_token_it_predicts_next() -> None:
    class Language(Reviews):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 20)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.token(input_ids).cumsum(1))

    model, ids = Language(), torch.randint(0, 20, (3, 4))
    batch = FixedBatch(ids, ids.roll(-1, 1), tokens=WORDS)
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient/predicted"]
    predicted = model(ids)[:, -1].argmax(1)
    expected = torch.einsum("ntd,nd->nt", model.token(ids), model.head.weight[predicted])
    np.testing.assert_allclose(record.values[:, 0], expected.detach().numpy(), atol=1e-5)
    assert record.notes[1].startswith(f"explains 'w{int(predicted[1])}'; predicted 'w{int(predicted[1])}' (")
    assert "next token, at the last position" in record.caption
    unnamed = drawn(SaliencyMaps(), model, FixedBatch(ids, ids.roll(-1, 1)))["saliency/gradient/predicted"]
    assert unnamed.notes[1].startswith(f"explains token {int(predicted[1])}; predicted token {int(predicted[1])} (")
    assert unnamed.caption == record.caption


def test_an_embedding_of_as_many_segments_as_there_are_classes_is_no_vocabulary() -> None:
    class Segments(Reviews):
        def __init__(self) -> None:
            super().__init__()
            self.segment = nn.Embedding(2, 6)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.token(input_ids) + self.segment((input_ids > 9).long()))

    ids = torch.randint(0, 20, (4, 5))
    tags, memory = ids % 2, vizlog.Memory()
    probes, batch = [SaliencyMaps(), vizlog.Embeddings(methods="pca")], FixedBatch(ids, tags, tokens=WORDS)
    with vizlog.Monitor(Segments(), probes, to=memory, batch=batch) as monitor, monitor.step():
        pass
    ((_, maps),), ((_, points),) = memory.of("saliency/gradient"), memory.of("embeddings/head.input")
    assert isinstance(maps, Heatmaps)
    assert maps.titles == [f"example {number}: class {int(tags[number, -1])}" for number in range(4)]
    assert "of the true class, at the last position" in maps.caption
    assert "colour: class" in points.caption


def test_gradcam_of_tokens_has_a_value_for_each() -> None:
    class Convolves(Reviews):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(6, 4, 3, stride=2, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.convolution(self.token(input_ids).transpose(1, 2)).relu().mean(2))

    batch = FixedBatch(torch.randint(0, 20, (3, 8)), tokens=WORDS)
    record = drawn(SaliencyMaps(), Convolves(), batch)["saliency/gradcam/predicted"]
    assert record.values.shape == (3, 1, 8)
    assert record.column_labels is not None


@pytest.mark.parametrize(
    ("shape", "layers", "drawn_as"),
    [
        ((12,), [nn.Linear(12, 3)], (1, 12)),
        ((2, 12), [nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(40, 3)], (2, 12)),
        ((7, 6, 5), [nn.Conv2d(7, 4, 3), nn.Flatten(), nn.Linear(48, 3)], (6, 5)),
        ((2, 4, 6, 5), [nn.Conv3d(2, 4, 3), nn.Flatten(), nn.Linear(96, 3)], (6, 5)),
    ],
    ids=["vectors", "series", "many channels", "volumes"],
)
def test_signals_of_every_shape_are_drawn(
    shape: tuple[int, ...], layers: list[nn.Module], drawn_as: tuple[int, int]
) -> None:
    model, inputs, labels = nn.Sequential(*layers), torch.randn(4, *shape), torch.tensor([0, 1, 2, 1])
    records = drawn(SaliencyMaps(), model, FixedBatch(inputs, labels))
    record = records["saliency/gradient"]
    assert record.values.shape == (4, *drawn_as)
    assert record.over is None
    assert ("saliency/gradcam" in records) == (len(layers) > 1)
    if len(shape) == 1:
        linear = layers[0]
        assert isinstance(linear, nn.Linear)
        order = record.titles
        expected = [linear.weight[int(title[-1])].tolist() for title in order]
        np.testing.assert_allclose(record.values[:, 0], expected, atol=1e-6)


def test_a_caption_speaks_of_pixels_channels_and_values_where_there_are_such() -> None:
    labels = torch.tensor([0, 1])
    said = {}
    shapes = ((3, 6, 6), (12, 6, 6), (5, 6, 3), (3, 4, 6, 6), (1, 6, 6), (1, 4, 6, 6), (9, 1, 1), (9,), (4, 9), (9, 4))
    for shape in shapes:
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
        records = drawn(SaliencyMaps(methods="gradient"), model, FixedBatch(torch.randn(2, *shape), labels))
        said[shape] = records["saliency/gradient"].caption
    assert "raising a pixel raises the score" in said[3, 6, 6]
    assert "raising a value raises the score" in said[9,]
    assert [", summed over channels" in caption for caption in said.values()] == [True] * 4 + [False] * 6
    assert said[4, 9].endswith("; rows: dimension 1 of the input, columns: dimension 2")
    assert said[9, 4].endswith("; rows: dimension 2 of the input, columns: dimension 1")


def test_channels_that_come_last_or_alone_are_told_from_places() -> None:
    labels = torch.tensor([0, 1])
    for shape, expected in (((5, 6, 3), (5, 6)), ((7, 1, 1), (1, 7))):
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
        batch = FixedBatch(torch.randn(2, *shape), labels)
        record = drawn(SaliencyMaps(methods="gradient"), model, batch)["saliency/gradient"]
        weight = model[1].weight.detach().reshape(2, *shape)  # type: ignore[union-attr, operator]
        of_places = weight.sum(-1) if shape[-1] == 3 else weight.reshape(2, 1, 7)
        assert record.values.shape == (2, *expected)
        assert (record.over is not None) == (shape[-1] == 3)
        np.testing.assert_allclose(record.values, of_places[batch.targets], atol=1e-6)


def test_of_large_maps_images_alone_keep_their_proportions() -> None:
    assert [block_of(shape, images=False) for shape in ((256, 512), (257, 10))] == [[1, 2], [2, 1]]
    assert [block_of(shape, images=True) for shape in ((256, 512), (1, 512))] == [[2, 2], [1, 2]]


def test_a_recurrent_model_is_explained() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.lstm(inputs)[0][:, -1])

    record = drawn(SaliencyMaps(), Recurrent(), FixedBatch(torch.randn(4, 6, 3)))["saliency/gradient/predicted"]
    assert record.values.shape == (4, 3, 6)  # the series lies along the width
    assert record.caption.endswith("; rows: dimension 2 of the input, columns: dimension 1")
    assert record.values.any()


def test_a_hidden_state_does_not_go_from_one_run_to_the_next() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)
            self.state = torch.ones(5)

        def forward(self, x: Tensor) -> Tensor:
            found = self.head(torch.tanh(x + self.state))
            self.state = self.state + x.detach().mean(0)
            return found

    model, x = Remembers(), torch.randn(20, 5)
    batch = FixedBatch(x, torch.arange(20) % 3)
    record = drawn(SaliencyMaps(methods="gradient", examples=20), model, batch)["saliency/gradient"]
    assert isinstance(batch.inputs, Tensor)
    assert batch.labels is not None
    slope = 1 - torch.tanh(batch.inputs + 1).square()
    np.testing.assert_allclose(record.values[:, 0], (slope * model.head.weight[batch.labels]).detach(), atol=1e-6)


class OfAll(nn.Module):
    """Classes out of whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.LazyLinear(7)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        given = [*inputs, *(part for name, part in named.items() if name != "attention_mask")]
        parts = [part if part.is_floating_point() else self.embedding(part) for part in given]
        return self.head(torch.cat([part.flatten(1) for part in parts], 1))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.randn(4, 3), ""),
        ((torch.randn(4, 3), torch.randn(4, 3)), "; of 2 inputs the first is explained"),
        ((torch.arange(4), torch.randn(4, 3)), "; of 2 inputs number 2 is explained"),
        (
            {"job": torch.arange(4), "city": torch.arange(4), "numbers": torch.randn(4, 2)},
            "; of 3 inputs numbers is explained",
        ),
        ({"input_ids": torch.arange(4)[:, None], "attention_mask": torch.ones(4, 1)}, ""),
        (
            {"input_ids": torch.arange(4)[:, None], "numbers": torch.randn(4, 2)},
            "; of 2 inputs input_ids is explained",
        ),
    ],
)
def test_of_several_inputs_the_caption_says_which_is_explained(inputs: Any, said: str) -> None:
    batch, model = FixedBatch(inputs), OfAll()
    batch.run({"": model})  # which makes its parameters
    (record,) = drawn(SaliencyMaps(methods="gradient"), model, batch).values()
    assert record.caption.endswith(f"4 examples of the fixed batch, eval mode{said}")


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_has_no_classes_is_scored_by_minus_the_loss(reduction: str) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, target, reduction=reduction)

    model, inputs = nn.Linear(6, 6), torch.randn(4, 6)
    batch = FixedBatch(inputs, inputs, loss=loss)
    records = drawn(SaliencyMaps(), model, batch)
    assert list(records) == ["saliency/gradient"]
    # d/dx of −mean((Wx + b − t)²), with the target t held fixed
    expected = -2 / 6 * (model(batch.inputs) - batch.targets) @ model.weight
    np.testing.assert_allclose(records["saliency/gradient"].values[:, 0], expected.detach().numpy(), atol=1e-6)
    assert "minus the loss" in records["saliency/gradient"].caption
    losses = (model(batch.inputs) - batch.targets).square().mean(1).tolist()
    assert list(records["saliency/gradient"].notes) == [f"loss {each:.3g}" for each in losses]


def test_of_one_logit_that_one_is_explained_and_its_value_noted_beside_the_target() -> None:
    model, inputs, targets = nn.Linear(5, 1), torch.randn(3, 5), torch.rand(3)
    records = drawn(SaliencyMaps(), model, FixedBatch(inputs, targets))
    assert list(records) == ["saliency/gradient"]
    record = records["saliency/gradient"]
    np.testing.assert_allclose(record.values[:, 0], model.weight.expand(3, 5).detach().numpy(), atol=1e-6)
    outputs = model(inputs)[:, 0].tolist()
    assert record.notes == [f"output {y:.3g}, target {t:.3g}" for y, t in zip(outputs, targets.tolist(), strict=True)]
    alone = drawn(SaliencyMaps(), model, FixedBatch(inputs))["saliency/gradient"]
    assert alone.notes == [f"output {y:.3g}" for y in outputs]
    margin = drawn(SaliencyMaps(), model, FixedBatch(inputs, torch.tensor([-1, 1, -1])))["saliency/gradient"]
    assert sorted(title.partition(": ")[2] for title in margin.titles) == ["class -1", "class -1", "class 1"]


class OverSteps(nn.Module):
    """A convolution over the steps of (N, C, L), or of (N, L, C) turned."""

    def __init__(self, channels: int, *, turned: bool = False) -> None:
        super().__init__()
        self.convolution, self.head, self.turned = nn.Conv1d(channels, 4, 3, padding=1), nn.Linear(4, 3), turned

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.turned else x
        return self.head(self.convolution(x).relu().amax(2))


@pytest.mark.parametrize("turned", [False, True])
def test_gradcam_of_a_convolution_over_steps_and_channels_lies_as_the_series_does(*, turned: bool) -> None:
    """Bright where the only bright part is: late, in low channels."""

    class OverBoth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 1, stride=2)
            nn.init.ones_(self.convolution.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2) if turned else x
            score = self.convolution(x[:, None]).flatten(1).sum(1)
            return torch.stack([score, -score], 1)

    x = torch.zeros(4, 60, 20)
    x[:, 40:50, 2:6] = 1.0
    record = drawn(SaliencyMaps(methods="gradcam", target=0), OverBoth(), FixedBatch(x))["saliency/gradcam/class-0"]
    assert record.values.shape == (4, 10, 30)
    assert record.over is not None
    bright = np.zeros((10, 30), bool)
    bright[1:3, 20:25] = True
    assert (record.values[0][bright] > record.values[0][~bright].max()).all()


@pytest.mark.parametrize(
    ("x", "model", "drawn_over"),
    [
        (torch.randn(4, 1, 40), OverSteps(1), {"gradient", "gradcam"}),
        (torch.randn(4, 3, 40), OverSteps(3), {"gradient", "gradcam"}),
        # Over which of the two dimensions a convolution runs is known of channels first alone.
        (torch.randn(4, 40, 3), OverSteps(3, turned=True), {"gradient"}),
        (torch.randn(4, 3, 12), OverSteps(3), set()),
        (torch.randn(4, 80), nn.Linear(80, 3), {"gradient"}),
        (torch.randn(4, 40), nn.Linear(40, 3), set()),  # rather a table
    ],
)
def test_a_series_stands_over_its_map_as_lines(x: Tensor, model: nn.Module, drawn_over: set[str]) -> None:
    batch = FixedBatch(x, torch.arange(4) % 3)
    records = drawn(SaliencyMaps(target=0), model, batch)
    assert {tag.split("/")[1] for tag, record in records.items() if record.over is not None} == drawn_over
    for record in records.values():
        assert ("; the input on one scale in all examples" in record.caption) is (record.over is not None)
        if record.over is not None:
            assert isinstance(batch.inputs, Tensor)
            series = batch.inputs.transpose(1, 2) if model.__dict__.get("turned") else batch.inputs
            np.testing.assert_array_equal(record.over, traces(series.reshape(4, -1, series.shape[-1])))


@pytest.mark.parametrize(
    ("other", "stands"),
    [
        (torch.randn(4, 1, 80), False),
        (torch.randn(4, 80), False),
        (torch.ones(4, 40), True),  # a mask
        (torch.randn(4, 3), True),
        (torch.full((4,), 40), True),
    ],
)
def test_gradcam_stands_on_a_series_where_no_other_input_is_one(other: Tensor, *, stands: bool) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 3, 3), nn.Conv1d(1, 3, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            if stands:
                return self.a(a).mean(2) + b.reshape(len(b), -1).float().sum(1, keepdim=True)
            return self.a(a).mean(2) + self.b(b.view(len(b), 1, -1)).mean(2)

    batch = FixedBatch((torch.randn(4, 2, 40), other), torch.tensor([0, 1, 2, 0]))
    records = drawn(SaliencyMaps(methods=["gradient", "gradcam"], target=0), Beside(), batch)
    assert records["saliency/gradient/class-0"].over is not None
    assert (records["saliency/gradcam/class-0"].over is not None) is stands


@pytest.mark.parametrize(
    ("ends_in", "targets", "over"),
    [
        (nn.Identity(), [0, 1, 1, 0], 0.0),
        (nn.Flatten(0), [0.0, 1.0, 1.0, 0.0], 0.0),
        (nn.Sigmoid(), [0, 1, 1, 0], 0.5),
        (nn.Identity(), [-1, 1, 1, -1], 0.0),
    ],
)
def test_of_one_number_for_two_classes_it_is_said_which_one_it_predicts(
    ends_in: nn.Module, targets: list[float], over: float
) -> None:
    model, inputs = nn.Sequential(nn.Linear(5, 1), ends_in), torch.randn(4, 5)
    batch = FixedBatch(inputs, targets)
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient"]
    assert f"one number an example, over {over:g} class 1; 4 examples" in record.caption
    for note, value, row in zip(record.notes, model(batch.inputs).flatten().tolist(), batch.ids.tolist(), strict=True):
        guess = 1 if value > over else int(min(targets))
        assert note == f"predicted class {guess} (output {value:.3g}{'' if guess == targets[row] else ', wrong'})"


class Gated(nn.Module):
    """One logit, of what a gate lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.gate(x))


@pytest.mark.parametrize(
    ("model", "over"), [(Gated(), 0.0), (nn.Sequential(nn.Linear(5, 1), nn.Hardsigmoid(), nn.Flatten(0)), 0.5)]
)
def test_a_gate_makes_no_probability_of_a_logit_and_a_hard_sigmoid_does(model: nn.Module, over: float) -> None:
    batch = FixedBatch(torch.randn(4, 5), [0, 1, 1, 0])
    assert f"over {over:g} class 1" in drawn(SaliencyMaps(), model, batch)["saliency/gradient"].caption


def test_the_classes_of_a_margin_have_their_names() -> None:
    model, names = nn.Linear(5, 1), ["no", "yes"]
    batch = FixedBatch(torch.randn(4, 5), torch.tensor([-1, 1, 1, -1]), class_names=names)
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient"]
    assert sorted(record.titles) == ["example 0: no", "example 1: yes", "example 2: yes", "example 3: no"]
    guesses = ["yes" if value > 0 else "no" for value in model(batch.inputs).flatten().tolist()]
    assert [note.split()[1] for note in record.notes] == guesses


def test_one_number_of_an_own_score_or_of_three_named_classes_predicts_none() -> None:
    inputs, targets = torch.randn(4, 5), torch.tensor([0, 1, 1, 0])
    for batch in (
        FixedBatch(inputs, targets, score=lambda output: output),
        FixedBatch(inputs, targets, class_names=["a", "b", "c"]),
    ):
        model = nn.Linear(5, 1)
        notes = drawn(SaliencyMaps(), model, batch)["saliency/gradient"].notes
        assert notes == [f"output {value:.3g}" for value in model(batch.inputs)[:, 0].tolist()]


def test_what_rebuilds_an_image_leaves_gradcam_to_be_asked_for() -> None:
    model, images = (
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)),
        torch.rand(4, 1, 8, 8),
    )
    batch = FixedBatch(images, images, loss=lambda output, targets: (output - targets).square().mean((1, 2, 3)))
    assert list(drawn(SaliencyMaps(), model, batch)) == ["saliency/gradient"]
    assert list(drawn(SaliencyMaps(methods="gradcam"), model, batch)) == ["saliency/gradcam"]


def test_attention_after_the_last_convolution_leaves_gradcam_to_be_asked_for() -> None:
    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 8, 2, stride=2)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))

    batch = FixedBatch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert "saliency/gradcam" not in drawn(SaliencyMaps(), Vision(), batch)
    assert drawn(SaliencyMaps(methods="gradcam"), Vision(), batch)["saliency/gradcam"].values.shape == (4, 4, 4)


def test_it_runs_under_the_training_forwards_autocast(model: nn.Sequential, batch: FixedBatch) -> None:
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    records = drawn(
        SaliencyMaps(methods=["gradient", "gradcam"], target=0),
        model,
        batch,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert set(seen[1:]) == {torch.bfloat16}  # the first is the survey's
    assert all(record.values.dtype == np.float32 for record in records.values())
    np.testing.assert_allclose(
        records["saliency/gradient/class-0"].values,
        captum_gradient(model, batch.inputs[:8], torch.zeros(8, dtype=torch.int64)),
        atol=0.1,
    )


# Training is left alone, and what does not fit is said ---------------------------------------------------------------


def test_nothing_of_the_training_is_touched(model: nn.Sequential, batch: FixedBatch) -> None:
    model(batch.inputs).sum().backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    random_state = torch.get_rng_state()
    drawn(SaliencyMaps(methods=["gradient", "smoothgrad", "integrated_gradients", "gradcam"], samples=2), model, batch)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(
        parameter.grad is not None and torch.equal(parameter.grad, gradient)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_monitor_writes_them_at_due_steps(model: nn.Sequential, batch: FixedBatch) -> None:
    import vizlog

    memory = vizlog.Memory()
    probe = SaliencyMaps(
        every=2, target=0, methods=["integrated_gradients", "gradcam"], baseline=torch.full((8, 8), 0.5)
    )
    with vizlog.Monitor(model, [probe], to=memory, batch=batch) as monitor:
        for _ in range(3):
            with monitor.step():
                model(batch.inputs).sum().backward()
    for method in ("integrated_gradients", "gradcam"):
        assert [step for step, _ in memory.of(f"saliency/{method}/class-0")] == [0, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": "gradcm"}, ValueError, "takes any of gradient, smoothgrad, .*got gradcm"),
        ({"methods": []}, ValueError, "got none"),
        ({"examples": 0}, ValueError, r"SaliencyMaps\(examples=\) needs a number >= 1, got 0"),
        ({"samples": 0}, ValueError, r"samples=\)"),
        ({"steps": 0}, ValueError, r"steps=\)"),
        ({"target": 1.5}, TypeError, "takes 'true', 'predicted' or a class, got 1.5"),
        ({"every": 0}, ValueError, "n >= 1, got n=0"),
    ],
)
def test_wrong_options_are_said_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SaliencyMaps(**options)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (SaliencyMaps("conv*"), r"no convolution that runs on the batch matches 'conv\*'.*'0', '3'"),
        (SaliencyMaps(target=10), "10 is not a class: there are 10 logits, 0 to 9"),
        (SaliencyMaps(baseline=torch.zeros(100, 1, 8, 8)), r"one example, \(1, 8, 8\), got \(100, 1, 8, 8\)"),
        (SaliencyMaps(target="cat"), r"needs FixedBatch\(class_names=...\)"),
    ],
)
def test_what_the_model_lacks_is_said_when_built(
    model: nn.Sequential, batch: FixedBatch, probe: SaliencyMaps, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bound(probe, model, batch)


def test_of_scores_for_each_pixel_the_message_says_how_they_become_one() -> None:
    model, images = nn.Conv2d(1, 3, 3, padding=1), torch.randn(4, 1, 6, 6)
    masks = torch.randint(0, 3, (4, 6, 6))
    with pytest.raises(ValueError, match=r"\(N, classes\), as output.mean\(\(2, 3\)\) of scores for each pixel, or"):
        bound(SaliencyMaps(), model, FixedBatch(images, masks))
    with pytest.raises(ValueError, match=r"which returns \(N, classes\), or FixedBatch\(loss=…\)"):
        bound(SaliencyMaps(), model, FixedBatch(images, torch.randn(4, 3, 6, 6)))


def test_a_batch_that_cannot_be_explained_is_said_when_built(batch: FixedBatch) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="needs examples to explain"):
        bound(SaliencyMaps(), flat, None)
    with pytest.raises(ValueError, match="Grad-CAM needs a convolution"):
        bound(SaliencyMaps(methods="gradcam"), flat, batch)
    with pytest.raises(ValueError, match="finds no score to explain"):
        bound(SaliencyMaps(), nn.Conv2d(1, 1, 3, padding=1), FixedBatch(batch.inputs))
    with pytest.raises(ValueError, match="there are 10 logits, 0 to 9, but a target is 11"):
        bound(SaliencyMaps(), flat, FixedBatch(batch.inputs, torch.full((100,), 11)))
    reconstructs = FixedBatch(batch.inputs, loss=lambda output, target: output.flatten(1).sum(1))
    with pytest.raises(ValueError, match="needs class scores, but the model gives a loss"):
        bound(SaliencyMaps(target=1), nn.Conv2d(1, 1, 3, padding=1), reconstructs)

    class OneHot(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids, 20).float().mean(1)

    said = r"token ids \(N, T\) that an nn.Embedding takes all at once, got int64 \(2, 4\), taken otherwise$"
    with pytest.raises(ValueError, match=said):  # as of a loop over time steps
        bound(SaliencyMaps(), OneHot(), FixedBatch(torch.randint(0, 20, (2, 4))))


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(1)])
def test_a_model_that_ends_in_softmax_is_explained_as_without(last: nn.Module) -> None:
    """Where a class is all but certain its probability has no gradient: the maps would be blank."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():  # opposite weights: then the mean logit depends on nothing
        body[1].weight[1] = -body[1].weight.mul_(20)[0]
    batch = FixedBatch(torch.randn(8, 1, 8, 8), torch.arange(8) % 2)
    plain, ended = (drawn(SaliencyMaps(methods=["gradient"]), m, batch) for m in (body, nn.Sequential(body, last)))
    assert plain.keys() == ended.keys()
    for tag, record in plain.items():
        assert np.abs(record.values).max() > 1
        np.testing.assert_allclose(record.values, ended[tag].values, rtol=1e-3, atol=1e-3)
        assert record.notes == ended[tag].notes


def test_a_score_of_ones_own_is_explained_as_it_is() -> None:
    model, x = nn.Linear(5, 3), torch.randn(4, 5, requires_grad=True)
    batch = FixedBatch(x.detach(), torch.zeros(4).long(), score=lambda output: output.softmax(1))
    record = drawn(SaliencyMaps(methods="gradient"), model, batch)["saliency/gradient"]
    (expected,) = torch.autograd.grad(model(x).softmax(1)[:, 0].sum(), x)
    np.testing.assert_allclose(record.values[:, 0], expected.numpy(), atol=1e-6)


def test_several_labels_are_told_by_the_likeliest_and_by_those_that_are_true() -> None:
    model, x = nn.Linear(6, 3), torch.randn(4, 6)
    sets = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
    batch = FixedBatch(x, sets, class_names=["cat", "dog", "hat"])
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient/predicted"]
    assert list(record.titles) == ["example 0: none", "example 1: cat", "example 2: cat, dog", "example 3: hat"]
    share, label = model(x).detach().sigmoid().max(1)
    name = batch.class_names[int(label[0])]
    assert record.notes[0] == f"explains {name}; likeliest {name} ({float(share[0]):.0%})"
    assert "the logit (before sigmoid) of the likeliest label" in record.caption
    ended = drawn(SaliencyMaps(), nn.Sequential(model, nn.Sigmoid()), batch)["saliency/gradient/predicted"]
    assert record.notes == ended.notes


def test_of_a_video_the_middle_frame_is_shown_and_the_caption_says_so() -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5 * 3 * 8 * 8, 2)

        def forward(self, frames: Tensor) -> Tensor:
            return self.head(frames.flatten(1))

    model, frames = Video(), torch.randn(4, 5, 3, 8, 8)
    batch = FixedBatch(frames, torch.arange(4) % 2)
    record = drawn(SaliencyMaps(methods="gradient"), model, batch)["saliency/gradient"]
    weights = model.head.weight.detach().view(2, 5, 3, 8, 8)[batch.targets]
    np.testing.assert_allclose(record.values, weights[:, 2].sum(1).numpy(), atol=1e-6)
    assert "of 5 frames the middle one" in record.caption
    gray = FixedBatch(torch.randn(4, 1, 15, 8, 8), torch.arange(4) % 2)
    assert "of 15 slices the middle one" in drawn(SaliencyMaps(), model, gray)["saliency/gradient"].caption
    convolves = nn.Sequential(nn.Conv3d(3, 2, 3, stride=2), nn.Flatten(), nn.Linear(36, 2))
    cam = drawn(SaliencyMaps(), convolves, FixedBatch(frames.transpose(1, 2)))["saliency/gradcam/predicted"]
    assert "; of the frames the middle one" in cam.caption  # a convolution leaves another number of them


@pytest.mark.parametrize("channels", [1, 2])
def test_four_frames_of_colours_are_a_video_wherever_their_channels_are(channels: int) -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(12, 4, 3)
            self.head = nn.Linear(4 * 4 * 3, 2)

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(self.layer(clips.flatten(1, 2)).flatten(1))

    model, clips = Video(), torch.rand(4, 12, 6, 5).unflatten(1, (4, 3) if channels == 2 else (3, 4))
    batch = FixedBatch(clips, torch.arange(4) % 2)
    records = drawn(SaliencyMaps(), model, batch)
    record, cam = records["saliency/gradient"], records["saliency/gradcam"]
    leaf = batch.inputs.clone().requires_grad_()
    (weights,) = torch.autograd.grad(model(leaf).gather(1, batch.targets[:, None]).sum(), leaf)
    middle = weights.select(3 - channels, 2)
    np.testing.assert_allclose(record.values, middle.sum(1), atol=1e-6)
    assert record.over is not None
    seen = batch.inputs.select(3 - channels, 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(record.over, (seen * 255).round().byte())
    assert record.caption.endswith("eval mode; of 4 frames the middle one")
    assert "frames" not in cam.caption  # the convolution sees all of them at once


def test_what_was_measured_in_a_volume_is_no_colour_nor_is_what_its_mean_does_not_fit() -> None:
    labels = torch.arange(4) % 2
    for shape, mean in (((4, 5, 6, 6), None), ((1, 5, 6, 6), (0.5, 0.5, 0.5)), ((5, 6, 4), None)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
        record = drawn(SaliencyMaps(), model, FixedBatch(torch.rand(4, *shape), labels, mean=mean))["saliency/gradient"]
        assert record.over is None
        assert record.caption.endswith("of 5 slices the middle one") == (len(shape) == 4)


def test_a_tagger_is_explained_at_the_last_position_and_says_so() -> None:
    class Tagger(Reviews):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(20, 6, padding_idx=0)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.token(input_ids))

    model, ids = Tagger(), torch.tensor([[4, 7, 2, 0], [3, 5, 0, 0]])
    met = survey({"": model}, FixedBatch(ids)).batch
    record = drawn(SaliencyMaps(), model, met)["saliency/gradient/predicted"]
    assert "of the predicted class, at the last position" in record.caption
    assert record.values.shape == (2, 1, 3)  # the fourth is padding in both
    assert [row.nonzero()[1].tolist() for row in record.values] == [[2], [1]]


@pytest.mark.parametrize("hidden", [True, False])
def test_a_text_is_explained_at_the_last_position_that_has_a_label(*, hidden: bool) -> None:
    """A separator and words that are not masked have none, and the model learns nothing there."""

    class Fills(Reviews):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 20 if hidden else 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(self.token(input_ids).cumsum(1))

    model, ids = Fills(), torch.tensor([[4, 7, 2, 9], [3, 5, 8, 9]])
    labels = torch.tensor([[-100, 1, -100, -100], [-100, 0, 2, -100]])
    batch = FixedBatch(ids, labels, tokens=WORDS)
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient"]
    embedded = model.token(ids)
    expected = torch.einsum("ntd,nd->nt", embedded, model.head.weight[[1, 2]]) * torch.tensor([[1, 1, 0, 0], [1] * 4])
    expected[1, 3] = 0
    np.testing.assert_allclose(record.values[:, 0], expected.detach().numpy(), atol=1e-6)
    kind = "token" if hidden else "class"
    assert f"of the true {kind}, at the last position that has a label" in record.caption
    predicted = [int(model(ids)[row, at].argmax()) for row, at in enumerate((1, 2))]
    names = [repr(WORDS[number]) if hidden else f"class {number}" for number in (2, predicted[1])]
    assert record.titles[1] == f"example 1: {names[0]}"
    assert record.notes[1].startswith(f"target {names[0]} at 'w8'; predicted {names[1]} (")
    assert record.notes[1].endswith(", wrong)") == (predicted[1] != 2)

    wrong = [row for row, true in enumerate((1, 2)) if predicted[row] != true]
    mistakes = drawn(SaliencyMaps(), model, batch).get("saliency/gradient/predicted")
    assert (len(mistakes.values) if mistakes else 0) == len(wrong)


def test_a_table_whose_categories_are_offset_is_explained_by_its_numbers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.categories, self.head = nn.Embedding(10, 4), nn.Linear(4 + 3, 2)

        def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
            looked_up = self.categories(categories + torch.tensor([0, 5])).sum(1)
            return self.head(torch.cat([looked_up, numbers], 1))

    inputs = torch.randn(4, 3), torch.randint(0, 5, (4, 2))
    batch = FixedBatch(inputs, torch.arange(4) % 2, feature_names=["a", "b", "c"])
    record = drawn(SaliencyMaps(), Mixed(), batch)["saliency/gradient"]
    assert record.column_labels is not None
    assert record.column_labels[0] == ["a", "b", "c"]


def test_pixels_of_a_drawing_are_no_labels() -> None:
    model, drawings = nn.Linear(36, 36), (torch.rand(4, 36) > 0.5).float()
    batch = FixedBatch(drawings, drawings, loss=lambda output, targets: (output - targets).square().mean(1))
    record = drawn(SaliencyMaps(), model, batch)["saliency/gradient"]
    assert list(record.titles) == [f"example {number}" for number in range(4)]
