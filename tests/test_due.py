"""When a probe is due next, by step and by epoch, stretched and not; and what one due step keeps apart."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from clock import Clock
from torch import Tensor, nn

import vizlog
from vizlog.batch import FixedBatch
from vizlog.channel import RanksApart
from vizlog.due import DueStep, Turn
from vizlog.isolation import isolated
from vizlog.ranks import Ranks
from vizlog.requests import AttentionCalls, Gradients, Outputs, Request, Updates, Weights
from vizlog.selection import named_parameters


def turn(every: int | vizlog.Schedule) -> Turn:
    return Turn(vizlog.Probe(every=every))


def test_it_is_due_by_step_or_by_epoch_once_that_is_known() -> None:
    by_epoch = turn(vizlog.EveryEpoch(2) | vizlog.AtSteps(5))
    assert by_epoch.due(0, None)
    by_epoch.plan(0, 0)
    assert [by_epoch.due(step, epoch) for step, epoch in ((4, None), (4, 1), (4, 2), (5, None))] == [
        *(False, False),
        *(True, True),
    ]
    by_epoch.disabled = True
    assert not by_epoch.due(5, 2)


@pytest.mark.parametrize(
    ("schedule", "epoch", "stretch", "due"),
    [
        (vizlog.Every(10), None, 1, (10, None)),
        (vizlog.Every(10), None, 3, (30, None)),
        (vizlog.EveryEpoch(2), 1, 2, (None, 4)),
        (vizlog.EveryEpoch(2), None, 2, (None, 0)),  # as soon as one is known
        (vizlog.AtSteps(3), 1, 3, (3, None)),
        (vizlog.AtSteps(3, 5) | vizlog.EveryEpoch(), 1, 2, (5, 3)),
    ],
)
def test_a_stretched_schedule_passes_due_numbers_by(
    schedule: vizlog.Schedule, epoch: int | None, stretch: int, due: tuple[int | None, int | None]
) -> None:
    planned = turn(schedule)
    planned.stretch = stretch
    planned.plan(0, epoch)
    assert (planned.next_step, planned.next_epoch) == due


@pytest.mark.parametrize(
    ("schedule", "step", "stretch", "due"),
    [
        (vizlog.Every(10), 13, 5, 60),  # 20, 30, 40, 50, 60
        (vizlog.Every(10), 0, 10**9, 10**10),
        (vizlog.LogSpaced(), 10, 3, 57),  # 18, 32, 57
        (vizlog.Thinning(100), 12_400, 3, 13_000),
        (vizlog.AtSteps(3, 5, 9), 4, 2, 9),
        (vizlog.AtSteps(3, 5, 9), 4, 3, 9),
        (vizlog.AtSteps(0, 1, 100, 110, 120), 0, 9, 100),
        (vizlog.AtSteps(3, 5), 4, 2, 5),
    ],
)
def test_however_far_it_is_stretched_the_next_is_found_at_once(
    schedule: vizlog.Schedule, step: int, stretch: int, due: int | None
) -> None:
    asked = 0

    class Counted(vizlog.Schedule):
        def next_step(self, step: int) -> int | None:
            nonlocal asked
            asked += 1
            return schedule.next_step(step)

    planned = turn(Counted())
    planned.stretch, asked = stretch, 0
    planned.plan(step, None)
    assert planned.next_step == due
    assert asked <= 3


def test_where_the_step_went_back_what_is_named_from_there_on_is_due_again() -> None:
    gone_back = turn(vizlog.Every(10) | vizlog.EveryEpoch(2))
    gone_back.plan(100, 4)
    gone_back.go_back(60, 2)
    assert (gone_back.next_step, gone_back.next_epoch) == (60, 2)
    gone_back.go_back(61, 3)
    assert (gone_back.next_step, gone_back.next_epoch) == (70, 4)
    gone_back.go_back(61, None)
    assert (gone_back.next_step, gone_back.next_epoch) == (70, None)


def test_a_stretched_schedule_that_was_over_goes_on_where_it_is_another_now() -> None:
    resumed = turn(vizlog.Every(10))
    resumed.load_state_dict({"next_step": None, "next_epoch": None, "stretch": 3}, 15, stretches=True)
    assert resumed.next_step == 20
    resumed.load_state_dict({"next_step": 40, "next_epoch": None, "stretch": 3}, 15, stretches=True)
    assert resumed.next_step == 40


def test_an_interval_is_that_of_the_steps_or_what_lay_between_the_latest_two_times() -> None:
    assert turn(10).interval(14) == 6
    by_epoch = turn(vizlog.EveryEpoch())
    by_epoch.plan(0, 0)
    assert by_epoch.interval(0) > 10**9  # nobody knows yet how long an epoch is
    by_epoch.plan(100, 1)
    assert by_epoch.interval(100) == 100
    by_epoch.plan(50, 0)  # gone back
    assert by_epoch.interval(50) == 100
    by_epoch.plan(110, 1)
    assert by_epoch.interval(110) == 60
    by_epoch.stretch = 3
    by_epoch.plan(170, 3)
    assert by_epoch.interval(170) == 20
    by_epoch.plan(171, 4)
    assert by_epoch.interval(171) == 1  # not 0, by which a cost would be divided


def test_what_fails_has_taken_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 4.0, 5.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    timed = turn(1)
    assert timed.seconds == timed.latest_seconds == 0

    def fail() -> Any:
        raise ValueError

    with pytest.raises(ValueError), timed.timed():  # noqa: PT011
        fail()
    with timed.timed():
        pass
    assert timed.seconds == timed.latest_seconds == 5.0


# One due step ---------------------------------------------------------------------------------------------------------


class Looks(vizlog.Probe):
    """Asks for what it is told to."""

    def __init__(self, *requests: Request) -> None:
        super().__init__(every=1)
        self.requests, self.asked = requests, 0

    def wants(self, models: Any) -> Mapping[str, Request]:
        self.asked += 1
        return {str(number): request for number, request in enumerate(self.requests)}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def begun(*probes: vizlog.Probe, model: nn.Module | None = None) -> tuple[DueStep, list[Turn], list[str]]:
    """A due step of these probes, their turns, and what has failed."""
    models = {"": model or net()}
    failed: list[str] = []
    step = DueStep(models, lambda turn, doing, error: failed.append(f"{turn.probe.name}: {doing}: {error}"))
    turns = [Turn(probe) for probe in probes]
    step.add(turns)
    step.parameters = named_parameters(models)
    return step, turns, failed


def total(tensors: list[Tensor]) -> list[float]:
    return [float(tensor.sum()) for tensor in tensors]


def fails(*_: Any) -> Any:
    raise ArithmeticError("no")


def test_a_probe_is_asked_once_and_not_where_it_has_failed_on_this_rank() -> None:
    probe, other = Looks(), Looks()
    step, (turn,), _ = begun(probe)
    failed = Turn(other)
    failed.error = "before"
    step.add([turn, failed])
    assert (probe.asked, other.asked) == (1, 0)
    assert step.due == [turn, failed]  # the other ranks have it too
    assert step.turns == [turn]


def test_a_training_forward_that_has_passed_can_be_asked_of_nobody() -> None:
    live = Looks(Outputs(lambda *_: True, lambda call: 1, live=True))
    still = Looks(Outputs(lambda *_: True, lambda call: 1), Weights(("0.bias",), total))
    step, _, _ = begun()
    turns = [Turn(live), Turn(still)]
    step.add(turns, forward_passed=True)
    assert step.due == step.turns == [turns[1]]
    assert not step.wants_live
    assert step.wants_batch


def test_one_whose_question_fails_is_due_and_left_out() -> None:
    class Asks(Looks):
        wants = fails

    good = Looks(Weights(("0.bias",), total))
    step, turns, failed = begun(Asks(), good)
    assert step.due == turns
    assert step.turns == turns[1:]
    assert failed == ["Asks: wants(): no"]


def test_one_that_fails_later_is_due_once_and_asks_for_nothing_more() -> None:
    bad, good = Looks(Weights(("0.bias",), fails), Gradients(("0.bias",), total)), Looks(Weights(("0.bias",), total))
    step, turns, failed = begun(bad, good)
    step.read_weights()
    assert step.due == turns
    assert step.turns == turns[1:]
    assert failed == ["Looks: the weights: no"]
    assert step.captured(turns[0]) == {}
    assert list(step.captured(turns[1])) == ["0"]


def test_ranks_that_have_parted_are_no_failure_of_a_probe() -> None:
    step, (turn,), failed = begun(Looks())
    with pytest.raises(RanksApart), step.guarded(turn, "measure()"):
        raise RanksApart("gone")
    assert not failed
    assert step.turns == [turn]


def test_ctrl_c_is_no_failure_of_a_probe() -> None:
    step, (turn,), failed = begun(Looks())
    with pytest.raises(KeyboardInterrupt), step.guarded(turn, "measure()"):
        raise KeyboardInterrupt
    assert not failed


def test_each_probe_gets_what_it_asked_for_by_its_own_keys() -> None:
    model = net()
    first = Looks(Weights(("0.bias",), total), Weights(("2.bias", "0.bias", "none"), total))
    second = Looks(Weights(("2.weight",), total))
    step, turns, failed = begun(first, second, model=model)
    step.read_weights()
    sums = {name: float(parameter.detach().sum()) for name, parameter in model.named_parameters()}
    assert step.captured(turns[0]) == {
        "0": {"0.bias": sums["0.bias"]},
        "1": {"2.bias": sums["2.bias"], "0.bias": sums["0.bias"]},
    }
    assert step.captured(turns[1]) == {"0": {"2.weight": sums["2.weight"]}}
    assert not failed


def ids(model: nn.Module, *names: str) -> set[int]:
    return {id(model.get_parameter(name)) for name in names}


def test_two_that_want_the_same_share_one_reduction_of_each_tensor() -> None:
    reduced: list[int] = []

    def count(tensors: list[Tensor]) -> list[int]:
        reduced.extend(tensor.numel() for tensor in tensors)
        return [tensor.numel() for tensor in tensors]

    step, turns, _ = begun(Looks(Weights(("0.bias", "0.weight"), count)), Looks(Weights(("0.weight", "2.bias"), count)))
    step.read_weights()
    assert sorted(reduced) == [1, 3, 6]
    assert [step.captured(turn)["0"] for turn in turns] == [{"0.bias": 3, "0.weight": 6}, {"0.weight": 6, "2.bias": 1}]


def test_parameters_are_read_once_their_optimizer_has_stepped_and_the_rest_at_the_end() -> None:
    model, reduced = net(), list[int]()

    def first(tensors: list[Tensor]) -> list[float]:
        assert tensors  # nobody is asked about nothing
        reduced.append(len(tensors))
        return [float(tensor[0]) for tensor in tensors]

    step, (turn,), failed = begun(Looks(Weights(("0.bias", "2.bias"), first)), model=model)
    later = Turn(Looks(Weights(("0.bias",), first)))
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(1)
        model.get_parameter("2.bias").fill_(5)
        step.read_weights(ids(model, "0.bias"))
        assert step.captured(turn) == {"0": {"0.bias": 1.0}}
        model.get_parameter("0.bias").fill_(2)  # by a later step that is none of this one
        step.read_weights()
        assert reduced == [1, 1]
        step.add([later])
        step.read_weights()
    assert step.captured(turn) == {"0": {"0.bias": 1.0, "2.bias": 5.0}}
    assert step.captured(later) == {"0": {"0.bias": 2.0}}
    assert not failed


def test_parameters_come_in_the_order_asked_for_whichever_are_trained() -> None:
    model, names = net(), ("0.weight", "0.bias", "2.weight", "2.bias")
    step, (turn,), failed = begun(Looks(Weights(names, total), Gradients(names, total)), model=model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for last_first in (ids(model, "2.weight", "2.bias"), ids(model, "0.weight", "0.bias")):
        step.read_gradients(last_first)
        step.read_weights(last_first)
    assert [tuple(found) for found in step.captured(turn).values()] == [names, names]
    assert not failed


def test_gradients_are_those_of_the_parameters_that_have_one() -> None:
    model = net()
    names = ("0.bias", "2.bias", "2.weight")
    step, (turn,), failed = begun(Looks(Gradients(names, total)), model=model)
    model.get_parameter("0.bias").grad = torch.full((3,), 2.0)
    model.get_parameter("2.bias").grad = torch.full((1,), 4.0)
    step.read_gradients(ids(model, "2.bias", "2.weight"))
    assert step.captured(turn) == {"0": {"2.bias": 4.0}}
    step.read_gradients()
    assert step.captured(turn) == {"0": {"2.bias": 4.0, "0.bias": 6.0}}
    assert not failed


def test_gradients_of_a_step_that_raised_are_forgotten() -> None:
    model = net()
    step, (turn,), failed = begun(Looks(Gradients(("0.bias", "2.bias"), total)), model=model)
    for value in (1.0, 2.0):  # the optimizer raised in between, and is called again
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        step.read_gradients(ids(model, "0.bias") if value == 2.0 else None)
    assert step.captured(turn) == {"0": {"0.bias": 6.0, "2.bias": 1.0}}
    assert not failed


def test_an_update_is_seen_between_a_copy_and_what_came_of_it() -> None:
    model = net()

    def change(before: Tensor, after: Tensor) -> tuple[tuple[int, ...], float]:
        assert not torch.is_grad_enabled()
        return tuple(before.shape), float((after - before).sum())

    parts = {"0.weight": (1, 2)}  # the second of two, which has one of three rows
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    asks = Updates(("0.weight", "0.bias", "2.bias", "scale", "none"), change, parts=parts)
    bad = Looks(Updates(("0.bias",), fails), Weights(("0.bias",), total))
    step, turns, failed = begun(Looks(asks), bad, model=model)
    step.keep_weights(ids(model, "0.weight", "0.bias", "scale"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    step.read_weights(ids(model, "0.weight", "0.bias", "2.bias", "scale"))
    seen = step.captured(turns[0])["0"]
    assert {name: shape for name, (shape, _) in seen.items()} == {"0.weight": (1, 2), "0.bias": (3,), "scale": ()}
    assert {name: found for name, (_, found) in seen.items()} == pytest.approx({"0.weight": 2, "0.bias": 3, "scale": 1})
    assert failed == ["Looks: updates: no"]
    with torch.no_grad():
        model.get_parameter("0.bias").add_(1)
    step.read_weights()  # the copies are gone
    assert step.captured(turns[0])["0"] == seen


def test_what_is_wanted_whole_is_read_at_the_end_alone() -> None:
    model = net()
    step, turns, failed = begun(
        Looks(Weights(("none", "0.bias"), total, whole=True)),
        Looks(Weights(("0.bias",), fails, whole=True)),
        model=model,
    )
    step.read_weights()
    assert step.captured(turns[0]) == {"0": {}}
    assert not failed
    step.read_whole_weights()
    assert step.captured(turns[0]) == {"0": {"0.bias": float(model.get_parameter("0.bias").detach().sum())}}
    assert failed == ["Looks: the weights: no"]


def test_each_moment_is_timed_for_the_probe_that_wants_it(clock: Clock) -> None:
    def takes(seconds: float) -> Any:
        def reduce(tensors: Any, *_: Any) -> list[int]:
            clock.now += seconds
            assert not torch.is_grad_enabled()
            return [0] * len(tensors)

        return reduce

    class Slow(Looks):
        def wants(self, models: Any) -> Mapping[str, Request]:
            clock.now += 100
            return super().wants(models)

    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    probes = [
        Slow(),
        Looks(Weights(("0.bias",), takes(1))),
        Looks(Weights(("0.bias",), takes(2), whole=True)),
        Looks(Gradients(("0.bias",), takes(4))),
        Looks(Updates(("0.bias",), takes(8))),
    ]
    step, turns, failed = begun(*probes, model=model)
    for turn in turns:
        turn.seconds = 0.0  # what was asked for last time
    step.keep_weights(ids(model, "0.bias"))
    step.read_gradients()
    step.read_weights()
    step.read_whole_weights()
    assert [turn.seconds for turn in turns] == [0, 1, 2, 4, 8]
    assert [turn.latest_seconds for turn in turns] == [100, 1, 2, 4, 8]
    step = DueStep({"": model}, lambda *_: None)
    step.add(turns)
    assert [turn.latest_seconds for turn in turns] == [100, 0, 0, 0, 0]
    assert not failed


def test_a_copy_takes_its_time_too(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    step, (turn,), _ = begun(Looks(Updates(("0.bias",), lambda before, after: 0)))

    def slow(request: Any, name: str) -> Tensor:
        clock.now += 3
        return torch.zeros(2)

    monkeypatch.setattr(step, "_part", slow)
    step.keep_weights({id(step.parameters["0.bias"])})
    assert turn.seconds == 3
    monkeypatch.setattr(step, "_part", fails)
    step.keep_weights({id(step.parameters["0.bias"])})
    assert not step.turns


# A pass over the fixed batch ------------------------------------------------------------------------------------------


class Adds(nn.Module):
    """Keeps the sum of what it was given, and adds what it had to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.last, self.calls = torch.zeros(2), None, 0
        self.register_buffer("total", torch.zeros(2))
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x + self.sum + self.total + (0 if self.last is None else self.last[0]))
        self.sum, self.total, self.last, self.calls = x.sum(0), x.sum(0), (x.sum(0),), self.calls + 1
        return found


