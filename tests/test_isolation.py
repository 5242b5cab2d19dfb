"""The guard: after a pass inside it, nothing can be told from before."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import random
import re
import subprocess
import sys
import threading
import time
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.text import Perplexity

import vizlog
from vizlog.isolation import changes_learnt, isolated, start_noise
from vizlog.setting import Setting

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
        self.functions = [len]
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.table["new"] = self.calls
        self.table["kept"] = 2
        self.names.add(f"call {self.calls}")
        self.functions.append(len)
        self.total = self.total + 1
        self.cache = x * 2
        return x


class Caching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.cache = x
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
    "cache": lambda: nn.Sequential(nn.Linear(3, 3), Caching()),
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
    if isinstance(value, set):
        return sorted(value)
    return value if isinstance(value, (int, float, str, bool)) else str(type(value))


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
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Counting(), nn.Dropout())
    generator = model[0].generator = torch.Generator()  # type: ignore[assignment]
    model(torch.randn(4, 3)).sum().backward()

    def of_torch() -> list[Any]:
        return [generator.get_state().tolist(), torch.is_autocast_cache_enabled(), torch_checkpoint.CheckpointFunction]

    before = everything(model), of_torch()

    def draws_and_raises() -> None:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1, generator=generator)
        out = model.train()(torch.randn(4, 3))
        out.sum().backward()
        out.reshape(5)

    with pytest.raises(RuntimeError, match="shape"), isolated([model]):
        draws_and_raises()
    assert (everything(model), of_torch()) == before


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


class Saves(nn.Module):
    """Its graph saves a buffer and a frozen parameter that each forward changes where they are."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(3))
        self.weight = nn.Parameter(torch.ones(3))
        self.average = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.average.mul_(2)
        return self.weight * x * self.seen * self.average


def test_a_graph_can_run_its_backward_where_a_forward_changes_what_it_saved() -> None:
    model = Saves()
    with isolated([model]), changes_learnt([model]):
        model(torch.ones(3))
    loss = model(torch.ones(3)).sum()
    with isolated([model]):
        model(torch.ones(3))
    loss.backward()
    assert model.weight.grad.tolist() == [4, 4, 4]  # type: ignore[union-attr]


class Centred(nn.Module):
    """Keeps the mean of its inputs, of which nobody derives in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        result: Tensor = self.linear(x - self.mean)
        return result


def test_a_buffer_to_which_the_input_is_added_has_no_graph_of_saliency_afterwards() -> None:
    def train(*, watched: bool) -> list[float]:
        torch.manual_seed(0)
        model, x, y = Centred(), torch.randn(6, 3), torch.arange(6) % 3
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        watch: dict[str, Any] = {"to": None, "batch": (x, y), "probes": [vizlog.SaliencyMaps(every=1)]}
        monitor = vizlog.watch(model, optimizer, **watch) if watched else None
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
        assert not model.mean.requires_grad
        return [*model.mean.tolist(), *model.linear.weight.flatten().tolist()]

    assert train(watched=True) == train(watched=False)


def test_gradients_and_flags_of_tensors_that_are_no_parameters_come_back() -> None:
    model = nn.Linear(2, 2)
    model.prompt, model.noise = torch.ones(2, requires_grad=True), torch.ones(2)  # type: ignore[assignment]
    gradient = model.prompt.grad = torch.ones(2)  # type: ignore[assignment]
    with isolated([model]):
        model.noise.requires_grad_()  # type: ignore[operator]
        (model.prompt * model.noise).sum().backward()  # type: ignore[operator]
    assert model.prompt.grad is gradient
    assert gradient.tolist() == [1, 1]
    assert not model.noise.requires_grad
    assert model.noise.grad is None


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


def test_the_weights_seen_are_those_of_now_where_a_surrounding_autocast_keeps_casts_of_older_ones() -> None:
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        with torch.no_grad():
            model.weight.mul_(2)
        with isolated([model]):
            inside = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, model(x))


def test_weights_that_training_keeps_within_a_block_are_made_anew_inside_and_are_its_own_afterwards() -> None:
    model, x = parametrizations.weight_norm(nn.Linear(3, 3)), torch.ones(1, 3)
    with parametrize.cached():
        with isolated([model]), torch.no_grad():
            model(x)
        model(x).sum().backward()
        with torch.no_grad():
            model.parametrizations.weight.original1.zero_().add_(torch.eye(3))
        with isolated([model]):
            assert (model.weight == 0).any()
        assert not (model.weight == 0).any()
    assert model.parametrizations.weight.original1.grad is not None


@pytest.mark.skipif(not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="torch cannot tell")
def test_hooks_on_what_is_saved_for_backward_do_not_see_a_pass() -> None:
    saved: list[Tensor] = []
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        with isolated([model]):
            model(torch.ones(1, 3)).sum().backward()
        assert not saved
        model(torch.ones(1, 3))
    assert saved


def test_a_reentrant_checkpoint_can_be_derived_by_its_input_inside_and_is_itself_again_afterwards() -> None:
    fc = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    with isolated([fc]):
        (inside,) = torch.autograd.grad(checkpoint(fc, x, use_reentrant=True).sum(), x)
    assert torch.equal(inside, torch.autograd.grad(fc(x).sum(), x)[0])
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(checkpoint(fc, x, use_reentrant=True).sum(), x)


class Hooking(nn.Sequential):
    """Adds hooks at its first forward, and remembers that."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "hooked"):
            self[0].register_forward_hook(lambda *_: None)
            self[0].register_forward_pre_hook(lambda *_, **__: None, with_kwargs=True)
            self[0].register_full_backward_hook(lambda *_: None)
            self.hooked = True
        result: Tensor = super().forward(x)
        return result


