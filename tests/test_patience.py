"""Calls into a client that may stop answering: in order, waited for while something moves, and no longer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from vizlog.backends.patience import Patience

SHORT = 0.15


class Client:
    """Takes what it is given, in order; while it `hangs` it sits on it, and uses no processor."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.taken: list[Any] = []

    def take(self, what: Any = None) -> None:
        self.goes_on.wait(60)
        self.taken.append(what)

    def refuse(self) -> None:
        self.take("refused")
        raise ConnectionError("no")


@pytest.fixture
def client() -> Iterator[Client]:
    """One that hangs until it is told to go on."""
    client = Client()
    yield client
    client.goes_on.set()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def all_done(patience: Patience) -> bool:
    until(lambda: not patience._jobs)
    return patience.wait()


@dataclass
class Clock:
    """Seconds as `Patience` reads them, which pass when a test says so: how busy the machine is decides nothing."""

    now: float = 1e6

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("vizlog.backends.patience.time", clock)
    return clock


def test_calls_are_made_in_order_on_one_other_thread() -> None:
    patience, threads = Patience(), []
    for _ in range(3):
        assert patience.call(lambda: threads.append(threading.current_thread()))
    assert threading.current_thread() not in threads
    assert {thread.daemon for thread in threads} == {True}  # what hangs holds up no process that ends


def test_what_hangs_is_left_and_what_queues_up_behind_it_comes_in_order(client: Client) -> None:
    patience = Patience(SHORT)
    assert not patience.call(lambda: client.take(0))
    for number in (1, 2, 3):
        assert not patience.call(lambda number=number: client.take(number))
    assert len([thread for thread in threading.enumerate() if thread is patience._thread]) == 1
    client.goes_on.set()
    assert all_done(patience)
    assert client.taken == [0, 1, 2, 3]
    assert patience.dropped == 0


def test_what_is_done_is_a_sign_of_life(client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)  # else that it computes is one
    patience, second = Patience(), threading.Event()
    threading.Timer(SHORT, setattr, (clock, "now", clock.now + 1000)).start()
    assert not patience.call(client.take)
    assert not patience.call(lambda: client.taken.append(second.wait(60)))
    client.goes_on.set()
    until(lambda: len(patience._jobs) == 1)
    threading.Timer(SHORT, second.set).start()
    assert patience.wait()


@pytest.mark.parametrize("of_threads", [True, False])
def test_each_call_has_its_time_from_when_it_is_made(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, *, of_threads: bool
) -> None:
    if not of_threads:
        monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)
    patience = Patience()
    assert patience.call(lambda: None)
    clock.now += 1000  # nobody asked anything, so that there was nothing to answer
    assert patience.call(lambda: None)


def test_while_nothing_moves_nobody_waits_again(client: Client, clock: Clock) -> None:
    patience = Patience()
    threading.Timer(SHORT, setattr, (clock, "now", clock.now + 1000)).start()
    assert not patience.call(client.take)
    patience._changed.wait = lambda _: pytest.fail("it waits")  # type: ignore[assignment, misc]
    assert not patience.call(client.take)
    assert not patience.wait()


def test_more_than_may_queue_up_is_dropped_and_counted(client: Client) -> None:
    patience = Patience(SHORT, most=3)
    assert [patience.call(lambda number=number: client.take(number)) for number in range(5)] == [False] * 5
    client.goes_on.set()
    assert all_done(patience)
    assert (client.taken, patience.dropped) == ([0, 1, 2], 2)