def test_each_part_of_the_fixed_batch_starts_from_the_hidden_state_that_training_left() -> None:
    model, x = Adds(), torch.randn(70, 2)
    model(torch.ones(3, 2))
    outputs = Outputs(lambda *_: True, lambda call: x.new_empty(0) if call.tensor is None else call.tensor.clone(), 70)
    step, (turn,), failed = begun(Looks(outputs), model=model)
    with isolated([model]):
        step.run_batch(FixedBatch(x), nullcontext)
        assert model.calls == 4  # no tensor, and so no state of a network
    assert not failed
    torch.testing.assert_close(torch.cat(step.captured(turn)["0"]["layer"]), x + 9)
    assert model.calls == 1
    assert torch.equal(model.sum, torch.full((2,), 3.0))


# Ranks of a sharded model ---------------------------------------------------------------------------------------------


def test_what_ranks_have_read_becomes_one_result_in_the_order_asked_for() -> None:
    step, turns, failed = begun(
        Looks(Weights(("0.bias", "2.bias", "0.weight"), total)),
        Looks(Gradients(("0.bias",), total, merge=max), Weights(("0.bias",), total, whole=True)),
        Looks(Weights(("0.bias",), total, merge=fails)),
    )
    here = [(0, "0", pickle.dumps({"0.weight": 1.0})), (2, "0", pickle.dumps({"0.bias": 1.0}))]
    there = [
        (0, "0", pickle.dumps({"0.weight": 2.0, "0.bias": 3.0})),
        (1, "0", pickle.dumps({"0.bias": 4.0})),
        (2, "0", pickle.dumps({"0.bias": 1.0})),
    ]
    last = [(1, "0", pickle.dumps({"0.bias": 9.0})), (2, "0", pickle.dumps({"0.bias": 1.0}))]
    step.merge([here, there, last])
    assert list(step.captured(turns[0])["0"].items()) == [("0.bias", 3.0), ("0.weight", 3.0)]
    assert step.captured(turns[1]) == {"0": {"0.bias": 9.0}, "1": {}}
    assert failed == ["Looks: what the ranks have read: no"]


