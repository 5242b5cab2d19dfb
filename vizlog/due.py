"""One due step: what its probes asked for, and what has been captured so far."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from vizlog.batch import FixedBatch
from vizlog.capture import Capture, Silent
from vizlog.channel import RanksApart
from vizlog.compute.transfer import to_host
from vizlog.isolation import eager, hidden_states
from vizlog.probes.base import Probe
from vizlog.ranks import GIVEN_UP, Ranks, is_given_up, local, summed, whole
from vizlog.requests import AttentionCalls, Gradients, Outputs, Request, Updates, Weights
from vizlog.schedules import Schedule
from vizlog.selection import device_of

__all__ = ["DueStep", "Part", "Turn"]

_NEVER = 1 << 60
Key = tuple["Turn", str]
Part: TypeAlias = list[tuple[int, str, bytes]]
"""What one rank read of its shards: number of the turn, key of the request, and the pickled results by name."""

R = TypeVar("R", bound=Request)


class Turn:
    """A probe in the course of a training: when it is due next, what it has cost, and whether it has failed.

    Attributes:
        next_step, next_epoch: at which it is due next; None where no step, or no epoch, is.
        stretch: only each so many of its schedule's due numbers is taken, to keep a budget.
        seconds, latest_seconds: what it has cost the training thread, in all and at the latest due step.
        error: why it failed on this rank; "" while it has not.
        disabled: whether it is off: once it has failed, of a sharded model once all ranks know.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.next_step: int | None = -1
        self.next_epoch: int | None = None
        self.stretch = 1
        self._latest: int | None = None  # the latest due step
        self._passed = _NEVER  # steps between the two latest ones
        self._resumes = False
        self.seconds = 0.0
        self.latest_seconds = 0.0
        self.disabled = False
        self.error = ""

    @property
    def name(self) -> str:
        """How its probe is called."""
        return self.probe.name

    def due(self, step: int, epoch: int | None) -> bool:
        """Whether a due number has been reached."""
        if self.disabled:
            return False
        if self.next_step is not None and step >= self.next_step:
            return True
        return self.next_epoch is not None and epoch is not None and epoch >= self.next_epoch

    def plan(self, step: int, epoch: int | None) -> None:
        """At a due step: finds the next, `stretch` due numbers on."""
        if self._latest is not None and self._latest < step:
            self._passed = (step - self._latest) // self.stretch
        self._latest = step
        schedule: Schedule = self.probe.schedule
        self.next_step = _ahead(schedule.next_step, step, self.stretch)
        if epoch is not None:
            self.next_epoch = _ahead(schedule.next_epoch, epoch, self.stretch)
        elif self.next_epoch is None:
            self.next_epoch = schedule.next_epoch(-1)  # as soon as one is known

    def waits_in_vain(self, step: int) -> bool:
        """Whether a run that ends with this step has seen it due but once, earlier, while more was planned."""
        plans = not self.disabled and (self.next_step, self.next_epoch) != (None, None)
        once = self._passed == _NEVER and not self._resumes
        return plans and once and self._latest is not None and self._latest < step

    def was_due_at(self, step: int) -> bool:
        """Whether this step is the latest at which it was due."""
        return self._latest == step

    def interval(self, step: int) -> int:
        """Steps from `step` to the next due one, were nothing stretched."""
        following = self.probe.schedule.next_step(step)
        return max(1, following - step if following is not None else self._passed)

    def go_back(self, step: int, epoch: int | None) -> None:
        """The step went back to this one: what its schedule names from here on is due again."""
        schedule: Schedule = self.probe.schedule
        self.next_step = schedule.next_step(step - 1)
        self.next_epoch = None if epoch is None else schedule.next_epoch(epoch - 1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"next_step": self.next_step, "next_epoch": self.next_epoch, "stretch": self.stretch}

    def load_state_dict(self, state: Mapping[str, Any], step: int, *, stretches: bool) -> None:
        """Takes over what `state_dict` gave, as far as the schedule there is now does not say otherwise.

        Args:
            step: the step to come.
            stretches: whether there is a budget to stretch for.
        """
        self._resumes = True
        self.next_step, self.next_epoch = state["next_step"], state["next_epoch"]
        self.stretch = state["stretch"] if stretches else 1
        planned = self.probe.schedule.next_step(step - 1)
        if self.stretch == 1 or self.next_step is None:
            self.next_step = planned

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds what happens inside to the seconds this probe has cost the training thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.took(time.perf_counter() - start)

    def took(self, seconds: float) -> None:
        """Adds to the seconds this probe has cost the training thread."""
        self.seconds += seconds
        self.latest_seconds += seconds


