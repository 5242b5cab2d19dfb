"""What saliency explains: the values of some examples, and the model as a score of other values in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from vizlog.batch import BatchDoesNotFit, FixedBatch, on_device
from vizlog.capture import Capture, replaced
from vizlog.compute.saliency import Score, before_softmax, derivative, gradcam
from vizlog.given import describe
from vizlog.isolation import hidden_states
from vizlog.reading import Reading
from vizlog.requests import Call, Outputs
from vizlog.selection import named_modules

__all__ = ["Subject", "input_values", "logits_of", "met"]

_ROWS = 8
"""How many rows go through the model at once, at most: saliency keeps the graph of each."""


@dataclass(frozen=True)
class Subject:
    """Examples and the values in them that are explained.

    Args:
        models: name -> bare module.
        batch: the N examples, on the models' device.
        restart: puts back what the model had kept between forwards, so that each starts from the same.
        values: (N, ...) floating point: one of the inputs, or the embeddings of the tokens.
        embedding: the call that makes the values from token ids ("embed", or "embed@2"); "" where they are an input.
        chunk: how many rows the model may be run on at once.
    """

    models: Mapping[str, nn.Module]
    batch: FixedBatch
    restart: Callable[[], None]
    values: Tensor
    embedding: str = ""
    chunk: int = _ROWS

    def take(self, rows: Tensor) -> Subject:
        """The examples of these rows, an int64 tensor on the CPU."""
        return replace(self, batch=self.batch.take(rows), values=self.values[rows])

    def score(self, targets: Tensor | None) -> Score:
        """The logit of each example's target (N,), or minus its loss where there are no targets."""

        def score(values: Tensor, rows: Tensor) -> Tensor:
            batch = self.batch.take(rows)
            output, batch = self._run(batch, values)
            if targets is None:
                return -_row_losses(batch, output)
            logits = logits_of(batch, output)
            if logits is None:
                raise BatchDoesNotFit(f"the model's output has no class scores any more: {describe(output)}")
            return logits.gather(1, on_device(targets[rows], logits.device)[:, None]).squeeze(1)

        return score

    def losses(self, output: Any) -> Tensor:
        """(N,) the loss of each example: by the output on all, or where that has one loss for all, by a run of each."""
        loss = Reading(self.batch, output).losses()
        if loss is None or loss.ndim:
            return _row_losses(self.batch, output)
        score, rows = self.score(None), torch.arange(len(self.batch), device="cpu")
        return -torch.cat([score(self.values[part], part) for part in torch.split(rows, self.chunk)])

    def gradcam(self, score: Score, convolution: str) -> Tensor:
        """Grad-CAM of each example, (N, ...), of the output of a convolution by name (of its last call)."""
        module = named_modules(self.models)[convolution]
        rows = torch.arange(len(self.batch), device="cpu")
        return torch.cat([_gradcam(module, score, self.values[part], part) for part in torch.split(rows, self.chunk)])

    def _run(self, batch: FixedBatch, values: Tensor) -> tuple[Any, FixedBatch]:
        self.restart()
        if not self.embedding:
            batch = batch.substitute(input_values(batch), values)
            return batch.run(self.models), batch
        name, _, number = self.embedding.partition("@")
        with replaced(named_modules(self.models)[name], _on_call(int(number or 1), values)):
            return batch.run(self.models), batch


def met(models: Mapping[str, nn.Module], batch: FixedBatch, *, tokens: bool) -> tuple[Subject, Any]:
    """Runs the examples once: what there is to explain in them, and the model's output.

    Args:
        tokens: whether to explain the embeddings of the batch's token ids.

    Raises:
        BatchDoesNotFit: no embedding took the token ids.
    """
    chunk, restart = min(_ROWS, batch.chunk), hidden_states(models.values())
    if not tokens:
        output = batch.run(models)
        subject = Subject(models, batch, restart, input_values(batch), chunk=chunk)
    else:
        embedding, values, output = _embedded(models, batch)
        subject = Subject(models, batch, restart, values, embedding, chunk)
    read = Reading(batch, output)
    loss = read.losses() if read.logits() is None else None
    # One loss for all examples says nothing about each: they are run one by one.
    return (replace(subject, chunk=1) if loss is not None and loss.ndim == 0 else subject), output


def logits_of(batch: FixedBatch, output: Any) -> Tensor | None:
    """(N, classes) logits in an output, before a softmax that the model ends in; None where there are no classes."""
    scores = Reading(batch, output).logits()
    return scores if scores is None or batch.score is not None else before_softmax(scores)


def input_values(batch: FixedBatch) -> Tensor:
    """The input that is explained: the images, or else the first of floating point."""
    images = batch.images
    return images if images is not None else batch.float_inputs[0]


def _embedded(models: Mapping[str, nn.Module], batch: FixedBatch) -> tuple[str, Tensor, Any]:
    """The first call of an embedding that takes the token ids, what it returns (N, T, D), and the model's output."""
    ids = batch.token_ids
    assert ids is not None

    def look_up(call: Call) -> Tensor | None:
        made = call.tensor
        return made.clone() if made is not None and batch.is_token_ids(call.input) else None

    capture = Capture(models, {"embedded": Outputs(lambda layer, module: isinstance(module, nn.Embedding), look_up)})
    with capture.forward():
        output = batch.run(models)
    for error in capture.errors.values():
        raise error
    for layer, calls in capture.results["embedded"].items():
        return layer, calls[0], output
    raise BatchDoesNotFit(f"no nn.Embedding takes the token ids as they are, {describe(ids)}")


def _gradcam(module: nn.Module, score: Score, values: Tensor, rows: Tensor) -> Tensor:
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        # The graph starts here. What follows may work in place: it gets a copy.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    with replaced(module, keep), torch.enable_grad():
        scores = score(values, rows)
    if not kept:
        raise BatchDoesNotFit("the convolution that Grad-CAM reads did not run")
    return gradcam(kept[-1], derivative(scores, kept[-1]))


def _on_call(number: int, values: Tensor) -> Callable[[Tensor], Tensor]:
    """Gives `values` in the place of what the module's n-th call returns."""
    calls = count(1)
    return lambda output: values if next(calls) == number else output


def _row_losses(batch: FixedBatch, output: Any) -> Tensor:
    """(N,): the loss of each row, averaged over its positions where it has any."""
    losses = Reading(batch, output).losses()
    if losses is None:
        raise BatchDoesNotFit(f"the model's output has no loss any more: {describe(output)}")
    return losses.reshape(len(batch), -1).mean(1)
