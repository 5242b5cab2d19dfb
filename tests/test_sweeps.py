"""Sweep dashboards: the view's JSON, a sweep's configuration, and the real client's agents at the stand-in."""

from __future__ import annotations

import base64
import builtins
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from test_examples import example
from test_wandb import every_kind
from test_wandb_service import QUICK_AGENT
from torch import nn
from torch.optim import SGD

import vizlog
from vizlog import sweeps
from vizlog.backends.wandb import WandB
from vizlog.diagnosis import KEYS
from vizlog.records import Scalar

if TYPE_CHECKING:
    import wandb
    from wandb_service import WandbService

PARAMETERS = {"lr": {"values": [0.001, 0.1]}, "activation": {"values": ["relu", "tanh"]}, "width": {"value": 8}}


# The view -------------------------------------------------------------------------------------------------------------


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind of panel -> what each of them is set to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for section in view["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def test_a_view_goes_through_wandb_workspaces_and_back() -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    text = sweeps.workspace("me", "ours", metric="accuracy", parameters=PARAMETERS, best="a1", worst="b2").to_json()
    parsed = internal.View.model_validate_json(text)
    again = Workspace._from_model(parsed)._to_model()
    assert again.model_dump() == parsed.model_dump()
    assert json.loads(again.model_dump_json(by_alias=True, exclude_none=True)) == json.loads(text)
    assert sweeps.View.from_json(text).to_json() == text
    (runs,) = json.loads(text)["spec"]["section"]["runSets"]
    assert not runs["sort"]["keys"][0]["ascending"]  # the best first, and more is better
    assert len(runs["pinnedRunIds"]) == 2


def test_a_view_leads_from_what_was_swept_over_health_to_the_metric() -> None:
    view = json.loads(
        sweeps.workspace("me", "ours", metric="loss", goal="minimize", parameters=PARAMETERS, best="a1").to_json()
    )
    found = panels(view)
    (coordinates,) = found["Parallel Coordinates Plot"]
    axes = [(column["accessor"], column["log"]) for column in coordinates["columns"] if "log" in column]
    assert axes[:3] == [
        ("config:lr.value", True),
        ("config:activation.value", False),
        ("summary:vizlog/dead_units_worst", False),
    ]
    accessors = [column["accessor"] for column in coordinates["columns"]]
    assert accessors[-1] == "summary:loss"
    assert {name.removeprefix("summary:") for name in accessors[2:-1]} <= set(KEYS)
    assert {panel["targetKey"] for panel in found["Parameter Importance"]} == {
        name.removeprefix("summary:") for name in accessors[2:]
    }
    assert all(panel["xAxis"] == "vizlog/step" for panel in found["Run History Line Plot"])
    assert {"gallery", "grid"} >= {panel["mode"] for panel in found["Media Browser"]}
    assert found["Run Comparer"]
    (text,) = found["Markdown Panel"]
    named = {word.strip("`") for word in text["value"].split() if word.startswith("`vizlog/")}
    assert named <= set(KEYS)
    (runs,) = view["spec"]["section"]["runSets"]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "loss"}, "ascending": True}]
    assert len(runs["pinnedRunIds"]) == 1


def test_the_command_prints_the_view_of_a_sweep_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(sweeps.sweep_config({"lr": (1e-4, 1e-1), "depth": [2, 4]}, metric="loss", goal="minimize"))
    )
    sweeps.main(["me", "ours", "--sweep", "sweep.yaml"])
    (coordinates,) = panels(json.loads(capsys.readouterr().out))["Parallel Coordinates Plot"]
    # `stop_when` is the same in every trial, and no axis.
    assert [(c["accessor"], c["log"]) for c in coordinates["columns"] if c["accessor"].startswith("config:")] == [
        ("config:lr.value", True),
        ("config:depth.value", False),
    ]
    assert coordinates["columns"][-1]["accessor"] == "summary:loss"


