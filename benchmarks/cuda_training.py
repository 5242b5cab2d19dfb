"""The share of training time that the default probes take of GPT-2 small on a CUDA device."""

from __future__ import annotations

import torch

from benchmarks import training
from benchmarks.models import Workload, gpt2_small
from benchmarks.results import Found


class _Finished(Workload):
    """A workload whose steps end when the device is done with them."""

    def step(self) -> None:
        super().step()
        torch.cuda.synchronize()


def run() -> Found:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks cuda_training needs a CUDA device")
    rows, numbers = training.measured("GPT-2 small", lambda: _Finished(**vars(gpt2_small())))
    return Found(rows, {"GPT-2 small": numbers})
