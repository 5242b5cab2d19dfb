"""The contract that every backend keeps: what is written can be read back, whatever its kind. What FanOut adds."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_records import every_record, histogram_of
from tensorboard.util import tensor_util
from tensorboard_run import values
from torch import nn
from wandb_file import read_run

import vizlog
from vizlog.backends.base import Backend
from vizlog.backends.fanout import FanOut
from vizlog.backends.memory import Memory
from vizlog.backends.open import open_backend
from vizlog.backends.tensorboard import TensorBoard
from vizlog.backends.wandb import WandB
from vizlog.records import Histogram, Record, Scalar, Text

Seen = dict[tuple[int, str], Any]
"""(step, tag) -> a scalar's number, a text, a histogram's total count, or "picture"."""


@dataclass(frozen=True)
class Destination:
    """How to open a backend and how to read what reached it once it is closed."""

    open: Callable[[Path], Backend]
    read: Callable[[Backend, Path], Seen]
    takes_nan: bool = True


def _in_memory(backend: Backend, folder: Path) -> Seen:
    assert isinstance(backend, Memory)
    return {(step, record.tag): _gist(record) for step, record in backend.records}


def _gist(record: Record) -> Any:
    match record:
        case Scalar():
            return record.value
        case Text():
            return record.text
        case Histogram():
            return float(record.counts.sum())
        case _:
            return "picture"


def _in_tensorboard(backend: Backend, folder: Path) -> Seen:
    return {key: _gist_of_summary(value) for key, value in values(folder / "run").items()}


def _gist_of_summary(value: Any) -> Any:
    array = tensor_util.make_ndarray(value.tensor)
    match value.metadata.plugin_data.plugin_name:
        case "scalars":
            return float(array)
        case "text":
            return array.item().decode()
        case "histograms":
            return float(array[:, 2].sum())
        case "images":
            assert array[2].startswith(b"\x89PNG")
            return "picture"
        case other:
            return f"unknown: {other}"


def _wandb_run(folder: Path) -> Backend:
    import wandb

    return WandB(wandb.init(project="test", dir=folder))


def _in_wandb(backend: Backend, folder: Path) -> Seen:
    import wandb

    run_folder = Path(wandb.run.dir).parent
    wandb.finish()
    written = read_run(run_folder)
    return {
        (row["vizlog/step"], key): _gist_of_value(value, run_folder / "files")
        for row in written.rows
        for key, value in row.items()
        if key.count("/") == 1 and not key.startswith("vizlog/")  # further figures of a record lie below its tag
    }


def _gist_of_value(value: Any, files: Path) -> Any:
    match value:
        case {"_type": "histogram"}:
            return float(sum(value["values"]))
        case {"_type": "html-file", "path": path}:
            page = (files / path).read_text(encoding="utf-8")
            return page.split("<p>")[1].split("</p>")[0].replace("<strong>", "**").replace("</strong>", "**")
        case {"_type": "image-file" | "plotly-file", "path": path}:
            return "picture" if (files / path).is_file() else "missing"
        case _:
            return value


def _torch_writer(folder: Path) -> Backend:
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(SummaryWriter(folder / "run"))


DESTINATIONS = {
    "memory": Destination(lambda folder: Memory(), _in_memory),
    "tensorboard path": Destination(lambda folder: TensorBoard(folder / "run"), _in_tensorboard),
    "tensorboard writer": Destination(_torch_writer, _in_tensorboard),
    "wandb": Destination(_wandb_run, _in_wandb, takes_nan=False),
    "fan-out": Destination(lambda folder: FanOut(Memory(), TensorBoard(folder / "run")), _in_tensorboard),
}


@pytest.fixture(params=DESTINATIONS.values(), ids=DESTINATIONS)
def destination(request: pytest.FixtureRequest) -> Iterator[Destination]:
    yield request.param
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def test_every_kind_of_record_can_be_read_back_at_its_step(destination: Destination, tmp_path: Path) -> None:
    backend = destination.open(tmp_path)
    written = {step: every_record(step) for step in (0, 10)}
    for step, records in written.items():
        backend.write(step, records)
    backend.close()
    seen = destination.read(backend, tmp_path)
    assert seen == {(step, record.tag): _gist(record) for step, records in written.items() for record in records}


def test_nothing_written_and_closing_twice_are_fine(destination: Destination, tmp_path: Path) -> None:
    backend = destination.open(tmp_path)
    backend.write(0, [])
    backend.close()
    backend.close()


def test_what_is_not_finite_does_no_harm(destination: Destination, tmp_path: Path) -> None:
    backend = destination.open(tmp_path)
    backend.write(0, [Scalar("loss", np.nan), Scalar("norm", np.inf), histogram_of("weights/a", [np.nan, np.inf, 1.0])])
    backend.close()
    seen = destination.read(backend, tmp_path)
    if destination.takes_nan:
        assert np.isnan(seen[0, "loss"])
        assert seen[0, "norm"] == np.inf
    assert seen[0, "weights/a"] == 1.0


def test_memory_finds_records_by_tag() -> None:
    memory = Memory()
    for step in (0, 10):
        memory.write(step, [Scalar("a", step), Scalar("b", 1)])
    assert [(step, record.value) for step, record in memory.of("a")] == [(0, 0), (10, 10)]
    assert memory.of("c") == []


def test_a_memory_shows_its_records_in_a_notebook() -> None:
    memory = Memory()
    memory.write(7, every_record())
    page = memory._repr_html_()
    assert page.count("data:image/png;base64,") == len(every_record())
    assert "step 7: weights/conv1" in page


class _Broken:
    """A destination that cannot be reached."""

    def __init__(self, *, closes: bool = True) -> None:
        self.calls: list[str] = []
        self._closes = closes

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.calls.append(f"write {step}")
        raise ConnectionError("the server is away")

    def close(self) -> None:
        self.calls.append("close")
        if not self._closes:
            raise ConnectionError("still away")


def test_a_backend_that_fails_is_named_once_and_left_out_while_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, memory = _Broken(), Memory()
    both = FanOut(broken, memory)
    both.write(0, [Scalar("a", 1)])
    both.write(1, [Scalar("a", 2)])
    both.close()
    assert [step for step, _ in memory.records] == [0, 1]
    assert broken.calls == ["write 0", "close"]
    assert [(record.name, record.levelno) for record in caplog.records] == [("vizlog", logging.WARNING)]
    assert "_Broken failed at step 0" in caplog.text
    assert "the server is away" in caplog.text


def test_closing_reaches_every_backend(caplog: pytest.LogCaptureFixture) -> None:
    first, second = _Broken(closes=False), _Broken()
    FanOut(first, second).close()
    assert first.calls == second.calls == ["close"]
    assert "still away" in caplog.text


class Summary(Memory):
    """Keeps why the training stops, and who accompanies it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Any] = []

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        self.taken.append((step, dict(scalars), stopped_because))

    def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
        self.taken.append((now, deliver))


