"""Giving up on a hopeless training: when, by whom, and that nobody waits for anybody."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import Processes
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import vizlog
from vizlog.diagnosis import KEYS, Diagnosis
from vizlog.ranks import Notice
from vizlog.stopping import Stop

STEPS = 12


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 6, generator=generator), torch.arange(24) % 3


def probes() -> list[vizlog.Probe]:
    return [
        vizlog.WeightHistograms(every=2),
        vizlog.GradientHistograms(every=2),
        vizlog.ActivationHistograms(every=2),
    ]


def healthy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def with_nan() -> nn.Module:
    model = healthy()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    return model


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].bias.fill_(-100)
    return model


def without_gradient() -> nn.Module:
    """Sigmoids so deep that what reaches the first layer is lost in float32."""
    layers = [part for _ in range(12) for part in (nn.Linear(6, 6), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(6, 3))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(0.05)
    return model


class Residual(nn.Module):
    """A block whose units are all dead, and a way round it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.block.bias.fill_(-100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + F.relu(self.block(x)))


def zero_head() -> nn.Module:
    """A last layer that starts at zero: before its first update it is dead, and lets no gradient through."""
    model = healthy()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model


def train(model: nn.Module, steps: int = STEPS, **options: Any) -> tuple[int, vizlog.Monitor, vizlog.Memory]:
    """(steps until the loop was left, the monitor, what was written)."""
    x, y = data()
    memory = vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.05)
    options = {"probes": probes(), "batch": (x, y), "to": memory} | options
    monitor = vizlog.watch(model, optimizer, **options)
    done = 0
    while done < steps:
        done += 1
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if monitor.should_stop:
            break
    monitor.close()
    return done, monitor, memory


ALL = ["nonfinite", "dead", "gradients_gone"]

# Looks are at steps 0, 2, 4 …; at each it is decided by those before, and two looks are the least.
STOPPED: dict[str, tuple[Callable[[], nn.Module], Any, int, str]] = {
    "NaN": (with_nan, "nonfinite", 4, "nonfinite"),
    "NaN, among others": (with_nan, ALL, 4, "nonfinite"),
    "dead": (dead, "dead", 4, "dead"),
    "dead, by its gradients": (dead, "gradients_gone", 4, "gradients_gone"),
    "vanished": (without_gradient, "gradients_gone", 4, "gradients_gone"),
    "a function": (healthy, lambda health: health["vizlog/gradient_norm"] > 0, 4, "<lambda> holds"),
    "a function in a list": (dead, ["nonfinite", lambda health: health["vizlog/dead_units_worst"] == 1], 4, "holds"),
}
GOES_ON: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "healthy": (healthy, ALL),
    "not asked": (with_nan, None),
    "another condition": (with_nan, "dead"),
    "a dead block with a way round it": (Residual, ALL),
    "a last layer that starts at zero": (zero_head, ALL),
    "a function that says no": (healthy, lambda health: health["vizlog/dead_units_worst"] > 1),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_hopeless_training_is_said_to_be(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, stop_when, step, because = STOPPED[name]
    done, monitor, memory = train(make(), stop_when=stop_when)
    assert done == step + 1
    assert because in monitor.stopped_because
    assert memory.summary["vizlog/stopped_because"] == monitor.stopped_because
    assert sum("the training should stop" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("name", GOES_ON)
def test_any_other_goes_on(name: str) -> None:
    make, stop_when = GOES_ON[name]
    done, monitor, memory = train(make(), stop_when=stop_when)
    assert (done, monitor.should_stop, monitor.stopped_because) == (STEPS, False, "")
    assert memory.summary["vizlog/stopped_because"] == ""
    assert tuple(memory.summary) == KEYS


def test_a_resumed_training_shows_first_how_it_is() -> None:
    x, y = data()
    _, before, _ = train(with_nan(), stop_when="nonfinite")
    model, memory = healthy(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.05)
    monitor = vizlog.watch(model, optimizer, to=memory, probes=probes(), batch=(x, y), stop_when="nonfinite")
    monitor.load_state_dict(before.state_dict())
    for _ in range(STEPS):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    monitor.close()
    assert not monitor.should_stop  # it was mended, and the figures of old stop nothing
    assert memory.summary["vizlog/first_bad_step"] == 0


def test_where_steps_go_back_it_is_asked_again_from_there_and_looks_before_stop_nothing() -> None:
    x, y = data()
    model, steps = healthy(), iter([*range(11), *range(4, 12)])
    optimizer = SGD(model.parameters(), lr=0.05)
    monitor = vizlog.watch(
        model,
        optimizer,
        to=vizlog.Memory(),
        probes=probes(),
        batch=(x, y),
        stop_when=lambda health: health["vizlog/gradient_norm"] == 1e12,
        step=lambda: next(steps),
    )
    good = {name: value.clone() for name, value in model.state_dict().items()}

    def train(number: int) -> bool:
        for _ in range(number):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return monitor.should_stop

    def spoil() -> None:
        with torch.no_grad():
            model[0].weight.fill_(math.nan)

    train(10)
    spoil()
    assert not train(1)  # at step 10
    model.load_state_dict(good)
    assert not train(2)  # at steps 4 and 5
    spoil()
    assert not train(2)  # at steps 6 and 7
    assert train(1)  # at step 8
    monitor.close()


class Undrawn(vizlog.Probe):
    """A picture that nobody is to see."""

    picture = True

    def __init__(self) -> None:
        super().__init__(every=1)
        self.drawn = 0

    def finish(self, measured: Any) -> list[Any]:
        self.drawn += 1
        return []


def test_it_stops_also_where_nothing_is_written() -> None:
    picture = Undrawn()
    done, _, _ = train(dead(), stop_when="dead", to=None, probes=[*probes(), picture])
    assert done == 5
    assert not picture.drawn


def test_what_stops_changes_no_weight() -> None:
    models = [dead(), dead()]
    models[1].load_state_dict(models[0].state_dict())
    train(models[0], steps=4, stop_when=ALL)
    train(models[1], steps=4)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_pictures_alone_cannot_be_judged_and_it_is_said() -> None:
    with pytest.raises(ValueError, match="Embeddings makes pictures alone"):
        vizlog.Monitor(healthy(), [vizlog.Embeddings()], to=vizlog.Memory(), batch=data(), stop_when="nonfinite")


def test_a_function_that_raises_is_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    done, _, _ = train(dead(), stop_when=[lambda health: health["vizlog/no_such_figure"] > 0, "dead"])
    assert done == 5  # the others are still asked
    assert sum("vizlog/no_such_figure" in record.getMessage() for record in caplog.records) == 1


def test_a_function_that_raised_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop(lambda health: 1 / 0, [vizlog.Every(1)], Notice(1))
    for step in range(3):
        assert not stop.consider(step, None, lambda: Diagnosis(looks=2))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ("ded", ValueError, "'nonfinite', 'dead', 'gradients_gone'"),
        (["dead", "ded"], ValueError, "got 'ded'"),
        (0.5, TypeError, "got 0.5"),
        ([0.5], TypeError, "got 0.5"),
    ],
)
def test_what_is_no_condition_raises_where_it_is_given(wrong: Any, error: type[Exception], said: str) -> None:
    from vizlog.callbacks.lightning import VizLog

    with pytest.raises(error, match=said):
        vizlog.Monitor(healthy(), [], to=None, stop_when=wrong)
    with pytest.raises(error, match=said):
        VizLog(stop_when=wrong)