def hooks_of(model: nn.Module) -> list[list[int]]:
    return [list(value) for part in model.modules() for name, value in vars(part).items() if "_hooks" in name]


def test_that_a_buffer_is_not_saved_is_as_before() -> None:
    model = nn.BatchNorm1d(2)
    with isolated([model]):
        model.register_buffer("cache", torch.ones(1), persistent=False)
        model.register_buffer("running_mean", torch.ones(2), persistent=False)
    assert model._non_persistent_buffers_set == set()
    assert "running_mean" in model.state_dict()


def test_hooks_that_a_forward_adds_go_again_and_others_stay() -> None:
    model = Hooking(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: None)
    before = hooks_of(model)
    with isolated([model]):
        model(torch.randn(3, 2))
        assert hooks_of(model) != before
    assert hooks_of(model) == before
    assert not hasattr(model, "hooked")


@pytest.mark.parametrize("of", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("hooked_before", [True, False])
def test_hooks_of_gradients_are_those_of_before(of: str, *, hooked_before: bool) -> None:
    model, ran = nn.Linear(2, 2), []
    hook = getattr(model.weight, of)
    first = hook(lambda _: ran.append("first")) if hooked_before else None
    before = [model.weight._backward_hooks, model.weight._post_accumulate_grad_hooks]
    with isolated([model]):
        hook(lambda _: ran.append("added inside"))
        if first is not None:
            first.remove()
    after = [model.weight._backward_hooks, model.weight._post_accumulate_grad_hooks]
    assert all(kept is now for kept, now in zip(before, after, strict=True))
    hook(lambda _: ran.append("added later"))
    model(torch.ones(1, 2)).sum().backward()
    assert ran == ["first"] * hooked_before + ["added later"]


def test_what_a_pass_freezes_is_trained_and_what_it_thaws_is_not() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    with isolated([model]):
        model.weight.requires_grad, model.bias.requires_grad = False, True
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]


def test_a_model_that_hooks_its_own_layers_at_its_first_forward_trains_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    two_blocks = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 8]}
    two_blocks |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [1, 1]}
    config = transformers.SegformerConfig(**two_blocks, decoder_hidden_size=8, num_labels=3)

    def trained(*, watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = transformers.SegformerForSemanticSegmentation(config)
        batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.randint(0, 3, (2, 32, 32))}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = vizlog.watch(model, optimizer, to=vizlog.Memory(), batch=batch, every=1) if watched else None
        for _ in range(2):
            model(**batch).loss.backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
        return [*model.state_dict().values(), torch.get_rng_state()]

    for found, expected in zip(trained(watched=True), trained(watched=False), strict=True):
        assert torch.equal(found, expected)


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

    logged: list[Any] = []

    class Logs(LightningModule):
        _log_dict_through_fabric = logged.append  # where Fabric runs it, each of them comes here

        def training_step(self, batch: Tensor) -> Tensor:
            return batch.sum()

        def forward(self, x: Tensor) -> Tensor:
            self.log("inside", x.sum())
            self.log_dict({"more": x.mean()})
            return F.relu(x)

    model = Logs()
    model._fabric = object()  # type: ignore[assignment]
    with isolated([model]):
        model(torch.randn(3))
    assert logged == []
    assert "log" not in model.__dict__
    assert "log_dict" not in model.__dict__


def test_what_a_module_of_ones_own_calls_log_is_left_alone() -> None:
    class Logarithm(nn.Module):
        def log(self, x: Tensor) -> Tensor:
            return x.log()

        def forward(self, x: Tensor) -> Tensor:
            return self.log(x)

    with isolated([model := Logarithm()]):
        assert float(model(torch.ones(1))) == 0


def test_a_modules_own_setattr_does_not_hear_of_it() -> None:
    heard: list[str] = []

    class Listens(nn.Module):
        def __setattr__(self, name: str, value: Any) -> None:
            heard.append(name)
            super().__setattr__(name, value)

    model = Listens()
    heard.clear()
    with isolated([model]):
        pass
    assert heard == []


