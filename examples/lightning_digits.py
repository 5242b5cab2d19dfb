"""A small CNN learns handwritten digits under Lightning, and `VizLog()` looks inside it."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from vizlog.callbacks.lightning import VizLog


class DigitsCNN(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.conv1(images))
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        return self.classifier(F.relu(self.hidden(maps.flatten(1))))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def digits() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """1,797 real handwritten digits of 8x8 pixels, most of them to train on."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    examples = TensorDataset(images, torch.tensor(data.target))
    training, validation = random_split(examples, [1437, 360], torch.Generator().manual_seed(0))
    return DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=360)


def main(backend: str = "tensorboard", epochs: int = 15, folder: str = "runs") -> str:
    """Trains, and returns where the logs are."""
    torch.set_num_threads(1)  # of a model this small a second thread would only wait
    lightning.seed_everything(0, verbose=False)
    if backend == "wandb":
        logger: Any = WandbLogger(project="vizlog-demo", name="digits", save_dir=folder, offline=True)
    else:
        logger = TensorBoardLogger(folder, name="digits")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[VizLog(every=30)],  # the one line
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(DigitsCNN(), *digits())
    if isinstance(logger, TensorBoardLogger):
        return logger.log_dir
    run = logger.experiment
    run.finish()
    return str(Path(run.dir).parent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["tensorboard", "wandb"], default="tensorboard")
    backend = parser.parse_args().backend
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # nobody asked whether there is a TPU
    warnings.filterwarnings("ignore", module="lightning")
    print("digits: logs in", main(backend))
