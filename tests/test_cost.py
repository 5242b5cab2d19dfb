"""What vizlog costs: the budget that one gives it, on a clock of the tests' own; and bounds that must never be lost."""

from __future__ import annotations

import gc
import json
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clock import Clock
from torch import nn
from torch.optim import SGD

import vizlog
from vizlog.compute.health import alive
from vizlog.compute.histogram import count_bits, histogram
from vizlog.records import Record, Scalar
from vizlog.requests import Outputs


class Dear(vizlog.Probe):
    """Takes as long as it is told to."""

    def __init__(self, clock: Clock, seconds: float, *, every: int | vizlog.Schedule = 10) -> None:
        super().__init__(every=every)
        self.clock, self.seconds = clock, seconds

    def measure(self, context: Any) -> int:
        self.clock.now += self.seconds
        return context.step

    def finish(self, measured: int) -> Iterable[Record]:
        yield Scalar(f"drawn/{self.name}", measured)


class Cheap(Dear):
    pass


def training() -> tuple[nn.Module, SGD]:
    model = nn.Linear(3, 2)
    return model, SGD(model.parameters(), lr=0.1)


def train(optimizer: SGD, clock: Clock, steps: int) -> None:
    """Each step takes one second of the clock."""
    for _ in range(steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        clock.now += 1.0
        optimizer.step()


def due(memory: vizlog.Memory, name: str) -> list[int]:
    return [step for step, _ in memory.of(f"drawn/{name}")]


# the budget


def drawn(clock: Clock, budget: float | None, *, steps: int = 1000, **seconds: float) -> vizlog.Memory:
    (model, optimizer), memory = training(), vizlog.Memory()
    probes = [{"Dear": Dear, "Cheap": Cheap}[name](clock, cost) for name, cost in seconds.items()]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, budget=budget):
        train(optimizer, clock, steps)
    return memory


def test_a_schedule_is_stretched_by_the_whole_multiple_that_keeps_the_budget(clock: Clock) -> None:
    # 5 s every 10 steps of 1 s: half of the time, ten times the budget; before step 10 there is no step to compare.
    assert due(drawn(clock, 0.05, Dear=5.0), "Dear") == [0, 10, *range(110, 1000, 100)]


def test_the_dear_probe_is_stretched_and_the_cheap_one_left_alone(clock: Clock) -> None:
    memory = drawn(clock, 0.05, Dear=5.0, Cheap=0.01)
    assert due(memory, "Cheap") == list(range(0, 1000, 10))
    assert due(memory, "Dear")[:3] == [0, 10, 120]  # 0.5 / (0.05 - 0.001), rounded up


@pytest.mark.parametrize(("steps", "seen"), [((0, 10, 20), [0, 10, 20]), ((0, 10, 20, 40, 80), [0, 10, 40, 80])])
def test_a_list_of_steps_is_looked_at_to_its_end_whatever_it_takes(
    clock: Clock, steps: tuple[int, ...], seen: list[int]
) -> None:
    (model, optimizer), memory = training(), vizlog.Memory()
    probe = Dear(clock, 5.0, every=vizlog.AtSteps(*steps))
    with vizlog.watch(model, optimizer, to=memory, probes=[probe], budget=0.01):
        train(optimizer, clock, 100)
    assert due(memory, "Dear") == seen


