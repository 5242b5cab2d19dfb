"""Saliency: which parts of an input a score depends on, as attributions of the input's shape.

A `Score` maps inputs (R, ...) and rows (R,), int64 on the CPU, to scores (R,): `rows[i]` is the number of the example
that `inputs[i]` is a version of, so that a method may run an example many times and each run is scored for its own
target. Rows must not influence each other (BatchNorm in eval mode). Attributions are raw and signed float32: what is
summed (channels, embedding dimensions) is the caller's choice. Nothing here touches `.grad` or a global random state,
and all of it works under `no_grad`, `inference_mode` and the caller's autocast.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vizlog.batch import on_device

__all__ = [
    "Gap",
    "NoGradientError",
    "Score",
    "before_softmax",
    "choose_targets",
    "derivative",
    "gradcam",
    "gradient",
    "integrated_gradients",
    "per_token",
    "smoothgrad",
]

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class NoGradientError(ValueError):
    """The score does not depend on what is to be explained through operations that have a gradient."""


class Gap(NamedTuple):
    """By how much integrated gradients miss what they should add up to, f(x) − f(x₀): both (N,) float32.

    Args:
        absolute: sum of the attributions − (f(x) − f(x₀)), in units of the score.
        relative: |absolute| / |f(x) − f(x₀)|; infinite or NaN where the score does not change.
    """

    absolute: Tensor
    relative: Tensor


def gradient(score: Score, inputs: Tensor, *, chunk: int = 32) -> Tensor:
    """The score's gradient with respect to the input (Simonyan et al. 2014, section 3), signed.

    Args:
        inputs: (N, ...) floating point: images, signals, or embeddings of tokens.
        chunk: how many rows are run at a time, which bounds the memory.

    Returns:
        (N, ...) float32.

    Raises:
        TypeError: the inputs are not floating point.
        ValueError: the score is not (R,), or has no gradient with respect to the inputs.
    """
    return _gradient(score, inputs, _rows(inputs), chunk).float()


def smoothgrad(
    score: Score, inputs: Tensor, *, samples: int = 50, noise: float = 0.15, seed: int = 0, chunk: int = 32
) -> Tensor:
    """The mean gradient over noisy copies of the input (Smilkov et al. 2017, equation 1), signed.

    Args:
        inputs: (N, ...) floating point.
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of each example's maximum − minimum.
        seed: of the noise, which is the same at every call and for every example but for its size, so that pictures
            compare from step to step, whichever examples are explained.
        chunk: how many rows are run at a time, which bounds the memory.

    Returns:
        (N, ...) float32.

    Raises: as `gradient`; ValueError for fewer than one sample.
    """
    _check_count("smoothgrad", "samples", samples)
    _check_floating(inputs)
    flat = inputs.detach().flatten(1)
    deviation = (noise * (flat.amax(1) - flat.amin(1))).view(_per_example(inputs))
    generator = torch.Generator(inputs.device).manual_seed(seed)
    copies = (inputs + deviation * _normal(inputs[0], generator) for _ in range(samples))
    return _weighted_gradient(score, inputs, copies, [1 / samples] * samples, chunk).float()


def integrated_gradients(
    score: Score, inputs: Tensor, *, baseline: Tensor | float = 0.0, steps: int = 50, chunk: int = 32
) -> tuple[Tensor, Gap]:
    """The gradient integrated from a baseline x₀ to the input x, times x − x₀ (Sundararajan et al. 2017, section 3).

    The integral is a Gauss-Legendre sum of `steps` points. An exact one adds up to f(x) − f(x₀) (completeness); the gap
    says how far this one is off.

    Args:
        inputs: (N, ...) floating point.
        baseline: x₀, a number or a tensor that broadcasts to the inputs.
        steps: points on the path.
        chunk: how many rows are run at a time, which bounds the memory.

    Returns:
        (N, ...) float32 attributions, and their completeness gap.

    Raises: as `gradient`; ValueError for fewer than one step or a baseline of another shape.
    """
    _check_count("integrated_gradients", "steps", steps)
    _check_floating(inputs)
    start = _baseline(baseline, inputs)
    path = inputs.detach() - start
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [−1, 1]; the path runs over [0, 1]
    points = (start + float(position) * path for position in (nodes + 1) / 2)
    attributions = path * _weighted_gradient(score, inputs, points, map(float, weights / 2), chunk)
    change = _scores(score, inputs.detach(), chunk) - _scores(score, start, chunk)
    gap = attributions.flatten(1).sum(1) - change
    return attributions.float(), Gap(gap.float(), (gap.abs() / change.abs()).float())


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Where the channels that raise the score are active, never negative (Selvaraju et al. 2017, equations 1 and 2).

    Args:
        activations: (N, K, ...) output of a convolution over one, two or three dimensions of space.
        gradients: of the score with respect to them, same shape (see `derivative`).

    Returns:
        (N, ...) float32, of the convolution's own size.

    Raises:
        ValueError: shapes that differ or have no space.
    """
    if activations.shape != gradients.shape or not 3 <= activations.ndim <= 5:
        raise ValueError(
            "Grad-CAM needs a convolution's output (N, channels, ...) over 1 to 3 dimensions of space "
            f"and gradients of its shape, got {tuple(activations.shape)} and {tuple(gradients.shape)}"
        )
    activations, gradients = activations.detach().float(), gradients.detach().float()
    space = tuple(range(2, activations.ndim))
    return (gradients.mean(space, keepdim=True) * activations).sum(1).relu()


