"""Each way to train on several processes: nothing of the training changes, and what is logged is what one would see."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import Processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vizlog
from vizlog.compute.bits import BitCounts, fine

STEPS = 5
EVERY = 2
IMAGES = (8, 1, 8, 8)

Watch = Callable[..., None]
Tensors = dict[str, np.ndarray[Any, Any]]
Weights = list[Any]


# What is trained ------------------------------------------------------------------------------------------------------


def images_model(*, norm: Callable[[], nn.Module] = lambda: nn.BatchNorm2d(5)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),  # five filters: uneven shards
        norm(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(180, 3),
        nn.Linear(3, 1),  # one row: all shards but the first are empty
        nn.Linear(1, 4),
    )


def without_norm() -> nn.Sequential:
    return images_model(norm=nn.Identity)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())


def deeper() -> nn.Sequential:
    return perceptron().append(nn.Linear(4, 5)).append(nn.Linear(5, 4))


class Branches(nn.Module):
    """One of its two branches is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = images_model(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = images_model()[:5]
        self.head = images_model()[5:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.utils.checkpoint.checkpoint(self.features, x, use_reentrant=False))


class Encoder(nn.Module):
    """The wrapper lies inside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = images_model()[:6], images_model()[6:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Run:
    """A model in training: `update(batches)` makes one step of one or more micro-batches."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float | None = None) -> None:
        self.model, self.optimizer, self.clip = model, optimizer, clip

    def update(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        for number, (x, y) in enumerate(batches, 1):
            with self.last_or_not(number == len(batches)):
                (F.cross_entropy(self.model(x), y) / len(batches)).backward()
        self.finish()

    def finish(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextlib.contextmanager
    def last_or_not(self, last: bool) -> Iterator[None]:  # noqa: FBT001
        if hasattr(self.model, "no_sync"):
            with contextlib.nullcontext() if last else self.model.no_sync():
                yield
            return
        if hasattr(self.model, "set_requires_gradient_sync"):
            self.model.set_requires_gradient_sync(last)
        yield


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def watched(model: nn.Module, watch: Watch, **options: Any) -> Run:
    optimizer = sgd(model)
    watch(model, optimizer)
    return Run(model, optimizer, **options)


# Replicated


def ddp(model: nn.Module, watch: Watch) -> Run:
    return watched(DistributedDataParallel(model), watch)


def ddp_watched_first(model: nn.Module, watch: Watch) -> Run:
    optimizer = sgd(model)
    watch(model, optimizer)
    return Run(DistributedDataParallel(model), optimizer)


def ddp_unused(model: nn.Module, watch: Watch) -> Run:
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    return watched(wrapped, watch)


def ddp_compiled(model: nn.Module, watch: Watch) -> Run:
    torch._dynamo.reset()
    return watched(torch.compile(DistributedDataParallel(model), backend="aot_eager"), watch)


def compiled_ddp(model: nn.Module, watch: Watch) -> Run:
    torch._dynamo.reset()
    return watched(DistributedDataParallel(torch.compile(model, backend="aot_eager")), watch)


def ddp_inside(model: Any, watch: Watch) -> Run:
    model.encoder = DistributedDataParallel(model.encoder)
    model.head = DistributedDataParallel(model.head)
    return watched(model, watch)


def ddp_zero(model: nn.Module, watch: Watch) -> Run:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    wrapped = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    watch(wrapped, optimizer)
    return Run(wrapped, optimizer)


# Sharded


def fsdp(model: nn.Module, watch: Watch, **options: Any) -> Run:
    from torch.distributed.fsdp import fully_shard

    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            fully_shard(part, **options)
    fully_shard(model, **options)
    return watched(model, watch)


def fsdp_mixed(model: nn.Module, watch: Watch) -> Run:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.float32)
    return fsdp(model, watch, mp_policy=low)


def fsdp_clipped(model: nn.Module, watch: Watch) -> Run:
    run = fsdp(model, watch)
    run.clip = 0.1
    return run


def fsdp_of_compiled(model: nn.Module, watch: Watch) -> Run:
    torch._dynamo.reset()
    for part in (model[0], model[5], model[6]):
        part.compile(backend="aot_eager")
    return fsdp(model, watch)


def fsdp_compiled(model: nn.Module, watch: Watch) -> Run:
    from torch.distributed.fsdp import fully_shard

    torch._dynamo.reset()
    fully_shard(model[5])
    fully_shard(model)
    return watched(torch.compile(model, backend="aot_eager"), watch)


def hsdp(model: nn.Module, watch: Watch) -> Run:
    from torch.distributed.device_mesh import init_device_mesh

    return fsdp(model, watch, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def _tensor_parallel(model: nn.Module) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"1": ColwiseParallel(), "3": RowwiseParallel()})
    return mesh


def tp_fsdp(model: nn.Module, watch: Watch) -> Run:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=_tensor_parallel(model)["dp"])
    return watched(model, watch)


