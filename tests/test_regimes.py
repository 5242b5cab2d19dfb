"""However a network is trained in one process: nothing of it changes, and what is logged is what was there."""

from __future__ import annotations

import functools
import logging
import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from regimes import EVERY, REGIMES, Arrays, Net, Run, hooks
from torch import Tensor

from vizlog.records import Curves, Histogram, Record

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),  # inside Lightning
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # inside inductor
]

COMPILED = [regime for regime in REGIMES if "ompiled" in regime]
EAGER = [regime for regime in REGIMES if regime not in COMPILED]
SAID = {"nothing to train": ["vizlog: none of the selected parameters requires a gradient"]}


@functools.cache
def trained(regime: str, how: str) -> Run:
    """A run from the same start; `how` is "alone", "watched" (through a fixed batch) or "live"."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- what a person's own training code draws from
    torch.manual_seed(0)
    run = Run(watches=how != "alone", live=how == "live")
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: run.said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vizlog").addHandler(listener)
    try:
        REGIMES[regime](run)
        run.outcome = run.everything()
    finally:
        run.close()
        logging.getLogger("vizlog").removeHandler(listener)
    return run


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values are not the same to the last bit."""
    if isinstance(a, (Tensor, np.ndarray)):
        a, b = (np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in (a, b))
        return [] if a.dtype == b.dtype and a.tobytes() == b.tobytes() else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {a.keys() ^ b.keys()}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)}"]
        return [found for n, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{where}/{n}")]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


def due(run: Run) -> list[int]:
    return run.steps[::EVERY]


def seen(run: Run, kind: str) -> dict[int, dict[str, Record]]:
    """Step -> name -> what was logged under `kind/name`."""
    found: dict[int, dict[str, Record]] = defaultdict(dict)
    for step, record in run.memory.records:
        if record.tag.startswith(f"{kind}/"):
            found[step][record.tag.removeprefix(f"{kind}/")] = record
    return dict(found)


# Training is left alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_training_is_the_same_to_the_last_bit(regime: str) -> None:
    alone, watched = trained(regime, "alone"), trained(regime, "watched")
    assert differences(alone.outcome, watched.outcome) == []
    assert watched.said == SAID.get(regime, [])
    assert watched.memory.records


@pytest.mark.parametrize("regime", EAGER)
def test_a_live_look_changes_nothing(regime: str) -> None:
    alone, watched = trained(regime, "alone"), trained(regime, "live")
    assert differences(alone.outcome, watched.outcome) == []
    assert watched.said == SAID.get(regime, [])
    assert any(record.tag.startswith("activations/") for _, record in watched.memory.records)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_model_copies_and_pickles_at_any_moment_and_nothing_is_left_on_it(regime: str) -> None:
    alone = trained(regime, "alone")
    for how in ("watched", "live") if regime in EAGER else ("watched",):
        run = trained(regime, how)
        assert run.states == alone.states
        assert hooks(run.model) == hooks(alone.model)
        for optimizer in run.optimizers:
            assert not optimizer._optimizer_step_pre_hooks
            assert not optimizer._optimizer_step_post_hooks
    if regime in EAGER:
        assert not [state for state in alone.states if "Error" in state]
        if alone.states and regime not in ("LBFGS",):
            assert run.hooked > alone.hooked  # copies were made while live hooks were there


@pytest.mark.parametrize("regime", COMPILED)
def test_nothing_is_compiled_that_would_not_have_been(regime: str) -> None:
    """Each loop itself runs its later steps with `fail_on_recompile`."""
    alone, watched = trained(regime, "alone"), trained(regime, "watched")
    assert watched.graphs == alone.graphs
    assert watched.graphs[-1] > 0


# What is logged is what was there -------------------------------------------------------------------------------------


def compare(found: dict[str, Record], expected: Arrays) -> None:
    """Histograms are those of NumPy."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        record = found[name]
        assert isinstance(record, Histogram)
        assert record.count == values.size
        counts, _ = np.histogram(values.astype(np.float64), record.edges)
        assert np.abs(record.counts - counts).sum() <= 0.01 * values.size, name
        np.testing.assert_allclose(
            [record.min, record.max, record.mean, record.std],
            [values.min(), values.max(), values.mean(dtype=np.float64), values.std(dtype=np.float64)],
            rtol=1e-4,
            atol=1e-7,
        )


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_are_those_the_optimizer_used(regime: str) -> None:
    alone, watched = trained(regime, "alone"), trained(regime, "watched")
    found, curves = seen(watched, "gradients"), seen(watched, "health")
    for step in due(alone):
        expected = alone.gradients[step]
        if not expected:
            continue  # nothing is trained, or the scaler skipped the step: a test of its own
        compare(found[step], expected)
        assert all("as the optimizer used it: unscaled, after clipping" in r.caption for r in found[step].values())
        squares: dict[str, float] = defaultdict(float)
        for name, gradient in expected.items():
            squares[name.rpartition(".")[0]] += np.square(gradient, dtype=np.float64).sum()
        curve = curves[step]["gradient_norm"]
        assert isinstance(curve, Curves)
        assert set(curve.x_names or ()) == set(squares)
        norms = [squares[str(layer)] ** 0.5 for layer in curve.x_names or ()]
        np.testing.assert_allclose(curve.ys["gradient_norm"], norms, rtol=1e-5)


@pytest.mark.parametrize("regime", REGIMES)
def test_weights_are_those_after_the_step(regime: str) -> None:
    alone, watched = trained(regime, "alone"), trained(regime, "watched")
    found = seen(watched, "weights")
    assert list(found) == due(alone)
    for step in due(alone):
        compare(found[step], alone.weights[step])


@pytest.mark.parametrize("regime", [regime for regime in EAGER if regime not in ("GPT-2", "BERT", "ViT", "T5")])
def test_each_activation_of_the_live_forward_is_counted_once(regime: str) -> None:
    alone, watched = trained(regime, "alone"), trained(regime, "live")
    layers = seen(watched, "activations")
    name = next(name for name in ("hidden", "hidden.fc", "1.1") if name in layers[0])
    assert {step: records[name].count for step, records in layers.items()} == {s: alone.units[s] for s in due(alone)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("regime", REGIMES)
def test_tags_and_steps_are_those_of_the_bare_model(regime: str) -> None:
    alone, watched, plain = trained(regime, "alone"), trained(regime, "watched"), trained("plain", "watched")
    assert {step for step, _ in watched.memory.records} == set(due(alone))
    if isinstance(watched.model, Net) and regime not in SAID:
        of_lightning = {"health/gradient_norm_before_clipping"}
        tags = {record.tag for _, record in watched.memory.records} - of_lightning
        assert tags == {record.tag for _, record in plain.memory.records}
