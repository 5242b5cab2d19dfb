"""The monitor: models, their optimizers, probes and a backend; runs what is due and keeps our errors to ourselves."""

from __future__ import annotations

import atexit
import operator
import os
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vizlog.backends.open import open_backend
from vizlog.batch import BatchDoesNotFit, FixedBatch, as_fixed_batch
from vizlog.budget import Cost, check_pace, stretches
from vizlog.capture import AutocastSeen, Silent, before_forwards, compiles_hooks, is_recording, unseen
from vizlog.channel import RanksApart
from vizlog.delivery import Delivery
from vizlog.diagnosis import Diagnosis
from vizlog.due import DueStep, Turn
from vizlog.given import makes_a_batch
from vizlog.isolation import changes_learnt, isolated, start_noise
from vizlog.loaders import asked_for
from vizlog.messages import LOG, one_line, show
from vizlog.optimizers import Rounds, StepHooks, makes_state_only, owned, real_optimizers, skipped, weakly
from vizlog.probes.base import Context, Probe, as_probes, measures
from vizlog.probes.standard import standard_for
from vizlog.ranks import CommunicatesError, FailedElsewhereError, Notice, Ranks, is_sharded, reshard
from vizlog.reach import check_models, say_not_run, say_out_of_order, say_untrained, some, untrained
from vizlog.schedules import Schedule
from vizlog.selection import device_of, float_type, given_models, named_models, named_once, named_parameters
from vizlog.stopping import Stop, StopWhen, schedules_of_numbers
from vizlog.survey import Survey, survey

__all__ = ["Monitor"]

_NEVER = float("inf")
_OPEN: weakref.WeakSet[Monitor] = weakref.WeakSet()


