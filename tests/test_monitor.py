"""The monitor: explicit steps, what goes wrong, what it costs."""

from __future__ import annotations

import functools
import gc
import logging
import re
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import vizlog
from vizlog.batch import BatchDoesNotFit
from vizlog.delivery import Delivery
from vizlog.probes.base import Context
from vizlog.ranks import FailedElsewhereError, Ranks
from vizlog.records import Histogram, Scalar
from vizlog.requests import Call, Outputs, Updates, Weights

X, Y = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def steps(memory: vizlog.Memory, tag: str) -> list[int]:
    return [step for step, _ in memory.of(tag)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


# Ends in the middle ---------------------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("end", ["close", "load a state"])
def test_a_step_that_is_not_over_leaves_no_hook_behind(end: str) -> None:
    model, memory = net(), vizlog.Memory()
    probes = [vizlog.ActivationHistograms(every=1, source="live"), vizlog.WeightHistograms(every=1)]
    monitor = vizlog.Monitor(model, probes, to=memory)
    state = monitor.state_dict()
    with monitor.step(7):
        assert hooks(model)
        monitor.close() if end == "close" else monitor.load_state_dict(state)
        assert not hooks(model)
        model(X).sum().backward()
    monitor.close()
    assert not hooks(model)
    assert steps(memory, "activations/1") == steps(memory, "weights/0.weight") == []


def test_what_has_ended_is_written_by_close_also_where_an_optimizer_has_not_stepped() -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.ActivationHistograms(every=1, source="live")]
    monitor = vizlog.Monitor(model, probes, to=memory, optimizer=optimizer)
    with monitor.step():
        model(X).sum().backward()
    monitor.close()
    assert steps(memory, "activations/1") == [0]


def test_a_closed_monitor_sees_no_further_step() -> None:
    model, memory = net(), vizlog.Memory()
    stop_when = ["nonfinite"]
    monitor = vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory, stop_when=stop_when)
    monitor.close()
    with monitor.step(3):
        assert not monitor.is_due
    assert not steps(memory, "weights/0.weight")


def test_a_step_that_never_ended_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory, optimizer=optimizer) as monitor:
        for step in range(3):
            monitor.begin()
            if step == 1:
                monitor._count += 1  # the loop went on without it
                continue
            model(X).sum().backward()
            monitor.end()
            optimizer.step()
    assert steps(memory, "weights/0.weight") == [0, 2]
    assert not warnings(caplog)


@pytest.mark.parametrize("optimizer", [None, SGD])
def test_a_monitor_that_saw_no_step_says_how_it_sees_them(optimizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    watched = optimizer(model.parameters(), lr=0.1) if optimizer else None
    for follows in (False, True):
        monitor = vizlog.Monitor(model, [], to=None, optimizer=watched)
        if follows:
            monitor.follow()
        monitor.close()
    why = "the watched optimizer never stepped" if optimizer else "give optimizer=, or put `with monitor.step():`"
    # Who gave an optimizer and takes the steps himself may have had none to take.
    assert [why in message for message in warnings(caplog)] == [True] * (1 if optimizer else 2)


def test_a_monitor_that_has_said_what_is_wrong_says_no_more(caplog: pytest.LogCaptureFixture) -> None:
    monitor = vizlog.Monitor(net(), [], to=vizlog.Memory())
    monitor.begin("three")  # type: ignore[arg-type]
    monitor.log([1.0])  # type: ignore[arg-type]
    monitor.close()
    assert [message[: message.index(":", 8)] for message in warnings(caplog)] == [
        "vizlog: failed at the start of a step",
        "vizlog: log() takes a mapping of tags to numbers",
    ]


def test_what_is_wrong_with_log_costs_no_step() -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [vizlog.WeightHistograms(every=1)], to=memory) as monitor:
        for _ in range(3):
            with monitor.step():
                monitor.log(0.5)  # type: ignore[arg-type]
    assert [step for step, _ in memory.of("weights/0.weight")] == [0, 1, 2]


def test_a_schedule_of_ones_own_that_fails_costs_its_probe_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Third(vizlog.Schedule):
        def next_step(self, step: int) -> int:
            if step == 1:
                raise ArithmeticError("no")
            return step + 1

    model, memory = net(), vizlog.Memory()
    probes = [vizlog.WeightHistograms(every=Third()), vizlog.ActivationHistograms(every=2)]
    with vizlog.Monitor(model, probes, to=memory, batch=(torch.randn(4, 3), None)) as monitor:
        for _ in range(5):
            with monitor.step():
                pass
    assert steps(memory, "weights/0.weight") == [0, 1]
    assert steps(memory, "activations/0") == [0, 2, 4]
    (message,) = warnings(caplog)
    assert "WeightHistograms failed at the Third schedule, off from now on: ArithmeticError: no" in message


def test_what_fails_between_probes_costs_its_step_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, memory = net(), vizlog.Memory()
    send = Delivery.send

    def fails_once(self: Any, step: int, *rest: Any) -> None:
        if step == 1:
            raise MemoryError
        send(self, step, *rest)

    monkeypatch.setattr("vizlog.delivery.Delivery.send", fails_once)
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory) as monitor:
        for _ in range(3):
            with monitor.step():
                pass
    assert steps(memory, "weights/0.weight") == [0, 2]
    (message,) = warnings(caplog)
    assert "failed at a due step: MemoryError" in message


def test_a_forward_runs_under_the_context_that_was_given() -> None:
    under: list[bool] = []

    @contextmanager
    def context() -> Iterator[None]:
        under.append(True)
        yield

    def batch() -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        return X, Y

    model = net()
    options = {"batch": batch, "to": vizlog.Memory(), "forward_context": context}
    with vizlog.Monitor(model, [vizlog.ActivationHistograms(every=1)], **options) as monitor:
        assert len(under) == 1  # the first look
        with monitor.step():
            assert not hooks(model)  # there is none to learn from the training's own
            model(X)
        assert len(under) == 2


@pytest.mark.parametrize("late", ["follow", "load a state"])
def test_a_closed_monitor_arms_nothing(late: str) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.ActivationHistograms(every=1, source="live")]
    monitor = vizlog.Monitor(model, probes, to=vizlog.Memory(), optimizer=optimizer)
    monitor.follow()
    assert hooks(model)
    assert not monitor.is_due  # its first step is yet to come
    state = monitor.state_dict()
    monitor.close()
    monitor.follow() if late == "follow" else monitor.load_state_dict(state)
    assert not hooks(model)


def test_who_takes_the_steps_himself_has_no_hook_between_them() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.ActivationHistograms(every=1, source="live")]
    with vizlog.Monitor(model, probes, to=vizlog.Memory(), optimizer=optimizer) as monitor:
        for _ in range(2):
            with monitor.step():
                model(X).sum().backward()
            optimizer.step()
            assert not hooks(model)


class Runs(vizlog.Probe):
    """Runs the model itself."""

    def __init__(self, *, asks: bool = False) -> None:
        super().__init__(every=1)
        self.asks, self.trains = asks, list[bool]()

    def wants(self, models: Any) -> Any:
        return {"seen": Outputs(lambda *_: True, self.look)} if self.asks else {}

    def look(self, call: Call) -> None:
        self.trains.append(any(module.training for module in self.model.modules()))

    def bind(self, models: Any, survey: Any) -> None:
        self.model: nn.Module = models[""]

    def finish(self, measured: Any) -> Iterable[Any]:
        return ()


