"""What people use today, as its documentation shows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

__all__ = ["SummaryWriterLoop", "offline_run", "wandb_counts"]


class SummaryWriterLoop:
    """Histograms of all weights, gradients and activations, written out as tutorials do: hooks, and `add_histogram`."""

    def __init__(self, model: nn.Module, writer: SummaryWriter) -> None:
        self._model, self._writer = model, writer
        self._outputs: dict[str, Tensor] = {}

    @contextmanager
    def activations(self) -> Iterator[None]:
        """Around the forward: keeps the output of every leaf."""
        leaves = {name: module for name, module in self._model.named_modules() if not module._modules}
        handles = [module.register_forward_hook(self._keeper(name)) for name, module in leaves.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs[name] = output.detach()

        return keep

    def log(self, step: int) -> None:
        """After the backward."""
        for name, parameter in self._model.named_parameters():
            self._writer.add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{name}", parameter.grad, step)
        for name, output in self._outputs.items():
            self._writer.add_histogram(f"activations/{name}", output, step)
        self._outputs.clear()


@contextmanager
def offline_run() -> Iterator[Any]:
    """A W&B run that leaves nothing behind."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            os.environ[f"WANDB_{kind}"] = folder
        os.environ |= {"WANDB_CONSOLE": "off", "WANDB_SILENT": "true", "WANDB__DISABLE_STATS": "true"}
        os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
        try:
            with wandb.init(mode="offline", project="benchmarks", dir=folder) as run:
                yield run
        finally:
            wandb.teardown()


def wandb_counts() -> Callable[[Tensor], None]:
    """What `wandb.watch` does with one tensor, in its own code; inside an `offline_run`."""
    from wandb.integration.torch.wandb_torch import TorchHistory

    history: Any = TorchHistory()  # type: ignore[no-untyped-call]
    return lambda tensor: history.log_tensor_stats(tensor, "weights/a")
