"""Results on their way to the host: owned by nobody else, in the shape they had."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vizlog.compute.transfer import to_host

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Result:
    values: Tensor
    note: str


def test_what_lands_is_equal_and_shares_no_memory() -> None:
    weight, array = nn.Parameter(torch.ones(3)), np.ones(6)
    tree = {"a": [weight, (1, "x")], "b": Pair(weight[:2], None), "c": Result(weight, "n"), "d": array[::2]}
    landed: Any = to_host(tree).wait()
    with torch.no_grad():
        weight.zero_()
    array[:] = 0
    assert torch.equal(landed["a"][0], torch.ones(3))
    assert landed["a"][1] == (1, "x")
    assert torch.equal(landed["b"].left, torch.ones(2))
    assert isinstance(landed["b"], Pair)
    assert landed["c"].note == "n"
    assert torch.equal(landed["c"].values, torch.ones(3))
    assert landed["d"].tolist() == [1, 1, 1]
    assert not landed["a"][0].requires_grad


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_every_type_and_shape_lands(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    (landed,) = to_host([tensor]).wait()
    assert landed.dtype == dtype
    assert torch.equal(landed, tensor)


def test_an_array_of_ones_own_is_not_copied() -> None:
    array = np.ones(3)
    assert to_host(array).wait() is array


def test_one_part_is_waited_for_without_the_others() -> None:
    pending = to_host([torch.ones(2), {"b": torch.zeros(3)}])
    assert torch.equal(pending.wait(1)["b"], torch.zeros(3))


def test_it_can_be_waited_for_twice() -> None:
    pending = to_host({"a": torch.ones(2)})
    assert torch.equal(pending.wait()["a"], pending.wait()["a"])
