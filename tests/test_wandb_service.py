"""The stand-in of the W&B service, seen by the real client: what is logged to it arrives, and can be read back."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wandb_service import Sweep, WandbService


def test_what_a_client_logs_arrives_and_is_read_back(wandb_service: WandbService) -> None:
    import wandb

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with wandb.init(project="p", name="first", config={"lr": 0.1}) as run:
        for step in range(3):
            run.log({"loss": 1.0 / (step + 1)})
        run.log({"image": wandb.Image(pixels), "table": wandb.Table(columns=["a"], data=[[1]])})
        run.alert(title="look", text="here")

    arrived = wandb_service.runs[run.id]
    assert (arrived.display_name, arrived.state, arrived.exitcode) == ("first", "finished", 0)
    assert arrived.config["lr"] == 0.1
    assert arrived.of("loss") == [1.0, 0.5, 1 / 3]
    assert arrived.summary["loss"] == 1 / 3
    assert arrived.of("image")[0]["path"] in arrived.files
    assert [alert["title"] for alert in wandb_service.alerts] == ["look"]
    assert [artifact["type"] for artifact in wandb_service.artifacts] == ["run_table"]

    api = wandb.Api()
    read = api.run(f"somebody/p/{run.id}")
    assert (read.state, read.config, read.summary["loss"]) == ("finished", {"lr": 0.1}, 1 / 3)
    assert [row["loss"] for row in read.scan_history(keys=["loss"])] == [1.0, 0.5, 1 / 3]
    assert [row["_step"] for row in read.history(pandas=False)] == [0, 1, 2, 3]
    assert [project.name for project in api.projects()] == ["p"]
    found = api.runs("somebody/p", filters={"config.lr": {"$gt": 0.05}}, order="-summary_metrics.loss")
    assert [item.id for item in found] == [run.id]
    assert not list(api.runs("somebody/p", filters={"config.lr": 1}))


@pytest.fixture
def sweep(wandb_service: WandbService) -> str:
    """A sweep of two trials."""
    import wandb

    Path("trial.py").write_text(TRIAL)
    config = {
        "method": "grid",
        "program": "trial.py",
        "command": [sys.executable, "${program}"],
        "metric": {"name": "score", "goal": "maximize"},
        "parameters": {"lr": {"values": [1, 2]}, "depth": {"value": 3}},
    }
    return wandb.sweep(config, project="p")


def test_a_function_agent_runs_the_trials_of_a_sweep(wandb_service: WandbService, sweep: str) -> None:
    import wandb

    wandb.agent(sweep, lambda: runpy.run_path("trial.py"), project="p", count=2)
    read = wandb.Api().sweep(f"somebody/p/{sweep}")
    assert {(run.config["lr"], run.summary["score"], run.state) for run in read.runs} == {
        (1, 3, "finished"),
        (2, 6, "finished"),
    }
    assert read.best_run().config["lr"] == 2
    assert read.expected_run_count == 2
    assert all(run.sweep == sweep for run in wandb_service.runs.values())


def test_an_agent_on_the_command_line_runs_a_trial(wandb_service: WandbService, sweep: str) -> None:
    agent = [sys.executable, "-c", QUICK_AGENT, "agent", "--count", "1", f"somebody/p/{sweep}"]
    subprocess.run(agent, check=True, timeout=120)
    (run,) = wandb_service.runs.values()
    assert (run.config["lr"], run.summary["score"], run.state, run.sweep) == (1, 3, "finished", sweep)


QUICK_AGENT = """
from wandb.wandb_agent import Agent
from wandb.cli.cli import cli
Agent.POLL_INTERVAL = 0.05
cli()
"""

TRIAL = """
import wandb
with wandb.init() as run: run.log({"score": run.config.lr * run.config.depth})
"""


def test_a_random_sweep_draws_the_same_trials_again_and_ends_at_its_cap() -> None:
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
        "depth": {"distribution": "int_uniform", "min": 1, "max": 4},
        "width": {"values": [8, 16]},
    }

    def trials() -> list[dict[str, Any]]:
        sweep = Sweep("s", "p", "e", {"method": "random", "parameters": parameters, "run_cap": 5}, seed=1)
        drawn = []
        while (trial := sweep.next_trial()) is not None:
            sweep.handed_out.append(str(len(drawn)))
            drawn.append(trial)
        return drawn

    drawn = trials()
    assert drawn == trials()
    assert len(drawn) == 5
    assert all(1e-4 <= trial["lr"] <= 1.0 and trial["depth"] in range(1, 5) for trial in drawn)
    assert len({trial["lr"] for trial in drawn}) == 5


def test_a_saved_workspace_is_read_back(wandb_service: WandbService) -> None:
    import wandb_workspaces.workspaces as ws

    saved = ws.Workspace("somebody", "p", name="health", sections=[ws.Section("a", panels=[])]).save()
    (view,) = wandb_service.views.values()
    assert view["display_name"] == "health"
    assert [section.name for section in ws.Workspace.from_url(saved.url).sections] == ["a"]


def test_what_a_client_asks_for_in_vain_is_kept(tmp_path: Path) -> None:
    with WandbService(tmp_path) as service:
        answer = service.graphql({"query": "query Odd { viewer { id shoeSize } }"})
        service.stream("e/p/r", {"files": {"odd.txt": {"offset": 0, "content": []}}, "novelty": 1})
        service.graphql({"query": 'mutation Odd { upsertBucket(input: {name: "a", colour: 1}) { inserted } }'})
    assert "errors" in answer
    first, second, third, fourth = service.unknown
    assert "'shoeSize' on type 'User'" in first
    assert "query Odd" in first
    assert second == "file stream of odd.txt"
    assert third == "novelty"
    assert "colour" in fourth


def test_it_serves_from_the_command_line(tmp_path: Path) -> None:
    """The printed lines are all that a client needs."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "tests.wandb_service"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        url = served.stdout.readline().strip()
        lines = [served.stdout.readline() for _ in range(13)]
        said = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        assert said["WANDB_BASE_URL"] == url
        script = "import wandb; run = wandb.init(project='p'); run.log({'a': 1}); run.finish(); "
        script += "print(dict(wandb.Api().run(f'somebody/p/{run.id}').summary)['a'])"
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=False,
            env=os.environ | said,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split()[-1:] == ["1"], done.stderr
        served.terminate()
