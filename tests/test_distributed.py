"""Two processes that train together: a replicated model (DDP), and one whose parameters are sharded (FSDP2)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import PATIENCE, Processes, free_port
from torch import Tensor, nn

import vizlog
from vizlog import channel
from vizlog.batch import BatchDoesNotFit
from vizlog.compute.bits import BitCounts, fine
from vizlog.probes.base import Context, Probe
from vizlog.requests import Outputs, Weights

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
    assert math.sqrt(counts.squares) == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-12)


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


def test_ddp_trains_as_without_and_rank_0_writes_the_reduced_gradient(ranks: Processes) -> None:
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


def test_wrong_arguments_raise_on_every_rank(ranks: Processes) -> None:
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


def test_ranks_that_do_not_write_do_nothing(ranks: Processes) -> None:
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
def sharded(ranks: Processes) -> list[dict[str, Any]]:
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


def test_what_passes_through_shards_is_what_passes_through_the_whole_model(ranks: Processes) -> None:
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


class Fails(Probe):
    """Fails at one phase on one rank."""

    picture = False

    def __init__(self, phase: str, rank: int) -> None:
        super().__init__(every=1)
        self.phase, self.rank = phase, rank

    def _maybe(self, phase: str) -> None:
        if phase == self.phase and dist.get_rank() == self.rank:
            raise RuntimeError(f"no {phase} today")

    def wants(self, models: Any) -> Any:
        self._maybe("wants")
        return {
            "w": Weights(("0.weight",), self._reduce),
            "all": Weights(("0.weight", "5.weight", "7.bias"), self._reduce_whole, whole=True),
            "o": Outputs(lambda *_: True, self._look),
        }

    def _reduce_whole(self, tensors: list[Tensor]) -> list[Any]:
        self._maybe("whole")
        return [1 for _ in tensors]

    def _reduce(self, tensors: list[Tensor]) -> list[Any]:
        self._maybe("reduce")
        unpicklable = (lambda: 0) if self.phase == "pickle" and dist.get_rank() == self.rank else 1
        return [{"n": unpicklable} if self.phase == "merge" else [unpicklable] for tensor in tensors]

    def _look(self, call: Any) -> float:
        self._maybe("look")
        return 1.0

    def measure(self, context: Context) -> Any:
        self._maybe("before its forward")
        with context.forward_context():
            context.batch.part(0, 2).run(context.models)
            self._maybe("between its forwards")
            context.batch.part(2, 4).run(context.models)
        self._maybe("measure")
        return 1

    def finish(self, measured: Any) -> Any:
        self._maybe("finish")
        yield vizlog.Scalar("mine", 1.0)


@contextlib.contextmanager
def _messages() -> Iterator[list[str]]:
    """Collects warnings."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("vizlog").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("vizlog").removeHandler(handler)


def _one_rank_fails(rank: int, phase: str, where: int, make: Callable[[], nn.Module]) -> dict[str, Any]:
    memory = vizlog.Memory()

    def watch(model: nn.Module, optimizer: Any) -> Any:
        probes = [Fails(phase, where), vizlog.ActivationHistograms(every=2), vizlog.UpdateRatios(every=3)]
        return vizlog.watch(model, optimizer, to=memory, batch=_batch(), probes=probes)

    with _messages() as said:
        plain, _ = _train(rank, make())
        watched, _ = _train(rank, make(), watch)
    steps = {step for step, record in memory.records if record.tag.startswith(("activations/", "updates/"))}
    return {"same": _same(plain, watched), "steps": steps, "said": said}


@pytest.mark.parametrize(
    ("phase", "where"),
    [
        ("wants", 1),
        ("reduce", 0),
        ("whole", 1),
        ("whole", 0),
        ("pickle", 1),
        ("merge", 1),
        ("look", 0),
        ("before its forward", 1),
        ("before its forward", 0),
        ("between its forwards", 1),
        ("measure", 1),
    ],
)
def test_a_probe_that_fails_on_one_rank_is_off_on_all_and_the_rest_goes_on(
    ranks: Processes, phase: str, where: int
) -> None:
    first, second = ranks.run(_one_rank_fails, phase, where, _sharded)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {0, 2, 3, 4}
    (said,) = first["said"]  # the rank that writes says it, once
    assert "Fails failed" in said
    assert ("on rank 1" in said) == (where == 1 and phase != "merge")
    assert second["said"] == []


