"""How schedules are stretched to keep a share of the training time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizlog.budget import stretches


def test_within_the_budget_nothing_is_stretched() -> None:
    assert stretches([0.002, 0.003], 0.01) == [1, 1]
    assert stretches([], 0.01) == []


def test_the_dearest_are_stretched_and_the_cheap_left_alone() -> None:
    assert stretches([0.001, 0.5], 0.01) == [1, 56]  # 0.5 / 0.009 = 55.6
    assert stretches([0.1, 0.1], 0.01) == [20, 20]


@given(st.lists(st.floats(0, 10), max_size=12), st.floats(0.001, 1))
def test_the_budget_is_kept_and_no_factor_is_below_one(shares: list[float], budget: float) -> None:
    factors = stretches(shares, budget)
    assert all(factor >= 1 for factor in factors)
    assert sum(share / factor for share, factor in zip(shares, factors, strict=True)) <= budget * (1 + 1e-9)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.floats(0.001, 1))
def test_a_dearer_one_is_never_stretched_less(shares: list[float], budget: float) -> None:
    pairs = sorted(zip(shares, stretches(shares, budget), strict=True))
    assert [factor for _, factor in pairs] == sorted(factor for _, factor in pairs)


@pytest.mark.parametrize("budget", [0, -1, 2, float("nan")])
def test_what_is_no_share_says_so(budget: float) -> None:
    from torch import nn

    import vizlog

    with pytest.raises(ValueError, match="budget= takes a share"):
        vizlog.Monitor(nn.Linear(1, 1), [], to=None, budget=budget)
