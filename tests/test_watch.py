"""`watch`: training with and without it is the same to the last bit, and gradients are those the optimizer used."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAccuracy

import vizlog
from vizlog.records import Curves, Histogram, Scalar
from vizlog.requests import Updates

STEPS = 5
X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


class Net(nn.Module):
    """Everything that a pass more could disturb."""

    def __init__(self, *, checkpointed: bool = False, stateful: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.LayerNorm(8))
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.frozen = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)
        self.checkpointed = checkpointed
        self.accuracy = MulticlassAccuracy(3) if stateful else None
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))

    def train(self, mode: bool = True) -> Net:  # noqa: FBT001, FBT002 -- torch's signature
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        x = F.relu(self.frozen(self.norm(x)))
        x = self.head(x)
        if self.accuracy is not None:
            self.calls += 1
            self.total += x.detach().float().sum()
            x = x + 1e-3 * torch.randn_like(x) + 1e-3 * random.random() * np.random.rand()  # noqa: NPY002
            self.accuracy.update(x.detach().float(), torch.arange(len(x)) % 3)
        return x


def batches(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(steps):
        rows = torch.arange(16) + 8 * step
        yield X[rows % 64] + 0.01 * torch.randn(16, 1, 6, 6), Y[rows % 64]


def plain_loop(model: nn.Module, optimizer: Optimizer) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def accumulating(model: nn.Module, optimizer: Optimizer) -> None:
    for step, (x, y) in enumerate(batches(9)):
        (F.cross_entropy(model(x), y) / 3).backward()
        if step % 3 == 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def closures(model: nn.Module, optimizer: Optimizer) -> None:
    for x, y in batches(2):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def mixed(model: nn.Module, optimizer: Optimizer) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()


def mixed_throughout(model: nn.Module, optimizer: Optimizer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        plain_loop(model, optimizer)


def scaled(model: nn.Module, optimizer: Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * (float("inf") if step == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def evaluating(model: nn.Module, optimizer: Optimizer) -> None:
    for x, y in batches():
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(x)


def warming_up(model: nn.Module, optimizer: Optimizer) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()


def compiled(model: nn.Module, optimizer: Optimizer) -> None:
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager")
    for step, (x, y) in enumerate(batches()):
        with torch.compiler.set_stance("fail_on_recompile") if step > 1 else nullcontext():
            optimizer.zero_grad()
            F.cross_entropy(run(x), y).backward()
            optimizer.step()


LOOPS: dict[str, tuple[Callable[[nn.Module, Optimizer], None], Callable[[Any], Optimizer], dict[str, bool]]] = {
    "plain": (plain_loop, lambda p: Adam(p, lr=0.01), {}),
    "nesterov": (plain_loop, lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True), {}),
    "accumulating": (accumulating, lambda p: SGD(p, lr=0.1, momentum=0.9), {}),
    "checkpointed": (plain_loop, lambda p: AdamW(p, lr=0.01), {"checkpointed": True}),
    "closures": (closures, lambda p: LBFGS(p, max_iter=3), {}),
    "mixed": (mixed, lambda p: AdamW(p, lr=0.01), {}),
    "mixed throughout": (mixed_throughout, lambda p: AdamW(p, lr=0.01), {}),
    "scaled": (scaled, lambda p: SGD(p, lr=0.01), {}),
    "scaled, fused": (scaled, lambda p: AdamW(p, lr=0.01, fused=True), {}),
    "evaluating": (evaluating, lambda p: AdamW(p, lr=0.01), {}),
    "warming up": (warming_up, lambda p: AdamW(p, lr=0.01), {}),
    "compiled": (compiled, lambda p: SGD(p, lr=0.01), {"stateful": False}),
}


def outcome(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    metric = getattr(model, "accuracy", None)
    return {
        "weights and buffers": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random states": states,
        "modes": [module.training for module in model.modules()],
        "metric": [metric.tp, metric.fp, metric._update_count] if metric is not None else [],
        "calls": getattr(model, "calls", 0),
        "gradients": [parameter.grad for parameter in model.parameters()],
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, (Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(a.detach() if isinstance(a, Tensor) else a), np.asarray(b)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}/{number}")
    else:
        assert a == b, where


def trained(loop: str, watch: Callable[[nn.Module, Optimizer], Any] | None) -> tuple[dict[str, Any], vizlog.Memory]:
    run, make, options = LOOPS[loop]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    model = Net(**options)
    optimizer = make(model.parameters())
    memory = vizlog.Memory()
    monitor = watch(model, optimizer) if watch is not None else None
    run(model, optimizer)
    result = copy.deepcopy(outcome(model, optimizer))
    if monitor is not None:
        monitor.close()
        memory = monitor.memory
    return result, memory


def standard(model: nn.Module, optimizer: Optimizer) -> Any:
    memory = vizlog.Memory()
    monitor = vizlog.watch(model, optimizer, to=memory, batch=(X[:12], Y[:12]), every=1)
    monitor.memory = memory  # type: ignore[attr-defined]
    return monitor


def live(model: nn.Module, optimizer: Optimizer) -> Any:
    memory = vizlog.Memory()
    monitor = vizlog.watch(model, optimizer, to=memory, every=2)
    monitor.memory = memory  # type: ignore[attr-defined]
    return monitor


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_the_same_to_the_last_bit(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    alone, _ = trained(loop, None)
    watched, memory = trained(loop, standard)
    assert_same(alone, watched)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    tags = {record.tag for _, record in memory.records}
    kinds = {tag.partition("/")[0] for tag in tags}
    assert kinds >= {"weights", "gradients", "updates", "activations", "filters", "feature_maps", "saliency", "health"}
    assert "gradients/stem.0.weight" in tags
    assert "activations/relu" in tags


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop != "compiled"])
def test_a_live_look_at_an_eager_model_changes_nothing(loop: str) -> None:
    alone, _ = trained(loop, None)
    watched, memory = trained(loop, live)
    assert_same(alone, watched)
    assert "activations/relu" in {record.tag for _, record in memory.records}


PROBES: dict[str, Callable[[], vizlog.Probe]] = {
    "weights": lambda: vizlog.WeightHistograms(every=1),
    "gradients": lambda: vizlog.GradientHistograms(every=1),
    "updates": lambda: vizlog.UpdateRatios(every=1),
    "activations": lambda: vizlog.ActivationHistograms(every=1, source="batch"),
    "live activations": lambda: vizlog.ActivationHistograms(every=1, source="live"),
    "filters": lambda: vizlog.FilterImages(every=1),
    "feature maps": lambda: vizlog.FeatureMaps(every=1),
    "saliency": lambda: vizlog.SaliencyMaps(
        every=1, methods=["gradient", "smoothgrad", "integrated_gradients", "gradcam"]
    ),
    "embeddings": lambda: vizlog.Embeddings(every=1, methods=["pca"]),
}


@pytest.mark.parametrize("probe", PROBES)
def test_no_probe_leaves_a_trace(probe: str) -> None:
    def watch(model: nn.Module, optimizer: Optimizer) -> Any:
        memory = vizlog.Memory()
        monitor = vizlog.watch(model, optimizer, to=memory, batch=(X[:8], Y[:8]), probes=[PROBES[probe]()])
        monitor.memory = memory  # type: ignore[attr-defined]
        return monitor

    alone, _ = trained("plain", None)
    watched, memory = trained("plain", watch)
    assert_same(alone, watched)
    assert {step for step, _ in memory.records} == set(range(STEPS))


def test_a_compiled_model_gains_no_graph() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    run = torch.compile(model, backend="aot_eager")
    graphs = []
    with vizlog.watch(run, optimizer, to=vizlog.Memory(), batch=(torch.randn(6, 4), torch.arange(6) % 3), every=1):
        for _ in range(20):
            optimizer.zero_grad()
            run(torch.randn(5, 4)).sum().backward()
            optimizer.step()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1


def test_a_compiled_step_of_the_optimizer_is_watched_too() -> None:
    torch._dynamo.reset()
    model, memory = nn.Sequential(nn.Linear(4, 3)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    with vizlog.watch(model, optimizer, to=memory, every=1):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).sum().backward()
            step()
    assert [step for step, _ in memory.of("weights/0.weight")] == [0, 1, 2]
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 1, 2]


# Gradients are those the optimizer used -------------------------------------------------------------------------------


def one_layer(optimizer: Callable[[Any], Optimizer]) -> tuple[nn.Module, Optimizer, vizlog.Memory, vizlog.Monitor]:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0]]))  # type: ignore[operator]
    made, memory = optimizer(model.parameters()), vizlog.Memory()
    probes = [vizlog.GradientHistograms(every=1), vizlog.UpdateRatios(every=1)]
    return model, made, memory, vizlog.watch(model, made, to=memory, probes=probes)


def norms(memory: vizlog.Memory) -> list[float]:
    return [record.value for _, record in memory.of("health/gradient_norm_worst") if isinstance(record, Scalar)]


def extremes(memory: vizlog.Memory) -> list[tuple[float, float]]:
    return [(r.min, r.max) for _, r in memory.of("gradients/0.weight") if isinstance(r, Histogram)]


def test_gradients_are_clipped_ones() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    monitor.close()
    assert norms(memory) == pytest.approx([1.0], rel=1e-5)
    assert extremes(memory)[0] == pytest.approx((0.6, 0.8), rel=1e-5)


def test_hooks_of_ones_own_run_first_though_registered_later() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    other = vizlog.Memory()
    second = vizlog.watch(model, optimizer, to=other, probes=[vizlog.WeightHistograms(every=1)])

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def clamp(*_: Any) -> None:
        model[0].weight.data.clamp_(-0.5, 0.5)  # type: ignore[index, operator, union-attr]

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(clamp)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
        optimizer.step()
    monitor.close()
    second.close()
    assert norms(memory) == pytest.approx([1.0, 1.0], rel=1e-5)
    weights = [record.min for _, record in other.of("weights/0.weight") if isinstance(record, Histogram)]
    assert weights == [-0.5, -0.5]


def test_gradients_of_a_step_that_raised_are_not_those_of_the_one_made_again() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    fails = optimizer.register_step_post_hook(lambda *_: 1 / 0)
    model(torch.tensor([[300.0, 400.0]])).sum().backward()
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    fails.remove()
    optimizer.zero_grad()
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    optimizer.step()
    monitor.close()
    assert norms(memory) == [5.0]
    assert extremes(memory) == [(3.0, 4.0)]


def test_gradients_are_summed_over_micro_batches() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    for _ in range(3):
        model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    monitor.close()
    assert extremes(memory) == [(3.0, 6.0)]


def test_gradients_are_those_before_nesterov_overwrites_them() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
        optimizer.step()
    monitor.close()
    assert norms(memory) == [5.0, 5.0]


def test_gradients_of_a_closure_are_those_it_made() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    for scale in (1.0, 2.0):

        def closure(scale: float = scale) -> Tensor:
            optimizer.zero_grad()
            loss = model(torch.tensor([[3.0, 4.0]])).sum() * scale
            loss.backward()
            return loss

        optimizer.step(closure)
    monitor.close()
    assert norms(memory) == [5.0, 10.0]


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_unscaled_and_a_skipped_step_says_so(*, fused: bool) -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: AdamW(p, lr=0.1, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x in ([3.0, 4.0], [float("inf"), 4.0], [6.0, 8.0]):
        optimizer.zero_grad()
        scaler.scale(model(torch.tensor([x])).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    monitor.close()
    assert norms(memory)[0] == 5.0
    assert norms(memory)[-1] == 10.0
    captions = [record.caption for _, record in memory.of("gradients/0.weight")]
    assert ["skipped" in caption for caption in captions] == ([False, True, False] if fused else [False, False])


def test_the_update_ratio_is_the_updates_norm_by_the_weights() -> None:
    model, optimizer, memory, monitor = one_layer(lambda p: SGD(p, lr=0.1))
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    optimizer.step()
    monitor.close()
    expected = 0.1 * 5.0 / 5**0.5  # ‖0.1 · (3, 4)‖ / ‖(1, −2)‖
    for tag in ("updates/0.weight", "health/update_ratio_worst", "health/update_ratio_mean"):
        assert [r.value for _, r in memory.of(tag)] == pytest.approx([expected], rel=1e-5)  # type: ignore[union-attr]


# Steps ----------------------------------------------------------------------------------------------------------------


def steps_seen(steps: int, **options: Any) -> list[int]:
    model, memory = nn.Sequential(nn.Linear(2, 2)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    every = options.pop("every", 10)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.WeightHistograms(every=every)], **options):
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    return [step for step, _ in memory.of("weights/0.weight")]


def test_steps_are_counted_from_zero() -> None:
    assert steps_seen(25) == [0, 10, 20]


def test_a_resumed_run_counts_from_where_it_was() -> None:
    assert steps_seen(25, step=13) == [13, 20, 30]


def test_steps_come_from_a_function_and_are_due_by_crossing() -> None:
    numbers = iter(range(0, 1000, 7))
    assert steps_seen(6, step=lambda: next(numbers)) == [0, 14, 21, 35]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, lambda number: torch.tensor([number])])
def test_counters_of_numpy_and_torch_are_steps_and_epochs(kind: Any) -> None:
    numbers = iter(range(0, 200, 7))
    assert steps_seen(6, every=vizlog.Thinning(every=10), step=lambda: kind(next(numbers))) == [0, 14, 21, 35]
    epochs = iter(range(100))
    assert steps_seen(3, every=vizlog.EveryEpoch(2), epoch=lambda: kind(next(epochs))) == [0, 2]


@pytest.mark.parametrize("number", [2.5, None, "7", torch.tensor(7.0)])
def test_a_step_that_is_no_whole_number_is_said(number: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert steps_seen(3, step=lambda: number) == []
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"the step must be a whole number, got {number!r}; training goes on" in said


def test_epochs_come_from_a_function() -> None:
    count = iter(range(1000))
    every = vizlog.EveryEpoch(2)
    assert steps_seen(18, every=every, epoch=lambda: next(count) // 4) == [0, 8, 16]


def test_a_live_look_at_an_epoch_that_began_unannounced_takes_its_second_step() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), vizlog.Memory()
    optimizer, count = SGD(model.parameters(), lr=0.1), iter(range(1000))
    probes = [
        vizlog.WeightHistograms(every=vizlog.EveryEpoch()),
        vizlog.ActivationHistograms(every=vizlog.EveryEpoch(), source="live"),
        vizlog.GradientHistograms(every=3),
    ]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, epoch=lambda: next(count) // 4):
        for _ in range(12):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert [step for step, _ in memory.of("weights/0.weight")] == [0, 4, 8]
    assert [step for step, _ in memory.of("activations/1")] == [0, 5, 9]
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 3, 6, 9]
    assert {record.count for _, record in memory.of("activations/1")} == {2}  # type: ignore[union-attr]


def test_the_batch_is_run_under_the_autocast_of_the_training_forward() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2)), vizlog.Memory()
    optimizer, x = SGD(model.parameters(), lr=0.0), torch.randn(4, 2)
    with vizlog.watch(model, optimizer, to=memory, batch=x, probes=[vizlog.ActivationHistograms(every=1)]):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).sum()
                expected = model(x).max().item()
            loss.backward()
            optimizer.step()
    assert [record.max for _, record in memory.of("activations/0")] == [expected] * 2  # type: ignore[union-attr]


def test_a_model_saved_whole_before_a_due_step_is_read_back_where_only_its_classes_are_allowed() -> None:
    model, x, file = nn.Sequential(nn.Linear(2, 2)), torch.randn(4, 2), io.BytesIO()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=vizlog.Memory(), batch=x, every=vizlog.Every(1)):
        model(x).sum().backward()
        optimizer.step()
        torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear]):
        assert torch.equal(torch.load(file, weights_only=True)(x), model(x))


def test_loading_a_checkpoint_is_no_step() -> None:
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    model, memory = nn.Sequential(nn.Linear(2, 2)), vizlog.Memory()
    optimizer = AdamW(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.UpdateRatios(every=1)]):
        _init_optim_state(optimizer)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    ((step, record),) = memory.of("updates/0.weight")
    assert step == 0
    assert record.value > 0  # type: ignore[union-attr]


# Several optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critics", [1, 5])
@pytest.mark.parametrize("given", ["list", "dict"])
def test_a_gan_is_seen_whole_once_both_stepped(critics: int, given: str, caplog: pytest.LogCaptureFixture) -> None:
    g, d = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(3, 1))
    of_g, of_d = Adam(g.parameters(), lr=0.01), Adam(d.parameters(), lr=0.01)
    memory = vizlog.Memory()
    optimizers: Any = [of_g, of_d] if given == "list" else {"d": of_d, "g": of_g}
    probes = [vizlog.GradientHistograms(every=20), vizlog.UpdateRatios(every=20)]
    with vizlog.watch({"G": g, "D": d}, optimizers, to=memory, probes=probes):
        for _ in range(30 // critics):
            for _ in range(critics):
                of_d.zero_grad()
                d(g(torch.randn(4, 2)).detach()).sum().backward()
                of_d.step()
            of_g.zero_grad()
            d(g(torch.randn(4, 2))).sum().backward()
            of_g.step()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for tag in ("gradients/G.0.weight", "gradients/D.0.weight", "updates/G.0.weight", "updates/D.0.weight"):
        assert [step for step, _ in memory.of(tag)] == [0, 20]


def test_an_optimizer_that_never_steps_does_not_hold_the_others_up(caplog: pytest.LogCaptureFixture) -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), vizlog.Memory()
    first, second = SGD(model[0].parameters(), lr=0.1), SGD(model[1].parameters(), lr=0.1)
    with vizlog.watch(model, [first, second], to=memory, probes=[vizlog.GradientHistograms(every=2)]):
        for _ in range(6):
            model(torch.ones(1, 2)).sum().backward()
            first.step()
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 2, 4]
    assert memory.of("gradients/1.weight") == []
    assert len([record for record in caplog.records if "had not stepped" in record.getMessage()]) == 1


# Nothing is set on the user's modules ---------------------------------------------------------------------------------


def test_the_model_copies_pickles_and_saves_at_any_moment_and_copies_do_not_fire_into_us() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    keys = set(vars(model[0]))
    copies = []
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.ActivationHistograms(every=1, source="live")]):
        for _ in range(3):
            assert set(vars(model[0])) == keys
            copies += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            torch.save(model, io.BytesIO())
            torch.save(model.state_dict(), io.BytesIO())
            for other in copies:
                other(torch.full((7, 2), 100.0)).sum().backward()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    counts = [record.count for _, record in memory.of("activations/0")]  # type: ignore[union-attr]
    assert counts == [2, 2, 2]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_closed_monitor_has_left_the_optimizer() -> None:
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = vizlog.watch(model, optimizer, to=None)
    monitor.close()
    monitor.close()
    monitor.flush()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# What the curves say --------------------------------------------------------------------------------------------------


def test_the_gradient_norm_of_a_layer_is_over_all_its_parameters() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms(every=1)]):
        model(torch.randn(4, 2)).sum().backward()
        expected = [sum(float(p.grad.square().sum()) for p in model[n].parameters()) ** 0.5 for n in (0, 2)]
        optimizer.step()
    ((_, curve),) = memory.of("health/gradient_norm")
    assert isinstance(curve, Curves)
    assert list(curve.x_names or ()) == ["0", "2"]
    np.testing.assert_allclose(curve.ys["gradient_norm"], expected, rtol=1e-5)


# Several steps, and steps in which something else happens ------------------------------------------------------------


class Moves(vizlog.Probe):
    """By how much each parameter moves in a step."""

    picture = False

    def __init__(self) -> None:
        super().__init__(every=1)

    def wants(self, models: Any) -> Any:
        return {"moved": Updates(("d.weight", "g.weight"), lambda before, after: float((after - before).abs().max()))}

    def finish(self, measured: Any) -> Iterator[Scalar]:
        for name, moved in measured["moved"].items():
            yield Scalar(f"moved/{name}", moved)


def two() -> tuple[nn.ModuleDict, SGD, SGD]:
    model = nn.ModuleDict({"d": nn.Linear(1, 1, bias=False), "g": nn.Linear(1, 1, bias=False)})
    return model, SGD(model["d"].parameters(), lr=0.5), SGD(model["g"].parameters(), lr=0.5)


def step_by(optimizer: SGD, gradient: float) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_numbers_of_ones_own_say_where_a_step_begins() -> None:
    (model, d, g), memory = two(), vizlog.Memory()
    numbers = iter(range(4))
    with vizlog.watch(model, [d, g], to=memory, probes=[], step=lambda: next(numbers)) as monitor:
        for optimizer in (d, g, d, g):  # as Lightning counts them
            step_by(optimizer, 1.0)
            monitor.log({"n": 1})
    assert [step for step, _ in memory.of("n")] == [0, 1, 2, 3]


def test_of_an_optimizer_that_steps_again_the_first_step_is_seen() -> None:
    (model, d, g), memory = two(), vizlog.Memory()
    with vizlog.watch(model, [d, g], to=memory, probes=[Moves()], step=lambda: 0):
        step_by(d, 1.0)
        step_by(d, 100.0)
        step_by(g, 2.0)
    moved = {record.tag: record.value for _, record in memory.records if record.tag.startswith("moved/")}  # type: ignore[union-attr]
    assert moved == pytest.approx({"moved/d.weight": 0.5, "moved/g.weight": 1.0})


def test_what_is_due_at_the_next_step_is_not_taken_into_one_that_is_not_over() -> None:
    (model, d, g), memory = two(), vizlog.Memory()
    probes = [vizlog.GradientHistograms(every=1), vizlog.WeightHistograms(every=2)]
    with vizlog.watch(model, [d, g], to=memory, probes=probes):
        for _ in range(4):
            step_by(d, 1.0)
            step_by(g, 1.0)
    assert [step for step, _ in memory.of("gradients/d.weight")] == [0, 1, 2, 3]
    assert [step for step, _ in memory.of("weights/d.weight")] == [0, 2]


def test_what_was_armed_for_a_number_that_has_not_come_is_forgotten() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    numbers = iter([0, 1, 2, 3, 1, 2])
    probes = [vizlog.ActivationHistograms(every=2, source="live")]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, step=lambda: next(numbers)):
        for _ in range(6):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    seen = [(step, record.count) for step, record in memory.of("activations/0") if isinstance(record, Histogram)]
    assert seen == [(0, 2), (2, 2), (2, 2)]  # of one forward each: what was armed saw one more
    assert {step for step, _ in memory.records} == {0, 2}


def test_where_numbers_jump_what_comes_due_joins_what_was_armed() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2)), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    numbers = iter([0, 10, 20])
    probes = [vizlog.WeightHistograms(every=1), vizlog.GradientHistograms(every=10)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes, step=lambda: next(numbers)):
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    for tag in ("weights/0.weight", "gradients/0.weight"):
        assert [step for step, _ in memory.of(tag)] == [0, 10, 20]


def test_a_step_of_which_nothing_is_left_writes_nothing() -> None:
    class Asks(vizlog.Probe):
        def wants(self, models: Any) -> Any:
            raise ArithmeticError

    (model, d, g), memory = two(), vizlog.Memory()
    with vizlog.watch(model, [d, g], to=memory, probes=[Asks(every=1)]):
        step_by(d, 1.0)
        step_by(g, 1.0)
    assert not memory.records


def test_a_closure_may_give_the_step_up(caplog: pytest.LogCaptureFixture) -> None:
    (model, d, g), memory = two(), vizlog.Memory()
    monitor = vizlog.watch(model, [d, g], to=memory, probes=[vizlog.GradientHistograms(every=1)])

    def closure() -> Tensor:
        monitor.cancel()
        loss = model["d"](torch.ones(1, 1)).sum()
        loss.backward()
        return loss

    d.step(closure)
    step_by(d, 1.0)
    step_by(g, 1.0)
    monitor.close()
    assert [step for step, _ in memory.of("gradients/d.weight")] == [1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
