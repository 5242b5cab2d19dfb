"""The guard: after a pass inside it, nothing can be told from before."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.text import Perplexity

from vizlog.isolation import isolated

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*spectral_norm.*:FutureWarning",
    "ignore::UserWarning:torchmetrics",
)


class Counting(nn.Module):
    """Everything a forward may leave behind in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[int] = []
        self.table: dict[str, Any] = {"kept": 1}
        self.names = {"a"}
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.table["new"] = self.calls
        self.table["kept"] = 2
        self.names.add("b")
        self.total = self.total + 1
        self.cache = x * 2
        return x


class InForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.confusion = MulticlassConfusionMatrix(3)
        self.perplexity = Perplexity()

    def forward(self, x: Tensor) -> Tensor:
        labels = torch.arange(len(x)) % 3
        self.accuracy.update(x, labels)
        self.confusion(x, labels)
        self.perplexity.update(x[None], labels[None])
        return x


def frozen(module: nn.Module) -> nn.Module:
    return module.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    "frozen batch norm": lambda: nn.Sequential(nn.Linear(3, 3), frozen(nn.BatchNorm1d(3)), nn.BatchNorm1d(3)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))),
    "old spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3))),
    "counters": lambda: nn.Sequential(nn.Linear(3, 3), Counting()),
    "metrics": lambda: nn.Sequential(nn.Linear(3, 3), InForward()),
    "in place": lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))),
}


def plain(value: Any) -> Any:
    """A value as something that `==` compares, with all tensors in it as bytes."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, dict):
        return [(key, plain(part)) for key, part in value.items() if not isinstance(part, nn.Module)]
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value if isinstance(value, (int, float, str, bool, set)) else str(type(value))


def everything(model: nn.Module) -> Any:
    """All that can be told of a model and of the random states."""
    modules = [
        (name, module.training, plain(dict(module.__dict__)), [plain(b) for b in module.buffers(recurse=False)])
        for name, module in model.named_modules()
    ]
    gradients = [plain(parameter.grad) for parameter in model.parameters()]
    states = plain(torch.get_rng_state()), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    return modules, gradients, states


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_a_pass_leaves_no_trace(kind: str, *, training: bool) -> None:
    frozen_ones = kind == "frozen batch norm"
    model = MODELS[kind]()
    if not frozen_ones or not training:
        model.train(training)
    x = torch.randn(6, 3)
    model(x).sum().backward()
    before = everything(model)
    with isolated([model]):
        model(torch.randn(6, 3)).sum().backward()
        random.random()
        np.random.rand()  # noqa: NPY002
    assert everything(model) == before


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "frozen batch norm", "scripted"])
def test_inside_the_model_evaluates(kind: str) -> None:
    model = MODELS[kind]()
    x = torch.randn(6, 3)
    with isolated([model]):
        inside = model(x)
    assert torch.equal(inside, copy.deepcopy(model).eval()(x))


def test_everything_is_put_back_when_the_pass_raises() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Counting(), nn.Dropout())
    before = everything(model)
    with pytest.raises(RuntimeError, match="shape"), isolated([model]):
        model.train()(torch.randn(4, 3)).reshape(5)
    assert everything(model) == before


def test_attributes_and_buffers_keep_their_identity() -> None:
    model = nn.Sequential(Counting(), nn.BatchNorm1d(3))
    seen, total, mean = model[0].seen, model[0].total, model[1].running_mean
    with isolated([model]):
        model(torch.randn(4, 3))
    assert (model[0].seen is seen, model[0].total is total, model[1].running_mean is mean) == (True, True, True)


def test_a_graph_that_saved_a_buffer_can_still_run_its_backward() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval())
    loss = model(torch.randn(4, 3)).sum()
    with isolated([model]):
        model[1].train()
        model(torch.randn(4, 3))
    loss.backward()


def test_gradients_inside_start_from_nothing_and_come_back() -> None:
    model = nn.Linear(3, 1)
    model(torch.ones(1, 3)).sum().backward()
    gradient = model.weight.grad
    with isolated([model]):
        assert model.weight.grad is None
        (2 * model(torch.ones(1, 3))).sum().backward()
    assert model.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(1, 3))  # type: ignore[arg-type]


def test_a_cast_made_inside_does_not_cut_the_training_forward_of_a_surrounding_autocast() -> None:
    model = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with isolated([model]), torch.no_grad():
            model(torch.randn(2, 3))
        model(torch.randn(2, 3)).sum().backward()
        assert torch.is_autocast_cache_enabled()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() > 0


def test_a_reentrant_checkpoint_can_be_derived_by_its_input_inside_and_is_itself_again_afterwards() -> None:
    fc = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    with isolated([fc]):
        (inside,) = torch.autograd.grad(checkpoint(fc, x, use_reentrant=True).sum(), x)
    assert torch.equal(inside, torch.autograd.grad(fc(x).sum(), x)[0])
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(checkpoint(fc, x, use_reentrant=True).sum(), x)


def test_several_models_are_guarded_together() -> None:
    first, second = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).eval()
    before = everything(first), everything(second)
    with isolated([first, second]):
        second(first(torch.randn(4, 3)))
    assert (everything(first), everything(second)) == before


@pytest.mark.parametrize("stance", ["default", "fail_on_recompile"])
def test_a_compiled_model_gains_no_graph(stance: str) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(4, 3)).sum().backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance(stance):
        with isolated([model]), torch.no_grad():
            compiled(torch.randn(7, 3))
            model(torch.randn(2, 3))
        compiled(torch.randn(4, 3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_lightning_modules_log_is_silent_inside() -> None:
    from lightning.pytorch import LightningModule

    class Logs(LightningModule):
        def training_step(self, batch: Tensor) -> Tensor:
            return batch.sum()

        def forward(self, x: Tensor) -> Tensor:
            self.log("inside", x.sum())
            self.log_dict({"more": x.mean()})
            return F.relu(x)

    model = Logs()
    with isolated([model]):
        model(torch.randn(3))
    assert "log" not in model.__dict__
    assert "log_dict" not in model.__dict__