def test_a_probe_that_cannot_finish_where_it_is_written_is_off_on_all(ranks: Processes) -> None:
    first, second = ranks.run(_one_rank_fails, "finish", 0, _sharded)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {0, 2, 3, 4}
    assert len(first["said"]) == 1


@pytest.mark.parametrize("phase", ["wants", "reduce", "look", "measure", "finish"])
def test_a_probe_that_fails_on_the_writing_rank_of_a_replicated_model_holds_up_no_other(
    ranks: Processes, phase: str
) -> None:
    first, second = ranks.run(_one_rank_fails, phase, 0, _ddp)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {0, 2, 3, 4}
    assert len(first["said"]) == 1
    assert second["said"] == []


def _batch_fails(rank: int, where: int) -> Any:
    """The function that runs the model over the batch raises on one rank, before it runs it."""
    runs = []

    def forward(model: nn.Module, inputs: Any) -> Any:
        runs.append(1)
        if rank == where and len(runs) > 2:  # survey, and the first pass
            raise RuntimeError("not on this rank")
        return model(inputs)

    memory = vizlog.Memory()

    def watch(model: nn.Module, optimizer: Any) -> Any:
        probes = [vizlog.ActivationHistograms(every=1), vizlog.WeightHistograms(every=1)]
        batch = vizlog.FixedBatch(*_batch(), forward=forward)
        return vizlog.watch(model, optimizer, to=memory, batch=batch, probes=probes)

    with _messages() as said:
        plain, _ = _train(rank, _sharded())
        watched, _ = _train(rank, _sharded(), watch)
    steps = [{at for at, record in memory.records if record.tag.startswith(kind)} for kind in ("activ", "weights")]
    return _same(plain, watched), steps, said


def _first_pass_fails(rank: int, where: int, when: str) -> str:
    def forward(model: nn.Module, inputs: Any) -> Any:
        output = model(inputs) if when == "after" or rank != where else None
        if rank == where:
            raise RuntimeError("not on this rank")
        return output

    try:
        vizlog.Monitor(_sharded(), to=None, batch=vizlog.FixedBatch(*_batch(), forward=forward))
    except BatchDoesNotFit as error:
        return str(error)
    return ""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_batch_that_does_not_fit_on_one_rank_raises_on_all(ranks: Processes, when: str) -> None:
    first, second = ranks.run(_first_pass_fails, 1, when)
    assert "failed on rank 1" in first
    assert "not on this rank" in second


@pytest.mark.parametrize("where", [0, 1])
def test_a_pass_that_fails_on_one_rank_is_off_on_all(ranks: Processes, where: int) -> None:
    first, second = ranks.run(_batch_fails, where)
    assert first[:2] == (True, [{0}, {0, 1, 2, 3, 4}])
    assert second[:2] == (True, [set(), set()])
    (said,) = first[2]
    assert "ActivationHistograms failed" in said
    assert ("on rank 1" in said) == (where == 1)


def _no_destination(rank: int) -> list[bool]:
    memory, ran = vizlog.Memory(), []

    def watch(to: Any) -> Callable[[nn.Module, Any], Any]:
        def start(model: nn.Module, optimizer: Any) -> Any:
            return vizlog.watch(model, optimizer, to=to, batch=_batch(), every=2)

        return start

    class Full:
        def write(self, step: int, records: Any) -> None:
            ran.append(step)
            raise OSError("no space left")

        def close(self) -> None:
            pass

    plain, _ = _train(rank, _sharded())
    nowhere, _ = _train(rank, _sharded(), watch(None if rank == 0 else memory))
    full, _ = _train(rank, _sharded(), watch(Full()))
    return [_same(plain, nowhere), _same(plain, full), memory.records == [], bool(ran) == (rank == 0)]


def test_ranks_train_on_where_nothing_is_written_or_writing_fails(ranks: Processes) -> None:
    assert ranks.run(_no_destination) == [[True] * 4] * 2


