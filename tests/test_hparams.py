"""TensorBoard's HPARAMS tab: what its own server makes of the runs of a sweep."""

from __future__ import annotations

import enum
import json
import time
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard_run import Server, events, server, until, values

import vizlog
from vizlog.backends.tensorboard import TensorBoard
from vizlog.diagnosis import Diagnosis
from vizlog.records import Scalar

HEALTH = Diagnosis().scalars()
TRIALS = {"a": (0.001, "relu", 0.25), "b": (0.1, "tanh", 0.5)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials, of which the first one's last look came late."""
    logdir = tmp_path_factory.mktemp("hparams") / "runs"
    for name, (lr, activation, dead) in TRIALS.items():
        backend = TensorBoard(
            logdir / name, hparams={"lr": lr, "activation": activation, "norm": {"on": True}}, metrics=["accuracy"]
        )
        for step in (0, 10):
            backend.write(step, [Scalar("accuracy", 0.5 + step / 100)])
            backend.summarise(step, HEALTH | {"vizlog/dead_units_worst": dead * step / 10})
        backend.close()
    return logdir


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def running(runs: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with server(runs, fast=request.param) as found:
        until(lambda: len(found.json("scalars/tags")) == len(TRIALS))
        yield found


def ask(running: Server, route: str, **body: Any) -> dict[str, Any]:
    url = f"{running.address}data/plugin/hparams/{route}"
    data = json.dumps({"experimentName": ""} | body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_the_tab_has_hyperparameters_and_health_of_each_run(running: Server) -> None:
    experiment = until(lambda: _with_hparams(running))
    assert {info["name"]: info["type"] for info in experiment["hparamInfos"]} == {
        "lr": "DATA_TYPE_FLOAT64",
        "activation": "DATA_TYPE_STRING",
        "norm.on": "DATA_TYPE_BOOL",
    }
    tags = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert tags == ["accuracy", *HEALTH]
    columns = [{"hparam": info["name"]} for info in experiment["hparamInfos"]]
    columns += [{"metric": info["name"]} for info in experiment["metricInfos"]]
    found = ask(
        running,
        "session_groups",
        allowedStatuses=["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN", "STATUS_FAILURE"],
        colParams=columns,
        startIndex=0,
        sliceSize=10,
    )["sessionGroups"]
    assert {group["name"] for group in found} == set(TRIALS)
    for group in found:
        lr, activation, dead = TRIALS[group["name"]]
        assert group["hparams"] == {"lr": lr, "activation": activation, "norm.on": True}
        seen = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert seen == {"accuracy": pytest.approx(0.6)} | HEALTH | {"vizlog/dead_units_worst": dead}
        assert [session["status"] for session in group["sessions"]] == ["STATUS_SUCCESS"]


def _with_hparams(running: Server) -> dict[str, Any] | None:
    found = ask(running, "experiment", includeMetrics=True)
    return found if found.get("hparamInfos") else None


def test_it_is_all_in_the_run_itself(runs: Path) -> None:
    assert sorted(path.name for path in runs.iterdir()) == sorted(TRIALS)
    assert not [path for path in (runs / "a").iterdir() if path.is_dir()]
    tags = [value.tag for event in events(runs / "a") for value in event.summary.value]
    for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG):
        assert tags.count(tag) == 1
    # What has not changed is not written again: the slow loader would draw it twice.
    assert tags.count("vizlog/silhouette") == 1
    assert tags.count("vizlog/dead_units_worst") == 2


def test_a_persons_own_writer_is_taken_too(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "own")) as writer:
        backend = TensorBoard(writer, hparams={"lr": 0.1})
        backend.write(0, [Scalar("accuracy", 0.5)])
        backend.close()
        backend.close()
    tags = [value.tag for event in events(tmp_path / "own") for value in event.summary.value]
    assert sorted(tag for tag in tags if tag.startswith("_hparams_")) == [
        metadata.EXPERIMENT_TAG,
        metadata.SESSION_END_INFO_TAG,
        metadata.SESSION_START_INFO_TAG,
    ]


class Colour(enum.Enum):
    RED = 1


class Mode(str, enum.Enum):
    FAST = "fast"


GIVEN = {
    "n": np.int64(3),
    "t": torch.tensor(0.5),
    "fused": torch.tensor(True),
    "amp": np.bool_(False),
    "seed": 10**400,
    "z": torch.tensor(1j),
    "text": np.array("x"),
    "colour": Colour.RED,
    "mode": Mode.FAST,
    "data": PurePosixPath("/data"),
    "name": "\ud800",
    "list": [1, 2],
    "none": None,
    "nested": {"on": False},
    "more": Namespace(deep=Namespace(lr=0.1)),
    5: "a name that is none",
}
SHOWN = {
    "n": 3.0,
    "t": 0.5,
    "fused": True,
    "amp": False,
    "seed": str(10**400),
    "z": "1j",
    "text": "x",
    "colour": "Colour.RED",
    "mode": "fast",
    "data": "/data",
    "name": "\\ud800",
    "list": "[1, 2]",
    "nested.on": False,
    "more.deep.lr": 0.1,
    "5": "a name that is none",
}


def shown(run: Path) -> dict[str, Any]:
    start = values(run)[0, metadata.SESSION_START_INFO_TAG]
    info = plugin_data_pb2.HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}


