"""Faults: whatever fails around it, training ends as without vizlog, one line says so, and the rest is written."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from sample_records import every_record
from tensorboard_run import events, until, values
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import vizlog
from vizlog.backends.event_file import EventFile, event_files
from vizlog.callbacks.lightning import VizLog
from vizlog.delivery import Delivery
from vizlog.logged import _Waiting
from vizlog.messages import LOG, one_line, show
from vizlog.process import _Child
from vizlog.records import Curves, Embedding, Scalar
from vizlog.worker import Worker

Kind = TypeVar("Kind")
X, Y = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3


class Inner(nn.Module):
    """A place for what a forward does besides its work."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Tensor | None] = lambda module, x: None) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        changed = self.act(self, x)
        return x if changed is None else changed


def net(inner: nn.Module | None = None) -> nn.Sequential:
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), inner or Inner(), nn.ReLU(), nn.Linear(4, 3))
    return nn.Sequential(*layers)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        noisy = X + random.random() + np.random.rand()  # noqa: NPY002 -- what a person's own training code draws from
        nn.functional.cross_entropy(model(noisy.to(model[0].weight.dtype)), Y).backward()  # type: ignore[index]
        optimizer.step()


def state(model: nn.Module) -> list[Any]:
    """All that training leaves behind."""
    return [
        *(tensor.tolist() for tensor in model.state_dict().values()),
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    ]


Between = Callable[[nn.Sequential, SGD, int], SGD | None]


def run(
    watch: dict[str, Any] | None, *, inner: Callable[[], nn.Module] | None = None, between: Between | None = None
) -> tuple[nn.Sequential, list[Any]]:
    """Trains for six steps, watched or not; `between` them something happens, and may give another optimizer."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = net(inner() if inner else None)
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        vizlog.watch(model, optimizer, **{"every": 1, "batch": (X, Y), **watch}) if watch else nullcontext() as monitor
    ):
        for step in range(6):
            if between is not None:
                optimizer = between(model, optimizer, step) or optimizer
            train(model, optimizer, 1)
            if monitor is not None:
                monitor.log({"loss": float(step)})
                monitor.flush()
    return model, state(model)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def steps(memory: vizlog.Memory, tag: str) -> list[int]:
    return [step for step, _ in memory.of(tag)]


# What a forward may leave behind --------------------------------------------------------------------------------------


class Bank(Generic[Kind]):
    """An object of one's own that is nothing but data."""

    def __init__(self) -> None:
        self.calls = 0
        self.me = self
        self.counted: Counter[str] = Counter()
        self.pair: tuple[list[int], str] = ([], "calls")
        self.last = torch.zeros(4)
        self.seen: dict[str, list[float]] = {"sums": []}
        self.queue: deque[float] = deque(maxlen=3)


def uses_a_bank(module: nn.Module, x: Tensor) -> Tensor:
    bank: Bank[int] = module.bank  # type: ignore[assignment]
    bank.calls += 1
    bank.counted[bank.pair[1]] += 1
    bank.pair[0].append(bank.calls)
    bank.last += x.detach().mean(0)
    bank.seen["sums"].append(float(x.detach().sum()))
    bank.queue.append(bank.calls)
    kept = sum(bank.seen["sums"]) + sum(bank.queue) + bank.counted["calls"] + sum(bank.pair[0])
    return x + 0.01 * (bank.last + kept)


def with_bank() -> nn.Module:
    module = Inner(uses_a_bank)
    module.bank = Bank()  # type: ignore[assignment]
    return module


def with_generators() -> nn.Module:
    def draw(module: nn.Module, x: Tensor) -> Tensor:
        drawn = module.old.rand() + module.new.random() + module.plain.random()  # type: ignore[operator, union-attr]
        return x + drawn + torch.rand(1, generator=module.torchs)  # type: ignore[arg-type]

    module = Inner(draw)
    module.old, module.new = np.random.RandomState(1), np.random.default_rng(1)  # type: ignore[assignment]
    module.plain, module.torchs = random.Random(1), torch.Generator().manual_seed(1)  # type: ignore[assignment]
    return module


def with_metric() -> nn.Module:
    from torchmetrics import MeanMetric

    def update(module: nn.Module, x: Tensor) -> Tensor:
        module.mean.update(x.detach().mean())  # type: ignore[operator, union-attr]
        return x + module.mean.compute()  # type: ignore[operator, union-attr]

    module = Inner(update)
    module.mean = MeanMetric()
    return module


def with_hidden_modules() -> nn.Module:
    """As a teacher is kept out of what the optimizer trains."""

    def ask(module: nn.Module, x: Tensor) -> Tensor:
        for hidden in (module.listed[0], module.named["a"], vars(module)["plain"]):  # type: ignore[index]
            hidden(x.detach())
            x = x + hidden.running_mean
        return x

    module = Inner(ask)
    module.listed, module.named = [nn.BatchNorm1d(4)], {"a": nn.BatchNorm1d(4)}  # type: ignore[assignment]
    vars(module)["plain"] = nn.BatchNorm1d(4)
    return module


FORWARDS: dict[str, Callable[[], nn.Module]] = {
    "draws in NumPy": lambda: Inner(lambda module, x: x + np.random.rand()),  # noqa: NPY002
    "draws in Python": lambda: Inner(lambda module, x: x + random.random()),
    "draws from generators of its own": with_generators,
    "keeps an object of its own": with_bank,
    "updates a metric": with_metric,
    "asks modules that are not registered": with_hidden_modules,
}


@pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics")
@pytest.mark.parametrize("forward", FORWARDS)
def test_what_a_forward_keeps_is_as_without_vizlog(forward: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    _, alone = run(None, inner=FORWARDS[forward])
    _, watched = run({"to": memory}, inner=FORWARDS[forward])
    assert watched == alone
    assert steps(memory, "activations/0") == list(range(6))
    assert not warnings(caplog)


def test_an_object_that_is_more_than_data_is_left_alone() -> None:
    class Pool:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.done = 0

    def work(module: nn.Module, x: Tensor) -> None:
        module.pool.done += 1  # type: ignore[operator, union-attr]

    def make() -> nn.Module:
        inner = Inner(work)
        inner.pool = Pool()  # type: ignore[assignment]
        return inner

    model, _ = run({"to": vizlog.Memory()}, inner=make)
    assert model[3].pool.done > 6  # type: ignore[union-attr, operator]  (another thread may have been at it)


# What happens in the middle of training -------------------------------------------------------------------------------


def test_a_model_that_moves_to_another_type_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    def move(model: nn.Sequential, optimizer: SGD, step: int) -> None:
        if step == 3:
            model.double()

    memory = vizlog.Memory()
    _, alone = run(None, between=move)
    _, watched = run({"to": memory, "every": vizlog.Every(1)}, between=move)
    assert watched == alone
    for kind in ("activations/", "saliency/", "embeddings/", "updates/"):
        tag = next(record.tag for _, record in memory.records if record.tag.startswith(kind))
        assert steps(memory, tag) == list(range(6)), tag
    assert not warnings(caplog)


def test_a_module_put_in_later_is_picked_up_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def put_in(model: nn.Sequential, optimizer: SGD, step: int) -> None:
        if step == 2:
            model[5] = nn.Linear(4, 3)
        if step == 4:
            optimizer.add_param_group({"params": list(model[5].parameters())})

    memory = vizlog.Memory()
    _, alone = run(None, between=put_in)
    model, watched = run({"to": memory}, between=put_in)
    assert watched == alone
    assert steps(memory, "weights/5.weight") == list(range(6))
    assert steps(memory, "gradients/5.weight") == [0, 1, 4, 5]
    (_, last) = memory.of("weights/5.weight")[-1]
    assert last.max == pytest.approx(float(model[5].weight.detach().max()))  # type: ignore[union-attr]
    (message,) = warnings(caplog)
    assert "no watched optimizer has 5.weight, 5.bias" in message


def test_a_layer_that_is_taken_out_is_shown_no_more_and_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            first = x if self.first is None else self.first(x)
            return self.head(first.flatten(1)[:, :8])

    model, memory = Net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [kind(every=1) for kind in (vizlog.FilterImages, vizlog.WeightHistograms, vizlog.GradientHistograms)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes):
        for step in range(4):
            if step == 2:
                model.first = None
            model(torch.randn(5, 1, 4, 4)).sum().backward()
            optimizer.step()
    assert steps(memory, "filters/first") == steps(memory, "weights/first.weight") == [0, 1]
    assert steps(memory, "weights/head.weight") == steps(memory, "gradients/head.weight") == [0, 1, 2, 3]
    assert not warnings(caplog)


def test_an_optimizer_made_anew_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model, memory = net(), vizlog.Memory()
    first, bystander = SGD(model.parameters(), lr=0.1), SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with vizlog.watch(model, first, to=memory, probes=[vizlog.WeightHistograms(every=1)]):
        for _ in range(40):
            bystander.step()
        train(model, first, 2)
        assert not warnings(caplog)
        train(model, SGD(model.parameters(), lr=0.1), 50)
    (message,) = warnings(caplog)
    assert (
        "SGD trains 0.weight, 0.bias, 1.weight, 1.bias and 2 more, and no watched optimizer has stepped since"
        in message
    )


def test_a_container_whose_parts_are_watched_is_no_other_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    class Both(torch.optim.Optimizer):
        def __init__(self, *parts: SGD) -> None:
            self.parts = parts
            super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for part in self.parts:
                part.step()

    model = net()
    parts = SGD(model[0].parameters(), lr=0.1), SGD([*model[1].parameters(), *model[5].parameters()], lr=0.1)
    both = Both(*parts)
    with vizlog.watch(model, list(parts), to=vizlog.Memory(), probes=[]):
        train(model, both, 50)
    with vizlog.watch(model, both, to=vizlog.Memory(), probes=[]):
        train(model, both, 50)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("given", "weights", "said"),
    [
        ([0, 1, 2, 3, 4, 5, 2, 3, 4, 3, 4, 5], [0, 2, 4, 2, 4, 4], 1),  # rolled back, twice
        ([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], [0, 2, 0, 2, 0, 2], 1),  # counted anew in each epoch
        ([0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5], [0, 2, 4], 0),  # several to a number
    ],
)
def test_steps_that_go_back_or_come_twice(
    given: list[int], weights: list[int], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, memory, numbers = net(), vizlog.Memory(), iter(given)
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.WeightHistograms(every=2)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, step=lambda: next(numbers)) as monitor:
        for _ in given:
            train(model, optimizer, 1)
            monitor.log({"loss": 1.0})
    assert steps(memory, "weights/0.weight") == weights
    assert steps(memory, "loss") == given
    assert len(warnings(caplog)) == said
    assert all("the step went back from" in message for message in warnings(caplog))


def test_a_live_look_does_not_see_the_passes_of_another_monitor() -> None:
    model, seen = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        vizlog.watch(model, optimizer, to=vizlog.Memory(), batch=(X, Y), every=1),
        vizlog.watch(model, optimizer, to=seen, probes=[vizlog.ActivationHistograms(every=1, source="live")]),
    ):
        train(model, optimizer, 3)
    assert [record.count for _, record in seen.of("activations/0")] == [9 * 4] * 3  # type: ignore[union-attr]