class Averages(Run):
    """Averages the gradients of the replicas by hand."""

    mesh: Any = None

    def finish(self) -> None:
        for parameter in (*self.model[1].parameters(), *self.model[3].parameters()):
            dist.all_reduce(parameter.grad.to_local(), group=self.mesh["dp"].get_group())
            parameter.grad.to_local().div_(2)
        super().finish()


def tp_dp(model: nn.Module, watch: Watch) -> Run:
    mesh = _tensor_parallel(model)
    optimizer = sgd(model)
    watch(model, optimizer)
    run = Averages(model, optimizer)
    run.mesh = mesh
    return run


def tp_dp_with_sharded_head(model: Any, watch: Watch) -> Run:
    """Some parameters lie on a mesh of two ranks, others on one of all four."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for part in model[5:]:
        fully_shard(part, mesh=init_device_mesh("cpu", (4,)))
    return tp_dp(model, watch)


@dataclass(frozen=True)
class Way:
    """One row of the table.

    Args:
        model: makes the bare model.
        start: wraps it, calls `watch` and gives a Run.
        micro: how many micro-batches make a step.
        data: rank -> whose data it trains on (tensor-parallel ranks share theirs).
        clip: the norm to which gradients are clipped.
        tolerance: how far norms may be from those of one process, which adds up in another order.
    """

    start: Callable[[Any, Watch], Run]
    model: Callable[[], nn.Module] = images_model
    micro: int = 1
    data: tuple[int, ...] = (0, 1)
    clip: float | None = None
    tolerance: float = 1e-5


ON_TWO = {
    "ddp": Way(ddp),
    "ddp, watched before it is wrapped": Way(ddp_watched_first),
    "ddp, accumulated under no_sync": Way(ddp, micro=3),
    "ddp, unused parameters, bucket views": Way(ddp_unused, Branches),
    "ddp, compiled": Way(ddp_compiled, without_norm),
    "ddp of a compiled model": Way(compiled_ddp, without_norm),
    "ddp inside the model": Way(ddp_inside, Encoder),
    "ddp, ZeRO-1": Way(ddp_zero),
    "fsdp": Way(fsdp),
    "fsdp, accumulated without reducing": Way(fsdp, micro=3),
    "fsdp, bfloat16 computed and reduced": Way(fsdp_mixed, without_norm, tolerance=0.05),
    "fsdp, checkpointed": Way(fsdp, Checkpointed),
    "fsdp of compiled blocks": Way(fsdp_of_compiled),
    "fsdp, compiled": Way(fsdp_compiled, without_norm),
    "fsdp, clipped": Way(fsdp_clipped, clip=0.1),
}
ON_FOUR = {
    "hsdp": Way(hsdp, data=(0, 1, 2, 3)),
    "tensor-parallel and fsdp": Way(tp_fsdp, perceptron, data=(0, 0, 1, 1)),
    "tensor-parallel and replicas": Way(tp_dp, perceptron, data=(0, 0, 1, 1)),
    "tensor-parallel and replicas, fsdp head": Way(tp_dp_with_sharded_head, deeper, data=(0, 0, 1, 1)),
}
WAYS = ON_TWO | ON_FOUR


# One run of it --------------------------------------------------------------------------------------------------------


def _seed(number: int) -> None:
    torch.manual_seed(100 + number)
    np.random.seed(100 + number)  # noqa: NPY002 -- what a person's own training code draws from
    random.seed(100 + number)


def _draw(micro: int) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of one step, drawn as a training loop may."""
    return [
        (torch.randn(IMAGES) * (1 + random.random() + np.random.rand()), torch.randint(0, 4, (8,)))  # noqa: NPY002
        for _ in range(micro)
    ]


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4


