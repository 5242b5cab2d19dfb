"""What a callback was given, kept until its training starts: only then there is a model to make a monitor of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from vizlog.backends.open import check_destination
from vizlog.batch import FixedBatch
from vizlog.budget import check_pace
from vizlog.loaders import only_tensor
from vizlog.messages import LOG, show
from vizlog.monitor import Monitor
from vizlog.probes.base import Probe, as_probes
from vizlog.schedules import Schedule
from vizlog.stopping import StopWhen, check_stop_when

__all__ = ["Arguments"]


@dataclass(frozen=True)
class Arguments:
    """The arguments that all callbacks take, as a person gave them; they say what each means.

    Raises:
        TypeError, ValueError: `probes`, `every`, `to`, `budget` or `stop_when` is nothing of the kind.
    """

    probes: Sequence[Probe] | None
    to: Any
    batch: FixedBatch | tuple[Any, Any] | Callable[[], Any] | None
    every: int | Schedule | None
    budget: float | None
    stop_when: StopWhen | None

    def __post_init__(self) -> None:
        show()  # a callback has something to say before it makes a monitor: which data it takes
        check_pace(self.probes, self.every, self.budget)
        if self.to is not None:
            check_destination(self.to)
        if self.probes is not None:
            object.__setattr__(self, "probes", as_probes(self.probes))
        if self.stop_when is not None:
            check_stop_when(self.stop_when)

    def monitor(
        self,
        model: nn.Module,
        batch: Any,
        *,
        to: Any,
        optimizer: Any,
        forward_context: Callable[[], AbstractContextManager[Any]] | None,
    ) -> Monitor:
        """The monitor that a training starts with.

        Args:
            model: what trains.
            batch: the one that was given, or one that the callback found in the data: where that does not fit, the
                training goes on without pictures of examples, and one line says so.
            to, optimizer, forward_context: as `Monitor` takes them.

        Raises:
            TypeError, ValueError: what was given does not fit the model.
        """

        def made(batch: Any) -> Monitor:
            return Monitor(
                model,
                self.probes,
                to=to,
                batch=batch,
                optimizer=optimizer,
                every=self.every,
                budget=self.budget,
                stop_when=self.stop_when,
                forward_context=forward_context,
            )

        try:
            return made(batch)
        except Exception as reason:
            if self.batch is not None or batch is None:
                raise
            # A step takes batch["image"] out of the mapping itself, and names it as forward does not.
            if (alone := only_tensor(batch.inputs)) is not None:
                with suppress(Exception):
                    return made(batch.with_examples({"inputs": alone}))
            monitor = made(None)  # raises again, where it was another argument that did not fit
            LOG.warning("vizlog goes on without pictures of examples: %s; or give VizLog(batch=…)", reason)
            return monitor
