"""A sweep over learning rate, activation, initialisation and depth on real digits, in which some trials die on purpose.

python examples/wandb_sweep.py         one trial, which is what an agent runs
python examples/wandb_sweep.py sweep   registers sweep.yaml, runs its trials, and says which parameter kills what

The second needs an account, or the stand-in of `make sweep-demo`.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import wandb
import yaml
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vizlog
from vizlog import sweeps
from vizlog.diagnosis import Diagnosis

PROJECT = "vizlog-sweep"
SWEEP = Path(__file__).with_name("sweep.yaml")
ALONE = {"lr": 0.003, "activation": "relu", "init_gain": 1.0, "depth": 2, "stop_when": None}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
TRAINING, STEPS, EVERY, WIDTH = 1500, 120, 20, 32


def network(activation: str, init_gain: float, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        linear = nn.Linear(64 if number == 0 else WIDTH, WIDTH)
        nn.init.xavier_normal_(linear.weight, gain=init_gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def digits() -> tuple[Tensor, Tensor]:
    """1,797 real handwritten digits of 8x8 pixels."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(data.target)


def trial() -> None:
    """Trains one configuration: the one that the agent chose."""
    torch.set_num_threads(1)  # of a model this small a second thread would only wait
    torch.manual_seed(0)
    with wandb.init(project=PROJECT) as run:
        config = run.config
        config.setdefaults(ALONE)  # where no agent has set it
        pixels, labels = digits()
        model = network(config.activation, config.init_gain, config.depth)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        held_out = pixels[TRAINING:], labels[TRAINING:]
        monitor = vizlog.watch(
            model,
            optimizer,
            to=run,
            batch=held_out,
            probes=[
                vizlog.WeightHistograms(every=EVERY),
                vizlog.GradientHistograms(every=EVERY),
                vizlog.UpdateRatios(every=EVERY),
                vizlog.ActivationHistograms(every=EVERY),
                vizlog.Embeddings(every=3 * EVERY, methods=("pca",), examples=128),
                vizlog.SaliencyMaps(every=3 * EVERY),
            ],
            stop_when=config.stop_when,
        )
        generator = torch.Generator().manual_seed(0)
        for step in range(STEPS):
            chosen = torch.randint(0, TRAINING, (64,), generator=generator)
            loss = F.cross_entropy(model(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0 or monitor.should_stop:
                run.log({"loss": loss.item(), "accuracy": accuracy(model, *held_out)})
            if monitor.should_stop:
                break
        monitor.close()
        run.log({"loss": loss.item(), "accuracy": accuracy(model, *held_out)})


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return (model(inputs).argmax(1) == labels).float().mean().item()


# The sweep ------------------------------------------------------------------------------------------------------------


def sweep(count: int = 12, by_command: int = 0, entity: str | None = None) -> str:
    """Registers sweep.yaml, runs `count` trials, saves the view of them, and prints what killed which.

    Args:
        count: how many trials.
        by_command: how many of them `wandb agent` runs on the command line, as another machine would; the others run in
            this process.
        entity: whose project; None: the account's own.

    Returns:
        ENTITY/PROJECT/SWEEP.
    """
    config = yaml.safe_load(SWEEP.read_text())
    number = wandb.sweep(config, project=PROJECT, entity=entity)
    entity = entity or wandb.Api().default_entity
    path = f"{entity}/{PROJECT}/{number}"
    other = _agent(path, by_command) if by_command else None
    if count > by_command:
        wandb.agent(number, trial, entity=entity, project=PROJECT, count=count - by_command)
    if other is not None and other.wait():
        raise SystemExit(f"wandb agent ended with {other.returncode}")
    goal = {"metric": config["metric"]["name"], "goal": config["metric"]["goal"]}
    best, worst = sweeps.best_and_worst(entity, PROJECT, **goal) or (None, None)
    view = sweeps.workspace(entity, PROJECT, parameters=config["parameters"], best=best, worst=worst, **goal)
    print("view:", view.save())
    report(path)
    return path


def _agent(path: str, count: int) -> subprocess.Popen[bytes]:
    """`wandb agent`, as one would start it on another machine."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # this process's own
    # `python` is what the agent starts trials with: this one.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "wandb", "agent", "--count", str(count), path]
    return subprocess.Popen(command, cwd=SWEEP.parents[1], env=environment)  # noqa: S603 -- nothing of it is a stranger's


def report(path: str) -> None:
    """Prints each trial, and the rank correlations of what was swept with the health of the runs."""
    trials = [(dict(run.config), dict(run.summary)) for run in wandb.Api().sweep(path).runs]
    print(f"\n{'lr':>6} activation gain depth  accuracy  dead  saturated  vanishing  stopped because")
    for config, found in sorted(trials, key=lambda trial: -trial[1]["accuracy"]):
        print(
            f"{config['lr']:>6g} {config['activation']:>10} {config['init_gain']:>4g} {config['depth']:>5} "
            f"{found['accuracy']:>9.2f} {found['vizlog/dead_units_worst']:>5.2f} "
            f"{found['vizlog/saturated_worst']:>10.2f} {found['vizlog/vanishing']:>10.1e}  "
            f"{found['vizlog/stopped_because']}"
        )
    print("\nrank correlation   of           with")
    for (among, parameter, figure), value in correlations(trials).items():
        if abs(value) >= 0.8:
            print(f"{value:>+16.2f}   {parameter:<12} {figure:<26} {among}")


def correlations(trials: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[tuple[str, str, str], float]:
    """(among which trials, swept parameter, health figure) -> Spearman's rank correlation, where there is one."""
    groups: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
    for config, summary in trials:
        groups["all trials"].append((config, summary))
        groups[f"trials with {config['activation']}"].append((config, summary))
    found = {}
    for among, members in groups.items():
        for parameter in ("lr", "init_gain", "depth"):
            for figure in Diagnosis().scalars():
                pairs = [(config[parameter], summary[figure]) for config, summary in members]
                found[among, parameter, figure] = _spearman(pairs)
    return {key: value for key, value in found.items() if not math.isnan(value)}


def _spearman(pairs: Sequence[tuple[float, float]]) -> float:
    causes, effects = zip(*pairs, strict=True)
    if len(pairs) < 4 or len(set(causes)) == 1 or len(set(effects)) == 1:
        return math.nan
    return float(spearmanr(causes, effects).statistic)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["trial", "sweep"], default="trial")
    parser.add_argument("--count", type=int, default=12, help="how many trials")
    parser.add_argument("--by-command", type=int, default=0, help="how many of them `wandb agent` runs")
    parser.add_argument("--entity", help="whose project")
    given = parser.parse_args()
    if given.what == "trial":
        trial()
    else:
        sweep(given.count, given.by_command, given.entity)
