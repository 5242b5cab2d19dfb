"""Taking tensors from a forward: the only file that hooks modules or torch functions."""

from __future__ import annotations

import functools
import sys
import time
import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from threading import get_ident
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn
from torch._C import (
    DisableTorchFunction,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
    _set_grad_enabled,
)
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from vizlog.given import describe
from vizlog.requests import ACTIVATIONS, AttentionCalls, Call, Outputs, first_tensor, readable
from vizlog.selection import is_leaf, named_modules
from vizlog.units import Units

__all__ = [
    "AutocastSeen",
    "Capture",
    "Silent",
    "before_forwards",
    "compiles_hooks",
    "is_attention",
    "is_compiling",
    "is_recording",
    "replaced",
    "unseen",
]

_ours: ContextVar[bool] = ContextVar("ours", default=False)


class Silent:
    """Modules that call no activation or no attention function themselves, so that nobody need listen while they run.

    To look at a torch function takes longer than many a function does. Who is silent is learnt from forwards that are
    listened to whole, the first and each `WHOLE`th after it: a module that ran there and called none. What one calls
    for the first time in between is seen at the next of these at the latest.
    """

    WHOLE = 8

    def __init__(self) -> None:
        self._looks = 0
        self._ran: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self._spoke: dict[type, weakref.WeakValueDictionary[int, nn.Module]] = {
            kind: weakref.WeakValueDictionary() for kind in (Outputs, AttentionCalls)
        }
        self._ran_outside = self._spoke_outside = False

    def ran(self, module: nn.Module | None) -> None:
        """A module has run and was listened to; None: so has what runs the models."""
        if module is None:
            self._ran_outside = True
        elif not isinstance(module, _CHOOSE_BY_LISTENERS):
            self._ran[id(module)] = module

    def spoke(self, kind: type, module: nn.Module | None) -> None:
        """A module has called an activation (`Outputs`) or attention (`AttentionCalls`); None: what runs the models."""
        if module is None:
            self._spoke_outside = True
        else:
            self._spoke[kind][id(module)] = module

    def look(self, kinds: Collection[type]) -> tuple[Container[int], bool]:
        """To be asked once for each look: who is silent, as far as requests of these kinds are concerned.

        Returns:
            ids of modules, and whether what runs the models is silent too.
        """
        whole = self._looks % self.WHOLE == 0
        self._looks += 1
        if whole:
            return (), False
        silent = set(self._ran).difference(*(self._spoke[kind] for kind in kinds))
        return silent, self._ran_outside and not self._spoke_outside


