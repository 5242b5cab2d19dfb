"""Work shared by parked threads: each piece once, errors and forks included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from vizlog.compute.threads import MOST_THREADS, side_by_side


def test_every_hand_works_on_a_thread_of_its_own() -> None:
    together = threading.Barrier(MOST_THREADS, timeout=20)
    seen: dict[int, int] = {}

    def work(hand: int) -> None:
        together.wait()
        seen[hand] = threading.get_ident()

    side_by_side(work, range(MOST_THREADS))
    assert sorted(seen) == list(range(MOST_THREADS))
    assert seen[0] == threading.get_ident()
    assert len(set(seen.values())) == MOST_THREADS


def test_pieces_of_a_shared_supply_are_each_taken_once() -> None:
    for _ in range(200):
        supply, taken = iter(list(range(100))), [set[int](), set[int](), set[int]()]
        side_by_side(partial(_take_all, supply), taken)
        assert sum(len(hand) for hand in taken) == 100
        assert set().union(*taken) == set(range(100))


def _take_all(supply: Iterator[int], hand: set[int]) -> None:
    hand.update(supply)


def test_nobody_waits_for_threads_that_have_not_begun() -> None:
    release, busy = threading.Event(), threading.Barrier(MOST_THREADS + 1, timeout=20)

    def hold(hand: int) -> None:
        busy.wait()
        release.wait(20)

    other = threading.Thread(target=side_by_side, args=(hold, range(MOST_THREADS)))
    other.start()
    busy.wait()  # from here on every parked thread is taken
    worked: list[int] = []
    side_by_side(worked.append, [0, 1, 2])
    release.set()
    other.join()
    assert worked == [0]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_on_any_thread_reaches_the_caller_and_the_threads_go_on(broken: int) -> None:
    together = threading.Barrier(2, timeout=20)

    def work(hand: int) -> None:
        together.wait()
        if hand == broken:
            raise ValueError(f"hand {hand}")

    for _ in range(5):
        with pytest.raises(ValueError, match=f"hand {broken}"):
            side_by_side(work, [0, 1])
    worked: list[int] = []
    side_by_side(worked.append, [0])
    assert worked == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own() -> None:
    code = """
import os, threading
from vizlog.compute.threads import side_by_side
def meet():
    together = threading.Barrier(2, timeout=20)
    side_by_side(lambda hand: together.wait(), [0, 1])
meet()
child = os.fork()
if child == 0:
    meet()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
meet()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
