"""One record of every kind, made of real digits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.datasets import load_digits

from vizlog.records import (
    Attention,
    Curves,
    Embedding,
    Heatmaps,
    Histogram,
    Images,
    Record,
    Scalar,
    Surface,
    Text,
)

NAMES = [f"digit {number}" for number in range(10)]


def every_record(step: int = 0) -> list[Record]:
    """Values change with the step, as a run's do."""
    rng = np.random.default_rng(step)
    axis = np.linspace(-1, 1, 9)
    words = ["the", "cat", "sat", "on", "the", "mat"]
    return [
        Scalar("health/zeros_worst", 0.5 + step, caption="The largest share of zeros among all layers."),
        histogram_of("weights/conv1", rng.normal(size=5000) + step / 100),
        images(),
        Heatmaps(
            "saliency/gradient",
            rng.normal(size=(4, 8, 8)).astype(np.float32),
            [f"example {number}" for number in range(4)],
            ["true class 3"] * 4,
            (-3.0, 3.0),
            colormap="diverging",
        ),
        Attention(
            "attention/layer1",
            rng.dirichlet(np.ones(6), (1, 2, 6)).astype(np.float32),
            examples=[0],
            heads=[0, 1],
            query_tokens=[words],
            key_tokens=[words],
        ),
        embedding("embeddings/fc", step),
        Curves("health/zeros", np.arange(4), {"zeros": rng.random(4)}, "layer", "share", x_names=list("abcd")),
        Surface("landscape/loss", axis, axis, axis[:, None] ** 2 + axis**2, None, "direction 1", "direction 2", "loss"),
        Text("text/note", f"**step {step}** of a run", caption="What was thinned."),
    ]


def histogram_of(tag: str, values: ArrayLike, bins: int = 64, caption: str = "All elements.") -> Histogram:
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, bins)
    return Histogram(
        tag,
        edges,
        counts,
        count=values.size,
        zeros=int((values == 0).sum()),
        nans=int(np.isnan(values).sum()),
        pos_infs=int(np.isposinf(values).sum()),
        neg_infs=int(np.isneginf(values).sum()),
        min=float(finite.min()) if finite.size else np.nan,
        max=float(finite.max()) if finite.size else np.nan,
        mean=float(finite.mean()) if finite.size else np.nan,
        std=float(finite.std()) if finite.size else np.nan,
        quantiles={0.5: float(np.median(finite))} if finite.size else {},
        caption=caption,
    )


def images(tag: str = "filters/conv1") -> Images:
    pixels = (load_digits().images[:6, :, :, None] * 15).astype(np.uint8)
    return Images(tag, pixels, [f"filter {number}" for number in range(6)], (0.0, 1.0), caption="All six filters.")


def embedding(tag: str, step: int = 0, number: int = 60) -> Embedding:
    """Digits as they are: clusters by class are there to be seen."""
    digits = load_digits()
    vectors = digits.data[:number] + step / 100
    centred = vectors - vectors.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    return Embedding(
        tag,
        vectors,
        layouts={"pca": plane[:, :2]},
        layouts_3d={"pca": plane},
        labels=digits.target[:number],
        class_names=NAMES,
        ids=np.arange(number),
        thumbnails=(digits.images[:number, :, :, None] * 15).astype(np.uint8),
        scores={"knn_accuracy": 0.9},
        caption="Pixels of held-out digits.",
    )