def test_what_no_probe_takes_is_shared_among_those_that_are_due(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_two_seconds(function: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any, **kwargs: Any) -> Any:
            clock.now += 2.0
            return function(*args, **kwargs)

        return slowly

    (model, optimizer), memory = training(), vizlog.Memory()
    monitor = vizlog.watch(model, optimizer, to=memory, probes=[Dear(clock, 5.0), Cheap(clock, 0.0)])
    for name in ("isolated", "named_parameters"):
        monkeypatch.setattr(f"vizlog.monitor.{name}", in_two_seconds(getattr(vizlog.monitor, name)))
    train(optimizer, clock, 1)
    monitor.close()
    seconds = {tag: memory.of(f"health/vizlog_seconds/{tag}")[0][1].value for tag in ("Dear", "Cheap")}  # type: ignore[union-attr]
    assert seconds == {"Dear": 7.0, "Cheap": 2.0}


def test_without_a_budget_nothing_is_stretched(clock: Clock) -> None:
    assert due(drawn(clock, None, Dear=50.0), "Dear") == list(range(0, 1000, 10))


def test_within_the_budget_nothing_is_stretched(clock: Clock) -> None:
    assert due(drawn(clock, 0.05, Dear=0.4), "Dear") == list(range(0, 1000, 10))


def test_the_first_step_is_drawn_whatever_it_takes(clock: Clock) -> None:
    assert due(drawn(clock, 0.001, steps=5, Dear=1e6), "Dear") == [0]


def test_the_factor_follows_the_cost_at_the_next_due_step_and_not_before(clock: Clock) -> None:
    (model, optimizer), memory = training(), vizlog.Memory()
    probe = Dear(clock, 5.0)
    with vizlog.watch(model, optimizer, to=memory, probes=[probe], budget=0.05):
        train(optimizer, clock, 50)
        probe.seconds = 0.1  # from now on within the budget, which shows at step 110
        train(optimizer, clock, 100)
    assert due(memory, "Dear") == [0, 10, 110, 120, 130, 140]


def test_what_has_failed_takes_nothing_from_the_budget(clock: Clock) -> None:
    class Fails(Dear):
        def measure(self, context: Any) -> int:
            if context.step:
                clock.now += self.seconds
                raise ArithmeticError
            return 0

    (model, optimizer), memory = training(), vizlog.Memory()
    probes = [Fails(clock, 5.0), Cheap(clock, 0.4)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, budget=0.05):
        train(optimizer, clock, 100)
    assert due(memory, "Cheap") == list(range(0, 100, 10))


def test_where_steps_take_no_time_there_is_a_share_all_the_same(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    (model, optimizer), memory = training(), vizlog.Memory()
    with vizlog.watch(model, optimizer, to=memory, probes=[Cheap(clock, 0.0), Dear(clock, 5.0)], budget=0.05):
        for _ in range(50):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert due(memory, "Cheap") == [0, 10, 20, 30, 40]
    assert due(memory, "Dear") == [0, 10]
    assert [record.value for _, record in memory.of("health/vizlog_time_share")][:2] == [1.0, 1.0]  # type: ignore[union-attr]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_share_is_what_was_spent_of_the_time_since_the_first_step(clock: Clock) -> None:
    memory = drawn(clock, None, steps=11, Dear=5.0)
    # 5 of 5 s; at step 10, 10 of 20 s.
    assert [record.value for _, record in memory.of("health/vizlog_time_share")] == [1.0, 0.5]  # type: ignore[union-attr]


def test_deciding_whether_to_stop_is_spent_too(clock: Clock) -> None:
    def ponder(scalars: Any) -> bool:
        clock.now += 5.0
        return False

    (model, optimizer), memory = training(), vizlog.Memory()
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms(every=10)], stop_when=ponder):
        train(optimizer, clock, 21)
    # Asked at step 20 for the first time, once there are two looks: 5 of 25 s.
    assert [record.value for _, record in memory.of("health/vizlog_time_share")] == [0.0, 0.0, 0.2]  # type: ignore[union-attr]


def test_what_was_spent_before_the_first_step_makes_no_share_above_all(clock: Clock) -> None:
    class Asks(Cheap):
        def wants(self, models: Any) -> Any:
            clock.now += 100
            return {}

    (model, optimizer), memory = training(), vizlog.Memory()
    with vizlog.watch(model, optimizer, to=memory, probes=[Asks(clock, 0.0)]):
        train(optimizer, clock, 1)
    ((_, record),) = memory.of("health/vizlog_time_share")
    assert isinstance(record, Scalar)
    assert record.value == 1.0


def test_the_share_of_a_first_step_without_cost_is_none(clock: Clock) -> None:
    memory = drawn(clock, None, steps=1, Cheap=0.0)
    ((_, record),) = memory.of("health/vizlog_time_share")
    assert isinstance(record, Scalar)
    assert record.value == 0.0