def _batch_on_rank_0_alone(rank: int) -> str:
    try:
        vizlog.Monitor(_sharded(), to=None, batch=_batch() if rank == 0 else None)
    except ValueError as error:
        return str(error)
    return ""


def test_a_batch_that_some_ranks_lack_raises_on_all(ranks: Processes) -> None:
    first, second = ranks.run(_batch_on_rank_0_alone)
    assert "ranks [1] have none" in first
    assert first == second


def _cannot_be_sent(rank: int) -> str:
    inputs = {"image": _batch()[0], "how": lambda: 0}
    batch = vizlog.FixedBatch(inputs, forward=lambda model, inputs: model(inputs["image"]))
    try:
        vizlog.Monitor(_sharded(), to=None, batch=batch)
    except TypeError as error:
        return str(error)
    return ""


def test_a_batch_that_cannot_be_sent_raises_on_all(ranks: Processes) -> None:
    first, second = ranks.run(_cannot_be_sent)
    assert "cannot be sent from rank 0 to the others" in first
    assert first == second


def _other_batches(rank: int) -> Any:
    inputs, targets = _batch()
    memory = vizlog.Memory()
    number = 40 if rank == 0 else 5  # another number of passes, were each to take its own
    model = _sharded()
    probes = [vizlog.ActivationHistograms(), vizlog.Embeddings(methods=["pca"]), vizlog.SaliencyMaps()]
    with vizlog.Monitor(model, probes, to=memory, batch=(inputs[:number] + rank, targets[:number])) as monitor:
        monitor.begin()
        monitor.end()
    return [record.ids.tolist() for _, record in memory.records if record.tag == "embeddings/7.input"]


def test_all_ranks_run_the_examples_of_rank_0(ranks: Processes) -> None:
    first, second = ranks.run(_other_batches)
    assert sorted(first[0]) == list(range(40))
    assert second == []


def _warm_up(rank: int) -> tuple[list[int], int]:
    """At rate zero, with a gradient that is zero on all of rank 1's shards."""
    model, memory = _sharded(), vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = vizlog.watch(model, optimizer, to=memory, probes=[vizlog.WeightHistograms(every=1)])
    for step in range(3):
        model(_batch()[0][:4]).square().sum().backward()
        for parameter in model.parameters():
            if rank == 1:
                parameter.grad.to_local().zero_()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1 * step
    monitor.close()
    return sorted({step for step, record in memory.records})


def test_a_warm_up_from_zero_counts_the_same_steps_on_all_ranks(ranks: Processes) -> None:
    assert ranks.run(_warm_up) == [[0, 1, 2], []]


