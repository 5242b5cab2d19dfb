"""What the probes show, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD

import vizlog
from vizlog.probes import activations
from vizlog.probes.base import Context, Figures
from vizlog.probes.health import draw
from vizlog.probes.parameters import added_or_skipped
from vizlog.probes.updates import _squares
from vizlog.records import Curves, Heatmaps, Histogram, Images, Scalar


def seen(model: nn.Module, *probes: vizlog.Probe, batch: Any = None, backward: Any = None) -> vizlog.Memory:
    """One step of the monitor, without an optimizer."""
    memory = vizlog.Memory()
    with vizlog.Monitor(model, probes, to=memory, batch=batch) as monitor, monitor.step():
        if backward is not None:
            backward(model)
    return memory


def only(memory: vizlog.Memory, tag: str) -> Any:
    ((_, record),) = memory.of(tag)
    return record


def curve(memory: vizlog.Memory, kind: str, line: str | None = None) -> dict[str, float]:
    """A health curve as layer -> figure."""
    record = only(memory, f"health/{kind}")
    assert isinstance(record, Curves)
    return dict(zip(record.x_names or (), record.ys[line or kind].tolist(), strict=True))


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


# Histograms -----------------------------------------------------------------------------------------------------------


def test_a_histogram_of_weights_counts_what_is_there() -> None:
    model = nn.Sequential(linear([[1.0, -2.0, 0.0], [float("nan"), float("inf"), -0.0]]))
    record = only(seen(model, vizlog.WeightHistograms()), "weights/0.weight")
    assert isinstance(record, Histogram)
    assert (record.count, record.zeros, record.nans, record.pos_infs, record.neg_infs) == (6, 2, 1, 1, 0)
    assert (record.min, record.max, record.counts.sum()) == (-2.0, 1.0, 4)
    assert record.mean == pytest.approx(-0.25)


def test_at_most_so_many_are_drawn_spread_over_the_depth_and_health_covers_all() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(9)])
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")  # type: ignore[index, operator]
    memory = seen(model, vizlog.WeightHistograms(most=3))
    drawn = [record.tag for _, record in memory.records if record.tag.startswith("weights/")]
    assert drawn == ["weights/0.weight", "weights/4.weight", "weights/8.weight"]
    assert curve(memory, "nonfinite", "weights")["1"] == 0.25
    assert only(memory, "health/nonfinite_worst").value == 0.25
    assert only(memory, "health/nonfinite_mean").value == pytest.approx(0.25 / 9)


def test_linear_layers_that_have_no_zeros_do_not_cut_the_curve_of_those_that_do() -> None:
    figures = Figures("zeros", {"fc": 0.0, "relu": 0.5, "out": 0.0, "gelu": 0.0}, "of all", quiet={"fc", "out"})
    worst, mean, drawn = draw([figures])
    assert isinstance(worst, Scalar) and isinstance(mean, Scalar) and isinstance(drawn, Curves)  # noqa: PT018
    assert (worst.value, mean.value) == (0.5, 0.125)  # they count
    assert (drawn.x_names, drawn.ys["zeros"].tolist()) == (["relu", "gelu"], [0.5, 0.0])
    assert drawn.caption == "of all; not drawn: 2 of 4 layers, linear ones in which it is 0"
    for values in ({"fc": 0.1, "relu": 0.5}, {"fc": 0.0, "relu": 0.0}, {"fc": 0.0, "out": 0.0}):  # dead; none at all
        *_, drawn = draw([Figures("zeros", values, "of all", quiet={"fc", "out"})])
        assert isinstance(drawn, Curves)
        assert (drawn.x_names, drawn.caption) == (list(values), "of all")


def test_the_mean_of_nonfinite_values_counts_each_layer_once() -> None:
    figures = [
        Figures("nonfinite", {"a": 1.0, "b": 0.0}, source="weights"),
        Figures("nonfinite", {"a": 0.5, "b": 0.0, "c": 0.0}, source="activations"),
        Figures("nonfinite", {"a": 1.0}, source="gradients"),
    ]
    worst, mean, _ = draw(figures)
    assert (worst.value, mean.value) == (1.0, pytest.approx(1 / 3))
    assert "over 3 layers" in mean.caption


@pytest.mark.parametrize(("worst", "expected"), [("highest", (0.9, 0.75)), ("lowest", (0.2, 0.35))])
def test_of_the_sources_of_a_layer_the_worst_counts(worst: Any, expected: tuple[float, float]) -> None:
    parts = [{"a": 0.5, "b": 0.6}, {"a": 0.9, "b": 0.2}, {"a": math.nan}]
    lines = [Figures("own", values, source=str(k), worst=worst) for k, values in enumerate(parts)]
    most, mean, curves = draw(lines)
    assert isinstance(most, Scalar)
    assert isinstance(mean, Scalar)
    assert (most.value, mean.value) == pytest.approx(expected)
    assert most.caption == f"the {worst} of 2 layers; "
    assert isinstance(curves, Curves)
    assert list(curves.ys) == ["0", "1", "2"]


def test_norms_and_ratios_are_drawn_on_a_logarithmic_axis_if_any_is_above_zero() -> None:
    def is_logarithmic(kind: str, *values: float) -> bool:
        *_, curves = draw([Figures(kind, dict(zip("ab", values, strict=False)))])
        assert isinstance(curves, Curves)
        return curves.log_y

    for kind in ("gradient_norm", "update_ratio"):
        assert is_logarithmic(kind, 0.0, 2.0)
        assert not is_logarithmic(kind, 0.0, math.nan)
    assert not is_logarithmic("zeros", 0.0, 1.0)


def test_filters_whose_memory_was_given_up_are_left_out_of_that_step_alone() -> None:
    model, memory = nn.Conv2d(1, 4, 3), vizlog.Memory()
    weight, size = model.weight.detach().clone(), model.weight.untyped_storage().nbytes()
    with vizlog.Monitor(model, [vizlog.FilterImages(every=1)], to=memory) as monitor:
        for step in range(3):
            with monitor.step():
                if step == 1:
                    model.weight.untyped_storage().resize_(0)
            if step == 1:
                model.weight.untyped_storage().resize_(size)
                model.weight.data.copy_(weight)
    assert [step for step, record in memory.records if record.tag.startswith("filters/")] == [0, 2]


def test_a_frozen_parameter_has_no_gradient_and_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    memory = seen(model, vizlog.GradientHistograms(), backward=lambda model: model(torch.ones(1, 2)).sum().backward())
    assert not memory.of("gradients/0.weight")
    assert memory.of("gradients/1.weight")


def test_captions_of_gradients_say_how_they_were_read() -> None:
    model, memory = nn.Linear(2, 2), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms()]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    used = "as the optimizer used it: unscaled, after clipping"
    assert only(memory, "gradients/weight").caption == f"gradient of weight, {used}"
    assert used in only(memory, "health/gradient_norm").caption
    memory = seen(model, vizlog.GradientHistograms())
    how = "before the optimizer: not clipped, scaled as the loss was"
    assert only(memory, "gradients/weight").caption == f"gradient of weight, {how}"


def test_why_no_parameter_has_a_gradient_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def said(*, optimizer: bool) -> list[str]:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        sgd, probe = SGD(model.parameters(), lr=0.1), vizlog.GradientHistograms("0.*", every=1)
        caplog.clear()
        with vizlog.Monitor(model, [probe], to=None, optimizer=sgd if optimizer else None) as monitor:
            for _ in range(2):
                with monitor.step():
                    model[1](torch.ones(1, 2)).sum().backward()
                    sgd.step()
        return [message for message in caplog.messages if "none of the selected parameters" in message]

    none = "vizlog: none of the selected parameters "
    assert said(optimizer=True) == [none + "had a gradient when the optimizer stepped"]
    (message,) = said(optimizer=False)
    assert message.startswith(none + "had a gradient at the end of the step: give optimizer=, or zero them later; ")
    assert "torch.func" in message


class Course(nn.Module):
    """Activations are functions: there is no module for them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = linear([[1.0], [-1.0], [0.0], [1.0]], [0.0, 0.0, 0.0, -10.0])
        self.fc2 = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.fc2(F.relu(self.fc1(x))), dim=-1)


