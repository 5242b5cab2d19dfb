"""Two processes that train together: a replicated model (DDP), and one whose parameters are sharded (FSDP2)."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import vizlog
from vizlog.compute.bits import BitCounts, fine
from vizlog.probes.base import Context, Probe

WORLD = 2
PATIENCE = 60.0
"""Seconds after which ranks that wait for each other are taken to do so forever."""


# Two processes that run what a test asks of both ----------------------------------------------------------------------


class Pair:
    """Two ranks that stay up between tests, and are replaced where they hang."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, *arguments)` returns on each rank."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                self.stop()
                pytest.fail(f"rank {rank} did not come back from {function.__name__}: the ranks wait for each other")
            answers.append(pipe.recv())
        for rank, (error, _) in enumerate(answers):
            assert not error, f"rank {rank}:\n{error}"
        return [answer for _, answer in answers]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(WORLD):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    # As torchrun sets it.
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send(("", function(rank, *arguments)))
        except BaseException:  # noqa: BLE001 -- the test raises it
            pipe.send((traceback.format_exc(), None))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.stop()


# What is trained ------------------------------------------------------------------------------------------------------

STEPS = 5


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),  # five filters on two ranks: uneven shards
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(180, 3),
        nn.Linear(3, 1),  # one row: the second rank's shard is empty
        nn.Linear(1, 4),
    )


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4


def _ddp() -> nn.Module:
    return nn.parallel.DistributedDataParallel(_model())


def _sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = _model()
    fully_shard(model[0])
    fully_shard(model[5])
    fully_shard(model)
    return model


def _train(
    rank: int,
    model: nn.Module,
    watch: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
    seen: Callable[[nn.Module], None] | None = None,
) -> tuple[list[np.ndarray[Any, Any]], vizlog.Monitor | None]:
    """Each rank trains on data of its own; gives its weights, buffers and random state."""
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if seen is not None:
        optimizer.register_step_pre_hook(lambda *_: seen(model))
    monitor = watch(model, optimizer) if watch is not None else None
    for _ in range(STEPS):
        x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if monitor is not None:
        monitor.close()
    state = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    return [_local(tensor) for tensor in state], monitor


def _local(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).clone().numpy()


def _same(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class KeepsCounts(vizlog.GradientHistograms):
    """Keeps what it has measured at the first due step."""

    kept: dict[str, BitCounts] | None = None

    def finish(self, measured: Any) -> Any:
        self.kept = self.kept or dict(measured["counts"])
        return super().finish(measured)


class KeepsWeightCounts(vizlog.WeightHistograms):
    """Keeps what it has measured at the first due step."""

    kept: dict[str, BitCounts] | None = None

    def finish(self, measured: Any) -> Any:
        self.kept = self.kept or dict(measured["counts"])
        return super().finish(measured)


def _assert_counts(counts: BitCounts, values: np.ndarray[Any, Any]) -> None:
    edges, found = fine(counts)
    assert np.array_equal(found, np.histogram(values, edges)[0])
    assert counts.count == values.size
    assert counts.norm == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-12)


# Replicated -----------------------------------------------------------------------------------------------------------


def _ddp_with_and_without(rank: int) -> dict[str, Any]:
    memory, gradients = vizlog.Memory(), []
    counts = KeepsCounts(every=2)
    probes = [counts, *vizlog.standard(_model(), _batch(), every=2)]

    def watch(model: nn.Module, optimizer: Any) -> Any:
        return vizlog.watch(model, optimizer, to=memory, batch=_batch(), probes=probes)

    def seen(model: nn.Module) -> None:
        gradients.append({name: parameter.grad.numpy().copy() for name, parameter in model.module.named_parameters()})

    plain, _ = _train(rank, _ddp(), seen=seen)
    watched, _ = _train(rank, _ddp(), watch)
    if rank == 0:
        for name, gradient in gradients[0].items():
            _assert_counts(counts.kept[name], gradient)
    return {"same": _same(plain, watched), "tags": [record.tag for _, record in memory.records]}


def test_ddp_trains_as_without_and_rank_0_writes_the_reduced_gradient(ranks: Pair) -> None:
    first, second = ranks.run(_ddp_with_and_without)
    assert first["same"]
    assert second["same"]
    assert {"gradients/0.weight", "weights/5.weight", "activations/2", "saliency/gradient"} <= set(first["tags"])
    assert not [tag for tag in first["tags"] if "module." in tag]
    assert second["tags"] == []


def _wrong_on_every_rank(rank: int) -> list[str]:
    model = _ddp()
    said = []
    for wrong in (
        {"optimizer": torch.optim.SGD(_model().parameters())},
        {"budget": 2.0},
        {"probes": ["weights"]},
        {"batch": "no batch"},
    ):
        try:
            vizlog.Monitor(model, to=None, **wrong)
        except (TypeError, ValueError) as error:
            said.append(str(error))
    return said


def test_wrong_arguments_raise_on_every_rank(ranks: Pair) -> None:
    first, second = ranks.run(_wrong_on_every_rank)
    assert len(first) == 4
    assert first == second


