"""The optimizer's step: what is hooked, when gradients are read, what counts as a step."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as everyones
from torch.optim.optimizer import _global_optimizer_pre_hooks as everyones_first
from torch.optim.optimizer import register_optimizer_step_post_hook

import vizlog
from vizlog.optimizers import _AFTER_ALL, Rounds, StepHooks, _OnAll, makes_state_only, real_optimizers, skipped


class Accelerated(Optimizer):
    """As accelerate wraps: an Optimizer in name, whose step calls the real one's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def made(kind: type[Optimizer] = SGD, **options: Any) -> Optimizer:
    return kind([nn.Parameter(torch.ones(2))], lr=0.1, **options)


def test_each_real_optimizer_is_found_once() -> None:
    a, b = made(), made(Adam)
    lightning = SimpleNamespace(optimizer=a)
    container = SimpleNamespace(optimizers=[a, b])
    for given in (
        [a, b],
        (b, a),
        {"g": a, "d": b},
        container,
        [a, [b], a],
        [Accelerated(a), b],
        [lightning, container],
    ):
        assert {id(optimizer) for optimizer in real_optimizers(given)} == {id(a), id(b)}
        assert len(real_optimizers(given)) == 2
    assert real_optimizers(Accelerated(Accelerated(a))) == [a]
    assert real_optimizers(SimpleNamespace(optimizer=lightning)) == [a]
    assert real_optimizers(_FabricOptimizer(a, strategy=None)) == [a]


def test_a_wrapper_may_call_what_it_holds_as_it_likes() -> None:
    a, b, c = made(), made(Adam), made()

    class Hidden:
        def __init__(self) -> None:
            self.__inner = a
            self.rest = (b,)
            self.by_name = {"c": c}

    assert real_optimizers(Hidden()) == [a, b, c]


def test_an_optimizer_that_holds_others_is_hooked_itself_only_where_it_trains_more_than_they_do() -> None:
    a, b = made(), made(Adam)
    both = [p for o in (a, b) for p in o.param_groups[0]["params"]]
    outer = SGD(both, lr=1.0)
    outer.optimizers = [a, b]  # type: ignore[attr-defined]
    assert real_optimizers(outer) == [a, b]  # a container
    outer.optimizers = [a]  # type: ignore[attr-defined]
    assert real_optimizers(outer) == [outer]  # as ZeRO's, one rank of which has a share


class InName(Optimizer):
    """Its hooks are none that its step calls."""

    def __init__(self) -> None:
        self.param_groups = made().param_groups


ROUND = SimpleNamespace()
ROUND.optimizer = ROUND
FAR = SimpleNamespace(trainer=SimpleNamespace(optimizer=made()))
"""Whose it is, and whether it trains the model, nobody knows."""


@pytest.mark.parametrize(
    "given", ["adam", [], 3, SimpleNamespace(optimizer=None), nn.Linear(1, 1), InName(), ROUND, FAR]
)
def test_what_holds_no_optimizer_says_what_to_do(given: Any) -> None:
    with pytest.raises(TypeError, match=r"no torch optimizer found in .*monitor\.step"):
        real_optimizers(given)


def watched(optimizer: Optimizer) -> tuple[list[tuple[str, Tensor, Tensor | None]], StepHooks]:
    """What was called, with copies of the first parameter and its gradient."""
    told: list[tuple[str, Tensor, Tensor | None]] = []
    parameter = optimizer.param_groups[0]["params"][0]

    def tell(moment: str) -> Any:
        def note(optimizer: Optimizer) -> bool:
            gradient = None if parameter.grad is None else parameter.grad.clone()
            told.append((moment, parameter.detach().clone(), gradient))
            return True

        return note

    moments = {moment: tell(moment) for moment in ("before", "gradients", "after", "other")}
    return told, StepHooks([optimizer], **moments)