def _after_an_evaluation(rank: int) -> tuple[list[str], list[str]]:
    """A forward without a backward leaves the root's parameters whole, which no optimizer knows."""
    model, memory = _sharded(), vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, _ = _batch()

    def evaluate() -> None:
        with torch.no_grad():
            model.eval()(inputs)
        model.train()

    evaluate()
    with _messages() as said:
        monitor = vizlog.Monitor(model, to=memory, batch=_batch(), optimizer=optimizer, every=1)
        for _ in range(2):
            evaluate()
            with monitor.step():
                model(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        monitor.close()
    return sorted({f"{step} {record.tag}" for step, record in memory.records}), said


def test_an_evaluation_between_steps_hides_no_parameter(ranks: Processes) -> None:
    (first, said), second = ranks.run(_after_an_evaluation)
    expected = {f"{step} {kind}/7.weight" for step in (0, 1) for kind in ("weights", "gradients", "updates")}
    assert expected <= set(first)
    assert said == []
    assert second == ([], [])


def _run_aside(rank: int) -> tuple[bool, bool]:
    """The model is run aside while some of its parameters are whole."""
    from vizlog.isolation import isolated

    model, (inputs, _) = _sharded().eval(), _batch()
    with torch.no_grad():
        before = model(inputs)  # leaves the root's parameters whole
        model[5].unshard()
        with isolated([model]):
            model(inputs)
    are_sharded = all(hasattr(parameter, "to_local") for parameter in model.parameters())
    with torch.no_grad():
        return are_sharded, torch.equal(before, model(inputs))


def test_modules_hold_their_shards_after_the_model_was_run_aside(ranks: Processes) -> None:
    assert ranks.run(_run_aside) == [(True, True)] * 2


def _in_turn(rank: int) -> Any:
    """At rate zero the weight stays: the squares of its parts, one a step, add up to its own."""
    from torch.distributed.fsdp import fully_shard

    from vizlog.probes import updates

    parts: list[float] = []

    class Keeps(vizlog.UpdateRatios):
        def finish(self, measured: Any) -> Any:
            parts.extend(weight for _, weight in (pair.tolist() for pair in measured["squares"].values()))
            return super().finish(measured)

    whole = updates._CHUNK_BYTES
    updates._CHUNK_BYTES = 500  # the shard has 1320 bytes
    try:
        model = nn.Linear(10, 65, bias=False)
        expected = model.weight.detach().square().sum().item()
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with vizlog.watch(model, optimizer, to=vizlog.Memory(), probes=[Keeps(every=1)]):
            for _ in range(6):
                model(torch.ones(2, 10)).sum().backward()
                optimizer.step()
    finally:
        updates._CHUNK_BYTES = whole
    return parts, expected


def test_large_shards_are_looked_at_in_the_same_parts_on_all_ranks(ranks: Processes) -> None:
    (parts, _), (nothing, _) = results = ranks.run(_in_turn)
    assert nothing == []
    assert len(parts) == 6
    assert all(part > 0 for part in parts)
    assert sum(parts[:3]) == pytest.approx(results[0][1], rel=1e-5)
    assert parts[3:] == parts[:3]


def _by_hand(rank: int) -> list[float]:
    model, memory = _sharded(), vizlog.Memory()
    with _messages() as said:
        monitor = vizlog.Monitor(model, [vizlog.WeightHistograms()], to=memory)
        model(_batch()[0]).sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        monitor.log({"part": norm, "whole": norm.full_tensor()})
        monitor.close()
    return [norm.full_tensor().item(), {record.tag: record.value for _, record in memory.records}, said]


def test_a_part_of_a_number_is_not_written_as_the_whole(ranks: Processes) -> None:
    (norm, written, said), (_, nothing, _) = ranks.run(_by_hand)
    assert written == {"whole": pytest.approx(norm)}
    assert "full_tensor()" in said[0]
    assert nothing == {}


# Ranks that come apart ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _patience(which: str, seconds: float) -> Iterator[None]:
    kept = getattr(channel, which)
    setattr(channel, which, timedelta(seconds=seconds))
    try:
        yield
    finally:
        setattr(channel, which, kept)


@dataclass(frozen=True)
class Event:
    """What one rank does at the end of a step, and the others do not."""

    rank: int
    step: int
    what: str = ""

    def happens(self, rank: int, step: int, what: str) -> bool:
        return (rank, step, what) == (self.rank, self.step, self.what)


def _apart(rank: int, event: Event, make: Callable[[], nn.Module], watch: Callable[..., Any]) -> Any:
    """Six steps in which something happens on one rank: its weights, buffers and random state, and its monitor."""
    model = make()
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = watch(model, optimizer)
    for step in range(6):
        x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))
        nn.functional.cross_entropy(model(x), y).backward()
        if event.happens(rank, step, "leaves the loop before the optimizer's step"):
            break
        if not event.happens(rank, step, "raises before the optimizer's step, and goes on"):
            optimizer.step()
        optimizer.zero_grad()
        if event.happens(rank, step, "closes") and monitor is not None:
            monitor.close()
        if event.happens(rank, step, "evaluates"):
            with torch.no_grad():
                model.module.eval()(x)
            model.train()
    return [_local(tensor) for tensor in [*model.parameters(), *model.buffers(), torch.get_rng_state()]], monitor


_unclosed: list[Any] = []


