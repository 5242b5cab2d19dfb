"""Results on their way to the host: owned by nobody else, in the shape they had."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vizlog.compute.bits import GRIDS
from vizlog.compute.transfer import Pending, _Slot, to_host
from vizlog.compute.uncollected import Together, Uncollected, UncollectedAlive, UncollectedBeyond

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


def test_what_came_with_others_is_kept_without_them() -> None:
    """What a device sends lies in one piece of memory, of which a record that is kept may hold a small part."""
    together = torch.arange(1000.0)
    (landed,) = Pending([_Slot(0)], [together[3:5]], [], frozenset({0})).wait()
    assert landed.tolist() == [3, 4]
    assert landed.untyped_storage().nbytes() == landed.nbytes


def test_an_array_of_ones_own_is_not_copied() -> None:
    array = np.ones(3)
    assert to_host(array).wait() is array


def test_one_part_is_waited_for_without_the_others() -> None:
    pending = to_host([torch.ones(2), {"b": torch.zeros(3)}])
    assert torch.equal(pending.wait(1)["b"], torch.zeros(3))


def test_it_can_be_waited_for_twice() -> None:
    pending = to_host({"a": torch.ones(2)})
    assert torch.equal(pending.wait()["a"], pending.wait()["a"])


def test_what_was_found_of_tensors_together_lands_as_one_copy_and_comes_apart() -> None:
    grid = GRIDS["float32"]
    together = Together.empty(grid, 2, torch.device("cpu"), units=8)
    pieces = together.pieces()
    pieces["tallies"][:, 1] = torch.tensor([9, 2, 1, 0, 0])
    pieces["moments"][:, 1] = torch.tensor([-1.0, 1.0, 2.0, 6.0])
    one = 127 << 6  # the upper bits of 1.0
    pieces["table"][1, one], pieces["table"][1, grid.first_negative + one] = 4, 2
    pieces["exponents"][1], pieces["firsts"][1], pieces["linear"][1, 5] = -3, -8, 8
    pieces["alive"][1, 2], pieces["beyond"][1] = 1, 7
    parts = [Uncollected(together, 1, "a note"), UncollectedAlive(together, 1, 4), UncollectedBeyond(together, 1)]
    pending = to_host([*parts, Uncollected(together, 0)])
    together.memory.zero_()
    counts, alive, beyond, nothing = pending.wait()
    assert (counts.count, counts.zeros, counts.nans, counts.min, counts.max, counts.total) == (9, 2, 1, -1.0, 1.0, 2.0)
    assert (counts.bins.tolist(), counts.counts.tolist()) == ([-1 - one, 0, 1 + one], [2, 2, 4])
    assert (counts.linear.exponent, counts.linear.bins.tolist(), counts.linear.counts.tolist()) == (-3, [-3], [8])
    assert counts.note == "a note"
    assert alive.tolist() == [False, False, True, False]
    assert beyond.item() == 7
    assert (nothing.count, nothing.linear) == (0, None)