def steps_considered(stop: Stop, steps_of_an_epoch: int | None = None) -> list[int]:
    """At which of 12 steps the diagnosis is asked for."""
    asked: list[int] = []
    for step in range(12):

        def diagnose(step: int = step) -> Diagnosis:
            asked.append(step)
            return Diagnosis(looks=2)

        assert not stop.consider(step, step // steps_of_an_epoch if steps_of_an_epoch else None, diagnose)
    return asked


@pytest.mark.parametrize(
    ("schedules", "steps_of_an_epoch", "considered"),
    [
        ([vizlog.Every(4), vizlog.Every(6)], None, [0, 4, 6, 8]),
        ([vizlog.EveryEpoch(2)], 3, [0, 6]),
        ([vizlog.EveryEpoch(2), vizlog.AtSteps(1)], 3, [0, 1, 6]),
        ([vizlog.EveryEpoch(2)], None, [0]),
        ([], 3, [0]),
    ],
)
def test_it_is_considered_when_numbers_are_due(
    schedules: list[vizlog.Schedule], steps_of_an_epoch: int | None, considered: list[int]
) -> None:
    assert steps_considered(Stop("dead", schedules, Notice(1)), steps_of_an_epoch) == considered


def test_where_steps_go_back_it_is_considered_from_there() -> None:
    stop, asked = Stop("dead", [vizlog.Every(4), vizlog.EveryEpoch(3)], Notice(1)), []
    for step in [*range(10), *range(3, 10)]:
        stop.consider(step, step // 3, lambda step=step: asked.append(step) or Diagnosis(looks=2))
    assert asked == [0, 4, 8, 9, 4, 8, 9]


def test_epochs_that_are_known_late_are_considered() -> None:
    stop, asked = Stop("dead", [vizlog.EveryEpoch(2)], Notice(1)), []
    for step in range(20):
        stop.consider(
            step, step // 3 if step >= 5 else None, lambda step=step: asked.append(step) or Diagnosis(looks=2)
        )
    assert asked == [0, 5, 6, 12, 18]


def test_looks_at_later_steps_decide_nothing() -> None:
    stop = Stop(lambda health: True, [vizlog.Every(1)], Notice(1))
    assert not stop.consider(5, None, lambda: Diagnosis(looks=9, latest_look=9))
    assert stop.consider(6, None, lambda: Diagnosis(looks=2, latest_look=5))


def test_one_look_is_too_few_and_once_decided_it_is_not_asked_again() -> None:
    stop = Stop(lambda health: True, [vizlog.Every(1)], Notice(1))
    assert not stop.consider(0, None, lambda: Diagnosis(looks=1))
    assert stop.consider(1, None, lambda: Diagnosis(looks=2))
    assert not stop.consider(2, None, lambda: pytest.fail("asked again"))
    assert stop.because == "stop_when's <lambda> holds"


def test_a_condition_that_is_no_function_is_named_by_its_type() -> None:
    class Limit:
        def __call__(self, health: Any) -> bool:
            return True

    stop = Stop([Limit()], [], Notice(1))
    assert stop.consider(0, None, lambda: Diagnosis(looks=2))
    assert stop.because == "stop_when's Limit holds"


def test_ctrl_c_in_a_condition_is_no_failure_of_it() -> None:
    presses = [True]

    def condition(health: Any) -> bool:
        if presses.pop():
            raise KeyboardInterrupt
        return True

    stop = Stop(condition, [vizlog.Every(1)], Notice(1))
    with pytest.raises(KeyboardInterrupt):
        stop.consider(0, None, lambda: Diagnosis(looks=2))
    presses.append(False)
    assert stop.consider(1, None, lambda: Diagnosis(looks=2))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec.")
def test_lightning_is_told_and_ends_as_usual() -> None:
    from lightning.pytorch import LightningModule, Trainer

    from vizlog.callbacks.lightning import VizLog

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = dead()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.05)

    memory = vizlog.Memory()
    looks = VizLog(probes(), to=memory, batch=data(), stop_when=ALL)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(callbacks=[looks], accelerator="cpu", logger=False, max_epochs=20, **quiet)
    trainer.fit(Module(), DataLoader(TensorDataset(*data()), batch_size=12))
    assert trainer.global_step == 5
    assert memory.summary["vizlog/stopped_because"].startswith("dead")


# Ranks ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if processes had met."""
    shared = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: shared)