def test_activations_of_functions_are_shown_and_their_health_is_as_counted_by_hand() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0]])
    memory = seen(Course(), vizlog.ActivationHistograms(), batch=x)
    relu = only(memory, "activations/relu")
    assert (relu.count, relu.zeros, relu.max) == (12, 9, 3.0)  # unit 0 passes, 1 is negative, 2 is zero, 3 below −10
    assert curve(memory, "dead_units")["relu"] == 0.75
    assert curve(memory, "zeros")["relu"] == 0.75
    assert curve(memory, "zeros")["fc1"] == 0.25
    assert "first 3 examples of the fixed batch" in only(memory, "health/dead_units").caption
    assert math.isnan(curve(memory, "saturated").get("relu", math.nan))


def test_a_caption_says_in_how_many_live_forwards_its_own_layer_ran() -> None:
    generator, critic, memory = nn.Linear(2, 3), nn.Linear(3, 1), vizlog.Memory()
    probe = vizlog.ActivationHistograms()
    with vizlog.Monitor({"G": generator, "D": critic}, [probe], to=memory) as monitor, monitor.step():
        made = generator(torch.randn(4, 2))
        (critic(torch.randn(4, 3)) + critic(made.detach()) + critic(made)).sum().backward()
    assert only(memory, "activations/G").caption == "output of G, live forward of this step"
    assert only(memory, "activations/D").caption == "output of D, 3 live forwards of this step"
    assert (only(memory, "activations/G").count, only(memory, "activations/D").count) == (12, 12)


@pytest.mark.parametrize("whole", [True, False])
def test_a_caption_says_where_other_rows_run_beside_the_examples(*, whole: bool) -> None:
    def forward(model: nn.Module, rows: Tensor) -> Tensor:
        return model(x)[rows] if whole else model(x[rows])

    x, model = torch.randn(20, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    memory = seen(model, vizlog.ActivationHistograms(), batch=vizlog.FixedBatch(torch.arange(6), forward=forward))
    histogram = only(memory, "activations/1")
    assert histogram.count == (20 if whole else 6) * 4
    which = "first 6 examples of the fixed batch, eval mode"
    assert histogram.caption == f"output of 1, {'all rows that run for the ' if whole else ''}{which}"


def test_saturation_is_as_counted_by_hand() -> None:
    values = torch.tensor([[-9.0, 0.0, 9.0, 1.0]])
    model = nn.Sequential(nn.Identity(), nn.Sigmoid(), nn.Identity())
    memory = seen(model, vizlog.ActivationHistograms(), batch=values)
    assert curve(memory, "saturated")["1"] == 0.5
    memory = seen(nn.Sequential(nn.Hardtanh(-1, 2)), vizlog.ActivationHistograms(), batch=values)
    assert curve(memory, "saturated")["0"] == 0.5
    memory = seen(
        nn.Sequential(nn.Softmax(-1)),
        vizlog.ActivationHistograms(),
        batch=values.repeat(3, 1) * values.new_tensor([[1.0], [0], [0]]),
    )
    assert curve(memory, "saturated")["0"] == pytest.approx(1 / 3)  # one row of three has nearly all on one entry


def test_a_layer_that_gives_nan_alone_has_no_health_but_that() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sigmoid(), linear([[math.nan, 1.0], [1.0, 1.0]]), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = 0, 1  # type: ignore[index, operator]
    memory = seen(model, vizlog.ActivationHistograms(), batch=torch.ones(3, 2))
    assert curve(memory, "nonfinite", "activations")["3"] == 0.5
    assert curve(memory, "dead_units") == dict.fromkeys("01234", 0.0)  # half of a layer still tells
    with torch.no_grad():
        model[3].weight[:] = math.nan  # type: ignore[index, operator]
    memory = seen(model, vizlog.ActivationHistograms(), batch=torch.ones(3, 2))
    assert curve(memory, "nonfinite", "activations") == {**dict.fromkeys("012", 0.0), "3": 1.0, "4": 1.0}
    for kind in ("dead_units", "zeros"):
        assert [name for name, share in curve(memory, kind).items() if math.isnan(share)] == ["3", "4"]
    assert math.isnan(curve(memory, "saturated")["4"])
    assert "over 3 layers" in only(memory, "health/dead_units_mean").caption


def test_an_activation_with_one_limit_alone_has_no_share_that_is_saturated() -> None:
    memory = seen(nn.Sequential(nn.Hardtanh(0.0, math.inf)), vizlog.ActivationHistograms(), batch=torch.randn(5, 3))
    assert only(memory, "activations/0").count == 15
    assert not memory.of("health/saturated")


def test_dead_channels_are_found_where_they_have_been_moved_to_the_last_place() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 8, 3), nn.ReLU()
            with torch.no_grad():
                self.conv.weight[:3], self.conv.bias[:3] = 0, -1  # type: ignore[index]

        def forward(self, x: Tensor) -> Any:
            out: Tensor = self.relu(self.conv(x).permute(0, 2, 3, 1))
            self.dead = float((out == 0).all(0).all(0).all(0).float().mean())
            return out

    model = Stem()
    found = curve(seen(model, vizlog.ActivationHistograms(), batch=torch.rand(20, 1, 12, 6)), "dead_units")
    assert found["relu"] == pytest.approx(3 / 8)


