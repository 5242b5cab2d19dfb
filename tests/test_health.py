"""Health figures against what one counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vizlog.compute import health
from vizlog.compute.health import LIMITS, alive, saturated, saturated_rows


@pytest.fixture(params=["numba", "torch"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to look for units that are alive."""
    if request.param == "torch":
        monkeypatch.setattr(health, "_find_alive", lambda: None)
    else:
        pytest.importorskip("numba")


def test_a_unit_is_dead_if_it_is_zero_for_every_example_and_position() -> None:
    output = torch.zeros(2, 4, 3, 3)
    output[1, 0, 2, 2] = 1e-30
    output[0, 2, 0, 0] = -5.0
    output[0, 3] = -0.0
    assert alive(output, channel_dim=1).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("shape", "dim"), [((70_000, 6), -1), ((3, 40_000, 6), -1), ((2, 6, 150, 150), 1), ((1, 6, 40_000), 1)]
)
def test_what_shows_itself_late_in_a_large_output_is_alive(shape: tuple[int, ...], dim: int) -> None:
    flags = np.zeros((6, np.prod(shape) // 6), np.float32)
    flags[0, 0] = flags[1, -1] = flags[2, 35_000] = flags[4, 3] = flags[5, -2] = 1.0
    output = np.moveaxis(flags.reshape(6, *(size for size in shape if size != 6)), 0, dim)
    assert alive(torch.from_numpy(np.ascontiguousarray(output)), dim).tolist() == [True, True, True, False, True, True]
    flags[[0, 4, 5]] = 1.0  # so that half of them are seen at once
    assert alive(torch.from_numpy(output), dim).tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(100, 600), (37, 30, 5), (7, 300, 3, 3), (1, 20)])
@pytest.mark.parametrize("dim", [1, -1])
def test_dead_units_are_numpys(shape: tuple[int, ...], dim: int, share: float) -> None:
    generator = np.random.default_rng(0)
    values = np.where(generator.random(shape) < 0.05, generator.normal(size=shape), 0.0)
    at = [1] * len(shape)
    at[dim] = shape[dim]
    values *= generator.random(at) >= share
    others = tuple(other for other in range(len(shape)) if other != dim % len(shape))
    for dtype in (torch.float32, torch.float64):
        output = torch.from_numpy(values).to(dtype)
        expected = (values != 0).any(axis=others).tolist()
        assert alive(output, dim).tolist() == expected
        assert alive(output.transpose(0, -1).contiguous().transpose(0, -1), dim).tolist() == expected


def test_units_are_found_inside_a_transformation() -> None:
    found = []

    def loss(output: torch.Tensor) -> torch.Tensor:
        found.append(alive(output).sum())
        return output.sum()

    torch.func.grad(loss)(torch.tensor([[0.0, 1.0, 2.0]]))
    assert int(found[0]) == 2


def test_units_of_a_transformer_are_the_entries_of_its_last_dimension() -> None:
    output = torch.zeros(2, 5, 3)
    output[1, 4, 1] = 2.0
    assert alive(output).tolist() == [False, True, False]


def test_units_of_a_convolution_are_its_channels() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(convolution.weight[1])
    nn.init.zeros_(convolution.bias)
    output = convolution(torch.randn(2, 3, 8, 8))
    assert alive(output, channel_dim=1).tolist() == [True, False, True, True]


def test_alive_flags_of_several_calls_are_ored() -> None:
    first, second = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    together = alive(first) | alive(second)
    assert torch.equal(together, alive(torch.cat([first, second])))
    assert together.tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_alive_takes_any_type(dtype: torch.dtype) -> None:
    assert alive(torch.tensor([[0, 1], [0, 0]]).to(dtype)).tolist() == [False, True]


def test_a_nan_is_not_a_dead_unit() -> None:
    assert alive(torch.tensor([[float("nan"), 0.0]])).tolist() == [True, False]


def test_one_dimension_and_none_are_taken() -> None:
    assert alive(torch.tensor([0.0, 3.0])).tolist() == [False, True]
    assert alive(torch.tensor(3.0)).tolist() == [True]
    assert alive(torch.empty(0, 3)).tolist() == [False, False, False]


def test_channels_last_memory_gives_the_same_flags() -> None:
    output = torch.randn(2, 6, 4, 4).relu()
    output[:, 3] = 0
    assert torch.equal(alive(output.to(memory_format=torch.channels_last), 1), alive(output, 1))
    assert alive(output[::2, ::2, 1:], 1).tolist() == [True, True, True]
    assert alive(output[:1, 2:4].expand(5, 2, 4, 4), 1).tolist() == [True, False]


def test_saturated_is_within_two_percent_of_the_range_of_either_limit() -> None:
    sigmoid = torch.tensor([0.0, 0.0199, 0.0201, 0.5, 0.9799, 0.9801, 1.0, float("nan")])
    assert saturated(sigmoid, *LIMITS["sigmoid"]).item() == 4
    tanh = torch.tensor([-1.0, -0.961, -0.959, 0.0, 0.959, 0.961, 1.0])
    assert saturated(tanh, *LIMITS["tanh"]).item() == 4


def test_a_hardtanh_saturates_at_its_own_limits() -> None:
    layer = nn.Hardtanh(-2.0, 3.0)
    output = layer(torch.tensor([-9.0, -1.91, -1.89, 2.89, 2.91, 7.0]))
    assert saturated(output, layer.min_val, layer.max_val).item() == 4


def test_counts_of_saturated_elements_add_up_over_calls() -> None:
    a, b = torch.tanh(torch.randn(3, 50) * 4), torch.tanh(torch.randn(7, 50) * 4)
    assert saturated(a, -1, 1) + saturated(b, -1, 1) == saturated(torch.cat([a, b]), -1, 1)


def test_limits_that_are_no_range_raise() -> None:
    with pytest.raises(ValueError, match="low < high"):
        saturated(torch.zeros(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="finite"):
        saturated(torch.zeros(3), 0.0, float("inf"))


def test_a_softmax_row_is_saturated_over_098() -> None:
    rows = torch.tensor([[0.99, 0.01], [0.97, 0.03], [0.5, 0.5], [0.01, 0.99]])
    assert saturated_rows(rows).item() == 2
    assert saturated_rows(rows.t(), dim=0).item() == 2
    assert saturated_rows(torch.empty(0, 3)).item() == 0


def test_nothing_is_left_in_the_graph() -> None:
    output = torch.randn(4, 3, requires_grad=True).sigmoid()
    assert not saturated(output, 0, 1).requires_grad
    assert not alive(output).requires_grad
