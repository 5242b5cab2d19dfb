"""The optimizer's step: where gradients are final, and where weights are new."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from vizlog.ranks import whole

__all__ = ["Rounds", "StepHooks", "makes_state_only", "owned", "real_optimizers", "skipped", "training", "weakly"]


def real_optimizers(given: Any) -> list[Optimizer]:
    """The torch optimizers in what a person gave: one, a list or dict of them, or wrappers that hold one; each once.

    Raises:
        TypeError: there is none in it; says what to do.
    """
    found = list(_unwrap(given, depth=0))
    if not found:
        raise TypeError(
            f"no torch optimizer found in {type(given).__name__}; give the torch.optim.Optimizer itself, or drive "
            "vizlog with `with monitor.step():` around forward and backward"
        )
    return list({id(optimizer): optimizer for optimizer in found}.values())


def _unwrap(given: Any, depth: int) -> Iterator[Optimizer]:
    if depth > 4:
        return
    parts: Iterable[Any]
    if isinstance(given, Mapping):
        parts = given.values()
    elif isinstance(given, (Sequence, set, frozenset)):
        parts = given
    else:
        parts = _held(given)
    found = [optimizer for part in parts for optimizer in _unwrap(part, depth + 1)]
    # An Optimizer that holds others is one in name only, whose step calls theirs; unless it trains more than they do,
    # as ZeRO's, which gives each rank a share.
    hookable = isinstance(given, Optimizer) and "_optimizer_step_pre_hooks" in vars(given)
    if hookable and not owned(given) <= set().union(*map(owned, found)):
        found = [given]
    yield from found


def _held(wrapper: Any) -> list[Any]:
    """What may be or hold an optimizer in the attributes of a wrapper, which call it by names of many kinds."""
    held = []
    for name, value in getattr(wrapper, "__dict__", {}).items():
        parts: Iterable[Any] = [value]
        if isinstance(value, Mapping):
            parts = value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = value
        if name in ("optimizer", "optimizers") or any(isinstance(part, Optimizer) for part in parts):
            held.append(value)
    return held


def owned(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that an optimizer trains."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def training(model: nn.Module, optimizers: Iterable[Any]) -> list[Any]:
    """Those of the optimizers that train parameters of this model.

    Not one that has none (Lightning's, where a module configures no optimizer), or copies of its own (DeepSpeed's).
    """
    parameters = {id(parameter) for parameter in model.parameters()}
    return [optimizer for optimizer in optimizers if owned(optimizer) & parameters]


class StepHooks:
    """Calls back at the three moments of each optimizer's step; nothing is ever attached to a module or a tensor.

    Args:
        optimizers: the real ones; where there is none, nothing is hooked.
        before: (optimizer) -> whether this step is to be looked at; called before anything has changed.
        gradients: (optimizer), once the gradients are what the optimizer uses: unscaled, clipped, reduced over ranks.
        after: (optimizer), with the new weights.
        other: (optimizer), once for each that steps and is not among them, where none of them has stepped in between.

    Where the step is given a closure, gradients are final only once the closure has returned, so it is wrapped; a
    gradient scaler's fused step unscales inside, so gradients are read after it.

    A person's own hooks run before ours, whenever they were registered: they may clip gradients, or change the new
    weights. Ours cannot simply stand last: where one of theirs removes itself while torch loops over all hooks, the
    loop raises if another follows. So ours stands first, and for this step wraps the last of theirs: it calls that one,
    and then itself. In a compiled step the order is fixed when it is compiled: only those of theirs run before ours
    that were registered before.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        before: Callable[[Optimizer], bool],
        gradients: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None],
        other: Callable[[Optimizer], None],
    ) -> None:
        self._before, self._gradients, self._after, self._other = before, gradients, after, other
        self._known = {id(optimizer) for optimizer in optimizers}
        self._strangers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._stepped = False
        self._unread: set[int] = set()
        self._behind: dict[int, _Behind] = {}
        own = [optimizer.register_step_pre_hook(_Ours(self)) for optimizer in optimizers]
        everyones = [_AFTER_ALL.tell(weakly(self.stepped))] if optimizers else []
        later = {
            id(optimizer): handle.id
            for optimizer, handle in zip(optimizers, own, strict=True)
            if not all(isinstance(hook, _Ours) for hook in _hooks(optimizer).values())
        }
        if later:
            everyones.append(_BEFORE_ALL.tell(_puts_first(later)))
        self._handles: list[RemovableHandle | _Told] = [*own, *everyones]
        for told in everyones:
            weakref.finalize(self, told.remove)

    def remove(self) -> None:
        """Takes the hooks off again."""
        for handle in self._handles:
            handle.remove()
        for behind in self._behind.values():
            behind.end()

    def give_way(self, optimizer: Optimizer, hooks: dict[int, Any]) -> bool:
        """Whether others among its `hooks`, a person's own, are to run first; the last of them then calls ours."""
        if (left := self._behind.pop(id(optimizer), None)) is not None:
            left.end()  # of a step that raised
        last = next(reversed(hooks))
        if isinstance(hooks[last], _Ours):
            return False
        self._behind[id(optimizer)] = _Behind(hooks, last, self.steps)
        return True

    def steps(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of the optimizers is about to step, and a person's own hooks have run."""
        self._stepped = True
        if self._behind:
            self._behind.pop(id(optimizer), None)
        if self._unread:
            self._unread.discard(id(optimizer))  # of a step that raised
        if not self._before(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if callable(closure):  # some take other things there
            self._unread.add(id(optimizer))

            def closure_then_read(*closure_args: Any, **closure_kwargs: Any) -> Any:
                loss = closure(*closure_args, **closure_kwargs)
                self._read_once(optimizer)
                return loss

            if len(args) > 1:
                return (args[0], closure_then_read, *args[2:]), kwargs
            return args, {**kwargs, "closure": closure_then_read}
        if _unscales_inside(optimizer):
            self._unread.add(id(optimizer))
        else:
            self._gradients(optimizer)
        return None

    def stepped(self, optimizer: Optimizer) -> None:
        """Any optimizer of this process has stepped, and its own hooks have run."""
        if id(optimizer) in self._known:
            if self._unread:
                self._read_once(optimizer)
            self._after(optimizer)
            return
        # A wrapper's own step takes one of ours.
        if not self._stepped and optimizer not in self._strangers:
            self._strangers.add(optimizer)
            self._other(optimizer)
        self._stepped = False

    def _read_once(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._unread:
            self._unread.discard(id(optimizer))
            self._gradients(optimizer)


def _hooks(optimizer: Optimizer) -> OrderedDict[int, Any]:
    hooks: Any = optimizer._optimizer_step_pre_hooks  # noqa: SLF001 -- torch tells nobody who else is hooked
    return hooks  # type: ignore[no-any-return]


class _OnAll:
    """One hook on all optimizers of the process, for all monitors.

    It stays where it is: were one of its own to come or go with each monitor, torch's loop over the hooks would end in
    an error where another thread is in the midst of it.

    Args:
        register: torch's function that puts a hook on all optimizers.
        compiled: whether it is called in a compiled step too.
    """

    def __init__(self, register: Callable[[Any], RemovableHandle], *, compiled: bool) -> None:
        self._register: Callable[[Any], RemovableHandle] | None = register
        self._compiled = compiled
        self._told: tuple[_Told, ...] = ()  # replaced as a whole, so that a loop over it goes on
        self._lock = threading.RLock()  # the collector may take a monitor while another one comes

    def tell(self, function: Callable[[Optimizer], None]) -> _Told:
        """Has it called with each optimizer that steps, until it is removed."""
        told = _Told(self, function)
        with self._lock:
            self._told = (*self._told, told)
            if self._register is not None:
                register, self._register = self._register, None
                register(self._hook())
        return told

    def forget(self, told: _Told) -> None:
        """Calls it no more."""
        with self._lock:
            self._told = tuple(other for other in self._told if other is not told)

    def _hook(self) -> Callable[[Optimizer, Any, Any], None]:
        def tell_all(optimizer: Optimizer) -> None:
            for told in self._told:
                told.function(optimizer)

        untraced = _untraced(tell_all) if self._compiled else lambda _: None

        def hook(optimizer: Optimizer, *_: Any) -> None:
            (untraced if torch.compiler.is_dynamo_compiling() else tell_all)(optimizer)

        return hook


class _Told:
    """A function that is told of all optimizers' steps."""

    def __init__(self, by: _OnAll, function: Callable[[Optimizer], None]) -> None:
        self._by, self.function = by, function

    def remove(self) -> None:
        """As of torch's handles."""
        self._by.forget(self)


_BEFORE_ALL = _OnAll(register_optimizer_step_pre_hook, compiled=False)
_AFTER_ALL = _OnAll(register_optimizer_step_post_hook, compiled=True)


def _puts_first(places: Mapping[int, int]) -> Callable[[Optimizer], None]:
    """Before a step: puts our hook before those that were there earlier.

    Args:
        places: id of an optimizer -> the key of our hook among its own.
    """

    def put(optimizer: Optimizer) -> None:
        place = places.get(id(optimizer), -1)
        if place in (hooks := _hooks(optimizer)) and next(iter(hooks)) != place:
            hooks.move_to_end(place, last=False)

    return put


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Calls a method as long as its object is there, and does not keep it."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        if (alive := reference()) is not None:
            alive(*args)

    return call


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, which a compiled step calls as it is: traced, it makes graphs of its own, and compiler errors."""
    return torch.compiler.disable(hook)  # type: ignore[no-any-return]  # some 15 µs a call


class _Ours:
    """A hook of ours among an optimizer's own, before all of a person's; while it is there, what it calls lives.

    But in a compiled step, which runs hooks in the order that it was compiled with: there ours runs in its place.
    """

    def __init__(self, steps: StepHooks) -> None:
        self._steps, self._untraced = steps, _untraced(steps.steps)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._untraced(optimizer, args, kwargs)
        hooks = _hooks(optimizer)
        if len(hooks) > 1 and self._steps.give_way(optimizer, hooks):
            return None
        return self._steps.steps(optimizer, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Ours:
        return self  # as a function would be


class _Behind:
    """For one step in the place of the last of an optimizer's own pre-hooks: calls that, and then ours."""

    def __init__(self, hooks: dict[int, Callable[..., Any]], place: int, ours: Callable[..., Any]) -> None:
        self._hooks, self._place, self.theirs, self._ours = hooks, place, hooks[place], ours
        self.ended = False
        hooks[place] = self

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        is_ours, given = not self.ended, (args, kwargs)
        self.end()
        found = self.theirs(optimizer, *given)
        if not is_ours or not (found is None or (isinstance(found, tuple) and len(found) == 2)):
            return found  # torch says what is wrong with it
        mine = self._ours(optimizer, *(given if found is None else found))
        return found if mine is None else mine

    def end(self) -> None:
        """Puts theirs back, unless they or another monitor's stand there now; then this does nothing any more."""
        self.ended = True
        while isinstance(self.theirs, _Behind) and self.theirs.ended:  # another monitor's, of a step that raised
            self.theirs = self.theirs.theirs
        found: object = self._hooks.get(self._place)
        if found is self:
            self._hooks[self._place] = self.theirs


def skipped(optimizer: Optimizer) -> Tensor | None:
    """Whether a fused step under a gradient scaler was skipped (a tensor, > 0: it was); None for other steps."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf.detach().clone() if isinstance(found_inf, Tensor) else None


def makes_state_only(optimizer: Optimizer) -> bool:
    """Whether this step only makes optimizer state, as loading a sharded checkpoint does: all rates and gradients 0."""
    for group in optimizer.param_groups:
        rate = group.get("lr", 1.0)
        # To look into a tensor on a device would be to wait for it.
        if (rate.device.type != "cpu" or rate.any()) if isinstance(rate, Tensor) else rate != 0:
            return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # No gradients at all: a closure is still to make them, at the rate a warm-up begins with.
    # Whole: a rank's shards alone may be zero, and all ranks must agree.
    return bool(gradients) and not any(bool(whole(gradient.any())) for gradient in gradients)


def _unscales_inside(optimizer: Optimizer) -> bool:
    return getattr(optimizer, "grad_scale", None) is not None


class Rounds:
    """Where several optimizers take turns: a round, which is one step, ends when one of them steps again.

    Attributes:
        stepped: ids of the optimizers that have stepped in this round; whoever calls `starts` adds them.
    """

    def __init__(self) -> None:
        self.stepped: set[int] = set()
        self._is_under_way = False

    def starts(self, optimizer: Optimizer) -> bool:
        """Called before each optimizer's step: whether a new round starts with it."""
        if self._is_under_way and id(optimizer) not in self.stepped:
            return False
        self._is_under_way = True
        self.stepped.clear()
        return True