def test_zeros_that_a_layer_only_passes_on_are_not_its_own() -> None:
    x = torch.cat([torch.zeros(4, 1, 3, 4), torch.rand(4, 1, 3, 4) + 0.1], dim=2)  # half of each picture is blank
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 6), nn.ReLU(), nn.Flatten(0))
    memory = seen(model, vizlog.ActivationHistograms(), batch=x)
    for kind in ("dead_units", "zeros"):
        assert list(curve(memory, kind)) == ["4"]
        assert only(memory, f"health/{kind}_mean").value == curve(memory, kind)["4"] / 2  # and of 3, which has none
    assert [only(memory, f"activations/{name}").count for name in "0125"] == [96, 96, 96, 24]
    assert list(curve(memory, "nonfinite", "activations")) == list("012345")


def test_zeros_of_padding_are_no_figures_of_the_embedding() -> None:
    ids = torch.tensor([[5, 3, 0, 0], [1, 2, 0, 0]])
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 6), nn.ReLU())
    memory = seen(model, vizlog.ActivationHistograms(), batch=ids)
    assert list(curve(memory, "zeros")) == ["2"]
    assert only(memory, "health/zeros_mean").value == curve(memory, "zeros")["2"] / 2  # and of 1, which has none
    assert only(memory, "activations/0").zeros == 16


def test_what_a_layer_hands_on_as_it_is_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = activations.count_bits
    monkeypatch.setattr(activations, "count_bits", lambda tensor: counted.append(tensor.shape) or count(tensor))
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Identity(), nn.ReLU(), nn.Linear(5, 5), nn.Dropout(0.5))
    x = torch.randn(7, 3)
    memory = seen(model, vizlog.ActivationHistograms(), batch=x)
    assert len(counted) == 3
    found = [only(memory, f"activations/{number}") for number in range(6)]
    expected = model[0](x).detach().double()
    for record in found[:3]:
        assert record.mean == pytest.approx(float(expected.mean()))
        assert (record.min, record.max) == (float(expected.min()), float(expected.max()))
    assert found[5].mean == pytest.approx(float(model.eval()(x).detach().double().mean()))
    assert found[3].zeros == int((expected <= 0).sum())


def test_what_a_layer_changes_in_place_is_counted_again() -> None:
    model = nn.Sequential(nn.Linear(30, 50), nn.Dropout(0.5, inplace=True))

    memory = seen(
        model, vizlog.ActivationHistograms(source="live"), backward=lambda model: model(torch.randn(8, 30)).sum()
    )
    assert only(memory, "activations/0").zeros == 0
    assert only(memory, "activations/1").zeros > 100


def test_what_a_layer_is_given_late_or_changes_unseen_is_counted_for_itself() -> None:
    class Kernel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.detach().numpy()[:] = 3.0  # as a compiled kernel does, of which autograd knows nothing
            return x

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.skip, self.kernel = linear([[2.0]]), nn.Identity(), Kernel()

        def forward(self, x: Tensor) -> Tensor:
            doubled = self.twice(self.twice(x))
            return self.kernel(doubled) + self.skip(x)

    memory = seen(Late(), vizlog.ActivationHistograms(), batch=torch.ones(4, 1))
    layers = ("twice", "twice@2", "skip", "kernel")
    assert [only(memory, f"activations/{layer}").mean for layer in layers] == [2.0, 4.0, 1.0, 3.0]


def test_activations_of_a_pass_in_inference_mode_are_counted() -> None:
    model, memory = nn.Sequential(nn.Linear(3, 5), nn.Identity()), vizlog.Memory()
    probes, batch = [vizlog.ActivationHistograms()], (torch.randn(7, 3), None)
    monitor = vizlog.Monitor(model, probes, to=memory, batch=batch, forward_context=torch.inference_mode)
    with monitor, monitor.step():
        pass
    assert [only(memory, f"activations/{number}").count for number in range(2)] == [35, 35]


def test_units_of_a_convolution_are_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # type: ignore[union-attr, operator]
        model[0].bias.copy_(torch.tensor([0.0, -100.0, -100.0, 0.0]))  # type: ignore[union-attr, operator]
    memory = seen(model, vizlog.ActivationHistograms(), batch=torch.rand(3, 1, 2, 2) + 0.1)
    assert curve(memory, "dead_units")["1"] == 0.5


def test_what_attention_puts_out_is_seen_though_its_projection_never_runs() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(4, 5, 8)
    with torch.no_grad():
        put_out, _ = model.eval().self_attn(x, x, x)
    record = only(seen(model, vizlog.ActivationHistograms(), batch=x), "activations/self_attn")
    assert (record.count, record.mean) == (put_out.numel(), pytest.approx(put_out.mean().item(), abs=1e-6))
    assert record.max == pytest.approx(put_out.max().item(), abs=1e-6)


def test_activations_of_the_batch_are_those_of_its_first_32_examples_in_eval_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2))
    x = torch.randn(50, 3)
    record = only(seen(model, vizlog.ActivationHistograms("1"), batch=x), "activations/1")
    expected = model[1](x[:32]).detach()
    assert (record.count, record.min, record.max) == (64, expected.min().item(), expected.max().item())


def test_layers_that_do_not_run_on_the_batch_and_a_batch_that_is_missing_are_named() -> None:
    with pytest.raises(ValueError, match=r"no layer that runs on the batch matches '1x'; the nearest names are '1'"):
        seen(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), vizlog.ActivationHistograms("1x"), batch=torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"ActivationHistograms\(source='batch'\) needs batch="):
        seen(nn.Linear(3, 2), vizlog.ActivationHistograms(source="batch"))


