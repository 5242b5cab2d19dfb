"""What reaches the W&B service: the real client against a stand-in, however the owner logs, and whatever fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from test_wandb import every_kind, histogram
from torch import nn
from wandb_file import read_run
from wandb_service import CLOSED, WandbService
from wandb_service import Run as Arrived

import vizlog
from vizlog.backends.wandb import WandB
from vizlog.backends.wandb_process import runs
from vizlog.diagnosis import KEYS, Diagnosis
from vizlog.records import Scalar

if TYPE_CHECKING:
    import wandb

STEPS = 120
DUE = range(0, STEPS, 10)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What vizlog has told the person so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "vizlog"]


def ours(step: int) -> list[Any]:
    return [Scalar("health/x", value=float(step)), histogram("weights/a", np.arange(9.0) + step)]


def our_steps(arrived: Arrived) -> list[int]:
    """The steps that have arrived of vizlog's rows, each with all that belongs to it."""
    rows = [row for row in arrived.history if "health/x" in row]
    for row in rows:
        assert row["vizlog/step"] == row["health/x"] == row["weights/a"]["bins"][0]
    return [row["vizlog/step"] for row in rows]


# However the owner logs: each of these is called once a step, and says what must be in his rows


def no_step(run: wandb.Run, step: int) -> None:
    run.log({"loss": step})


def in_halves(run: wandb.Run, step: int) -> None:
    run.log({"loss": step}, commit=False)
    run.log({"accuracy": -step})


def with_step(run: wandb.Run, step: int) -> None:
    run.log({"loss": step}, step=step)
    run.log({"accuracy": -step}, step=step)


def with_step_seldom(run: wandb.Run, step: int) -> None:
    if step % 25 == 24:
        with_step(run, step)


def with_step_from_one(run: wandb.Run, step: int) -> None:
    run.log({"loss": step}, step=step + 1)


def epochs(run: wandb.Run, step: int) -> None:
    if step % 40 == 39:
        run.log({"loss": step})


def epochs_with_step(run: wandb.Run, step: int) -> None:
    if step % 40 == 39:
        run.log({"loss": step}, step=step // 40)
        run.log({"accuracy": -step}, step=step // 40)


def as_transformers(run: wandb.Run, step: int) -> None:
    if step == 0:
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
    if step % 5 == 0:
        run.log({"loss": step, "train/global_step": step})


def as_lightning(run: wandb.Run, step: int) -> None:
    if step % 5 == 4:
        WandbLogger(experiment=run).log_metrics({"loss": step}, step=step)


def nothing(run: wandb.Run, step: int) -> None:
    pass


OWNERS: dict[Callable[[wandb.Run, int], None], list[int]] = {
    no_step: [*range(STEPS)],
    in_halves: [*range(STEPS)],
    with_step: [*range(STEPS)],
    with_step_seldom: [24, 49, 74, 99],
    with_step_from_one: [*range(STEPS)],
    epochs: [39, 79, 119],
    epochs_with_step: [39, 79, 119],
    as_transformers: [*range(0, STEPS, 5)],
    as_lightning: [*range(4, STEPS, 5)],
    nothing: [],
}


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Arrived]]:
    """What the service has of one run for each way to log, with vizlog beside it; the run is finished before vizlog."""
    import wandb

    with pytest.MonkeyPatch.context() as patch, WandbService(tmp_path_factory.mktemp("service")) as service:
        wandb.teardown()
        for name, value in service.environment.items():
            patch.setenv(name, value)
        for owner in OWNERS:
            with wandb.init(project="p", id=owner.__name__, reinit="create_new") as run:
                # As the callback for Lightning does
                backend = WandB(run, step_key="trainer/global_step" if owner is as_lightning else None)
                for step in range(STEPS):
                    if step in DUE:
                        backend.write(step, ours(step))
                    owner(run, step)
                run.log({"after": 1})
        wandb.teardown()
        assert not service.unknown
        yield service.runs


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_no_row_of_the_owners_is_lost(histories: dict[str, Arrived], owner: Callable[[wandb.Run, int], None]) -> None:
    arrived = histories[owner.__name__]
    rows = [row for row in arrived.history if "loss" in row]
    assert [row["loss"] for row in rows] == OWNERS[owner]
    assert arrived.of("after") == [1]
    if any("accuracy" in row for row in rows):
        assert [row["accuracy"] for row in rows] == [-step for step in OWNERS[owner]]
    assert arrived.state == "finished"


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_no_row_of_ours_is_lost(histories: dict[str, Arrived], owner: Callable[[wandb.Run, int], None]) -> None:
    arrived = our_steps(histories[owner.__name__])
    if owner is epochs_with_step:  # W&B keeps one row for each of his numbers: the latest values before the next one
        assert arrived == [70, 110]
    else:
        assert arrived == [*DUE]