def test_the_command_shows_the_pictures_that_are_asked_for_or_those_of_saliency(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for asked, shown in (([], "saliency/gradient"), (["--pictures", "filters/conv"], "filters/conv")):
        sweeps.main(["me", "ours", "--metric", "loss", *asked])
        gallery = panels(json.loads(capsys.readouterr().out))["Media Browser"]
        assert gallery[0]["mediaKeys"] == [shown]


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweeps.main(["me", "ours"])
    assert "give --metric" in capsys.readouterr().err


def test_the_command_saves_the_view_with_the_best_and_the_worst_run_pinned(wandb_service: WandbService) -> None:
    for name, accuracy, state in (("a", 0.2, "finished"), ("b", 0.9, "finished"), ("c", 1.0, "failed")):
        run = wandb_service.run("somebody", "p", name)
        run.summary, run.state = {"accuracy": accuracy}, state
    Path("sweep.yaml").write_text(json.dumps(sweeps.sweep_config({"lr": [1, 2]}, metric="accuracy")))
    command = [sys.executable, "-m", "vizlog.sweeps", "somebody", "p", "--sweep", "sweep.yaml", "--save"]
    address = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    (saved,) = wandb_service.views.values()
    assert saved["display_name"] == "Why trials die"
    (runs,) = json.loads(saved["spec"])["section"]["runSets"]
    assert [base64.b64decode(run).decode().split(":")[2] for run in runs["pinnedRunIds"]] == ["b", "a"]
    assert "/somebody/p" in address


def test_where_the_service_refuses_the_command_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(sweeps, "best_and_worst", refuse)
    with pytest.raises(SystemExit):
        sweeps.main(["me", "ours", "--metric", "loss", "--save"])
    assert capsys.readouterr() == (
        "",
        "python -m vizlog.sweeps: there is no view: ConnectionError: nobody is there\n",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("a: [", "no YAML"),
        ("", "needs `parameters:`"),
        ("parameters: [lr]", "needs `parameters:`"),
        ("metric: accuracy\nparameters: {}", "needs `parameters:`"),
        ("metric: {name: a, goal: max}\nparameters: {}", "'maximize' or 'minimize', got 'max'"),
    ],
)
def test_a_sweep_file_that_is_none_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    if text is not None:
        Path("sweep.yaml").write_text(text)
    with pytest.raises(SystemExit):
        sweeps.main(["me", "ours", "--sweep", "sweep.yaml"])
    assert said in capsys.readouterr().err


