"""How much to stretch each schedule so that all of them together stay within a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["stretches"]


def stretches(shares: Sequence[float], budget: float) -> list[int]:
    """Whole factors by which schedules are stretched, the dearest most.

    A level is found such that the shares, each cut off at it, add up to the budget (water-filling); those below it are
    left alone.

    Args:
        shares: the share of training time that each probe takes unstretched.
        budget: the share that all may take together.
    """
    if sum(shares) <= budget:
        return [1] * len(shares)
    left, level = budget, 0.0
    for number, share in enumerate(sorted(shares)):
        level = left / (len(shares) - number)
        if share > level:
            break
        left -= share
    return [max(1, math.ceil(share / level)) for share in shares]
