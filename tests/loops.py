"""The loops of the README's table, each with exactly the lines that stand there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

import vizlog

README = Path(__file__).parents[1] / "README.md"
SGD = partial(torch.optim.SGD, lr=0.05)
STEPS = 102
BATCH = 8


def lines(loop: str) -> list[str]:
    """The code of a loop's row in the README."""
    (cell,) = re.findall(rf"^\| {re.escape(loop)} \| (.+) \|$", README.read_text(), re.MULTILINE)
    return re.findall(r"`([^`]+)`", cell)


def loops() -> list[str]:
    """The names of the rows."""
    table = README.read_text().split("| your loop |")[1].split("\n\n")[0]
    return re.findall(r"^\| ([^|]+) \| `", table, re.MULTILINE)


class Digits(nn.Sequential):
    """Scores images of digits; with labels also gives the loss, as a Hugging Face model does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(pixels)
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Examples(Dataset[Any]):
    """The examples of all steps in their order; of each batch this rank's part."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y), rank: int = 0, world: int = 1):
        from sklearn.datasets import load_digits

        data = load_digits()
        rows = torch.arange(STEPS * BATCH) % len(data.images)
        rows = rows[rank::world]
        self.pixels = torch.from_numpy(data.images).float()[rows, None] / 16
        self.labels = torch.from_numpy(data.target).long()[rows]
        self.form = form

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.form(self.pixels[index], self.labels[index])


def run(loop: str, *, watched: bool, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Trains with the lines of the README, or with what is left of them without vizlog; the weights afterwards."""
    examples = Examples(rank=rank, world=world)
    scope: dict[str, Any] = {"torch": torch, "vizlog": vizlog, "model": Digits(), "data": examples}
    scope["x"], scope["y"] = examples.pixels[:8], examples.labels[:8]
    scope["optimizer"] = SGD(scope["model"].parameters())
    scope["loader"] = DataLoader(examples, BATCH // world)
    model = scope["model"]
    before, train = LOOPS[loop]
    before(scope)
    code = lines(loop)
    if not watched:
        code = [line.replace("VizLog()", "") for line in code if "monitor" not in line]
    for line in code:
        if line != "monitor.close()":
            exec(line, scope)
    train(scope)
    if "monitor" in scope:
        exec("monitor.close()", scope)
    return [whole(parameter) for parameter in model.parameters()]


def whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.clone()


def by_hand(scope: dict[str, Any], backward: Callable[[Tensor], Any] = Tensor.backward) -> None:
    for pixels, labels in scope["loader"]:
        scope["optimizer"].zero_grad()
        backward(F.cross_entropy(scope["model"](pixels), labels))
        scope["optimizer"].step()


# What a person has around the lines -----------------------------------------------------------------------------------


def lightning(scope: dict[str, Any]) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    scope["Trainer"] = partial(
        Trainer, accelerator="cpu", max_epochs=1, logger=TensorBoardLogger(".", "runs", "a"), **quiet
    )


def fit_lightning(scope: dict[str, Any]) -> None:
    from lightning.pytorch import LightningModule

    model, optimizer = scope["model"], scope["optimizer"]

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, pixels: Tensor) -> Tensor:
            return self.net(pixels)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

    scope["trainer"].fit(Module(), scope["loader"])


def hugging_face(scope: dict[str, Any]) -> None:
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    os.environ["TENSORBOARD_LOGGING_DIR"] = "runs/a"
    scope["args"] = TrainingArguments(
        "out",
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
    )
    scope["data"] = Examples(lambda x, y: {"pixels": x, "labels": y})
    scope["Trainer"] = partial(InOrder, optimizers=(scope["optimizer"], None))


def fabric(scope: dict[str, Any]) -> None:
    from lightning.fabric import Fabric

    scope["fabric"] = Fabric(accelerator="cpu", devices=1)


def accelerate(scope: dict[str, Any]) -> None:
    from accelerate import Accelerator

    scope["accelerator"] = Accelerator(cpu=True)
    # prepare() deals whole batches out to the ranks, where there are several.
    scope["loader"] = DataLoader(Examples(), BATCH // scope["accelerator"].num_processes, shuffle=False)


def ddp(scope: dict[str, Any]) -> None:
    scope["DistributedDataParallel"] = nn.parallel.DistributedDataParallel


def fsdp2(scope: dict[str, Any]) -> None:
    from torch.distributed.fsdp import fully_shard

    scope["fully_shard"] = fully_shard


LOOPS: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[dict[str, Any]], Any]]] = {
    "plain PyTorch": (lambda scope: None, by_hand),
    "Lightning": (lightning, fit_lightning),
    "Hugging Face Trainer": (hugging_face, lambda scope: scope["trainer"].train()),
    "Lightning Fabric": (fabric, lambda scope: by_hand(scope, scope["fabric"].backward)),
    "Accelerate": (accelerate, lambda scope: by_hand(scope, scope["accelerator"].backward)),
    "DDP (torchrun), on every rank": (ddp, by_hand),
    "FSDP2 (torchrun), on every rank": (fsdp2, by_hand),
}
"""What is there before the lines, and what trains after them."""


def reference(kind: Callable[..., torch.optim.Optimizer]) -> tuple[list[float], list[Tensor]]:
    """By hand: the largest norm of a layer's gradient at each step, and the weights at the end."""
    model = Digits()
    norms = []
    optimizer = kind(model.parameters())
    for pixels, labels in DataLoader(Examples(), BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        layers = [torch.cat([p.grad.flatten() for p in layer.parameters()]) for layer in (model[0], model[3])]
        norms.append(max(layer.norm().item() for layer in layers))
        optimizer.step()
    return norms, [p.detach().clone() for p in model.parameters()]


def here(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)


def on_each_rank(rank: int, loop: str, folder: Path) -> list[Tensor]:
    """With vizlog in `folder`, and without, to the same weights, which are returned."""
    before, world = Path.cwd(), torch.distributed.get_world_size()
    try:
        here(folder)
        with_it = run(loop, watched=True, rank=rank, world=world)
        here(folder / "without")
        without = run(loop, watched=False, rank=rank, world=world)
    finally:
        os.chdir(before)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    return with_it


SEVERAL = ("Accelerate", "DDP (torchrun), on every rank", "FSDP2 (torchrun), on every rank")