class KeepsGradients(vizlog.GradientHistograms):
    def finish(self, measured: Any) -> Any:
        self.kept = getattr(self, "kept", measured["counts"])
        return super().finish(measured)


class KeepsWeights(vizlog.WeightHistograms):
    def finish(self, measured: Any) -> Any:
        self.kept = getattr(self, "kept", measured["counts"])
        return super().finish(measured)


def _probes() -> list[Any]:
    return [
        KeepsGradients(every=EVERY),
        KeepsWeights(every=EVERY),
        vizlog.UpdateRatios(every=EVERY),
        vizlog.ActivationHistograms(every=EVERY),
        vizlog.SaliencyMaps(every=4),
        vizlog.Embeddings(methods=["pca"], every=4),
    ]


def _whole(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone().numpy()


def _local(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor):
        return tensor
    tensor = tensor.detach()
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).clone().numpy()


def _canonical(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in {"module", "_orig_mod"})


@dataclass
class Seen:
    """What one run left."""

    state: list[Any]
    left: Any
    copies: list[Any]
    gradients: Tensors
    weights: Tensors
    records: list[Any] = field(default_factory=list)
    kept: list[Mapping[str, BitCounts]] = field(default_factory=list)
    graphs: int = 0


def _copies(model: nn.Module) -> list[bool]:
    """Whether the model can be pickled and deep-copied now."""
    found = []
    for make in (pickle.dumps, copy.deepcopy):
        try:
            make(model)
        except Exception:  # noqa: BLE001 -- whatever the bare model raises
            found.append(False)
        else:
            found.append(True)
    return found


def _attached(model: nn.Module, optimizer: Any) -> Any:
    """Names of all that modules, parameters and optimizers carry, and how many hooks."""
    modules = [
        {
            name: len(value) if "hook" in name and hasattr(value, "__len__") else 0
            for name, value in vars(module).items()
        }
        for module in model.modules()
    ]
    hooks = [len(parameter._backward_hooks or ()) for parameter in model.parameters()]
    return modules, hooks, {name: len(value) for name, value in vars(optimizer).items() if "hook" in name}


def _run(rank: int, way: Way, *, with_vizlog: bool) -> Seen:
    memory, probes, monitors = vizlog.Memory(), _probes(), []
    gradients: list[Tensors] = []
    weights: list[Tensors] = []

    def watch(model: nn.Module, optimizer: Any) -> None:
        def seen(*_: Any) -> None:
            named = {_canonical(name): parameter for name, parameter in model.named_parameters()}
            if not gradients:
                gradients.append({name: _whole(p.grad) for name, p in named.items() if p.grad is not None})
            elif len(weights) == 0:
                weights.append({name: _whole(parameter) for name, parameter in named.items()})

        optimizer.register_step_pre_hook(seen)
        if with_vizlog:
            monitors.append(vizlog.watch(model, optimizer, to=memory, batch=_batch(), probes=probes))

    model = way.model()
    _seed(way.data[rank])
    run = way.start(model, watch)
    copies = []
    for step in range(STEPS):
        run.update(_draw(way.micro))
        if step == EVERY - 1:  # the next step is due: what must see it is attached
            copies = _copies(model)
    for monitor in monitors:
        monitor.close()
    state: list[Any] = [_local(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    inner = getattr(run.optimizer, "optim", run.optimizer)
    state += [_local(value) for entry in inner.state.values() for value in entry.values()]
    state += [_local(torch.get_rng_state()), np.random.get_state()[1], np.array(random.getstate()[1])]  # noqa: NPY002
    kept = [getattr(probe, "kept", {}) for probe in probes[:2]]
    graphs = torch._dynamo.utils.counters["stats"].pop("unique_graphs", 0)
    left = _attached(run.model, run.optimizer)
    return Seen(state, left, copies, gradients[0], weights[0], memory.records, kept, graphs)


def _with_and_without(rank: int, name: str) -> dict[str, Any]:
    way = WAYS[name]
    plain, seen = _run(rank, way, with_vizlog=False), _run(rank, way, with_vizlog=True)
    return {
        "same": len(plain.state) == len(seen.state)
        and all(np.array_equal(a, b) for a, b in zip(plain.state, seen.state, strict=True)),
        "nothing left": plain.left == seen.left,
        "copies": (plain.copies, seen.copies),
        "graphs": (plain.graphs, seen.graphs),
        "seen": seen,
    }


# What it is compared with ---------------------------------------------------------------------------------------------


def _alone(way: Way) -> tuple[Tensors, set[tuple[int, str]]]:
    """In one process: the gradients of the first step, and names and steps of all that is logged of the bare model."""
    summed: dict[str, Tensor] = {}
    others = sorted(set(way.data))
    for data in others:
        model = way.model()
        _seed(data)
        for x, y in _draw(way.micro):
            (F.cross_entropy(model(x), y) / way.micro / len(others)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                summed[name] = summed.get(name, 0) + parameter.grad
    if way.clip is not None:
        total = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in summed.values()]))
        summed = {name: gradient * min(1.0, way.clip / (total.item() + 1e-6)) for name, gradient in summed.items()}
    memory, model = vizlog.Memory(), way.model()
    run = Run(model, sgd(model))
    with vizlog.watch(model, run.optimizer, to=memory, batch=_batch(), probes=_probes()):
        for _ in range(STEPS):
            run.update(_draw(way.micro))
    return {name: gradient.numpy() for name, gradient in summed.items()}, _names(memory.records)


