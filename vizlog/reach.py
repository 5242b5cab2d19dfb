"""Which parts of the models the optimizers and the fixed batch reach, and what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from vizlog.messages import LOG
from vizlog.optimizers import owned
from vizlog.selection import is_leaf, named_modules, named_parameters
from vizlog.survey import Survey

__all__ = ["check_models", "say_not_run", "say_untrained", "some", "untrained"]


def check_models(models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> None:
    """Raises where the models have no values yet, or an optimizer has nothing to do with them."""
    modules = named_modules(models).values()
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]  # lazy ones too
    if parameters and all(parameter.is_meta for parameter in parameters):
        raise ValueError(
            "the model is on the meta device, where parameters have no values: watch it once they have, after "
            "model.to_empty(device=…) and whatever loads or initialises them, with the optimizer made after that"
        )
    for number, optimizer in enumerate(optimizers):
        if not owned(optimizer) & set(map(id, parameters)):
            raise ValueError(
                f"optimizer {number} ({type(optimizer).__name__}) has none of the model's parameters; watch the "
                "model and the optimizer that train together, after prepare() or fully_shard() if you use them"
            )


def say_untrained(models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> None:
    """Says which parameters no optimizer trains, though they require a gradient."""
    if left := untrained(named_parameters(models), optimizers):
        LOG.warning("vizlog: no watched optimizer has these parameters, so their gradients are not read: %s", left)


def say_not_run(models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer], met: Survey) -> None:
    """Says which of several models, or which trained parts of one, a pass over the fixed batch does not reach."""
    if len(models) > 1:
        ran = {layer.name.partition("@")[0] for layer in met.layers}
        left = [name for name in models if not any(layer == name or layer.startswith(f"{name}.") for layer in ran)]
        how = "say how the models run together with FixedBatch(inputs, forward=lambda models, inputs: ...)"
    else:
        left = _parts_not_run(next(iter(models.values())), optimizers, met)
        how = "where it should be, say how with FixedBatch(inputs, forward=lambda model, inputs: ...)"
    if left:
        LOG.info(
            "vizlog: nothing runs %s on the fixed batch, so its activations are not seen there: %s", some(left), how
        )


def say_out_of_order(met: Survey) -> None:
    """Says that a layer which takes time first, and examples second, is given examples first.

    Either the fixed batch has time first, and its steps were taken for examples, or the model lets examples look at
    each other, as one made without `batch_first=True` does in silence.
    """
    examples = min(2, len(met.batch))
    for layer in met.of_type(nn.RNNBase, nn.MultiheadAttention):
        shape = layer.input_shape
        if getattr(layer.module, "batch_first", True) is False and len(shape) == 3 and shape[0] == examples != shape[1]:
            LOG.warning(
                "vizlog: %s (%s) takes time first, then examples, but got %s of %d examples, which it takes for time "
                "steps: make it with batch_first=True; or, where it is the batch that has time first, give "
                "FixedBatch(x.transpose(0, 1), targets, forward=lambda model, x: model(x.transpose(0, 1)))",
                layer.name, layer.kind, shape, examples,
            )  # fmt: skip
            return


def _parts_not_run(model: nn.Module, optimizers: Sequence[Optimizer], met: Survey) -> list[str]:
    """Names of a model's own parts that are trained and of which no layer ran: a GAN's discriminator."""
    if isinstance(model, torch.jit.ScriptModule) or is_leaf(model):
        return []
    ran = {id(layer.module) for layer in met.layers}
    used = {id(p) for layer in met.layers if layer.module is not None for p in layer.module._parameters.values()}
    trained: set[int] = set().union(*map(owned, optimizers))
    left = []
    for name, part in model.named_children():
        modules = list(part.modules())
        # Nobody can see one that is scripted run, and what has no forward holds parameters alone.
        seen = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        runs = len(seen) == len(modules) and any(type(module).forward is not nn.Module.forward for module in seen)
        own = [p for p in part.parameters() if id(p) not in used]  # a table that is tied to those of others is used
        is_trained = any(p.requires_grad and (not optimizers or id(p) in trained) for p in own)
        if runs and is_trained and ran.isdisjoint(map(id, modules)):
            left.append(name)
    return left


def untrained(parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> str:
    """Some names of parameters that require a gradient and are in none of the optimizers; "" where there is none."""
    trained: set[int] = set().union(*map(owned, optimizers))
    return some([name for name, p in parameters.items() if optimizers and p.requires_grad and id(p) not in trained])


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
