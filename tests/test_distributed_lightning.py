"""Lightning on two processes: nothing of the training changes, and everything is written once."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from processes import Processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import vizlog
from vizlog.callbacks.lightning import VizLog

Weights = list["np.ndarray[Any, Any]"]


class Module(pl.LightningModule):
    def __init__(self, *, sharded: bool = False) -> None:
        super().__init__()
        self.sharded = sharded
        self.norms: list[float] = []
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(180, 3),
            nn.Linear(3, 1),
            nn.Linear(1, 4),
        )

    def setup(self, stage: str) -> None:
        torch.manual_seed(100 + self.global_rank)  # in new processes as in old ones

    def configure_model(self) -> None:
        if self.sharded and not hasattr(self.model, "unshard"):
            from torch.distributed.fsdp import fully_shard

            for part in (self.model[0], self.model[5], self.model):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters()])
        self.norms.append((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item())

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def _fit(strategy: Any, folder: str, *callbacks: Any, sharded: bool = False) -> Module:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(7)
    data = TensorDataset(torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4)
    module = Module(sharded=sharded)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=2,
        callbacks=list(callbacks),
        logger=pl.loggers.TensorBoardLogger(folder) if callbacks else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.1,
    )
    trainer.fit(module, DataLoader(data, batch_size=5), DataLoader(data, batch_size=5))
    return module


def _state(module: nn.Module) -> Weights:
    tensors = [tensor.detach() for tensor in [*module.parameters(), *module.buffers()]]
    return [(t.to_local() if hasattr(t, "to_local") else t).clone().numpy() for t in tensors]


def _same(a: Weights, b: Weights) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _with_and_without(rank: int, strategy: str, folder: str) -> dict[str, Any]:
    runs = []
    for callbacks in ([], [VizLog(every=2)]):
        made = pl.strategies.ModelParallelStrategy(2, 1) if strategy == "sharded" else strategy
        module = _fit(made, folder, *callbacks, sharded=strategy == "sharded")
        runs.append([*_state(module), torch.get_rng_state().numpy()])
    return {"same": _same(*runs), "weights": runs[0][:-1], "norms": module.norms}


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "lightning_logs" / "version_0"), size_guidance={"tensors": 0})
    events.Reload()
    return events


def _assert_written_once(folder: Path) -> EventAccumulator:
    events = _events(folder)
    tags = events.Tags()["tensors"]
    assert {"gradients/model.0.weight", "updates/model.5.weight", "activations/model.2"} <= set(tags)
    assert not [tag for tag in tags if "module." in tag]
    assert [event.step for event in events.Tensors("weights/model.0.weight")] == [0, 2, 4, 6]
    return events


@pytest.fixture(scope="module")
def ddp(ranks: Processes, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("ddp")
    return ranks.run(_with_and_without, "ddp", str(folder)), folder


@pytest.fixture(scope="module")
def sharded(ranks: Processes, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("sharded")
    return ranks.run(_with_and_without, "sharded", str(folder)), folder


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_lightning_trains_as_without_and_writes_once(strategy: str, request: pytest.FixtureRequest) -> None:
    (first, second), folder = request.getfixturevalue(strategy)
    assert first["same"]
    assert second["same"]
    events = _assert_written_once(folder)
    logged = [float(event.tensor_proto.float_val[0]) for event in events.Tensors(BEFORE_CLIPPING)]
    assert logged == pytest.approx(first["norms"][::2], rel=1e-6)
    assert min(logged) > 0.1  # they were clipped after it


BEFORE_CLIPPING = "health/gradient_norm_before_clipping"


def test_norms_of_shards_are_those_of_replicas(ddp: Any, sharded: Any) -> None:
    assert sharded[0][0]["norms"] == pytest.approx(ddp[0][0]["norms"], rel=1e-4)  # added up in another order


@pytest.mark.filterwarnings("ignore")  # Lightning has advice on workers and on strategies
def test_processes_that_lightning_spawns_train_as_those_that_were_there(ddp: Any, tmp_path: Path) -> None:
    kinds = (vizlog.WeightHistograms, vizlog.GradientHistograms, vizlog.UpdateRatios, vizlog.ActivationHistograms)
    callback = VizLog([kind(every=2) for kind in kinds])
    module = _fit("ddp_spawn", str(tmp_path), callback)
    assert _same(_state(module), ddp[0][0]["weights"])
    _assert_written_once(tmp_path)
    for made in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        assert made.monitor is None