def _names(records: list[Any]) -> set[tuple[int, str]]:
    """Steps and tags, but for those that depend on what the model makes of the examples."""
    tags = {(step, record.tag) for step, record in records}
    return {(step, tag) for step, tag in tags if "vizlog_seconds" not in tag and "/predicted" not in tag}


def _assert_counts(counts: BitCounts, values: np.ndarray[Any, Any]) -> None:
    edges, found = fine(counts)
    assert np.array_equal(found, np.histogram(values, edges)[0])
    assert counts.count == values.size
    assert math.sqrt(counts.squares) == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-12)


def _check(results: list[dict[str, Any]], way: Way) -> None:
    for result in results:
        assert result["same"]
        assert result["nothing left"]
        assert result["copies"][0] == result["copies"][1]
        assert result["graphs"][0] == result["graphs"][1]
    seen: Seen = results[0]["seen"]
    assert all(result["seen"].records == [] for result in results[1:])
    gradients, names = _alone(way)
    assert _names(seen.records) == names
    gradient_counts, weight_counts = seen.kept
    assert set(gradient_counts) == set(gradients)
    for name, values in seen.gradients.items():
        _assert_counts(gradient_counts[name], values)
        norm = np.linalg.norm(gradients[name])
        assert math.sqrt(gradient_counts[name].squares) == pytest.approx(norm, rel=way.tolerance, abs=1e-6)
    assert set(weight_counts) == set(seen.weights)
    for name, values in seen.weights.items():
        _assert_counts(weight_counts[name], values)
    curve = next(record for step, record in seen.records if step == 0 and record.tag == "health/gradient_norm")
    ((_, ys),) = curve.ys.items()
    total = np.linalg.norm([np.linalg.norm(gradient) for gradient in gradients.values()])
    assert np.linalg.norm(ys) == pytest.approx(total, rel=way.tolerance)


@pytest.mark.parametrize("name", ON_TWO)
def test_two_processes_train_as_without_and_log_what_one_would(ranks: Processes, name: str) -> None:
    _check(ranks.run(_with_and_without, name), WAYS[name])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(4, tmp_path_factory.mktemp("four"))
    yield processes
    processes.stop()


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_processes_train_as_without_and_log_what_one_would(four: Processes, name: str) -> None:
    _check(four.run(_with_and_without, name), WAYS[name])


def test_what_passes_through_split_layers_is_put_together_where_it_can_be(four: Processes) -> None:
    first, *_ = four.run(_split_outputs)
    assert first["said"] == [
        "the model is tensor-parallel: what passes between its split layers is rank 0's share of it"
    ]
    counts, whole = first["counts"], first["whole"]
    assert counts["1"] == whole["1"] // 2  # turned into rank 0's share before anything could see it
    assert counts["2"] == whole["2"] // 2
    assert counts["3"] == whole["3"]  # left by its layer as a distributed tensor
    assert counts["4"] == whole["4"]