class Capture:
    """Results of requests for outputs and attention, filled while it is attached to the models.

    Args:
        models: name -> bare module.
        requests: anything hashable -> what is wanted.
        silent: what earlier looks at the same forward have shown, and this one adds to.

    `results[key][layer]` is a list, one result a call; `errors[key]` is the first exception that a reducer raised, kept
    from the forward; `seconds[key]` is what its reductions took.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        requests: Mapping[Any, Outputs | AttentionCalls],
        silent: Silent | None = None,
    ) -> None:
        self._models = models
        self.results: dict[Any, dict[str, list[Any]]] = {key: {} for key in requests}
        self.errors: dict[Any, Exception] = {}
        self.seconds: dict[Any, float] = dict.fromkeys(requests, 0.0)
        self._outputs = {key: request for key, request in requests.items() if isinstance(request, Outputs)}
        self._attention = {key: request for key, request in requests.items() if isinstance(request, AttentionCalls)}
        self._silent = Silent() if silent is None else silent
        self._silent_ids, self._silent_outside = self._silent.look({type(request) for request in requests.values()})
        self._mode: _Functions | None = None  # while it listens: what looks at torch functions
        self._listening = 0  # how often it was begun
        self._stack: list[tuple[str, nn.Module, bool]] = []  # what runs, and whether it is listened to
        self._passed_by: nn.Module | None = None  # whose forward is none of the training's
        self._calls: dict[str, int] = {}
        self._units = Units()
        self._last_functional: Callable[[], Any] = lambda: None  # a weak reference
        self._kept: dict[Any, dict[str, int]] = {}  # how many results there were when a live forward began
        self._handled = id(None)  # of the exception that was being handled then
        self._live = False
        self._frame: FrameType | None = None  # in which a live forward is called
        self._thread: int | None = get_ident()  # the one that is looked at; None: the first that comes

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around one forward: hooks go on before and come off after it, whatever it raises."""
        with ExitStack() as stack:
            self.attach(stack)
            stack.callback(self._stop)
            if not self._silent_outside:
                self._listen()
            yield
            if not self._silent_outside:
                self._silent.ran(None)

    def attach(self, stack: ExitStack) -> None:
        """Hooks the modules until `stack` closes."""
        handles: list[Any] = []
        stack.callback(_remove, handles)
        enter, leave, ran, failed = self._enter, self._leave, self._ran_leaf, self.failed
        heard: dict[str, bool] = {}  # whether functions may be looked at while it runs
        for name, module in named_modules(self._models).items():
            silent = id(module) in self._silent_ids
            within_heard = bool(name) and heard.get(name.rpartition(".")[0], False)
            heard[name] = within_heard or not silent
            if isinstance(module, torch.jit.ScriptModule):  # it takes no such hooks
                continue
            # A layer that nobody asked for, and that has no layers in it, needs no hook before it runs. An activation
            # does: it calls functions itself, and a shared one may run inside a module that is listened to.
            is_quiet = not module._modules and not _is_activation(module)
            if silent and is_quiet and (not within_heard or _calls_nothing(module)):
                handles.append(module.register_forward_hook(_Hook(ran, name, failed), with_kwargs=True))
                continue
            handles.append(module.register_forward_pre_hook(_Hook(enter, name, failed)))
            left = _Hook(leave, name, failed)
            handles.append(module.register_forward_hook(left, with_kwargs=True, always_call=True))

    def attach_live(self, stack: ExitStack, *, on_any_thread: bool = False) -> None:
        """Looks at the training's own forwards until `stack` closes: of this thread, or of the first that comes.

        Left out: an evaluation (eval mode and grad off, or inference mode), what a checkpoint computes again during
        backward, and what is being compiled or recorded into a CUDA graph.
        """
        self._live = True
        self._thread = None if on_any_thread else get_ident()
        stack.callback(self._stop)
        self.attach(stack)

    def failed(self, error: Exception) -> None:
        """An error of ours outside of any reducer: it spoils what all of them see, and must not reach the forward."""
        for key in self.results:
            self.errors.setdefault(key, error)

    # What follows runs for each layer, between operations that have emptied the processor's caches of it: a function
    # that is called there takes microseconds.

    def _enter(self, name: str, module: nn.Module, _args: Any) -> None:
        """A module is about to run."""
        if self._is_elsewhere():
            return
        # By its name it is a part of the module entered last, so it is taken to run inside that, without the search of
        # the frames, which is slow. That is wrong only of a part called by itself after its whole was interrupted.
        within = name and self._stack and name.startswith(self._stack[-1][0])
        if self._frame is not None and not within and not self._is_running():
            self._give_up_forward()
        if self._passed_by is not None:
            return
        if self._live and not self._stack:
            self._frame = sys._getframe(2)  # noqa: SLF001
            if _is_no_training_forward(module):
                self._passed_by = module  # and all within: of its parts some may stay in training mode
                return
            self._calls.clear()
            self._units.forget()
            self._kept = {
                key: {name: len(calls) for name, calls in found.items()} for key, found in self.results.items()
            }
            self._handled = id(sys.exc_info()[1])
        if listens := id(module) not in self._silent_ids:
            self._listen()
        self._stack.append((name, module, listens))

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        """A module has run, or raised."""
        if self._is_elsewhere():
            return
        if self._passed_by is not None:
            if self._passed_by is module:
                self._passed_by = self._frame = None
            return
        is_last = bool(self._stack) and self._stack[-1][1] is module
        if not is_last and all(entered is not module for _, entered, _ in self._stack):
            return  # of a forward that is not looked at
        while (ended := self._ended())[1] is not module:  # a forward that raised leaves entries above this one
            pass
        _, _, listened = ended
        if listened and output is not None and not is_recording():  # it is None of one that raised
            self._silent.ran(module)
        if self._live and not self._stack:
            self._frame = None
            if id(sys.exc_info()[1]) != self._handled:
                self._forget_forward()
        self._returned(name, module, args, kwargs, output)

    def _ran_leaf(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """In place of the two above, for a silent module in which nothing else begins."""
        if self._is_elsewhere():
            return
        if self._passed_by is None and self._stack and name.startswith(self._stack[-1][0]):
            self._returned(name, module, args, kwargs, output)
        else:  # it may be called by itself
            self._enter(name, module, args)
            self._leave(name, module, args, kwargs, output)

    def _is_elsewhere(self) -> bool:
        """Whether this is another thread, an actor's say, than the one that is looked at."""
        if self._thread is None:
            self._thread = get_ident()
        return self._thread != get_ident()

    def _returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Hands the output of a module to the reducers."""
        if not name and is_leaf(module):
            name = type(module).__name__  # a model that is one layer has no other name
        if not name or is_recording():
            return
        with DisableTorchFunction():  # as to ask a tensor for its shape is one
            tensor = output if isinstance(output, Tensor) else first_tensor(output)
            if tensor is None:  # as of a forward that raised
                return
            dim, layer = self._units.dim(module, tensor), self._numbered(name)
            if tensor is self._last_functional() and is_leaf(module):
                return  # a module that only calls a function: its output was seen there
            here = output if type(tensor) is Tensor else readable(tensor, output)
            self._reduce(self._outputs, Call(layer, module, None, args, kwargs, here, dim))

    def _ended(self) -> tuple[str, nn.Module, bool]:
        """Takes what was entered last off the stack."""
        entry = self._stack.pop()
        if entry[2]:
            self._listening -= 1
            if not self._listening:
                self._stop()
        return entry

    def _listen(self) -> None:
        """Every torch function is looked at, until as many modules have ended as began to be listened to."""
        self._listening += 1
        if self._mode is None:
            self._mode = _Functions(self)
            _put_on(self._mode)

    def _stop(self) -> None:
        """Listens no more, whatever has not ended."""
        mode, self._mode, self._listening = self._mode, None, 0
        if mode is not None:
            _take_off(mode)

    def _is_running(self) -> bool:
        """Whether the outermost forward goes on; of one that Ctrl-C has ended torch tells no hook."""
        frame: FrameType | None = sys._getframe()  # noqa: SLF001
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def _give_up_forward(self) -> None:
        """Of a live forward that was ended from outside nothing is kept."""
        if self._stack and self._live:
            self._stop()
            self._forget_forward()
        self._stack.clear()
        self._passed_by = self._frame = None

    def _forget_forward(self) -> None:
        """Of a live forward that raised nothing is kept: it may be made again."""
        for key, found in self.results.items():
            kept = self._kept[key]
            self.results[key] = {name: found[name][:number] for name, number in kept.items()}

    def function_called(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """A torch function returned `output`."""
        if is_recording():
            return
        name, module, _ = self._stack[-1] if self._stack else ("", None, True)
        if is_attention(function, args, kwargs, output):
            self._silent.spoke(AttentionCalls, module)
            self._reduce(self._attention, Call(name, None, function, args, kwargs, output))
        kind = ACTIVATIONS.get(function)
        if kind is None or _is_activation(module):
            return
        self._silent.spoke(Outputs, module)
        layer = self._numbered(f"{name}.{kind}" if name else kind)
        self._last_functional = weakref.ref(output)
        dim = self._units.dim(None, output)
        self._reduce(self._outputs, Call(layer, None, function, args, kwargs, readable(output, output), dim))

    def _reduce(self, requests: Mapping[Any, Outputs | AttentionCalls], call: Call) -> None:
        """Hands one call to those reducers that want it, and keeps what they return."""
        layer = call.layer
        for key, request in requests.items():
            if key in self.errors:
                continue
            try:
                if isinstance(request, Outputs) and not request.matches(layer, call.module):
                    continue
                began, graded = time.perf_counter(), is_grad_enabled()
                try:  # as torch.no_grad() does, which takes several times as long
                    _set_grad_enabled(False)
                    result = request.reduce(call)
                finally:
                    _set_grad_enabled(graded)
                self.seconds[key] += time.perf_counter() - began
            except Exception as error:  # noqa: BLE001 -- it must not reach the forward, which may be the user's own
                self.errors[key] = error
                continue
            if result is not None:
                name = layer if isinstance(request, Outputs) else self._numbered_attention(key, layer)
                self.results[key].setdefault(name, []).append(result)

    def _numbered(self, name: str) -> str:
        """The name of a call: that of its layer, from the second one in a forward on with a number."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        return name if number == 1 else f"{name}@{number}"

    def _numbered_attention(self, key: Any, name: str) -> str:
        """The same for attention, which each request counts for itself."""
        counted = f"attention {id(key)} {name}"
        number = self._calls[counted] = self._calls.get(counted, 0) + 1
        name = name or "attention"
        return name if number == 1 else f"{name}@{number}"


class _Functions(TorchFunctionMode):
    """Tells a capture of every torch function the forward calls; what those call themselves is not seen."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        kind: Any = type(func)
        if func in _WATCHED or _is_operator(kind):
            try:
                with DisableTorchFunction():  # of subclasses too
                    self._capture.function_called(func, args, kwargs, output)
            except Exception as error:  # noqa: BLE001 -- it must not reach the forward, which may be the user's own
                self._capture.failed(error)
        return output


def _put_on(mode: TorchFunctionMode) -> None:
    """Puts a mode under those of others, who take off the uppermost as they leave, whichever it is.

    But over the one by which torch knows its default device.
    """
    modes = _get_current_function_mode_stack()
    lower = sum(isinstance(other, DeviceContext) for other in modes)
    above = [_pop_torch_function_stack() for _ in modes[lower:]]
    _push_on_torch_function_stack(mode)
    for other in reversed(above):
        _push_on_torch_function_stack(other)


def _take_off(mode: TorchFunctionMode) -> None:
    """Takes a mode off, wherever among the others it is."""
    modes = _get_current_function_mode_stack()
    if any(other is mode for other in modes):
        above = [_pop_torch_function_stack() for _ in modes[modes.index(mode) :]]
        for other in reversed(above[:-1]):
            _push_on_torch_function_stack(other)


@functools.cache
def _is_operator(kind: Any) -> bool:
    # Once for each type: to ask an abstract class takes as long as a small operation.
    return issubclass(kind, HigherOrderOperator)


class _Hook:
    """A hook that does not travel: copies and pickles of a hooked model carry one that does nothing.

    A method of the standard library takes its place, so that a file saved in that moment opens without vizlog.
    """

    def __init__(self, function: Callable[..., None], name: str, failed: Callable[[Exception], None]) -> None:
        self._function, self._name, self._failed = function, name, failed

    def __call__(self, *args: Any) -> None:
        if _is_traced():
            return  # inert inside a graph
        try:
            self._function(self._name, *args)
        except Exception as error:  # noqa: BLE001 -- it must not reach the forward, which may be the user's own
            self._failed(error)

    @property
    def __name__(self) -> str:
        """Who asks for it is torch.jit.script, which compiles hooks along and cannot compile this one."""
        raise AttributeError(
            "vizlog is about to look at the next training forward of this model, which cannot be scripted meanwhile: "
            "call torch.jit.script before vizlog.watch(), after that forward and its step, or after monitor.close()"
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments and does nothing


def is_compiling() -> bool:
    """Whether torch.compile has been given anything in this process: a function, perhaps, that calls the model.

    Hooks that come and go inside it have it compiled again, and to run it eagerly for once changes its rounding.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # torch tells only what is under way
    return any(map(callable, getattr(dynamo, "cached_backends", {}).values()))


def compiles_hooks(root: nn.Module) -> bool:
    """Whether a hook on this model, as its owner calls it, would be compiled along."""
    return isinstance(root, torch.jit.ScriptModule) or ("_orig_mod" not in root._modules and is_compiling())


class AutocastSeen:
    """The autocast that a training forward runs under, learnt from the next one. Call it for a context like that.

    Attributes:
        known: whether a training forward has been seen.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._enabled, self._dtype = False, torch.get_autocast_dtype(device)
        self.known = False

    def __call__(self) -> torch.autocast:
        return torch.autocast(self._device, self._dtype, enabled=self._enabled)

    def attach(self, stack: ExitStack, root: nn.Module) -> None:
        """Looks at the next forwards of `root` until `stack` closes."""
        stack.callback(root.register_forward_pre_hook(_Hook(self._look, "", lambda _: None)).remove)

    def _look(self, name: str, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and not _ours.get():
            self.known = True
            self._enabled = torch.is_autocast_enabled(self._device)
            self._dtype = torch.get_autocast_dtype(self._device)


_is_traced = torch.compiler.is_compiling


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


@contextmanager
def unseen() -> Iterator[None]:
    """Inside, forwards are ours: whoever looks at the training's own, another monitor too, does not see them."""
    before = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(before)


@contextmanager
def before_forwards(models: Mapping[str, nn.Module], function: Callable[[], None]) -> Iterator[None]:
    """Inside, `function` is called before each forward of a model or of a part of it; what it raises comes out there.

    Not before those that happen within another, and before whatever else is hooked to a module.
    """
    under_way: list[nn.Module] = []

    def enter(_name: str, module: nn.Module, *_: Any) -> None:
        under_way.append(module)
        if len(under_way) == 1:
            function()

    def leave(_name: str, module: nn.Module, *_: Any) -> None:
        while under_way and under_way.pop() is not module:
            pass

    with ExitStack() as stack:
        for module in named_modules(models).values():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for handle in (
                module.register_forward_pre_hook(_Hook(enter, "", _raise), prepend=True),
                module.register_forward_hook(_Hook(leave, "", _raise), always_call=True),
            ):
                stack.callback(handle.remove)
        yield


def _raise(error: Exception) -> None:
    raise error


@contextmanager
def replaced(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the output of `module` (its first tensor) is what `function` makes of it, to derive by it."""

    def hook(module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return function(output)
        if isinstance(output, tuple) and isinstance(output[0], Tensor):
            return (function(output[0]), *output[1:])
        raise TypeError(f"{type(module).__name__} returns {describe(output)}; its first part must be a tensor")

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def is_attention(function: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> bool:
    """Whether a call is attention: fused, flex_attention, or written out.

    Written out it is a softmax over the last dimension of (N, heads, L, S), or of a square (N, L, L); the softmax of a
    classifier or of a router, (N, classes) or (N, T, classes), is neither.
    """
    if function in _SOFTMAX and not output.is_nested:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        square = output.ndim == 3 and output.shape[-2] == output.shape[-1]
        return bool(dim in (-1, output.ndim - 1) and (output.ndim == 4 or square))
    if isinstance(function, HigherOrderOperator):
        # By name: the operator cannot be looked up before flex_attention is imported, which takes a second.
        return bool(function.__name__ == "flex_attention")
    return function in _FUSED_ATTENTION


def _is_no_training_forward(module: nn.Module) -> bool:
    evaluates = torch.is_inference_mode_enabled() or not (module.training or torch.is_grad_enabled())
    computes_again = torch._C._current_graph_task_id() != -1  # a checkpoint, inside backward
    return _ours.get() or evaluates or computes_again


def is_recording() -> bool:
    """Whether what runs now is recorded into a CUDA graph: nothing may wait, and nothing of ours may be in it."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _calls_nothing(module: nn.Module) -> bool:
    """Of a silent module without parts: whether it stays so, as torch made it and no person has hooks on it."""
    hooked = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 -- they have no public name
    return not hooked and "forward" not in module.__dict__ and type(module).__module__.startswith("torch.nn.modules.")


def _is_activation(module: nn.Module | None) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation"


_CHOOSE_BY_LISTENERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""While nobody listens, these take a faster way, and hand each other what the slower one cannot read."""

_FUSED_ATTENTION: set[Any] = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
_SOFTMAX: set[Any] = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}

_WATCHED = _FUSED_ATTENTION | _SOFTMAX | set(ACTIVATIONS)