def test_a_sweep_file_without_a_goal_minimises_as_the_service_does(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.yaml").write_text("metric: {name: loss}\nparameters: {lr: {values: [1, 2]}}")
    sweeps.main(["me", "ours", "--sweep", "sweep.yaml"])
    (runs,) = json.loads(capsys.readouterr().out)["spec"]["section"]["runSets"]
    assert runs["sort"]["keys"][0]["ascending"]


def test_one_parameter_is_one_axis() -> None:
    view = json.loads(sweeps.workspace("me", "ours", metric="loss", parameters="lr").to_json())
    (coordinates,) = panels(view)["Parallel Coordinates Plot"]
    assert [c["accessor"] for c in coordinates["columns"] if c["accessor"].startswith("config:")] == ["config:lr.value"]


@pytest.mark.parametrize("distribution", ["log_uniform", "q_log_uniform_values", "inv_log_uniform", "q_uniform"])
def test_what_is_drawn_logarithmically_has_a_logarithmic_axis(distribution: str) -> None:
    parameters = {"lr": {"distribution": distribution, "min": 1, "max": 2}}
    view = json.loads(sweeps.workspace("me", "ours", metric="loss", parameters=parameters).to_json())
    (coordinates,) = panels(view)["Parallel Coordinates Plot"]
    (axis,) = [column for column in coordinates["columns"] if column["accessor"].startswith("config:")]
    assert axis["log"] == ("log" in distribution)


def test_figures_of_which_the_magnitude_counts_are_shown_by_it() -> None:
    found = panels(json.loads(sweeps.workspace("me", "ours", metric="loss").to_json()))
    (coordinates,) = found["Parallel Coordinates Plot"]
    by_magnitude = {column["accessor"] for column in coordinates["columns"] if column.get("log")}
    figures = ("gradient_norm_max", "vanishing", "update_ratio_max")
    assert by_magnitude == {f"summary:vizlog/{figure}" for figure in figures}
    titles = {plot["chartTitle"] for plot in found["Run History Line Plot"] if plot.get("yLogScale")}
    assert titles == {"gradient norm, largest and mean layer", "update / weight, largest and mean layer"}


def test_nested_parameters_have_an_axis_each() -> None:
    parameters = {"optimizer": {"parameters": {"lr": {"values": [1e-4, 1e-1]}, "name": {"value": "sgd"}}}}
    view = json.loads(sweeps.workspace("me", "ours", metric="loss", parameters=parameters).to_json())
    (coordinates,) = panels(view)["Parallel Coordinates Plot"]
    axes = [(c["accessor"], c["log"]) for c in coordinates["columns"] if c["accessor"].startswith("config:")]
    assert axes == [("config:optimizer.value.lr", True)]


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'vizlog\[wandb\]'"):
        sweeps.workspace("me", "ours", metric="accuracy")


def test_a_goal_that_is_none_raises() -> None:
    with pytest.raises(ValueError, match="'maximize' or 'minimize', got 'max'"):
        sweeps.workspace("me", "ours", metric="accuracy", goal="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entity": None}, "entity= takes a text, got None"),
        ({"project": ""}, "project= takes a text that says something"),
        ({"metric": 5}, "metric= takes a text, got 5"),
        ({"name": None}, "name= takes a text, got None"),
        ({"parameters": None}, "parameters= takes names, got None"),
        ({"parameters": [5]}, r"parameters= takes names, got \[5\]"),
        ({"pictures": [5]}, r"pictures= takes names, got \[5\]"),
    ],
)
def test_a_view_of_what_has_no_name_raises(options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"entity": "me", "project": "ours", "metric": "accuracy"} | options
    where = given.pop("entity"), given.pop("project")
    with pytest.raises((TypeError, ValueError), match=said):
        sweeps.workspace(*where, **given)
    if not given.keys() & {"name", "parameters", "pictures"}:
        with pytest.raises((TypeError, ValueError), match=said):
            sweeps.best_and_worst(*where, **given)


# The configuration of a sweep -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["relu", "tanh"], {"values": ["relu", "tanh"]}),
        ((1e-4, 1e-1), {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}),
        ((3e-5, 3e-4), {"distribution": "log_uniform_values", "min": 3e-5, "max": 3e-4}),  # in floats 9.999…
        ((0.1, 0.9), {"distribution": "uniform", "min": 0.1, "max": 0.9}),
        ((-1.0, 1.0), {"distribution": "uniform", "min": -1.0, "max": 1.0}),
        ((2, 6), {"distribution": "int_uniform", "min": 2, "max": 6}),
        ((1, 2.5), {"distribution": "uniform", "min": 1, "max": 2.5}),
        (64, {"value": 64}),
        (None, {"value": None}),
        (np.array([1, 10]), {"values": [1, 10]}),
        ([np.float64(0.5), torch.tensor(2)], {"values": [0.5, 2]}),
        (range(2, 5), {"values": [2, 3, 4]}),
        ((np.int64(2), np.int64(6)), {"distribution": "int_uniform", "min": 2, "max": 6}),
        (np.float32(0.5), {"value": 0.5}),
        ({"values": np.array([1, 10])}, {"values": [1, 10]}),
        ({"distribution": "q_uniform", "min": 0, "max": 8}, {"distribution": "q_uniform", "min": 0, "max": 8}),
    ],
)
def test_what_to_sweep_is_said_briefly(given: Any, expected: Any) -> None:
    config = sweeps.sweep_config({"x": given}, metric="accuracy", stop_when=None)
    assert config == {
        "method": "random",
        "metric": {"name": "accuracy", "goal": "maximize"},
        "parameters": {"x": expected},
    }
    assert yaml.safe_load(yaml.safe_dump(config)) == config