def test_a_rank_adds_what_it_is_to_count() -> None:
    model = net()
    probes = [
        Looks(Weights(("0.bias",), total), Weights(("0.bias",), total, whole=True)),
        Looks(Weights(("0.bias",), lambda tensors: [lambda: None])),
    ]
    step, turns, failed = begun(*probes, model=model)
    step.read_weights()
    step.read_whole_weights()
    ((number, key, pickled),) = step.own_part()
    assert (number, key) == (0, "0")
    assert pickle.loads(pickled) == step.captured(turns[0])["0"]
    assert len(failed) == 1
    assert failed[0].startswith("Looks: what it tells the rank that writes: ")

    other = DueStep({"": model}, lambda *_: None, Ranks(rank=1, world=2))
    other.add(turns[:1])
    other.parameters = step.parameters
    other.read_weights()
    ((_, _, pickled),) = other.own_part()
    assert pickle.loads(pickled) == {}  # rank 0 counts what lies whole on each


# Forwards -------------------------------------------------------------------------------------------------------------


def test_the_batch_is_run_as_far_as_it_is_asked_for_and_once_for_all(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedBatch, "chunk", 4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sizes = nn.Linear(2, 3), list[int]()

        def forward(self, x: Tensor) -> Tensor:
            clock.now += 6
            assert not torch.is_grad_enabled()
            self.sizes.append(len(x))
            return self.layer(x)

    def layer(name: str, module: nn.Module | None) -> bool:
        return name == "layer"

    contexts: list[int] = []

    @contextmanager
    def context() -> Iterator[None]:
        contexts.append(1)
        yield

    calls: list[int] = []

    def fails_once(call: Any) -> None:
        calls.append(1)
        fails()

    model = Net()
    few = Looks(Outputs(layer, lambda call: len(call.tensor), examples=4))
    many = Looks(Outputs(layer, lambda call: len(call.tensor), examples=9))
    bad = Looks(Outputs(layer, fails_once, examples=9), Outputs(layer, lambda call: 1, examples=9))
    step, turns, failed = begun(few, many, bad, model=model)
    step.run_batch(FixedBatch(torch.zeros(7, 2), torch.zeros(7)), context)
    assert model.sizes == [4, 3]
    assert step.captured(turns[0]) == {"0": {"layer": [4]}}
    assert step.captured(turns[1]) == {"0": {"layer": [4, 3]}}
    assert step.captured(turns[2]) == {}
    assert (len(contexts), len(calls)) == (2, 1)
    assert failed == ["Looks: what passed through the model: no"]
    assert [turn.seconds for turn in turns] == [2, 2 + 6, 2]

    model.sizes.clear()
    step, turns, _ = begun(few, Looks(Outputs(layer, lambda call: len(call.tensor), examples=5)), model=model)
    step.run_batch(FixedBatch(torch.zeros(12, 2), torch.zeros(12)), context)
    assert model.sizes == [4, 1]  # no more than is asked for
    assert [step.captured(turn) for turn in turns] == [{"0": {"layer": [4]}}, {"0": {"layer": [4, 1]}}]


def test_the_batch_is_run_to_its_end_also_where_nobody_wants_the_rest_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FixedBatch, "chunk", 4)
    sizes: list[int] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x

    few = Looks(Outputs(lambda *_: True, lambda call: len(call.tensor), examples=4))
    bad = Looks(Outputs(lambda *_: True, lambda call: fails(), examples=9))
    step, turns, failed = begun(few, bad, model=Net())
    step.run_batch(FixedBatch(torch.zeros(7, 2), torch.zeros(7)), torch.no_grad)
    assert sizes == [4, 3]  # another rank may be waiting in the second forward
    assert step.captured(turns[0]) == {"0": {"Net": [4]}}
    assert failed == ["Looks: what passed through the model: no"]