@pytest.mark.parametrize("kind", [list, tuple, dict.fromkeys, set, deque, OrderedDict.fromkeys])
def test_a_loop_over_what_a_module_holds_goes_on_after_a_pass(kind: Callable[[Any], Any]) -> None:
    model = nn.Linear(1, 1)
    model.held = kind(range(100))
    for gone in range(50):  # a dict of which parts were deleted has holes, that a copy has not
        if isinstance(model.held, dict):
            del model.held[gone]
    found = []
    for part in model.held:  # type: ignore[union-attr]
        found.append(part)
        with isolated([model]):
            pass
    assert found == list(model.held)  # type: ignore[arg-type]


class Node:
    """An object that is nothing but data, of any size."""

    def __init__(self, held: Any = None) -> None:
        self.held, self.calls = held, 0


class Mixed(Node):
    __slots__ = ("number",)


def chain(length: int) -> Node:
    node = Node()
    for _ in range(length):
        node = Node(node)
    return node


LARGE = torch.empty(17 << 20)  # 68 MB


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda: Node([0] * 9_000), True),
        (lambda: Node([[] for _ in range(11_000)]), False),
        (lambda: chain(5_000), True),
        (lambda: chain(11_000), False),
        (lambda: Node(nn.Parameter(LARGE)), True),  # a weight is not copied
        (lambda: Node(LARGE), False),
        (Mixed, True),
        (lambda: Node(type), False),
        (lambda: Node(nn.Linear(1, 1)), False),
    ],
)
def test_an_object_is_put_back_as_a_whole_or_left_alone(make: Callable[[], Any], *, kept: bool) -> None:
    model = nn.Linear(1, 1)
    model.own = make()
    with isolated([model]):
        model.own.calls += 1  # type: ignore[operator, union-attr]
    assert model.own.calls == (0 if kept else 1)  # type: ignore[union-attr]


@dataclass(slots=True, frozen=True)
class InSlots:
    number: int = 0
    later: int = field(init=False)
    seen: list[int] = field(default_factory=list)


def test_what_lies_in_slots_is_put_back() -> None:
    model, number = nn.Linear(1, 1), InSlots.__dict__["number"]
    model.own, model.mixed, model.twice = InSlots(seen=[1]), Mixed(), Mixed()
    model.twice.number = 3
    with isolated([model]):
        number.__set__(model.own, 5)
        InSlots.__dict__["later"].__set__(model.own, 6)
        model.own.seen.append(2)
        model.mixed.number = 7
        del model.twice.number
    assert (model.own.number, model.own.seen) == (0, [1])
    assert not hasattr(model.own, "later")
    assert not hasattr(model.mixed, "number")
    assert model.twice.number == 3


@pytest.mark.parametrize("held", [bytearray(b"abc"), array("d", [1.0, 2.0])], ids=["bytearray", "array"])
def test_arrays_of_python_are_put_back(held: Any) -> None:
    model, before = nn.Linear(1, 1), held[:]
    model.held = held
    with isolated([model]):
        held[0] = held[1]
        held.extend(before)
    assert model.held is held
    assert held == before


class Slotted(nn.Module):
    """Keeps what its forward changes in slots of its own, a teacher among it."""

    __slots__ = ("calls", "later", "seen", "teacher")

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, [0]
        Slotted.teacher.__set__(self, InSlots(seen=[nn.BatchNorm1d(2)]))  # type: ignore[attr-defined, list-item]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.later = True
        result: Tensor = self.teacher.seen[0].train()(x)
        return result


def test_what_a_module_keeps_in_slots_is_put_back() -> None:
    model = Slotted()
    with isolated([model]):
        model(torch.ones(3, 2))
    assert (model.calls, model.seen, hasattr(model, "later")) == (0, [0], False)
    assert model.teacher.seen[0].running_mean.tolist() == [0, 0]


def test_arrays_that_are_only_read_are_passed_by() -> None:
    model, base = nn.Linear(1, 1), np.zeros(2)
    view = base.view()
    view.flags.writeable = False
    model.view, model.base, model.seen = view, base, [0]
    with isolated([model]):
        base += 1
        model.seen[0] += 1  # type: ignore[index, operator]
    assert (base.tolist(), model.seen) == ([0, 0], [0])


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 2)])
def test_arrays_that_are_resized_are_put_back(shape: tuple[int, ...]) -> None:
    model = nn.Linear(1, 1)
    model.held = np.arange(3.0)
    with isolated([model]):
        model.held.resize(shape, refcheck=False)  # type: ignore[operator]
        model.held[...] = 7  # type: ignore[operator]
    assert model.held.tolist() == [0, 1, 2]  # type: ignore[operator]