def test_a_notice_is_read_at_the_steps_after_that_at_which_it_was_left(
    store: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Notice, "_numbers", itertools.repeat(0))
        notices = [Notice(2), Notice(2)]  # as each rank has one
    assert [notice.before(9) for notice in notices] == ["", ""]
    notices[0].post(4, "dead: all of it")
    for notice in notices:
        assert [notice.before(step) for step in (4, 5)] == ["", "dead: all of it"]
    assert [notice.posted for notice in notices] == [True, False]


def test_notices_of_two_trainings_are_not_taken_for_each_other(store: None) -> None:
    earlier, later = Notice(2), Notice(2)
    earlier._world = 1  # the one rank that there is here has asked for it
    earlier.post(0, "dead")
    assert earlier.before(1)
    assert not later.before(1)


def _replicated(rank: int, way: str, watching: int) -> tuple[int, list[str]]:
    from torch.nn.parallel import DistributedDataParallel

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vizlog").addHandler(handler)
    torch.manual_seed(0)
    x, y = data()
    model = DistributedDataParallel(dead())
    optimizer = SGD(model.parameters(), lr=0.05)
    monitor: Any = None
    if rank < watching:
        options = {"probes": probes(), "batch": (x, y), "to": vizlog.Memory(), "stop_when": "dead"}
        monitor = (
            vizlog.watch(model, optimizer, **options)
            if way == "watch"
            else vizlog.Monitor(model, optimizer=optimizer, **options)
        )
    done = 0
    while done < STEPS:
        done += 1
        if way == "begin and end":
            monitor.begin()
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
        optimizer.step()
        if way == "begin and end":
            monitor.end()
        if monitor is not None and monitor.should_stop:
            break
    if monitor is not None:
        monitor.close()
    logging.getLogger("vizlog").removeHandler(handler)
    return done, said


@pytest.mark.parametrize("way", ["watch", "begin and end"])
def test_all_ranks_of_a_replicated_model_stop_at_the_same_step(ranks: Processes, way: str) -> None:
    # Rank 0 finds out at step 4 and leaves a notice; all stop at the due step after it.
    assert [done for done, _ in ranks.run(_replicated, way, 2)] == [7, 7]


def _sharded(rank: int) -> tuple[int, int]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    x, y = data()
    model = dead()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = SGD(model.parameters(), lr=0.05)
    monitor = vizlog.watch(
        model, optimizer, to=vizlog.Memory(), probes=probes(), batch=(x, y), stop_when=["nonfinite", "dead"]
    )
    done = 0
    while done < STEPS:
        done += 1
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if monitor.should_stop:
            break
    monitor.close()
    return done, monitor._delivery.diagnosis.looks


def test_all_ranks_of_a_sharded_model_stop_at_the_same_step(ranks: Processes) -> None:
    (done, looks), (other, none) = ranks.run(_sharded)
    assert (done, other) == (7, 7)
    assert looks >= 2
    assert none == 0  # where nothing is written, nothing is found either


def test_a_rank_that_nobody_else_follows_goes_on_and_says_so(ranks: Processes) -> None:
    (done, said), (other, _) = ranks.run(_replicated, "watch", 1)
    assert (done, other) == (STEPS, STEPS)
    assert sum("only 1 of 2 ranks have a monitor with stop_when=" in line for line in said) == 1