def _apart_with_and_without(rank: int, event: Event, make: Callable[[], nn.Module]) -> dict[str, Any]:
    memory = vizlog.Memory()

    def watch(model: nn.Module, optimizer: Any) -> Any:
        if event.what == "watches" and rank != event.rank:
            return None
        counts = {"step": lambda: next(numbers)} if event.what == "counts other steps" and rank == event.rank else {}
        return vizlog.watch(model, optimizer, to=memory, batch=_batch(), every=1, **counts)

    numbers = itertools.count(event.step)
    # Who has left is noticed at once; only who stays away without a word is waited for.
    seconds = 1 if "goes on" in event.what else 300
    with _patience("_AT_A_STEP", seconds), _messages() as said:
        plain, _ = _apart(rank, event, make, lambda *_: None)
        dist.barrier()
        seen, monitor = _apart(rank, event, make, watch)
        if event.what == "never closes":
            _unclosed.append(monitor)
            monitor.flush()
        elif monitor is not None:
            monitor.close()
        dist.barrier()
    steps = sorted({at for at, record in memory.records if record.tag == "weights/5.weight"})
    return {"same": _same(plain, seen), "steps": steps, "said": said}


@pytest.mark.parametrize(
    ("event", "steps", "told"),
    [
        (Event(0, 2, "closes"), [0, 1, 2], (0, 1)),
        (Event(1, 2, "closes"), [0, 1, 2], (1, 0)),
        (Event(1, 5, "closes"), [0, 1, 2, 3, 4, 5], (0, 0)),  # before the other
        (Event(1, 0, "never closes"), [0, 1, 2, 3, 4, 5], (0, 0)),
        (Event(1, 5, "leaves the loop before the optimizer's step"), [0, 1, 2, 3, 4], (1, 0)),
        (Event(0, 3, "raises before the optimizer's step, and goes on"), [0, 1, 2], (1, 1)),
        (Event(1, 3, "raises before the optimizer's step, and goes on"), [0, 1, 2], (1, 1)),
        (Event(1, 1, "counts other steps"), [], (1, 1)),
    ],
    ids=str,
)
def test_ranks_of_a_sharded_model_that_come_apart_do_not_wait_for_each_other(
    ranks: Processes, event: Event, steps: list[int], told: tuple[int, int]
) -> None:
    first, second = ranks.run(_apart_with_and_without, event, _sharded)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == steps
    assert (len(first["said"]), len(second["said"])) == told
    assert all("off from now on" in line and "rank" in line for line in first["said"] + second["said"])


class Interrupts(Probe):
    """Ctrl-C comes on rank 1 while it measures, or runs the batch, for the third time."""

    def __init__(self, where: str) -> None:
        super().__init__(every=1)
        self.where, self.times = where, 0

    def maybe(self, where: str) -> None:
        self.times += where == self.where
        if where == self.where and self.times == 3 and dist.get_rank() == 1:
            raise KeyboardInterrupt

    def measure(self, context: Context) -> Any:
        self.maybe("measuring")
        context.batch.part(0, 2).run(context.models)
        return 1

    def finish(self, measured: Any) -> Any:
        yield vizlog.Scalar("mine", 1.0)


def _interrupted(rank: int, where: str) -> dict[str, Any]:
    probe, memory, states = Interrupts(where), vizlog.Memory(), []

    def forward(model: nn.Module, inputs: Any) -> Any:
        if len(inputs) > 2 and running:
            probe.maybe("running the batch")
        return model(inputs)

    running: list[bool] = []
    with _patience("_AT_A_STEP", 300), _messages() as said:
        for with_vizlog in (False, True):
            model = _sharded()
            torch.manual_seed(100 + rank)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            if with_vizlog:
                batch = vizlog.FixedBatch(*_batch(), forward=forward)
                probes = [probe, vizlog.ActivationHistograms(every=1), vizlog.WeightHistograms(every=1)]
                monitor = vizlog.watch(model, optimizer, to=memory, batch=batch, probes=probes)
                running.append(True)
            for _ in range(5):
                nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 4, (8,))).backward()
                with contextlib.suppress(KeyboardInterrupt):
                    optimizer.step()
                optimizer.zero_grad()
            states.append([_local(tensor) for tensor in [*model.parameters(), *model.buffers(), torch.get_rng_state()]])
    monitor.close()
    return {"same": _same(*states), "steps": {step for step, _ in memory.records}, "said": said}