def test_one_that_cannot_be_put_back_costs_no_other() -> None:
    model, stuck = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), np.zeros(1)
    model[0].stuck, model[1].seen = stuck, [0]  # type: ignore[assignment]

    def changes() -> None:
        stuck[0] = 1
        stuck.flags.writeable = False
        model[1].seen.append(1)  # type: ignore[union-attr, operator]
        model[1].register_forward_hook(lambda *_: None)
        model[1].later = 1  # type: ignore[assignment]

    with pytest.raises(ValueError, match="read-only"), isolated([model]):
        changes()
    assert (model[1].seen, len(model[1]._forward_hooks), hasattr(model[1], "later")) == ([0], 0, False)


class Interrupted:
    """Ctrl-C comes as it is compared."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        raise KeyboardInterrupt


def test_ctrl_c_while_one_is_put_back_costs_no_other() -> None:
    model = nn.Linear(1, 1)
    model.held, model.seen = {Interrupted()}, [0]  # type: ignore[assignment]

    def changes() -> None:
        model.held.clear()  # type: ignore[operator]
        model.held.add(Interrupted())  # type: ignore[operator]
        model.seen.append(1)  # type: ignore[operator]

    with pytest.raises(KeyboardInterrupt), isolated([model]):
        changes()
    assert model.seen == [0]


def test_a_tensor_of_any_size_is_put_back() -> None:
    model = nn.Linear(1, 1)
    model.bank = LARGE.clone().zero_()
    with isolated([model]):
        model.bank[0] = 1  # type: ignore[index, operator]
    assert float(model.bank[0]) == 0  # type: ignore[index, arg-type]


@pytest.mark.parametrize("change", [torch.Tensor.zero_, torch.Tensor.neg_, lambda held: held], ids=["0", "-", "none"])
@pytest.mark.parametrize("read", [lambda x: x, Tensor.conj, lambda x: x.conj().imag], ids=["plain", "conj", "negative"])
def test_a_lazily_conjugate_or_negative_tensor_is_put_back(read: Any, change: Any) -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("of_buffers", read(torch.tensor([1 + 2j, -0j])))
    model.held = [read(torch.tensor([3 - 1j]))]
    before = model.of_buffers.clone(), model.held[0].clone()  # type: ignore[operator, index]
    with isolated([model]):
        change(model.of_buffers)
        change(model.held[0])  # type: ignore[index]
    assert torch.equal(model.of_buffers, before[0])  # type: ignore[arg-type]
    assert torch.equal(model.held[0], before[1])  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.mul_(2),
        lambda held: held._values().mul_(2),
        lambda held: held.add_(torch.ones(2, 2).to_sparse()),
        lambda held: held.sparse_resize_and_clear_((4, 4), 2, 0),
        lambda _: None,
    ],
    ids=["scaled", "values", "more of them", "resized", "not"],
)
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_tensor_is_put_back(change: Any, *, coalesced: bool) -> None:
    model, indices = nn.Linear(1, 1), torch.tensor([[0, 1], [0, 1]] if coalesced else [[0, 0], [1, 1]])
    model.adjacency = torch.sparse_coo_tensor(indices, torch.ones(2), (2, 2), is_coalesced=coalesced)
    before = model.adjacency.clone()  # type: ignore[operator]
    with isolated([model]):
        change(model.adjacency)
    assert torch.equal(model.adjacency.to_dense(), before.to_dense())  # type: ignore[operator]
    assert torch.equal(model.adjacency._indices(), before._indices())  # type: ignore[operator]
    assert model.adjacency.is_coalesced() == coalesced  # type: ignore[operator]


def test_what_many_modules_share_is_looked_at_once() -> None:
    def seconds(number: int) -> float:
        model = nn.Sequential(*(nn.Identity() for _ in range(number)))
        shared = Node([[] for _ in range(9_000)])
        for module in model:
            module.config = shared  # type: ignore[assignment]
        start = time.process_time()
        with isolated([model]):
            pass
        return time.process_time() - start

    assert min(seconds(200) for _ in range(2)) < 50 * min(seconds(1) for _ in range(2))


def test_what_has_no_values_yet_is_passed_by() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(1, 1, device="meta"), nn.BatchNorm1d(1, device="meta"))
    with isolated([model]):
        assert not model[0].training
    assert model[0].training


def test_the_compiler_is_imported_for_nobody_and_held_back_where_attention_would_import_it() -> None:
    script = """
import sys, torch
from torch import nn
import vizlog
from vizlog.isolation import isolated
with isolated([nn.Linear(1, 1)]):
    assert "torch._dynamo" not in sys.modules
import torch.nn.attention.flex_attention
with isolated([nn.Linear(1, 1)]):
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


class Numbers(dict[str, int]):
    pass


class Holds(nn.Module):
    """Keeps something that `change` changes at each forward."""

    def __init__(self, kept: Any, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.kept, self.change = kept, change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self.kept)
        return x


class Totals(NamedTuple):
    seen: list[int]
    last: dict[str, int]