def _inert(rank: int) -> Any:
    memory = vizlog.Memory()
    model = _ddp()
    monitor = vizlog.Monitor(model, to=memory, batch=_batch())
    with monitor.step():
        due = monitor.is_due
        model(_batch()[0]).sum().backward()
    monitor.log({"loss": torch.ones(())})
    monitor.flush()
    monitor.close()
    return due, len(memory.records) > 0


def test_ranks_that_do_not_write_do_nothing(ranks: Pair) -> None:
    assert ranks.run(_inert) == [(True, True), (False, False)]


# Sharded --------------------------------------------------------------------------------------------------------------


def _fsdp_with_and_without(rank: int) -> dict[str, Any]:
    memory = vizlog.Memory()
    gradients, before = [], []
    probes = [KeepsCounts(every=2), KeepsWeightCounts(every=2)]

    def watch(model: nn.Module, optimizer: Any) -> Any:
        standard = vizlog.standard(model, _batch(), every=2)
        return vizlog.watch(model, optimizer, to=memory, batch=_batch(), probes=[*probes, *standard])

    def seen(model: nn.Module) -> None:
        gradients.append({name: p.grad.full_tensor().numpy().copy() for name, p in model.named_parameters()})
        before.append({name: p.detach().full_tensor().numpy().copy() for name, p in model.named_parameters()})

    plain, _ = _train(rank, _sharded(), seen=seen)
    watched, _ = _train(rank, _sharded(), watch)
    return {
        "same": _same(plain, watched),
        "records": memory.records,
        "gradients": gradients,
        "before": before,
        "kept": [probe.kept for probe in probes],
    }


@pytest.fixture(scope="module")
def sharded(ranks: Pair) -> list[dict[str, Any]]:
    return ranks.run(_fsdp_with_and_without)


def test_fsdp_trains_as_without_and_rank_0_writes(sharded: list[dict[str, Any]]) -> None:
    first, second = sharded
    assert first["same"]
    assert second["same"]
    tags = {record.tag for _, record in first["records"]}
    assert {"gradients/0.weight", "weights/5.weight", "activations/2", "filters/0", "embeddings/7.input"} <= tags
    assert {step for step, _ in first["records"]} == {0, 2, 4}
    assert second["records"] == []


def test_histograms_of_shards_are_those_of_the_whole_tensors(sharded: list[dict[str, Any]]) -> None:
    first = sharded[0]
    gradient_counts, weight_counts = first["kept"]
    assert set(weight_counts) == set(first["before"][1])
    for name in weight_counts:
        _assert_counts(gradient_counts[name], first["gradients"][0][name])
        _assert_counts(weight_counts[name], first["before"][1][name])  # before step 1 is after step 0


def _record(result: dict[str, Any], tag: str, step: int = 0) -> Any:
    return next(record for at, record in result["records"] if at == step and record.tag == tag)


def test_norms_and_update_ratios_of_shards_are_those_of_the_whole_layers(sharded: list[dict[str, Any]]) -> None:
    first = sharded[0]
    gradients, before, after = first["gradients"][0], first["before"][0], first["before"][1]
    curve = _record(first, "health/gradient_norm")
    norms = dict(zip(curve.x_names, next(iter(curve.ys.values())), strict=True))
    assert norms["5"] == pytest.approx(np.hypot(*(np.linalg.norm(gradients[f"5.{p}"]) for p in ("weight", "bias"))))
    for name in before:
        weight = np.linalg.norm(before[name])
        if weight:
            expected = np.linalg.norm(after[name] - before[name]) / weight
            assert _record(first, f"updates/{name}").value == pytest.approx(expected, rel=1e-5)


def _unsharded(before: dict[str, np.ndarray[Any, Any]]) -> list[tuple[int, Any]]:
    """What is seen of the same weights in one process."""
    model, memory = _model(), vizlog.Memory()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()}, strict=False)
    monitor = vizlog.Monitor(model, to=memory, batch=_batch())
    monitor.begin()
    monitor.end()
    monitor.close()
    return memory.records


def _at_construction(rank: int) -> Any:
    memory, model = vizlog.Memory(), _sharded()
    monitor = vizlog.Monitor(model, to=memory, batch=_batch())
    monitor.begin()
    monitor.end()
    monitor.close()
    return memory.records


def test_what_passes_through_shards_is_what_passes_through_the_whole_model(ranks: Pair) -> None:
    first, second = ranks.run(_at_construction)
    alone = _unsharded({})
    assert second == []
    tags = [record.tag for _, record in alone if "vizlog_seconds" not in record.tag]
    assert sorted(tags) == sorted(record.tag for _, record in first if "vizlog_seconds" not in record.tag)
    found = {record.tag: record for _, record in first}
    for _, record in alone:
        if record.tag.startswith(("activations/", "weights/")):
            assert np.array_equal(record.counts, found[record.tag].counts)
            assert np.array_equal(record.edges, found[record.tag].edges)
        elif record.tag.startswith("filters/"):
            assert np.array_equal(record.pixels, found[record.tag].pixels)
        elif record.tag.startswith("saliency/"):
            assert np.allclose(record.values, found[record.tag].values, atol=1e-6)
