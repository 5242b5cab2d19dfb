"""One computation by several threads, which are parked in between: waking one costs microseconds."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["MOST_THREADS", "side_by_side"]

MOST_THREADS = 4
"""More would not be faster: by then memory is what all wait for."""

H = TypeVar("H")


def side_by_side(work: Callable[[H], object], hands: Sequence[H]) -> None:
    """`work(hands[0])` on this thread, and the same with the others on threads of their own, where those are free.

    Of use where all take their pieces from one shared supply, and let go of the interpreter's lock meanwhile: a thread
    that comes late finds nothing left, and one that has not begun when this one is through is not waited for.

    Raises:
        Exception: what `work` raised, here or there.
    """
    invited, done = deque(hands[1:]), SimpleQueue[BaseException | None]()
    for _ in hands[1:]:
        _parked().put((work, invited, done))
    try:
        work(hands[0])
    finally:
        begun = len(hands) - 1 - sum(1 for _ in _drained(invited))
    for error in [done.get() for _ in range(begun)]:
        if error is not None:
            raise error


def _drained(invited: deque[H]) -> Iterator[H]:
    """What nobody else has taken; taking one is atomic."""
    while invited:
        try:
            yield invited.pop()
        except IndexError:
            return


_queues: dict[int, SimpleQueue[Any]] = {}
"""Process id -> where its threads wait: a forked child has none of its parent's."""


def _parked() -> SimpleQueue[Any]:
    queue = _queues.get(os.getpid())
    if queue is None:
        mine: SimpleQueue[Any] = SimpleQueue()
        queue = _queues.setdefault(os.getpid(), mine)
        if queue is mine:
            for k in range(1, MOST_THREADS):
                threading.Thread(target=_wait_and_work, args=(mine,), name=f"vizlog-count-{k}", daemon=True).start()
    return queue


def _wait_and_work(queue: SimpleQueue[Any]) -> None:
    while True:
        _join(*queue.get())


def _join(work: Callable[[H], object], invited: deque[H], done: SimpleQueue[BaseException | None]) -> None:
    for hand in _drained(invited):
        try:
            work(hand)
        except BaseException as error:  # noqa: BLE001 -- raised again on the caller's thread
            done.put(error)
        else:
            done.put(None)
        return