class Names(SimpleNamespace):
    pass


class Dice(random.Random):
    pass


class Numbered(list[int]):
    """Has both slots and attributes beside what it holds."""

    __slots__ = ("__dict__", "in_slot")


class Itself(dict[str, Any]):
    """Its parts are its attributes too."""

    def __init__(self) -> None:
        super().__init__(n=0)
        self.__dict__ = self


class Wrapper:
    def __init__(self, module: nn.Module) -> None:
        self.module = module


ONES = torch.ones(3, 2)


def with_attributes(value: Any) -> Any:
    value.n, value.in_slot, value.seen = 0, 0, []
    return value


def add_to_both(value: Any) -> None:
    value.append(1)
    value.n += 1
    value.in_slot += 1


class Backwards(list[int]):
    """Is read from its end, and counts how often."""

    reads = 0

    def __iter__(self) -> Iterator[int]:
        self.reads += 1
        return iter(list.__getitem__(self, slice(None, None, -1)))

    def __len__(self) -> int:
        return 0


class Counted(dict[str, int]):
    """Counts who reads it."""

    reads = 0

    def keys(self) -> Any:
        self.reads += 1
        return super().keys()

    def values(self) -> Any:
        self.reads += 1
        return super().values()

    def __iter__(self) -> Iterator[str]:
        self.reads += 1
        return super().__iter__()


class Written(OrderedDict[str, int]):
    """Counts who writes to it."""

    writes = 0

    def __setitem__(self, key: str, value: int) -> None:
        self.writes += 1
        super().__setitem__(key, value)


def beside(*constants: Any) -> SimpleNamespace:
    """A count beside what nobody can change."""
    return SimpleNamespace(constants=constants, n=0)


def count(kept: Any) -> None:
    kept.n += 1


def gone() -> Any:
    return weakref.proxy(nn.Identity())


def ones_in(array: Any) -> None:
    array[0] += 1


@pytest.mark.parametrize(
    ("kept", "change", "read"),
    [
        (np.zeros(2), ones_in, lambda kept: kept.tolist()),
        (SimpleNamespace(n=0), lambda kept: setattr(kept, "n", 1), lambda kept: kept.n),
        (Numbers(), lambda kept: kept.update(a=1), dict),
        (with_attributes(Numbers()), lambda kept: setattr(kept, "n", 1), lambda kept: kept.n),
        (with_attributes(Numbered()), add_to_both, lambda kept: (list(kept), kept.n, kept.in_slot)),
        (Itself(), lambda kept: kept.update(n=1), dict),
        (Totals([], {}), lambda kept: (kept.seen.append(1), kept.last.update(a=1)), str),
        (Names(n=0), lambda kept: setattr(kept, "n", 1), lambda kept: kept.n),
        (with_attributes(torch.zeros(1)), lambda kept: setattr(kept, "n", 1), lambda kept: kept.n),
        ([torch.zeros(1)], lambda kept: setattr(kept[0], "n", 1), lambda kept: hasattr(kept[0], "n")),
        (Dice(1), lambda kept: kept.random(), lambda kept: kept.getstate()),
        (random.SystemRandom(), lambda kept: kept.random(), str),
        (
            np.random.Generator(np.random.SFC64(1)),
            lambda kept: kept.random(),
            lambda kept: str(kept.bit_generator.state),
        ),
        (np.random.PCG64(1), lambda kept: kept.random_raw(), lambda kept: kept.state),
        ({"t": torch.zeros(1), "f": print}, lambda kept: kept["t"].add_(1), lambda kept: kept["t"].item()),
        ({"t": torch.zeros(1), "p": Path("a")}, lambda kept: kept["t"].add_(1), lambda kept: kept["t"].item()),
        (OrderedDict(a=1, b=2), lambda kept: kept.move_to_end("a"), list),
        (beside(dt.date(2024, 1, 1), dt.timedelta(1), Decimal(1)), count, lambda kept: kept.n),
        (beside(np.dtype("float32"), torch.strided, torch.finfo(), re.compile("a"), ...), count, lambda kept: kept.n),
        (beside(frozenset({1}), weakref.ref(nn.Module), gone()), count, lambda kept: kept.n),
        (Backwards([1, 2]), lambda kept: kept.append(3), lambda kept: (list.copy(kept), kept.reads)),
        (Counted(a=1), lambda kept: dict.update(kept, b=1), lambda kept: (list(dict.items(kept)), kept.reads)),
        (Written(a=1), lambda kept: kept.update(b=1), lambda kept: (list(kept), kept.writes)),
        (with_attributes(torch.zeros(1)), lambda kept: kept.seen.append(1), lambda kept: len(kept.seen)),
        ([with_attributes(torch.zeros(1))], lambda kept: kept[0].seen.append(1), lambda kept: len(kept[0].seen)),
        (
            Wrapper(nn.BatchNorm1d(2)),
            lambda kept: kept.module(torch.ones(3, 2)),
            lambda kept: kept.module.running_mean.tolist(),
        ),
        (
            {"a": [nn.BatchNorm1d(2)]},
            lambda kept: kept["a"][0](torch.ones(3, 2)),
            lambda kept: kept["a"][0].running_mean.tolist(),
        ),
    ],
    ids=[
        "array",
        "namespace",
        "class of dicts",
        "its attributes",
        "its slots",
        "attributes that are its parts",
        "named tuple",
        "class of namespaces",
        "attribute of a tensor",
        "attribute of a tensor in a list",
        "class of generators",
        "generator without a state",
        "generator",
        "bit generator",
        "beside a function",
        "beside a path",
        "order",
        "beside a date",
        "beside a type of numbers",
        "beside a weak reference",
        "list that is read otherwise",
        "dict that is read otherwise",
        "ordered dict that is written otherwise",
        "list in a tensor's attribute",
        "list in an attribute of a tensor in a list",
        "in an object",
        "in a dict of lists",
    ],
)
def test_what_a_module_holds_is_put_back_whatever_it_is(kept: Any, change: Any, read: Any) -> None:
    model = Holds(kept, change)
    before = read(kept)
    with isolated([model]):
        model(torch.ones(1))
    assert read(kept) == before