@pytest.mark.parametrize(
    ("given", "expected"), [(GIVEN, SHOWN), (Namespace(lr=0.1, tag=None), {"lr": 0.1})], ids=["mapping", "argparse"]
)
def test_hyperparameters_of_any_kind_become_what_the_tab_can_show(
    tmp_path: Path, given: Any, expected: dict[str, Any]
) -> None:
    backend = TensorBoard(tmp_path / "any", hparams=given)
    backend.write(0, [Scalar("x", 1.0)])
    backend.close()
    found = shown(tmp_path / "any")
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }


def test_one_metric_is_one_tag(tmp_path: Path) -> None:
    backend = TensorBoard(tmp_path / "one", hparams={"lr": 0.1}, metrics="accuracy")
    backend.write(0, [Scalar("accuracy", 1.0)])
    backend.close()
    experiment = values(tmp_path / "one")[0, metadata.EXPERIMENT_TAG].metadata.plugin_data.content
    infos = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [info.name.tag for info in infos] == ["accuracy", *HEALTH]


def test_a_session_has_the_time_of_its_start_and_of_its_end(tmp_path: Path) -> None:
    before = time.time()
    backend = TensorBoard(tmp_path / "times", hparams={"lr": 0.1})
    backend.write(0, [Scalar("x", 1.0)])
    between = time.time()
    backend.close()
    found = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for (_, tag), value in values(tmp_path / "times").items()
        if tag.startswith("_hparams_")
    }
    start = found[metadata.SESSION_START_INFO_TAG].session_start_info.start_time_secs
    end = found[metadata.SESSION_END_INFO_TAG].session_end_info.end_time_secs
    assert before <= start <= between <= end <= time.time()
    (lr,) = found[metadata.EXPERIMENT_TAG].experiment.hparam_infos
    assert lr.differs  # a column that the tab shows from the beginning


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hparams": [("lr", 0.1)]}, "hparams= takes a mapping"),
        ({"hparams": "lr=0.1"}, "hparams= takes a mapping"),
        ({"hparams": {"lr": 0.1}, "metrics": 5}, "metrics= takes tags"),
        ({"hparams": {"lr": 0.1}, "metrics": ["accuracy", 5]}, "metrics= takes tags"),
    ],
)
def test_what_the_tab_cannot_take_raises_where_it_is_given(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        vizlog.TensorBoard(tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_without_hyperparameters_no_scalar_is_added_but_why_it_stopped_is_said(tmp_path: Path) -> None:
    backend = TensorBoard(tmp_path / "plain")
    backend.write(0, [Scalar("x", 1.0)])
    backend.summarise(0, HEALTH)
    backend.summarise(1, HEALTH, "dead: all units")
    backend.summarise(2, HEALTH, "dead: all units")
    backend.summarise(3, HEALTH)  # as another monitor does that shares the run
    backend.close()
    assert sorted(values(tmp_path / "plain")) == [(0, "x"), (1, "vizlog/stopped_because")]


def test_a_scalar_that_changed_in_one_mapping_is_written_again(tmp_path: Path) -> None:
    backend, scalars = TensorBoard(tmp_path / "a", hparams={"lr": 0.1}), {"x": 1.0}
    for step, value in enumerate((1.0, 1.0, 2.0)):
        scalars["x"] = value
        backend.summarise(step, scalars)
    backend.close()
    assert [step for step, tag in values(tmp_path / "a") if tag == "x"] == [0, 2]


def test_a_metric_has_the_tag_that_its_scalar_is_written_under(tmp_path: Path) -> None:
    backend = TensorBoard(tmp_path / "a", hparams={"lr": 0.1}, metrics="loss \ud800")
    backend.write(0, [Scalar("loss \ud800", 1.0)])
    backend.close()
    written = values(tmp_path / "a")
    data = written[0, metadata.EXPERIMENT_TAG].metadata.plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(data).experiment.metric_infos
    assert (0, metrics[0].name.tag) in written


def test_metrics_without_hyperparameters_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give hparams= as well"):
        vizlog.TensorBoard(tmp_path / "no", metrics=["accuracy"])