@pytest.mark.parametrize("owner", [with_step, with_step_seldom, with_step_from_one], ids=lambda owner: owner.__name__)
def test_where_the_owner_numbers_rows_by_steps_ours_stand_at_theirs(
    histories: dict[str, Arrived], owner: Callable[[wandb.Run, int], None]
) -> None:
    rows = [row for row in histories[owner.__name__].history if "health/x" in row]
    assert max(abs(row["_step"] - row["vizlog/step"]) for row in rows[1:]) <= (35 if owner is with_step_seldom else 1)


@pytest.mark.parametrize(("owner", "key"), [(as_lightning, "trainer/global_step"), (as_transformers, None)])
def test_where_the_owner_charts_by_a_key_ours_agree(
    histories: dict[str, Arrived], owner: Callable[[wandb.Run, int], None], key: str | None
) -> None:
    """Without the key W&B fills in the latest one of the owner's, and ours go by `vizlog/step`."""
    for row in histories[owner.__name__].history:
        if "health/x" in row:
            assert row[key or "vizlog/step"] == row["vizlog/step"]
        if "loss" in row:
            assert row[key or "train/global_step"] == row["loss"]


# A run, and runs


def test_a_resumed_run_goes_on_above_what_it_has(wandb_service: WandbService) -> None:
    import wandb

    for owner in (no_step, with_step, nothing):
        for part in (range(10), range(10, 20)):
            how = {"resume": "allow"} if part.start == 0 else {"resume": "must"}
            with wandb.init(project="p", id=f"resumed-{owner.__name__}", **how) as run:
                assert (run.starting_step > 0) == (part.start > 0)
                backend = WandB(run)
                for step in part:
                    if step % 5 == 0:
                        backend.write(step, ours(step))
                    owner(run, step)
        arrived = wandb_service.runs[f"resumed-{owner.__name__}"]
        assert arrived.of("loss") == [*range(20 if owner is not nothing else 0)]
        assert our_steps(arrived) == [0, 5, 10, 15]


def test_two_runs_at_once_do_not_mix(wandb_service: WandbService) -> None:
    import wandb

    runs = [wandb.init(project="p", id=f"at-once-{number}", reinit="create_new") for number in range(2)]
    backends = [WandB(run) for run in runs]
    for step in range(8):
        for number, (run, backend) in enumerate(zip(runs, backends, strict=True)):
            if step % 2 == number:
                backend.write(step, ours(step))
            run.log({"loss": step + 100 * number})
    for run in runs:
        run.finish()
    for number in range(2):
        arrived = wandb_service.runs[f"at-once-{number}"]
        assert arrived.of("loss") == [step + 100 * number for step in range(8)]
        assert our_steps(arrived) == [step for step in range(8) if step % 2 == number]


def test_a_second_run_that_ends_the_first_leaves_nothing_of_it_behind(wandb_service: WandbService) -> None:
    import wandb

    for number in range(2):
        run = wandb.init(project="p", id=f"in-turn-{number}", reinit="finish_previous")
        backend = WandB(run)
        for step in range(3):
            backend.write(step, ours(step))  # the owner says nothing, and nobody closes
    run.finish()
    assert [our_steps(wandb_service.runs[f"in-turn-{number}"]) for number in range(2)] == [[0, 1, 2], [0, 1, 2]]


