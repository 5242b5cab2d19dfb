"""Ways to train in one process: loops that run with and without vizlog, and note by hand what is to be seen."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset, default_collate

import vizlog
from vizlog.callbacks.lightning import VizLog

STEPS = 5
EVERY = 2  # so that what is attached for a due step comes and goes
X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3
HELD_OUT = (X[:12], Y[:12])

Arrays = dict[str, np.ndarray]


class Run:
    """One training: what it was given, and what was noted by hand on the way.

    Args:
        watches: whether vizlog looks at it. A run without is the reference: it alone notes.
        live: whether the live forward is looked at instead of a fixed batch.
    """

    def __init__(self, *, watches: bool, live: bool = False) -> None:
        self.watches, self.live = watches, live
        self.memory = vizlog.Memory()
        self.model: nn.Module = nn.Module()  # the bare one
        self.optimizers: list[Optimizer] = []  # the real ones
        self.monitor: vizlog.Monitor | None = None
        self.steps: list[int] = []  # as on the user's own charts
        self.gradients: list[Arrays] = []  # for each of them, as the optimizer uses them
        self.weights: list[Arrays] = []  # for each of them, after it
        self.units: list[int | None] = []  # for each of them, how many outputs of the layer `hidden` were trained on
        self.states: list[str] = []  # what copies and pickles came to
        self.idle: list[int] = []  # how many hooks there were where nothing is due
        self.hooked = 0  # how many hooks there were at most when they were made
        self.graphs: list[int] = []  # after each step
        self.extras: list[Any] = []  # whatever else must be the same with and without
        self.outcome: dict[str, Any] = {}
        self.said: list[str] = []  # what vizlog warned of
        self.call: Callable[[nn.Module], Any] = lambda model: model(X[:2])  # what a copy is tried with
        self._new: Arrays = {}
        self._names: dict[int, str] = {}

    # What a loop calls ------------------------------------------------------------------------------------------------

    def watch(self, model: Any, optimizer: Any, **options: Any) -> None:
        """The one line before the loop."""
        if self.watches:
            options = {"every": vizlog.Every(EVERY), "batch": HELD_OUT, **options}
            if self.live:
                del options["batch"]
            self.monitor = vizlog.watch(model, optimizer, to=self.memory, **options)

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def final(self, parameters: Iterable[nn.Parameter] | None = None, scale: float = 1.0) -> None:
        """Here gradients are what the optimizer uses, but for a factor."""
        for parameter in self.model.parameters() if parameters is None else parameters:
            if parameter.grad is not None:
                self._new[self.name(parameter)] = (parameter.grad.detach() / scale).float().numpy().copy()

    def stepped(self, units: int | None = None) -> None:
        """Here a step is complete; a person's own chart has a point."""
        self.steps.append(len(self.steps))
        self.gradients.append(self._new)
        self.weights.append({self.name(p): p.detach().float().numpy().copy() for p in self.model.parameters()})
        self.units.append(units)
        self._new = {}
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def moment(self) -> None:
        """Here a person may copy, pickle or save the model."""
        if len(self.steps) > EVERY:
            return  # a due step and one that is not have been seen
        self.hooked = max(self.hooked, hooks(self.model))
        if len(self.steps) == 1:  # nothing is due
            self.idle.append(hooks(self.model))
        for make in (copied, pickled, saved):
            try:
                twin = make(self.model).eval()
                with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
                    out = as_tensor(self.call(twin))
                self.states.append(f"{make.__name__} {out.abs().sum().item():.6g}")
            except Exception as error:  # noqa: BLE001 -- what fails must fail without vizlog too
                self.states.append(f"{make.__name__} {type(error).__name__}")
        self.states += [str(sorted(vars(module))) for module in self.model.modules()]

    # --------------------------------------------------------------------------------------------------------------

    def name(self, parameter: nn.Parameter) -> str:
        """Its name in the bare model."""
        if id(parameter) not in self._names:
            self._names = {id(p): name.replace("_orig_mod.", "") for name, p in self.model.named_parameters()}
        return self._names[id(parameter)]

    def everything(self) -> dict[str, Any]:
        """Everything that must be the same with and without vizlog."""
        return {
            "weights and buffers": dict(self.model.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002 -- what a person's own training code draws from
            "modes": [module.training for module in self.model.modules()],
            "gradients": [parameter.grad for parameter in self.model.parameters()],
            "trained": [parameter.requires_grad for parameter in self.model.parameters()],
            "steps": self.steps,
            "extras": self.extras,
        }


def hooks(model: nn.Module) -> int:
    """How many hooks of any kind hang on a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    data = pickle.dumps(model)
    assert b"vizlog" not in data  # it opens where vizlog is not installed
    return pickle.loads(data)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    assert b"vizlog" not in file.getvalue()
    file.seek(0)
    return torch.load(file, weights_only=False)


def as_tensor(output: Any) -> Tensor:
    """The logits in what a model gives."""
    output = getattr(output, "logits", getattr(output, "last_hidden_state", output))
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


# Models ---------------------------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """Of a class of one's own, so that it compiles by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Net(nn.Module):
    """Convolution, BatchNorm, in-place activations, dropout, LayerNorm, a functional activation."""

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant  # how its body is checkpointed; None: not at all
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(4, 8)
        self.block = Block(nn.Tanh(), nn.Dropout(0.3), nn.LayerNorm(8))
        self.head = nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.block(self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(x)


UNITS = 8  # of the layer `hidden`, for each example


def batches(steps: int = STEPS, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Real training draws from all three generators."""
    for step in range(steps):
        rows = (torch.arange(size) + size * step) % 64
        yield noisy(X[rows]), Y[rows]


def noisy(x: Tensor) -> Tensor:
    return x + 0.01 * torch.randn_like(x) + 0.01 * random.random() * np.random.rand()  # noqa: NPY002


def loss_of(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(as_tensor(model(x)).float(), y)


def prepared(run: Run, model: nn.Module | None = None, optimizer: Any = None) -> tuple[nn.Module, Optimizer]:
    """The model and the optimizer of most loops."""
    run.model = Net() if model is None else model
    made = AdamW(run.model.parameters(), lr=0.01) if optimizer is None else optimizer(run.model.parameters())
    run.optimizers = [made]
    return run.model, made


# Loops ----------------------------------------------------------------------------------------------------------------


def loop(
    run: Run, model: Any, optimizer: Any, steps: int = STEPS, amount: Callable[[Tensor], int] | None = None
) -> None:
    """A plain one, on what has been watched."""
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        run.moment()
        run.final()
        optimizer.step()
        run.stepped(len(x) * UNITS if amount is None else amount(x))
        run.moment()


def plain(run: Run) -> None:
    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    loop(run, model, optimizer)


def nesterov(run: Run) -> None:
    model, optimizer = prepared(run, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True))
    run.watch(model, optimizer)
    loop(run, model, optimizer)


def accumulation(run: Run) -> None:
    """Forty micro-batches a step; the last step has but seven."""
    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    examples = 0
    for number, (x, y) in enumerate(batches(2 * 40 + 7, size=4), 1):
        (loss_of(model, x, y) / 40).backward()
        examples += len(x)
        if number % 40 == 0 or number == 87:
            run.moment()
            run.final()
            optimizer.step()
            optimizer.zero_grad()
            run.stepped(examples * UNITS)
            examples = 0


def scaled(run: Run, *, fused: bool) -> None:
    """The loss overflows once, where a step is due."""
    model, optimizer = prepared(run, optimizer=lambda p: AdamW(p, lr=0.01, fused=fused))
    run.watch(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    examples = 0
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        loss = loss_of(model, x, y) * (float("inf") if step == EVERY else 1.0)
        scaler.scale(loss).backward()
        examples += len(x)
        run.moment()
        if step != EVERY:
            run.final(scale=scaler.get_scale())
        scaler.step(optimizer)
        if fused or step != EVERY:  # the other skips by not stepping at all
            run.stepped(examples * UNITS)
            examples = 0
        scaler.update()


def mixed(run: Run) -> None:
    model, optimizer = prepared(run)
    run.watch(model, optimizer)

    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    loop(run, cast, optimizer)


def clipped(run: Run) -> None:
    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        run.final()
        optimizer.step()
        run.stepped(len(x) * UNITS)


def checkpointed(run: Run, *, reentrant: bool) -> None:
    model, optimizer = prepared(run, Net(reentrant=reentrant))
    run.watch(model, optimizer)
    loop(run, model, optimizer)


def deterministic(run: Run) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        plain(run)
        run.close()
    finally:
        torch.use_deterministic_algorithms(False)


def closures(run: Run) -> None:
    """The closure runs many times; the optimizer's first gradient is that of the first."""
    model, optimizer = prepared(run, optimizer=lambda p: LBFGS(p, lr=0.1, max_iter=4))
    run.watch(model, optimizer)
    for x, y in batches():
        calls: list[int] = []

        def closure(x: Tensor = x, y: Tensor = y, calls: list[int] = calls) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            if not calls:
                run.final()
            calls.append(len(x) * UNITS)
            return loss

        optimizer.step(closure)
        run.stepped(sum(calls))
        run.moment()


def evaluating(run: Run) -> None:
    """Hundreds of forwards between two steps."""
    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        run.final()
        optimizer.step()
        run.stepped(len(x) * UNITS)
        model.train(step % 2 == 0)
        with torch.no_grad() if step % 2 else torch.inference_mode():
            for _ in range(100):
                model(x[:2])
        model.train()


def averaged(run: Run) -> None:
    """A moving average is kept of deep copies, made wherever a person likes."""
    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        twin = copy.deepcopy(model)
        loss_of(twin, x, y).backward()  # trains on
        run.final()
        optimizer.step()
        run.stepped(len(x) * UNITS)
        average.update_parameters(model)
        loss_of(average, x, y).backward()
    run.extras += [dict(average.state_dict()), dict(twin.state_dict())]


# Compiled -------------------------------------------------------------------------------------------------------------


def compiled(run: Run, *, how: str, watch: str) -> None:
    """Compiled before or after vizlog attaches; nothing may be compiled again once the first steps have passed."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, optimizer = prepared(run)
    step = optimizer.step
    if watch == "before":
        run.watch(model, optimizer)
    called: Any = model
    if how == "whole":
        called = torch.compile(model, backend="aot_eager", fullgraph=True)
    elif how == "parts":
        model.block.compile(backend="aot_eager")  # type: ignore[union-attr, operator]
    elif how == "wrapped parts":
        model.block = torch.compile(model.block, backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    elif how == "step":
        step = torch.compile(optimizer.step, backend="aot_eager")
    if watch == "after":
        run.watch(called, optimizer)
    for number, (x, y) in enumerate(batches(7)):
        with torch.compiler.set_stance("fail_on_recompile") if number > 2 else nullcontext():
            optimizer.zero_grad()
            loss_of(called, x, y).backward()
            run.moment()
            run.final()
            step()
            run.stepped(len(x) * UNITS)


# Optimizers -----------------------------------------------------------------------------------------------------------


def in_backward(run: Run) -> None:
    """Each parameter's own optimizer steps as soon as its gradient is there, and frees it."""
    run.model = model = Net()
    own = {parameter: AdamW([parameter], lr=0.01) for parameter in model.parameters()}
    run.optimizers = list(own.values())

    def hook(parameter: nn.Parameter) -> None:
        run.final([parameter])
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    run.watch(model, own)
    for x, y in batches():
        loss_of(model, x, y).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        run.stepped(len(x) * UNITS)


class Wrapped(Optimizer):
    """As accelerate's: an Optimizer in name, whose step calls the real one's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.steps_on = True

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        if self.steps_on:
            self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure) if self.steps_on else None


def wrapper(run: Run) -> None:
    """Accumulates as accelerate does: the wrapper's step does nothing in between."""
    model, optimizer = prepared(run)
    wrapped = Wrapped(optimizer)
    run.watch(model, wrapped)
    for number, (x, y) in enumerate(batches(2 * STEPS)):
        wrapped.steps_on = number % 2 == 1
        (loss_of(model, x, y) / 2).backward()
        if wrapped.steps_on:
            run.final()
        wrapped.step()
        wrapped.zero_grad()
        if wrapped.steps_on:
            run.stepped(2 * len(x) * UNITS)


class Container(Optimizer):
    """As torchtitan's OptimizersContainer: an Optimizer that holds one for each part of the model."""

    def __init__(self, parts: Iterable[nn.Module], make: Callable[[Any], Optimizer]) -> None:
        parts = list(parts)
        self.optimizers = [make(part.parameters()) for part in parts]
        super().__init__([p for part in parts for p in part.parameters()], {"lr": 1.0})

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(*args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step(*args, **kwargs)


def container(run: Run) -> None:
    """Its own rate is not the one trained with, and loading a checkpoint steps the inner ones alone."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    run.model = model = Net()
    held = Container([model.stem, model.hidden, model.block, model.head], lambda p: AdamW(p, lr=0.01))
    run.optimizers = held.optimizers
    run.watch(model, held)
    for optimizer in held.optimizers:
        set_optimizer_state_dict(model, optimizer, get_optimizer_state_dict(model, optimizer))
    loop(run, model, held)


def loaded(run: Run) -> None:
    """Loading optimizer state takes a step of its own at rate 0, which trains nothing."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, optimizer = prepared(run)
    run.watch(model, optimizer)
    state = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, state)
    loop(run, model, optimizer, 2)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    optimizer.zero_grad()
    optimizer.state.clear()
    set_optimizer_state_dict(model, optimizer, state)
    loop(run, model, optimizer, 3)


class Both(nn.Module):
    """A generator and a critic; what they train on is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.critic = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.critic(self.hidden(noise.flatten(1)[:, :6]))


def adversaries(run: Run) -> None:
    """The generator's backward fills the critic's gradients too, which are not what the critic's optimizer uses."""
    run.model = model = Both()
    of_g, of_d = (Adam(part.parameters(), lr=0.01) for part in (model.hidden, model.critic))
    run.optimizers = [of_g, of_d]
    run.watch(model, [of_g, of_d])
    for real, _ in batches():
        fake = model.hidden(torch.randn(8, 6))
        of_d.zero_grad()
        (model.critic(fake.detach()).mean() - model.critic(real.flatten(1)[:, :8]).mean()).backward()
        run.final(model.critic.parameters())
        of_d.step()
        of_g.zero_grad()
        (-model.critic(fake).mean()).backward()
        run.final(model.hidden.parameters())
        of_g.step()
        run.stepped(8 * UNITS)


# Models of many kinds -------------------------------------------------------------------------------------------------


def data_parallel(run: Run) -> None:
    model, optimizer = prepared(run)
    parallel = nn.DataParallel(model)
    run.watch(parallel, optimizer)
    loop(run, parallel, optimizer)


class Stages(nn.ModuleList):
    """Two parts of a pipeline, called one after the other."""

    def __init__(self) -> None:
        whole = Net()
        super().__init__([whole.stem, nn.Sequential(nn.Flatten(), nn.Linear(64, 8), whole.block, whole.head)])

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))


def stages(run: Run) -> None:
    run.model = model = Stages()
    both = Container(model, lambda p: AdamW(p, lr=0.01))
    run.optimizers = both.optimizers
    batch = vizlog.FixedBatch(*HELD_OUT, forward=lambda parts, x: parts["1"](parts["0"](x)))
    run.watch(list(model), both, batch=batch)
    loop(run, model, both)


@dataclass
class Result:
    name: str
    hidden: Tensor


class Cache:
    """As a key-value cache: no tensor and no container, and the forward adds to the one it is given."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class Part(nn.Module):
    """Gives its output in one of the ways that models do."""

    def __init__(self, kind: str, *shape: int) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(*shape)

    def forward(self, x: Tensor, *, cache: Cache | None = None) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        out = self.fc(x)
        if self.kind == "tuple":
            return out, (out.mean(), None)
        if self.kind == "dict":
            return {"nothing": None, "hidden": out, "more": [out]}
        if self.kind == "dataclass":
            return Result("hidden", out)
        if self.kind == "output":
            return BaseModelOutput(last_hidden_state=out)
        assert cache is not None
        cache.keys.append(out.detach())
        return cache, out


class Varied(nn.Module):
    """Its layers give tuples, dicts, dataclasses, outputs as transformers' and caches; one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = Part("tuple", 36, 8)
        self.b, self.c, self.d, self.e = (Part(kind, 8, 8) for kind in ("dict", "dataclass", "output", "cache"))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        cache = Cache()
        x = self.hidden(x.flatten(1))[0].relu_()
        x = self.d(self.c(self.b(x)["hidden"]).hidden)["last_hidden_state"]
        x = self.e(self.e(x, cache=cache)[1], cache=cache)[1]
        return SequenceClassifierOutput(logits=self.head(x), hidden_states=tuple(cache.keys))


def varied(run: Run) -> None:
    model, optimizer = prepared(run, Varied())
    run.watch(model, optimizer)
    loop(run, model, optimizer)


class Tied(nn.Module):
    """One module stands at two places, another has the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.head = nn.Linear(36, 8), nn.Linear(8, 36), nn.Linear(36, 3)
        self.again = self.hidden
        self.twin = nn.Linear(36, 8)
        self.twin.weight = self.hidden.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for part in (self.hidden, self.again, self.twin):
            x = torch.tanh(self.out(part(x)))
        return self.head(x)


def tied(run: Run) -> None:
    model, optimizer = prepared(run, Tied())
    run.watch(model, optimizer)
    loop(run, model, optimizer)


def thawed(run: Run) -> None:
    """Only the head is trained at first; the rest joins, part of it with parameters the optimizer gets then."""
    run.model = model = Net()
    for part in (model.stem, model.hidden):
        part.requires_grad_(False)
    optimizer = AdamW([*model.block.parameters(), *model.head.parameters(), *model.hidden.parameters()], lr=0.01)
    run.optimizers = [optimizer]
    run.watch(model, optimizer)
    loop(run, model, optimizer, 3)
    model.stem.requires_grad_(True)
    model.hidden.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.stem.parameters()), "lr": 0.001})
    loop(run, model, optimizer, 4)


def untrained(run: Run) -> None:
    """Nothing requires a gradient: there is no optimizer, only forwards."""
    run.model = model = Net().requires_grad_(False)
    run.watch(model, None)
    for x, _ in batches():
        with run.monitor.step() if run.monitor is not None else nullcontext():
            model(x)
            run.moment()
        run.stepped(len(x) * UNITS)


# Trainers -------------------------------------------------------------------------------------------------------------


def fabric(run: Run, *, precision: str = "32-true", compiles: bool = False) -> None:
    made = Fabric(accelerator="cpu", devices=1, precision=precision)
    bare, real = prepared(run)
    if compiles:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    model, optimizer = made.setup(torch.compile(bare, backend="aot_eager") if compiles else bare, real)
    run.watch(model, optimizer)
    for x, y in batches():
        optimizer.zero_grad()
        made.backward(loss_of(model, x, y))
        made.clip_gradients(model, optimizer, max_norm=0.05)
        run.final()
        optimizer.step()
        run.stepped(len(x) * UNITS)
        run.moment()


class Module(Net, LightningModule):
    """The same layers under Lightning's hands."""

    logs = True

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        loss = self.loss(batch)
        if self.logs:
            self.log("loss", loss)
        return loss

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=0.01)


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.05)
        optimizer.step()
        self.log("loss", loss)


