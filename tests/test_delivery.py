"""From what was measured to what is written: what comes together, in which order, and what an error costs."""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import vizlog
from vizlog.delivery import Delivery
from vizlog.diagnosis import KEYS
from vizlog.due import Turn
from vizlog.probes.base import Figures
from vizlog.records import Curves, Record, Scalar


class Destination(vizlog.Memory):
    """Keeps what was written together, waits where it is told to, and raises where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, list[str]]] = []
        self.summaries: list[tuple[int, str]] = []
        self.closed = 0
        self.fails: set[str] = set()
        self.held, self.go = threading.Event(), threading.Event()
        self.go.set()

    def hold(self, delivery: Delivery) -> None:
        """Keeps the worker busy until `go` is set."""
        self.go.clear()
        delivery._worker.submit(self.held.set)
        delivery._worker.submit(self._wait)
        self.held.wait()

    def _wait(self) -> None:
        self.go.wait()

    def write(self, step: int, records: Sequence[Record]) -> None:
        self._fail("write")
        self.written.append((step, [record.tag for record in records if "vizlog_" not in record.tag]))
        super().write(step, records)

    def summarise(self, step: int, scalars: Any, stopped_because: str = "") -> None:
        self._fail("summarise")
        self.summaries.append((step, stopped_because))
        super().summarise(step, scalars, stopped_because)

    def close(self) -> None:
        self.closed += 1
        self._fail("close")

    def _fail(self, doing: str) -> None:
        if doing in self.fails:
            raise ConnectionError("away")


class Finds(vizlog.Probe):
    """Finds what it is told to."""

    def __init__(self, *found: Any, name: str = "", finish: Callable[[Any], Iterable[Any]] | None = None) -> None:
        super().__init__()
        self.found, self._name, self._finish = found, name or type(self).__name__, finish
        self.measured: list[Any] = []

    @property
    def name(self) -> str:
        return self._name

    def finish(self, measured: Any) -> Iterable[Any]:
        self.measured.append(measured)
        yield from self.found if self._finish is None else self._finish(measured)


class Numbers(Finds):
    picture = False


class Slow(Finds):
    slow = True


@pytest.fixture
def to() -> Destination:
    return Destination()


@pytest.fixture
def failed() -> list[str]:
    return []


@pytest.fixture
def delivery(to: Destination, failed: list[str]) -> Iterator[Delivery]:
    delivery = Delivery(to, lambda turn, doing, error: failed.append(f"{turn.probe.name}: {doing}: {error}"))
    yield delivery
    to.go.set()
    delivery.close()


def measured(*probes: vizlog.Probe) -> list[tuple[Turn, Any]]:
    return [(Turn(probe), number) for number, probe in enumerate(probes)]


def tags(to: Destination) -> list[tuple[int, list[str]]]:
    return to.written


def shares(**layers: float) -> Figures:
    return Figures("dead_units", layers)


# Probes that find what is none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([1.5], "it gives records and Figures, not float"),
        ([None], "it gives records and Figures, not NoneType"),
        ([Figures("mine", {"a": "much"})], "isnan"),  # type: ignore[dict-item]
        ([Figures("mine", {"": 1.0})], "curves need x"),
    ],
)
def test_what_cannot_be_drawn_costs_its_own_probe_alone(
    delivery: Delivery, to: Destination, failed: list[str], found: list[Any], why: str
) -> None:
    delivery.send(0, measured(Numbers(shares(a=1.0)), Numbers(*found, name="Own"), Numbers(Scalar("b", 1))))
    delivery.flush()
    assert len(failed) == 1
    assert failed[0].startswith("Own: finish(): ")
    assert why in failed[0]
    assert {"health/dead_units_worst", "b"} <= {tag for _, written in tags(to) for tag in written}


def test_what_cannot_come_to_the_host_costs_its_own_probe_alone(
    delivery: Delivery, to: Destination, failed: list[str]
) -> None:
    bad, good = Numbers(Scalar("a", 1), name="Own"), Numbers(Scalar("b", 1))
    delivery.send(0, [(Turn(bad), torch.ones(2, device="meta")), (Turn(good), torch.ones(2))])
    delivery.flush()
    assert failed == ["Own: measure(): Cannot copy out of meta tensor; no data!"]
    assert [tag for _, written in tags(to) for tag in written] == ["b"]


def test_a_destination_that_fails_is_closed(delivery: Delivery, to: Destination) -> None:
    to.fails = {"write", "close"}
    delivery.log(0, {"a": 1})
    delivery.flush()
    assert to.closed == 1


def test_a_close_that_is_interrupted_goes_on_behind_it(
    delivery: Delivery, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    to.hold(delivery)
    delivery.send(0, measured(Numbers(Scalar("a", 1))))

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(delivery._worker, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            delivery.close()
    to.go.set()
    delivery._worker.flush()
    atexit.unregister(delivery._worker.flush)
    assert tags(to)[0] == (0, ["a"])
    assert to.closed == 1


def test_a_handler_that_closes_while_numbers_are_made_does_not_wait_for_itself(to: Destination) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)
    to.hold(delivery)

    def handled(_: Any) -> Iterable[Record]:
        delivery.flush()
        delivery.close()
        return [Scalar("a", 1)]

    delivery.send(0, measured(Numbers(finish=handled)))
    delivery.up_to_date()  # as at the next step with stop_when=
    to.go.set()
    delivery._worker.flush()
    atexit.unregister(delivery._worker.flush)
    assert tags(to)[0] == (0, ["a"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_numbers_are_made_waits_for_its_own(to: Destination) -> None:
    delivery, ended = Delivery(to, lambda *_: None, diagnoses=True), list[int]()
    to.hold(delivery)

    def forks(_: Any) -> Iterable[Record]:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            delivery.log(1, {"childs": 1.0})
            delivery.flush()
            os._exit(0 if tags(to) == [(1, ["childs"])] else 1)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return []

    delivery.send(0, measured(Numbers(finish=forks)))
    delivery.up_to_date()
    to.go.set()
    delivery.close()
    assert ended == [0]


def test_once_numbers_are_made_a_close_waits_again(to: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)
    delivery.send(0, measured(Numbers(shares(a=1.0))))
    delivery.up_to_date()
    monkeypatch.setattr(delivery, "leave", lambda: pytest.fail("it does not wait"))
    delivery.close()
    assert to.closed == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_what_its_parent_makes_of_numbers(to: Destination) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)
    with delivery._diagnosing:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            delivery.send(0, measured(Numbers(shares(a=1.0))))
            os._exit(0 if delivery.up_to_date().dead_units_worst == 1.0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    delivery.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_numbers_for_numbers_that_its_parent_makes(to: Destination) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)
    making, go = threading.Event(), threading.Event()

    def makes(_: Any) -> Iterable[Record]:
        making.set()
        go.wait()
        return []

    delivery.send(0, measured(Numbers(finish=makes)))
    making.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        delivery.up_to_date()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    delivery.close()


# What comes together --------------------------------------------------------------------------------------------------


def test_a_step_is_written_at_once_and_what_is_slow_after_it(delivery: Delivery, to: Destination) -> None:
    go = threading.Event()

    def waits(_: Any) -> Iterable[Record]:
        go.wait()
        return [Scalar("slow", 1)]

    probes = [Finds(Scalar("picture", 1)), Slow(finish=waits), Numbers(Scalar("number", 1)), Finds(Scalar("other", 1))]
    delivery.send(3, measured(*probes))
    delivery.log(4, {"later": 2.0})
    delivery._logged.send(delivery._write)
    delivery._worker._fast.wait()
    assert tags(to) == [(3, ["number", "picture", "other"]), (4, ["later"])]
    go.set()
    delivery.flush()
    assert tags(to)[2:] == [(3, ["slow"])]
    assert [probe.measured for probe in probes] == [[0], [1], [2], [3]]


def test_numbers_that_wait_go_before_what_is_measured_after_them(delivery: Delivery, to: Destination) -> None:
    value = torch.ones(())
    delivery.log(1, {"a": value, "b": 2})
    value.zero_()  # by training, in place
    delivery.log(2, {"a": value})
    delivery.send(2, measured(Numbers(Scalar("number", 1))))
    delivery.flush()
    assert tags(to) == [(1, ["a", "b"]), (2, ["a"]), (2, ["number"])]
    assert [record.value for _, record in to.of("a") if isinstance(record, Scalar)] == [1.0, 0.0]


def test_what_was_measured_reaches_finish_on_the_host_as_it_was(delivery: Delivery) -> None:
    probe, tensor = Numbers(), torch.ones(2)
    delivery.send(0, [(Turn(probe), {"a": [tensor]})])
    tensor.zero_()
    delivery.flush()
    assert torch.equal(probe.measured[0]["a"][0], torch.ones(2))


def test_health_figures_of_a_step_s_probes_are_drawn_together(delivery: Delivery, to: Destination) -> None:
    delivery.send(0, measured(Numbers(shares(a=0.5)), Numbers(shares(b=1.0), Scalar("own", 1))))
    delivery.flush()
    ((_, drawn),) = to.of("health/dead_units")
    assert isinstance(drawn, Curves)
    assert drawn.x_names == ["a", "b"]
    assert to.of("own")


def test_curves_of_health_are_written_ever_more_seldom_and_known_each_time(delivery: Delivery, to: Destination) -> None:
    own = Curves("own/curves", np.arange(2.0), {"y": np.zeros(2)}, "x", "y")
    for step in range(30):
        delivery.send(step, measured(Numbers(shares(a=0.5), own)))
    delivery.flush()
    assert [step for step, _ in to.of("health/dead_units")] == [0, 1, 2, 4, 6, 10, 18]
    assert len(to.of("own/curves")) == len(to.of("health/dead_units_worst")) == 30
    assert delivery.diagnosis.looks == 30


def test_a_tag_is_written_once_a_step_and_said_once(
    delivery: Delivery, to: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(2):
        probes = [Numbers(Scalar("a", 1)), Finds(Scalar("a", 2), Scalar("b", 2)), Slow(Scalar("b", 3), Scalar("c", 3))]
        delivery.send(step, measured(*probes))
        delivery.flush()
    assert tags(to) == [(0, ["a", "b"]), (0, ["c"]), (1, ["a", "b"]), (1, ["c"])]
    assert [record.value for _, record in to.of("a") if isinstance(record, Scalar)] == [1, 1]
    assert caplog.messages == [
        f"vizlog: two probes make {tag}; the second one's is left out" for tag in ("a", "b")
    ]  # fmt: skip


def test_what_is_slow_comes_behind_the_rest_though_it_is_faster(
    delivery: Delivery, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = delivery._worker.submit

    def waits(job: Callable[[], None], *, picture: bool = False, slow: bool = False) -> None:
        submit(job, picture=picture, slow=slow)
        if slow:
            delivery._worker._slow.wait()  # it has put its records into the other queue

    monkeypatch.setattr(delivery._worker, "submit", waits)
    delivery.send(0, measured(Slow(Scalar("slow", 1)), Numbers(Scalar("a", 1))))
    delivery.flush()
    assert tags(to) == [(0, ["a"]), (0, ["slow"])]


def test_what_each_probe_took_is_written(delivery: Delivery, to: Destination) -> None:
    turns = measured(Numbers(name="A"), Finds(name="A"), Slow(name="B"))
    for (turn, _), seconds in zip(turns, (1.0, 2.0, 4.0), strict=True):
        turn.latest_seconds = seconds
    delivery.send(0, turns, 0.25)
    delivery.flush()
    found = {record.tag: record.value for _, record in to.records if isinstance(record, Scalar)}
    assert found == {
        "health/vizlog_seconds/A": 3.0,
        "health/vizlog_seconds/B": 4.0,
        "health/vizlog_time_share": 0.25,
    }
    assert delivery.diagnosis.time_share == 0.25


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_probe_that_fails_costs_no_other(delivery: Delivery, to: Destination, failed: list[str]) -> None:
    def fails(_: Any) -> Iterable[Record]:
        yield Scalar("before", 1)
        raise ArithmeticError("no")

    probes = [Numbers(finish=fails, name="A"), Numbers(Scalar("b", 1)), Finds(finish=fails, name="C"), Slow()]
    delivery.send(0, measured(*probes))
    delivery.flush()
    assert failed == ["A: finish(): no", "C: finish(): no"]
    assert to.of("b")


def test_records_that_make_no_sense_as_health_are_written_all_the_same(
    delivery: Delivery, to: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    delivery.send(0, measured(Numbers(Curves("health/gradient_norm", np.zeros(1), {}, "x", "y"))))
    delivery.flush()
    assert to.of("health/gradient_norm")
    assert "vizlog could not make sense of step 0: " in caplog.text


@pytest.mark.parametrize("diagnoses", [False, True])
def test_where_nothing_can_be_written_one_measures_for_the_diagnosis_alone(to: Destination, *, diagnoses: bool) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=diagnoses)
    to.fails.add("write")
    delivery.send(0, measured(Numbers(Scalar("a", 1))))
    assert not delivery.is_in_vain
    delivery.flush()
    assert delivery.is_in_vain is not diagnoses
    delivery.close()


@pytest.mark.parametrize("doing", ["write", "summarise"])
def test_a_destination_that_fails_is_off_with_one_warning(
    delivery: Delivery, to: Destination, doing: str, caplog: pytest.LogCaptureFixture
) -> None:
    to.fails.add(doing)
    probe = Numbers(shares(a=1.0))
    for step in range(3):
        delivery.send(step, measured(probe, Slow(Scalar("slow", 1))))
        delivery.flush()
    delivery.log(4, {"a": 1.0})
    delivery.close()
    assert caplog.messages == ["vizlog: Destination could not write and is off from now on: ConnectionError: away"]
    assert len(probe.measured) == 1


def test_a_destination_that_cannot_be_closed_is_said(
    delivery: Delivery, to: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    to.fails.add("close")
    delivery.close()
    delivery.close()
    assert to.closed == 1
    assert caplog.messages == ["vizlog could not close Destination: ConnectionError: away"]


def test_what_is_no_number_is_left_out(delivery: Delivery, to: Destination, caplog: pytest.LogCaptureFixture) -> None:
    delivery.log(0, {"a": 1, "b": "text", "c": torch.zeros(2), "d": None, "e": torch.zeros(1), "": 1})
    delivery.log(0, {"f": torch.tensor(1j), "g": 10**400})
    delivery.flush()
    delivery.log(1, {"b": "text"})
    delivery.flush()
    assert tags(to) == [(0, ["a", "e"])]
    left_out = [message.split("; ")[1].split(" ")[0] for message in caplog.messages]
    assert left_out == ["'b'", "'c'", "'d'", "''", "'f'", "'g'"]  # once each


def test_a_tensor_without_a_value_costs_no_other_number(
    delivery: Delivery, to: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        delivery.log(0, {"b": x, "c": x.sum()})
        return x

    delivery.log(0, {"a": torch.ones(())})
    torch.vmap(loss)(torch.ones(2))
    delivery.log(0, {"d": 1, "e": torch.ones((), device="meta")})
    delivery.flush()
    delivery.log(1, {"f": torch.ones((), device="meta")})
    delivery.close()
    assert tags(to) == [(0, ["a"]), (0, ["d"])]
    assert [message.split("; ")[1].split(" ")[0] for message in caplog.messages] == ["'b'", "'c'", "'e'", "'f'"]


def test_one_rank_s_part_of_a_number_is_left_out_and_said_once(
    delivery: Delivery, to: Destination, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = torch.ones(())
    monkeypatch.setattr("vizlog.logged.is_sharded", lambda tensor: tensor is part)
    for step in range(2):
        delivery.log(step, {"a": part, "b": torch.ones(()), "c": 1})
    delivery.flush()
    assert tags(to) == [(0, ["b", "c"]), (1, ["b", "c"])]
    assert caplog.messages == ["vizlog: a is left out, since it is one rank's part: log its full_tensor()"]


# Where nothing is written ---------------------------------------------------------------------------------------------


def test_nothing_is_finished_where_nobody_wants_it() -> None:
    delivery, probe = Delivery(None, lambda *_: None), Numbers(shares(a=1.0))
    delivery.send(0, measured(probe))
    delivery.log(0, {"a": 1.0})
    delivery.flush()
    delivery.close()
    assert not probe.measured
    assert delivery._worker._fast._thread is None


def test_numbers_alone_are_finished_where_the_diagnosis_is_wanted() -> None:
    delivery = Delivery(None, lambda *_: None, diagnoses=True)
    numbers, picture = Numbers(shares(a=1.0)), Finds()
    delivery.send(0, measured(picture, numbers))
    assert delivery.up_to_date().dead_units_worst == 1.0
    delivery.close()
    assert (len(numbers.measured), len(picture.measured)) == (1, 0)


def test_the_diagnosis_is_up_to_date_before_the_worker_is(to: Destination) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)
    to.hold(delivery)
    probe = Numbers(shares(a=1.0))
    for step in range(2):
        delivery.send(step, measured(probe))
    assert delivery.diagnosis.looks == 0
    assert delivery.up_to_date().looks == 2
    assert delivery.up_to_date().looks == 2
    to.go.set()
    delivery.close()
    assert len(probe.measured) == 2  # each once, whoever made it
    assert [step for step, _ in to.of("health/dead_units_worst")] == [0, 1]
    assert delivery._unmade == []


def test_numbers_that_are_made_are_kept_for_nobody(to: Destination) -> None:
    delivery = Delivery(to, lambda *_: None, diagnoses=True)  # which is not asked once the training should stop
    for step in range(5):
        delivery.send(step, measured(Numbers(shares(a=1.0))))
        delivery.flush()
    assert len(delivery._unmade) == 1
    assert delivery.up_to_date().looks == 5
    delivery.close()


def test_no_numbers_are_kept_for_a_diagnosis_that_nobody_asks_for(delivery: Delivery) -> None:
    delivery.send(0, measured(Numbers()))
    assert delivery._unmade == []


# The summary ----------------------------------------------------------------------------------------------------------


def test_a_summary_follows_what_changed_and_is_there_in_any_case(delivery: Delivery, to: Destination) -> None:
    for step, share in ((5, 0.5), (6, 0.5), (3, 1.0)):  # the last has gone back
        delivery.send(step, measured(Numbers(shares(a=share))))
        delivery.flush()
    assert [step for step, _ in to.summaries] == [5, 6, 6]
    delivery.stopped(7, "dead")
    delivery.flush()
    assert to.summaries[-1] == (7, "dead")
    delivery.close()
    assert len(to.summaries) == 4
    assert to.summary["vizlog/stopped_because"] == "dead"


def test_a_picture_changes_no_summary(delivery: Delivery, to: Destination) -> None:
    delivery.send(0, measured(Slow(Scalar("a", 1))))
    delivery.flush()
    assert [step for step, _ in to.summaries] == [0]


def test_a_run_in_which_nothing_was_due_has_the_same_keys(delivery: Delivery, to: Destination) -> None:
    delivery.close()
    assert tuple(to.summary) == KEYS
    assert to.summaries == [(0, "")]


# Numbers that wait ----------------------------------------------------------------------------------------------------


def test_a_few_numbers_wait_and_many_do_not(
    delivery: Delivery, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(delivery._worker, "submit_within", lambda seconds, job: looks.append(seconds))
    for number in range(63):
        delivery.log(number, {"n": number})
    assert looks == [10.0]  # one that looks after all of them
    delivery._worker.flush()
    assert tags(to) == []
    delivery.log(63, {"n": 63})
    delivery._worker.flush()
    assert [step for step, _ in tags(to)] == list(range(64))


def test_a_number_alone_is_written_before_long(to: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.logged._SECONDS", 0.01)
    written = threading.Event()
    monkeypatch.setattr(to, "write", lambda step, records: written.set())
    delivery = Delivery(to, lambda *_: None)
    delivery.log(0, {"n": 1.0})
    assert written.wait(60)
    delivery.close()


def test_an_owner_elsewhere_is_told_of_the_training() -> None:
    class Owned(Destination):
        def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
            self.now, self.deliver = now, deliver

    to = Owned()
    delivery = Delivery(to, lambda *_: None)
    assert to.now() == -1
    delivery.now = 7
    assert to.now() == 7
    delivery.log(0, {"n": 1.0})
    to.deliver()
    assert tags(to) == [(0, ["n"])]
    delivery.close()


# Ends -----------------------------------------------------------------------------------------------------------------


def test_close_writes_what_waits_and_says_what_had_to_go(
    delivery: Delivery, to: Destination, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery._worker, "submit_within", lambda *_: None)  # it comes too late
    to.hold(delivery)
    for step in range(70):
        delivery.send(step, measured(Finds(Scalar("a", 1))))
    delivery.log(9, {"n": 1.0})
    thread = delivery._worker._fast._thread
    to.go.set()
    delivery.close()
    assert len(to.of("a")) == 64
    assert tags(to)[-1] == (9, ["n"])
    assert caplog.messages[1:] == ["vizlog dropped 6 pictures that came due faster than they could be drawn"]
    assert to.closed == 1
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


def test_one_that_is_left_ends_by_itself_once_all_is_written(to: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    delivery = Delivery(to, lambda *_: None)
    to.hold(delivery)
    delivery.send(0, measured(Slow(Scalar("slow", 1)), Numbers(Scalar("number", 1))))
    delivery.log(1, {"n": 1.0})
    delivery.leave()
    assert at_exit == [delivery._worker.flush]  # a script that ends now waits for the rest
    threads = [lane._thread for lane in (delivery._worker._fast, delivery._worker._slow)]
    to.go.set()
    for thread in threads:
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(tags(to)) == [(0, ["number"]), (0, ["slow"]), (1, ["n"])]
    assert to.closed == 1
    assert at_exit == []


def test_the_threads_of_one_that_is_left_end_where_it_could_not_write(to: Destination) -> None:
    to.fails.add("write")
    delivery = Delivery(to, lambda *_: None)
    delivery.send(0, measured(Slow(Scalar("slow", 1)), Numbers(Scalar("number", 1))))
    delivery.flush()
    threads = [lane._thread for lane in (delivery._worker._fast, delivery._worker._slow)]
    delivery.leave()
    for thread in threads:
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()


def test_one_that_is_left_and_writes_nothing_starts_nothing() -> None:
    delivery = Delivery(None, lambda *_: None)
    delivery.leave()
    assert delivery._worker._slow._thread is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("childs", [{}, {"childs": 1.0}])
def test_a_forked_child_leaves_what_waits_to_its_parent(
    delivery: Delivery, to: Destination, childs: dict[str, float]
) -> None:
    delivery.log(0, {"parents": 1.0})
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if childs:
            delivery.log(1, childs)
        delivery.flush()
        os._exit(0 if tags(to) == [(1, list(childs))] * len(childs) else 1)
    assert os.waitpid(child, 0)[1] == 0
    delivery.flush()
    assert tags(to) == [(0, ["parents"])]


def test_what_the_threads_have_computed_is_known(delivery: Delivery) -> None:
    def computes(_: Any) -> Iterable[Record]:
        math.factorial(20_000)
        return ()

    delivery.send(0, measured(Numbers(finish=computes)))
    delivery.flush()
    assert delivery.seconds > 0


def test_a_meter_is_read_when_it_is_logged() -> None:
    class Meter:
        value = 0.0

        def __float__(self) -> float:
            return self.value

    meter, memory = Meter(), vizlog.Memory()
    with vizlog.Monitor(torch.nn.Linear(1, 1), [], to=memory) as monitor:
        for k in range(3):
            with monitor.step():
                meter.value = float(k)
                monitor.log({"loss": meter})
    assert [record.value for _, record in memory.of("loss")] == [0.0, 1.0, 2.0]  # type: ignore[union-attr]