def train(backend: Any, *, steps: int = 41, slow: bool = False, log: Callable[[int], None] = lambda step: None) -> None:
    """A tiny model, watched every 10 steps with probes of every kind that it has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    probes = [
        vizlog.WeightHistograms(every=10),
        vizlog.GradientHistograms(every=10),
        vizlog.ActivationHistograms(every=10),
        vizlog.FilterImages(every=10),
        vizlog.FeatureMaps(every=10),
        vizlog.SaliencyMaps(every=10),
        *([vizlog.Embeddings(methods=("pca",), every=20)] if slow else []),
    ]
    with vizlog.watch(model, optimizer, to=backend, batch=(x, y), probes=probes):
        for step in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            log(step)


def test_a_due_step_is_one_row_and_what_comes_late_one_more(wandb_service: WandbService) -> None:
    import wandb

    with wandb.init(project="p") as run:
        train(run, slow=True, log=lambda step: run.log({"loss": step}))
    arrived = wandb_service.runs[run.id]
    assert arrived.of("loss") == [*range(41)]
    rows: dict[int, list[set[str]]] = {}
    for row in arrived.history:
        if "vizlog/step" in row:
            rows.setdefault(row["vizlog/step"], []).append({key.split("/")[0] for key in row})
    assert [*rows] == [0, 10, 20, 30, 40]
    for step, found in rows.items():
        assert {"weights", "gradients", "activations", "filters", "feature_maps", "saliency"} <= found[0]
        assert len(found) <= (2 if step % 20 == 0 else 1)
        assert (step % 20 == 0) == any("embeddings" in kinds for kinds in found)


def test_rows_of_a_model_of_fifty_layers(wandb_service: WandbService) -> None:
    import wandb

    model = nn.Sequential(*[layer for _ in range(50) for layer in (nn.Linear(8, 8), nn.ReLU())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 8)
    with wandb.init(project="p") as run, vizlog.watch(model, optimizer, to=run, batch=(x, torch.arange(16) % 8)):
        for _ in range(101):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    rows = [row for row in wandb_service.runs[run.id].history if any(key.startswith("weights/") for key in row)]
    assert [row["vizlog/step"] for row in rows] == [0, 100]
    assert max(len(json.dumps(row)) for row in rows) < 500_000


# Without a network


def test_an_offline_run_is_synced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_own_wandb` has W&B offline; the service knows nothing of the run until `wandb sync`."""
    import wandb

    health = Diagnosis().scalars() | {"vizlog/dead_units_worst": 0.25}
    with wandb.init(project="p", config={"lr": 0.1}) as run:
        backend = WandB(run)
        for step in range(12):
            if step % 4 == 0:
                backend.write(step, [*every_kind(), *ours(step)])
            run.log({"loss": step})
        backend.summarise(11, health, "dead: all of it")
        backend.close()
        folder = Path(run.dir).parent
    written = read_run(folder)

    with WandbService(tmp_path / "service") as service:
        sync = [sys.executable, "-m", "wandb", "sync", str(folder)]
        subprocess.run(sync, check=True, env=os.environ | service.environment, timeout=120, capture_output=True)
        arrived = service.runs[run.id]
    assert service.unknown == []
    assert arrived.history == written.rows
    assert arrived.of("loss") == [*range(12)]
    assert our_steps(arrived) == [0, 4, 8]
    kinds = {value["_type"] for row in arrived.history for value in row.values() if isinstance(value, dict)}
    assert kinds == {"histogram", "image-file", "table-file", "plotly-file", "html-file"}
    assert {name: data for name, data in arrived.files.items() if name.startswith("media/")} == {
        str(path.relative_to(folder / "files")): path.read_bytes() for path in written.media
    }
    assert arrived.state == "finished"
    assert arrived.config["lr"] == 0.1
    assert {key: arrived.summary[key] for key in KEYS} == health | {"vizlog/stopped_because": "dead: all of it"}
    assert not arrived.summary.keys() & {"weights/a", "filters/conv1", "embeddings/fc/1/table", "health/dead_units"}


QUICK_RETRIES = {
    f"x_{what}_retry_{bound}_seconds": 0.05
    for what in ("file_stream", "file_transfer", "graphql")
    for bound in ("wait_min", "wait_max")
}


@pytest.mark.parametrize("answer", [429, 500, CLOSED, "none"])
def test_a_service_in_trouble_holds_nothing_up_and_gets_all_of_it_later(
    wandb_service: WandbService, said: Callable[[], list[str]], answer: int | str
) -> None:
    """A table hangs: for its artifact the client asks the service and waits for the answer. Nothing else does."""
    import wandb

    run = wandb.init(project="p", settings=wandb.Settings(**QUICK_RETRIES))
    backend = WandB(run)
    backend._service._seconds = 0.2
    run.log({"loss": 0})
    if answer == "none":
        wandb_service.goes_on.clear()
    else:
        wandb_service.answer = int(answer)
    backend.write(0, [*every_kind(), *ours(0)])
    for step in range(1, 5):
        backend.write(step, ours(step))
    backend.close()
    assert backend._service._jobs  # what hangs goes on, and nobody waits
    assert not backend._client._jobs  # all else is with the client
    (line,) = said()
    assert "does not answer" in line

    wandb_service.answer = 200
    wandb_service.goes_on.set()
    while backend._service._jobs:
        threading.Event().wait(0.01)
    run.finish()
    arrived = wandb_service.runs[run.id]
    assert our_steps(arrived) == [0, 1, 2, 3, 4]
    assert arrived.of("loss")[0] == 0
    (row,) = [row for row in arrived.history if "embeddings/fc/1/table" in row]  # it has followed
    assert row["vizlog/step"] == 0
    assert "embeddings/fc/1" in arrived.history[1]