def per_token(attributions: Tensor) -> Tensor:
    """Attributions of embeddings (N, T, D) added up to one number a token: (N, T)."""
    if attributions.ndim != 3:
        raise ValueError(f"attributions of embeddings must be (N, tokens, dimensions), got {tuple(attributions.shape)}")
    return attributions.sum(2)


def derivative(scores: Tensor, of: Tensor) -> Tensor:
    """The gradient of each row's score with respect to that row of `of`, which the scores were computed from.

    Args:
        scores: (R,).
        of: (R, ...), part of the scores' graph: an input, or the output of a layer.

    Returns:
        the shape and dtype of `of`.

    Raises:
        ValueError: the scores are not (R,).
        NoGradientError: they do not depend on `of` through operations that have a gradient.
    """
    if scores.shape != of.shape[:1]:
        raise ValueError(
            f"saliency needs one score for each row, {tuple(of.shape[:1])}, got {tuple(scores.shape)}; "
            "a score= that returns (N,) says what to explain"
        )
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(scores, of, torch.ones_like(scores), allow_unused=True)
    if found is None:
        raise NoGradientError(
            "the score has no gradient with respect to what is to be explained: something on the way detaches it "
            "(detach, no_grad, argmax, rounding), or it does not depend on it"
        )
    return found


def before_softmax(scores: Tensor) -> Tensor:
    """Scores (N, classes) as they are, or, where every row is (log-)probabilities, the logits behind them.

    Softmax cannot tell logits apart that differ by a constant: those of mean 0 come back. Their gradient stays, where
    that of a probability near 1 is nil. Not a branch: to ask would be to wait for the device.
    """
    if scores.shape[1] == 1:
        return scores
    values = scores.detach().float()
    rounding = 1e-4 if scores.dtype in (torch.float32, torch.float64) else 2e-2
    nil, one = torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])
    logs = torch.isclose(values.logsumexp(1), nil, rtol=0.0, atol=rounding).all() & values.isfinite().all()
    shares = torch.isclose(values.sum(1), one, rtol=0.0, atol=rounding).all() & (values >= 0).all()
    logits = torch.where(shares, scores.clamp_min(torch.finfo(scores.dtype).tiny).log(), scores)
    return torch.where(logs | shares, logits - logits.mean(1, keepdim=True), scores)


def choose_targets(
    logits: Tensor, targets: Tensor | None, wanted: int | str, class_names: Sequence[str] | None = None
) -> Tensor:
    """The class to explain for each example, (N,) int64 on the logits' device.

    Args:
        logits: (N, classes); with one class alone, that one is explained whatever the targets are.
        targets: (N,) true classes as integers, or None.
        wanted: "true", "predicted", a class's number, or its name.
        class_names: name of each class.

    Raises:
        ValueError: logits of another shape, unfit or missing targets, a class that there is not.
    """
    if logits.ndim != 2:
        raise ValueError(
            f"saliency of a class needs logits (N, classes), got {tuple(logits.shape)}; "
            "FixedBatch(score=...) says what else to explain"
        )
    number, classes = logits.shape
    if wanted == "predicted":
        return logits.argmax(1)
    if wanted == "true":
        if classes == 1:
            return logits.new_zeros(number, dtype=torch.int64)
        return on_device(_true_classes(targets, number, classes), logits.device)
    named = _class_number(wanted, class_names or ()) if isinstance(wanted, str) else wanted
    if isinstance(named, bool) or not 0 <= named < classes:
        raise ValueError(f"saliency target {wanted!r} is not a class: there are {classes} logits, 0 to {classes - 1}")
    return logits.new_full((number,), named, dtype=torch.int64)


