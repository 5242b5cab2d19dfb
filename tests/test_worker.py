"""The worker: order, bounds, forks, exits."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from vizlog.worker import Worker


def test_jobs_run_in_order_on_another_thread() -> None:
    worker, done = Worker(), []
    for number in range(100):
        worker.submit(lambda number=number: done.append((number, threading.current_thread())))  # type: ignore[misc]
    worker.flush()
    assert [number for number, _ in done] == list(range(100))
    assert threading.main_thread() not in {thread for _, thread in done}
    assert worker.seconds > 0
    worker.close()


def blocked(worker: Worker) -> threading.Event:
    """Keeps the worker busy until the event is set."""
    started, go = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go.wait()

    worker.submit(job)
    started.wait()
    return go


def test_a_full_queue_drops_the_oldest_pictures_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    worker, done = Worker(most=3), []
    go = blocked(worker)
    for number in range(8):
        worker.submit(lambda number=number: done.append(number), picture=True)  # type: ignore[misc]
    go.set()
    worker.close()
    assert done == [5, 6, 7]
    assert worker.dropped == 5
    assert len(caplog.records) == 1
    assert "the oldest waiting ones are dropped" in caplog.text


def test_only_a_picture_too_many_takes_the_place_of_another() -> None:
    worker, done = Worker(most=3), []
    go = blocked(worker)
    for number in range(6):
        worker.submit(lambda number=number: done.append(number), picture=number < 3)  # type: ignore[misc]
    go.set()
    worker.close()
    assert done == list(range(6))
    assert worker.dropped == 0


def test_scalars_are_never_dropped_and_never_block() -> None:
    worker, done = Worker(most=2), []
    go = blocked(worker)
    for number in range(500):
        worker.submit(lambda number=number: done.append(number))  # type: ignore[misc]
        worker.submit(lambda: None, picture=True)
    go.set()
    worker.close()
    assert done == list(range(500))
    assert worker.dropped == 498


def test_a_slow_job_holds_up_no_other_and_is_waited_for() -> None:
    worker, done, go = Worker(), [], threading.Event()

    def slow() -> None:
        go.wait()
        worker.submit(lambda: done.append("written"))

    worker.submit(slow, slow=True)
    worker.submit(lambda: done.append("scalar"))
    worker._fast.wait()
    assert done == ["scalar"]
    go.set()
    worker.flush()
    assert done == ["scalar", "written"]


def test_a_job_that_fails_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    worker, done = Worker(), []
    worker.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    worker.submit(lambda: done.append(1))
    worker.close()
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text


def test_nothing_that_a_job_raises_ends_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    worker, done = Worker(), []
    worker.submit(leave)
    worker.submit(lambda: done.append(1))
    worker.flush()
    assert done == [1]
    assert "SystemExit" in caplog.text


def test_flush_and_close_may_come_twice_and_work_goes_on_after_them() -> None:
    others = set(threading.enumerate())
    worker, done = Worker(), []
    worker.flush()
    worker.close()
    worker.close()
    worker.submit_within(600, lambda: done.append(2))
    worker.submit(lambda: done.append(1))
    worker.flush()
    assert done == [1]
    worker.close()
    worker.flush()
    for thread in set(threading.enumerate()) - others:
        thread.join(60)
    worker.submit(lambda: done.append(3))
    worker.flush()
    assert done[-1] == 3
    worker.close()


def test_no_thread_runs_before_the_first_job_nor_after_the_close() -> None:
    before = threading.active_count()
    worker = Worker()
    assert threading.active_count() == before
    worker.submit(lambda: None)
    worker.submit(lambda: None, slow=True)
    worker.submit_within(600, lambda: None)
    worker.close()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Python warns of a fork while threads run: that is the case tested
@pytest.mark.parametrize("within", [True, False])
def test_a_forked_child_has_none_of_its_parents_jobs_and_can_work(*, within: bool) -> None:
    worker, read, write = Worker(), *os.pipe()
    go = blocked(worker)
    worker.submit(lambda: os.write(write, b"parent"))
    child = os.fork()
    if child == 0:
        worker.flush()
        if within:
            worker.submit_within(0, lambda: os.write(write, b"child"))
            time.sleep(1)
        else:
            worker.submit(lambda: os.write(write, b"child"))
            worker.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 100) == b"child"
    go.set()
    worker.close()
    assert os.read(read, 100) == b"parent"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_ends_though_a_thread_of_its_parent_held_the_lock() -> None:
    worker, held, go = Worker(), threading.Event(), threading.Event()

    def holds() -> None:
        with worker._fast._changed, worker._slow._changed:
            held.set()
            go.wait()

    thread = threading.Thread(target=holds)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        worker.flush()
        worker.close()
        worker.stop()
        worker.submit(lambda: None)
        worker.close()
        os._exit(0)
    go.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_job_may_flush_what_it_is_part_of() -> None:
    worker, done = Worker(), []

    def job() -> None:
        worker.flush()
        done.append(1)

    worker.submit(job)
    worker.close()
    assert done == [1]


def test_a_job_that_is_done_is_let_go() -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    worker = Worker()
    worker.submit(lambda held=held: None)  # type: ignore[misc]
    del held
    worker.flush()
    assert gone() is None
    worker.close()


def test_what_is_to_come_soon_is_not_put_off_by_what_comes_later() -> None:
    worker, first = Worker(), threading.Event()
    worker.submit(lambda: None)
    worker.flush()  # from now on the thread waits
    worker.submit_within(0.1, first.set)
    worker.submit_within(600, lambda: None)
    assert first.wait(60)
    worker.close()


def test_seconds_are_those_of_all_jobs_on_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    worker = Worker()
    for slow in (False, True, False, True, False):
        worker.submit(lambda: None, slow=slow)
        worker.flush()
    worker.close()
    assert worker.seconds == 5


def test_what_is_to_come_later_gives_way_to_no_picture() -> None:
    worker, done, go_on = Worker(most=1), [], threading.Event()
    go, holds = blocked(worker), threading.Event()
    worker.submit(lambda: (holds.set(), go_on.wait()))  # type: ignore[arg-type, return-value]
    worker.submit_within(0, lambda: done.append("later"))
    go.set()
    assert holds.wait(60)  # the job is in the queue now
    worker.submit(lambda: done.append("picture"), picture=True)
    go_on.set()
    worker.close()
    assert done == ["later", "picture"]
    assert worker.dropped == 0


def test_ctrl_c_in_a_job_that_runs_for_want_of_a_thread_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    def press() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", refuse)
    worker, done = Worker(), []
    with pytest.raises(KeyboardInterrupt):
        worker.submit(press)
    worker.flush()
    worker.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    worker.flush()
    worker.submit(lambda: done.append(1))
    worker.submit_within(600, lambda: done.append(2))  # nobody is there to wait
    worker.close()
    assert done == [1, 2]


TRAIN = """
import sys, torch, vizlog
from torch import nn

def train():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to="run", every=1, batch=(torch.randn(8, 3), torch.arange(8) % 3))
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        monitor.log({"loss": float(step)})
    return monitor, optimizer

kept = train()
"""


def steps_of(folder: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    run.Reload()
    return [event.step for event in run.Tensors(tag)]


def test_a_script_that_ends_without_close_has_written_everything(tmp_path: Path) -> None:
    """Other ways to end are in test_faults.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    for tag in ("weights/weight", "gradients/bias", "health/update_ratio_worst", "loss"):
        assert steps_of(tmp_path / "run", tag) == [0, 1, 2, 3, 4]