@pytest.mark.parametrize("where", ["measuring", "running the batch"])
def test_ctrl_c_on_one_rank_in_the_middle_of_our_work_holds_up_no_other(ranks: Processes, where: str) -> None:
    first, second = ranks.run(_interrupted, where)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {0, 1}
    (said,) = first["said"]
    assert "rank 1 has left" in said
    assert "off from now on" in said
    assert second["said"] == []


@pytest.mark.parametrize(
    ("event", "steps"),
    [
        (Event(0, 2, "closes"), [0, 1, 2]),
        (Event(1, 2, "closes"), [0, 1, 2, 3, 4, 5]),
        (Event(0, 0, "never closes"), [0, 1, 2, 3, 4, 5]),
        (Event(0, 3, "raises before the optimizer's step, and goes on"), [0, 1, 2, 3, 4]),
        (Event(1, 3, "raises before the optimizer's step, and goes on"), [0, 1, 2, 3, 4, 5]),
        (Event(1, 5, "leaves the loop before the optimizer's step"), [0, 1, 2, 3, 4, 5]),
        (Event(0, 0, "watches"), [0, 1, 2, 3, 4, 5]),
        (Event(0, 3, "evaluates"), [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_ranks_of_a_replicated_model_never_wait_for_each_other(
    ranks: Processes, event: Event, steps: list[int]
) -> None:
    first, second = ranks.run(_apart_with_and_without, event, _ddp)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == steps
    assert second["steps"] == []
    assert first["said"] == second["said"] == []


def _ours_fails(rank: int, where: int) -> dict[str, Any]:
    """What no probe is to blame for fails on one rank, at step 2."""
    from vizlog.due import DueStep

    memory, read = vizlog.Memory(), DueStep.read_gradients

    def fail(due: DueStep, *owned: Any) -> None:
        if due.step == 2 and rank == where:
            raise RuntimeError("ours")
        read(due, *owned)

    def watch(model: nn.Module, optimizer: Any) -> Any:
        return vizlog.watch(model, optimizer, to=memory, batch=_batch(), every=1)

    with _messages() as said:
        plain, _ = _train(rank, _sharded())
        DueStep.read_gradients = fail  # type: ignore[method-assign, assignment]
        try:
            watched, _ = _train(rank, _sharded(), watch)
        finally:
            DueStep.read_gradients = read  # type: ignore[method-assign]
    return {"same": _same(plain, watched), "steps": {step for step, _ in memory.records}, "said": said}


@pytest.mark.parametrize("where", [0, 1])
def test_an_error_of_ours_on_one_rank_holds_up_no_other(ranks: Processes, where: int) -> None:
    first, second = ranks.run(_ours_fails, where)
    assert first["same"]
    assert second["same"]
    assert {0, 1} <= first["steps"] <= {0, 1, 2}
    assert all("at the gradients" in line and "off from now on" in line for line in first["said"])
    assert all(("on rank 1" in line) == (where == 1) for line in first["said"])
    assert first["said"]
    assert second["said"] == []


def _closed(rank: int) -> str:
    ends = channel.Channel((0, 1))
    dist.barrier()  # both have found each other
    ends.close()
    try:
        ends.broadcast(1)
    except channel.RanksApart as error:
        return str(error)
    return ""


def test_a_rank_that_has_left_is_asked_in_vain(ranks: Processes) -> None:
    assert ranks.run(_closed) == [f"this rank has left, and is asked to talk to rank {other}" for other in (1, 0)]


def _rank_0_starts_alone(rank: int) -> str:
    model = _sharded()
    with _patience("_AT_THE_START", 2):
        try:
            if rank == 0:
                vizlog.Monitor(model, to=vizlog.Memory())
        except RuntimeError as error:
            return str(error)
    channel._opened[(0, 1)] += 1  # as if it had tried: the tests after this one go on
    return ""


def test_a_sharded_model_that_one_rank_watches_alone_is_an_error_that_says_so(ranks: Processes) -> None:
    first, second = ranks.run(_rank_0_starts_alone)
    assert "ranks 0 to 1 hold parts of the model, so all of them must start vizlog" in first
    assert second == ""


_KEPT: list[Exception] = []
"""As a notebook keeps the last one, and with it all that had been made until then."""


def _wrong_on_rank_1(rank: int) -> tuple[str, float]:
    model = _sharded()
    start = time.monotonic()
    try:
        vizlog.Monitor(model, to=vizlog.Memory(), batch=_batch(), probes=["weights"] if rank else None)
    except (TypeError, RuntimeError) as error:
        _KEPT.append(error)
        return type(error).__name__, time.monotonic() - start
    return "", 0.0


def test_what_is_wrong_on_one_rank_raises_on_all_at_once(ranks: Processes) -> None:
    (first, waited), (second, _) = ranks.run(_wrong_on_rank_1)
    assert (first, second) == ("RanksApart", "TypeError")
    assert waited < 30


def _unreadable(rank: int, cut: Callable[[nn.Module], nn.Module]) -> str:
    try:
        vizlog.Monitor(cut(nn.Linear(4, 4)), to=None)
    except ValueError as error:
        return str(error)
    return ""


def _fsdp1(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def _zero3(model: nn.Module) -> nn.Module:
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number  # as DeepSpeed marks what it has cut up
    return model


@pytest.mark.parametrize(("cut", "name"), [(_fsdp1, "FullyShardedDataParallel"), (_zero3, "ZeRO-3")])
def test_models_cut_up_in_other_ways_are_an_error_that_says_what_to_use(
    ranks: Processes, cut: Callable[[nn.Module], nn.Module], name: str
) -> None:
    first, second = ranks.run(_unreadable, cut)
    assert name in first
    assert "fully_shard (FSDP2)" in first
    assert first == second


SCRIPT = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
import vizlog
dist.init_process_group("gloo")
model = nn.Linear(4, 3)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = vizlog.watch(model, optimizer, to="runs", every=1)
for step in range(3):
    model(torch.ones(2, 4)).sum().backward()
    if step == 2 and dist.get_rank() == 1:
        raise ValueError("of this script")
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_script_that_ends_on_one_rank_and_closes_nowhere_holds_up_no_other(tmp_path: Path) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    scripts = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env={**os.environ, **where, "RANK": str(rank)}, stderr=-1)
        for rank in range(2)
    ]
    first, second = (script.communicate(timeout=PATIENCE)[1].decode() for script in scripts)
    assert [script.returncode for script in scripts] == [0, 1]
    assert "rank 1 has left" in first
    assert "of this script" in second
    assert list((tmp_path / "runs").iterdir())


def _uneven(rank: int, longer: int) -> dict[str, Any]:
    """One rank has two batches more than the other."""
    from torch.distributed.algorithms.join import Join

    found, memory = [], vizlog.Memory()
    for with_vizlog in (False, True):
        model = _ddp()
        torch.manual_seed(100 + rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = vizlog.watch(model, optimizer, to=memory, batch=_batch(), every=1) if with_vizlog else None
        with Join([model]):
            for _ in range(5 if rank == longer else 3):
                nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 4, (8,))).backward()
                optimizer.step()
                optimizer.zero_grad()
        if monitor is not None:
            monitor.close()
        found.append([_local(tensor) for tensor in [*model.parameters(), *model.buffers(), torch.get_rng_state()]])
    return {"same": _same(*found), "steps": len({step for step, _ in memory.records})}


@pytest.mark.parametrize("longer", [0, 1])
def test_ranks_with_uneven_data_join(ranks: Processes, longer: int) -> None:
    first, second = ranks.run(_uneven, longer)
    assert first == {"same": True, "steps": 5 if longer == 0 else 3}
    assert second == {"same": True, "steps": 0}


# Forwards that talk to other ranks ------------------------------------------------------------------------------------


class Talks(nn.Module):
    """Averages over ranks what passes through it, from a given forward on."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU()), nn.Linear(5, 4)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        if self.first <= 0:
            mean = x.detach().mean(0)
            dist.all_reduce(mean)
            x = x - mean / 2
        return self.head(x)


def _talks(rank: int, first: int, sharded: bool) -> dict[str, Any]:  # noqa: FBT001
    from torch.distributed.fsdp import fully_shard

    found, memory = [], vizlog.Memory()
    with _messages() as said:
        for with_vizlog in (False, True):
            model = bare = Talks(first)
            if sharded:
                fully_shard(model)
            else:
                model = nn.parallel.DistributedDataParallel(bare)
            torch.manual_seed(100 + rank)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            monitor = None
            if with_vizlog:
                probes = [
                    vizlog.ActivationHistograms(every=1),
                    vizlog.SaliencyMaps(every=1),
                    vizlog.WeightHistograms(every=1),
                ]
                monitor = vizlog.watch(model, optimizer, to=memory, batch=_batch(), probes=probes)
            for _ in range(3):
                nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 4, (8,))).backward()
                optimizer.step()
                optimizer.zero_grad()
                bare.first -= 1
            if monitor is not None:
                monitor.close()
            found.append([_local(tensor) for tensor in [*model.parameters(), torch.get_rng_state()]])
    kinds = {kind: {at for at, record in memory.records if record.tag.startswith(kind)} for kind in KINDS}
    return {"same": _same(*found), "steps": kinds, "said": said}


KINDS = ("activations/", "saliency/", "weights/")


def test_a_replicated_model_that_talks_to_other_ranks_is_not_run_on_one_alone(ranks: Processes) -> None:
    first, second = ranks.run(_talks, 0, False)
    assert first["same"]
    assert second["same"]
    # Activations are those of the training forward, then.
    assert first["steps"] == {"activations/": {0, 1, 2}, "saliency/": set(), "weights/": {0, 1, 2}}
    assert "cannot run the model on examples: it talks to other ranks (allreduce_" in first["said"][0]
    assert "SaliencyMaps is left out" in first["said"][1]
    assert len(first["said"]) == 2
    assert second["said"] == []


def test_a_replicated_model_that_begins_to_talk_is_run_no_more(ranks: Processes) -> None:
    first, second = ranks.run(_talks, 1, False)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {"activations/": {0}, "saliency/": {0}, "weights/": {0, 1, 2}}
    assert len(first["said"]) == 2  # the pass they share, and saliency's own
    assert all("it talks to other ranks" in line for line in first["said"])
    assert second["said"] == []


def test_a_sharded_model_may_talk_to_other_ranks(ranks: Processes) -> None:
    first, second = ranks.run(_talks, 0, True)
    assert first["same"]
    assert second["same"]
    assert first["steps"] == {kind: {0, 1, 2} for kind in KINDS}
    assert first["said"] == second["said"] == []


# Other ways to cut a model up -----------------------------------------------------------------------------------------


def _replicas_of_shards(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))


def _by_tensor(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": SequenceParallel(use_local_output=True)}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def _cut_up(rank: int, cut: Callable[[nn.Module], None]) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(0, (2, -1)), nn.LayerNorm(6))
    cut(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = vizlog.Memory()
    probes = [KeepsWeightCounts(), KeepsCounts(), vizlog.UpdateRatios()]
    with vizlog.watch(model, optimizer, to=memory, probes=probes):
        model(torch.randn(4, 6)).square().sum().backward()
        gradients = {name: _whole(parameter.grad) for name, parameter in model.named_parameters()}
        optimizer.step()
    weights = {name: _whole(parameter.detach()) for name, parameter in model.named_parameters()}
    placed = [str(parameter.grad.placements) for parameter in model.parameters()]
    return [probe.kept for probe in probes[:2]], weights, gradients, placed


def _whole(tensor: Tensor) -> np.ndarray[Any, Any]:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone().numpy()


@pytest.mark.parametrize("cut", [_replicas_of_shards, _by_tensor])
def test_copies_are_counted_once(ranks: Processes, cut: Callable[[nn.Module], None]) -> None:
    (kept, weights, gradients, placed), _ = ranks.run(_cut_up, cut)
    assert ("Partial" in " ".join(placed)) == (cut is _by_tensor)
    weight_counts, gradient_counts = kept
    assert set(weight_counts) == set(weights)
    for name, values in weights.items():
        _assert_counts(weight_counts[name], values)
        _assert_counts(gradient_counts[name], gradients[name])