def test_live_activations_add_up_over_micro_batches() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())

    def micro_batches(model: nn.Module) -> None:
        for _ in range(3):
            model(torch.randn(5, 2)).sum().backward()

    record = only(seen(model, vizlog.ActivationHistograms(), backward=micro_batches), "activations/1")
    assert record.count == 30
    assert "live forward" in record.caption


@pytest.mark.parametrize("parts", [[20.0, -3.0], [20.0, -3.0, 1.0], [1.0, -3.0, 20.0]])
def test_health_of_live_activations_is_that_of_all_micro_batches_together(parts: list[float]) -> None:
    layers = linear([[1.0], [-1.0]], [0.0, 5.0]), nn.ReLU(), nn.Flatten(), nn.Sigmoid()

    def micro_batches(model: nn.Module) -> None:
        for part in parts:  # of the first unit or of the second nothing is seen at 20 and at -3, at 1 of both something
            model(torch.tensor([[part]]))

    memory = seen(nn.Sequential(*layers), vizlog.ActivationHistograms(), backward=micro_batches)
    assert curve(memory, "dead_units")["1"] == 0
    outputs = torch.cat([nn.Sequential(*layers)(torch.tensor([[part]])) for part in parts])
    share = float(((outputs < 0.02) | (outputs > 0.98)).float().mean())
    assert curve(memory, "saturated")["3"] == pytest.approx(share)
    assert list(curve(memory, "zeros")) == ["1", "3"]
    assert f"{len(parts)} live forwards of this step" in only(memory, "health/zeros").caption


@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 3, 2, 5)])
def test_rows_of_a_softmax_without_a_dimension_are_those_that_torch_chooses(shape: tuple[int, ...]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(x)

    x = torch.randn(shape) * 8
    shares = Net()(x)
    (dim,) = [dim for dim in range(len(shape)) if torch.allclose(shares.sum(dim), torch.ones(()))]
    expected = float((shares.amax(dim) > 0.98).float().mean())
    assert 0 < expected < 1
    memory = seen(Net(), vizlog.ActivationHistograms(source="live"), backward=lambda model: model(x))
    assert only(memory, "health/saturated_worst").value == pytest.approx(expected)


def test_layers_that_run_later_are_drawn_as_far_as_there_is_room() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))

        def forward(self, x: Tensor, number: int) -> Tensor:
            for layer in self.layers[:number]:
                x = layer(x)
            return x

    model, memory = Grows(), vizlog.Memory()
    probe = vizlog.ActivationHistograms("layers.*", every=1, most=3)
    with vizlog.Monitor(model, [probe], to=memory) as monitor:
        for number in (2, 5):
            with monitor.step():
                model(torch.ones(1, 2), number)
    drawn = [(step, record.tag[-1]) for step, record in memory.records if record.tag.startswith("activations/")]
    assert drawn == [(0, "0"), (0, "1"), (1, "0"), (1, "1"), (1, "2")]