def test_only_a_compiled_step_goes_round_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hook: Any) -> Any:
        return lambda *_: pytest.fail("that takes longer than the hook")

    handles: list[Any] = []

    def register(hook: Any) -> Any:
        handles.append(register_optimizer_step_post_hook(hook))
        return handles[0]

    monkeypatch.setattr(torch.compiler, "disable", refuse)
    monkeypatch.setattr("vizlog.optimizers._AFTER_ALL", _OnAll(register, compiled=True))
    optimizer = made()
    told, _ = watched(optimizer)
    optimizer.step()
    handles[0].remove()
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"]


def test_gradients_are_read_before_the_step_overwrites_them() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD([parameter], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    told, _ = watched(optimizer)
    parameter.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"]
    assert torch.equal(told[1][2], torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    assert torch.equal(told[0][1], torch.ones(2))
    assert torch.equal(told[2][1], parameter.detach())


@pytest.mark.parametrize("by_keyword", [True, False])
def test_gradients_of_a_closure_are_read_once_it_has_run(*, by_keyword: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD([parameter], lr=0.1)
    told, _ = watched(optimizer)
    parameter.grad = torch.full((2,), 99.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter * torch.tensor([3.0, 4.0])).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
    assert torch.equal(loss, torch.tensor(7.0))  # type: ignore[arg-type]
    assert torch.equal(told[1][2], torch.tensor([3.0, 4.0]))  # type: ignore[arg-type]
    assert torch.equal(told[1][1], torch.ones(2))


def test_a_closure_that_runs_many_times_is_read_once() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.LBFGS([parameter], max_iter=5)
    told, _ = watched(optimizer)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        calls.append(1)
        return loss

    optimizer.step(closure)
    assert len(calls) > 1
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"]
    assert float(told[1][2]) == 6  # type: ignore[arg-type]


def test_a_closure_that_raised_leaves_nothing_to_be_read_later() -> None:
    optimizer = made()
    told, _ = watched(optimizer)

    def fails() -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(fails)
    optimizer.step()
    assert [moment for moment, *_ in told] == ["before", "before", "gradients", "after"]


@pytest.mark.parametrize("moment", ["pre", "post"])
@pytest.mark.parametrize("registered", ["before", "between", "after"])
def test_a_hook_of_ones_own_may_take_itself_off(moment: str, registered: str) -> None:
    """The loop over hooks in torch fails where one comes after a hook that takes itself off."""
    optimizer = made()
    register = getattr(optimizer, f"register_step_{moment}_hook")
    handles, calls = [], []

    def register_once() -> None:
        def once(*_: Any) -> None:
            calls.append(1)
            handles[0].remove()

        handles.append(register(once))

    if registered == "before":
        register_once()
    told, _ = watched(optimizer)
    if registered == "between":
        register_once()
    told_too, _ = watched(optimizer)
    if registered == "after":
        register_once()
    for _ in range(2):
        optimizer.step()
    assert calls == [1]
    assert (
        [moment for moment, *_ in told] == [moment for moment, *_ in told_too] == ["before", "gradients", "after"] * 2
    )


def test_hooks_of_ones_own_that_raise_or_change_arguments() -> None:
    optimizer = made()
    told, hooks = watched(optimizer)
    told_too, _ = watched(optimizer)
    parameter = optimizer.param_groups[0]["params"][0]
    fails = [True, False, False]

    def first(*_: Any) -> None:
        if fails.pop(0):
            raise ArithmeticError

    def closure() -> Tensor:
        parameter.grad = torch.full_like(parameter, 3.0)
        return torch.tensor(7.0)

    def gives_closure(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        return (args[0], closure), kwargs

    optimizer.register_step_pre_hook(first)
    optimizer.register_step_pre_hook(gives_closure)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert optimizer.step() == 7
    for calls in (told, told_too):
        assert [moment for moment, *_ in calls] == ["before", "gradients", "after"]
        assert torch.equal(calls[1][2], torch.full((2,), 3.0))  # type: ignore[arg-type]
    hooks.remove()
    optimizer.step()
    assert gives_closure in optimizer._optimizer_step_pre_hooks.values()
    assert (len(told), len(told_too)) == (3, 6)


def test_arguments_that_a_hook_of_ones_own_has_changed_reach_the_step() -> None:
    class Told(SGD):
        def step(self, closure: Any = None, *, word: str = "") -> str:  # type: ignore[override]
            return word

    optimizer = Told([nn.Parameter(torch.ones(2))], lr=0.1)
    told, hooks = watched(optimizer)
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: (args, {**kwargs, "word": "theirs"}))
    assert [optimizer.step(), optimizer.step()] == ["theirs", "theirs"]
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"] * 2
    hooks.remove()


def test_a_closure_is_read_also_where_a_hook_of_ones_own_came_later() -> None:
    optimizer = made()
    parameter = optimizer.param_groups[0]["params"][0]
    told, hooks = watched(optimizer)
    optimizer.register_step_pre_hook(lambda *_: None)

    def closure() -> Tensor:
        parameter.grad = torch.full_like(parameter, 5.0)
        return torch.tensor(1.0)

    optimizer.step(closure)  # type: ignore[arg-type]
    assert torch.equal(told[1][2], torch.full((2,), 5.0))  # type: ignore[arg-type]
    assert torch.equal(told[1][1], torch.ones(2))  # before the step
    hooks.remove()


@pytest.mark.parametrize("wrong", [5, (1, 2, 3), [1, 2]])
def test_what_a_hook_of_ones_own_must_not_return_is_told_by_torch(wrong: Any) -> None:
    optimizer = made()
    _, hooks = watched(optimizer)
    optimizer.register_step_pre_hook(lambda *_: wrong)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    hooks.remove()


def test_hooks_that_are_cleared_away_are_gone() -> None:
    optimizer = made()
    told, hooks = watched(optimizer)
    optimizer.step()
    optimizer._optimizer_step_pre_hooks.clear()
    for _ in range(2):
        optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.step()
    assert [moment for moment, *_ in told].count("before") == 1
    hooks.remove()


@pytest.mark.parametrize("overflow", [True, False])
def test_a_fused_step_under_a_scaler_is_read_unscaled_and_says_whether_it_was_skipped(*, overflow: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    told, _ = watched(optimizer)
    found: list[Any] = []

    def note(optimizer: Any, *_: Any) -> None:
        found.append(skipped(optimizer))
        optimizer.found_inf.fill_(7)  # the scaler goes on with it

    optimizer.register_step_post_hook(note)
    scaler.scale((parameter * torch.tensor([1.0, float("inf") if overflow else 2.0])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert float(found[0]) == overflow
    if not overflow:
        assert torch.equal(told[1][2], torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    assert torch.equal(told[2][1], torch.ones(2)) is overflow


def test_a_step_outside_a_scaler_was_not_skipped() -> None:
    assert skipped(made()) is None
    optimizer: Any = made()
    optimizer.found_inf = False  # a wrapper's own
    assert skipped(optimizer) is None


def test_removed_hooks_are_gone() -> None:
    optimizer = made()
    told, hooks = watched(optimizer)
    hooks.remove()
    hooks.remove()
    optimizer.step()
    assert told == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_hooks_on_all_optimizers_go_with_what_made_them() -> None:
    def hook(given: list[Optimizer]) -> StepHooks:
        nothing: Any = lambda optimizer: None  # noqa: E731
        return StepHooks(given, before=nothing, gradients=nothing, after=nothing, other=nothing)

    gc.collect()  # those of other tests
    hook([made()])  # torch has one of ours for all from here on
    gc.collect()
    hooked, before = (len(everyones), len(everyones_first)), len(_AFTER_ALL._told)
    kept = hook([made()])
    assert len(_AFTER_ALL._told) == before + 1
    del kept
    gc.collect()
    assert len(_AFTER_ALL._told) == before
    assert (len(everyones), len(everyones_first)) == hooked
    assert not hook([])._handles


def test_monitors_come_and_go_while_others_train_in_threads() -> None:
    """Each in its own thread, as where folds are trained at once."""
    errors: list[BaseException] = []

    def train() -> None:
        try:
            model = nn.Linear(3, 3)
            optimizer = SGD(model.parameters(), lr=0.1)
            for _ in range(20):
                monitor = vizlog.watch(model, optimizer, to=None, probes=[vizlog.WeightHistograms()])
                for _ in range(30):
                    model(torch.ones(2, 3)).sum().backward()
                    optimizer.step()
                monitor.close()
        except BaseException as error:  # noqa: BLE001 -- it is looked at below
            errors.append(error)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_another_optimizer_is_told_once_and_not_kept() -> None:
    told: list[int] = []
    nothing: Any = lambda optimizer: None  # noqa: E731
    mine, stranger = made(), made()
    kept = StepHooks([mine], before=nothing, gradients=nothing, after=nothing, other=lambda o: told.append(id(o)))
    mine.step()
    stranger.step()  # as that of a wrapper around it would
    assert told == []
    for _ in range(3):
        stranger.step()
    assert told == [id(stranger)]
    gone = weakref.ref(stranger)
    del stranger
    gc.collect()
    assert gone() is None
    kept.remove()
    made().step()
    assert told == told[:1]


def test_another_optimizer_may_be_the_first_to_step() -> None:
    told: list[int] = []
    nothing: Any = lambda optimizer: None  # noqa: E731
    stranger = made()
    kept = StepHooks([made()], before=nothing, gradients=nothing, after=nothing, other=lambda o: told.append(id(o)))
    stranger.step()
    assert told == [id(stranger)]
    kept.remove()


def test_a_compiled_step_runs_hooks_in_the_order_in_which_they_were_registered() -> None:
    torch._dynamo.reset()
    optimizer = made()
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.full_like(parameter, 4.0)

    def halves(*_: Any) -> None:
        parameter.grad.mul_(0.5)

    optimizer.register_step_pre_hook(halves)
    told, _ = watched(optimizer)
    torch.compile(optimizer.step, backend="eager")()
    assert [(moment, gradient.tolist()) for moment, _, gradient in told] == [  # type: ignore[union-attr]
        (moment, [2.0, 2.0]) for moment in ("before", "gradients", "after")
    ]


@pytest.mark.parametrize("with_theirs", [False, True])
def test_hooks_that_were_copied_are_called(*, with_theirs: bool) -> None:
    optimizer, calls = made(), []
    told, _ = watched(optimizer)
    if with_theirs:
        optimizer.register_step_pre_hook(lambda *_: calls.append("theirs"))
    optimizer._optimizer_step_pre_hooks = type(optimizer._optimizer_step_pre_hooks)(optimizer._optimizer_step_pre_hooks)
    optimizer.step()
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"]
    assert calls == ["theirs"] * with_theirs


def test_an_optimizer_whose_state_is_all_it_has_is_copied_with_the_hook() -> None:
    class Whole(SGD):
        def __getstate__(self) -> dict[str, Any]:
            return self.__dict__

    model = nn.Linear(2, 1)
    optimizer = Whole(model.parameters(), lr=0.1)
    model(torch.ones(2)).backward()
    monitor = vizlog.watch(model, optimizer, to=vizlog.Memory(), probes=[vizlog.WeightHistograms()])
    copy.deepcopy(optimizer).step()
    monitor.close()


def test_a_hook_that_raises_step_after_step_does_no_harm_to_the_next() -> None:
    optimizer = made()
    raises = [True]

    def first(*_: Any) -> None:
        if raises[0]:
            raise ArithmeticError

    optimizer.register_step_pre_hook(first)
    optimizer.register_step_pre_hook(lambda *_: None)
    told, _ = watched(optimizer)
    told_too, _ = watched(optimizer)
    for _ in range(1000):
        with pytest.raises(ArithmeticError):
            optimizer.step()
    raises[0] = False
    optimizer.step()
    for calls in told, told_too:
        assert [moment for moment, *_ in calls] == ["before", "gradients", "after"]


def test_a_compiled_step_has_no_graph_of_ours() -> None:
    graphs = []
    for hooked in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        parameter = nn.Parameter(torch.ones(2))
        optimizer = SGD([parameter], lr=0.1)
        told = watched(optimizer)[0] if hooked else []
        step = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            parameter.grad = torch.ones(2)
            step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert [moment for moment, *_ in told] == ["before", "gradients", "after"] * 3
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_loading_a_checkpoint_makes_state_only(rate: Any) -> None:
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    optimizer = AdamW([nn.Parameter(torch.ones(2))], lr=rate)
    made: list[bool] = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: made.append(makes_state_only(optimizer)))
    _init_optim_state(optimizer)
    assert made == [True]


def test_a_warm_up_step_at_rate_zero_is_a_step() -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert not makes_state_only(SGD([parameter], lr=0.0))  # a closure is still to make the gradient
    parameter.grad = torch.tensor([0.0, 1.0])
    assert not makes_state_only(SGD([parameter], lr=0.0))
    other = nn.Parameter(torch.ones(2))
    other.grad = torch.zeros(2)
    assert not makes_state_only(SGD([other, parameter], lr=0.0))
    parameter.grad.zero_()
    assert makes_state_only(SGD([other, parameter], lr=0.0))
    assert not makes_state_only(SGD([parameter], lr=0.1))
    for group in ({"lr": torch.zeros((), device="meta")}, {}):  # a rate on a device is not waited for
        optimizer: Any = SimpleNamespace(param_groups=[{"params": [parameter], **group}])
        assert not makes_state_only(optimizer)


@pytest.mark.parametrize(
    ("order", "rounds"),
    [("aaa", 3), ("ababab", 3), ("aaaaab", 5), ("aabaab", 4), ("abcabc", 2), ("abaab", 3)],
)
def test_a_round_ends_where_an_optimizer_steps_again(order: str, rounds: int) -> None:
    optimizers = {name: made() for name in "abc"}
    counted, starts = Rounds(), 0
    for name in order:
        starts += counted.starts(optimizers[name])
        counted.stepped.add(id(optimizers[name]))
    assert starts == rounds


@pytest.mark.parametrize("given", [0.5, {"weight": 1.0}])
def test_what_is_no_closure_is_handed_on(given: Any) -> None:
    got: list[Any] = []

    class Scaled(SGD):
        def step(self, closure: Any = None) -> Any:
            got.append(closure)

    optimizer = Scaled([nn.Parameter(torch.ones(1))], lr=0.1)
    hooks = hooked(optimizer)
    optimizer.step(given)
    hooks.remove()
    assert got == [given]


def test_a_closure_may_be_called_with_arguments() -> None:
    class Calls(SGD):
        def step(self, closure: Any = None) -> Any:
            return closure("a", backward=True)

    optimizer = Calls([nn.Parameter(torch.ones(1))], lr=0.1)
    hooks = hooked(optimizer)
    assert optimizer.step(lambda *args, **kwargs: (args, kwargs)) == (("a",), {"backward": True})
    hooks.remove()


def test_hooks_that_are_taken_off_after_a_step_that_raised_leave_theirs() -> None:
    def raises(*_: Any) -> None:
        raise ArithmeticError

    def last(*_: Any) -> None:
        pass

    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for hook in (raises, last):
        optimizer.register_step_pre_hook(hook)
    hooks = hooked(optimizer)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    hooks.remove()
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [raises, last]


@pytest.mark.parametrize(("rate", "state_only"), [([0.1, 0.0], False), ([0.0, 0.0], True)])
def test_a_rate_may_be_a_vector(rate: list[float], *, state_only: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD([parameter], lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(rate)
    parameter.grad = torch.zeros(2)
    assert makes_state_only(optimizer) == state_only


def hooked(optimizer: Optimizer) -> StepHooks:
    def nothing(_: Any) -> None:
        pass

    return StepHooks([optimizer], before=lambda _: True, gradients=nothing, after=nothing, other=nothing)
