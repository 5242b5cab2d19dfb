"""On a CUDA device: histograms equal those on the CPU, nothing waits for it, and training stays as it was."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import vizlog
from vizlog.compute.bits import BitCounts
from vizlog.compute.bits_cuda import TYPES, _kernels, can_count
from vizlog.compute.health import alive, saturated
from vizlog.compute.histogram import Uncountable, count_bits, count_each, histogram
from vizlog.compute.transfer import to_host
from vizlog.probes.activations import _reduced
from vizlog.records import Histogram
from vizlog.requests import Call

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Any operation that waits for the device raises."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def values(dtype: torch.dtype, n: int) -> Tensor:
    x = torch.randn(n) * torch.exp(torch.randn(n) * 2)
    if dtype.is_floating_point:
        x[::17], x[1::19], x[2::23], x[3::29], x[4::31] = 0.0, -0.0, float("nan"), float("inf"), -float("inf")
    elif not dtype.is_complex:
        x = x.abs().clamp(max=100)
    return x.to(dtype)


def assert_equal(device: BitCounts, host: BitCounts, *, of_kernel: bool = False) -> None:
    for field in ("tallies", "bins", "counts"):
        np.testing.assert_array_equal(getattr(device, field), getattr(host, field), err_msg=field)
    np.testing.assert_allclose(device.moments, host.moments, rtol=1e-6, atol=1e-6)
    if of_kernel:
        assert (device.linear is None) == (host.linear is None)
    if host.note:  # magnitudes may differ in their last bit
        return
    if host.linear is not None:
        assert device.linear is not None
        assert device.linear.exponent == host.linear.exponent
        np.testing.assert_array_equal(device.linear.bins, host.linear.bins)
        np.testing.assert_array_equal(device.linear.counts, host.linear.counts)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if not dtype.is_complex], ids=str)
@pytest.mark.parametrize("n", [0, 1, 10, 3000, 2_500_000])
def test_device_and_host_count_the_same_without_waiting(dtype: torch.dtype, n: int) -> None:
    tensor = values(dtype, n)
    there = tensor.cuda()
    count_bits(there)  # what is loaded or compiled at first may wait
    with no_synchronisation():
        counted = count_bits(there)
    assert_equal(to_host(counted).wait(), count_bits(tensor), of_kernel=dtype in TYPES)


def test_many_tensors_of_all_types_are_counted_without_waiting() -> None:
    tensors = [values(dtype, n) for dtype in DTYPES if not dtype.is_complex for n in (1, 77, 5000)]
    tensors += [torch.randn(70, 90).t()[::2], torch.empty(0), torch.zeros(4000), torch.full((9,), 2.5)]
    there = [tensor.cuda() for tensor in tensors]
    count_each(there)
    with no_synchronisation():
        counted = count_each(there)
    for device, tensor in zip(to_host(counted).wait(), tensors, strict=True):
        assert_equal(device, count_bits(tensor))
        record = histogram("weights/a", device)
        assert record.count == tensor.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_that_start_anywhere_and_reach_far_are_counted(dtype: torch.dtype) -> None:
    wide = (torch.exp(torch.randn(300_000) * 30) * torch.randn(300_000).sign()).to(dtype)
    tensors = [wide[offset : offset + n] for offset in range(9) for n in (3, 64, 200_001)]
    late = torch.zeros(100_000, dtype=dtype)  # what comes first says nothing of what comes
    late[90_000:] = 1e-20 if dtype != torch.float16 else 1e-6
    tensors += [late, torch.full((70_000,), float("nan"), dtype=dtype), torch.full((70_000,), 3.0, dtype=dtype)]
    for counted in (
        to_host(count_each([t.cuda() for t in tensors])).wait(),
        [to_host(count_bits(wide.cuda()[offset : offset + n])).wait() for offset in range(9) for n in (3, 64, 200_001)],
    ):
        for device, tensor in zip(counted, tensors, strict=False):
            assert_equal(device, count_bits(tensor))


def test_the_kernels_are_had_without_a_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    _kernels.cache_clear()
    assert _kernels(0) is not None


def test_dense_tensors_in_any_order_are_counted_by_the_kernels() -> None:
    images = torch.randn(3, 5, 8, 9)
    for tensor in (images.to(memory_format=torch.channels_last), images.permute(3, 0, 2, 1), torch.randn(40, 50).t()):
        assert can_count(tensor.cuda())
        assert_equal(to_host(count_bits(tensor.cuda())).wait(), count_bits(tensor), of_kernel=True)
    assert not can_count(images.cuda()[:, ::2])
    (conjugate,) = to_host([count_bits(torch.randn(50, dtype=torch.complex64).cuda().conj().imag)]).wait()
    assert conjugate.count == 50


def test_tensors_that_have_their_values_elsewhere_are_not_read_where_they_say() -> None:
    empty = torch.ones(5000, device="cuda")
    empty.untyped_storage().resize_(0)
    with pytest.raises(Uncountable, match="given up"):
        count_bits(empty)
    torch.cuda.synchronize()


def test_threads_and_streams_count_side_by_side() -> None:
    tensors = [torch.randn(50_000) * (i + 1) for i in range(32)]
    there = [tensor.cuda() for tensor in tensors]
    torch.cuda.synchronize()
    counted: dict[int, BitCounts] = {}

    def count(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = to_host([count_bits(tensor) for tensor in there[first::4]]).wait()
        counted.update(zip(range(first, 32, 4), found, strict=True))

    threads = [threading.Thread(target=count, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, tensor in enumerate(tensors):
        assert_equal(counted[i], count_bits(tensor), of_kernel=True)


def test_what_waits_does_not_break_the_recording_of_a_graph() -> None:
    pending = [to_host(count_bits(torch.randn(1000, device="cuda"))) for _ in range(3)]
    x = torch.ones(3, device="cuda")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        y = x * 2
        thread = threading.Thread(target=lambda: [part.wait() for part in pending])
        thread.start()
        thread.join()
    graph.replay()
    assert y.tolist() == [2, 2, 2]


def test_numbers_logged_on_a_stream_that_records_wait_until_it_is_done() -> None:
    memory, stream = vizlog.Memory(), torch.cuda.Stream()
    monitor = vizlog.Monitor(nn.Linear(2, 2).cuda(), [], to=memory)
    with torch.cuda.stream(stream):
        monitor.log({"loss": torch.ones((), device="cuda") * 7})
    x, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        y = x * 2
        thread = threading.Thread(target=monitor._delivery._logged.send, args=(monitor._delivery._write,))
        thread.start()
        thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert y.tolist() == [2, 2, 2]
    monitor.close()
    assert [record.value for _, record in memory.of("loss")] == [7]  # type: ignore[attr-defined]


def test_tensors_counted_one_after_the_other_keep_apart() -> None:
    tensors = [torch.randn(1000) * i for i in range(40)]
    for pending in [to_host([count_bits(t.cuda()) for t in tensors[start : start + 7]]) for start in (0, 7, 14)]:
        assert len(pending.wait()) == 7
    counted = to_host([count_bits(t.cuda()) for t in tensors]).wait()
    for device, tensor in zip(counted, tensors, strict=True):
        assert_equal(device, count_bits(tensor))


def test_what_has_landed_is_kept_without_what_came_with_it() -> None:
    first, second = to_host([torch.ones(3, device="cuda"), torch.zeros(100_000, device="cuda")]).wait()
    assert first.untyped_storage().nbytes() == first.nbytes
    assert not first.is_pinned()
    assert second.shape == (100_000,)


def test_complex_magnitudes_are_counted() -> None:
    tensor = torch.randn(5000, dtype=torch.complex64)
    counted = to_host(count_bits(tensor.cuda())).wait()
    assert counted.count == 5000
    np.testing.assert_allclose(math.sqrt(counted.squares), float(tensor.norm()), rtol=1e-5)


def test_counts_are_deterministic_and_allowed_where_that_is_asked_for() -> None:
    tensor = values(torch.float32, 1_000_000).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = to_host([count_bits(tensor), count_bits(tensor)]).wait()
    finally:
        torch.use_deterministic_algorithms(False)
    for field in ("tallies", "moments", "counts"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)


def test_the_memory_beside_a_large_tensor_is_bounded() -> None:
    tensor = torch.randn(50_000_000, device="cuda")
    count_bits(tensor)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    count_bits(tensor)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20


def test_health_figures_do_not_wait() -> None:
    output = torch.randn(8, 16, 4, 4, device="cuda").relu()
    with no_synchronisation():
        flags, stuck = alive(output, 1), saturated(output.sigmoid(), 0.0, 1.0)
    assert torch.equal(flags.cpu(), alive(output.cpu(), 1))
    assert stuck.item() >= 0


# Training


class Net(nn.Module):
    """A convolution, a norm with buffers, dropout, attention, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.mixer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.mixer(tokens).mean(1))
        return out