def _split_outputs(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage().removeprefix("vizlog: "))
    logging.getLogger("vizlog").addHandler(handler)
    try:
        split = perceptron()
        left = RowwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
        parallelize_module(split, mesh, {"1": ColwiseParallel(), "3": left})
        counts = []
        for model in (split, perceptron()):
            memory = vizlog.Memory()
            with vizlog.Monitor(model, [vizlog.ActivationHistograms()], to=memory, batch=_batch()[0]) as monitor:
                monitor.begin()
                monitor.end()
            found = {record.tag.removeprefix("activations/"): record for _, record in memory.records}
            counts.append(
                {name: record.count for name, record in found.items() if isinstance(record, vizlog.Histogram)}
            )
    finally:
        logging.getLogger("vizlog").removeHandler(handler)
    return {"said": [line for line in said if "tensor-parallel" in line], "counts": counts[0], "whole": counts[1]}


# Pipelines ------------------------------------------------------------------------------------------------------------


def _pipeline(rank: int, with_vizlog: bool) -> tuple[Weights, list[Any], Tensors]:  # noqa: FBT001
    """Each rank holds one part, and gives a list of its parts."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    model, memory = perceptron(), vizlog.Memory()
    part = model[:3] if rank == 0 else model[3:]
    optimizer, gradients = sgd(part), []
    batch = _batch()[0]
    schedule = ScheduleGPipe(PipelineStage(part, rank, 2, torch.device("cpu")), 2, loss_fn=F.cross_entropy)
    monitor = None
    if with_vizlog:
        probes = [vizlog.GradientHistograms(every=1), vizlog.ActivationHistograms(every=1)]
        monitor = vizlog.watch([part], optimizer, to=memory, batch=batch if rank == 0 else None, probes=probes)
    for _ in range(3):
        schedule.step(batch) if rank == 0 else schedule.step(target=_batch()[1])
        gradients.append({name: parameter.grad.numpy().copy() for name, parameter in part.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
    if monitor is not None:
        monitor.close()
    return [_local(parameter) for parameter in part.parameters()], memory.records, gradients[0]


def _pipeline_with_and_without(rank: int) -> dict[str, Any]:
    plain, _, _ = _pipeline(rank, False)
    seen, records, gradients = _pipeline(rank, True)
    return {
        "same": all(np.array_equal(a, b) for a, b in zip(plain, seen, strict=True)),
        "tags": {record.tag for _, record in records},
        "steps": sorted({step for step, _ in records}),
        "norms": {r.tag: r for step, r in records if step == 0 and r.tag == "health/gradient_norm"},
        "gradients": gradients,
    }


def test_of_a_pipeline_the_parts_of_rank_0_are_shown(ranks: Processes) -> None:
    first, second = ranks.run(_pipeline_with_and_without)
    assert first["same"]
    assert second["same"]
    assert {"gradients/1.weight", "activations/1", "activations/2"} <= first["tags"]
    assert not {"gradients/0.weight", "activations/4"} & first["tags"]
    assert first["steps"] == [0, 1, 2]
    assert second["tags"] == set()
    model = perceptron()
    F.cross_entropy(model(_batch()[0]), _batch()[1]).backward()
    ((_, (norm,)),) = first["norms"]["health/gradient_norm"].ys.items()
    expected = np.hypot(*(parameter.grad.norm().item() for parameter in model[1].parameters()))
    assert norm == pytest.approx(expected, rel=1e-5)


def _sharded_parts(rank: int, number: int) -> dict[str, Any]:
    """As torchtitan does: parts lie on different ranks, and each is sharded over its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    part = perceptron()[:2] if rank < 2 else nn.Linear(64, 3)
    memory = vizlog.Memory()
    fully_shard(part, mesh=mesh["dp"])
    optimizer = sgd(part)
    with vizlog.watch([part], optimizer, to=memory, every=1):
        for _ in range(2):
            part(_batch()[0] if rank < 2 else _batch()[0].flatten(1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"steps": sorted({step for step, _ in memory.records}), "tags": {r.tag for _, r in memory.records}}


@pytest.mark.parametrize("number", [1, 2])  # on the same ranks again
def test_of_a_sharded_pipeline_the_parts_with_rank_0_are_shown(four: Processes, number: int) -> None:
    first, *others = four.run(_sharded_parts, number)
    assert first["steps"] == [0, 1]
    assert {"weights/1.weight", "gradients/1.bias"} <= first["tags"]
    assert all(other["steps"] == [] for other in others)