class Remembers(vizlog.Probe):
    """Keeps something from one step to the next."""

    seen = 0


def test_what_vizlog_itself_changes_meanwhile_stays_where_a_module_holds_it() -> None:
    model, memory, probe = nn.Linear(1, 1), vizlog.Memory(), Remembers()
    model.memory, model.probes = memory, [probe]  # type: ignore[assignment]
    with isolated([model]):
        memory.write(0, [vizlog.Scalar("loss", 1.0)])  # as the worker does
        probe.seen = 1
    assert (len(memory.records), probe.seen) == (1, 1)


def test_attributes_of_parameters_and_buffers_are_put_back() -> None:
    model = nn.BatchNorm1d(2)
    model.weight.calls, model.weight.seen = 0, []  # type: ignore[attr-defined]
    with isolated([model]):
        model.weight.calls = model.running_mean.calls = 1  # type: ignore[attr-defined, union-attr]
        model.weight.seen.append(1)  # type: ignore[attr-defined]
    assert model.weight.calls == 0  # type: ignore[attr-defined]
    assert model.weight.seen == []  # type: ignore[attr-defined]
    assert not hasattr(model.running_mean, "calls")


@pytest.mark.parametrize("layer", [nn.Embedding(3, 2, max_norm=0.1), nn.EmbeddingBag(3, 2, max_norm=0.1)])
def test_an_embedding_of_limited_norm_keeps_its_weights(layer: nn.Module) -> None:
    before = copy.deepcopy(layer.state_dict())
    with isolated([layer]):
        layer(torch.zeros(1, 1, dtype=torch.long))
    assert torch.equal(layer.weight, before["weight"])