def test_a_sweep_may_end_trials_early_and_tells_each_when_to_give_up() -> None:
    config = sweeps.sweep_config(
        {}, metric="loss", program="train.py", runs=np.int64(5), stop_when="dead", early_terminate=3
    )
    assert config["parameters"] == {"stop_when": {"value": ["dead"]}}
    assert config["early_terminate"] == {"type": "hyperband", "min_iter": 3}
    assert (config["program"], config["run_cap"]) == ("train.py", 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stop_when": "ded"}, r"got \['ded'\]"),
        ({"stop_when": len}, "of a sweep takes some of 'nonfinite'"),
        ({"parameters": {"x": (2, 1)}}, "low < high"),
        ({"parameters": {"x": (1, 2, 3)}}, "values are a list"),
        ({"parameters": {"x": []}}, "'x' needs a value"),
        ({"parameters": {"x": {1, 2}}}, r"takes a list of values, .* got \{1, 2\}"),
        ({"parameters": ["x"]}, "takes a mapping"),
        ({"goal": "max"}, "'maximize' or 'minimize', got 'max'"),
        ({"method": "rand"}, "got 'rand'"),
        ({"early_terminate": 0}, "values >= 1"),
        ({"early_terminate": True}, "values >= 1"),
        ({"early_terminate": "3"}, "a mapping or a number of logged values >= 1, got '3'"),
        ({"runs": 0}, "runs= takes a number >= 1, got 0"),
        ({"runs": "5"}, "runs= takes a number >= 1, got '5'"),
        ({"runs": True}, "got True"),
        ({"metric": None}, "metric= takes a text, got None"),
        ({"metric": ""}, "metric= takes a text that says something"),
        ({"program": 5}, "program= takes a text, got 5"),
        ({"stop_when": [["dead"]]}, r"got \[\['dead'\]\]"),
        ({"parameters": {None: [1]}}, "takes names, as texts, got None"),
        ({"parameters": {"x": {}}}, "the mapping of 'x' is empty"),
        ({"parameters": {"x": [object()]}}, "numbers, truth values and texts, got <object"),
        ({"parameters": {"x": (1, math.inf)}}, "both finite"),
        ({"parameters": {"x": (False, True)}}, "values are a list"),
        ({"parameters": {"x": (0, True)}}, "values are a list"),
    ],
)
def test_a_sweep_that_cannot_be_raises(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        sweeps.sweep_config(**{"parameters": {}, "metric": "loss"} | options)


# Summaries ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., wandb.Run]]:
    import wandb

    runs = []

    def init(**options: Any) -> wandb.Run:
        runs.append(wandb.init(project="test", reinit="create_new", **options))
        return runs[-1]

    yield init
    for run in runs:
        run.finish()


def keys(run: wandb.Run) -> set[str]:
    """What the client would send as the summary, what it adds itself aside."""
    return {key for key in run.summary.keys() if not key.startswith("_")}  # noqa: SIM118 -- it is no dict


@pytest.mark.parametrize("star", [False, True], ids=["alone", "where Lightning defines *"])
def test_what_depends_on_the_model_stays_out_of_the_summary(start: Callable[..., wandb.Run], star: bool) -> None:  # noqa: FBT001
    run = start()
    if star:
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    backend = WandB(run, max_files=10)  # of 18
    run.log({})  # its owner logs without `step=`: rows go out at once
    ours = [Scalar(tag, 0.1, caption="of a layer") for tag in ("updates/0.weight", "health/dead_units_worst")]
    for step in (0, 1):
        backend.write(step, [*every_kind(), *ours])
    always = {"vizlog/nonfinite_scalars", "vizlog/step", "loss/train"} | ({"trainer/global_step"} if star else set())
    assert keys(run) <= always
    assert "loss/train" in keys(run)


def test_what_is_logged_by_hand_is_in_the_summary_under_any_name(start: Callable[..., wandb.Run]) -> None:
    model, run, memory = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), start(), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    mine = {"gradients/total_norm": 1.5, "health/mine": 2.0, "loss.train": 0.5}
    with vizlog.watch(model, optimizer, to=[run, memory], batch=(x, y), every=1) as monitor:
        for _ in range(2):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            monitor.log(mine)
    assert {key: run.summary.get(key.replace(".", "/")) for key in mine} == mine
    others = {record.tag.replace(".", "/") for _, record in memory.records} - {key.replace(".", "/") for key in mine}
    assert len(others) > 10
    assert not others & keys(run)


