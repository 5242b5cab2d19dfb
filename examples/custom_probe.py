"""A picture of one's own in about 20 lines: the singular values of each weight matrix, at the start and now.

python examples/custom_probe.py [folder]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import trange

import vizlog


class Spectra(vizlog.Probe):
    """How many directions does each layer use, and how strongly: does training flatten the spectrum, or cut it off?"""

    def __init__(self, *, every: int | vizlog.Schedule = 100) -> None:
        super().__init__(every=every)
        self.initial: dict[str, Tensor] = {}

    def measure(self, context: Any) -> dict[str, Tensor]:  # on the training thread: small tensors
        matrices = {name: weight for name, weight in context.model.named_parameters() if weight.ndim >= 2}
        return {name: torch.linalg.svdvals(weight.flatten(1)) for name, weight in matrices.items()}

    def finish(self, measured: dict[str, Tensor]) -> Iterator[vizlog.Record]:  # on the worker: records
        for name, values in measured.items():
            initial = self.initial.setdefault(name, values)
            yield vizlog.Curves(
                f"spectra/{name}",
                x=np.arange(1, len(values) + 1),
                ys={"at the start": initial.numpy(), "now": values.numpy()},
                x_label="number",
                y_label="singular value",
                caption=f"singular values of {name}, largest first, as a matrix of one row an output",
            )


def main(folder: Path, epochs: int = 20) -> None:
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    with vizlog.watch(model, optimizer, to=folder, probes=[Spectra(every=100)]) as monitor:
        for _ in trange(epochs, desc="digits"):
            for rows in torch.randperm(len(images)).split(64):
                loss = F.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.log({"loss/train": loss})
    print(f"spectra in {folder}; tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/spectra"))
