"""vizlog: see inside a network while it trains.

Public names are imported on first use (PEP 562): `import vizlog` alone imports neither torch nor a backend, so that a
`tensorboard` process that finds vizlog installed starts as fast as before.
"""

from __future__ import annotations

import importlib

# Type checkers take a constant of this name for true. Importing `typing` for it takes ten times
# as long as the rest of this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vizlog.backends.fanout import FanOut as FanOut
    from vizlog.backends.memory import Memory as Memory
    from vizlog.backends.tensorboard import TensorBoard as TensorBoard
    from vizlog.backends.wandb import WandB as WandB
    from vizlog.batch import FixedBatch as FixedBatch
    from vizlog.callbacks.loop import watch as watch
    from vizlog.monitor import Monitor as Monitor
    from vizlog.probes.activations import ActivationHistograms as ActivationHistograms
    from vizlog.probes.attention import AttentionMaps as AttentionMaps
    from vizlog.probes.base import Probe as Probe
    from vizlog.probes.embeddings import Embeddings as Embeddings
    from vizlog.probes.feature_maps import FeatureMaps as FeatureMaps
    from vizlog.probes.filters import FilterImages as FilterImages
    from vizlog.probes.gradients import GradientHistograms as GradientHistograms
    from vizlog.probes.saliency import SaliencyMaps as SaliencyMaps
    from vizlog.probes.standard import standard as standard
    from vizlog.probes.updates import UpdateRatios as UpdateRatios
    from vizlog.probes.weights import WeightHistograms as WeightHistograms
    from vizlog.records import Attention as Attention
    from vizlog.records import Curves as Curves
    from vizlog.records import Embedding as Embedding
    from vizlog.records import Heatmaps as Heatmaps
    from vizlog.records import Histogram as Histogram
    from vizlog.records import Images as Images
    from vizlog.records import Record as Record
    from vizlog.records import Scalar as Scalar
    from vizlog.records import Surface as Surface
    from vizlog.records import Text as Text
    from vizlog.schedules import AtSteps as AtSteps
    from vizlog.schedules import Every as Every
    from vizlog.schedules import EveryEpoch as EveryEpoch
    from vizlog.schedules import LogSpaced as LogSpaced
    from vizlog.schedules import Schedule as Schedule
    from vizlog.schedules import Thinning as Thinning

__version__ = "0.1.0"

_HOME = {
    "vizlog.backends.fanout": ("FanOut",),
    "vizlog.backends.memory": ("Memory",),
    "vizlog.backends.tensorboard": ("TensorBoard",),
    "vizlog.backends.wandb": ("WandB",),
    "vizlog.batch": ("FixedBatch",),
    "vizlog.callbacks.loop": ("watch",),
    "vizlog.monitor": ("Monitor",),
    "vizlog.probes.activations": ("ActivationHistograms",),
    "vizlog.probes.attention": ("AttentionMaps",),
    "vizlog.probes.base": ("Probe",),
    "vizlog.probes.embeddings": ("Embeddings",),
    "vizlog.probes.feature_maps": ("FeatureMaps",),
    "vizlog.probes.filters": ("FilterImages",),
    "vizlog.probes.gradients": ("GradientHistograms",),
    "vizlog.probes.saliency": ("SaliencyMaps",),
    "vizlog.probes.standard": ("standard",),
    "vizlog.probes.updates": ("UpdateRatios",),
    "vizlog.probes.weights": ("WeightHistograms",),
    "vizlog.records": (
        "Attention",
        "Curves",
        "Embedding",
        "Heatmaps",
        "Histogram",
        "Images",
        "Record",
        "Scalar",
        "Surface",
        "Text",
    ),
    "vizlog.schedules": ("AtSteps", "Every", "EveryEpoch", "LogSpaced", "Schedule", "Thinning"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vizlog' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
