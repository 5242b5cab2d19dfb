"""What is wrong with a run, one number a concept: a state folded over the records of each step, with the same keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from vizlog.records import Curves, Embedding, Histogram, Record, Scalar

__all__ = ["CONDITIONS", "KEYS", "STOPPED_BECAUSE", "Condition", "Diagnosis"]

PREFIX = "vizlog/"
STOPPED_BECAUSE = f"{PREFIX}stopped_because"
"""Where a summary says why the training was stopped; "" where it was not."""

MOST = 1e12
"""What stands for infinity, and for the gradient norm of NaN: a summary must stay finite."""

GONE = 1e-12
"""A gradient norm that is none; also the least ratio of two."""

SKIPPED = "of a skipped step"
"""How the name of a line ends that shows gradients which a gradient scaler let change nothing."""

CUT_OFF = 1e-8
"""Ratio of the first layer's gradient to the last's at which the first learns nothing."""


@dataclass(frozen=True)
class Diagnosis:
    """The health of a run so far, one finite number a concept. What has not been measured has a neutral value.

    Args:
        dead_units_worst, dead_units_mean: share of a layer's units that are zero for every example of the fixed batch:
            of the layer with most, and over all layers.
        saturated_worst: share of outputs at a limit of their sigmoid, tanh or softmax, in the layer with most.
        gradient_norm, gradient_norm_max: Euclidean norm over all layers; the highest so far.
        vanishing: norm of the first layer's gradient over that of the last, 1e-12 to 1e12; 1 also where both are 0.
        update_ratio_worst, update_ratio_max: |Δw| / |w| of the layer where it is highest; the highest so far.
        nonfinite_total: NaN and infinite values counted in weights, gradients and activations, over all steps looked
            at; a step where only a layer that is not drawn has some counts as one more.
        first_bad_step: the first step with such; −1: none.
        knn_accuracy, silhouette: of the last embedding that was made.
        attention_entropy: of the most narrow head, 0 to 1; attention_sinks: share of heads.
        time_share: the share of the training time that vizlog took.

        looks: at how many steps numbers have been measured, in this process, since the steps went back the last time.
        latest_look: the step of the last one; −1: none.
        bad, dead, gone: for how many looks in a row, up to the last one, there were non-finite values, a layer was all
            dead with no gradient coming through it, or no gradient reached the first layer.
        has_gradients: whether gradients are among what is measured.
    """

    dead_units_worst: float = 0.0
    dead_units_mean: float = 0.0
    saturated_worst: float = 0.0
    gradient_norm: float = 0.0
    gradient_norm_max: float = 0.0
    vanishing: float = 1.0
    update_ratio_worst: float = 0.0
    update_ratio_max: float = 0.0
    nonfinite_total: int = 0
    first_bad_step: int = -1
    knn_accuracy: float = 0.0
    silhouette: float = 0.0
    attention_entropy: float = 1.0
    attention_sinks: float = 0.0
    time_share: float = 0.0

    looks: int = 0
    latest_look: int = -1
    bad: int = 0
    dead: int = 0
    gone: int = 0
    has_gradients: bool = False

    def scalars(self) -> dict[str, float]:
        """Key -> value, for a summary: every key in every run."""
        return {f"{PREFIX}{name}": value for name, value in asdict(self).items() if name not in _COUNTERS}

    def after(self, step: int, records: Sequence[Record]) -> Diagnosis:
        """The diagnosis after these records of one step; a step's numbers come together, each picture by itself."""
        scalars = {record.tag: record.value for record in records if isinstance(record, Scalar)}
        curves = {record.tag: record for record in records if isinstance(record, Curves)}
        found: dict[str, Any] = {}
        for name, tag in _FROM_SCALARS.items():
            if not math.isnan(value := scalars.get(tag, math.nan)):
                found[name] = _finite(value)
        found["update_ratio_max"] = max(self.update_ratio_max, found.get("update_ratio_worst", 0.0))
        for record in records:
            if isinstance(record, Embedding):
                found |= {name: _score(record, name) for name in ("knn_accuracy", "silhouette")}
        skipped = any(line.endswith(SKIPPED) for record in curves.values() for line in record.ys)
        if skipped:
            curves.pop("health/gradient_norm", None)
        if "health/gradient_norm" in curves:
            found |= self._gradient(curves["health/gradient_norm"])
        shares = _shares(curves.get("health/nonfinite"))
        found |= self._nonfinite(step, records, shares, gradients=not skipped)
        following = replace(self, **found)
        return _look_counted(step, following, shares, curves) if _NUMBERS & curves.keys() else following

    def state_dict(self) -> dict[str, float]:
        """Plain data, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in _COUNTERS}

    @staticmethod
    def from_state(state: Mapping[str, float]) -> Diagnosis:
        """What a resumed run goes on with: figures, but nothing that could stop it before it has been looked at."""
        known = Diagnosis().state_dict()
        return Diagnosis(**{name: state[name] for name in known if name in state})  # type: ignore[arg-type]

    def _gradient(self, curves: Curves) -> dict[str, float]:
        norms = next(iter(curves.ys.values()))
        norms = np.where(np.isfinite(norms), norms, MOST)  # NaN: a layer whose gradient is not finite
        norm = min(float(np.linalg.norm(norms)), MOST)
        first, last = (max(float(part), 0.0) for part in (norms[0], norms[-1]))
        ratio = first / last if last > 0 else (1.0 if first == 0 else MOST)
        return {
            "gradient_norm": norm,
            "gradient_norm_max": max(norm, self.gradient_norm_max),
            "vanishing": min(max(ratio, GONE), MOST),
        }

    def _nonfinite(
        self, step: int, records: Sequence[Record], shares: Mapping[str, float], *, gradients: bool
    ) -> dict[str, int]:
        counted = sum(
            record.nans + record.pos_infs + record.neg_infs
            for record in records
            if isinstance(record, Histogram)
            and record.tag.startswith(("weights/", "activations/", *(("gradients/",) if gradients else ())))
        )
        number = max(counted, int(any(share > 0 for share in shares.values())))
        first = step if number and self.first_bad_step < 0 else self.first_bad_step
        return {"nonfinite_total": self.nonfinite_total + number, "first_bad_step": first}


Condition: TypeAlias = Callable[[Mapping[str, float]], object]
"""A question of one's own about `Diagnosis.scalars()`: true where the training is hopeless."""