class RunsItself(Runs):
    def measure(self, context: Any) -> Any:
        assert not torch.is_grad_enabled()
        context.model(X)
        self.trains.append(context.model.training)


@pytest.mark.parametrize("probe", [Runs(asks=True), RunsItself()])
def test_whoever_runs_the_model_runs_it_apart_from_training(probe: Runs, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    mean = model[1].running_mean
    with vizlog.Monitor(model, [probe], to=vizlog.Memory(), batch=(X, Y)) as monitor, monitor.step():
        pass
    assert probe.trains
    assert not any(probe.trains)
    assert model.training
    assert torch.equal(mean, torch.zeros(4))  # type: ignore[arg-type]
    assert not warnings(caplog)


def test_a_probe_that_needs_a_batch_where_there_is_none_says_so(caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    probes = [Runs(asks=True), vizlog.WeightHistograms(every=1)]
    with vizlog.Monitor(net(), probes, to=memory) as monitor:
        for _ in range(2):
            with monitor.step():
                pass
    assert steps(memory, "weights/0.weight") == [0, 1]
    (message,) = warnings(caplog)
    assert message.endswith(
        "Runs failed at the pass over the fixed batch, off from now on: ValueError: there is none: give batch="
    )


@pytest.mark.parametrize("part", ["vizlog.due.DueStep.attach_live", "vizlog.monitor.named_parameters"])
def test_what_fails_between_steps_reaches_no_optimizer(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.ActivationHistograms(every=2, source="live")]
    monitor = vizlog.watch(model, optimizer, to=vizlog.Memory(), probes=probes)
    train(model, optimizer, 1)

    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(part, fails)
    train(model, SGD(model.parameters(), lr=0.1), 2)
    train(model, optimizer, 3)
    monitor.close()
    assert any("MemoryError" in message for message in warnings(caplog))


def test_nothing_is_isolated_for_what_was_read_while_training_ran(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    kinds = (vizlog.WeightHistograms, vizlog.GradientHistograms, vizlog.ActivationHistograms, vizlog.UpdateRatios)
    probes = [kind(every=1) for kind in kinds]
    with vizlog.Monitor(model, probes, to=memory, optimizer=optimizer) as monitor:
        monkeypatch.setattr("vizlog.monitor.isolated", lambda _: pytest.fail("that takes longer than the rest"))
        with monitor.step():
            model(X).sum().backward()
            optimizer.step()
    for tag in ("weights/0.weight", "gradients/0.weight", "activations/0", "updates/0.weight"):
        assert steps(memory, tag) == [0]
    assert not warnings(caplog)


class RunsIt(vizlog.GradientHistograms):
    def measure(self, context: Context) -> Any:
        context.model(torch.rand(2, 3))
        return super().measure(context)


class RunsItWrapped(vizlog.GradientHistograms):
    @functools.wraps(vizlog.GradientHistograms.measure)
    def measure(self, context: Context) -> Any:
        context.model(torch.rand(2, 3))
        return super().measure(context)


def runs_it_by_an_attribute(**options: Any) -> vizlog.Probe:
    probe: Any = vizlog.GradientHistograms(**options)
    probe.measure = functools.partial(RunsIt.measure, RunsIt(**options))
    return probe


@pytest.mark.parametrize("kind", [RunsIt, RunsItWrapped, runs_it_by_an_attribute])
def test_a_measure_of_ones_own_is_isolated_whatever_it_takes_after(
    kind: Callable[..., vizlog.Probe], caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer, memory = SGD(model.parameters(), lr=0.1), vizlog.Memory()
    with vizlog.Monitor(model, [kind(every=1)], to=memory, optimizer=optimizer) as monitor, monitor.step():
        model(torch.rand(4, 3)).sum().backward()
        optimizer.step()
    assert model.training
    assert steps(memory, "gradients/0.weight") == [0]
    assert int(model[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert not warnings(caplog)


@pytest.mark.parametrize("to", [(vizlog.Memory(), vizlog.Memory()), ("a", "b"), ("a", "a")])
def test_two_monitors_that_share_no_folder_or_no_model_go_on_side_by_side(
    to: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    models = [net(), net()] if to[0] == to[1] else [net()] * 2
    monitors = [
        vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=destination)
        for model, destination in zip(models, to, strict=True)
    ]
    for monitor in monitors:
        with monitor.step():
            assert monitor.is_due
        monitor.close()
    mixed = f"vizlog: two models are written to {Path.cwd() / str(to[0])}, where tags mix: give each a folder"
    assert warnings(caplog) == ([mixed] if to[0] == to[1] else [])


def test_parameters_that_nobody_trains_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = SGD(model[2].parameters(), lr=0.1)
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=vizlog.Memory(), optimizer=optimizer) as monitor:
        for _ in range(2):
            with monitor.step():
                model(X).sum().backward()
            optimizer.step()
    (message,) = warnings(caplog)
    assert "no watched optimizer has these parameters" in message


def test_a_model_of_another_type_costs_no_probe_that_has_no_batch(caplog: pytest.LogCaptureFixture) -> None:
    class Measures(vizlog.Probe):
        def measure(self, context: Any) -> int:
            return 1

        def finish(self, measured: int) -> Iterable[Any]:
            yield Scalar("measured", measured)

    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [Measures(every=1)], to=memory) as monitor:
        for _ in range(2):
            with monitor.step():
                pass
            model.double()
    assert steps(memory, "measured") == [0, 1]
    assert not warnings(caplog)


def test_where_nothing_is_due_nothing_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(vizlog.Probe):
        def measure(self, context: Any) -> Any:
            raise ArithmeticError

    probes = [vizlog.WeightHistograms(every=10), Fails(every=1)]
    with vizlog.Monitor(net(), probes, to=vizlog.Memory()) as monitor:
        for step in range(4):
            with monitor.step(step, epoch=4):
                pass
            if step == 1:  # at which it was to be due again
                monkeypatch.setattr(monitor, "_begin_due", lambda *_, **__: pytest.fail("nothing is"))
    assert len(warnings(caplog)) == 1  # of what has failed, and is not due any more


def test_a_model_that_has_lost_its_parameters_is_run_on_the_batch_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale: nn.Parameter | None = nn.Parameter(torch.ones(3))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x if self.scale is None else x * self.scale)

    model, memory = Scales(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.ActivationHistograms(every=1)], to=memory, batch=(X, Y)) as monitor:
        for _ in range(2):
            with monitor.step():
                pass
            model.scale = None
    assert steps(memory, "activations/act") == [0, 1]
    assert not warnings(caplog)


# One of several ranks, which does not write ---------------------------------------------------------------------------


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on rank 1 of two that train copies of a model."""
    monkeypatch.setattr("vizlog.ranks.Ranks.of", lambda models: Ranks(rank=1, world=2, takes_part=False))


def test_a_rank_that_takes_no_part_does_nothing(
    second_rank: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    forwards = model.register_forward_pre_hook(lambda *_: pytest.fail("the training alone runs the model"))
    probes = [
        *(vizlog.ActivationHistograms(every=1, source="live"), vizlog.ActivationHistograms(every=1)),
        *(vizlog.UpdateRatios(every=1), vizlog.SaliencyMaps(every=1), RunsItself()),
    ]
    options = {"to": tmp_path / "run", "batch": lambda: pytest.fail("nor makes a batch"), "optimizer": optimizer}
    with vizlog.Monitor(model, probes, **options) as monitor:
        forwards.remove()
        monitor.follow()
        assert not hooks(model)
        assert not optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]
        for step in (3, 4, 0):
            with monitor.step(step):
                assert not hooks(model)
                assert not monitor.is_due
                model(X).sum().backward()
            optimizer.step()
        monitor.log({"n": 1.0})
        monitor.flush()
    assert not (tmp_path / "run").exists()
    assert not warnings(caplog)


def test_a_rank_that_takes_no_part_chooses_no_probes_and_says_nothing_of_steps(
    second_rank: None, caplog: pytest.LogCaptureFixture
) -> None:
    with vizlog.Monitor(net(), to=vizlog.Memory(), batch=(X, Y)) as monitor:
        assert monitor.probes == ()
    assert not warnings(caplog)


def test_a_rank_that_only_waits_for_a_stop_looks_at_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vizlog.ranks.Ranks.of", lambda models: Ranks(rank=1, takes_part=False))
    model = net()
    probes = [vizlog.ActivationHistograms(every=1, source="live")]
    caplog.set_level(logging.INFO)
    with vizlog.Monitor(model, probes, to=vizlog.Memory(), stop_when="dead") as monitor, monitor.step():
        assert not monitor.is_due
        assert not hooks(model)
        assert monitor.state_dict()["step"] == 0
    assert monitor.state_dict()["step"] == 1
    assert not caplog.messages


def test_what_failed_on_another_rank_is_said_to_have_failed_there(caplog: pytest.LogCaptureFixture) -> None:
    monitor = vizlog.Monitor(net(), [vizlog.WeightHistograms()], to=vizlog.Memory())
    monitor._disable(monitor._turns[0], "measure()", FailedElsewhereError(3, "ValueError: no"))
    monitor.close()
    (message,) = [message for message in warnings(caplog) if "off from now on" in message]
    assert message == "vizlog: WeightHistograms failed on rank 3 at measure(), off from now on: ValueError: no"


def test_what_is_wrong_is_wrong_on_a_rank_that_takes_no_part_too(second_rank: None) -> None:
    with pytest.raises(TypeError, match="batch"):
        vizlog.Monitor(net(), to=None, batch=3)  # type: ignore[arg-type]


# States ---------------------------------------------------------------------------------------------------------------


def test_a_state_is_gone_on_from_wherever_the_monitor_was() -> None:
    """What is due, in which epoch, of which probe; one that the state does not know starts anew."""
    model, memory = net(), vizlog.Memory()

    def monitor(*more: vizlog.Probe) -> vizlog.Monitor:
        return vizlog.Monitor(model, [vizlog.WeightHistograms(every=vizlog.EveryEpoch(2)), *more], to=memory)

    with monitor() as first:
        for step in range(3):
            with first.step(step, epoch=2):
                pass
        state = first.state_dict()
    assert steps(memory, "weights/0.weight") == [0, 2]
    del state["health"]  # an older version's
    with monitor(vizlog.GradientHistograms(every=5)) as second:
        second.load_state_dict(state)
        for step, epoch in ((3, 2), (4, 3), (5, 4)):
            with second.step(step, epoch=epoch):
                model(X).sum().backward()
    assert steps(memory, "weights/0.weight") == [0, 2, 5]
    assert steps(memory, "gradients/0.weight") == [3, 5]


def trained_for(number: int, *probes: vizlog.Probe, ends: str = "close", **how: Any) -> tuple[nn.Module, vizlog.Memory]:
    """Watched for so many steps, and what there is once the monitor is closed."""
    model, memory = net(), vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=memory, probes=list(probes) or None, **how)
    with pytest.raises(KeyError) if ends == "raises" else nullcontext(), monitor:
        for _ in range(number):
            optimizer.zero_grad()
            model(X).sum().backward()
            optimizer.step()
        if ends == "raises":
            raise KeyError
        if ends == "looks=False":
            monitor.close(looks=False)
    return model, memory


def test_a_run_too_short_for_a_second_look_is_looked_at_once_more_as_it_ends() -> None:
    model, memory = trained_for(7, batch=X)
    assert steps(memory, "weights/0.weight") == steps(memory, "activations/0") == [0, 6]
    assert steps(memory, "gradients/0.weight") == steps(memory, "updates/0.weight") == [0]  # no step is under way
    last = memory.of("weights/0.weight")[-1][1]
    assert isinstance(last, vizlog.Histogram)
    weight = next(model.parameters())
    assert (last.min, last.max) == pytest.approx((weight.min().item(), weight.max().item()))
    assert max(len(memory.of(tag)) for tag in {record.tag for _, record in memory.records}) == 2


@pytest.mark.parametrize(
    ("number", "schedule", "how", "expected"),
    [
        (1, 100, {}, [0]),  # the first look is at the last step
        (6, 5, {}, [0, 5]),
        (7, 5, {}, [0, 5]),
        (7, vizlog.AtSteps(0), {}, [0]),  # nothing more was planned
        (7, 100, {"budget": 0.5}, [0]),
        (7, 100, {"ends": "raises"}, [0]),
        (7, 100, {"ends": "looks=False"}, [0]),
        (0, 100, {}, []),
    ],
)
def test_no_other_run_is_looked_at_once_more(
    number: int, schedule: Any, how: dict[str, Any], expected: list[int]
) -> None:
    _, memory = trained_for(number, vizlog.WeightHistograms(every=schedule), **how)
    assert steps(memory, "weights/0.weight") == expected


def test_the_last_look_leaves_out_what_another_probe_has_just_shown() -> None:
    """Health figures, and what vizlog costs, come once a step."""
    _, memory = trained_for(7, vizlog.WeightHistograms(every=100), vizlog.GradientHistograms(every=1))
    assert steps(memory, "weights/0.weight") == [0]
    assert steps(memory, "health/nonfinite_worst") == list(range(7))


def test_a_last_look_in_inference_mode_has_gradients(caplog: pytest.LogCaptureFixture) -> None:
    model, memory = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)), vizlog.Memory()
    optimizer, images = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(4, 1, 8, 8)
    probe = vizlog.SaliencyMaps(methods=["gradient", "gradcam"], target=0, every=100)
    monitor = vizlog.watch(model, optimizer, to=memory, batch=(images, torch.tensor([0, 1, 0, 1])), probes=[probe])
    for _ in range(3):
        model(images).sum().backward()
        optimizer.step()
    with torch.inference_mode():
        monitor.close()
    assert steps(memory, "saliency/gradcam/class-0") == steps(memory, "saliency/gradient/class-0") == [0, 2]
    assert "without Grad-CAM" not in caplog.text


def test_a_last_look_that_is_interrupted_closes_all_the_same() -> None:
    class Long(vizlog.Probe):
        looks = 0

        def measure(self, context: Any) -> float:
            self.looks += 1
            if self.looks > 1:
                raise KeyboardInterrupt
            return 1.0

        def finish(self, measured: float) -> Any:
            yield vizlog.Scalar("mine/one", measured)

    class Kept(vizlog.Memory):
        closed = False

        def close(self) -> None:
            self.closed = True

    model, memory = net(), Kept()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=memory, probes=[Long(every=100)])
    for _ in range(3):
        model(X).sum().backward()
        optimizer.step()
    with pytest.raises(KeyboardInterrupt):
        monitor.close()
    assert memory.closed
    assert steps(memory, "mine/one") == [0]
    assert not optimizer._optimizer_step_pre_hooks


def test_a_last_look_that_fails_is_said_and_closes_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Once(vizlog.Probe):
        looks = 0

        def measure(self, context: Any) -> float:
            self.looks += 1
            if self.looks > 1:
                raise ValueError("gone")
            return 1.0

        def finish(self, measured: float) -> Any:
            yield vizlog.Scalar("mine/one", measured)

    _, memory = trained_for(7, Once(every=100), vizlog.WeightHistograms(every=100))
    assert steps(memory, "mine/one") == [0]
    assert steps(memory, "weights/0.weight") == [0, 6]
    assert [
        message
        for message in caplog.messages
        if "Once failed at measure(), off from now on: ValueError: gone" in message
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (vizlog.AtSteps(0, 3), vizlog.AtSteps(0, 3, 7, 9), [7, 9]),
        (vizlog.Every(100), vizlog.Every(4), [8]),
        (vizlog.Every(2), vizlog.Every(2), [6, 8]),
    ],
)
def test_a_resumed_run_heeds_the_schedule_it_has_now(
    before: vizlog.Schedule, after: vizlog.Schedule, expected: list[int]
) -> None:
    model = net()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=before)], to=None) as first:
        for _ in range(5):
            with first.step():
                pass
        state = first.state_dict()
    memory = vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=after)], to=memory) as second:
        second.load_state_dict(state)
        for _ in range(5):
            with second.step():
                pass
    assert steps(memory, "weights/0.weight") == expected


def test_without_a_budget_nothing_is_stretched_whatever_the_state_says() -> None:
    model, memory = net(), vizlog.Memory()
    state = {"step": 5, "epoch": None, "probes": {"WeightHistograms": {"next_step": 900, "next_epoch": None}}}
    state["probes"]["WeightHistograms"]["stretch"] = 800  # type: ignore[index]
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory) as monitor:
        monitor.load_state_dict(state)
        for _ in range(2):
            with monitor.step():
                pass
    assert steps(memory, "weights/0.weight") == [5, 6]


def test_what_is_logged_before_the_first_step_of_a_resumed_run_stands_at_the_step_before() -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.WeightHistograms()], step=5) as monitor:
        monitor.log({"validation": 1.0})
        train(model, optimizer, 1)
    with vizlog.Monitor(model, [vizlog.WeightHistograms()], to=memory) as again:
        again.load_state_dict({"step": 9, "epoch": None, "probes": {}})
        again.log({"validation": 1.0})
    assert steps(memory, "validation") == [4, 8]


def test_what_is_logged_after_close_is_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    monitor = vizlog.Monitor(net(), [vizlog.WeightHistograms()], to=vizlog.Memory())
    monitor.close()
    for _ in range(2):
        monitor.log({"test": 1.0})
    assert [line for line in warnings(caplog) if "log() after close()" in line] == [
        "vizlog: log() after close() writes nothing"
    ]


def test_a_run_that_begins_anew_after_a_state_was_loaded_is_seen_from_there() -> None:
    """As where a checkpoint was validated before a fit."""
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=4)], to=memory) as monitor:
        monitor.load_state_dict({"step": 90, "epoch": None, "probes": {}})
        for step in range(9):
            with monitor.step(step):
                pass
    assert steps(memory, "weights/0.weight") == [0, 4, 8]


def test_a_step_that_a_scaler_skipped_is_not_given_the_numbers_of_the_next() -> None:
    model, memory = net(), vizlog.Memory()
    optimizer, scaler = SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=16.0)
    probes = [vizlog.GradientHistograms(every=5), vizlog.WeightHistograms(every=5)]
    weights = []
    with vizlog.Monitor(model, probes, to=memory, optimizer=optimizer) as monitor:
        for number in range(7):
            with monitor.step():
                optimizer.zero_grad()
                loss = model(X).sum() * (float("inf") if number == 0 else 1.0)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            weights.append(float(model[0].weight.detach().max()))
    assert steps(memory, "gradients/0.weight") == steps(memory, "weights/0.weight") == [1, 5]
    assert [record.max for _, record in memory.of("weights/0.weight")] == [weights[1], weights[5]]


def test_two_probes_of_a_kind_keep_states_of_their_own() -> None:
    model = net()
    probes = [vizlog.WeightHistograms("0", every=3), vizlog.WeightHistograms("2", every=5)]
    with vizlog.Monitor(model, probes, to=vizlog.Memory()) as monitor:
        assert set(monitor.state_dict()["probes"]) == {"WeightHistograms", "WeightHistograms-2"}


# Explicit steps -------------------------------------------------------------------------------------------------------


def test_with_an_optimizer_gradients_are_read_as_it_uses_them() -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=1)], to=memory, optimizer=optimizer) as monitor:
        with monitor.step():
            (1024 * model(X).sum()).backward()
        for parameter in model.parameters():
            parameter.grad.div_(1024)  # type: ignore[union-attr]
        expected = float(model[0].weight.grad.max())  # type: ignore[union-attr, arg-type]
        optimizer.step()
    ((_, record),) = memory.of("gradients/0.weight")
    assert record.max == expected  # type: ignore[union-attr]


def test_without_an_optimizer_gradients_and_weights_are_read_at_the_end_of_the_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, memory = net(), vizlog.Memory()
    probes = [vizlog.WeightHistograms(every=2), vizlog.GradientHistograms(every=2)]
    with vizlog.Monitor(model, probes, to=memory) as monitor:
        for _ in range(5):
            model.zero_grad()
            with monitor.step():
                (1024 * model(X).sum()).backward()
            assert model[0].weight.grad is not None
    assert not warnings(caplog)
    assert steps(memory, "weights/0.weight") == steps(memory, "gradients/0.weight") == [0, 2, 4]
    (_, record), *_ = memory.of("gradients/0.weight")
    assert isinstance(record, Histogram)
    assert "before the optimizer: not clipped, scaled as the loss was" in record.caption


def test_with_an_optimizer_a_step_is_complete_once_it_has_stepped() -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory, optimizer=optimizer) as monitor:
        with monitor.step():
            model(X).sum().backward()
        monitor.flush()
        assert not memory.of("weights/0.weight")
        optimizer.step()
        monitor.flush()
        (_, record), *_ = memory.of("weights/0.weight")
    assert record.max == model[0].weight.max().item()  # type: ignore[union-attr]


def test_step_numbers_may_be_given_and_counting_goes_on_from_them() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory) as monitor:
        for number in (7, None, 20, None):
            with monitor.step(number):
                pass
    assert steps(memory, "weights/0.weight") == [7, 8, 20, 21]


def test_a_step_begun_twice_is_one_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vizlog")
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=1)], to=memory) as monitor:
        for _ in range(3):  # micro-batches of one step
            monitor.begin(0)
            model(X).sum().backward()
        monitor.end()
        monitor.begin(1)
        monitor.end()
    assert steps(memory, "gradients/0.weight") == [0, 1]
    assert "of training (2 steps)" in caplog.text


def test_state_that_is_made_within_a_step_is_not_the_step() -> None:
    """As a checkpoint is loaded: a step at rate 0, with gradients of 0."""
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=1)], to=memory, optimizer=optimizer) as monitor:
        with monitor.step():
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.param_groups[0]["lr"] = 0.0
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1
            model(X).sum().backward()
        expected = model[2].bias.grad.max().item()
        optimizer.step()
    ((_, record),) = memory.of("gradients/2.bias")
    assert record.max == expected == len(X)  # type: ignore[union-attr]


def test_a_part_that_nothing_trains_is_told_when_it_is_watched_and_not_again(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = SGD(model[0].parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=vizlog.Memory(), probes=[vizlog.WeightHistograms(every=1)]):
        train(model, optimizer, 3)
    (message,) = warnings(caplog)
    assert "no watched optimizer has these parameters" in message


def test_what_it_cost_is_said_once_however_often_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vizlog")
    monitor = vizlog.Monitor(net(), [vizlog.WeightHistograms()], to=vizlog.Memory())
    with monitor, monitor.step():
        pass
    monitor.close()
    assert caplog.text.count("of training (1 steps)") == 1


def test_a_loop_that_goes_on_from_a_checkpoint_sees_its_first_forward() -> None:
    found = []
    for _ in range(2):
        model, memory = net(), vizlog.Memory()
        optimizer = SGD(model.parameters(), lr=0.1)
        probe = vizlog.ActivationHistograms(every=1, source="live")
        with vizlog.watch(model, optimizer, to=memory, probes=[probe]) as monitor:
            if found:
                monitor.load_state_dict(found[0])
            train(model, optimizer, 2)
            found.append(monitor.state_dict())
    assert steps(memory, "activations/0") == [2, 3]


def test_an_exception_cancels_the_step_passes_through_and_leaves_it_due() -> None:
    model, memory = net(), vizlog.Memory()
    probe = vizlog.ActivationHistograms(every=100, source="live")
    with vizlog.Monitor(model, [probe], to=memory) as monitor:
        with pytest.raises(KeyError), monitor.step():
            raise KeyError("mine")
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
        for _ in range(2):
            with monitor.step():
                model(X)
    assert steps(memory, "activations/0") == [0]


def test_a_step_tried_again_after_an_exception_is_looked_at_and_counted_once() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=2)], to=memory) as monitor:
        for number in range(6):
            for fails in (True, False):
                with suppress(MemoryError), monitor.step():
                    if fails:
                        raise MemoryError
                    model(X).sum().backward()
            assert monitor.state_dict()["step"] == number + 1
    assert steps(memory, "gradients/0.weight") == [0, 2, 4]


def test_a_step_that_never_ended_is_forgotten_when_the_next_begins() -> None:
    model, memory = net(), vizlog.Memory()
    probes = [vizlog.ActivationHistograms(every=1, source="live"), vizlog.GradientHistograms(every=1)]
    with vizlog.Monitor(model, probes, to=memory) as monitor:
        monitor.begin(0)
        model(X)  # and the loop goes on to the next batch
        with monitor.step(1):
            model(X[:2]).sum().backward()
    assert steps(memory, "activations/0") == steps(memory, "gradients/0.weight") == [1]
    (_, record), *_ = memory.of("activations/0")
    assert record.count == 2 * 4  # type: ignore[union-attr]


def test_epochs_may_be_given() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=vizlog.EveryEpoch(2))], to=memory) as monitor:
        for number in range(12):
            with monitor.step(epoch=number // 3):
                pass
    assert steps(memory, "weights/0.weight") == [0, 6]


def test_epochs_that_come_twice_are_due_twice() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=vizlog.EveryEpoch(2))], to=memory) as monitor:
        for number in (*range(12), *range(3, 12)):  # goes on from a checkpoint
            with monitor.step(number, epoch=number // 3):
                pass
    assert steps(memory, "weights/0.weight") == [0, 6, 6]


def test_gradients_that_are_gone_at_the_end_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=1)], to=vizlog.Memory()) as monitor:
        for _ in range(3):
            with monitor.step():
                model(X).sum().backward()
                model.zero_grad()
    (message,) = warnings(caplog)
    assert "none of the selected parameters had a gradient at the end of the step" in message


def test_writing_nothing_is_possible() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = set(threading.enumerate())
    with vizlog.watch(model, optimizer, to=None, batch=(X, Y), every=1):
        train(model, optimizer, 2)
        assert set(threading.enumerate()) <= before  # nothing is finished, or drawn
    with vizlog.watch(model, optimizer, to=None, probes=[]) as monitor:
        monitor.log({"loss": 1.0})
        assert set(threading.enumerate()) <= before


def test_numbers_are_written_before_what_is_seen_later() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=2)], to=memory) as monitor:
        for number in range(5):
            with monitor.step():
                monitor.log({"loss": number})
    written = [step for step, _ in memory.records]
    assert written == sorted(written)
    assert set(written) == set(range(5))


def test_models_by_name_have_their_names_in_tags() -> None:
    memory = vizlog.Memory()
    with (
        vizlog.Monitor({"G": net(), "D": net()}, [vizlog.WeightHistograms("G.0")], to=memory) as monitor,
        monitor.step(),
    ):
        pass
    assert {record.tag for _, record in memory.records if record.tag.startswith("weights")} == {
        "weights/G.0.weight",
        "weights/G.0.bias",
    }


@pytest.mark.parametrize("models", [[net(), net()], {"0": net(), "1": nn.Linear(3, 3)}])
def test_a_model_that_does_not_run_on_the_batch_is_named_once(models: Any, caplog: pytest.LogCaptureFixture) -> None:
    def run(models: Any, x: Tensor) -> Tensor:
        return models["1"](models["0"](x))  # type: ignore[no-any-return]

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if "on the fixed batch" in record.getMessage()]

    with caplog.at_level(logging.INFO, "vizlog"):
        vizlog.Monitor(models, to=None, batch=vizlog.FixedBatch(X, Y, forward=run)).close()
        vizlog.Monitor(net(), to=None, batch=(X, Y)).close()
        assert not said()
        vizlog.Monitor(models, to=None, batch=(X, Y)).close()
    (message,) = said()
    assert message.startswith("vizlog: nothing runs 1 on the fixed batch, so its activations are not seen there")
    assert "FixedBatch(inputs, forward=" in message


class Recurrent(nn.Module):
    """(N, T, 4) -> (N, T, 6), or (T, N, …) where it takes time first."""

    def __init__(self, kind: str, *, batch_first: bool) -> None:
        super().__init__()
        self.attends = kind == "attention"
        self.layer: nn.Module = (
            nn.MultiheadAttention(4, 2, batch_first=batch_first)
            if self.attends
            else nn.GRU(4, 6, batch_first=batch_first)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(*[x] * (3 if self.attends else 1))[0]
        return out


@pytest.mark.parametrize("kind", ["attention", "recurrence"])
def test_a_layer_that_takes_examples_for_time_steps_is_named(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Recurrent(kind, batch_first=False), Recurrent(kind, batch_first=True)
    x = torch.randn(20, 7, 4)
    turned = vizlog.FixedBatch(x, forward=lambda model, x: model(x.transpose(0, 1)))
    for model, batch in ((second, x), (first, turned), (first, torch.randn(20, 2, 4))):
        vizlog.Monitor(model, to=None, batch=batch).close()
    assert "takes time first" not in caplog.text
    vizlog.Monitor(first, to=None, batch=x).close()
    (message,) = [message for message in caplog.messages if "takes time first" in message]
    assert message.startswith("vizlog: layer (")
    assert "got (2, 7, 4) of 2 examples, which it takes for time steps: make it with batch_first=True" in message


class Generates(nn.Module):
    """A generator, and parts that its forward does not run."""

    def __init__(self, **others: nn.Module) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        for name, part in others.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.generator(x)
        return out


def not_run(caplog: pytest.LogCaptureFixture, model: nn.Module, *optimizers: torch.optim.Optimizer) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "vizlog"):
        vizlog.Monitor(model, to=None, batch=torch.randn(4, 3), optimizer=optimizers or None).close()
    return [record.getMessage() for record in caplog.records if "nothing runs" in record.getMessage()]


def test_trained_parts_of_a_model_that_do_not_run_on_the_batch_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Generates(discriminator=net(), frozen=net().requires_grad_(requires_grad=False), critic=nn.Linear(2, 2))
    (message,) = not_run(caplog, model)
    assert message.startswith("vizlog: nothing runs discriminator, critic on the fixed batch")
    assert "FixedBatch(inputs, forward=lambda model, inputs" in message
    (message,) = not_run(caplog, model, SGD(model.generator.parameters(), 0.1), SGD(model.critic.parameters(), 0.1))
    assert message.startswith("vizlog: nothing runs critic on the fixed batch")
    assert not not_run(caplog, model, SGD(model.generator.parameters(), 0.1))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_parts_that_run_or_cannot_be_seen_to_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Generates(scripted=torch.jit.script(nn.Linear(3, 3)), table=nn.ParameterList([torch.ones(2)]))
    model.again = nn.ModuleList([model.generator[0]])  # type: ignore[index]  # the same layer under a second name
    model.shared = nn.Linear(3, 4, bias=False)  # as T5's table of tokens, which its encoder and decoder look up in
    model.shared.weight = model.generator[0].weight  # type: ignore[index]
    assert not not_run(caplog, model)

    class Attends(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x, x, x)

    assert not not_run(caplog, Attends(3, 1))


def test_numbers_are_logged_at_the_step_under_way_as_they_were_then() -> None:
    model, memory = net(), vizlog.Memory()
    loss, seen = torch.zeros((), requires_grad=True), np.zeros(())
    with vizlog.Monitor(model, [], to=memory) as monitor:
        for number in range(3):
            with monitor.step():
                with torch.no_grad():
                    loss.fill_(number)
                seen.fill(number)
                monitor.log({"loss": loss, "rate": 0.5, "seen": seen})
    for tag in ("loss", "seen"):
        assert [(step, record.value) for step, record in memory.of(tag)] == [(0, 0.0), (1, 1.0), (2, 2.0)]  # type: ignore[union-attr]
    assert len(memory.of("rate")) == 3


def test_what_is_no_number_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [], to=memory) as monitor, monitor.step():
        monitor.log({"loss": 1.0, "all": torch.zeros(3), "text": "high"})
    assert [record.tag for _, record in memory.records] == ["loss"]
    assert "'all' is left out" in caplog.text
    assert "'text' is left out" in caplog.text


def test_two_probes_of_one_kind_make_figures_of_all_their_layers() -> None:
    model, memory = net(), vizlog.Memory()
    probes = [vizlog.GradientHistograms("0", every=1), vizlog.GradientHistograms("2", every=1)]
    with vizlog.Monitor(model, probes, to=memory) as monitor, monitor.step():
        model(X).sum().backward()
    ((_, curve),) = memory.of("health/gradient_norm")
    assert list(curve.x_names) == ["0", "2"]  # type: ignore[union-attr]
    assert (curve.ys["gradient_norm"] > 0).all()  # type: ignore[union-attr]


def test_the_time_each_probe_took_is_logged() -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [vizlog.WeightHistograms()], to=memory) as monitor, monitor.step():
        pass
    ((_, record),) = memory.of("health/vizlog_seconds/WeightHistograms")
    assert isinstance(record, Scalar)
    assert 0 < record.value < 60


# What goes wrong ------------------------------------------------------------------------------------------------------


class Failing(vizlog.Probe):
    """Fails at one of its moments, at the second step."""

    def __init__(self, moment: str) -> None:
        super().__init__(every=1)
        self.moment = moment
        self.times = 0

    def fail(self, moment: str, times_a_step: int = 1) -> None:
        if moment == self.moment:
            self.times += 1
            if self.times > times_a_step:
                raise ZeroDivisionError(moment)

    def reduce(self, tensors: list[Tensor]) -> list[Any]:
        self.fail("reduce")
        return [tensor.sum() for tensor in tensors]

    def reduce_whole(self, tensors: list[Tensor]) -> list[Any]:
        self.fail("reduce whole")
        return [tensor.sum() for tensor in tensors]

    def update(self, before: Tensor, after: Tensor) -> Any:
        self.fail("update")
        return (after - before).sum()

    def look(self, call: Call) -> Any:
        if call.layer == "0":
            self.fail("look")
        return 1

    def wants(self, models: Any) -> Any:
        self.fail("wants")
        return {
            "w": Weights(("0.weight",), self.reduce),
            "whole": Weights(("0.weight",), self.reduce_whole, whole=True),
            "u": Updates(("0.weight",), self.update, parts=Parts(self)),
            "o": Outputs(lambda layer, module: True, self.look),
        }

    def measure(self, context: Any) -> Any:
        self.fail("measure")
        return context.captured["w"]

    def finish(self, measured: Any) -> Iterable[Scalar]:
        self.fail("finish")
        yield Scalar("mine", 1.0)


class Parts(dict[str, tuple[int, int]]):
    """Asked for which part of a parameter to copy before the update, and to compare after it."""

    def __init__(self, probe: Failing) -> None:
        self.probe = probe

    def get(self, *_: Any) -> tuple[int, int]:
        self.probe.fail("copy", times_a_step=2)
        return 0, 1


@pytest.mark.parametrize("moment", ["wants", "copy", "reduce", "update", "reduce whole", "look", "measure", "finish"])
def test_a_probe_that_fails_is_off_with_one_warning_and_the_rest_goes_on(
    moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(*, watch: bool) -> tuple[dict[str, Tensor], vizlog.Memory]:
        torch.manual_seed(0)
        model, memory = net(), vizlog.Memory()
        optimizer = SGD(model.parameters(), lr=0.1)
        if watch:
            probes = [Failing(moment), vizlog.WeightHistograms(every=1), vizlog.ActivationHistograms(every=1)]
            monitor = vizlog.watch(model, optimizer, to=memory, probes=probes, batch=(X, Y))
        for _ in range(5):
            train(model, optimizer, 1)
            if watch:
                monitor.flush()
        if watch:
            monitor.close()
        return model.state_dict(), memory

    alone, _ = trained(watch=False)
    watched, memory = trained(watch=True)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    (message,) = warnings(caplog)
    assert "Failing failed" in message
    assert f"ZeroDivisionError: {moment}" in message
    assert steps(memory, "mine") == [0]
    assert steps(memory, "weights/0.weight") == steps(memory, "activations/0") == list(range(5))


def test_a_batch_pass_that_fails_takes_only_what_needs_it(caplog: pytest.LogCaptureFixture) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken and not self.training:
                raise ValueError("not in eval mode")
            return self.fc(x)

    model, memory = nn.Sequential(Moody()), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [
        vizlog.WeightHistograms(every=1),
        vizlog.ActivationHistograms(every=1),
        vizlog.GradientHistograms(every=1),
    ]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, batch=(X, Y)):
        train(model, optimizer, 2)
        model[0].broken = True  # type: ignore[assignment]
        train(model, optimizer, 2)
    (message,) = warnings(caplog)
    assert "ActivationHistograms failed at the pass over the fixed batch" in message
    assert "not in eval mode" in message
    assert steps(memory, "activations/0.fc") == [0, 1]
    assert steps(memory, "weights/0.fc.weight") == steps(memory, "gradients/0.fc.weight") == [0, 1, 2, 3]


def test_a_backend_that_fails_is_off_with_one_warning_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def write(self, step: int, records: Any) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise OSError("still no space")

    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=[Full(), memory], probes=[vizlog.WeightHistograms(every=1)]):
        train(model, optimizer, 3)
    assert steps(memory, "weights/0.weight") == [0, 1, 2]
    assert len([message for message in warnings(caplog) if "no space left" in message]) == 1
    caplog.clear()
    with vizlog.Monitor(net(), [vizlog.WeightHistograms(every=1)], to=Full()) as monitor:
        for _ in range(3):
            with monitor.step():
                pass
            monitor.flush()
    assert len(warnings(caplog)) == 1


def test_a_step_source_that_fails_does_not_reach_training(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=vizlog.Memory(), step=lambda: 1 // 0):
        train(model, optimizer, 3)
    assert len(warnings(caplog)) == 1
    assert "ZeroDivisionError" in warnings(caplog)[0]


def watch(model: Any = None, optimizer: Any = "its own", **options: Any) -> vizlog.Monitor:
    model = net() if model is None else model
    if optimizer == "its own":
        optimizer = SGD(model.parameters(), lr=0.1)
    return vizlog.watch(model, optimizer, **{"to": vizlog.Memory(), **options})


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "every 0": (lambda: watch(every=0), ValueError, "n >= 1"),
    "every of text": (lambda: watch(every="often"), TypeError, "every= takes a number of steps or a schedule"),
    "an option there is not": (lambda: vizlog.WeightHistograms(evry=3), TypeError, "evry"),  # type: ignore[call-arg]
    "every twice": (lambda: watch(probes=[vizlog.WeightHistograms()], every=5), ValueError, "each of probes= its own"),
    "a pattern": (
        lambda: watch(probes=[vizlog.WeightHistograms("1.*")]),
        ValueError,
        r"no parameter matches '1\.\*'; the nearest names are '0\.weight'",
    ),
    "a probe alone": (lambda: watch(probes=vizlog.WeightHistograms()), TypeError, "probes= takes a list of probes"),
    "something among probes": (
        lambda: watch(probes=[vizlog.WeightHistograms(), "weights"]),
        TypeError,
        "probes= takes a list of probes .*, got 'weights'",
    ),
    "a class of probes": (lambda: watch(probes=[vizlog.WeightHistograms]), TypeError, "probes= takes a list of probes"),
    "a batch": (lambda: watch(batch=3), TypeError, r"batch= takes \(inputs, targets\)"),
    "a batch of another shape": (
        lambda: watch(batch=torch.zeros(4, 5)),
        ValueError,
        r"(?s)inputs are float32 \(2, 5\).*RuntimeError",
    ),
    "no batch": (lambda: watch(probes=[vizlog.FeatureMaps()]), ValueError, "FeatureMaps needs batch="),
    "no optimizer": (
        lambda: watch(optimizer=None, probes=[vizlog.UpdateRatios()]),
        ValueError,
        "UpdateRatios compares weights before and after a step: give optimizer=",
    ),
    "no real optimizer": (
        lambda: watch(optimizer="adam"),
        TypeError,
        r"no torch optimizer found in str.*monitor\.step",
    ),
    "another model's optimizer": (
        lambda: watch(optimizer=SGD(net().parameters(), lr=0.1)),
        ValueError,
        r"none of the model's parameters.*after prepare\(\) or fully_shard\(\)",
    ),
    "epochs from nowhere": (
        lambda: watch(probes=[vizlog.WeightHistograms(every=vizlog.EveryEpoch())]),
        ValueError,
        r"WeightHistograms goes by epochs \(EveryEpoch\).*epoch=",
    ),
    "a step of text": (lambda: watch(step="one"), TypeError, "step= takes the number to start from or a function"),
    "a step and no optimizer": (
        lambda: vizlog.watch(nn.Linear(1, 1), to=None, step=3),
        ValueError,
        r"give optimizer=, or number your own, `with monitor\.step",
    ),
    "an epoch and no optimizer": (
        lambda: vizlog.watch(nn.Linear(1, 1), to=None, epoch=lambda: 1),
        ValueError,
        "give optimizer=",
    ),
    "a step below 0": (lambda: watch(step=-1), TypeError, "got -1"),
    "an epoch that is no function": (lambda: watch(epoch=3), TypeError, "epoch= takes a function"),
    "no destination": (lambda: watch(to=3), TypeError, "to= takes a path, a SummaryWriter, a wandb run"),
    "a class for a destination": (
        lambda: watch(to=[vizlog.Memory]),
        TypeError,
        r"got the class Memory: call it, Memory\(…\)",
    ),
    "bytes for a path": (lambda: watch(to=b"runs"), TypeError, "a list of these .*got bytes"),
    "no model": (lambda: vizlog.Monitor("net", to=None), TypeError, r"model must be an nn\.Module"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_says_so_when_built(what: str) -> None:
    make, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        make()


def test_what_was_wrong_when_built_leaves_nothing_on_the_optimizer() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    for options in ({"every": 0}, {"probes": [vizlog.WeightHistograms(every=vizlog.EveryEpoch())]}, {"to": 3}):
        with pytest.raises((TypeError, ValueError)):
            watch(model, optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_folder_that_cannot_be_written_says_so_when_built(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        watch(to=tmp_path / "file" / "run")


def test_a_run_that_is_finished_says_so_when_built() -> None:
    import wandb

    run = wandb.init(project="test", mode="offline")
    run.finish()
    with pytest.raises(Exception, match=re.compile("finish", re.IGNORECASE)):
        watch(to=run)


def test_parameters_that_no_watched_optimizer_has_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    watch(model, SGD(model[0].parameters(), lr=0.1)).close()
    told = "no watched optimizer has these parameters, so their gradients are not read: 2.weight, 2.bias"
    assert caplog.text.count(told) == 1
    with pytest.raises(BatchDoesNotFit):  # whoever tries again without a batch would be told twice
        watch(model, SGD(model[0].parameters(), lr=0.1), batch=torch.ones(4, 77))
    assert caplog.text.count(told) == 1


# What it costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", [{"every": vizlog.AtSteps(0)}, {"probes": [Failing("wants")]}], ids=["nothing due", "all probes off"]
)
def test_a_step_with_nothing_due_attaches_nothing_and_keeps_nothing(what: dict[str, Any]) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=vizlog.Memory(), batch=(X, Y), **what) as monitor:
        train(model, optimizer, 3)
        monitor.flush()
        hooked: list[int] = []
        model.register_forward_hook(
            lambda *_: hooked.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()))
        )
        folder = Path(vizlog.__file__).parent
        tracemalloc.start()
        train(model, optimizer, 3)
        before = tracemalloc.take_snapshot()
        train(model, optimizer, 200)
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
    assert set(hooked) == {1}  # the one of this test
    ours = [d for d in after.compare_to(before, "filename") if d.traceback[0].filename.startswith(str(folder))]
    assert sum(d.size_diff for d in ours) < 2_000


def test_memory_does_not_grow_with_logged_steps() -> None:
    class Counted:
        def __init__(self) -> None:
            self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
            self.written = 0

        def write(self, step: int, records: Any) -> None:
            self.alive.update(records)
            self.written += len(records)

        def close(self) -> None:
            pass

    model, backend = net(), Counted()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [
        vizlog.GradientHistograms(every=1),
        vizlog.UpdateRatios(every=1),
        vizlog.ActivationHistograms("0", every=1),
        vizlog.ActivationHistograms("2", every=1, source="live"),
    ]
    gc.collect()
    gc.disable()
    try:
        with vizlog.watch(model, optimizer, to=backend, probes=probes, batch=(X, Y)) as monitor:
            kept = []
            for _ in range(5):
                train(model, optimizer, 100)
                monitor.flush()
                kept.append(len(gc.get_objects()))
            assert backend.written > 500 * 20
            assert len(backend.alive) < 100
    finally:
        gc.enable()
    assert kept[-1] - kept[0] < 400  # not one for each step


def test_a_closed_monitor_lets_go_of_the_model_and_of_what_it_wrote_to() -> None:
    class Counting(vizlog.Memory):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    model, memory = net(), Counting()
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=memory, batch=(X, Y), every=1)
    train(model, optimizer, 2)
    before = set(threading.enumerate())
    monitor.close()
    references = weakref.ref(model), weakref.ref(monitor)
    del model, optimizer, monitor
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert set(threading.enumerate()) <= before  # nothing is left to be written
    assert memory.closed == 1


def test_a_budget_stretches_what_is_dear() -> None:
    class Dear(vizlog.Probe):
        def measure(self, context: Any) -> int:
            torch.randn(400, 400) @ torch.randn(400, 400)
            return context.step

        def finish(self, measured: int) -> Iterable[Scalar]:
            yield Scalar("dear", measured)

    def due(budget: float | None) -> list[int]:
        model, memory = net(), vizlog.Memory()
        optimizer = SGD(model.parameters(), lr=0.1)
        with vizlog.watch(model, optimizer, to=memory, probes=[Dear(every=1)], budget=budget):
            train(model, optimizer, 60)
        return steps(memory, "dear")

    assert due(None) == list(range(60))
    assert due(0.01)[0] == 0
    assert len(due(0.01)) < 40


@pytest.mark.parametrize("budget", ["x", True, 0, 1.5, float("nan")])
def test_a_budget_that_is_no_share_is_an_error(budget: Any) -> None:
    with pytest.raises(ValueError, match="share of the training time"):
        vizlog.Monitor(net(), to=vizlog.Memory(), budget=budget)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": 3},
        {"step": 3, "epoch": 0, "probes": {"WeightHistograms": {}}},
        {"step": "3", "epoch": None, "probes": {}},
        [1],
    ],
)
@pytest.mark.parametrize("follows", [False, True])
def test_the_state_of_something_else_is_passed_over(
    state: Any,
    follows: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [vizlog.WeightHistograms(every=1)], to=memory) as monitor:
        if follows:
            monitor.follow()
        monitor.load_state_dict(state)
        with monitor.step(0):
            pass
    assert "state of another vizlog is passed over" in caplog.text
    assert memory.of("weights/0.weight")


def test_a_list_of_modules_with_a_forward_of_its_own_is_one_model() -> None:
    class Chain(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(x)
            return x

    memory = vizlog.Memory()
    model = Chain([nn.Linear(4, 3), nn.Linear(3, 2)])
    probes = [vizlog.ActivationHistograms(every=1)]
    with (
        vizlog.Monitor(model, probes, to=memory, batch=(torch.ones(2, 4), torch.zeros(2).long())) as monitor,
        monitor.step(),
    ):
        pass
    assert memory.of("activations/1")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_scripted_modules_are_watched_as_far_as_they_can_be(*, whole: bool) -> None:
    part = torch.jit.script(nn.Linear(4, 4))
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4))) if whole else nn.Sequential(part, nn.ReLU())
    optimizer, memory = torch.optim.SGD(model.parameters(), lr=0.1), vizlog.Memory()
    with vizlog.watch(model, optimizer, to=memory, batch=(torch.ones(2, 4), torch.zeros(2).long())):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert memory.of("gradients/0.weight")
    assert bool(memory.of("activations/1")) != whole


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_that_has_parts_is_watched_where_no_batch_is_given() -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    model, memory = nn.Sequential(part, nn.ReLU()), vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert memory.of("activations/1")


def test_parts_in_training_mode_of_an_evaluation_are_none_of_the_trainings() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), vizlog.Memory()
    probes = [vizlog.ActivationHistograms(every=1, source="live")]
    with vizlog.Monitor(model, probes, to=memory) as monitor, monitor.step():
        model(torch.ones(3, 2)).sum().backward()
        model.eval()
        model[1].train()  # Monte Carlo dropout
        with torch.no_grad():
            model(torch.ones(6, 2))
        model.train()
    assert [record.count for _, record in memory.of("activations/1")] == [6]  # type: ignore[union-attr]


def test_epochs_that_are_known_late_are_looked_at_from_there(caplog: pytest.LogCaptureFixture) -> None:
    model, memory = nn.Linear(2, 2), vizlog.Memory()
    epochs = [None, None, 0, 0, 1, None, 1, 2]
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=vizlog.EveryEpoch(1))], to=memory) as monitor:
        for step, epoch in enumerate(epochs):
            with monitor.step(step, epoch):
                model(torch.ones(1, 2)).sum().backward()
    assert [step for step, _ in memory.of("weights/weight")] == [0, 2, 4, 7]
    assert ["no step says which" in message for message in caplog.messages if "epochs" in message] == [True]