def _gradient(score: Score, inputs: Tensor, rows: Tensor, chunk: int) -> Tensor:
    """The gradient with respect to each row, in the inputs' own dtype."""
    _check_floating(inputs)
    _check_count("saliency", "chunk", chunk)
    with torch.inference_mode(False), torch.enable_grad():
        parts = []
        for part, part_rows in zip(torch.split(inputs, chunk), torch.split(rows, chunk), strict=True):
            leaf = part.detach().clone().requires_grad_()
            # A model may start with an in-place operation, which a leaf does not allow: it gets a copy.
            parts.append(derivative(score(leaf.clone(), part_rows), leaf))
        return torch.cat(parts)


def _weighted_gradient(
    score: Score, inputs: Tensor, copies: Iterable[Tensor], weights: Iterable[float], chunk: int
) -> Tensor:
    """The sum of weight times gradient over copies of the inputs, each of their shape; at least float32.

    Copies are drawn as they are needed, and added in their order: the result is the same every time, on a GPU too.
    """
    total = torch.zeros_like(inputs, dtype=_at_least_float32(inputs.dtype))
    weighted = zip(weights, copies, strict=True)
    together = max(1, chunk // max(1, len(inputs)))
    while batch := list(islice(weighted, together)):
        stacked = torch.cat([copy for _, copy in batch])
        gradients = _gradient(score, stacked, _rows(inputs).repeat(len(batch)), chunk)
        for (weight, _), found in zip(batch, gradients.view(-1, *inputs.shape), strict=True):
            total += weight * found
    return total


def _scores(score: Score, inputs: Tensor, chunk: int) -> Tensor:
    parts = zip(torch.split(inputs, chunk), torch.split(_rows(inputs), chunk), strict=True)
    with torch.no_grad():
        scores = torch.cat([score(part.clone(), rows) for part, rows in parts])
    return scores.to(_at_least_float32(scores.dtype))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(inputs: Tensor) -> Tensor:
    return torch.arange(len(inputs), device="cpu")


def _per_example(inputs: Tensor) -> tuple[int, ...]:
    return (len(inputs), *(1,) * (inputs.ndim - 1))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of the shape of `like`: drawn in float32, so that the noise is the same in every dtype."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32).to(like.dtype)


def _baseline(baseline: Tensor | float, inputs: Tensor) -> Tensor:
    start = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).detach()
    try:
        return start.expand_as(inputs)
    except RuntimeError:
        raise ValueError(
            f"the baseline of integrated gradients must broadcast to the inputs {tuple(inputs.shape)}, "
            f"got {tuple(start.shape)}"
        ) from None


def _true_classes(targets: Tensor | None, number: int, classes: int) -> Tensor:
    if targets is None:
        raise ValueError("saliency of the true class needs targets: FixedBatch(inputs, targets), or target='predicted'")
    integers = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != (number,) or not integers:
        raise ValueError(
            f"saliency of the true class needs integer targets ({number},), "
            f"got {targets.dtype} {tuple(targets.shape)}; take target='predicted' or FixedBatch(score=...)"
        )
    # Checked before it is an index: on a GPU an index out of range takes the whole process down.
    wrong = [int(target) for target in targets.tolist() if not 0 <= target < classes]
    if wrong:
        raise ValueError(f"there are {classes} logits, 0 to {classes - 1}, but a target is {wrong[0]}")
    return targets.long()


def _class_number(name: str, class_names: Sequence[str]) -> int:
    if name in class_names:
        return list(class_names).index(name)
    if not class_names:
        raise ValueError(
            f"saliency target {name!r} is a class's name, which needs FixedBatch(class_names=...); "
            "otherwise give 'true', 'predicted' or the class's number"
        )
    near = difflib.get_close_matches(name, [*class_names, "true", "predicted"], n=3, cutoff=0.0)
    raise ValueError(f"no class is called {name!r}; the nearest names are {', '.join(map(repr, near))}")


def _check_floating(inputs: Tensor) -> None:
    if not inputs.is_floating_point():
        raise TypeError(
            f"saliency needs floating point inputs, got {inputs.dtype}: "
            "token ids have no gradient, but their embeddings (N, T, D) have"
        )


def _check_count(what: str, name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{what} needs {name} >= 1, got {name}={value}")