def test_ctrl_c_while_we_are_at_it_passes_through_and_leaves_nothing() -> None:
    model, memory, pressed = net(), vizlog.Memory(), [3]

    def press(module: nn.Module, x: Tensor) -> None:
        if not module.training and pressed[0]:
            pressed[0] -= 1
            if not pressed[0]:
                raise KeyboardInterrupt

    model[3] = Inner(press)
    optimizer = SGD(model.parameters(), lr=0.1)
    buffers = [buffer.clone() for buffer in model.buffers()]
    monitor = vizlog.watch(model, optimizer, to=memory, every=1, batch=(X, Y))
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, 1)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))  # of one training forward
    train(model, optimizer, 2)
    monitor.close()
    assert steps(memory, "activations/0") == [1, 2]


@pytest.mark.parametrize("moment", ["add", "keep_weights", "read_gradients", "read_weights"])
def test_ctrl_c_at_any_moment_leaves_no_half_step(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = net(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    probes = [vizlog.GradientHistograms(every=1), vizlog.ActivationHistograms(every=1, source="live")]
    monitor = vizlog.Monitor(model, probes, to=memory, optimizer=optimizer)

    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def one_step() -> None:
        with monitor.step():
            model(X).sum().backward()
        optimizer.step()

    with monkeypatch.context() as patch:
        patch.setattr(f"vizlog.due.DueStep.{moment}", press)
        with pytest.raises(KeyboardInterrupt):
            one_step()
    assert not monitor.is_due
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    one_step()
    one_step()
    monitor.close()
    assert steps(memory, "gradients/0.weight")[-1] == steps(memory, "activations/0")[-1] >= 1


# Parts of ours that fail ----------------------------------------------------------------------------------------------


class Failing(vizlog.Probe):
    def __init__(self, error: BaseException) -> None:
        super().__init__(every=1)
        self.error = error

    def measure(self, context: Any) -> Any:
        raise self.error

    def finish(self, measured: Any) -> Iterable[Scalar]:
        return ()


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), NotImplementedError("first\nsecond\nthird")]
)
def test_a_probe_without_memory_is_off_and_named_in_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    memory = vizlog.Memory()
    _, alone = run(None)
    _, watched = run({"to": memory, "every": None, "probes": [Failing(error), vizlog.WeightHistograms(every=1)]})
    assert watched == alone
    assert steps(memory, "weights/0.weight") == list(range(6))
    (message,) = warnings(caplog)
    assert message.startswith("vizlog: Failing failed at measure(), off from now on: " + type(error).__name__)
    assert "\n" not in message


@pytest.mark.parametrize("where", ["units.Units.dim", "capture.Capture.function_called"])
def test_an_error_of_ours_inside_a_hook_does_not_reach_the_training_forward(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = itertools.count()

    def broken(*_: Any) -> int:
        raise ZeroDivisionError(f"error {next(numbers)}")

    memory = vizlog.Memory()
    probes = [vizlog.ActivationHistograms(every=1, source="live"), vizlog.WeightHistograms(every=1)]
    _, alone = run(None)
    monkeypatch.setattr(f"vizlog.{where}", broken)
    _, watched = run({"to": memory, "every": None, "batch": None, "probes": probes})
    assert watched == alone
    assert steps(memory, "weights/0.weight") == list(range(6))
    (message,) = warnings(caplog)
    assert "ActivationHistograms failed at what passed through the model" in message
    assert "ZeroDivisionError: error 0" in message


class Loud(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no room for logs")


@contextmanager
def loud_handler() -> Iterator[None]:
    handler = Loud()
    logging.getLogger("vizlog").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("vizlog").removeHandler(handler)


@contextmanager
def closed_stderr() -> Iterator[None]:
    kept, handlers = sys.stderr, logging.getLogger().handlers[:]
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr.close()
    logging.getLogger().handlers[:] = []  # nobody has set up logging: vizlog writes to stderr
    try:
        yield
    finally:
        sys.stderr, logging.getLogger().handlers[:] = kept, handlers


@pytest.mark.parametrize("surroundings", [loud_handler, closed_stderr])
def test_messages_that_cannot_be_given_reach_nobody(surroundings: Callable[[], Any]) -> None:
    memory = vizlog.Memory()
    _, alone = run(None)
    with surroundings():
        probes = [Failing(ValueError("x")), vizlog.WeightHistograms(every=1)]
        _, watched = run({"to": memory, "every": None, "probes": probes})
    assert watched == alone
    assert steps(memory, "weights/0.weight") == list(range(6))


def test_what_no_handler_took_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with loud_handler():
        run({"to": vizlog.Memory(), "every": None, "probes": [Failing(ValueError("x"))]})
    assert "Failing failed at measure(), off from now on: ValueError: x" in capsys.readouterr().err


@contextmanager
def no_logging() -> Iterator[logging.Logger]:
    """As nobody has set it up."""
    logger, root = logging.getLogger("vizlog"), logging.getLogger()
    kept = logger.handlers[:], logger.level, root.handlers[:]
    logger.handlers[:], root.handlers[:] = [], []
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
    finally:
        logger.handlers[:], root.handlers[:] = kept[0], kept[2]
        logger.setLevel(kept[1])


def test_messages_are_shown_once_to_who_has_set_up_no_logging(capsys: pytest.CaptureFixture[str]) -> None:
    with no_logging():
        show()
        show()
        LOG.info("said %d", 1)
        assert capsys.readouterr().err == "said 1\n"
        logging.getLogger().addHandler(logging.NullHandler())
        LOG.warning("said 2")
        assert capsys.readouterr().err == ""


def test_what_a_callback_says_before_it_makes_a_monitor_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with no_logging():
        VizLog()
        LOG.info("vizlog looks at examples of the first of 2 dataloaders")
        assert capsys.readouterr().err == "vizlog looks at examples of the first of 2 dataloaders\n"


def test_the_level_that_a_person_chose_stays() -> None:
    with no_logging() as logger:
        logger.setLevel(logging.ERROR)
        show()
        assert logger.level == logging.ERROR


def test_a_message_that_no_handler_took_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with loud_handler():
        LOG.warning("at %d%%", 7)
        LOG.warning("100% of it")
    end = "\n(a log handler raised RuntimeError: no room for logs)\n"
    assert capsys.readouterr().err == f"at 7%{end}100% of it{end}"


def test_ctrl_c_in_a_handler_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loud, "emit", press)
    with loud_handler(), pytest.raises(KeyboardInterrupt):
        LOG.warning("now")


class Mute(Exception):
    def __str__(self) -> str:
        raise AttributeError("no message")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(), "ValueError: "),
        (ValueError("\n first\nsecond"), "ValueError: first"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 400),
        (Mute(), "Mute: it cannot be shown"),
    ],
)
def test_an_error_is_told_in_one_short_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