def test_who_is_there_is_waited_for_and_not_without_end(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Patience(SHORT, lives=lambda: True)
    threading.Timer(3 * SHORT, client.goes_on.set).start()
    assert there.call(client.take)
    client.goes_on.clear()
    monkeypatch.setattr(Patience, "LONGEST", 2 * SHORT)
    assert not there.call(client.take)


def test_who_computes_is_waited_for_and_who_waits_is_not(client: Client) -> None:
    """Whoever answers, and however long a busy machine takes for it."""

    def compute() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.8:
            pass

    patience = Patience(seconds=0.5)
    assert patience.call(compute)
    assert not patience.call(client.take)


def test_a_sign_of_life_within_a_long_call_counts(clock: Clock) -> None:
    patience = Patience(seconds=2.0)

    def work() -> None:
        for _ in range(4):
            clock.now += 1.0
            time.sleep(SHORT)  # so that it is looked at
            patience.sign_of_life()

    assert patience.call(work)


def test_a_system_that_says_nothing_of_a_threads_clock_has_only_silence(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)
    patience = Patience(SHORT)
    assert not patience.call(client.take)
    client.goes_on.set()
    assert all_done(patience)


def test_a_thread_that_has_ended_has_no_clock_either(monkeypatch: pytest.MonkeyPatch) -> None:
    patience, threads = Patience(SHORT), []
    assert patience.call(lambda: threads.append(threading.current_thread()))
    threads[0].join()
    monkeypatch.setattr(patience, "_start", lambda: None)  # the next one takes its time
    assert not patience.call(lambda: None)


def test_what_is_done_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.backends.patience._BETWEEN_LOOKS", 40.0)
    patience, began = Patience(), time.monotonic()
    assert all(patience.call(lambda: None) for _ in range(5))
    assert time.monotonic() - began < 40


def test_an_error_is_raised_where_the_call_was_made_and_once() -> None:
    patience = Patience()

    def fail() -> None:
        raise ConnectionError("no")

    with pytest.raises(ConnectionError, match="no"):
        patience.call(fail)
    assert patience.call(lambda: None)
    assert patience.wait()


def test_the_first_error_of_what_was_left_is_raised_at_the_next_call(client: Client) -> None:
    patience = Patience(SHORT)

    def fail() -> None:
        raise ValueError("the second")

    assert not patience.call(client.refuse)
    assert not patience.call(fail)
    client.goes_on.set()
    until(lambda: not patience._jobs)
    with pytest.raises(ConnectionError):
        patience.call(lambda: None)


def test_an_error_is_raised_also_where_the_next_call_hangs(client: Client) -> None:
    patience, second, done = Patience(SHORT), threading.Event(), []
    assert not patience.call(client.refuse)
    patience._seconds = 60
    threading.Timer(SHORT, client.goes_on.set).start()
    with pytest.raises(ConnectionError):
        patience.call(lambda: done.append(second.wait(60)), lambda: done.append("followed"))
    assert done == []
    second.set()
    assert all_done(patience)
    assert done == [True, "followed"]


def test_what_follows_comes_only_where_the_call_had_been_left(client: Client) -> None:
    patience, followed = Patience(SHORT), []
    assert not patience.call(client.take, lambda: followed.append("after the one that hung"))
    assert not patience.call(client.refuse, lambda: followed.append("after one that failed"))
    assert not patience.call(client.take)
    client.goes_on.set()
    with pytest.raises(ConnectionError):
        all_done(patience)
    assert patience.call(client.take, lambda: followed.append("after one that was waited for"))
    assert all_done(patience)
    assert followed == ["after the one that hung"]


def test_what_follows_comes_before_what_had_queued_up(client: Client) -> None:
    patience = Patience(SHORT)
    assert not patience.call(client.take, lambda: client.take("follows"))
    assert not patience.call(lambda: client.take("later"))
    client.goes_on.set()
    assert all_done(patience)
    assert client.taken == [None, "follows", "later"]


def test_where_no_thread_can_start_calls_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a process, from Python 3.12 on."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    patience, done = Patience(), []
    assert [patience.call(lambda number=number: done.append(number)) for number in range(2)] == [True, True]
    assert done == [0, 1]


def test_a_forked_child_calls_nobody() -> None:
    patience = Patience()
    patience.call(lambda: None)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:  # as a thread may at that very moment, which the child does not have
        with patience._changed:
            held.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if patience.call(lambda: os._exit(1)) is False and patience.wait() else 2)
    let_go.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
