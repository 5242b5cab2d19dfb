"""However a network is trained in one process: nothing of it changes, and what is logged is what was there."""

from __future__ import annotations

import functools
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from regimes import EVERY, REGIMES, Run
from torch import Tensor

from vizlog.records import Histogram

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # inside inductor
]


@functools.cache
def trained(regime: str, how: str) -> tuple[Run, list[str]]:
    """A run, and what was warned of; `how` is "alone", "watched" or "live"."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    run = Run(watches=how != "alone", live=how == "live")
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("vizlog")
    log.addHandler(handler)
    try:
        REGIMES[regime](run)
        run.end = run.outcome()
        run.close()
    finally:
        log.removeHandler(handler)
    return run, said


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
        return [found for n, pair in enumerate(zip(a, b)) for found in differences(*pair, f"{where}/{n}")]
    return [] if a == b or (a is None and b is None) else [f"{where}: {a!r} and {b!r}"]


@pytest.mark.parametrize("regime", REGIMES)
def test_all(regime: str) -> None:
    alone, _ = trained(regime, "alone")
    watched, said = trained(regime, "watched")
    assert not said
    assert not differences(alone.end, watched.end)
    assert alone.states == watched.states
    assert alone.graphs == watched.graphs, (alone.graphs, watched.graphs)
    due = alone.steps[::EVERY]
    seen = {}
    for step, record in watched.memory.records:
        seen.setdefault(record.tag, {})[step] = record
    for n, step in enumerate(due):
        for name, gradient in alone.gradients[step].items():
            record = seen[f"gradients/{name}"][step]
            assert record.count == gradient.size
            np.testing.assert_allclose([record.min, record.max], [gradient.min(), gradient.max()], rtol=1e-6)
        for name, weight in alone.weights[step].items():
            record = seen[f"weights/{name}"][step]
            np.testing.assert_allclose([record.min, record.max], [weight.min(), weight.max()], rtol=1e-6)
    names = {t for t in seen if t.startswith("gradients/")}
    assert names == {f"gradients/{n}" for s in due for n in alone.gradients[s]}
    assert {s for t in seen for s in seen[t]} == set(due)


@pytest.mark.parametrize("regime", REGIMES)
def test_live(regime: str) -> None:
    if "compiled" in regime: return
    alone, _ = trained(regime, "alone")
    watched, said = trained(regime, "live")
    assert not said
    assert not differences(alone.end, watched.end)
    assert alone.states == watched.states
    found = {step: r.count for step, r in watched.memory.records if r.tag in ("activations/hidden", "activations/hidden.fc", "activations/1.1")}
    assert found == {s: alone.units[s] for s in alone.steps[::EVERY]}