class Broken:
    def __init__(self, *, writes: bool, ends: bool = False) -> None:
        self.writes, self.error = writes, SystemExit("away") if ends else ConnectionError("away")

    def write(self, step: int, records: Any) -> None:
        if not self.writes:
            raise self.error

    def close(self) -> None:
        raise ConnectionError("away")


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_a_backend_that_fails_is_named(*, writes: bool, beside: bool, caplog: pytest.LogCaptureFixture) -> None:
    memory, broken = vizlog.Memory(), Broken(writes=writes)
    _, alone = run(None)
    _, watched = run(
        {"to": [broken, memory] if beside else broken, "every": None, "probes": [vizlog.WeightHistograms()]}
    )
    assert watched == alone
    assert len(memory.of("weights/0.weight")) == (2 if beside else 0)
    assert all("Broken" in message and "away" in message for message in warnings(caplog))
    assert len(warnings(caplog)) == 1


def test_nothing_is_measured_for_a_backend_that_is_off() -> None:
    class Counts(vizlog.Probe):
        measured: ClassVar[list[int]] = []

        def measure(self, context: Any) -> int:
            self.measured.append(context.step)
            return 1

        def finish(self, measured: int) -> Iterator[Scalar]:
            yield Scalar("mine/count", measured)

    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=Broken(writes=False), probes=[Counts(every=1)]) as monitor:
        for _ in range(5):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            monitor.flush()
        assert not monitor.is_due
    assert Counts.measured == [0]


def test_a_backend_that_cannot_take_a_summary_is_off_and_named(caplog: pytest.LogCaptureFixture) -> None:
    class Sums(vizlog.Memory):
        def summarise(self, *_: Any) -> None:
            raise ConnectionError("away")

    memory = Sums()
    _, alone = run(None)
    _, watched = run({"to": memory, "every": None, "probes": [vizlog.GradientHistograms(every=1)]})
    assert watched == alone
    assert steps(memory, "gradients/0.weight") == [0]
    (message,) = warnings(caplog)
    assert "Sums could not write and is off from now on: ConnectionError: away" in message