class Again(nn.Module):
    """One layer over all time steps, and one activation behind each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.relu, self.head = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1]):
            x = self.relu(self.cell(x))
        return self.head(x[:, 0])


@pytest.mark.parametrize(
    ("steps", "most", "calls"),
    [
        (8, 64, range(1, 9)),  # few enough to draw them all
        (15, 64, range(1, 16, 2)),
        (15, 7, [1, 8, 15]),
        (15, None, range(1, 16)),
    ],
)
def test_of_a_layer_that_runs_over_and_over_a_few_calls_are_drawn_evenly(
    steps: int, most: int | None, calls: Sequence[int]
) -> None:
    memory = seen(Again(), vizlog.ActivationHistograms(most=most), batch=torch.randn(4, steps, 2))
    numbered = ["" if call == 1 else f"@{call}" for call in calls]
    expected = [f"activations/{layer}{call}" for call in numbered for layer in ("cell", "relu")]
    histograms = [record for _, record in memory.records if isinstance(record, vizlog.Histogram)]
    assert [record.tag for record in histograms] == [*expected, "activations/head"]
    told = f"; {len(histograms)} of {2 * steps + 1} layers are drawn"
    assert (told in histograms[0].caption) is (len(histograms) < 2 * steps + 1)
    assert len(only(memory, "health/nonfinite").x) == 2 * steps + 1  # health covers all


def test_an_activation_that_all_layers_share_is_drawn_behind_each() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(*itertools.chain.from_iterable((nn.Linear(2, 2), relu) for _ in range(12)))
    memory = seen(model, vizlog.ActivationHistograms(), batch=torch.randn(4, 2))
    assert {record.tag for _, record in memory.records} >= {"activations/1", "activations/1@12"}
    assert sum(record.tag.startswith("activations/") for _, record in memory.records) == 24


def test_probes_of_one_model_know_nothing_of_it_at_the_next() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head((self.other(a) + self.other(b)).flatten(1))

    x = torch.rand(8, 1, 8, 8)
    drawn, maps = vizlog.ActivationHistograms(most=2), vizlog.FeatureMaps()
    seen(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), drawn, maps, batch=x)
    memory = seen(Two(), drawn, maps, batch=vizlog.FixedBatch((x, torch.rand(8, 1, 8, 8))))
    assert memory.of("activations/other")
    assert only(memory, "feature_maps/other").over is None


def test_a_probe_that_looks_at_two_models_at_once_is_named(caplog: pytest.LogCaptureFixture) -> None:
    shared, to = [vizlog.FilterImages()], vizlog.Memory()
    models = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
    with vizlog.Monitor(models[0], shared, to=to), vizlog.Monitor(models[1], shared, to=to):
        pass
    assert [m for m in caplog.messages if "make one for each" in m] == [
        "vizlog: FilterImages of another monitor now looks at this one's model: make one for each"
    ]


def test_a_layer_whose_calls_differ_in_precision_is_left_out_by_name() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.mixed, self.calls = nn.Linear(3, 3), nn.Identity(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.mixed(self.same(x).to(torch.float64 if self.calls == 2 else torch.float32))

    def backward(model: nn.Module) -> None:
        for _ in range(3):
            model(torch.randn(4, 3))

    memory = seen(Mixed(), vizlog.ActivationHistograms(source="live"), backward=backward)
    assert not memory.of("activations/mixed")
    assert only(memory, "activations/same").count == 36
    assert "1 layers skipped (mixed: its calls differ in precision" in only(memory, "activations/same").caption


def test_nothing_captured_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with vizlog.Monitor(model, [vizlog.ActivationHistograms(every=1)], to=None) as monitor:
        for _ in range(3):
            with monitor.step():
                pass
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "captured nothing: none of them ran in the live forward" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_parameters_of_any_type_are_shown(dtype: torch.dtype) -> None:
    model = nn.ParameterList([nn.Parameter(torch.ones(3, 2, dtype=dtype))])
    model = nn.Sequential(model)  # type: ignore[assignment]
    assert only(seen(model, vizlog.WeightHistograms()), "weights/0.0").max == 1.0


# Updates --------------------------------------------------------------------------------------------------------------


def test_frozen_layers_stand_before_the_head_that_is_trained_on_them() -> None:
    model, memory = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)), vizlog.Memory()
    model[:3].requires_grad_(requires_grad=False)
    optimizer = SGD(model[3].parameters(), lr=0.5)
    with vizlog.watch(model, optimizer, to=memory, batch=(torch.ones(8, 4), torch.zeros(8, 2))):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    (_, record), *_ = memory.of("health/nonfinite")
    assert isinstance(record, Curves)
    assert record.x_names == ["0", "1", "2", "3"]


def test_update_ratios_of_a_large_model_come_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.probes.updates._CHUNK_BYTES", 4 * 4 * 8)
    model, memory = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(4)], nn.Linear(4, 24)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.5)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    tags = {record.tag for _, record in memory.records if record.tag.startswith("updates/")}
    assert tags == {f"updates/{n}.weight" for n in range(5)} | {"updates/4.bias"}
    (_, record), *_ = memory.of("health/update_ratio")
    assert "2 of 6 tensors this time, in turn" in record.caption


def test_a_large_parameter_that_is_frozen_while_it_has_its_turn_stops_no_update_ratios(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "vizlog.probes.updates._CHUNK_BYTES", 400
    )  # of these the first takes two turns, the second three
    model, memory = nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 30, bias=False)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        for step in range(6):
            model[1].weight.requires_grad_(step < 3)
            optimizer.zero_grad()
            model(torch.ones(1, 20)).sum().backward()
            optimizer.step()
    assert [step for step, _ in memory.of("updates/0.weight")] == [0, 1, 4, 5]
    assert [step for step, _ in memory.of("updates/1.weight")] == [2, 3]
    parts = [record.caption.partition("; ")[2] for _, record in memory.of("updates/0.weight")]
    assert parts == [f"part {part} of 2 of its rows, in turn" for part in (1, 2, 1, 2)]
    assert "; of 1.weight part 1 of 3 of its rows" in memory.of("health/update_ratio")[2][1].caption


def test_at_most_so_many_updates_are_drawn_and_health_covers_all() -> None:
    model, memory = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(5)]), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1, most=2)]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    drawn = [record.tag for _, record in memory.records if record.tag.startswith("updates/")]
    assert drawn == ["updates/0.weight", "updates/4.weight"]
    assert len(curve(memory, "update_ratio")) == 5


def test_parameters_of_no_watched_optimizer_are_not_said_to_come_in_turn() -> None:
    model, average, memory = nn.Linear(2, 2), nn.Linear(2, 2), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.5)
    models = {"model": model, "average": average}
    with vizlog.watch(models, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    (_, record), *_ = memory.of("health/update_ratio")
    assert isinstance(record, Curves)
    assert record.x_names == ["model"]
    assert "in turn" not in record.caption


@pytest.mark.parametrize(
    ("probe", "argument"),
    [
        (vizlog.AttentionMaps, "heads"),
        (vizlog.Embeddings, "examples"),
        (vizlog.WeightHistograms, "most"),
        (vizlog.ActivationHistograms, "most"),
        (vizlog.FilterImages, "most"),
        (vizlog.FeatureMaps, "channels"),
        (vizlog.SaliencyMaps, "samples"),
    ],
)
@pytest.mark.parametrize("wrong", ["all", 1.5, True, -1])
def test_what_is_no_number_of_things_is_named(probe: Any, argument: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"{probe.__name__}\({argument}=\) needs a number >= 1.*, got {wrong!r}"):
        probe(**{argument: wrong})


def test_none_is_no_number_but_where_it_means_all() -> None:
    with pytest.raises(ValueError, match=r"FeatureMaps\(channels=\) needs a number >= 1, got None"):
        vizlog.FeatureMaps(channels=None)  # type: ignore[arg-type]
    vizlog.WeightHistograms(most=None)


def test_the_model_of_a_context_is_the_first_of_several() -> None:
    first, second = nn.Linear(1, 1), nn.ReLU()
    assert Context(0, None, {"": first}).model is first
    assert Context(0, None, {"G": first, "D": second}).model is first


def test_no_update_ratios_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"UpdateRatios\(most=\) needs a number >= 1 or None, got 0"):
        vizlog.UpdateRatios(most=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_a_large_weight_of_any_precision_are_finite(dtype: torch.dtype) -> None:
    before = torch.full((100, 100), 1024.0, dtype=dtype)
    assert _squares(before.clone(), before + 8).tolist() == pytest.approx([1e4 * 8**2, 1e4 * 1024**2])  # type: ignore[union-attr]


def test_a_part_of_a_tensor_that_was_skipped_leaves_out_all_of_it() -> None:
    assert added_or_skipped(2, 3) == 5
    assert added_or_skipped("why", 3) == added_or_skipped(3, "why") == added_or_skipped("why", "not") == "why"


def test_a_weight_with_nan_has_an_update_ratio_of_nan() -> None:
    model, memory = nn.Linear(2, 2), vizlog.Memory()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    optimizer = SGD(model.parameters(), lr=0.5)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    ((_, record),) = memory.of("updates/weight")
    assert isinstance(record, Scalar)
    assert np.isnan(record.value)
    worst = only(memory, "health/update_ratio_worst")
    assert worst.value == math.inf  # and not left out, as of a layer that has none
    assert "infinite where a weight became NaN" in worst.caption


def test_a_layer_whose_gradient_holds_nan_is_the_worst() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), vizlog.Memory()
    model[0].bias.register_hook(lambda gradient: gradient * math.nan)
    optimizer = SGD(model.parameters(), lr=0.5)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms(every=1)]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    worst = only(memory, "health/gradient_norm_worst")
    assert worst.value == math.inf
    assert "infinite where a gradient holds NaN" in worst.caption
    ys = only(memory, "health/gradient_norm").ys["gradient_norm"]
    assert (ys[0], bool(np.isfinite(ys[1]))) == (math.inf, True)


def test_a_weight_of_zeros_has_no_update_ratio() -> None:
    model, memory = nn.Sequential(linear([[0.0, 0.0]])), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert memory.of("updates/0.weight") == []
    assert math.isnan(only(memory, "health/update_ratio").ys["update_ratio"][0])


# Pictures -------------------------------------------------------------------------------------------------------------


def test_filters_are_images_on_one_scale_in_filter_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 4))
    record = only(seen(model, vizlog.FilterImages()), "filters/0")
    weight = model[0].weight.detach().numpy()  # type: ignore[union-attr, operator]
    scale = np.abs(weight).max()
    assert isinstance(record, Images)
    assert record.limits == pytest.approx((-scale, scale))
    expected = np.round(weight / scale * 127.5 + 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(record.pixels.astype(int) - expected.astype(int)).max() <= 1
    np.testing.assert_allclose(record.norms, np.sqrt((weight**2).sum((1, 2, 3))), rtol=1e-5)
    assert list(record.titles) == ["0", "1", "2", "3", "4"]


def test_filters_that_diverge_have_norms_without_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False))
    nn.init.constant_(model[0].weight, 1e30)  # type: ignore[arg-type]
    record = only(seen(model, vizlog.FilterImages()), "filters/0")
    np.testing.assert_allclose(record.norms, 3e30, rtol=1e-5)


def test_rows_of_a_first_linear_layer_are_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    record = only(seen(model, vizlog.FilterImages(), batch=torch.randn(3, 1, 6, 8)), "filters/1")
    assert record.pixels.shape == (4, 6, 8, 1)
    flat = nn.Sequential(nn.Linear(64, 4))
    assert only(seen(flat, vizlog.FilterImages(), batch=torch.randn(3, 64)), "filters/0").pixels.shape == (4, 8, 8, 1)


def test_a_filter_that_holds_nan_leaves_the_scale_to_the_others() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0.5)  # type: ignore[union-attr, operator]
        model[0].weight[0, 0] = torch.tensor([[math.nan, math.inf], [-math.inf, -2.0]])  # type: ignore[index]
    record = only(seen(model, vizlog.FilterImages()), "filters/0")
    assert record.limits == (-2.0, 2.0)
    assert record.pixels[..., 0].tolist() == [[[128, 255], [0, 0]], *[[[159, 159]] * 2] * 2]


def test_of_many_filters_the_first_are_drawn_and_the_caption_says_how_many() -> None:
    wide = only(seen(nn.Sequential(nn.Conv2d(3, 70, 2)), vizlog.FilterImages()), "filters/0")
    assert len(wide.pixels) == 64
    assert "one image a filter; 64 of 70 filters" in wide.caption
    deep = only(seen(nn.Sequential(nn.Conv2d(20, 4, 2)), vizlog.FilterImages("0")), "filters/0")
    assert len(deep.pixels) == 64
    assert "4 of 4 filters, 16 of 20 input channels" in deep.caption
    apart = only(seen(nn.Sequential(nn.Conv2d(6, 6, 2, groups=6)), vizlog.FilterImages()), "filters/0")
    assert apart.pixels.shape == (6, 2, 2, 1)


def test_rows_that_make_no_square_are_no_images() -> None:
    with pytest.raises(ValueError, match="no first linear layer over images"):
        seen(nn.Sequential(nn.Linear(30, 4)), vizlog.FilterImages(), batch=torch.randn(3, 30))


def test_deeper_filters_come_only_when_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3))
    tags = [record.tag for _, record in seen(model, vizlog.FilterImages()).records if record.tag.startswith("filters")]
    assert tags == ["filters/0"]
    deep = only(seen(model, vizlog.FilterImages("1")), "filters/1")
    assert deep.pixels.shape == (30, 3, 3, 1)
    assert deep.titles[7] == "1, input 1"


def test_no_filters_says_so() -> None:
    with pytest.raises(ValueError, match="no 2-D convolution"):
        vizlog.Monitor(nn.Sequential(nn.Linear(3, 3)), [vizlog.FilterImages()], to=None)


@pytest.mark.parametrize("example", [0, 40])
def test_feature_maps_are_the_layers_output_for_the_example(example: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    x = torch.randn(50, 1, 9, 9)
    memory = seen(model, vizlog.FeatureMaps(example=example, channels=5), batch=x)
    first, second = only(memory, "feature_maps/0"), only(memory, "feature_maps/2")
    assert isinstance(first, Heatmaps)
    np.testing.assert_allclose(first.values, model[0](x[example : example + 1])[0].detach(), rtol=1e-5, atol=1e-6)
    assert second.values.shape == (5, 5, 5)
    assert "5 of 6 channels" in second.caption
    assert f"example {example}" in second.caption
    assert second.limits[0] == -second.limits[1]


def test_filters_of_a_convolution_that_shares_its_weight_are_drawn() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    model[1].weight = model[0].weight
    record = only(seen(model[1:2], vizlog.FilterImages()), "filters/1")
    shared = nn.ModuleDict({"a": model[0], "b": model[1]})
    memory = vizlog.Memory()
    with vizlog.Monitor(shared, [vizlog.FilterImages("b")], to=memory) as monitor, monitor.step():
        pass
    np.testing.assert_array_equal(only(memory, "filters/b").pixels, record.pixels)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vizlog.FeatureMaps(example=1.5), "takes the number of an example, got 1.5"),
        (lambda: vizlog.FeatureMaps(example="a"), "takes the number of an example, got 'a'"),
        (lambda: vizlog.SaliencyMaps(noise=-1.0), "takes a share of the example's range, 0 or more, got -1.0"),
        (lambda: vizlog.SaliencyMaps(noise="a"), "takes a share of the example's range, 0 or more, got 'a'"),
        (lambda: vizlog.SaliencyMaps(noise=float("nan")), "0 or more, got nan"),
        (lambda: vizlog.SaliencyMaps(baseline="x"), "takes a number or a tensor, got 'x'"),
    ],
)
def test_what_a_probe_cannot_do_is_said_when_it_is_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        make()


def test_feature_maps_stand_after_no_image_that_may_be_another() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(1, 2, 3)

        def forward(self, *images: Tensor) -> Tensor:
            return torch.stack([self.c(image) for image in images])

    x = torch.rand(3, 1, 6, 6)
    once, twice = (
        seen(Twins(), vizlog.FeatureMaps(), batch=vizlog.FixedBatch(images)) for images in ((x,), (x, x + 1))
    )
    assert only(once, "feature_maps/c").over is not None
    assert only(twice, "feature_maps/c").over is None


def test_feature_maps_are_of_their_layer_also_where_the_next_one_works_in_place() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)), torch.randn(2, 1, 6, 6)
    memory = seen(model, vizlog.FeatureMaps([nn.Conv2d, nn.ReLU]), batch=x)
    before, after = only(memory, "feature_maps/0"), only(memory, "feature_maps/1")
    np.testing.assert_allclose(before.values, model[0](x[:1])[0].detach(), atol=1e-6)
    assert before.values.min() < 0
    assert before.colormap == "diverging"
    assert after.colormap == "sequential"
    assert after.limits == (0.0, after.values.max())


def test_feature_maps_of_values_above_zero_begin_at_zero() -> None:
    x = torch.rand(2, 1, 4, 4) + 1
    x[0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Identity())
    nn.init.ones_(model[0].weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(model[0].bias)  # type: ignore[union-attr, arg-type]
    record = only(seen(model, vizlog.FeatureMaps("0"), batch=x), "feature_maps/0")
    assert record.limits == (0.0, pytest.approx(float(x[0, 0, 1:].max()), abs=0.2))
    assert np.isfinite(record.limits).all()


def test_feature_maps_are_of_four_convolutions_spread_over_the_depth() -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(7)))
    memory = seen(model, vizlog.FeatureMaps(), batch=torch.rand(2, 1, 4, 4))
    tags = [record.tag for _, record in memory.records if record.tag.startswith("feature_maps/")]
    assert tags == [f"feature_maps/{number}" for number in (0, 2, 4, 6)]
    with pytest.raises(ValueError, match="needs one of the batch's 2 examples, got 2"):
        seen(model, vizlog.FeatureMaps(example=2), batch=torch.rand(2, 1, 4, 4))


def test_what_a_convolution_sees_at_its_second_call_is_not_taken_for_the_image() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    memory = seen(Twice(), vizlog.FeatureMaps(), batch=torch.rand(2, 1, 6, 6))
    assert only(memory, "feature_maps/conv").over is not None
    assert only(memory, "feature_maps/conv@2").over is None


def test_a_call_for_another_example_is_not_said_to_be_for_the_first() -> None:
    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.conv(image[None])[0] for image in x])

    of_all = vizlog.ActivationHistograms()  # for which the pass goes over further examples too
    memory = seen(OneByOne(), vizlog.FeatureMaps(), of_all, batch=torch.rand(3, 1, 6, 6))
    assert "conv for example 0" in only(memory, "feature_maps/conv").caption
    assert "conv@2 in one of its calls, for some of the examples" in only(memory, "feature_maps/conv@2").caption


def test_large_feature_maps_are_averaged_down_and_say_so() -> None:
    x = torch.randn(2, 1, 130, 200)
    record = only(seen(nn.Sequential(nn.Conv2d(1, 2, 1)), vizlog.FeatureMaps(), batch=x), "feature_maps/0")
    assert record.values.shape == (2, 42, 64)
    assert "averaged down from 130x200" in record.caption
    even = nn.Sequential(nn.Conv2d(1, 2, 1))
    halved = only(seen(even, vizlog.FeatureMaps(), batch=x[:, :, :128, :128]), "feature_maps/0")
    blocks = even[0](x[:1, :, :128, :128])[0].detach().reshape(2, 64, 2, 64, 2).mean((2, 4))
    np.testing.assert_allclose(halved.values, blocks, atol=1e-5)


def test_feature_maps_of_a_thin_output_keep_their_rows() -> None:
    x = torch.randn(2, 1, 5, 640)
    record = only(seen(nn.Sequential(nn.Conv2d(1, 2, 1)), vizlog.FeatureMaps(), batch=x), "feature_maps/0")
    assert record.values.shape == (2, 5, 64)


def test_feature_maps_stand_after_the_image_that_they_are_of() -> None:
    x = torch.rand(3, 1, 6, 6)
    record = only(seen(nn.Sequential(nn.Conv2d(1, 2, 1)), vizlog.FeatureMaps(example=2), batch=x), "feature_maps/0")
    np.testing.assert_array_equal(record.over[0, ..., 0], (x[2, 0] * 255).round().byte())
    model = nn.Sequential(nn.Conv2d(7, 2, 1))
    latent = only(seen(model, vizlog.FeatureMaps(), batch=x.repeat(1, 7, 1, 1)), "feature_maps/0")
    assert latent.over is None


# What suits a model never seen before ---------------------------------------------------------------------------------


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids)))


def chosen(model: nn.Module, batch: Any = None) -> set[str]:
    return {probe.name for probe in vizlog.standard(model, batch)}


NUMBERS = {"WeightHistograms", "GradientHistograms", "UpdateRatios", "ActivationHistograms"}


def test_standard_suits_a_model_it_has_never_seen() -> None:
    labels = torch.arange(8) % 3
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    mlp = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    autoencoder = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 5))
    pictures = {"FilterImages", "FeatureMaps", "SaliencyMaps", "Embeddings"}
    assert chosen(cnn, (torch.randn(8, 1, 8, 8), labels)) == NUMBERS | pictures
    assert chosen(cnn) == NUMBERS | {"FilterImages"}
    assert chosen(mlp) == NUMBERS
    assert chosen(mlp, (torch.randn(8, 5), labels)) == NUMBERS | {"SaliencyMaps", "Embeddings"}
    assert chosen(autoencoder, torch.randn(8, 5)) >= NUMBERS
    assert "SaliencyMaps" not in chosen(autoencoder, torch.randn(8, 5))
    assert chosen(Text(), torch.randint(20, (8, 6))) >= NUMBERS | {"AttentionMaps", "Embeddings"}


def test_standard_is_a_list_to_add_to_with_the_schedule_asked_for() -> None:
    probes = vizlog.standard(nn.Sequential(nn.Conv2d(1, 4, 3)), every=vizlog.Every(7))
    probes.append(vizlog.WeightHistograms())
    assert [probe.schedule for probe in probes[:-1]] == [vizlog.Every(7)] * 5


def test_of_a_number_of_steps_standard_thins_numbers_out_and_makes_pictures_ever_more_seldom() -> None:
    schedules = {probe.name: probe.schedule for probe in vizlog.standard(nn.Conv2d(1, 4, 3), every=20)}
    assert schedules == dict.fromkeys(NUMBERS, vizlog.Thinning(20)) | {"FilterImages": vizlog.LogSpaced(20)}


def test_standard_is_not_given_what_makes_a_batch() -> None:
    with pytest.raises(TypeError, match=r"takes the batch itself: give what the function returns"):
        vizlog.standard(nn.Linear(2, 2), lambda: torch.zeros(2, 2))  # type: ignore[arg-type]


def test_of_many_tensors_matrices_are_drawn_before_biases_and_the_caption_says_how_many() -> None:
    model, memory = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10))), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1, most=4)], to=memory) as monitor, monitor.step():
        pass
    tags = {record.tag for _, record in memory.records if record.tag.startswith("weights/")}
    assert tags == {f"weights/{layer}.weight" for layer in (0, 3, 6, 9)}
    assert "4 of 20 tensors are drawn" in only(memory, "weights/0.weight").caption


def test_layers_that_are_unfrozen_later_get_their_share_of_the_places() -> None:
    model, memory = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(8))), vizlog.Memory()
    model[:4].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms(every=1, most=4)]):
        for step in range(4):
            model[:4].requires_grad_(requires_grad=step > 1)
            optimizer.zero_grad()
            model(torch.randn(3, 2)).sum().backward()
            optimizer.step()
    drawn = [[r.tag[-8] for s, r in memory.records if s == step and "gradients/" in r.tag] for step in range(4)]
    assert drawn == [["4", "5", "6", "7"]] * 2 + [["0", "3", "4", "7"]] * 2


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Softmax(dim=1), 1.0),
        (nn.Softmax(dim=-1), 0.0),
        (lambda x: F.softmax(x, 1), 1.0),
        (lambda x: F.softmax(x, dim=1), 1.0),
        (nn.Hardtanh(-1000, 1000), 0.0),
        (lambda x: F.hardtanh(x, -1000.0, 1000.0), 0.0),
        (lambda x: F.hardtanh(x, min_val=-1000.0, max_val=1000.0), 0.0),
        (F.hardtanh, 1.0),
    ],
)
def test_saturation_heeds_how_a_layer_was_called(layer: Any, expected: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            if isinstance(layer, nn.Module):
                self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return layer(self.scale * x)

    x = 100 * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(3, 2, 4, 4).contiguous()
    memory = vizlog.Memory()
    probes = [vizlog.ActivationHistograms(every=1)]
    with vizlog.Monitor(Net(), probes, to=memory, batch=vizlog.FixedBatch(x)) as monitor, monitor.step():
        pass
    ((_, record),) = memory.of("health/saturated_worst")
    assert record.value == expected  # type: ignore[union-attr]


NORMS = nn.utils.parametrizations


@pytest.mark.parametrize(
    ("norm", "weight"),
    [
        (NORMS.spectral_norm, "0.parametrizations.weight.original"),
        (NORMS.weight_norm, "0.parametrizations.weight.original1"),
    ],
)
def test_layers_under_a_norm_have_filters_and_activations(norm: Any, weight: str) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = vizlog.Memory()
    probes = [vizlog.FilterImages(every=1), vizlog.ActivationHistograms(every=1)]
    batch = vizlog.FixedBatch(torch.randn(2, 3, 8, 8))
    with vizlog.Monitor(model, probes, to=memory, batch=batch) as monitor, monitor.step():
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {record.tag for _, record in memory.records if record.tag.startswith("activations/")} == {
        "activations/0",
        "activations/1",
    }
    ((_, filters),) = memory.of("filters/0")
    assert isinstance(filters, Images)
    assert "before its norm" in filters.caption
    expected = dict(model.named_parameters())[weight].detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(filters.pixels.transpose(0, 3, 1, 2), (expected / scale) * 127.5 + 127.5, atol=0.51)


def test_four_channels_are_four_images_a_filter() -> None:
    record = only(seen(nn.Sequential(nn.Conv2d(4, 2, 3)), vizlog.FilterImages()), "filters/0")
    assert record.pixels.shape == (8, 3, 3, 1)
    assert list(record.titles)[:5] == ["0, input 0", "0, input 1", "0, input 2", "0, input 3", "1, input 0"]
    assert "2 of 2 filters, 4 of 4 input channels" in record.caption


def test_a_layer_that_did_not_run_stands_behind_the_one_registered_before_it() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.unused, self.tower = nn.Linear(4, 3), nn.Linear(2, 2), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tower(x))

    memory = seen(Model(), vizlog.WeightHistograms(), batch=torch.randn(3, 4))
    assert list(only(memory, "health/nonfinite").x_names) == ["tower", "head", "unused"]


def test_two_selections_of_one_source_share_its_line_and_a_layer_has_the_share_of_its_worst_tensor() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[1].bias[1] = math.inf
    memory = seen(model, vizlog.WeightHistograms("0"), vizlog.WeightHistograms("1"))
    assert curve(memory, "nonfinite", "weights") == {"0": 0.25, "1": 0.5}


def test_layers_stand_in_the_order_in_which_they_ran() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.tower = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.ReLU())
            self.tower.shift = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.tower(x + self.tower.shift))
            return y

    model, memory = Model(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    probes = [vizlog.GradientHistograms(every=1), vizlog.UpdateRatios(every=1), vizlog.WeightHistograms(every=1)]
    with vizlog.watch(model, optimizer, to=memory, batch=(x, y), probes=probes):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for kind in ("gradient_norm", "update_ratio", "nonfinite"):
        assert list(only(memory, f"health/{kind}").x_names) == ["tower", "tower.0", "head"]
    (norms,) = only(memory, "health/gradient_norm").ys.values()
    parts = [p.grad.flatten() for p in model.tower[0].parameters() if p.grad is not None]
    assert norms[1] == pytest.approx(float(torch.cat(parts).norm()))
