"""VizLog under a real Trainer: what it leaves alone, what it looks at, where it writes."""

from __future__ import annotations

import copy
import csv
import dataclasses
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard_run import values
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate
from wandb_file import WrittenRun, read_run

import vizlog
from vizlog.callbacks.lightning import VizLog, _model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:(?s).*(JsonargparseDep|was deprecated in v4)"),  # inside LightningCLI
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # inside dynamo
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]

STEPS = 4  # an epoch of `data`


class Classifier(LightningModule):
    """BatchNorm, dropout, a metric and a log inside forward: all that a pass of ours could disturb."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(4 * 36, 10)
        self.mean = torchmetrics.MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x + torch.zeros(1)))  # which is of the default type, as the Trainer sets it
        self.mean.update(logits.detach().float())
        if self._trainer is not None and self.training:
            self.log("inside", logits.detach().float().mean())
        return logits

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Silent(Classifier):
    """Logs nothing: dynamo cannot trace Lightning's `log`."""

    def log(self, *_: Any, **__: Any) -> None: ...


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.clip_gradients(optimizer, gradient_clip_val=0.1)
        optimizer.step()


class Gan(LightningModule):
    def __init__(self, generator_every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator_every = generator_every
        self.generator, self.critic = nn.Linear(8, 64), nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise).sigmoid()

    def training_step(self, batch: Any, index: int) -> None:
        real = batch[0].flatten(1)
        of_critic, of_generator = self.optimizers()
        fake = self(torch.randn(len(real), 8))
        self.toggle_optimizer(of_critic)
        of_critic.zero_grad()
        self.manual_backward(self.critic(fake.detach()).mean() - self.critic(real).mean())
        of_critic.step()
        self.untoggle_optimizer(of_critic)
        if (index + 1) % self.generator_every == 0:
            self.toggle_optimizer(of_generator)
            of_generator.zero_grad()
            self.manual_backward(-self.critic(fake).mean())
            of_generator.step()
            self.untoggle_optimizer(of_generator)

    def validation_step(self, batch: Any, index: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.critic, self.generator)]


class Augmenting(Classifier):
    """Its hooks shift and double each batch, and add noise in training: examples of ours must not get that."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return (x + torch.rand_like(x) if self.trainer.training else x * 2, y)


class Headless(LightningModule):
    """No forward: what is trained is called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[Any]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pairs = list(zip(images, labels, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pairs)


class Named(Dataset[Any]):
    """Examples go by name, not by number; a sampler of names goes with it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.named = {f"digit {n}": pair for n, pair in enumerate(zip(images, labels, strict=True))}

    def __len__(self) -> int:
        return len(self.named)

    def __getitem__(self, name: str) -> Any:
        return self.named[name]


class AsMapping(Dataset[Any]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return {"image": self.images[index], "label": self.labels[index], "id": f"digit {index}"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture
def pairs(digits: tuple[Tensor, Tensor]) -> TensorDataset:
    return TensorDataset(digits[0][:64], digits[1][:64])


@pytest.fixture
def held_out(digits: tuple[Tensor, Tensor]) -> TensorDataset:
    return TensorDataset(digits[0][100:400], digits[1][100:400])


@pytest.fixture
def data(pairs: TensorDataset, held_out: TensorDataset) -> dict[str, Any]:
    """Loaders: four training batches an epoch, and one of validation."""
    return {
        "train_dataloaders": DataLoader(pairs, batch_size=16, shuffle=True),
        "val_dataloaders": DataLoader(held_out, batch_size=300, collate_fn=drawing),
    }


def histograms(every: int = 1) -> list[vizlog.Probe]:
    return [
        vizlog.WeightHistograms(every=every),
        vizlog.GradientHistograms(every=every),
        vizlog.UpdateRatios(every=every),
        vizlog.ActivationHistograms(every=every),
    ]


def drawing(examples: list[Any]) -> Any:
    """Collates as usual, and draws random numbers as an augmentation would."""
    torch.rand(1), np.random.rand()  # noqa: NPY002
    return default_collate(examples)


def probes(every: int = 1) -> list[vizlog.Probe]:
    return [
        *histograms(every),
        vizlog.SaliencyMaps(methods=["gradient"], every=every),
        vizlog.Embeddings(methods=["pca"], every=every),
    ]


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})


def fit(module: LightningModule, data: dict[str, Any], *callbacks: Any, **options: Any) -> Trainer:
    made = trainer(*callbacks, **options)
    made.fit(module, **data)
    return made


def steps(memory: vizlog.Memory, tag: str) -> list[int]:
    return [step for step, record in memory.records if record.tag == tag]


def first(memory: vizlog.Memory, tag: str) -> Any:
    return memory.of(tag)[0][1]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we warned of."""
    return [r.getMessage() for r in caplog.records if r.name == "vizlog" and r.levelno >= logging.WARNING]


def kinds(memory: vizlog.Memory) -> set[str]:
    return {record.tag.split("/")[0] for _, record in memory.records}


# Training is left alone -----------------------------------------------------------------------------------------------


def inner_compiled() -> LightningModule:
    module = Classifier()
    module.body = torch.compile(module.body, backend="eager")
    return module


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "automatic": (Classifier, {"max_epochs": 2}),
    "manual": (Manual, {}),
    "two optimizers": (Gan, {"probes": histograms()}),
    "accumulation": (Classifier, {"accumulate_grad_batches": 3, "max_epochs": 2}),
    "clipping": (Classifier, {"gradient_clip_val": 0.05}),
    "bf16-mixed": (Classifier, {"precision": "bf16-mixed"}),
    "bf16-true": (Classifier, {"precision": "bf16-true"}),
    "64-true": (Classifier, {"precision": "64-true"}),
    "compiled module": (lambda: torch.compile(Silent(), backend="eager"), {}),
    "compiled part": (inner_compiled, {}),
    "moving average": (Classifier, {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]}),
    "validation in between": (Classifier, {"val_check_interval": 2}),
    "no sanity check": (Classifier, {"num_sanity_val_steps": 0}),
    "limits": (Classifier, {"limit_train_batches": 2, "limit_val_batches": 1}),
    "no validation": (Classifier, {"limit_val_batches": 0}),
    "augmentation in a hook": (Augmenting, {}),
    "anomaly detection": (Classifier, {"detect_anomaly": True}),
}