X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3
STEPS, EVERY = 6, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(8, 6, 50, 50), (300, 6, 7), (4, 6), (6,)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_health_figures_are_those_of_the_host(
    dtype: torch.dtype, shape: tuple[int, ...], *, channels_last: bool
) -> None:
    dim = min(1, len(shape) - 1)
    output = torch.randn(shape).sigmoid().to(dtype)
    output.select(dim, 3).zero_()
    output.select(dim, 4).mul_(output.select(dim, 4) > 0.6)
    output.select(dim, 5).fill_(float("nan"))
    for values in (output, output.nan_to_num(1.0) + 1):  # with zeros, and without any
        there = values.cuda()
        if channels_last and there.ndim == 4:
            there = there.to(memory_format=torch.channels_last)
        call = Call("a", nn.Sigmoid(), None, (), {}, there, dim)
        assert torch.equal(alive(there, dim).cpu(), alive(values, dim))
        assert saturated(there, 0.0, 1.0).item() == saturated(values, 0.0, 1.0).item()
        seen = to_host(_reduced(call, there)).wait()
        assert torch.equal(seen.alive, alive(values, dim))
        assert (int(seen.saturated), seen.could_saturate) == (saturated(values, 0.0, 1.0), values.numel())
        assert_equal(seen.counts, count_bits(values))