def test_a_table_that_the_service_refuses_takes_nothing_else_with_it(
    wandb_service: WandbService, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    with wandb.init(project="p") as run:

        def refuse(*_: Any) -> None:
            raise wandb.errors.AuthenticationError("no")

        monkeypatch.setattr(run, "log_artifact", refuse)
        backend = WandB(run)
        for step in (0, 1):
            backend.write(step, [*every_kind(), *ours(step)])
    arrived = wandb_service.runs[run.id]
    assert our_steps(arrived) == [0, 1]
    assert arrived.of("embeddings/fc/1/table") == []
    assert len(arrived.of("embeddings/fc/1")) == 2
    (line,) = said()
    assert "took no table: AuthenticationError: no" in line


def test_a_slow_client_loses_no_row(
    wandb_service: WandbService, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a slow disk: nothing is computed, and W&B's process lives. The owner finishes the run before vizlog."""
    import wandb

    run = wandb.init(project="p")
    log = run.log

    def slow(*row: Any, **how: Any) -> None:
        threading.Event().wait(0.5)
        log(*row, **how)

    monkeypatch.setattr(run, "log", slow)
    backend = WandB(run)
    backend._client._seconds = 0.1
    for step in range(4):
        backend.write(step, ours(step))
    run.finish()
    assert our_steps(wandb_service.runs[run.id]) == [0, 1, 2, 3]
    assert said() == []


def test_a_stopped_process_of_wandb_is_not_waited_for_and_gets_all_of_it_once_it_goes_on(
    wandb_service: WandbService, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from wandb.sdk import wandb_setup

    run = wandb.init(project="p")
    run.log({"loss": 0})
    backend = WandB(run)
    process = wandb_setup.singleton().ensure_service()._proc._process
    assert runs(run)
    with monkeypatch.context() as patch:
        patch.delattr(socket, "SO_PEERCRED")  # as on another system
        assert not runs(run)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        while runs(run):  # a signal takes its time
            threading.Event().wait(0.01)
        many = [histogram(f"gradients/{number}", np.arange(999.0)) for number in range(200)]
        began, steps = time.monotonic(), range(30)
        for step in steps:  # more than a socket holds
            backend.write(step, [*ours(step), *many])
        backend.close()
        assert time.monotonic() - began < 30
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert "does not answer" in said()[-1]
    while backend._client._jobs:
        threading.Event().wait(0.01)
    run.finish()
    assert our_steps(wandb_service.runs[run.id]) == [*steps]


def test_what_is_waited_for_at_the_close_is_under_five_seconds(wandb_service: WandbService) -> None:
    """At worst for a table and then for its row, each once: where both hang nothing more is waited for."""
    import wandb

    with wandb.init(project="p") as run:
        backend = WandB(run)
        assert backend._service._seconds + backend._client._seconds < 5
        hangs = threading.Event()
        for patience in (backend._service, backend._client):
            patience._lives = lambda: False
            patience._seconds = 0.2
            assert not patience.call(hangs.wait)
            patience._seconds = 1000.0
            patience._last_sign = -1000.0  # silent for so long
        assert not backend._service.wait()
        assert not backend._client.call(hangs.wait)
        hangs.set()


def test_a_killed_client_costs_pictures_and_never_the_trial(
    wandb_service: WandbService, said: Callable[[], list[str]]
) -> None:
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.module import unset_globals

    run = wandb.init(project="p")
    client = wandb_setup.singleton().ensure_service()._proc._process
    steps = []

    def log(step: int) -> None:
        steps.append(step)
        if step == 15:
            client.kill()

    train(run, log=log)
    assert steps == [*range(41)]
    deadline = time.monotonic() + 60
    while runs(run):  # it is a zombie until it is waited for
        assert time.monotonic() < deadline
    client.wait()
    assert not runs(run)
    with contextlib.suppress(ConnectionResetError):
        wandb.teardown()
    unset_globals()
    off = [line for line in said() if "could not write and is off from now on" in line]
    assert len(off) == 1