def test_records_of_ones_own_that_health_makes_no_sense_of_are_written(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(vizlog.Probe):
        picture = False

        def measure(self, context: Any) -> None:
            return None

        def finish(self, measured: Any) -> Iterable[Any]:
            yield Curves("health/gradient_norm", np.arange(3), {}, "layer", "norm")
            yield Scalar("mine", 1.0)

    memory = vizlog.Memory()
    _, alone = run(None)
    _, watched = run({"to": memory, "every": None, "probes": [Mine(every=1), vizlog.WeightHistograms(every=1)]})
    assert watched == alone
    assert steps(memory, "mine") == steps(memory, "weights/0.weight") == list(range(6))
    assert all("vizlog could not make sense of step" in message for message in warnings(caplog))
    assert warnings(caplog)


def test_a_writer_to_another_machine_that_was_closed_first_is_off_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Remote:
        """As much of a SummaryWriter as writes to a bucket."""

        all_writers: Any = ()

        def _get_file_writer(self) -> Any:
            return self

        def get_logdir(self) -> str:
            return "s3://bucket/run"

        def add_summary(self, summary: Any, step: int) -> None:
            pass

        def flush(self) -> None:
            pass

    def close(model: nn.Sequential, optimizer: SGD, step: int) -> None:
        if step == 3:
            writer.all_writers = None

    writer = Remote()
    _, alone = run(None)
    _, watched = run({"to": writer, "every": None, "probes": [vizlog.WeightHistograms(every=1)]}, between=close)
    assert watched == alone
    (message,) = warnings(caplog)
    assert "the SummaryWriter was closed before vizlog was: close vizlog first" in message


@pytest.mark.filterwarnings("error")
def test_a_backend_that_ends_the_thread_does_not_hang_the_end() -> None:
    worker, done = Worker(), []

    def end() -> None:
        raise SystemExit("away")

    worker.submit(end)
    worker.submit(lambda: done.append(1))
    worker.close()
    assert done == [1]


def test_a_record_that_cannot_be_drawn_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def undrawable(record: Any, **_: Any) -> Any:
        if isinstance(record, Embedding):
            raise IndexError("a drawing that goes wrong")
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("vizlog.backends.pictures.raster", undrawable)
    monkeypatch.setattr("vizlog.process.LowPriority.call", lambda _, function, *arguments: function(*arguments))
    backend = vizlog.TensorBoard(tmp_path / "run")
    records = every_record()
    for step in range(3):
        backend.write(step, records)
    backend.close()
    lost = {record.tag for record in records if isinstance(record, Embedding)}
    assert set(values(tmp_path / "run")) == {(step, r.tag) for step in range(3) for r in records if r.tag not in lost}
    (message,) = warnings(caplog)
    assert "embeddings/fc could not be drawn and is left out: IndexError: a drawing that goes wrong" in message


class Trap(str):
    """A text that does something to the process which receives it, or cannot be sent."""

    __slots__ = ("does",)

    def __reduce__(self) -> Any:
        return self.does()  # type: ignore[attr-defined]


def cannot_be_sent() -> Any:
    raise TypeError("this is not to be pickled")


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda: (os._exit, (7,)), "RuntimeError: the low-priority process died twice: exit status 7"),
        (
            lambda: (time.sleep, (600,)),
            "RuntimeError: TimeoutError: the low-priority process took longer than 0.5 s and was stopped",
        ),
        (cannot_be_sent, "TypeError: this is not to be pickled"),
    ],
    ids=["ends it", "keeps it busy", "cannot be sent"],
)
def test_a_record_that_the_drawing_process_cannot_take_costs_no_other(
    does: Callable[[], Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def impatient(child: Any, request: bytes, timeout: float, ask: Any = _Child.ask) -> Any:
        return ask(child, request, 0.5 if b"sleep" in request else timeout)

    def here(record: Any) -> None:
        raise AssertionError("it was drawn in the training process")

    monkeypatch.setattr(_Child, "ask", impatient)
    monkeypatch.setattr("vizlog.backends.pictures.raster", here)  # the drawing process has its own
    trap = Trap("x")
    trap.does = does  # type: ignore[attr-defined]
    backend = vizlog.TensorBoard(tmp_path / "run")
    for step in range(2):
        backend.write(step, [curves("health/bad", trap), curves("health/a")])
    backend.close()
    assert set(values(tmp_path / "run")) == {(0, "health/a"), (1, "health/a")}
    assert warnings(caplog) == [f"vizlog: health/bad could not be drawn and is left out: {why}"]


def curves(tag: str, x_label: str = "x") -> Curves:
    return Curves(tag, np.arange(3), {"y": np.arange(3)}, x_label, "y")


@pytest.mark.parametrize("python", ["/nowhere/python", shutil.which("false") or "/bin/false"])
def test_where_no_drawing_process_starts_pictures_are_drawn_all_the_same(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vizlog.process._shared", WeakValueDictionary())  # of other tests, which has started
    monkeypatch.setattr(sys, "executable", python)
    backend = vizlog.TensorBoard(tmp_path / "run")
    for step in range(2):
        backend.write(step, [curves("health/a")])
    backend.close()
    assert set(values(tmp_path / "run")) == {(0, "health/a"), (1, "health/a")}
    (message,) = warnings(caplog)
    assert message.startswith("vizlog draws in the training process from now on, which slows it: ")


# Where it is written --------------------------------------------------------------------------------------------------


def test_a_deleted_folder_is_made_again_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"

    def delete(model: nn.Sequential, optimizer: SGD, step: int) -> None:
        if step == 3:
            shutil.rmtree(folder)

    _, alone = run(None)
    _, watched = run({"to": folder}, between=delete)
    assert watched == alone
    written = values(folder)
    assert [step for step, tag in written if tag == "weights/0.weight"] == [3, 4, 5]
    assert written[3, "weights/0.weight"].metadata.summary_description  # captions too
    (message,) = warnings(caplog)
    assert str(folder) in message
    assert "was deleted" in message


@contextmanager
def full_after(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the SummaryWriter's thread
def test_a_writer_that_broke_over_a_full_disk_is_gone_on_with_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    before = set(threading.enumerate())
    backend = vizlog.TensorBoard(SummaryWriter(tmp_path))
    backend.write(0, [Scalar("a", 0)])
    its = set(threading.enumerate()) - before
    with full_after(3000):
        for step in (1, 2):
            backend.write(step, every_record(step))
    for thread in its:
        thread.join(10)  # or what it raised may be told of a later test
    for step in (3, 4):
        backend.write(step, [Scalar("a", step)])
    backend.close()
    assert {0, 3, 4} <= {step for step, tag in values(tmp_path) if tag == "a"}
    said = warnings(caplog)
    assert len(said) == 2
    assert "no space at step 1" in said[0]
    assert "space again at step 3" in said[1]


def test_a_disk_that_is_full_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = vizlog.TensorBoard(tmp_path, hparams={"lr": 0.1})
    backend.write(3, [Scalar("a", 0)])
    (file,) = event_files(tmp_path)
    with full_after(file.stat().st_size):
        backend.close()
    (message,) = warnings(caplog)
    assert "no space at step 3" in message
    assert (3, "a") in values(tmp_path)


@pytest.mark.parametrize("then", ["writes", "summarises", "closes"])
def test_a_summary_that_a_full_disk_took_is_written_once_there_is_space(then: str, tmp_path: Path) -> None:
    backend = vizlog.TensorBoard(tmp_path, hparams={"lr": 0.1})
    backend.write(0, [Scalar("a", 0)])
    (file,) = event_files(tmp_path)
    with full_after(file.stat().st_size):
        backend.summarise(1, {"vizlog/dead_units_worst": 1.0}, "all units are dead")
    if then == "writes":
        backend.write(2, [Scalar("a", 2)])
    elif then == "summarises":
        backend.summarise(2, {"vizlog/dead_units_worst": 1.0}, "all units are dead")
    backend.close()
    tags = [value.tag for event in events(tmp_path) for value in event.summary.value]
    for tag in ("vizlog/dead_units_worst", "vizlog/stopped_because", "_hparams_/session_end_info"):
        assert tags.count(tag) == 1


def test_a_summary_that_was_deleted_with_its_folder_is_written_again(tmp_path: Path) -> None:
    backend = vizlog.TensorBoard(tmp_path / "run", hparams={"lr": 0.1})
    backend.summarise(1, {"vizlog/dead_units_worst": 1.0}, "all units are dead")
    shutil.rmtree(tmp_path / "run")
    backend.write(2, [Scalar("a", 2)])
    backend.close()
    assert {(2, "vizlog/dead_units_worst"), (2, "vizlog/stopped_because")} <= set(values(tmp_path / "run"))


def test_a_caption_that_a_full_disk_took_comes_with_the_next_record(tmp_path: Path) -> None:
    backend = vizlog.TensorBoard(tmp_path)
    backend.write(0, [Scalar("a", 0)])
    (file,) = event_files(tmp_path)
    with full_after(file.stat().st_size):
        backend.write(1, [Scalar("b", 1, caption="what it is")])
    backend.write(2, [Scalar("b", 2, caption="what it is")])
    backend.close()
    assert values(tmp_path)[2, "b"].metadata.summary_description == "what it is"


def test_a_folder_that_is_deleted_before_the_first_step_is_made_again(tmp_path: Path) -> None:
    backend = vizlog.TensorBoard(tmp_path / "run")
    (tmp_path / "run").rmdir()
    backend.write(0, [Scalar("a", 0)])
    backend.close()
    assert (0, "a") in values(tmp_path / "run")


def test_a_writer_that_is_being_closed_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    backend = vizlog.TensorBoard(writer)
    backend.write(0, [Scalar("a", 0)])
    writer._get_file_writer().close()  # as far as close() has come
    backend.write(1, [Scalar("a", 1)])
    backend.close()
    assert set(values(tmp_path)) == {(0, "a"), (1, "a")}
    assert not warnings(caplog)


def test_a_writer_has_flushed_what_was_written(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    vizlog.TensorBoard(writer).write(7, [Scalar("loss", 1)])
    assert (7, "loss") in values(tmp_path)
    writer.close()


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system of 200 KB, which takes root")
def test_training_into_a_full_disk_goes_on_once_there_is_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "vizlog-test", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")

    def fill(model: nn.Sequential, optimizer: SGD, step: int) -> None:
        if step == 2:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                (disk / "other").write_bytes(bytes(1 << 20))
        if step == 4:
            (disk / "other").unlink()

    try:
        probes = [vizlog.WeightHistograms(every=1)]
        _, alone = run(None)
        _, watched = run({"to": disk / "run", "every": None, "batch": None, "probes": probes}, between=fill)
        assert watched == alone
        found = {step for step, tag in values(disk / "run") if tag == "weights/0.weight"}
        assert {0, 1, 4, 5} <= found
        assert len(list(events(disk / "run"))) > 6
        assert [message.partition(" at step")[0] for message in warnings(caplog)] == [
            "TensorBoard has no space",
            "TensorBoard has space again",
        ]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_is_gone_where_another_has_its_name_and_there_where_it_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = EventFile(tmp_path)
    (tmp_path / "folder.tfevents").mkdir()
    assert event_files(tmp_path) == [file.path]
    assert file.is_there()
    for code, there in [(errno.EACCES, True), (errno.EIO, True), (errno.ENOENT, False), (errno.ENOTDIR, False)]:

        def refuse(*_: Any, code: int = code, **__: Any) -> None:
            raise OSError(code, "no")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", refuse)
            found = file.is_there()
        assert found is there, code
    (tmp_path / "other").touch()
    (tmp_path / "other").replace(file.path)
    assert not file.is_there()
    file.close()
    file.close()


class Fills:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        written = self.file.write(data[: self.room])
        self.room -= written
        return int(written)


@pytest.mark.parametrize("into_the_second", [0, 1])
def test_an_event_that_a_full_disk_cut_is_completed_and_one_that_it_took_none_of_is_lost(
    into_the_second: int, tmp_path: Path
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    file = EventFile(tmp_path)
    file.append([Event(step=7)])
    frame = file.path.stat().st_size
    file.append([Event(step=7)])
    frame = file.path.stat().st_size - frame
    whole, file._file = file._file, Fills(file._file, frame + into_the_second)  # type: ignore[assignment]
    with pytest.raises(OSError, match="full"):
        file.append([Event(step=7), Event(step=8), Event(step=9)])
    file._file = whole
    file.append([Event(step=9)])
    file.close()
    assert [event.step for event in events(tmp_path)][1:] == [7, 7, 7, *[8] * into_the_second, 9]


def test_event_files_sort_as_made_though_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    (tmp_path / f"events.out.tfevents.{int(now)}.host.1.0").touch()  # as torch calls them
    for number, clock in enumerate([now, now - 3600, now - 3600]):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        backend = vizlog.TensorBoard(tmp_path, resume=True)
        backend.write(number, [Scalar("a", number)])
        backend.close()
    assert [event.step for event in events(tmp_path) if event.summary.value] == [0, 1, 2]


def test_a_wandb_process_that_is_killed_takes_nothing_else_with_it(tmp_path: Path) -> None:
    script = """
import logging, os, signal, subprocess, torch, vizlog, wandb
from torch import nn
said = []
logging.getLogger("vizlog").addHandler(type("H", (logging.Handler,), {"emit": lambda s, r: said.append(r)})())
run = wandb.init(project="test")
model = nn.Linear(3, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with vizlog.watch(model, optimizer, to=[run, "run"], probes=[vizlog.WeightHistograms(every=1)]) as monitor:
    for step in range(6):
        if step == 3:
            found = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
            cores = subprocess.run(found, capture_output=True, text=True).stdout.split()
            assert cores
            for pid in cores:
                os.kill(int(pid), signal.SIGKILL)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        monitor.flush()
print([r.getMessage() for r in said if r.levelno >= logging.WARNING], flush=True)
os._exit(0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert [step for step, tag in values(tmp_path / "run") if tag == "weights/weight"] == list(range(6))
    said = ended.stdout.strip().splitlines()[-1]
    assert said.count("WandB") == 1, said


# When it is written ---------------------------------------------------------------------------------------------------


def test_numbers_are_written_soon_though_the_training_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vizlog.logged._SECONDS", 0.2)
    model = net()
    with vizlog.Monitor(model, [], to=tmp_path / "run") as monitor:
        for number in range(3):
            monitor.log({"loss": torch.tensor(float(number))})
            until(lambda: list((tmp_path / "run").glob("*tfevents*")), patience=60)
            until(lambda number=number: len(events(tmp_path / "run")) == number + 2, patience=60)


def test_numbers_that_come_while_others_are_handed_over_neither_join_nor_overtake_them() -> None:
    waiting, order = _Waiting(), []
    entered, go, added = threading.Event(), threading.Event(), threading.Event()

    def receive(numbers: list[tuple[int, dict[str, Any]]]) -> None:
        entered.set()
        go.wait(60)
        order.extend(step for step, _ in numbers)

    def later() -> None:
        waiting.add(1, {"n": 1})
        added.set()
        waiting.hand_over(receive)

    waiting.add(0, {"n": 0})
    threads = [threading.Thread(target=waiting.hand_over, args=(receive,)), threading.Thread(target=later)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    assert not added.wait(0.2)
    go.set()
    for thread in threads:
        thread.join()
    assert order == [0, 1]


def test_two_threads_that_fold_the_diagnosis_lose_nothing() -> None:
    entered, go = threading.Event(), threading.Event()

    class Counts:
        def __init__(self, number: int) -> None:
            self.number = number

        def after(self, *_: Any) -> Counts:
            entered.set()
            go.wait(60)
            return Counts(self.number + 1)

    delivery = Delivery(None, lambda *_: None)
    delivery.diagnosis = Counts(0)  # type: ignore[assignment]
    threads = [threading.Thread(target=delivery._diagnosed, args=(0, [], set())) for _ in range(2)]
    for thread in threads:
        thread.start()
        entered.wait()
    threads[1].join(0.2)
    go.set()
    for thread in threads:
        thread.join()
    assert delivery.diagnosis.number == 2  # type: ignore[attr-defined]


def test_health_is_drawn_over_the_layers_ever_more_seldom() -> None:
    model, memory = net(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.GradientHistograms(every=1)], to=memory) as monitor:
        for _ in range(40):
            with monitor.step():
                model(X).sum().backward()
    assert steps(memory, "health/gradient_norm_worst") == list(range(40))
    assert steps(memory, "health/gradient_norm") == [0, *(math.ceil(10 ** (k / 4)) for k in range(7))]


def test_numbers_that_are_many_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.logged._SECONDS", 3600)
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [], to=memory) as monitor:
        for number in range(200):
            monitor.log({"n": number})
        until(lambda: len(memory.of("n")) >= 100, patience=60)


def test_a_flush_takes_the_numbers_that_wait_along() -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [], to=memory) as monitor:
        monitor.log({"n": 1.0})
        monitor.flush()
        assert steps(memory, "n") == [0]


class Held(vizlog.Memory):
    """Takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.go = threading.Event(), threading.Event()

    def write(self, step: int, records: Any) -> None:
        self.started.set()
        self.go.wait()
        super().write(step, records)


def test_pictures_that_had_to_go_are_counted_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Picture(vizlog.Probe):
        def measure(self, context: Any) -> int:
            return int(context.step)

        def finish(self, measured: int) -> Iterable[Any]:
            yield Scalar("picture", measured)

    memory = Held()
    with vizlog.Monitor(net(), [Picture(every=1)], to=memory) as monitor:
        monitor.log({"before": 1.0})
        for _ in range(100):
            with monitor.step():
                pass
            memory.started.wait()
        memory.go.set()
    left_out = 100 - len(memory.of("picture"))
    assert left_out > 0
    assert f"vizlog dropped {left_out} pictures that came due faster than they could be drawn" in warnings(caplog)


def test_a_closed_monitor_that_is_let_go_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    monitor = vizlog.Monitor(net(), [], to=vizlog.Memory())
    monitor.close()
    monkeypatch.setattr(threading.Thread, "start", started.append)
    del monitor
    gc.collect()
    assert started == []


def test_of_two_records_of_one_tag_the_first_is_written_and_the_other_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Says(vizlog.Probe):
        picture = False

        def __init__(self, value: float) -> None:
            super().__init__(every=1)
            self.value = value

        def measure(self, context: Any) -> None:
            return None

        def finish(self, measured: Any) -> Iterable[Any]:
            yield Scalar("mine", self.value)

    memory = vizlog.Memory()
    run({"to": memory, "every": None, "probes": [Says(1.0), Says(2.0)]})
    assert [record.value for _, record in memory.of("mine")] == [1.0] * 6  # type: ignore[union-attr]
    assert warnings(caplog) == ["vizlog: two probes make mine; the second one's is left out"]


def test_that_is_within_ten_seconds() -> None:
    from vizlog import logged

    assert logged._SECONDS <= 10


def test_numbers_of_two_threads_are_all_written_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.logged._SECONDS", 0.001)  # the worker takes them while they come
    memory = vizlog.Memory()
    with vizlog.Monitor(net(), [], to=memory) as monitor:
        for number in range(3000):
            monitor.log({"n": number})
    assert [record.value for _, record in memory.of("n")] == list(range(3000))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "probes", [[], [vizlog.WeightHistograms(every=1), vizlog.Embeddings(every=1, methods=("pca",))]]
)
def test_where_no_thread_starts_all_is_written_all_the_same(probes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    memory = vizlog.Memory()
    _, alone = run(None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    _, watched = run({"to": memory, "every": None, "probes": probes})
    assert watched == alone
    assert steps(memory, "loss") == list(range(6))
    everything = {record.tag for _, record in memory.records if not isinstance(record, Curves)}  # those are log-spaced
    assert all(steps(memory, tag) == list(range(6)) for tag in everything)


# How it ends ----------------------------------------------------------------------------------------------------------

ENDINGS = """
import gc, json, os, signal, sys, time
import torch, vizlog
from torch import nn
import vizlog.backends.tensorboard, tensorboard.compat.proto.event_pb2
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it starts in the background
before = {number: signal.getsignal(number) for number in signal.valid_signals()}

def train():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=sys.argv[1], every=1, batch=(torch.randn(8, 3), torch.arange(8) % 3))
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        monitor.log({"loss": float(step)})
    assert {number: signal.getsignal(number) for number in before} == before, "a signal handler"
    return monitor

def ends(): pass
def raises(): raise ValueError("mine")
def exits(): sys.exit(3)
def lets_go():
    global monitor
    del monitor
    gc.collect()
def forks():
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    raise SystemExit(4)
def waits():
    monitor.flush()
    open(name + ".waits", "w").close()
    time.sleep(600)  # a signal ends it

train().close()  # loads and compiles what is needed, once for all
pids = {}
for name in ("ends", "raises", "exits", "lets_go", "forks", "SIGINT", "SIGTERM", "SIGUSR1", "SIGKILL"):
    pids[name] = os.fork()
    if pids[name] == 0:
        sys.argv[1] = name
        monitor = train()
        sys.stderr = open(name + ".err", "w")
        (globals().get(name) or waits)()
        break
else:
    statuses = {}
    for name, pid in pids.items():
        if name.startswith("SIG"):
            while not os.path.exists(name + ".waits"):
                time.sleep(0.05)
    for name, pid in pids.items():
        if name.startswith("SIG"):
            os.kill(pid, getattr(signal, name))
    for name, pid in pids.items():
        statuses[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps(statuses), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the endings start from one process that has imported torch")
def test_however_a_script_ends_what_was_seen_can_be_read(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [sys.executable, "-c", ENDINGS, "first"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    statuses = json.loads(ended.stdout.strip().splitlines()[-1])
    assert statuses == {
        "ends": 0, "raises": 1, "exits": 3, "lets_go": 0, "forks": 4, "SIGINT": -signal.SIGINT,
        "SIGTERM": -signal.SIGTERM, "SIGUSR1": -signal.SIGUSR1, "SIGKILL": -signal.SIGKILL,
    }  # fmt: skip
    for name in statuses:
        written = values(tmp_path / name)
        for tag in ("weights/0.weight", "gradients/2.bias", "health/update_ratio_worst", "loss"):
            assert [step for step, found in written if found == tag] == list(range(5)), (name, tag)
        assert "Exception ignored" not in (tmp_path / f"{name}.err").read_text(), name


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_loader_processes_fork_while_the_queue_is_full() -> None:
    model, memory = net(), Held()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, every=1, batch=(X, Y)) as monitor:
        train(model, optimizer, 4)
        monitor.log({"before": 1.0})
        memory.started.wait()
        for _ in range(2):
            loader = DataLoader(list(range(8)), num_workers=2, multiprocessing_context="fork", timeout=60)
            assert len(list(loader)) == 8
        child = os.fork()
        if child == 0:  # whatever it calls, its parent's jobs and numbers are not its own
            memory.go.set()
            monitor.flush()
            os._exit(len([1 for _, record in memory.records if record.tag == "before"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        memory.go.set()
    assert steps(memory, "weights/0.weight") == list(range(4))
    assert steps(memory, "before") == [3]


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*tensorboardX",
    "ignore:.*isinstance.treespec, LeafSpec.:FutureWarning",
)
def test_lightnings_requeue_on_sigusr1_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from vizlog.callbacks.lightning import VizLog

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    class Signalled(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (bin_ / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    memory = vizlog.Memory()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=6, accelerator="cpu", default_root_dir=tmp_path, plugins=[SLURMEnvironment(auto_requeue=True)],
        callbacks=[VizLog([vizlog.WeightHistograms(every=1)], to=memory), Signalled()], **options,
    )  # fmt: skip
    data = DataLoader([(x, y) for x, y in zip(X, Y, strict=True)], batch_size=3)
    trainer.fit(Module(), data)
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
    assert list(tmp_path.glob("hpc_ckpt_*.ckpt"))
    assert steps(memory, "weights/body.0.weight") == list(range(6))