class Adversaries(Manual):
    """Two optimizers a batch, so that `global_step` counts twice; the second one's backward fills all gradients."""

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc, union-attr]
        for optimizer, part in ((first, [self.stem, self.hidden]), (second, [self.block, self.head])):
            self.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            self.trainer.callbacks[0].run.final([p for m in part for p in m.parameters()])  # type: ignore[attr-defined]
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        both = [self.stem, self.hidden], [self.block, self.head]
        return [AdamW([p for m in part for p in m.parameters()], lr=0.01) for part in both]


class Notes(Callback):
    """Notes what a trainer does; in front of vizlog, so that copies are made while its hooks are there."""

    def __init__(self, run: Run) -> None:
        self.run, self.batches, self.after = run, 0, 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.moment()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1
        if trainer.global_step > self.after:
            self.after = trainer.global_step
            if len(trainer.optimizers) == 1:
                self.run.final()
            self.run.stepped(self.batches * len(trainer.optimizers) * 8 * UNITS)
            self.batches = 0


class Chart(Logger):
    """A person's own chart of the loss: which steps it shows."""

    name, version = "chart", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "loss" in metrics:
            self.steps.append(int(step or 0))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def trainer(run: Run, chart: Chart, **options: Any) -> Trainer:
    # Lightning warns of the few workers; a person would have more.
    ours = []
    if run.watches:
        looks = [vizlog.ActivationHistograms(every=EVERY, source="live")] if run.live else None
        every = None if run.live else vizlog.Every(EVERY)
        ours = [VizLog(looks, to=run.memory, batch=HELD_OUT, every=every)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, "limit_train_batches": STEPS}
    return Trainer(callbacks=[Notes(run), *ours], logger=chart, **{**quiet, **defaults, **options})