def test_buffers_that_are_resized_or_expanded_cost_no_other() -> None:
    class Observes(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("wide", torch.arange(3.0).expand(2, 3))
            self.register_buffer("seen", torch.zeros(0))
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.resize_(2).fill_(7)
            with torch.no_grad():
                self.norm.running_mean += 1
            return x

    model = Observes()
    with isolated([model]):
        model(torch.ones(3, 2))
    assert model.seen.shape == (0,)
    assert model.norm.running_mean.tolist() == [0, 0]


def test_a_hook_that_takes_itself_off_is_there_for_the_training() -> None:
    model, ran = nn.Sequential(nn.Linear(2, 2)), []

    def once(*_: Any) -> None:
        ran.append(1)
        handle.remove()

    handle = model[0].register_forward_pre_hook(once)
    with isolated([model]):
        model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert len(ran) == 2


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_parameter_with_a_strided_gradient_costs_no_gradient() -> None:
    model = nn.Linear(2, 2)
    model.sparse = nn.Parameter(torch.eye(2).to_sparse_csr())
    (torch.sparse.mm(model.sparse, torch.ones(2, 2)).sum() + model(torch.ones(1, 2)).sum()).backward()
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    with isolated([model]):
        pass
    assert all(parameter.grad is before[name] for name, parameter in model.named_parameters())
    assert all(gradient is not None for gradient in before.values())


def test_a_module_may_call_anything_max_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.max_norm = 1.0
    with isolated([model]):
        model(torch.ones(1, 2))


def test_a_buffer_in_a_file_that_is_only_read_is_not_written(tmp_path: Path) -> None:
    code = """
import sys, numpy as np, torch
from torch import nn
from vizlog.isolation import isolated
np.save(sys.argv[1], np.array([0.0, -0.0, np.nan, 1.0], np.float32))
model = nn.Linear(2, 2)
model.register_buffer("table", torch.from_numpy(np.load(sys.argv[1], mmap_mode="r")))
model.held = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
with isolated([model]):
    pass
print("alive")
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "table.npy")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "alive\n"


def test_what_has_been_offloaded_is_passed_by() -> None:
    code = """
import torch
from torch import nn
from vizlog.isolation import isolated
model = nn.Linear(2, 2)
model.register_buffer("table", torch.ones(1000))
model.held = torch.ones(1000)
for tensor in (model.table, model.held, model.weight):
    tensor.untyped_storage().resize_(0)
with isolated([model]):
    pass
print("alive")
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "alive\n"


def test_a_parameter_that_a_forward_gives_other_memory_has_its_own_again() -> None:
    class Prototypes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = F.normalize(self.weight.data)
            return super().forward(x)

    model = Prototypes(3, 2)
    before, place = model.weight.detach().clone(), model.weight.data_ptr()
    with isolated([model]), torch.no_grad():
        model(torch.ones(1, 3))
    assert model.weight.data_ptr() == place
    assert torch.equal(model.weight, before)


IN_PLACE: dict[str, Callable[[nn.Parameter, Tensor], object]] = {
    "mul_": lambda average, now: average.mul_(0.9).add_(now, alpha=0.1),
    "lerp_": lambda average, now: average.lerp_(now, 0.1),
    "copy_": lambda average, now: average.copy_(0.9 * average + 0.1 * now),
    "data.mul_": lambda average, now: average.data.mul_(0.9).add_(now.data, alpha=0.1),
    "other memory": lambda average, now: setattr(average, "data", average.mul_(0.9) + 0.1 * now),
}


class Momentum(nn.Module):
    """An encoder and its moving average, which a forward moves on, as MoCo's does."""

    def __init__(self, change: Callable[[nn.Parameter, Tensor], object], *, registered: bool = True) -> None:
        super().__init__()
        self.change, self.moves = change, True
        self.encoder = nn.Linear(3, 2)
        average = copy.deepcopy(self.encoder).requires_grad_(requires_grad=False)
        self.average = average if registered else [average]

    def teacher(self) -> nn.Linear:
        found: Any = self.average
        return found if isinstance(found, nn.Linear) else found[0]

    def forward(self, x: Tensor) -> Tensor:
        teacher = self.teacher()
        with torch.no_grad():
            for average, now in zip(teacher.parameters(), self.encoder.parameters(), strict=True):
                if self.moves:
                    self.change(average, now)
            target = teacher(x)
        result: Tensor = self.encoder(x) - target
        return result


def moved(change: Callable[[nn.Parameter, Tensor], object], *, registered: bool = True) -> Momentum:
    """One whose average is behind, so that each forward changes it; but for the bias, so far."""
    model = Momentum(change, registered=registered)
    with torch.no_grad():
        model.encoder.weight += 1
    return model


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("how", IN_PLACE)
def test_a_model_whose_forward_changes_parameters_in_place_trains_the_same(how: str, *, registered: bool) -> None:
    def train(*, watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = moved(IN_PLACE[how], registered=registered)
        optimizer, x = torch.optim.SGD(model.encoder.parameters(), 0.1), torch.randn(6, 3)
        options: dict[str, Any] = {"to": vizlog.Memory(), "batch": (x, torch.arange(6) % 2), "every": 1}
        monitor = vizlog.watch(model, optimizer, **options) if watched else None
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
            assert monitor.probes
        return [*model.encoder.parameters(), *model.teacher().parameters()]

    assert all(map(torch.equal, train(watched=True), train(watched=False)))


def test_standard_too_leaves_parameters_that_a_forward_changes_as_they_were() -> None:
    model = moved(IN_PLACE["data.mul_"])
    before = copy.deepcopy(model.state_dict())
    vizlog.standard(model, (torch.ones(2, 3), torch.zeros(2, dtype=torch.long)))
    assert plain(model.state_dict()) == plain(before)


def test_standard_leaves_a_model_in_training_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    batch = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    vizlog.standard(model, batch)
    assert [module.training for module in model] == [True, False, True, True]
    assert plain(model.state_dict()) == plain(before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("registered", [True, False])
def test_a_parameter_first_changed_by_a_later_pass_is_told_once_and_put_back_from_then_on(
    caplog: pytest.LogCaptureFixture, *, registered: bool
) -> None:
    model, x = moved(IN_PLACE["mul_"], registered=registered), torch.ones(1, 3)
    model.moves = False
    with isolated([model]), changes_learnt([model]):
        model(x)
    model.moves = True
    with isolated([model]):
        model(x)
    (said,) = caplog.messages
    assert ("average.weight, average.bias" if registered else "shape (2, 3), a parameter of shape (2,)") in said
    before = copy.deepcopy(model.teacher().state_dict())
    with isolated([model]):
        model(x)
    assert plain(model.teacher().state_dict()) == plain(before)
    assert len(caplog.messages) == 1


def test_of_parameters_those_alone_are_copied_that_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr("vizlog.changes.copied", lambda tensor: copied.append(tensor.data_ptr()) or tensor.clone())
    model = moved(IN_PLACE["data.mul_"])
    changed = [parameter.data_ptr() for parameter in model.teacher().parameters()]
    for looks in (changes_learnt, lambda models: contextlib.nullcontext()):
        with isolated([model]), looks([model]):
            model(torch.ones(1, 3))
        assert copied == changed
        copied.clear()


def test_a_parameter_that_other_processes_train_meanwhile_is_left_to_them() -> None:
    model = nn.Linear(2, 2).share_memory()
    with isolated([model]), changes_learnt([model]):
        memory = model.weight.data.numpy()
        memory[:] = 7  # as another process would: no operator is called for it here
    assert torch.equal(model.weight, torch.full((2, 2), 7.0))


@pytest.mark.filterwarnings("ignore:.*torch.nested:UserWarning")
def test_operators_of_any_kind_are_seen_in_a_first_pass_and_work_there() -> None:
    class Various(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lists = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(4)])
            self.kept = nn.Parameter(torch.eye(2))
            self.sparse = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            first, second, third, fourth = (parameter.data for parameter in self.lists)
            torch._foreach_mul_([first, second], 2)
            torch.add(x[0], 1, out=third)
            fourth[0] = 7
            self.sparse.data.mul_(1)
            torch.nested.nested_tensor([x[0], x[1, :1]]).mul_(2)
            torch.vmap(lambda row: row @ self.kept)(x)
            return x @ self.kept

    model, x = Various(), torch.ones(2, 2)
    before = copy.deepcopy(model.state_dict())
    with isolated([model]), changes_learnt([model]), torch.no_grad():
        model(x)
    for _ in range(2):
        assert [plain(p) for p in model.lists] == [plain(before[f"lists.{n}"]) for n in range(4)]
        with isolated([model]), torch.no_grad():
            model(x)


def test_a_model_made_in_inference_mode_has_no_versions_and_is_let_be() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    with isolated([model]), changes_learnt([model]):
        model(torch.ones(1, 2))


def test_a_gradient_of_another_type_than_its_weight_stays() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.weight.data = model.weight.data.bfloat16()
    with isolated([model]):
        assert model.bias.grad is None
    assert [parameter.grad for parameter in model.parameters()] == gradients


def test_a_gradient_of_another_shape_than_its_weight_stays() -> None:
    model = nn.Linear(2, 2)
    gradient = model.weight.grad = torch.ones(2, 2)
    model.weight.data = torch.ones(1, 2)
    with isolated([model]):
        pass
    assert model.weight.grad is gradient


def test_passes_of_two_threads_leave_the_settings_of_the_process_as_they_were() -> None:
    kept, model, other = torch_checkpoint.CheckpointFunction, nn.Linear(1, 1), nn.Linear(1, 1)
    entered, may_leave = threading.Event(), threading.Event()

    def second() -> None:
        with isolated([other]):
            entered.set()
            may_leave.wait()

    thread = threading.Thread(target=second)
    with isolated([model]):
        thread.start()
        entered.wait()
    assert torch_checkpoint.CheckpointFunction is not kept
    may_leave.set()
    thread.join()
    assert torch_checkpoint.CheckpointFunction is kept


def test_a_setting_that_could_not_be_put_on_is_tried_again_the_next_time() -> None:
    tried: list[int] = []

    def put_on() -> Callable[[], object]:
        tried.append(1)
        if len(tried) == 1:
            raise RuntimeError
        return lambda: tried.append(-1)

    setting = Setting(put_on)
    with pytest.raises(RuntimeError), setting.held():
        pass
    with setting.held():
        assert tried == [1, 1]
    assert tried == [1, 1, -1]


def test_noise_begins_anew_in_each_pass_and_training_has_its_own() -> None:
    model, drawn = nn.Dropout(0.5), []
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    for _ in range(2):
        with isolated([model]):
            start_noise([model])
            drawn.append((torch.rand(3).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_noise_of_whatever_generator_numpy_was_given_begins_anew_too(kind: Callable[[int], Any]) -> None:
    model, given = nn.Linear(1, 1), np.random.get_bit_generator()
    np.random.set_bit_generator(kind(3))
    try:
        np.random.standard_normal()  # noqa: NPY002 -- of which the old one makes two, and keeps the other
        drawn, before = [], str(np.random.get_state(legacy=False))  # noqa: NPY002
        for _ in range(2):
            with isolated([model]):
                start_noise([model])
                drawn.append(np.random.rand())  # noqa: NPY002
        assert drawn[0] == drawn[1]
        assert str(np.random.get_state(legacy=False)) == before  # noqa: NPY002
    finally:
        np.random.set_bit_generator(given)