def test_all_backends_get_the_summary_and_are_accompanied() -> None:
    first, second = Summary(), Summary()
    both = FanOut(first, Memory(), second)
    both.accompany(int, list)  # type: ignore[arg-type]
    both.summarise(3, {"vizlog/first_bad_step": -1.0}, "dead")
    assert first.taken == second.taken == [(int, list), (3, {"vizlog/first_bad_step": -1.0}, "dead")]


def test_fan_out_wants_backends() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FanOut()
    with pytest.raises(TypeError, match="write and close, got 'runs/a'"):
        FanOut("runs/a")  # type: ignore[arg-type]


# Owners ---------------------------------------------------------------------------------------------------------------


class OfSomebody(Memory):
    """A destination that is somebody else's too."""

    def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
        self.now, self.deliver = now, deliver


class TakesItsTime(vizlog.Probe):
    """The worker is behind the training until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(every=1)
        self.goes_on = threading.Event()

    def measure(self, context: Any) -> int:
        return int(context.step)

    def finish(self, measured: int) -> Iterator[Scalar]:
        self.goes_on.wait(60)
        yield Scalar("health/x", measured)


def test_a_backend_with_an_owner_is_told_where_the_training_is_and_can_ask_for_all_that_is_under_way() -> None:
    model, probe, owned = nn.Linear(2, 1), TakesItsTime(), OfSomebody()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=[Memory(), owned], probes=[probe], step=7)
    for step in (7, 8, 9):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert owned.now() == step
    assert owned.of("health/x") == []
    probe.goes_on.set()
    owned.deliver()
    assert [step for step, _ in owned.of("health/x")] == [7, 8, 9]
    monitor.close()


@pytest.mark.parametrize(
    ("to", "got"), [(b"", "bytes"), (range(2), "range"), ([Memory(), 3], "int"), (["runs/a", ["runs/b", None]], "None")]
)
def test_what_is_no_destination_is_refused_before_any_is_opened(to: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"to= takes a path, .* got {got}"):
        open_backend(to)
    assert not list(Path("runs").glob("*"))


def test_a_path_that_names_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="names no folder"):
        vizlog.Monitor(nn.Linear(2, 2), to="")


def test_the_name_of_a_service_is_not_taken_for_a_folder() -> None:
    for to in ("wandb", ["runs/a", "wandb"]):
        with pytest.raises(TypeError, match=r"give the run, to=wandb\.init\(\)"):
            vizlog.Monitor(nn.Linear(2, 2), to=to)