@pytest.mark.filterwarnings("ignore:You have turned on .*detect_anomaly", "ignore:.*anomaly_mode:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical(case: str, data: dict[str, Any]) -> None:
    make, options = CASES[case]
    rest = dict(options)
    more, looks = rest.pop("callbacks", list), rest.pop("probes", None)

    def run(*ours: Any) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 -- what a person's own training code draws from
        made = make()
        module = getattr(made, "_orig_mod", made)
        done = fit(made, data, *more(), *ours, **rest)
        return module.state_dict(), torch.get_rng_state(), done.logged_metrics

    memory = vizlog.Memory()
    plain, random_state, metrics = run()
    looked_at, random_state_2, metrics_2 = run(VizLog(looks or probes(), to=memory))

    assert {"weights", "gradients", "updates", "activations"} <= kinds(memory)
    assert plain.keys() == looked_at.keys()
    assert all(torch.equal(plain[name], looked_at[name]) for name in plain)
    assert torch.equal(random_state, random_state_2)
    assert metrics.keys() == metrics_2.keys()
    assert all(torch.equal(metrics[name], metrics_2[name]) for name in metrics)


def test_names_are_the_same_where_parts_are_compiled(data: dict[str, Any]) -> None:
    tags = []
    for make in (Silent, inner_compiled, lambda: torch.compile(Silent(), backend="eager")):
        memory = vizlog.Memory()
        fit(make(), data, VizLog(probes(), to=memory))
        tags.append({record.tag for _, record in memory.records})
    assert tags[0] == tags[1] == tags[2]


# Steps and gradients --------------------------------------------------------------------------------------------------


def test_steps_are_those_of_the_loggers(data: dict[str, Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    memory = vizlog.Memory()
    fit(Classifier(), data, VizLog(probes(), to=memory), logger=logger, accumulate_grad_batches=3, max_epochs=2)
    # Three batches and a last one alone: two steps an epoch.
    with Path(logger.experiment.metrics_file_path).open() as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
    assert steps(memory, "gradients/head.weight") == logged == [0, 1, 2, 3]


def test_two_optimizers_make_one_step_of_a_batch(data: dict[str, Any]) -> None:
    memory = vizlog.Memory()
    fit(Gan(), data, VizLog(histograms(), to=memory))
    for tag in ("gradients/generator.weight", "gradients/critic.0.weight", "weights/critic.2.bias"):
        assert steps(memory, tag) == [0, 1, 2, 3]


def test_an_optimizer_that_steps_seldom_is_waited_for(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    fit(Gan(generator_every=3), data, VizLog([vizlog.GradientHistograms(every=4)], to=memory), max_epochs=2)
    assert steps(memory, "gradients/generator.weight") == [0, 4]
    assert "had not stepped" not in caplog.text


def test_gradients_are_those_that_the_optimizer_uses(data: dict[str, Any]) -> None:
    """Clipped; the norm before clipping is a number of its own."""
    norms, clipped = [], []

    class Spy(Classifier):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).double().norm().item())

        def optimizer_step(self, epoch: int, index: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)
            clipped.append(self.head.weight.grad.clone())

    memory = vizlog.Memory()
    fit(Spy(), data, VizLog(probes(), to=memory), gradient_clip_val=0.05)
    found = [record.value for _, record in memory.of("health/gradient_norm_before_clipping")]
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    assert min(norms) > 0.05
    for (_, record), gradient in zip(memory.of("gradients/head.weight"), clipped, strict=True):
        assert record.max == pytest.approx(gradient.max().item(), rel=1e-6)


def test_a_norm_before_clipping_is_not_claimed_where_the_module_clips_by_itself(data: dict[str, Any]) -> None:
    memory = vizlog.Memory()
    fit(Manual(), data, VizLog([vizlog.GradientHistograms(every=1)], to=memory))
    assert memory.of("health/gradient_norm_worst")
    assert not memory.of("health/gradient_norm_before_clipping")


@pytest.mark.parametrize("fused", [False, True])
def test_a_norm_before_clipping_is_not_claimed_where_the_optimizer_unscales_inside(
    data: dict[str, Any], *, fused: bool
) -> None:
    class Fused(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, fused=fused)

    memory, scaled = vizlog.Memory(), MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    fit(Fused(), data, VizLog([vizlog.GradientHistograms(every=1)], to=memory), plugins=[scaled])
    assert memory.of("health/gradient_norm_worst")
    assert bool(memory.of("health/gradient_norm_before_clipping")) is not fused


def test_a_norm_that_cannot_be_measured_is_said_once_and_costs_nothing_else(
    data: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: Any, **__: Any) -> None:
        asked.append(True)
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    memory = vizlog.Memory()
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", refuse)
    done = fit(Classifier(), data, VizLog([vizlog.GradientHistograms(every=1)], to=memory))
    assert done.state.finished
    assert steps(memory, "gradients/head.weight") == [0, 1, 2, 3]
    assert len(asked) == 1
    (message,) = said(caplog)
    assert "could not measure the gradient norm: OutOfMemoryError: tried to allocate 2 GiB" in message


def test_a_rate_that_starts_at_zero_loses_no_step(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    class Warmup(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    memory = vizlog.Memory()
    fit(Warmup(), data, VizLog(probes(), to=memory))
    assert steps(memory, "gradients/head.weight") == [0, 1, 2, 3]
    assert said(caplog) == []


def test_schedules_can_go_by_epochs(data: dict[str, Any]) -> None:
    memory = vizlog.Memory()
    fit(Classifier(), data, VizLog([vizlog.WeightHistograms(every=vizlog.EveryEpoch(2))], to=memory), max_epochs=4)
    assert steps(memory, "weights/head.weight") == [0, 2 * STEPS]


def test_an_optimizer_that_calls_back_often(data: dict[str, Any]) -> None:
    class Newton(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    memory = vizlog.Memory()
    fit(Newton(), data, VizLog(probes(), to=memory))
    assert steps(memory, "gradients/head.weight") == [0, 1, 2, 3]
    assert steps(memory, "health/gradient_norm_before_clipping") == [0, 1, 2, 3]  # once, of the first call


def test_sparse_gradients(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    class Sparse(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(17, 10, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.table((x.flatten(1) * 16).long()).mean(1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SparseAdam(self.table.parameters(), lr=0.1)

    memory = vizlog.Memory()
    fit(Sparse(), data, VizLog([vizlog.GradientHistograms(every=1)], to=memory))
    assert len(memory.of("health/gradient_norm_before_clipping")) == STEPS
    assert len(memory.of("gradients/table.weight")) == STEPS


# What pictures are made of --------------------------------------------------------------------------------------------


def shown(memory: vizlog.Memory) -> set[int]:
    """At which steps examples were looked at."""
    return {step for step, record in memory.records if record.tag.startswith("saliency/")}


@pytest.mark.parametrize("sanity", [0, 2])
def test_pictures_of_held_out_examples_are_there_from_the_first_step(
    sanity: int, data: dict[str, Any], held_out: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    memory = vizlog.Memory()
    callback = VizLog(probes(every=2), to=memory)
    fit(Classifier(), data, callback, num_sanity_val_steps=sanity)
    assert shown(memory) == {0, 2}
    assert said(caplog) == []
    embedding = first(memory, "embeddings/head.input")
    assert len(embedding.vectors) == 256
    # Spread over all 300, in turn over the classes.
    assert embedding.labels[:10].tolist() == list(range(10))
    assert embedding.labels.tolist() != held_out.tensors[1][:256].tolist()


def test_validation_data_of_a_later_epoch_is_found(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    fit(Classifier(), data, VizLog(probes(), to=memory), num_sanity_val_steps=0, check_val_every_n_epoch=5)
    assert 0 in shown(memory)
    assert len(first(memory, "embeddings/head.input").vectors) == 256
    assert said(caplog) == []


def test_without_validation_data_training_examples_are_shown_and_it_is_said_once(
    data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    memory = vizlog.Memory()
    fit(Classifier(), {"train_dataloaders": data["train_dataloaders"]}, VizLog(probes(), to=memory))
    assert 0 in shown(memory)
    assert len(first(memory, "embeddings/head.input").vectors) == 64
    assert said(caplog) == [
        "vizlog: there is no validation data, so pictures are made of training examples; or give VizLog(batch=…)"
    ]


@pytest.mark.parametrize("sanity", [0, 2])
def test_iterable_validation_data_passes_in_the_sanity_check_or_training_examples_are_shown(
    sanity: int, data: dict[str, Any], held_out: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    loader = DataLoader(Stream(*held_out.tensors), batch_size=40)
    memory = vizlog.Memory()
    data = {**data, "val_dataloaders": loader}
    fit(Classifier(), data, VizLog(probes(), to=memory), num_sanity_val_steps=sanity, limit_val_batches=2)
    assert shown(memory) == {0, 1, 2, 3}
    points = first(memory, "embeddings/head.input")
    assert len(points.vectors) == (40 if sanity else 64)
    assert not sanity or sorted(points.labels) == sorted(held_out.tensors[1][:40])  # of its first batch
    reasons = ["the validation data cannot be asked by index (Stream is iterable)"]
    assert [message.split(": ")[1].split(", so")[0] for message in said(caplog)] == ([] if sanity else reasons)


def test_nothing_but_a_stream(pairs: TensorDataset, caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    loader = DataLoader(Stream(*pairs.tensors), batch_size=16)
    fit(Classifier(), {"train_dataloaders": loader}, VizLog(probes(), to=memory))
    assert shown(memory) == {0, 1, 2, 3}
    assert caplog.text.count("training examples") == 1


def test_batches_that_pass_have_been_through_the_hooks_once(data: dict[str, Any], held_out: TensorDataset) -> None:
    stream = {**data, "val_dataloaders": DataLoader(Stream(*held_out.tensors), batch_size=40)}
    for loaders in (data, stream):
        memory = vizlog.Memory()
        callback = VizLog([vizlog.WeightHistograms(), vizlog.SaliencyMaps(methods=["gradient"])], to=memory)
        seen: list[Any] = []
        callback.on_train_end = lambda trainer, module, c=callback, s=seen: s.extend([c.monitor._batch.inputs, c._seen])
        fit(Augmenting(), loaders, callback, limit_val_batches=1)
        assert seen[0][0].max() == 4  # of digits in [0, 1], shifted and doubled once
        assert seen[1] is None  # no batch is held longer than needed


def test_examples_have_their_numbers_in_the_dataset(data: dict[str, Any], held_out: TensorDataset) -> None:
    memory, module = vizlog.Memory(), Classifier()
    mine = torch.arange(len(held_out))  # a label of one's own for each example of the dataset
    looks = [vizlog.Embeddings(methods=["pca"], label=mine), vizlog.SaliencyMaps(methods=["gradient"])]
    fit(module, data, VizLog(looks, to=memory), max_steps=1)
    points, maps = first(memory, "embeddings/head.input"), first(memory, "saliency/gradient")
    expected = set(np.linspace(0, len(held_out) - 1, 256).round().astype(int).tolist())
    assert set(points.ids.tolist()) == expected
    features = module.eval().body(held_out.tensors[0][points.ids]).detach()
    np.testing.assert_allclose(points.vectors, features.numpy(), atol=1e-5)
    assert [int(points.class_names[label]) for label in points.labels] == points.ids.tolist()
    labels = held_out.tensors[1]
    assert maps.titles == [f"example {number}: class {int(labels[number])}" for number in points.ids[:8]]


def test_keys_that_are_no_numbers(data: dict[str, Any], held_out: TensorDataset) -> None:
    named = Named(*held_out.tensors)
    loader = DataLoader(named, batch_size=50, sampler=list(named.named))
    memory = vizlog.Memory()
    fit(Classifier(), {**data, "val_dataloaders": loader}, VizLog(probes(), to=memory))
    assert len(first(memory, "embeddings/head.input").vectors) == 50


def test_a_dataset_of_batches(data: dict[str, Any], held_out: TensorDataset) -> None:
    batches = [(x, y) for x, y in DataLoader(held_out, batch_size=20)]
    loader = DataLoader(batches, batch_size=None)
    memory = vizlog.Memory()
    fit(Classifier(), {**data, "val_dataloaders": loader}, VizLog(probes(), to=memory))
    assert len(first(memory, "embeddings/head.input").vectors) == 20


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("nest", [lambda a, b: [a, b], lambda a, b: CombinedLoader({"a": a, "b": b}, "sequential")])
def test_of_several_validation_loaders_the_first_is_shown(
    nest: Callable[[Any, Any], Any], sanity: int, data: dict[str, Any], pairs: TensorDataset, held_out: TensorDataset
) -> None:
    loaders = nest(DataLoader(held_out, batch_size=100), DataLoader(pairs, batch_size=100))
    memory = vizlog.Memory()
    callback = VizLog([vizlog.Embeddings(methods=["pca"])], to=memory)
    fit(Classifier(), {**data, "val_dataloaders": loaders}, callback, num_sanity_val_steps=sanity)
    assert len(first(memory, "embeddings/head.input").vectors) == 256


def test_several_training_loaders(pairs: TensorDataset) -> None:
    class Both(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch["a"], index) + super().training_step(batch["b"], index)

    loaders = {"a": DataLoader(pairs, batch_size=16), "b": DataLoader(pairs, batch_size=32)}
    memory = vizlog.Memory()
    fit(Both(), {"train_dataloaders": CombinedLoader(loaders, "max_size_cycle")}, VizLog(probes(), to=memory))
    assert shown(memory) == {0, 1, 2, 3}


class TakesName(Classifier):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)

    def training_step(self, batch: Any, index: int) -> Any:
        return F.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch["image"])


class NamesItOtherwise(TakesName):
    def forward(self, x: Tensor) -> Tensor:
        return Classifier.forward(self, x)


class TakesMapping(TakesName):
    def forward(self, batch: Any) -> Tensor:
        return Classifier.forward(self, batch["image"])

    def training_step(self, batch: Any, index: int) -> Any:
        return F.cross_entropy(self(batch), batch["label"])

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch)


class TakesAll(TakesMapping):
    def forward(self, **batch: Any) -> Tensor:
        return Classifier.forward(self, batch["image"])

    def training_step(self, batch: Any, index: int) -> Any:
        return F.cross_entropy(self(**batch), batch["label"])

    def validation_step(self, batch: Any, index: int) -> None:
        self(**batch)


@pytest.mark.parametrize("kind", [TakesName, NamesItOtherwise, TakesMapping, TakesAll])
def test_batches_that_are_mappings(kind: Any, pairs: TensorDataset, caplog: pytest.LogCaptureFixture) -> None:
    loader = DataLoader(AsMapping(*pairs.tensors), batch_size=16)
    memory = vizlog.Memory()
    fit(kind(), {"train_dataloaders": loader, "val_dataloaders": loader}, VizLog(probes(), to=memory))
    assert shown(memory) == {0, 1, 2, 3}
    points = first(memory, "embeddings/head.input")
    assert points.labels.tolist() == pairs.tensors[1][points.ids].tolist()
    assert said(caplog) == []


class TakesPair(Classifier):
    def forward(self, batch: Any) -> Tensor:
        x, _ = batch
        return Classifier.forward(self, x)

    def training_step(self, batch: Any, index: int) -> Any:
        return F.cross_entropy(self(batch), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch)


class CallsImagesBatch(Classifier):
    def forward(self, batch: Tensor) -> Tensor:
        return Classifier.forward(self, batch)


@pytest.mark.parametrize("kind", [TakesPair, CallsImagesBatch])
def test_a_forward_that_takes_the_batch(
    kind: Any, data: dict[str, Any], held_out: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    memory, module = vizlog.Memory(), kind()
    fit(module, data, VizLog([vizlog.Embeddings(methods=["pca"]), vizlog.SaliencyMaps()], to=memory), max_steps=1)
    points, maps = first(memory, "embeddings/head.input"), first(memory, "saliency/gradient")
    assert points.labels.tolist() == held_out.tensors[1][points.ids].tolist()
    features = module.eval().body(held_out.tensors[0][points.ids]).detach()
    np.testing.assert_allclose(points.vectors, features.numpy(), atol=1e-5)
    assert len(maps.values) == 8
    assert said(caplog) == []


@dataclasses.dataclass
class Sample:
    image: Tensor
    label: Tensor
    names: list[str]


def test_batches_that_are_dataclasses(pairs: TensorDataset, caplog: pytest.LogCaptureFixture) -> None:
    class TakesParts(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return F.cross_entropy(self(batch.image), batch.label)

        def validation_step(self, batch: Any, index: int) -> None:
            self(batch.image)

    def collate(examples: list[Any]) -> Sample:
        return Sample(*default_collate(examples), names=["a"] * len(examples))

    loader = DataLoader(pairs, batch_size=16, collate_fn=collate)
    memory = vizlog.Memory()
    fit(TakesParts(), {"train_dataloaders": loader, "val_dataloaders": loader}, VizLog(probes(), to=memory))
    points = first(memory, "embeddings/head.input")
    assert points.labels.tolist() == pairs.tensors[1][points.ids].tolist()
    assert said(caplog) == []


def test_two_inputs_and_a_target(digits: tuple[Tensor, Tensor]) -> None:
    class Pair(Classifier):
        def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(a - b)

        def training_step(self, batch: Any, index: int) -> Any:
            return F.cross_entropy(self(batch[0], batch[1]), batch[2])

    images, labels = digits[0][:64], digits[1][:64]
    loader = DataLoader(TensorDataset(images, images.flip(0), labels), batch_size=16)
    memory = vizlog.Memory()
    fit(Pair(), {"train_dataloaders": loader}, VizLog(probes(), to=memory))
    assert first(memory, "embeddings/head.input").labels.tolist() == sorted_by_turn(labels)


def sorted_by_turn(labels: Tensor) -> list[int]:
    """Class 0, 1, 2 …, 0, 1, 2 …: the order of a fixed batch."""
    counts: dict[int, int] = {}
    order = []
    for label in labels.tolist():
        counts[label] = counts.get(label, -1) + 1
        order.append((counts[label], label))
    return [label for _, label in sorted(order)]


def test_a_module_without_forward(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    fit(Headless(), data, VizLog(probes(), to=memory))
    assert shown(memory) == {0, 1, 2, 3}
    assert memory.of("activations/net.1")
    assert said(caplog) == []


def test_what_a_module_without_forward_is_thought_to_call_its_model_with_is_said(
    data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(1, 1, 1)

        def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
            out: Tensor = self.net(noisy) * time[:, None, None, None]
            return out

    class Diffuses(Headless):
        def __init__(self) -> None:
            super().__init__()
            self.net = Denoiser()  # type: ignore[assignment]

        def training_step(self, batch: Any, index: int) -> Tensor:
            return (self.net(batch[0], torch.rand(len(batch[0]))) ** 2).mean()

        def validation_step(self, batch: Any, index: int) -> None:
            pass

    with caplog.at_level("INFO", "vizlog"):
        fit(Diffuses(), data, VizLog(to=vizlog.Memory()))
    assert "vizlog calls Denoiser with (float32 (" in caplog.text
    assert "since Diffuses has no forward of its own; VizLog(batch=…)" in caplog.text


def test_a_forward_of_ones_own_is_what_examples_go_through(data: dict[str, Any]) -> None:
    class Squashes(Headless):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.net(x))

    memory = vizlog.Memory()
    fit(Squashes(), data, VizLog([vizlog.ActivationHistograms()], to=memory))
    assert memory.of("activations/tanh")


def test_a_module_without_forward_whose_data_are_mappings(pairs: TensorDataset) -> None:
    class Net(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)

    class Mapped(Headless):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(*self.net)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step((batch["image"], batch["label"]), index)

    memory = vizlog.Memory()
    loader = DataLoader(AsMapping(*pairs.tensors), batch_size=16)
    fit(Mapped(), {"train_dataloaders": loader}, VizLog([vizlog.SaliencyMaps(methods=["gradient"])], to=memory))
    assert shown(memory) == {0, 3}


def test_an_inferred_batch_that_does_not_fit_is_said_once(
    digits: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step((batch[0].unflatten(1, (1, 8, 8)), batch[1]), index)

    loader = DataLoader(TensorDataset(digits[0][:64].flatten(1), digits[1][:64]), batch_size=16)
    memory = vizlog.Memory()
    fit(Odd(), {"train_dataloaders": loader}, VizLog(to=memory, every=2))
    assert caplog.text.count("goes on without pictures of examples") == 1
    assert "float32 (2, 64)" in caplog.text
    assert "FixedBatch(forward=" in caplog.text
    assert "; or give VizLog(batch=…)" in caplog.text
    assert steps(memory, "weights/head.weight") == [0, 2]


def packed(examples: list[Any]) -> Any:
    """As many targets as tokens, not as examples."""
    return torch.zeros(len(examples), 3), torch.arange(5)


@pytest.mark.parametrize("collate", [default_collate, packed])
def test_data_that_is_no_batch_of_tensors_is_said(
    collate: Callable[[list[Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Words(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return self.head.weight.sum()

    memory = vizlog.Memory()
    loader = DataLoader(["a", "b", "c"], batch_size=2, collate_fn=collate)
    fit(Words(), {"train_dataloaders": loader}, VizLog(to=memory))
    assert "vizlog makes no pictures of examples" in caplog.text
    assert memory.of("weights/head.weight")


def test_a_function_that_makes_the_batch_may_draw_and_run_the_model(data: dict[str, Any]) -> None:
    def run(ours: Callable[[LightningModule], list[Any]] = lambda _: []) -> dict[str, Tensor]:
        torch.manual_seed(1)
        module = Classifier()
        fit(module, data, *ours(module))
        return {**module.state_dict(), "random state": torch.get_rng_state()}

    def watched(module: LightningModule) -> list[Any]:
        def make() -> Any:
            images = torch.rand(20, 1, 8, 8)
            return images, module(images).argmax(1)  # in training mode, where BatchNorm keeps a mean

        return [VizLog([vizlog.Embeddings(methods=["pca"])], to=memory, batch=make)]

    memory = vizlog.Memory()
    alone, looked_at = run(), run(watched)
    assert len(first(memory, "embeddings/head.input").vectors) == 20
    assert all(torch.equal(value, looked_at[name]) for name, value in alone.items())


def test_a_given_batch_is_run_in_the_trainers_precision(data: dict[str, Any], held_out: TensorDataset) -> None:
    for precision in ("bf16-true", "64-true", "bf16-mixed"):
        memory = vizlog.Memory()
        batch = vizlog.FixedBatch(held_out.tensors[0][:20], held_out.tensors[1][:20])
        fit(Classifier(), data, VizLog(probes(), to=memory, batch=batch), precision=precision)
        assert len(first(memory, "embeddings/head.input").vectors) == 20
        assert batch.inputs.dtype == torch.float32


# What does not fit is said at once ------------------------------------------------------------------------------------


def test_wrong_arguments_raise_before_training(data: dict[str, Any], held_out: TensorDataset) -> None:
    with pytest.raises(ValueError, match="got n=0"):
        VizLog(every=0)
    with pytest.raises(TypeError, match="every"):
        VizLog(every="often")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="each of probes= its own every="):
        VizLog(probes(), every=5)
    for options, message in (
        ({"to": 3.14}, "to= takes"),
        ({"budget": 5}, "budget= takes"),
        ({"every": "a"}, "every= takes"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            VizLog(**options)  # type: ignore[arg-type]
    images, labels = held_out.tensors
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"probes": [nn.ReLU()]}, "takes a list of probes"),
        ({"probes": vizlog.WeightHistograms()}, "takes a list of probes"),
        ({"probes": [vizlog.WeightHistograms("haed.*")]}, "'haed.*'"),
        ({"batch": (images.flatten(1), labels)}, "could not be run on the fixed batch"),
        ({"batch": "validation"}, "batch= takes"),
        ({"to": 3}, "to= takes"),
        ({"budget": 2.0}, "budget="),
        ({"probes": probes(), "every": 5}, "every="),
    ]
    for options, message in wrong:
        module = Classifier()
        before = copy.deepcopy(module.state_dict())
        with pytest.raises((TypeError, ValueError), match=message.replace("*", r"\*")):
            fit(module, data, VizLog(**{"to": vizlog.Memory(), **options}), num_sanity_val_steps=0)
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items()), message


class Failing(vizlog.Probe):
    def measure(self, context: Any) -> Any:
        raise RuntimeError("no luck")


def test_a_probe_that_fails_does_not_stop_training(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    memory = vizlog.Memory()
    done = fit(Classifier(), data, VizLog([Failing(every=1), *probes()], to=memory))
    assert done.state.finished
    assert steps(memory, "weights/head.weight") == [0, 1, 2, 3]
    assert caplog.text.count("Failing failed") == 1


def test_a_module_without_optimizers(data: dict[str, Any]) -> None:
    class Fixed(Classifier):
        def configure_optimizers(self) -> None:
            return None

    memory = vizlog.Memory()
    with pytest.warns(UserWarning, match="no optimizer"):
        fit(Fixed(), data, VizLog(to=memory, every=2))
    assert steps(memory, "weights/head.weight") == [0, 2]


def test_steps_without_a_loss(data: dict[str, Any]) -> None:
    class Skipping(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch, index) if index % 2 else None

    memory = vizlog.Memory()
    with pytest.warns(UserWarning, match="training_step` returned `None`"):
        fit(Skipping(), data, VizLog(probes(), to=memory))
    assert steps(memory, "weights/head.weight") == [0, 1, 2, 3]
    assert steps(memory, "health/gradient_norm_before_clipping") == [1, 3]  # none is not 0


# Where it goes --------------------------------------------------------------------------------------------------------


def tensorboard_steps(folder: str | Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    found = {tag: [event.step for event in events.Tensors(tag)] for tag in tags["tensors"]}
    return found | {tag: [event.step for event in events.Scalars(tag)] for tag in tags["scalars"]}


def finished(logger: WandbLogger) -> WrittenRun:
    folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    return read_run(folder)


def test_the_tensorboard_logger_gets_pictures_and_stays_usable(data: dict[str, Any], tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    done = fit(Classifier(), data, VizLog(probes(every=2)), logger=logger)
    done.logger.log_metrics({"later": 1.0}, step=9)
    logger.finalize("success")
    found = tensorboard_steps(logger.log_dir)
    assert found["loss"] == [0, 1, 2, 3]
    assert found["later"] == [9]
    assert found["weights/head.weight"] == found["saliency/gradient"] == [0, 2]
    assert not (tmp_path / "vizlog").exists()


def test_the_wandb_logger_gets_pictures_on_the_trainers_axis(data: dict[str, Any], tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    done = fit(Classifier(), data, VizLog(probes(every=2)), logger=logger)
    done.logger.log_metrics({"later": 1.0}, step=9)
    rows = finished(logger).rows
    ours = [row for row in rows if any(key.startswith("weights/") for key in row)]
    assert [row["vizlog/step"] for row in ours] == [0, 2]
    assert all(row.get("trainer/global_step", row["vizlog/step"]) == row["vizlog/step"] for row in ours)
    assert [row["trainer/global_step"] for row in rows if "loss" in row] == [0, 1, 2, 3]
    assert [row["trainer/global_step"] for row in rows if "later" in row] == [9]


def test_all_loggers_that_can_take_pictures_get_them(data: dict[str, Any], tmp_path: Path) -> None:
    loggers: list[Logger] = [
        CSVLogger(tmp_path / "csv"),
        WandbLogger(save_dir=tmp_path, offline=True),
        TensorBoardLogger(tmp_path / "tb"),
    ]
    fit(Classifier(), data, VizLog(probes(every=2)), logger=loggers)
    assert tensorboard_steps(loggers[2].log_dir)["weights/head.weight"] == [0, 2]
    assert len(finished(loggers[1]).of("weights/head/weight")) == 2


@pytest.mark.parametrize("writes_csv", [True, False])
def test_without_a_logger_for_pictures_they_go_to_a_folder_and_it_is_said(
    *, writes_csv: bool, data: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = CSVLogger(tmp_path) if writes_csv else False
    fit(Classifier(), data, VizLog(probes(every=2)), logger=logger, default_root_dir=tmp_path)
    assert tensorboard_steps(tmp_path / "vizlog")["weights/head.weight"] == [0, 2]
    assert said(caplog) == [
        f"vizlog: no logger of the Trainer takes pictures, so they go to TensorBoard under {tmp_path / 'vizlog'}"
    ]


@pytest.mark.parametrize("logger", [True, False])
def test_rehearsals_write_nothing_and_say_nothing(
    *, logger: bool, data: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = TensorBoardLogger(tmp_path) if logger else False
    memory = vizlog.Memory()
    fit(Classifier(), data, VizLog(to=memory), fast_dev_run=True, logger=kept)
    made = trainer(VizLog(to=memory), default_root_dir=tmp_path, logger=kept)
    tuner = Tuner(made)
    tuner.lr_find(Classifier(), **data, num_training=6, update_attr=False)
    assert memory.records == []
    assert said(caplog) == []
    made.fit(Classifier(), **data)
    assert steps(memory, "weights/head.weight") == [0, 3]


def test_the_batch_size_finder_writes_nothing(
    pairs: TensorDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Sized(Classifier):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(pairs, batch_size=self.batch_size)

        def val_dataloader(self) -> Any:
            return DataLoader(pairs, batch_size=self.batch_size)

    memory = vizlog.Memory()
    made = trainer(VizLog(to=memory), default_root_dir=tmp_path)
    Tuner(made).scale_batch_size(Sized(), max_trials=2, steps_per_trial=2)
    assert memory.records == []
    assert said(caplog) == []


# The life of a run ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_at_its_step(data: dict[str, Any], tmp_path: Path) -> None:
    memory = vizlog.Memory()
    fit(Classifier(), data, VizLog(probes(), to=memory)).save_checkpoint(tmp_path / "a.ckpt")
    trainer(VizLog(probes(), to=memory), max_epochs=2).fit(Classifier(), **data, ckpt_path=tmp_path / "a.ckpt")
    assert steps(memory, "weights/head.weight") == list(range(2 * STEPS))


def test_a_budget_s_factors_go_with_the_checkpoint(data: dict[str, Any], tmp_path: Path) -> None:
    first = VizLog(probes(), to=vizlog.Memory(), budget=1e-6)
    made = trainer(first)
    states = []

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            states.append(first.state_dict())

    made.callbacks.append(Saves())
    made.fit(Classifier(), **data)
    stretched = {name: state["stretch"] for name, state in states[-1]["probes"].items()}
    assert max(stretched.values()) > 1

    second = VizLog(probes(), to=vizlog.Memory(), budget=1e-6)
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(second.state_dict()["probes"])

    made = trainer(second, max_epochs=2)
    made.callbacks.append(Looks())
    made.fit(Classifier(), **data, ckpt_path=tmp_path / "a.ckpt")
    assert {name: state["stretch"] for name, state in seen[0].items()} == stretched


def test_a_second_fit_goes_on(data: dict[str, Any]) -> None:
    memory = vizlog.Memory()
    module = Classifier()
    made = fit(module, data, VizLog(probes(), to=memory))
    made.fit_loop.max_epochs = 2
    made.fit(module, **data)
    assert steps(memory, "weights/head.weight") == list(range(2 * STEPS))


@pytest.mark.parametrize("before", ["validate", "test", "fit"])
def test_a_fit_after_the_trainer_has_closed_its_logger(before: str, data: dict[str, Any], tmp_path: Path) -> None:
    module = Classifier()
    module.test_step = module.validation_step
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    made = trainer(VizLog([vizlog.WeightHistograms("head.weight", every=1)]), logger=logger)
    if before == "fit":
        made.fit(module, **data)
        made.fit_loop.max_epochs = 2
    else:
        getattr(made, before)(module, data["val_dataloaders"], verbose=False)
    made.fit(module, **data)
    written = [step for step, tag in values(tmp_path) if tag == "weights/head.weight"]
    assert sorted(written) == list(range((2 if before == "fit" else 1) * STEPS))


def test_a_callback_serves_another_trainer(data: dict[str, Any]) -> None:
    memory = vizlog.Memory()
    callback = VizLog(probes(every=2), to=memory)
    for _ in range(2):
        fit(Classifier(), data, callback)
    assert steps(memory, "weights/head.weight") == [0, 2, 0, 2]


def test_copies_and_pickles(data: dict[str, Any]) -> None:
    callback = VizLog(probes(every=2))
    fit(Classifier(), data, callback)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.state_key == callback.state_key
        memory = vizlog.Memory()
        twin._given = dataclasses.replace(twin._given, to=memory)
        fit(Classifier(), data, twin)
        assert steps(memory, "weights/head.weight") == [0, 2]


def test_several_in_one_trainer(data: dict[str, Any]) -> None:
    first, second = vizlog.Memory(), vizlog.Memory()
    callbacks = [
        VizLog([vizlog.WeightHistograms("head.*", every=1)], to=first),
        VizLog([vizlog.GradientHistograms(every=2)], to=second),
    ]
    assert callbacks[0].state_key != callbacks[1].state_key
    assert VizLog([vizlog.WeightHistograms("head.*", every=2)], to=first).state_key != callbacks[0].state_key
    assert VizLog(to="runs/a").state_key != VizLog(to="runs/b").state_key
    assert VizLog(to=first).state_key == VizLog(to=second).state_key  # of a resumed run, whose objects are others
    fit(Classifier(), data, *callbacks)
    assert steps(first, "weights/head.weight") == [0, 1, 2, 3]
    assert steps(second, "gradients/head.weight") == [0, 2]


def test_two_selections_of_one_kind_in_one_trainer(data: dict[str, Any]) -> None:
    def selecting(pattern: str, to: vizlog.Memory) -> VizLog:
        return VizLog([vizlog.WeightHistograms(pattern, every=1)], to=to)

    first, second = vizlog.Memory(), vizlog.Memory()
    fit(Classifier(), data, selecting("head.weight", first), selecting("head.bias", second))
    assert steps(first, "weights/head.weight") == steps(second, "weights/head.bias") == [0, 1, 2, 3]
    assert selecting("head.*", first).state_key == selecting("head.*", second).state_key  # of a run that is resumed


def test_of_a_module_without_forward_the_only_model_is_run_and_of_several_none_is_picked() -> None:
    class Holds(LightningModule):
        def __init__(self, **models: nn.Module) -> None:
            super().__init__()
            for name, model in models.items():
                self.add_module(name, model)

    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert _model(Holds(metric=torchmetrics.MeanMetric(), net=one, act=nn.ReLU())) is one
    both = Holds(generator=one, critic=other)
    assert _model(both) is both
    whole = Classifier()
    assert _model(whole) is whole


def test_a_selection_that_no_run_names_alike_is_known_by_its_kind() -> None:
    def selecting() -> VizLog:
        return VizLog([vizlog.WeightHistograms(["head.*", lambda name, _: "body" in name])])

    assert selecting().state_key == selecting().state_key


def test_the_state_of_a_checkpoint_is_for_the_fit_that_resumes_from_it(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(vizlog.Monitor, "load_state_dict", lambda _, state: loaded.append(state))
    callback, state = VizLog(probes(), to=vizlog.Memory(), budget=0.5), {"step": 3, "epoch": 0, "probes": {}}
    callback.load_state_dict(state)
    for _ in range(2):
        fit(Classifier(), data, callback)
    assert loaded == [state]


def test_a_checkpoint_saved_after_the_fit_or_because_it_raised_holds_the_state(
    data: dict[str, Any], tmp_path: Path
) -> None:
    class Breaking(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            if index == 2:
                raise RuntimeError("enough")
            return super().training_step(batch, index)

    def held(made: Trainer) -> list[int]:
        made.save_checkpoint(tmp_path / "last.ckpt")
        callbacks = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
        return [state["step"] for key, state in callbacks.items() if key.startswith("VizLog")]

    callback = VizLog(probes(), to=vizlog.Memory(), budget=1.0)
    assert held(fit(Classifier(), data, callback)) == [4]
    made = trainer(callback)
    with pytest.raises(RuntimeError, match="enough"):
        made.fit(Breaking(), **data)
    assert held(made) == [2]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_was_seen_before_an_exception_is_written(
    kind: type[BaseException], data: dict[str, Any], tmp_path: Path
) -> None:
    class Breaking(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            if index == 2:
                raise kind("enough")
            return super().training_step(batch, index)

    logger = TensorBoardLogger(tmp_path)
    callback = VizLog(probes(), to=None)
    module = Breaking()
    with pytest.raises((kind, SystemExit)):
        fit(module, data, callback, logger=logger)
    assert callback.monitor is None
    assert tensorboard_steps(logger.log_dir)["weights/head.weight"] == [0, 1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_short_fit_is_looked_at_once_more_as_it_ends_but_not_where_it_raised(data: dict[str, Any]) -> None:
    class Breaking(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            if index == 3:
                raise RuntimeError("enough")
            return super().training_step(batch, index)

    memory, module = vizlog.Memory(), Classifier()
    fit(module, data, VizLog(to=memory))
    assert steps(memory, "weights/head.weight") == steps(memory, "saliency/gradient") == [0, 3]
    last = memory.of("weights/head.weight")[-1][1]
    assert last.max == pytest.approx(module.head.weight.max().item())  # type: ignore[union-attr]
    memory = vizlog.Memory()
    with pytest.raises(RuntimeError, match="enough"):
        fit(Breaking(), data, VizLog(to=memory))
    assert steps(memory, "weights/head.weight") == [0]


def test_an_idle_step_attaches_nothing(data: dict[str, Any]) -> None:
    class Counting(Classifier):
        hooked: tuple[int, ...] = ()

        def on_after_backward(self) -> None:
            hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.modules())
            self.hooked += (hooks,)

    module = Counting()
    fit(module, data, VizLog([vizlog.ActivationHistograms(source="live", every=3)], to=vizlog.Memory()))
    assert module.hooked[1] == module.hooked[2] == 0
    assert module.hooked[0] > 0


def test_the_other_package_of_lightning(data: dict[str, Any], tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Other(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    made = lightning.Trainer(
        max_epochs=1,
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=[VizLog(probes(every=2))],
        **quiet,
    )
    made.fit(Other(), **data)
    assert tensorboard_steps(logger.log_dir)["saliency/gradient"] == [0, 2]


def test_lightning_cli_builds_it_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(
        """
trainer:
  accelerator: cpu
  logger: false
  max_epochs: 1
  callbacks:
    - class_path: vizlog.callbacks.lightning.VizLog
      init_args: {every: 50}
    - class_path: vizlog.callbacks.lightning.VizLog
      init_args: {every: {class_path: vizlog.LogSpaced}}
    - class_path: vizlog.callbacks.lightning.VizLog
      init_args:
        to: runs/a
        budget: 0.01
        probes:
          - class_path: vizlog.WeightHistograms
            init_args: {select: "head.*", every: 500}
          - class_path: vizlog.SaliencyMaps
            init_args: {methods: [gradient, gradcam], every: {class_path: vizlog.EveryEpoch, init_args: {n: 2}}}
"""
    )
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(tmp_path / "config.yaml")])
    cli = LightningCLI(Classifier, run=False, seed_everything_default=False)
    first, spaced, second = [c for c in cli.trainer.callbacks if isinstance(c, VizLog)]
    assert first._given.every == 50
    assert second._given.to == "runs/a"
    assert isinstance(spaced._given.every, vizlog.LogSpaced)
    weights, saliency = second._given.probes
    assert isinstance(weights, vizlog.WeightHistograms)
    assert weights.schedule == vizlog.Every(500)
    assert saliency.schedule == vizlog.EveryEpoch(2)
