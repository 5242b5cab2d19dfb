"""How schedules are stretched to keep a share of the training time."""

from __future__ import annotations

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from vizlog.budget import Cost, check_pace, stretches


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


class Takes:
    """Something that takes time."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.latest_seconds = name, 0.0, 0.0

    def took(self, seconds: float) -> None:
        self.seconds += seconds
        self.latest_seconds = seconds


def test_what_passes_before_it_is_known_who_is_due_is_theirs_too(clock: Clock) -> None:
    before, due = Takes("before"), Takes("due")
    cost = Cost([before, due])
    cost.share_among([before])
    with cost:
        with cost:
            clock.now += 1
        cost.share_among([due])
        clock.now += 2
        cost.settle()
        clock.now += 4
    clock.now += 8
    assert (before.seconds, due.seconds, cost.spent) == (0, 7, 7)


def test_the_dearest_is_the_one_that_took_most_of_all_the_time(clock: Clock) -> None:
    dear, latest = Takes("dear"), Takes("latest")
    cost = Cost([dear, latest])
    cost.step_begins()
    for spender, seconds in ((dear, 3.0), (latest, 2.0), (dear, 1.0)):
        spender.took(seconds)
    assert "most of it dear, 4 s" in cost.in_words(60.0, 0.0)


@pytest.mark.parametrize("budget", [1, 1.0, 0.001, None])
def test_a_share_is_up_to_all_of_the_time(budget: float | None) -> None:
    check_pace(None, None, budget)


@pytest.mark.parametrize("budget", [0, -1, 2, float("nan")])
def test_what_is_no_share_says_so(budget: float) -> None:
    from torch import nn

    import vizlog

    with pytest.raises(ValueError, match="budget= takes a share"):
        vizlog.Monitor(nn.Linear(1, 1), [], to=None, budget=budget)