def test_trials_of_other_depth_and_activation_have_the_same_keys(start: Callable[..., wandb.Run]) -> None:
    found = []
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    for depth, activation in ((1, nn.ReLU), (3, nn.Tanh)):
        hidden = [part for _ in range(depth) for part in (nn.Linear(6, 6), activation())]
        model, run = nn.Sequential(*hidden, nn.Linear(6, 3)), start()
        optimizer = SGD(model.parameters(), lr=0.1)
        with vizlog.watch(model, optimizer, to=run, batch=(x, y), every=1) as monitor:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            monitor.log({"accuracy": 0.5})
        found.append(keys(run))
        assert all(math.isfinite(run.summary[key]) for key in KEYS if key != "vizlog/stopped_because")
    assert found[0] == found[1] >= {"accuracy", *KEYS}


# At the stand-in ------------------------------------------------------------------------------------------------------


def test_the_example_sweep_is_run_by_agents_and_read_back(
    wandb_service: WandbService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    module = example("wandb_sweep", monkeypatch)
    config = sweeps.sweep_config(
        {"lr": [0.003, 3.0], "activation": "relu", "init_gain": 0.5, "depth": [2, 5]},
        metric="accuracy",
        method="grid",
        program=module.__file__,
        stop_when=["nonfinite", "dead"],
    )
    monkeypatch.setattr(module, "SWEEP", Path("sweep.yaml").absolute())
    monkeypatch.setattr(module, "STEPS", 81)
    Path("sweep.yaml").write_text(json.dumps(config))
    start = subprocess.Popen

    def quickly(command: Any, **options: Any) -> Any:
        asks_often = command[1:3] == ["-m", "wandb"]
        return start([command[0], "-c", QUICK_AGENT, *command[3:]] if asks_often else command, **options)

    monkeypatch.setattr(subprocess, "Popen", quickly)
    path = module.sweep(count=4, by_command=1)

    runs = list(wandb.Api().sweep(path).runs)
    assert [run.state for run in runs] == ["finished"] * 4
    seen = [{key for key in run.summary.keys() if not key.startswith("_")} for run in runs]  # noqa: SIM118 -- it is no dict
    assert all(one == seen[0] for one in seen)
    assert seen[0] >= {"accuracy", *KEYS}
    died = {run.id for run in runs if run.config["lr"] == 3.0}
    assert {run.id for run in runs if run.summary["vizlog/dead_units_worst"] == 1} == died
    assert {run.id for run in runs if run.summary["vizlog/stopped_because"].startswith("dead")} == died
    assert {run.id for run in runs if run.summary["accuracy"] < 0.3} == died
    assert len(wandb_service.alerts) == 2
    assert (
        module.correlations([(run.config, dict(run.summary)) for run in runs])[
            "all trials", "lr", "vizlog/dead_units_worst"
        ]
        > 0.8
    )

    (saved,) = wandb_service.views.values()
    spec = json.loads(saved["spec"])
    logged = {key for run in wandb_service.runs.values() for row in run.history for key in row}
    lines = panels({"spec": spec})["Run History Line Plot"]
    # No tanh, and no attention
    assert {key for line in lines for key in line.get("metrics", ())} - logged == {
        "health/saturated_worst",
        "health/attention_entropy_worst",
    }
    assert any(re.fullmatch(line["metricRegex"], key) for line in lines if "metricRegex" in line for key in logged)
    assert {"saliency/gradient"} <= {
        key for panel in panels({"spec": spec})["Media Browser"] for key in panel["mediaKeys"] if key in logged
    }
    best, worst = sweeps.best_and_worst(*path.split("/")[:2], metric="accuracy") or ("", "")
    assert worst in died
    assert best not in died
    assert len(spec["section"]["runSets"][0]["pinnedRunIds"]) == 2
    assert "lr           vizlog/dead_units_worst" in capsys.readouterr().out


def test_a_trial_is_a_program_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `wandb agent` starts: the script without a word."""
    module = example("wandb_sweep", monkeypatch)
    monkeypatch.setattr(module, "STEPS", 21)
    module.trial()
    assert sys.modules["wandb"].run is None