# A single look may deceive: a last layer that starts at zero lets no gradient through before its first update.
CONDITIONS: Mapping[str, tuple[Callable[[Diagnosis], bool], str]] = MappingProxyType(
    {
        "nonfinite": (lambda found: found.bad >= 1, "there are NaN or infinite values"),
        "dead": (lambda found: found.dead >= 2, "all units of a layer are dead, and no gradient comes through it"),
        "gradients_gone": (lambda found: found.gone >= 2, "no gradient reaches the first layer"),
    }
)
"""Name -> whether it holds, and how it is said."""

_COUNTERS = ("looks", "latest_look", "bad", "dead", "gone", "has_gradients")
_FROM_SCALARS = {
    "dead_units_worst": "health/dead_units_worst",
    "dead_units_mean": "health/dead_units_mean",
    "saturated_worst": "health/saturated_worst",
    "update_ratio_worst": "health/update_ratio_worst",
    "attention_entropy": "health/attention_entropy_worst",
    "attention_sinks": "health/attention_sinks_mean",
    "time_share": "health/vizlog_time_share",
}
_NUMBERS = {"health/gradient_norm", "health/nonfinite", "health/dead_units"}
"""What is measured at each look; pictures come later, and are none."""

KEYS = (*Diagnosis().scalars(), STOPPED_BECAUSE)
"""What every summary holds."""


def _finite(value: float) -> float:
    return min(max(value, -MOST), MOST)


def _score(record: Embedding, name: str) -> float:
    """A score of an embedding; that of a person's own probe may be NaN, which is none."""
    score = float(record.scores.get(name, 0.0))
    return 0.0 if math.isnan(score) else _finite(score)


def _shares(curves: Curves | None) -> dict[str, float]:
    """Source -> the highest share of values that are not finite, skipped steps aside."""
    if curves is None:
        return {}
    return {
        source: float(np.nanmax(line))
        for source, line in curves.ys.items()
        if not source.endswith(SKIPPED) and not np.isnan(line).all()
    }


def _look_counted(step: int, found: Diagnosis, shares: Mapping[str, float], curves: Mapping[str, Curves]) -> Diagnosis:
    """Counts a look; what was not measured this time stays as it was.

    Where the steps have gone back, to an earlier checkpoint, those before were looks at a training that was given up.
    """
    if step < found.latest_look:
        found = Diagnosis.from_state(found.state_dict())
    has_gradients = found.has_gradients or "health/gradient_norm" in curves
    gone = has_gradients and (found.gradient_norm <= GONE or found.vanishing <= CUT_OFF)
    counts: dict[str, int] = {}
    if shares:
        # Activations may be infinite by design (masked scores): they count where nothing else was looked at.
        trained = [share for source, share in shares.items() if source != "activations"]
        counts["bad"] = found.bad + 1 if any(share > 0 for share in trained or shares.values()) else 0
    if "health/dead_units" in curves:
        dead = found.dead_units_worst >= 1 and (gone or not has_gradients)
        counts["dead"] = found.dead + 1 if dead else 0
    if "health/gradient_norm" in curves:
        counts["gone"] = found.gone + 1 if gone else 0
    return replace(found, looks=found.looks + 1, latest_look=step, has_gradients=has_gradients, **counts)
