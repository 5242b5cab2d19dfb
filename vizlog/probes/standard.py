"""`standard`: the right pictures for a model it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from vizlog.batch import FixedBatch, as_fixed_batch
from vizlog.given import makes_a_batch
from vizlog.isolation import changes_learnt, isolated
from vizlog.messages import LOG
from vizlog.probes.activations import ActivationHistograms
from vizlog.probes.attention import AttentionMaps
from vizlog.probes.base import Probe
from vizlog.probes.embeddings import Embeddings
from vizlog.probes.feature_maps import FeatureMaps
from vizlog.probes.filters import FilterImages
from vizlog.probes.gradients import GradientHistograms
from vizlog.probes.saliency import SaliencyMaps
from vizlog.probes.updates import UpdateRatios
from vizlog.probes.weights import WeightHistograms
from vizlog.schedules import LogSpaced, Schedule, Thinning, as_schedule
from vizlog.selection import named_models
from vizlog.survey import Survey, survey

__all__ = ["numbers_every", "standard", "standard_for"]


def standard(
    model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    batch: FixedBatch | tuple[Any, Any] | None = None,
    *,
    every: int | Schedule = 100,
) -> list[Probe]:
    """Probes that suit a model and a batch never seen before; a list to add to or take from.

    Args:
        model: a module, a list or a dict of modules.
        batch: the fixed batch, or (inputs, targets); without one only weights, gradients, updates, filters and live
            activations.
        every: how many steps between histograms, thinned by doubling so that a run keeps about 500 of each; pictures
            are log-spaced from it, 16 of each in 450,000 steps. A schedule is taken for all as it is; of the health
            figures that these find, the curves over all layers stay log-spaced.

    Raises:
        TypeError: the model or the batch is nothing of the kind.
        BatchDoesNotFit: the model cannot be run on the batch.
    """
    if makes_a_batch(batch):
        raise TypeError("standard() takes the batch itself: give what the function returns")
    models = named_models(model)
    fixed = as_fixed_batch(batch)
    met = None
    if fixed is not None:
        with isolated(models.values()), changes_learnt(models.values()):
            met = survey(models, fixed)
    return standard_for(models, met, every=every)


def standard_for(
    models: Mapping[str, nn.Module], met: Survey | None, *, every: int | Schedule = 100, optimized: bool = True
) -> list[Probe]:
    """`standard` where the batch has been run already; `optimized`: whether an optimizer is watched."""
    as_schedule(every)  # raises where it is no number of steps
    numbers = numbers_every(every)
    pictures = every if isinstance(every, Schedule) else LogSpaced(every=every)
    candidates: list[Callable[[], Probe]] = [
        lambda: WeightHistograms(every=numbers),
        lambda: GradientHistograms(every=numbers),
        lambda: UpdateRatios(every=numbers),
        lambda: ActivationHistograms(every=numbers),
        lambda: FilterImages(every=pictures),
        lambda: FeatureMaps(every=pictures),
        lambda: SaliencyMaps(every=pictures),
        lambda: Embeddings(every=pictures, examples=128),  # each more of them is a forward more
        lambda: AttentionMaps(every=pictures),
    ]
    chosen: list[Probe] = []
    left_out: list[str] = []
    for make in candidates:
        probe = make()
        if probe.needs_optimizer and not optimized:
            left_out.append(f"{probe.name} (needs optimizer=)")
            continue
        try:
            probe.bind(models, met)
        except ValueError as reason:
            left_out.append(f"{probe.name} ({str(reason).removeprefix(probe.name).strip()})")
        else:
            chosen.append(probe)
    examples = "" if met is None else f"; examples: {met.batch!r}"  # a callback found them, perhaps not as one would
    LOG.info("vizlog looks at %s%s", ", ".join(probe.name for probe in chosen), examples)
    if left_out:
        LOG.info("vizlog leaves out %s", "; ".join(left_out))
    return chosen


def numbers_every(every: int | Schedule) -> Schedule:
    """When the standard probes measure numbers: thinned by doubling, so that a run of any length keeps few."""
    return every if isinstance(every, Schedule) else Thinning(every=every)