@dataclass
class Trained:
    memory: vizlog.Memory
    state: list[Tensor]
    weights: list[dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def warnings_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "vizlog"]
    return [record.message for record in found]


def train(way: str, *, watches: bool, **options: Any) -> Trained:
    """Trains on the device for some steps, in one of several ways; the fixed batch lies on the CPU."""
    torch.manual_seed(0)
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=way == "scaler")
    trained = Trained(vizlog.Memory(), [], [])
    monitor = None
    if watches:
        options = options or {"every": vizlog.Every(EVERY), "batch": (X[:12], Y[:12])}
        monitor = vizlog.watch(model, optimizer, to=trained.memory, **options)
    called: Any = torch.compile(model, mode="reduce-overhead") if way == "cuda graphs" else model
    scaler = torch.amp.GradScaler("cuda", enabled=way == "scaler", init_scale=2.0**40)
    autocast = {"scaler": torch.float16, "bfloat16": torch.bfloat16}.get(way)
    for step in range(STEPS):
        rows = torch.arange(16) + 8 * step % 48
        optimizer.zero_grad()
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            loss = F.cross_entropy(called(X[rows].cuda()), Y[rows].cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trained.weights.append({name: p.detach().cpu().clone() for name, p in model.named_parameters()})
    if monitor is not None:
        monitor.close()
    slots = [slot for state in optimizer.state.values() for slot in state.values()]
    trained.state = [*model.state_dict().values(), *slots, torch.cuda.get_rng_state(), torch.get_rng_state()]
    return trained


@pytest.mark.filterwarnings("ignore")  # the compiler's advice, and what it warns of itself
@pytest.mark.parametrize("way", ["plain", "scaler", "bfloat16", "cuda graphs"])
@pytest.mark.parametrize("source", ["auto", "live"])
def test_training_on_a_device_is_the_same_to_the_last_bit(
    way: str, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    if (way, source) == ("cuda graphs", "live"):
        pytest.skip("what is compiled runs eagerly where a live look is asked for, which rounds differently")
    options = {"probes": [vizlog.ActivationHistograms(source="live", every=EVERY)]} if source == "live" else {}
    alone, again = train(way, watches=False), train(way, watches=False)
    assert all(map(torch.equal, alone.state, again.state)), "the training itself is not the same each time"
    watched = train(way, watches=True, **options)
    assert all(map(torch.equal, alone.state, watched.state))
    assert not warnings_of_ours(caplog)
    assert {step for step, _ in watched.memory.records} >= set(range(0, STEPS, EVERY))


def test_what_is_logged_on_a_device_equals_numpy() -> None:
    trained = train("plain", watches=True)
    for step in range(0, STEPS, EVERY):
        for name, weight in trained.weights[step].items():
            (record,) = (r for s, r in trained.memory.of(f"weights/{name}") if s == step)
            assert isinstance(record, Histogram)
            values = weight.numpy().ravel()
            expected = np.histogram(values, record.edges)[0]
            # An edge is moved onto one of 4096 bins: a value or two beside it may change sides.
            assert np.abs(np.asarray(record.counts) - expected).sum() <= max(4, 0.02 * len(values))
            stated = [record.min, record.max, record.mean, record.std]
            found = [values.min(), values.max(), values.mean(dtype=np.float64), values.std(dtype=np.float64)]
            np.testing.assert_allclose(stated, found, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch_on", ["cuda", "cpu", None])
def test_numbers_of_a_due_step_never_wait_for_the_device(
    batch_on: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Net().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = X[:16].cuda(), Y[:16].cuda()
    memory = vizlog.Memory()
    source = "batch" if batch_on else "live"
    probes = [
        vizlog.WeightHistograms(every=2),
        vizlog.GradientHistograms(every=2),
        vizlog.UpdateRatios(every=2),
        vizlog.ActivationHistograms(every=2, source=source),
    ]
    batch = (x[:8].to(batch_on), y[:8].to(batch_on)) if batch_on else None
    monitor = vizlog.watch(model, optimizer, to=memory, probes=probes, batch=batch)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step()  # what is loaded or compiled at first may wait
    monitor.flush()
    with no_synchronisation():
        for _ in range(4):
            step()
    monitor.close()
    assert not warnings_of_ours(caplog)
    for tag in ("weights/head.weight", "gradients/head.weight", "activations/head", "health/update_ratio"):
        assert [step for step, _ in memory.of(tag)] == [0, 2, 4, 6], tag


def test_a_model_that_moves_to_the_device_goes_on_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    memory = vizlog.Memory()
    monitor = vizlog.watch(model, optimizer, to=memory, batch=(X[:8], Y[:8]), every=vizlog.Every(1))
    for device in ("cpu", "cuda", "cuda"):
        model.to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(X[:16].to(device)), Y[:16].to(device)).backward()
        optimizer.step()
    monitor.close()
    assert [step for step, _ in memory.of("weights/head.weight")] == [0, 1, 2]
    assert [step for step, _ in memory.of("gradients/head.weight")] == [0, 1, 2]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_under_a_default_device_everything_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    torch.set_default_device("cuda")
    try:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        monitor = vizlog.watch(model, optimizer, to=memory, batch=(X[:8], Y[:8]), every=vizlog.Every(1))
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(X[:16].cuda()), Y[:16].cuda()).backward()
            optimizer.step()
        monitor.close()
    finally:
        torch.set_default_device(None)
    assert not warnings_of_ours(caplog)
    assert {record.tag.partition("/")[0] for _, record in memory.records} >= {
        *(
            "weights",
            "gradients",
            "activations",
            "filters",
            "feature_maps",
            "saliency",
            "embeddings",
            "attention",
            "health",
        ),
    }


@pytest.mark.parametrize("way", ["the step is outside", "the step is inside", "replays are steps"])
def test_a_cuda_graph_holds_nothing_of_ours(way: str, caplog: pytest.LogCaptureFixture) -> None:
    inside = way != "the step is outside"

    def run(*, watches: bool) -> tuple[list[Tensor], vizlog.Memory]:
        torch.manual_seed(0)
        model = Net().cuda().eval()  # dropout in a graph draws by another rule
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
        x, y, memory = X[:16].cuda(), Y[:16].cuda(), vizlog.Memory()
        probes = [vizlog.GradientHistograms(every=1), vizlog.ActivationHistograms(every=1, source="live")]
        monitor = None
        if watches and way == "replays are steps":
            monitor = vizlog.Monitor(model, probes[:1], to=memory)
        elif watches:
            monitor = vizlog.watch(model, optimizer, to=memory, probes=probes)

        def train() -> None:
            F.cross_entropy(model(x), y).backward()
            if inside:
                optimizer.step()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                train()
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train()
        for _ in range(3):
            with monitor.step() if monitor is not None and way == "replays are steps" else nullcontext():
                graph.replay()
            if not inside:
                optimizer.step()
        if monitor is not None:
            monitor.close()
        return [p.detach().clone() for p in model.parameters()], memory

    alone, (watched, memory) = run(watches=False)[0], run(watches=True)
    assert all(map(torch.equal, alone, watched))
    assert len(memory.of("gradients/head.weight")) == 3
    said = {
        "the step is outside": ["captured nothing"],  # of what is replayed no layer is seen
        "the step is inside": ["CUDA graph"],
        "replays are steps": [],
    }
    assert [any(word in line for word in said[way]) for line in warnings_of_ours(caplog)] == [True] * len(said[way])


# Trainers


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")  # the trainer's own advice
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_lightning_on_a_device(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    from vizlog.callbacks.lightning import VizLog

    def fit(*callbacks: Any) -> list[Tensor]:
        torch.manual_seed(0)
        module, data = Lit(), TensorDataset(X, Y)
        trainer = Trainer(
            accelerator="gpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=2,
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(data, 16, shuffle=True), DataLoader(data, 16))
        return [tensor.cpu() for tensor in module.state_dict().values()]

    memory = vizlog.Memory()
    alone, watched = fit(), fit(VizLog(to=memory, every=vizlog.Every(3)))
    assert all(map(torch.equal, alone, watched))
    assert not warnings_of_ours(caplog)
    assert [step for step, _ in memory.of("gradients/net.head.weight")] == [0, 3, 6]
    assert {record.tag.partition("/")[0] for _, record in memory.records} >= {"weights", "activations", "embeddings"}


@pytest.mark.filterwarnings("ignore")  # the trainer's own advice
def test_the_hugging_face_trainer_on_a_device(caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    from vizlog.callbacks.huggingface import VizLog

    config = transformers.GPT2Config(
        n_embd=16, n_head=2, n_layer=2, vocab_size=30, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(0, 30, (64, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]

    def train(*callbacks: Any) -> list[Tensor]:
        transformers.set_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            "out", max_steps=6, per_device_train_batch_size=8, bf16=True, report_to="none", disable_tqdm=True
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[*callbacks])
        trainer.train()
        assert next(model.parameters()).is_cuda
        return [tensor.cpu() for tensor in model.state_dict().values()]

    memory = vizlog.Memory()
    alone, watched = train(), train(VizLog(to=memory, every=vizlog.Every(2)))
    assert all(map(torch.equal, alone, watched))
    assert not warnings_of_ours(caplog)
    assert [step for step, _ in memory.of("gradients/transformer.h.0.mlp.c_fc.weight")] == [1, 2, 4, 6]