def test_who_wanted_the_batch_is_left_out_once_where_it_cannot_be_run() -> None:
    two = Looks(Outputs(lambda *_: True, lambda call: 1), AttentionCalls(lambda call: 1))
    live = Looks(Outputs(lambda *_: True, lambda call: 1, live=True))
    step, turns, _ = begun(live, two)
    assert step.wants_live
    assert step.drop_batch() == [turns[1]]
    assert step.turns == [turns[0]]
    assert step.due == turns
    assert not step.wants_batch


def test_a_training_forward_is_looked_at_until_the_stack_closes(clock: Clock) -> None:
    def takes(call: Any) -> tuple[int, ...]:
        clock.now += 2
        return tuple(call.tensor.shape)

    model = net()
    first_alone = Outputs(lambda name, module: name == "0", takes, live=True)
    step, turns, _ = begun(Looks(first_alone), Looks(Outputs(lambda *_: True, lambda call: 1)), model=model)
    step.take_live()  # nothing was attached yet
    with ExitStack() as stack:
        step.attach_live(stack)
        model(torch.zeros(4, 2))
    model(torch.zeros(5, 2))
    step.take_live()
    assert step.captured(turns[0]) == {"0": {"0": [(4, 3)]}}
    assert step.captured(turns[1]) == {"0": {}}
    assert [turn.seconds for turn in turns] == [2, 0]


def test_what_a_training_forward_showed_is_each_ranks_own() -> None:
    model = net()
    step, (turn,), failed = begun(Looks(Outputs(lambda name, _: name == "0", lambda call: 7, live=True)), model=model)
    with ExitStack() as stack:
        step.attach_live(stack)
        model(torch.zeros(4, 2))
    step.take_live()
    assert step.own_part() == []
    step.merge([[]])
    assert step.captured(turn) == {"0": {"0": [7]}}
    assert not failed


def test_a_compiled_model_runs_eagerly_while_it_is_looked_at() -> None:
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(4, 2))
    step, (turn,), _ = begun(Looks(Outputs(lambda name, _: name == "0", lambda call: 7, live=True)), model=model)
    with ExitStack() as stack:
        step.attach_live(stack)
        compiled(torch.zeros(4, 2))
    step.take_live()
    assert step.captured(turn) == {"0": {"0": [7]}}