def loader() -> Any:
    return DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, collate_fn=drawing)


def drawing(examples: list[Any]) -> Any:
    x, y = default_collate(examples)
    return noisy(x), y


def lightning(run: Run, kind: type[Module] = Module, *, compiles: bool = False, fits: int = 1, **options: Any) -> None:
    """Once, compiled, or fitted several times with the same callback."""
    run.model = module = kind()
    chart = Chart()
    made = trainer(run, chart, **options)
    called: Any = module
    if compiles:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        module.logs = False  # dynamo cannot trace it
        called = torch.compile(module, backend="aot_eager")
    for epochs in range(1, fits + 1):
        made.fit_loop.max_epochs = epochs
        made.fit(called, loader())
    run.optimizers = [*made.optimizers]
    if not compiles:
        assert run.steps == chart.steps


def lightning_deterministic(run: Run) -> None:
    try:
        lightning(run, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def lightning_resumed(run: Run) -> None:
    """Another process goes on from a checkpoint: another module, callback and monitor."""
    chart = Chart()
    run.model = first = Module()
    made = trainer(run, chart, limit_train_batches=4)
    made.fit(first, loader())
    made.save_checkpoint("half.ckpt")
    run.model, run._names = Module(), {}
    made = trainer(run, chart, limit_train_batches=4, max_epochs=2)
    made.callbacks[0].after = 4  # type: ignore[attr-defined]
    made.fit(run.model, loader(), ckpt_path="half.ckpt")  # type: ignore[arg-type]
    run.optimizers = [*made.optimizers]
    assert run.steps == chart.steps


# Models that are not of this repository -------------------------------------------------------------------------------


def transformer(run: Run, kind: str) -> None:
    """A small one of Hugging Face's, with what people train it with."""
    import transformers as hf

    ids = torch.randint(3, 60, (12, 7))
    images = torch.randn(12, 3, 8, 8)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
        "GPT-2": lambda: (
            hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=16)),
            {"input_ids": ids, "labels": ids},
        ),
        "BERT": lambda: (
            hf.BertForSequenceClassification(hf.BertConfig(vocab_size=64, num_labels=3, **small)),
            {"input_ids": ids, "attention_mask": (ids > 10).long(), "labels": Y[:12]},
        ),
        "ViT": lambda: (
            hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **small)),
            {"pixel_values": images, "labels": Y[:12]},
        ),
        "T5": lambda: (
            hf.T5ForConditionalGeneration(
                hf.T5Config(
                    d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64, decoder_start_token_id=0
                )
            ),
            {"input_ids": ids, "labels": ids},
        ),
    }
    model, batch = made[kind]()
    model, optimizer = prepared(run, model.train())
    if kind == "GPT-2":
        model.activation_checkpointing_enable({"use_reentrant": True})  # type: ignore[operator]
    run.call = lambda model: model(**batch)
    run.watch(model, optimizer, batch=batch)
    for _ in range(STEPS):
        optimizer.zero_grad()
        rows = torch.randperm(12)[:6]
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "T5"):
            loss = model(**{name: values[rows] for name, values in batch.items()}).loss
        loss.backward()
        run.moment()
        run.final()
        optimizer.step()
        run.stepped()