def test_epochs_are_stretched_too(clock: Clock) -> None:
    (model, optimizer), memory, seen = training(), vizlog.Memory(), [0]
    probes = [Dear(clock, 5.0, every=vizlog.EveryEpoch()), Cheap(clock, 0.0, every=1)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, budget=0.1, epoch=lambda: seen[0]):
        for seen[0] in range(30):
            train(optimizer, clock, 10)
    assert due(memory, "Dear") == [0, 10, 60, 110, 160, 210, 260]


def test_a_stretch_that_falls_when_an_epoch_begins_brings_steps_nearer(clock: Clock) -> None:
    (model, _), memory = training(), vizlog.Memory()
    probe = Dear(clock, 0.0, every=vizlog.Every(20) | vizlog.EveryEpoch())
    with vizlog.Monitor(model, [probe], to=memory, budget=0.1) as monitor:
        for step in range(150):
            probe.seconds = 9.0 if step == 20 else 0.0  # 9 s every 20 steps of 1 s: stretched five times
            with monitor.step(step, epoch=min(step // 15, 6)):
                pass
            clock.now += 1.0
    assert due(memory, "Dear") == [0, 15, 20, 90, 100, 120, 140]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(clock: Clock) -> None:
    whole = due(drawn(clock, 0.05, steps=600, Dear=5.0), "Dear")
    (model, optimizer), memory = training(), vizlog.Memory()
    with vizlog.watch(model, optimizer, to=memory, probes=[Dear(clock, 5.0)], budget=0.05) as monitor:
        train(optimizer, clock, 250)
        state = json.loads(json.dumps(monitor.state_dict()))
    with vizlog.watch(model, optimizer, to=memory, probes=[Dear(clock, 5.0)], budget=0.05) as monitor:
        monitor.load_state_dict(state)
        train(optimizer, clock, 350)
    assert due(memory, "Dear") == whole


def test_state_goes_to_the_probe_of_its_name_and_others_start_anew(clock: Clock) -> None:
    model, optimizer = training()
    with vizlog.watch(model, optimizer, to=None, probes=[Dear(clock, 5.0)], budget=0.05) as monitor:
        train(optimizer, clock, 50)
        state = monitor.state_dict()
    memory = vizlog.Memory()
    probes = [Cheap(clock, 0.0), Dear(clock, 5.0), Dear(clock, 0.0)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, budget=0.05) as monitor:
        monitor.load_state_dict(state)
        train(optimizer, clock, 10)
    assert due(memory, "Cheap") == [50]
    assert due(memory, "Dear") == [50]  # the second one; the first waits until step 110


def test_what_each_probe_took_is_logged_and_said_at_the_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vizlog"):
        memory = drawn(clock, None, steps=100, Dear=5.0, Cheap=0.5)
    seconds = memory.of("health/vizlog_seconds/Dear")
    assert [step for step, _ in seconds] == list(range(0, 100, 10))
    assert {record.value for _, record in seconds if isinstance(record, Scalar)} == {5.0}
    (said,) = [message for message in caplog.messages if "% of" in message]
    # 55 of 154 s: the clock starts with the first step.
    assert "36% of 154 s" in said
    assert "most of it Dear, 50 s" in said


def test_what_is_waited_for_at_the_end_is_no_training(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(vizlog.Memory):
        def close(self) -> None:
            clock.now += 1000.0

    model, optimizer = training()
    with (
        caplog.at_level(logging.INFO, logger="vizlog"),
        vizlog.watch(model, optimizer, to=Slow(), probes=[Dear(clock, 5.0)]),
    ):
        train(optimizer, clock, 6)
    assert "67% of 15 s of training" in caplog.text  # with a second look at the end of it


def test_what_is_done_inside_the_training_forward_counts(clock: Clock) -> None:
    class Inside(vizlog.Probe):
        def wants(self, models: Any) -> Any:
            return {"outputs": Outputs(lambda *_: True, self.look, live=True)}

        def look(self, call: Any) -> int:
            clock.now += 2.0
            return 1

        def finish(self, measured: Any) -> Iterable[Record]:
            return ()

    model, memory = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), vizlog.Memory()
    with vizlog.Monitor(model, [Inside(every=1)], to=memory) as monitor, monitor.step():
        model(torch.randn(4, 3))
    ((_, record),) = memory.of("health/vizlog_seconds/Inside")
    assert isinstance(record, Scalar)
    assert record.value == 2 * 2.0  # two layers


# bounds


def fastest(work: Callable[[], object], repeats: int = 9) -> float:
    """Seconds of this thread: others may hold the interpreter's lock, which a call into torch waits for at its end."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def test_a_histogram_is_many_times_faster_than_numpys() -> None:
    pytest.importorskip("numba")
    tensor = torch.randn(2_000_000)
    ours = fastest(lambda: histogram("weights/a", count_bits(tensor)))
    assert fastest(lambda: np.histogram(tensor.numpy(), 64)) > 5 * ours


def test_dead_units_are_found_faster_than_the_output_is_summed_ten_times() -> None:
    output = torch.randn(32, 64, 32, 32).relu()
    assert fastest(lambda: alive(output, 1)) < 10 * fastest(output.sum)


def test_an_idle_step_keeps_no_memory_and_has_no_hook() -> None:
    model, optimizer = training()
    with vizlog.watch(model, optimizer, to=vizlog.Memory(), every=10**9) as monitor:
        train(optimizer, Clock(), 100)
        monitor.flush()
        gc.collect()
        tracemalloc.start()
        kept = []
        for _ in range(4):
            train(optimizer, Clock(), 500)
            kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        # 4 bytes a step would be as much, each time; once it may be a thread's that another test has left.
        assert min(after - before for before, after in pairwise(kept)) < 2000
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
        assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_logged_steps_leave_nothing_behind_that_waits_for_the_garbage_collector() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
    probes = [
        *(vizlog.WeightHistograms(every=1), vizlog.GradientHistograms(every=1), vizlog.UpdateRatios(every=1)),
        *(vizlog.ActivationHistograms(every=1), vizlog.FeatureMaps(every=1), vizlog.SaliencyMaps(every=1)),
    ]

    def logged(steps: int) -> None:
        for _ in range(steps):
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            monitor.flush()

    with vizlog.watch(model, optimizer, to=_Nowhere(), probes=probes, batch=batch) as monitor:
        logged(3)
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            logged(20)
            after = len(gc.get_objects())
            assert after - before < 20
            assert gc.collect() == 0
        finally:
            gc.enable()


class _Nowhere:
    def write(self, step: int, records: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_histogram_takes_less_than_a_kilobyte_of_an_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    backend = vizlog.TensorBoard(tmp_path / "run")
    counts = count_bits(torch.randn(10_000))
    for step in range(20):
        backend.write(step, [histogram(f"weights/{number}", counts) for number in range(10)])
    backend.close()
    assert sum(file.stat().st_size for file in (tmp_path / "run").iterdir()) < 200 * 1000


def test_a_run_of_450000_steps_draws_at_most_500_histograms_and_60_pictures() -> None:
    for schedule, most in ((vizlog.Thinning(), 500), (vizlog.LogSpaced(every=100), 60)):
        step, number = schedule.next_step(-1), 0
        while step < 450_000:
            step, number = schedule.next_step(step), number + 1
        assert number <= most


def test_long_texts_are_looked_at_by_their_tokens() -> None:
    assert vizlog.FixedBatch(torch.zeros(64, 256, dtype=torch.long)).chunk == 8
    assert vizlog.FixedBatch(torch.zeros(64, 10, dtype=torch.long)).chunk == 32
    assert vizlog.FixedBatch(torch.zeros(64, 5000, dtype=torch.long)).chunk == 1
    assert vizlog.FixedBatch(torch.zeros(64, 3, 32, 32)).chunk == 32


def test_activations_of_long_texts_are_counted_on_the_same_tokens_whatever_else_is_due() -> None:
    model, memory = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), vizlog.Memory()
    tokens = torch.randint(0, 7, (64, 256))
    probes = [
        vizlog.ActivationHistograms(every=1),
        vizlog.Embeddings(every=2, methods=["pca"], label=np.arange(64) % 3),
    ]
    with vizlog.Monitor(model, probes, to=memory, batch=(tokens, tokens)) as monitor:
        for _ in range(2):
            with monitor.step():
                pass
    counts = [record.count for _, record in memory.of("activations/1") if isinstance(record, vizlog.Histogram)]
    assert counts == [8 * 256 * 7] * 2
