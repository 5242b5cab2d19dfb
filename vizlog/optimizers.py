"""The optimizer's step: where gradients are final, and where weights are new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vizlog.ranks import whole

__all__ = ["Rounds", "StepHooks", "makes_state_only", "real_optimizers", "skipped"]


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


def _unwrap(given: Any, depth: int) -> Iterable[Optimizer]:
    if depth > 4 or given is None:
        return
    hookable = isinstance(given, Optimizer) and "_optimizer_step_pre_hooks" in given.__dict__
    # accelerate's and Fabric's are Optimizers in name only: their step calls the real one's.
    inner = given.__dict__.get("optimizer") if hookable else getattr(given, "optimizer", None)
    if isinstance(inner, Optimizer) or (inner is not None and not hookable):
        yield from _unwrap(inner, depth + 1)
    elif hookable:
        yield given
    elif isinstance(given, Mapping):
        for part in given.values():
            yield from _unwrap(part, depth + 1)
    elif isinstance(given, (Sequence, set, frozenset)) and not isinstance(given, str):
        for part in given:
            yield from _unwrap(part, depth + 1)
    elif isinstance(inner := getattr(given, "optimizers", None), (Sequence, Mapping)):
        for part in inner.values() if isinstance(inner, Mapping) else inner:
            yield from _unwrap(part, depth + 1)


class StepHooks:
    """Calls back at the three moments of each optimizer's step; nothing is ever attached to a module or a tensor.

    Args:
        optimizers: the real ones.
        before: (optimizer) -> whether this step is to be looked at; called before anything has changed.
        gradients: (optimizer), once the gradients are what the optimizer uses: unscaled, clipped, summed over ranks.
        after: (optimizer), with the new weights.

    Where the step is given a closure, gradients are final only once the closure has returned, so it is wrapped; a
    gradient scaler's fused step unscales inside, so gradients are read after it.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        before: Callable[[Optimizer], bool],
        gradients: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None],
    ) -> None:
        self._before, self._gradients, self._after = before, gradients, after
        self._unread: set[int] = set()
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._pre),
                optimizer.register_step_post_hook(self._post),
            )
        ]

    def remove(self) -> None:
        """Takes the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._before(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and not torch.compiler.is_compiling():
            self._unread.add(id(optimizer))

            def closure_then_read() -> Any:
                loss = closure()
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

    def _post(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._read_once(optimizer)
        self._after(optimizer)

    def _read_once(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._unread:
            self._unread.discard(id(optimizer))
            self._gradients(optimizer)


def skipped(optimizer: Optimizer) -> Tensor | None:
    """Whether a fused step under a gradient scaler was skipped (a tensor, > 0: it was); None for other steps."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf.detach().clone() if isinstance(found_inf, Tensor) else None


def makes_state_only(optimizer: Optimizer) -> bool:
    """Whether this step only makes optimizer state, as loading a sharded checkpoint does: all rates and gradients 0."""
    rates = [group.get("lr", 1.0) for group in optimizer.param_groups]
    # To look into a tensor on a device would be to wait for it.
    if any((isinstance(rate, Tensor) and rate.device.type != "cpu") or rate != 0 for rate in rates):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # No gradients at all: a closure is still to make them, at the rate a warm-up begins with.
    # Whole: a rank's shards alone may be zero, and all ranks must agree.
    return bool(gradients) and not any(bool(whole(gradient.any())) for gradient in gradients)


def _unscales_inside(optimizer: Optimizer) -> bool:
    return getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None


class Rounds:
    """Counts steps where several optimizers take turns: a round ends when one of them steps again."""

    def __init__(self) -> None:
        self.number = -1
        self._stepped: set[int] = set()

    def starts(self, optimizer: Optimizer) -> bool:
        """Called before each optimizer's step: whether a new round starts with it."""
        if self.number >= 0 and id(optimizer) not in self._stepped:
            return False
        self.number += 1
        self._stepped.clear()
        return True

    def stepped(self, optimizer: Optimizer) -> None:
        """Called after each optimizer's step."""
        self._stepped.add(id(optimizer))