REGIMES: dict[str, Callable[[Run], None]] = {
    "plain": plain,
    "nesterov": nesterov,
    "gradient accumulation": accumulation,
    "gradient scaler": partial(scaled, fused=False),
    "gradient scaler, fused optimizer": partial(scaled, fused=True),
    "bf16 autocast": mixed,
    "gradient clipping": clipped,
    "checkpointed": partial(checkpointed, reentrant=False),
    "checkpointed, reentrant": partial(checkpointed, reentrant=True),
    "deterministic algorithms": deterministic,
    "LBFGS": closures,
    "evaluations in between": evaluating,
    "moving average of copies": averaged,
    "compiled after": partial(compiled, how="whole", watch="before"),
    "compiled before": partial(compiled, how="whole", watch="after"),
    "compiled parts": partial(compiled, how="parts", watch="before"),
    "compiled parts before": partial(compiled, how="parts", watch="after"),
    "compiled parts, wrapped": partial(compiled, how="wrapped parts", watch="before"),
    "compiled parts, wrapped before": partial(compiled, how="wrapped parts", watch="after"),
    "compiled in place": partial(compiled, how="in place", watch="before"),
    "compiled in place before": partial(compiled, how="in place", watch="after"),
    "compiled optimizer step": partial(compiled, how="step", watch="before"),
    "optimizer in backward": in_backward,
    "two optimizers": adversaries,
    "optimizer wrapper": wrapper,
    "optimizer container": container,
    "loading optimizer state": loaded,
    "DataParallel": data_parallel,
    "pipeline parts": stages,
    "outputs of many kinds": varied,
    "tied weights": tied,
    "layers unfrozen later": thawed,
    "nothing to train": untrained,
    "Lightning": lightning,
    "Lightning, manual": partial(lightning, kind=Manual),
    "Lightning, two optimizers": partial(lightning, kind=Adversaries),
    "Lightning, accumulation and clipping": partial(lightning, accumulate_grad_batches=2, gradient_clip_val=0.05),
    "Lightning, compiled": partial(lightning, compiles=True),
    "Lightning, deterministic": lightning_deterministic,
    "Lightning, second fit": partial(lightning, fits=2, limit_train_batches=4),
    "Lightning, resumed": lightning_resumed,
    "Fabric": fabric,
    "Fabric, bf16": partial(fabric, precision="bf16-mixed"),
    "Fabric, compiled": partial(fabric, compiles=True),
    "GPT-2": partial(transformer, kind="GPT-2"),
    "BERT": partial(transformer, kind="BERT"),
    "ViT": partial(transformer, kind="ViT"),
    "T5": partial(transformer, kind="T5"),
}
