"""What every test gets: fixed seeds, a folder of its own to write in, W&B kept to itself; and a little real data."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from clock import Clock
from processes import Processes
from torch import Tensor, nn
from wandb_service import WandbService

from vizlog.compute.loops import load
from vizlog.process import shared

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: they would wait for each other's threads
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

Digits: TypeAlias = tuple[Tensor, Tensor]


LONGEST_FIRST = (
    *("distributed", "worker", "huggingface", "regimes", "bad_values", "projection", "distributed_ways", "faults"),
    *("wandb_online", "distributed_lightning", "sweeps", "lightning", "ways_to_train", "cost", "wandb"),
)
"""Files whose tests take the longest, each on one worker: were one of them the last, the other would wait for it."""


def pytest_collection_finish() -> None:
    """What was imported stays: to go through it takes a quarter of a second each time that garbage is looked for."""
    import hypothesis  # noqa: F401 -- it must see by whom random generators are held

    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums come out the same on every machine, and tests do not wait for each other's threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _compiled_loops() -> None:
    """Where a test counts with numpy, it says so."""
    if importlib.util.find_spec("numba"):
        load()


@pytest.fixture(scope="session", autouse=True)
def _one_process_draws() -> Iterator[None]:
    """It is shared as long as anyone holds it, so that not every test starts one."""
    process = shared("pictures")
    yield
    del process


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- what a person's own training code draws from
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # the other writes down who calls it, for each device there might be


@pytest.fixture(autouse=True)
def _own_compiler() -> Iterator[None]:
    """What a test before has given to torch.compile is not what this one compiles."""
    yield
    if dynamo := sys.modules.get("torch._dynamo.eval_frame"):
        dynamo.cached_backends.clear()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes to a relative path stays out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B is offline, writes to a folder of this test, and knows nothing of the account of who started the tests."""
    home = tmp_path_factory.mktemp("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for kind in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")


@pytest.fixture(scope="session", autouse=True)
def _wandb_service_ends() -> Iterator[None]:
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def wandb_service(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbService]:
    """A stand-in of the W&B service that this process and its children log to; fails on what it does not know."""
    import wandb
    from wandb.agents.pyagent import Agent

    wandb.teardown()  # the next run reads the settings anew
    before = dict(os.environ)
    with WandbService(tmp_path_factory.mktemp("wandb_service")) as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(Agent, "HEARTBEAT_SLEEP_SECONDS", 0.05)
        yield service
        service.answer = 200  # else a test that failed in between would wait for ever
        service.goes_on.set()
        wandb.teardown()
        for name in os.environ.keys() - before.keys():  # what an agent leaves
            del os.environ[name]
    assert not service.unknown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What vizlog takes the time from."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two processes that train together; they start with the first test that asks them something."""
    processes = Processes(2, tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.stop()


@pytest.fixture(scope="session")
def _all_digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target).long()


@pytest.fixture
def digits(_all_digits: Digits) -> Digits:
    """1797 real handwritten digits: images (1797, 1, 8, 8) float32 in [0, 1], and their classes (1797,) int64."""
    images, labels = _all_digits
    return images.clone(), labels.clone()


@pytest.fixture
def small_cnn() -> Callable[[], nn.Sequential]:
    """Makes an untrained CNN for `digits`; its BatchNorm and dropout tell training from evaluation."""

    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64, 10),
        )

    return make