class DueStep:
    """What is captured at one due step.

    Args:
        models: name -> bare module.
        failed: called with (turn, what it was doing, error) when a probe fails; the probe is left out from then on.
        ranks: those that hold the models.
        silent: what the due steps before have shown of the training forward, and of passes over the fixed batch.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        failed: Callable[[Turn, str, Exception], None],
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        silent: tuple[Silent, Silent] | None = None,
    ) -> None:
        self.step: int | None = None  # None until it has begun
        self.epoch: int | None = None
        self.ended = False  # whether its forward and backward are over
        self.models = models
        self.due: list[Turn] = []  # the same on every rank
        self.turns: list[Turn] = []  # of them, those that have not failed here
        self._ranks = ranks
        self.parameters: Mapping[str, nn.Parameter] = {}  # those there are when it begins
        self.waiting: set[int] = set()
        self.skipped: list[Tensor] = []
        self._failed = failed
        self._asked: dict[Key, Request] = {}
        self._results: dict[Key, dict[str, Any]] = {}
        self._before: dict[Key, dict[str, Tensor]] = {}
        self._live: Capture | None = None
        self._silent = silent or (Silent(), Silent())

    def add(self, turns: Iterable[Turn], *, forward_passed: bool = False, step_passed: bool = False) -> None:
        """Asks probes that are due what they want; those that want of a step what has passed are left out.

        Args:
            forward_passed: whether the training's forward has.
            step_passed: whether the gradients and updates have.
        """
        for turn in turns:
            if turn in self.due:
                continue
            if turn.error:
                self.due.append(turn)
                continue
            with self.guarded(turn, "wants()"), turn.timed():
                turn.latest_seconds = 0.0
                asked = turn.probe.wants(self.models)
                gone = (forward_passed and getattr(request, "live", False) for request in asked.values())
                over = (step_passed and isinstance(request, (Gradients, Updates)) for request in asked.values())
                if not any((*gone, *over)):
                    self.due.append(turn)
                    self.turns.append(turn)
                    self._asked.update({(turn, key): request for key, request in asked.items()})

    @contextmanager
    def guarded(self, turn: Turn, doing: str) -> Iterator[None]:
        """Keeps an error of this probe from everything else."""
        try:
            yield
        except RanksApart:
            raise  # no probe's fault, and the end of all of them
        except Exception as error:  # noqa: BLE001 -- whatever one probe raises, the others go on
            if turn not in self.due:
                self.due.append(turn)
            self.drop([turn])
            self._failed(turn, doing, error)

    def drop(self, turns: Collection[Turn]) -> None:
        """Leaves these probes out."""
        self.turns = [turn for turn in self.turns if turn not in turns]
        self._asked = {key: request for key, request in self._asked.items() if key[0] not in turns}

    def captured(self, turn: Turn) -> dict[str, dict[str, Any]]:
        """What this probe asked for; parameters as it named them, in whichever order their optimizers stepped."""
        found: dict[str, dict[str, Any]] = {}
        for (other, key), request in self._asked.items():
            if other is turn:
                results = self._results.get((turn, key), {})
                if isinstance(request, (Weights, Gradients, Updates)):
                    results = {name: results[name] for name in request.names if name in results}
                found[key] = results
        return found

    # Parameters -------------------------------------------------------------------------------------------------------

    def keep_weights(self, owned: Collection[int]) -> None:
        """Before an update: copies what `Updates` requests will compare with."""
        for key, request in self._requests(Updates):
            with self.guarded(key[0], "a copy of the weights"), key[0].timed():
                for name in self._mine(request.names, owned):
                    part = self._part(request, name)
                    if is_given_up(part):
                        self._results.setdefault(key, {})[name] = GIVEN_UP
                    else:
                        self._before.setdefault(key, {})[name] = part.clone()

    def read_gradients(self, owned: Collection[int] | None = None) -> None:
        """Reduces the gradients of the owned parameters (None: of all); those of a step that raised are forgotten."""
        for key, request in self._requests(Gradients):
            for name in self._mine(request.names, owned):
                self._results.get(key, {}).pop(name, None)
        self._reduce(
            Gradients,
            {
                name: summed(p.grad.detach())
                for name, p in self.parameters.items()
                if p.grad is not None and (owned is None or id(p) in owned)
            },
        )

    def read_weights(self, owned: Collection[int] | None = None) -> None:
        """Reduces the owned parameters (None: those not read yet), and their updates."""
        self._reduce(Weights, {name: p for name, p in self.parameters.items() if owned is None or id(p) in owned})
        for key, request in self._requests(Updates):
            with self.guarded(key[0], "updates"), key[0].timed(), torch.no_grad():
                before = self._before.get(key, {})
                for name in self._mine([name for name in request.names if name in before], owned):
                    reduced = request.reduce(before.pop(name), self._part(request, name))
                    self._results.setdefault(key, {})[name] = reduced

    def read_whole_weights(self) -> None:
        """Reduces the parameters that are to be seen whole; sharded ones are put together by all ranks at once."""
        for key, request in self._requests(Weights):
            for name in request.names if request.whole else ():
                if name not in self.parameters:
                    continue
                with key[0].timed(), torch.no_grad():
                    tensor = whole(self.parameters[name].detach())  # whatever failed here, other ranks ask for it
                    with self.guarded(key[0], "the weights"):
                        (self._results.setdefault(key, {})[name],) = request.reduce([tensor])

    def _reduce(self, kind: type[Weights] | type[Gradients], tensors: Mapping[str, Tensor]) -> None:
        """Each reduction of a tensor is made once, however many probes ask for it."""
        done: dict[Any, dict[str, Any]] = {}
        for key, request in self._requests(kind):
            if request.whole:
                continue
            with self.guarded(key[0], f"the {kind.__name__.lower()}"), key[0].timed(), torch.no_grad():
                mine = self._results.setdefault(key, {})
                shared = done.setdefault(request.reduce, {})
                new = [name for name in request.names if name in tensors and name not in mine and name not in shared]
                if new:
                    reduced = request.reduce([local(tensors[name].detach()) for name in new])
                    shared.update(zip(new, reduced, strict=True))
                mine.update({name: shared[name] for name in request.names if name in shared})

    def _part(self, request: Updates, name: str) -> Tensor:
        """A view of what is looked at of a parameter."""
        part, parts = request.parts.get(name, (0, 1))
        tensor = local(self.parameters[name].detach())
        return tensor if parts == 1 else tensor.tensor_split(parts)[part]

    def _mine(self, names: Iterable[str], owned: Collection[int] | None) -> list[str]:
        """Those of the parameters that there are, and that are owned (None: all)."""
        return [
            name for name in names if name in self.parameters and (owned is None or id(self.parameters[name]) in owned)
        ]

    def _requests(self, kind: type[R]) -> list[tuple[Key, R]]:
        """The requests of one kind."""
        return [(key, request) for key, request in self._asked.items() if isinstance(request, kind)]

    def _of_the_batch(self) -> dict[Key, Outputs | AttentionCalls]:
        return {
            key: request
            for key, request in self._asked.items()
            if isinstance(request, (Outputs, AttentionCalls)) and not request.live
        }

    # Ranks of a sharded model -----------------------------------------------------------------------------------------

    def own_part(self) -> Part:
        """What this rank adds to what all ranks have read of their shards."""
        parts: Part = []
        for key in self._of_shards():
            with self.guarded(key[0], "what it tells the rank that writes"):
                results = self._results.get(key, {})
                counted = {name: results[name] for name in results if self._ranks.counts(self.parameters[name])}
                parts.append((self.due.index(key[0]), key[1], pickle.dumps(to_host(counted).wait())))
        return parts

    def merge(self, parts: Iterable[Part]) -> None:
        """On the rank that writes: makes one result of what all ranks have read."""
        requests = self._of_shards()
        merged: dict[Key, dict[str, Any]] = {key: {} for key in requests}
        for number, asked, pickled in (entry for part in parts for entry in part):
            key = (self.due[number], asked)
            if key in self._asked:
                with self.guarded(key[0], "what the ranks have read"):
                    mine = merged[key]
                    for name, result in pickle.loads(pickled).items():  # noqa: S301 (from our own ranks)
                        mine[name] = requests[key].merge(mine[name], result) if name in mine else result
        self._results.update(merged)

    def _of_shards(self) -> dict[Key, Weights | Gradients | Updates]:
        kinds = (Weights, Gradients, Updates)
        asked = {key: request for key, request in self._asked.items() if isinstance(request, kinds)}
        return {key: request for key, request in asked.items() if not getattr(request, "whole", False)}

    # Forwards ---------------------------------------------------------------------------------------------------------

    @property
    def wants_live(self) -> bool:
        """Whether a probe asks for the training forward itself."""
        return any(request.live for _, request in self._requests(Outputs))

    def attach_live(self, stack: ExitStack, *, on_any_thread: bool = False) -> None:
        """Looks at the training forwards until `stack` closes; compiled ones run eagerly meanwhile."""
        wanted = {key: request for key, request in self._requests(Outputs) if request.live}
        self._live = Capture(self.models, wanted, self._silent[0])
        self._live.attach_live(stack, on_any_thread=on_any_thread)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(eager())

    def take_live(self) -> float:
        """Takes over what the training forwards showed; returns how many seconds that took, in them."""
        if self._live is None:
            return 0.0
        for (turn, _), seconds in self._live.seconds.items():
            turn.took(seconds)
        self._take(self._live)
        return sum(self._live.seconds.values())

    @property
    def wants_batch(self) -> bool:
        """Whether a probe asks for a pass over the fixed batch."""
        return bool(self._of_the_batch())

    def run_batch(self, batch: FixedBatch, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Runs the models over as many examples as were asked for, once for all probes; the caller isolates."""
        asked = self._of_the_batch()
        most = min(len(batch), max((request.examples for request in asked.values()), default=0))
        device, starts = device_of(self.models), range(0, most, batch.chunk)
        restart = hidden_states(self.models.values()) if len(starts) > 1 else _nothing
        # To the end, whatever failed: other ranks may be waiting in a forward.
        for start in starts:
            wanted = {key: request for key, request in asked.items() if request.examples > start and key in self._asked}
            capture = Capture(self.models, wanted, self._silent[1])
            began = time.perf_counter()
            part = batch.part(start, min(start + batch.chunk, most), device)
            with torch.no_grad(), context(), capture.forward():
                part.run(self.models)
            restart()
            took, turns = time.perf_counter() - began, {key[0] for key in wanted}
            for turn in turns:
                turn.took(took / len(turns))  # the forward is made for all of them
            self._take(capture)

    def drop_batch(self) -> list[Turn]:
        """Leaves out the probes that asked for a pass over the fixed batch, and says which."""
        dropped = list(dict.fromkeys(turn for turn, _ in self._of_the_batch()))
        self.drop(dropped)
        return dropped

    def _take(self, capture: Capture) -> None:
        for key, error in capture.errors.items():
            with self.guarded(key[0], "what passed through the model"):
                raise error
        for key, layers in capture.results.items():
            mine = self._results.setdefault(key, {})
            for layer, results in layers.items():
                mine.setdefault(layer, []).extend(results)


def _nothing() -> None:
    """Nothing is put back where there is one forward."""


def _ahead(following: Callable[[int], int | None], number: int, stretch: int) -> int | None:
    """About the `stretch`th due number after `number`: found as if all lay as far apart as the next two."""
    first = following(number)
    if first is None or stretch == 1:
        return first
    second = following(first)
    if second is None:
        return first
    ahead = following(first + (stretch - 1) * (second - first) - 1)
    return second if ahead is None else ahead  # a schedule that ends before that is not over yet