class Monitor:
    """Looks inside models while they train.

    ```python
    monitor = vizlog.Monitor(model, to="runs/a", batch=(x, y))
    for x, y in data:
        optimizer.zero_grad()
        with monitor.step():
            loss_fn(model(x), y).backward()
        optimizer.step()
    monitor.close()
    ```

    Args:
        model: a module, a list or a dict of modules.
        probes: what to look at; None lets `vizlog.standard` choose.
        to: a path (TensorBoard there), a SummaryWriter, a W&B run, a backend, a list of these, or None: write nothing.
        batch: a FixedBatch, (inputs, targets), or a function that returns one.
        optimizer: an optimizer, several, or what holds them: gradients are then read as it uses them, and weights after
            it. Without one, both are read at `end()`: gradients before clipping and scaled as the loss was.
        every: for the standard probes, how many steps between histograms.
        budget: the share of training time that may be spent (0.01: one percent); from the second due step of each probe
            on schedules are stretched to keep it. None: never.
        stop_when: when the training is hopeless, so that `should_stop` turns true: "nonfinite", "dead",
            "gradients_gone", a function of the health scalars (`vizlog/…` -> number), or a list of these. None: never.
        forward_context: makes the context that a forward runs under; None takes over the autocast of the first step's
            training forward.

    Raises:
        TypeError, ValueError: what was given does not fit; says what to do. After construction nothing of ours is
            raised.
    """

    _followed = False  # by another, which looks at the same model

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        probes: Sequence[Probe] | None = None,
        *,
        to: Any,
        batch: FixedBatch | tuple[Any, Any] | Callable[[], Any] | None = None,
        optimizer: Any = None,
        every: int | Schedule | None = None,
        budget: float | None = None,
        stop_when: StopWhen | None = None,
        forward_context: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        show()
        self._models = named_models(model)
        self._roots = list(given_models(model).values())
        self._ranks = Ranks.of(self._models.values())
        self._communicates = False  # in its forward, though it is run on one rank alone
        reshard(self._models.values())
        with self._ranks.together():
            self._optimizers = real_optimizers(optimizer) if optimizer is not None else []
            check_models(self._models, self._optimizers)
            self._parameters = _ids(named_parameters(self._models))
            check_pace(probes, every, budget)
            self._budget = budget
            self._stop: Stop | None = None
            self._dtype = float_type(self._models)
            self._autocast = AutocastSeen(device_of(self._models).type)
            self._forward_context = forward_context or self._autocast
            given = None if probes is None else as_probes(probes)
            self._batch, met = self._look(batch, forward_context or nullcontext)
            say_untrained(self._models, self._optimizers)
            every = 100 if every is None else every
            chosen = self._standard(met, every) if given is None else given
            self._turns = [Turn(probe) for probe in chosen if self._binds(probe, met)]
            if stop_when is not None:
                self._stop = Stop(stop_when, schedules_of_numbers(given, every), Notice(self._ranks.world))
            self._place = os.path.abspath(to) if isinstance(to, (str, os.PathLike)) else None  # noqa: PTH100 -- str or bytes
            self._meet_others()
            writes = to is not None and self._ranks.writes
            self._delivery = Delivery(
                open_backend(to) if writes else None, weakly(self._disable), diagnoses=self._stop is not None
            )
        self._rounds: Rounds | None = None
        self._sources: tuple[Callable[[], int] | None, Callable[[], int] | None] = (None, None)
        self._count = 0  # of the step to come
        self._latest = 0  # the latest step begun
        self._epoch: int | None = None
        self._next_step: float = -1
        self._by_epochs = any(turn.probe.schedule.needs_epochs for turn in self._turns)
        self._due: DueStep | None = None
        self._silent = Silent(), Silent()  # in the training forward, and on the fixed batch
        self._cancelled = False
        self._attached = ExitStack()
        self._passed_over: int | None = None  # id of an optimizer whose step is none: recorded, or makes state alone
        self._cost = Cost(self._turns)
        self._closed = False
        self._warned: set[str] = set()
        # A rank that takes no part counts steps all the same where all are to stop at one.
        watched = self._optimizers if self._ranks.takes_part or self._stop is not None else []
        self._hooks = StepHooks(
            watched,
            before=self._before_step,
            gradients=self._gradients_ready,
            after=self._after_step,
            other=self._other_stepped,
        )
        _OPEN.add(self)
        _close_at_exit(self, self._delivery, self._attached)

    # What a person calls ----------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, step: int | None = None, epoch: int | None = None) -> Iterator[None]:
        """Around forward and backward of one step; an exception inside cancels it and passes through.

        Args:
            step: its number; None counts.
            epoch: its epoch, for schedules that go by epochs.
        """
        self.begin(step, epoch)
        try:
            yield
        except BaseException:
            self.cancel()
            raise
        self.end()

    def begin(self, step: int | None = None, epoch: int | None = None) -> None:
        """Before the forward of a step; nothing happens where nothing is due, or where this step has begun already."""
        if self._is_recorded():
            return
        with self._contained("the start of a step"):
            self._begin(self._count if step is None else step, epoch)
            if self._due is not None:
                self._due.ended = False

    def end(self) -> None:
        """After the backward of a step; what is due is finished here, or once the watched optimizers have stepped."""
        if self._is_recorded():
            return
        with self._contained("the end of a step"):
            self._forward_done()
            due = self._due
            if due is None:
                return
            with self._cost:
                if not self._optimizers:
                    due.read_gradients()
                if not due.waiting:
                    self._finish(due)

    def cancel(self) -> None:
        """Forgets the step that was begun, so that it may begin again."""
        self._forget()
        self._cancelled = True

    def follow(self, step: int | Callable[[], int] | None = None, epoch: Callable[[], int] | None = None) -> None:
        """From now on steps begin and end by themselves, as the optimizers step.

        Args:
            step: the number to count from, or a function that returns the number of the step under way.
            epoch: a function that returns the epoch.

        Raises:
            ValueError: a schedule goes by epochs and there is no source of them.
        """
        by_epochs = [probe.name for probe in self.probes if probe.schedule.needs_epochs]
        if by_epochs and epoch is None:
            raise ValueError(
                f"{by_epochs[0]} goes by epochs (EveryEpoch): say which epoch it is with epoch=lambda: ..."
            )
        self._rounds = Rounds()
        self._sources = (step if callable(step) else None, epoch)
        self._count = 0 if step is None or callable(step) else _whole("step", step)
        self._latest = self._delivery.now = max(self._count - 1, 0)
        self._arm(self._count)

    def log(self, scalars: Mapping[str, Any]) -> None:
        """Writes numbers at the latest step begun: `monitor.log({"loss/train": loss})`.

        Tensors are taken as they are, on any device, without synchronising; they are read later, on the worker.

        Args:
            scalars: tag -> a number or a tensor of one element.
        """
        if is_recording():
            self._warn_once(
                "log() inside the recording of a CUDA graph writes nothing: what is recorded has no value yet"
            )
            return
        if self._closed:
            self._warn_once("log() after close() writes nothing")
            return
        try:
            self._delivery.log(self._latest, scalars)
        except Exception as error:  # noqa: BLE001 -- training goes on, and so does the step that is looked at
            self._warn_once(f"log() takes a mapping of tags to numbers: {one_line(error)}", error)

    def flush(self) -> None:
        """Waits until everything under way has been written."""
        self._delivery.flush()

    def close(self, *, looks: bool = True) -> None:
        """Finishes what is under way, closes what vizlog opened, and says what it cost; may be called twice.

        Args:
            looks: whether to look once more at a model whose run was too short for a second look, as it is now: the
                first is of a model that has hardly trained. Not where there is a budget, and of a sharded model never.
        """
        if self._closed:
            return
        self._closed = True
        _OPEN.discard(self)
        # At the exit of one rank the others may be elsewhere: none waits for them there.
        if self._due is not None and self._due.step is not None and self._due.ended and not self._ranks.sharded:
            self._finish(self._due)
        self._forget()
        try:
            if looks:
                self._look_once_more()
        finally:  # Ctrl-C ends the look alone
            self._leave()

    def _leave(self) -> None:
        """The end: waits for what is under way, closes what vizlog opened, and says what it cost."""
        trained = self._cost.elapsed  # what is waited for below is no training
        self._hooks.remove()
        self._ranks.leave()
        self._delivery.close()
        follows = self._rounds is not None or not self._optimizers
        if self._ranks.takes_part and not self._cost.steps and follows and not (self._warned or self._followed):
            why = (
                "the watched optimizer never stepped, so the model that trains is perhaps another; watch it"
                if self._optimizers
                else "give optimizer=, or put `with monitor.step():` around forward and backward"
            )
            self._warn_once(f"no step was seen: {why}")
        if self._ranks.writes and (words := self._cost.in_words(trained, self._delivery.seconds)):
            LOG.info("%s", words)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(looks=kind is None)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What is looked at."""
        return tuple(turn.probe for turn in self._turns)

    @property
    def is_due(self) -> bool:
        """Whether the step under way is looked at."""
        return self._due is not None and self._due.step is not None

    @property
    def should_stop(self) -> bool:
        """Whether one of `stop_when`'s conditions has been met; the same on all ranks at the same step."""
        return self._stop is not None and self._stop.because != ""

    @property
    def stopped_because(self) -> str:
        """Which of `stop_when`'s conditions has been met; "" while none has."""
        return self._stop.because if self._stop is not None else ""

    # What a checkpoint keeps ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped: the step to come, and when each probe is due.

        Plain data, for a checkpoint.
        """
        probes = {name: turn.state_dict() for name, turn in self._named_turns()}
        health = self._delivery.diagnosis.state_dict()
        return {"step": self._count, "epoch": self._epoch, "probes": probes, "health": health}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave, before the first step; probes that it does not know start anew."""
        self._forget()
        try:
            step, epoch = _whole("step", state["step"]), state["epoch"]
            self._count, self._epoch = step, None if epoch is None else _whole("epoch", epoch)
            for name, turn in self._named_turns():
                if name in state["probes"]:
                    turn.load_state_dict(state["probes"][name], step, stretches=self._budget is not None)
            self._delivery.diagnosis = Diagnosis.from_state(state.get("health", {}))
        except (KeyError, TypeError, AttributeError) as error:
            self._warn_once(f"the state of another vizlog is passed over, and schedules begin anew: {one_line(error)}")
        self._next_step = -1
        self._latest = self._delivery.now = max(self._count - 1, 0)
        if self._rounds is not None:
            self._arm(self._count)

    def _named_turns(self) -> Iterator[tuple[str, Turn]]:
        """Turns under the names of their probes; a second one of a name is `NAME-2`."""
        seen: Counter[str] = Counter()
        for turn in self._turns:
            seen[turn.probe.name] += 1
            number = seen[turn.probe.name]
            yield turn.probe.name + (f"-{number}" if number > 1 else ""), turn

    # Before the first step --------------------------------------------------------------------------------------------

    def _look(
        self, batch: Any, context: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[FixedBatch | None, Survey | None]:
        """The fixed batch, and what a first pass over it meets; nothing where this rank takes no part."""
        is_made = makes_a_batch(batch)
        if not self._ranks.takes_part:
            if not is_made:
                as_fixed_batch(batch)  # what is wrong raises on every rank alike
            return None, None
        with isolated(self._models.values()), torch.no_grad():
            try:
                with self._ranks.alone():
                    made = asked_for(batch, as_fixed_batch) if is_made else as_fixed_batch(batch)
                    fixed = _common(self._ranks, made)
                    if fixed is None:
                        return None, None
                    with changes_learnt(self._models.values()), context(), self._abreast():
                        met = survey(self._models, fixed)
            except CommunicatesError as error:
                self._communicates = True
                LOG.warning("vizlog cannot run the model on examples: %s", error)
                return None, None
            except FailedElsewhereError as error:
                raise BatchDoesNotFit(f"the model could not be run on the fixed batch: {error}") from error
        if self._ranks.writes:
            say_not_run(self._models, self._optimizers, met)
            say_out_of_order(met)
        return met.batch, met

    def _standard(self, met: Survey | None, every: int | Schedule) -> list[Probe]:
        """The standard probes; none where this rank takes no part."""
        if not self._ranks.takes_part:
            return []
        return standard_for(self._models, met, every=every, optimized=bool(self._optimizers))

    def _binds(self, probe: Probe, met: Survey | None) -> bool:
        """Whether a probe is shown what it will look at; not where that needs the model to be run, which cannot be."""
        if probe.needs_optimizer and not self._optimizers:
            raise ValueError(f"{probe.name} compares weights before and after a step: give optimizer= as well")
        if not self._ranks.takes_part:
            return True
        try:
            probe.bind(self._models, met)
        except ValueError as error:
            if not self._communicates:
                raise
            LOG.warning("vizlog: %s is left out: %s", probe.name, error)
            return False
        return True

    def _meet_others(self) -> None:
        """Closes earlier monitors that this one takes the place of, and says what it takes from those that go on.

        Where a notebook's cell runs again, what it made before still watches this model, for the same folder.
        """
        for other in [other for other in _OPEN if self._place is not None and self._writes_alike(other)]:
            if self._shares_a_model(other):
                self._take_over(other)
                LOG.warning("vizlog: an earlier monitor of this model still wrote to %s; it is closed", self._place)
            elif self._mixes_with(other):
                LOG.warning("vizlog: two models are written to %s, where tags mix: give each a folder", self._place)
        taken = {id(probe) for other in _OPEN for probe in other.probes}
        if shared := sorted({probe.name for probe in self.probes if id(probe) in taken}):
            LOG.warning("vizlog: %s of another monitor now looks at this one's model: make one for each", shared[0])

    def _take_over(self, earlier: Monitor) -> None:
        earlier._followed = True
        earlier.close(looks=False)

    def _writes_alike(self, other: Monitor) -> bool:
        """Whether another monitor has tags like this one's, for the same folder."""
        looks = {probe.name for probe in self.probes} & {probe.name for probe in other.probes}
        return other._place == self._place and bool(looks)

    def _shares_a_model(self, other: Monitor) -> bool:
        return not set(map(id, self._models.values())).isdisjoint(map(id, other._models.values()))

    def _mixes_with(self, other: Monitor) -> bool:
        """Whether the folder is still new: of one that holds steps this monitor gets another."""
        return not other._cost.steps

    # The optimizer's step ---------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer) -> bool:
        self._passed_over = None
        # `try` in place of a context, and few calls: they are what a step with nothing due costs.
        if torch.cuda.is_initialized() and self._is_recorded():
            self._passed_over = id(optimizer)
            return False
        try:
            if not getattr(optimizer, "state", None) and makes_state_only(optimizer):
                self._passed_over = id(optimizer)
                return False
        except BaseException as error:
            if not self._survive("the optimizer's rates", error):
                raise
        # A person's own numbers say more exactly where a step begins.
        if self._rounds is not None and (self._rounds.starts(optimizer) or self._sources[0] is not None):
            try:
                step, epoch = self._sources
                self._begin(step() if step else self._count, epoch() if epoch else None, forward_passed=True)
                self._forward_done()
            except BaseException as error:
                if not self._survive("the start of a step", error):
                    raise
        due = self._due
        if due is None or id(optimizer) not in due.waiting:
            return False
        if due.step is not None and due.step < self._latest and len(due.waiting) == len(self._optimizers):
            due.step, due.epoch = self._latest, self._epoch  # in the steps since a gradient scaler let none step
        with self._contained("a copy of the weights"), self._cost:
            due.keep_weights(owned(optimizer))
        return True

    def _gradients_ready(self, optimizer: Optimizer) -> None:
        if self._due is not None:
            with self._contained("the gradients"), self._cost:
                self._due.read_gradients(owned(optimizer))

    def _after_step(self, optimizer: Optimizer) -> None:
        if self._passed_over == id(optimizer):
            return
        if self._rounds is not None:
            self._rounds.stepped.add(id(optimizer))
        due = self._due
        if due is not None and id(optimizer) in due.waiting:
            with self._contained("the weights"), self._cost:
                due.read_weights(owned(optimizer))
                due.waiting.discard(id(optimizer))
                if (found := skipped(optimizer)) is not None:
                    due.skipped.append(found)
                if due.ended and not due.waiting:
                    self._finish(due)
        if self._rounds is not None and self._due is None and (self._by_epochs or self._count >= self._next_step):
            with self._contained("the next step"), self._cost:
                self._arm(self._count)

    def _other_stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped that is not watched, and none that is."""
        with self._contained("the step of an optimizer that is not watched"):
            trained = owned(optimizer)
            if theirs := [name for name, p in named_parameters(self._models).items() if id(p) in trained]:
                self._warn_once(
                    f"{type(optimizer).__name__} trains {some(theirs)}, and no watched optimizer has stepped since: "
                    "what it does is not seen; call watch again with the optimizer that steps, or, if prepare() or "
                    "fully_shard() replaced it, after these"
                )

    def _is_recorded(self) -> bool:
        """Whether this step only goes into a CUDA graph, which may hold nothing of ours; says so."""
        if not is_recording():
            return False
        self._warn_once(
            "a step was recorded into a CUDA graph, and what a graph replays is not seen: put `with monitor.step():` "
            "around replay() of a monitor that was given no optimizer, or leave optimizer.step() out of the graph"
        )
        return True

    # What is due ------------------------------------------------------------------------------------------------------

    def _begin(self, step: int, epoch: int | None, *, forward_passed: bool = False) -> None:
        """Begins a step that has not begun yet: counts it, and opens what is due at it."""
        step = step if type(step) is int else _whole("step", step)
        epoch = None if epoch is None else _whole("epoch", epoch)
        again = step == self._latest and self._cost.steps > 0
        if self._closed or (again and not self._cancelled):
            return
        self._cancelled = False
        if not self._ranks.takes_part and self._stop is None:
            return
        if step < self._latest:
            self._go_back(step, epoch)
        if not again:
            self._latest = self._delivery.now = step
            self._cost.step_begins()
            if self._cost.steps == 2 and self._by_epochs and epoch is None:
                self._warn_once("a schedule goes by epochs, and no step says which: monitor.step(step, epoch=epoch)")
            if self._stop is not None:
                self._consider_stopping(self._stop, step, epoch)
        if self._ranks.takes_part and (self._due is not None or step >= self._next_step or epoch != self._epoch):
            with self._cost:
                self._begin_due(step, epoch, forward_passed=forward_passed)

    def _begin_due(self, step: int, epoch: int | None, *, forward_passed: bool) -> None:
        """Opens what is due at a step that may be."""
        self._epoch = epoch
        turns = self._turns_due(step, epoch)
        if turns:
            self._cost.look()
            self._close_late()
        with named_once():
            if turns:
                self._open(turns, forward_passed=forward_passed)
            else:
                self._find_next()  # the next may have been one that has failed since
            due = self._due
            if due is None or due.step is not None:
                return
            if not turns or all(turn.disabled for turn in due.due):  # armed for a number that has not come
                self._forget()
                return
            due.step, due.epoch = step, epoch
            due.waiting = {id(optimizer) for optimizer in self._optimizers}
            self._check_parameters(due)

    def _turns_due(self, step: int, epoch: int | None) -> list[Turn]:
        return [] if self._nobody_looks else [turn for turn in self._turns if turn.due(step, epoch)]

    @property
    def _nobody_looks(self) -> bool:
        """Whether nothing is measured any more; of a sharded model other ranks take part, who do not know."""
        return self._ranks.left or (self._delivery.is_in_vain and not self._ranks.sharded)

    def _check_parameters(self, due: DueStep) -> None:
        """Takes over parameters that have been replaced since the last due step, and says what of them is not seen."""
        due.parameters = named_parameters(self._models)
        ids = _ids(due.parameters)
        if ids == self._parameters:
            return
        self._parameters = ids
        if not self._ranks.sharded and any(is_sharded(parameter) for parameter in due.parameters.values()):
            self._forget()
            for turn in self._turns:
                turn.disabled = True
            self._warn_once("the model has been sharded since it was watched, so no more is seen: watch it afterwards")
        elif left := untrained(due.parameters, self._optimizers):
            self._warn_once(
                f"the model's parameters are no longer those that were watched, and no watched optimizer has {left}: "
                "watch the model and the optimizer after prepare(), or whatever replaces parameters"
            )

    def _consider_stopping(self, stop: Stop, step: int, epoch: int | None) -> None:
        began = time.perf_counter()
        turned = stop.consider(step, epoch, self._delivery.up_to_date)
        self._cost.add(time.perf_counter() - began)
        if turned and self._ranks.writes:
            LOG.warning("vizlog: the training should stop at step %d: %s", step, stop.because)
            self._delivery.stopped(step, stop.because)

    def _forward_done(self) -> None:
        """Forward and backward of this step are over, so that it counts: finds what is due next."""
        self._count = self._latest + 1
        due = self._due
        if due is not None:
            due.ended = True
            if due.step == self._latest:
                self._plan(due)

    def _arm(self, step: int) -> None:
        """Between steps: if something will be due at `step`, attaches what must see its forward."""
        turns = self._turns_due(step, self._epoch)
        if turns and self._ranks.takes_part and not self._closed:
            self._open(turns)

    def _open(self, turns: Sequence[Turn], *, forward_passed: bool = False) -> None:
        """Asks probes that are due what they want, and attaches what must see the forward to come."""
        if self._due is not None:
            self._due.add(turns, forward_passed=forward_passed)
            return
        reshard(self._models.values())  # an evaluation leaves whole parameters behind, which no optimizer knows
        self._due = due = DueStep(self._models, self._disable, self._ranks, self._silent)
        self._cost.share_among(due.due)
        with named_once():
            due.add(turns, forward_passed=forward_passed)
            if due.wants_live:
                due.attach_live(self._attached, on_any_thread=self._cost.steps == 0)  # which trains is not known yet
        # Between steps a model may be saved whole, and read back where no hook is allowed: once is enough.
        if self._forward_context is self._autocast and not self._autocast.known:
            for root in self._roots:
                if not compiles_hooks(root):
                    self._autocast.attach(self._attached, root)

    def _close_late(self) -> None:
        """Another step is due: one still open is finished as it is, and one that never ended is forgotten."""
        due = self._due
        if due is None or due.step is None:
            return
        if not due.ended:
            self._forget()
            return
        self._warn_once(
            f"step {due.step} was due, but {len(due.waiting)} of {len(self._optimizers)} watched optimizers had not "
            "stepped when the next one came due; their parameters are left out there"
        )
        self._finish(due)

    def _forget(self) -> None:
        """Drops the due step that is open, and all that is attached for it."""
        self._due = None
        self._attached.close()

    def _plan(self, due: DueStep) -> None:
        """Finds what is due next."""
        assert due.step is not None
        for turn in due.due:
            try:
                turn.plan(due.step, due.epoch)
            except Exception as error:  # noqa: BLE001 -- a schedule of one's own may raise anything
                turn.next_step = turn.next_epoch = None
                self._disable(turn, f"the {type(turn.probe.schedule).__name__} schedule", error)
        self._find_next()

    def _stretch(self, due: DueStep) -> None:
        """Keeps the budget: what each probe took this time, against what a step takes without them."""
        pace = self._cost.a_step
        if self._budget is None or pace is None:
            return
        live = [turn for turn in self._turns if not turn.disabled]
        shares = [turn.latest_seconds / (turn.interval(self._latest) * pace) for turn in live]
        # One rank's clock decides for all of a sharded model's.
        for turn, factor in zip(live, self._ranks.broadcast(stretches(shares, self._budget)), strict=True):
            turn.stretch = factor
        self._plan(due)

    def _go_back(self, step: int, epoch: int | None) -> None:
        """The step went back: what the schedules name from there on is due again."""
        self._warn_once(
            f"the step went back from {self._latest} to {step}, and what is due is due again from there; of steps that "
            "come twice TensorBoard shows the later ones alone, so give a step= that rises"
        )
        for turn in self._turns:
            turn.go_back(step, epoch)
        self._find_next()

    def _find_next(self) -> None:
        """Finds the next step at which anything is due, so that those before it ask no probe."""
        planned = [turn.next_step for turn in self._turns if not (turn.disabled or self._nobody_looks)]
        self._next_step = min((number for number in planned if number is not None), default=_NEVER)

    # One due step -----------------------------------------------------------------------------------------------------

    def _finish(self, due: DueStep) -> None:
        """Everything that happens once the step is complete: passes over the fixed batch, measuring, sending."""
        self._attached.close()
        self._due = None
        assert due.step is not None
        with self._contained("a due step"), self._ranks.together(), self._cost:
            self._cost.share_among(due.due)
            due.read_weights()
            self._cost.leave_out(due.take_live())
            if self._ranks.sharded:
                self._bring_together(due)
            due.read_whole_weights()
            measured = self._measure(due)
            self._cost.settle()
            self._stretch(due)
            if self._ranks.writes:
                self._delivery.send(due.step, measured, self._cost.share)

    def _look_once_more(self) -> None:
        """At the end of a run that has been looked at only once, shows what has become of the model."""
        if self._budget is not None or self._ranks.sharded or not self._ranks.writes or self._count <= self._latest:
            return
        turns = [turn for turn in self._turns if turn.waits_in_vain(self._latest)]
        if self._nobody_looks or not turns or any(turn.was_due_at(self._latest) for turn in self._turns):
            return  # at one step there are health figures, and what things cost, but once
        due = DueStep(self._models, self._disable, self._ranks, self._silent)
        due.step, due.epoch = self._latest, self._epoch
        with self._contained("a last look"), named_once():
            self._check_parameters(due)  # of a model that has been sharded since none is left
            due.add([turn for turn in turns if not turn.disabled], forward_passed=True, step_passed=True)
            if due.turns:
                self._finish(due)

    def _bring_together(self, due: DueStep) -> None:
        """What all ranks have read of their shards comes together on the one that writes."""
        parts = self._ranks.gather((due.step, due.own_part()))
        if self._ranks.writes:
            steps = [step for step, _ in parts]
            if len(set(steps)) > 1:
                raise RanksApart(f"the ranks count different steps: {steps}")
            due.merge(part for _, part in parts)
        self._agree(due)

    def _agree(self, due: DueStep) -> None:
        """What has failed on any rank is off on all: a forward that one left out would leave the others waiting."""
        for rank, failed in self._ranks.gather_everywhere(self._failures()).items():
            for number, why in failed.items():
                turn = self._turns[number]
                if self._ranks.writes and not turn.error:
                    LOG.warning("vizlog: %s failed on rank %d at %s, off from now on", turn.probe.name, rank, why)
                turn.error, turn.disabled = why, True
        due.drop([turn for turn in due.turns if turn.disabled])

    def _failures(self) -> dict[int, str]:
        """What failed on this rank since all ranks were told: number of the turn -> why."""
        return {number: turn.error for number, turn in enumerate(self._turns) if turn.error and not turn.disabled}

    def _measure(self, due: DueStep) -> list[tuple[Turn, Any]]:
        """Runs the fixed batch and what the probes `measure`; isolated, where any of that may run a model."""
        looks = due.wants_batch or any(measures(turn.probe) for turn in due.turns)
        measured = []
        # A monitor may be closed in inference mode, where no gradient of a probe's own can be had.
        with ExitStack() as stack, torch.inference_mode(mode=False), torch.no_grad():
            if looks:
                stack.enter_context(unseen())
                stack.enter_context(isolated(self._models.values()))
                start_noise(self._models.values())
                stack.enter_context(self._ranks.alone())
                self._follow_dtype()
            if due.wants_batch:
                self._run_batch(due)
                if self._ranks.sharded:
                    self._agree(due)
            for turn in list(due.turns):
                with due.guarded(turn, "measure()"):
                    with turn.timed(), self._abreast(turn):
                        found = turn.probe.measure(self._context(due, turn))
                    measured.append((turn, found))
        return measured

    def _follow_dtype(self) -> None:
        """Where the model has moved to another type (model.double()), the batch's floats go with it."""
        before, self._dtype = self._dtype, float_type(self._models)
        if self._batch is not None and self._dtype is not None and before != self._dtype:
            self._batch = self._batch.cast(before, self._dtype)

    def _run_batch(self, due: DueStep) -> None:
        """Runs the models over the fixed batch; probes that want it are off where that fails."""
        doing = "the pass over the fixed batch"
        if self._batch is None:
            self._disable_all(due.drop_batch(), doing, ValueError("there is none: give batch="))
            return
        try:
            with self._abreast():
                due.run_batch(self._batch, self._forward_context)
        except RanksApart:
            raise
        except Exception as error:  # noqa: BLE001 -- what needs no batch goes on
            self._disable_all(due.drop_batch(), doing, error)

    @contextmanager
    def _abreast(self, turn: Turn | None = None) -> Iterator[None]:
        """Inside, all ranks run a sharded model, or what measures for this turn, as often as each other."""
        if self._ranks.channel is None or (turn is not None and not measures(turn.probe)):
            yield
            return
        with self._ranks.abreast() as forward_follows, before_forwards(self._models, forward_follows):
            yield

    def _context(self, due: DueStep, turn: Turn) -> Context:
        assert due.step is not None
        return Context(
            due.step,
            due.epoch,
            self._models,
            tuple(self._optimizers),
            due.captured(turn),
            self._batch,
            self._forward_context,
            skipped=tuple(due.skipped),
            rank=self._ranks.rank,
            world=self._ranks.world,
        )

    # Errors of ours ---------------------------------------------------------------------------------------------------

    def _contained(self, doing: str) -> _Contained:
        """Keeps an error of ours from the training loop: the step is given up, with one warning."""
        return _Contained(self._survive, doing)

    def _survive(self, doing: str, error: BaseException) -> bool:
        """What becomes of an error of ours; returns whether it ends here."""
        if not isinstance(error, Exception):  # Ctrl-C while we were at it: nothing of this step stays behind
            self._forget()
            return False
        if self._due is not None and self._ranks.sharded:
            # The others go through with this step, and hear there what they must leave out as well.
            turns = self._due.turns
            self._disable_all(turns, doing, error)
            self._due.drop(turns)
            if turns:
                return True
        else:
            self._forget()
        so = "off from now on" if self._ranks.left else "training goes on"
        self._warn_once(f"failed at {doing}: {one_line(error)}; {so}", None if isinstance(error, RanksApart) else error)
        return True

    def _warn_once(self, message: str, error: Exception | None = None) -> None:
        """Says something once, whatever numbers are in it."""
        kind = re.sub(r"\d+", "", message)
        if kind not in self._warned:
            self._warned.add(kind)
            LOG.warning("vizlog: %s", message, exc_info=error)

    def _disable(self, turn: Turn, doing: str, error: Exception) -> None:
        self._disable_all([turn], doing, error)

    def _disable_all(self, turns: Sequence[Turn], doing: str, error: Exception) -> None:
        """Turns probes off, with one warning; of a sharded model for good once all ranks know."""
        live = [turn for turn in turns if not turn.error]
        what = one_line(error)
        for turn in live:
            turn.error, turn.disabled = f"{doing}: {what}", not self._ranks.sharded
        names = ", ".join(turn.probe.name for turn in live)
        if not live or not self._ranks.writes:
            return  # another rank tells the one that writes
        if isinstance(error, FailedElsewhereError):
            LOG.warning("vizlog: %s failed on rank %d at %s, off from now on: %s", names, error.rank, doing, error.why)
        else:
            LOG.warning("vizlog: %s failed at %s, off from now on: %s", names, doing, what, exc_info=error)


class _Contained:
    """A context that gives what is raised inside to `survive`; a generator takes most of a step with nothing due."""

    __slots__ = ("_doing", "_survive")

    def __init__(self, survive: Callable[[str, BaseException], bool], doing: str) -> None:
        self._survive, self._doing = survive, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> bool:
        return error is not None and self._survive(self._doing, error)


def _common(ranks: Ranks, batch: FixedBatch | None) -> FixedBatch | None:
    """The fixed batch with the examples of the rank that writes, which all ranks of a sharded model run together.

    Raises:
        BatchDoesNotFit: on every rank alike, where only some were given a batch.
    """
    if not ranks.sharded:
        return batch
    examples = None
    if batch is not None and ranks.writes:
        examples = batch.part(0, len(batch), torch.device("cpu")).examples
    given, examples = ranks.broadcast((ranks.gather(batch is not None), examples))
    if not all(given) and any(given):
        without = [rank for rank, has in enumerate(given) if not has]
        raise BatchDoesNotFit(f"batch= must be given on every rank of a sharded model, but ranks {without} have none")
    if batch is None:
        return None
    return batch.with_examples(examples)


def _whole(what: str, number: Any) -> int:
    """A step or an epoch as Python's int: counters are also NumPy's, or tensors.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"the {what} must be a whole number, got {number!r}") from None


def _ids(parameters: Mapping[str, nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters.values()}


def _close_at_exit(monitor: Monitor, delivery: Delivery, attached: ExitStack) -> None:
    reference, process = weakref.ref(monitor), os.getpid()

    def close() -> None:
        alive = reference()
        if alive is not None and os.getpid() == process:  # what is under way belongs to the parent of a fork
            alive.close(looks=False)

    def leave() -> None:  # nobody holds the monitor any more
        attached.close()  # an armed live look has compiled models run eagerly
        if os.getpid() == process:
            delivery.leave()

    atexit.register(close)
    weakref.finalize(monitor, leave).atexit = False
    # At exit it must not run: it would take `close` off before its turn.
    weakref.finalize(monitor, atexit.unregister, close).atexit = False
