"""However a network is trained in one process: nothing of it changes, and what is logged is what was there."""

from __future__ import annotations

import functools
import gc
import logging
import random
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from regimes import EVERY, HELD_OUT, REGIMES, Arrays, Net, Run, hooks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import vizlog
from vizlog.optimizers import _AFTER_ALL
from vizlog.records import Curves, Histogram, Record

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),  # inside Lightning
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # inside dynamo
]

TRANSFORMERS = ("GPT-2", "BERT", "ViT", "T5")
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
        assert run.idle == alone.idle
        assert hooks(run.model) == hooks(alone.model)
        for optimizer in run.optimizers:
            assert not optimizer._optimizer_step_pre_hooks
            assert not optimizer._optimizer_step_post_hooks
    if regime in EAGER and alone.states:
        assert run.hooked > alone.hooked or regime == "LBFGS"  # copies were made while live hooks were there
        # GPT-2's inputs have a hook of transformers' own, which does not pickle.
        assert not [state for state in alone.states if "Error" in state] or regime == "GPT-2"


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


@pytest.mark.parametrize("regime", [regime for regime in EAGER if regime not in TRANSFORMERS])
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


# What a gradient scaler skips, and what is added up -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, (torch.ones(4, 3), torch.zeros(4, dtype=torch.long))])
def test_a_compiled_function_around_the_model_stays_as_it_was_compiled(
    batch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    optimizer, memory = SGD(model.parameters(), lr=0.1), vizlog.Memory()

    @torch.compile(backend="eager")
    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean()

    with vizlog.watch(model, optimizer, to=memory, batch=batch, every=2):
        for step in range(5):
            with torch.compiler.set_stance("fail_on_recompile") if step else nullcontext():
                loss(torch.ones(2, 3)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 2, 4]
    assert bool(memory.of("activations/0")) == (batch is not None)
    said = "once anything was compiled in this process, as that may be what calls the model: give batch=, or source="
    assert (said in caplog.text) == (batch is None)


def test_a_step_that_a_fused_optimizer_skipped_is_told_and_has_no_gradient_norm() -> None:
    """Its gradients were never unscaled: as norms they would be peaks of the scaler's making."""
    run = trained("gradient scaler, fused optimizer", "watched")
    captions = {
        step: {r.caption.split(", ")[1] for r in records.values()} for step, records in seen(run, "gradients").items()
    }
    assert captions[EVERY] == {"not used"}
    assert captions[0] == captions[2 * EVERY] == {"as the optimizer used it: unscaled"}
    health = seen(run, "health")
    assert [step for step in health if "gradient_norm_worst" in health[step]] == [0, 2 * EVERY]
    assert [step for step in health if "nonfinite_worst" in health[step]] == [0, EVERY, 2 * EVERY]
    assert health[EVERY]["update_ratio_worst"].value == 0  # type: ignore[attr-defined]


def test_layers_that_did_not_overflow_have_no_norm_either_where_the_step_was_skipped() -> None:
    model, memory = linear(3, 3, 3), vizlog.Memory()
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.GradientHistograms("*.weight", every=1)]):
        for factor in (1.0, float("inf")):
            optimizer.zero_grad()
            scaler.scale(model[0].weight.sum() + factor * model[1].weight.sum()).backward()  # type: ignore[union-attr, operator]
            scaler.step(optimizer)
            scaler.update()
    assert [(step, record.value) for step, record in memory.of("health/gradient_norm_worst")] == [(0, 3.0)]  # type: ignore[union-attr]
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 1]


def test_forwards_of_a_step_that_never_came_are_told() -> None:
    records = seen(trained("gradient scaler", "live"), "activations")
    assert {step: records[step]["hidden"].caption for step in records} == {
        0: "output of hidden, live forward of this step",
        EVERY: "output of hidden, 2 live forwards of this step",
    }


def test_micro_batches_add_up_to_the_histogram_of_all_of_them() -> None:
    model, memory = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    steps: list[list[np.ndarray]] = [[]]
    with vizlog.watch(model, optimizer, to=memory, probes=[vizlog.ActivationHistograms(every=1, source="live")]):
        for number in range(1, 88):
            output = model(torch.randn(3, 5))
            steps[-1].append(output.detach().numpy())
            output.sum().backward()
            if number in (40, 80, 87):
                optimizer.step()
                steps.append([])
    for (step, record), micro in zip(memory.of("activations/1"), steps, strict=False):
        compare({"1": record}, {"1": np.concatenate(micro)})
        assert record.caption == f"output of 1, {len(micro)} live forwards of this step"
        assert step < 3


# Optimizers -----------------------------------------------------------------------------------------------------------


def linear(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()


def test_numbers_of_ones_own_tell_steps_apart_where_layers_are_dropped() -> None:
    """Optimizers in backward: which of them step differs from step to step."""
    model, memory = linear(3, 3, 3, 3), vizlog.Memory()
    own = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def hook(parameter: Tensor) -> None:
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    step = 0
    with vizlog.watch(model, own, to=memory, probes=[vizlog.GradientHistograms(every=1)], step=lambda: step):
        for dropped in (2, 1, 2, 1):
            x = torch.randn(4, 3)
            for number, layer in enumerate(model):
                x = x if number == dropped else layer(x)
            x.sum().backward()
            step += 1
    assert [step for step, _ in memory.of("gradients/0.weight")] == [0, 1, 2, 3]
    assert [step for step, _ in memory.of("gradients/1.weight")] == [0, 2]
    assert [step for step, _ in memory.of("gradients/2.weight")] == [1, 3]


def test_a_wrapper_that_forwards_nothing_says_what_to_do() -> None:
    class Opaque:
        __slots__ = ("step",)

        def __init__(self, optimizer: Optimizer) -> None:
            self.step = partial(type(optimizer).step, optimizer)

    model = linear(3, 3)
    with pytest.raises(TypeError, match=r"no torch optimizer found in Opaque.*monitor\.step"):
        vizlog.watch(model, Opaque(SGD(model.parameters(), lr=0.1)), to=None)


# What happens after `watch` -------------------------------------------------------------------------------------------


def test_another_optimizer_is_told_at_its_first_step(caplog: pytest.LogCaptureFixture) -> None:
    model = linear(3, 3)
    with vizlog.watch(model, SGD(model.parameters(), lr=0.1), to=vizlog.Memory()):
        train(linear(3, 3), SGD(linear(3, 3).parameters(), lr=0.1), 1)  # another model's
        assert not caplog.messages or "not seen" not in caplog.text
        train(model, AdamW(model.parameters(), lr=0.1), 1)
        assert "AdamW trains 0.weight, 0.bias, and no watched optimizer has stepped since" in caplog.text
        train(model, AdamW(model.parameters(), lr=0.1), 3)
    assert caplog.text.count("not seen") == 1


def test_an_optimizer_that_takes_over_later_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = linear(3, 3)
    first, second = SGD(model.parameters(), lr=0.1), SGD(model.parameters(), lr=0.01)
    with vizlog.watch(model, first, to=vizlog.Memory()):
        train(model, first, 3)
        assert "not seen" not in caplog.text
        train(model, second, 3)
    assert caplog.text.count("what it does is not seen") == 1


@pytest.mark.parametrize("replaces_optimizer", [True, False])
def test_parameters_that_are_replaced_are_told_at_once(
    *, replaces_optimizer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, memory = linear(3, 3, 3), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, every=1):
        train(model, optimizer, 2)
        model[0].weight = nn.Parameter(torch.randn(3, 3))
        train(model, SGD(model.parameters(), lr=0.1) if replaces_optimizer else optimizer, 3)
    told = [message for message in caplog.messages if "watch" in message and "prepare()" in message]
    assert len(told) == 1
    assert "0.weight" in told[0]


def test_parameters_that_are_replaced_in_the_optimizer_too_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """As a layer that is grown, or as accelerate does where it shards."""
    model, memory = linear(3, 3, 3), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=memory, every=1):
        train(model, optimizer, 2)
        model[1] = nn.Linear(3, 7)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer, 2)
    assert "no longer" not in caplog.text
    for kind in ("weights", "gradients"):
        assert [r.count for _, r in memory.of(f"{kind}/1.weight")] == [9, 9, 21, 21]  # type: ignore[union-attr]
    assert len(memory.of("updates/1.weight")) == 4


@pytest.mark.parametrize("every", [1, 100])  # a run of the second ends before its second look
def test_a_model_that_is_sharded_after_watch_is_left_alone_and_it_is_said(
    every: int, caplog: pytest.LogCaptureFixture
) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    model, memory = linear(3, 3), vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with vizlog.watch(model, optimizer, to=memory, every=every):
            train(model, optimizer, 1)
            fully_shard(model)
            optimizer.param_groups[0]["params"] = list(model.parameters())
            train(model, optimizer, 3)
    finally:
        distributed.destroy_process_group()
    assert {step for step, _ in memory.records} == {0}
    assert caplog.text.count("sharded since it was watched") == 1


def test_a_model_that_is_sharded_over_one_process_is_seen_as_any_other(caplog: pytest.LogCaptureFixture) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    found, batch = [], (torch.randn(6, 3), torch.arange(6) % 3)
    kinds = (vizlog.WeightHistograms, vizlog.GradientHistograms, vizlog.ActivationHistograms)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for shards in (False, True):
            torch.manual_seed(0)
            model, memory = linear(3, 3, 3), vizlog.Memory()
            if shards:
                fully_shard(model, ignored_params={model[1].bias})
            optimizer = SGD(model.parameters(), lr=0.1)
            with vizlog.watch(model, optimizer, to=memory, probes=[kind(every=1) for kind in kinds], batch=batch):
                train(model, optimizer, 3)
            histograms = [(step, record) for step, record in memory.records if isinstance(record, Histogram)]
            found.append([(step, record.tag, record.counts.tolist()) for step, record in histograms])
    finally:
        distributed.destroy_process_group()
    assert found[0] == found[1]
    assert {"weights/1.bias", "gradients/1.bias", "activations/1"} <= {tag for _, tag, _ in found[0]}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_cell_that_runs_twice_before_any_step_says_that_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        monitor = vizlog.watch(model, optimizer, to="runs/a")
    assert "an earlier monitor of this model still wrote to" in caplog.text
    assert "no step was seen" not in caplog.text
    monitor.close()


def test_a_cell_that_runs_again_takes_over_from_its_monitor(caplog: pytest.LogCaptureFixture) -> None:
    model = linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        monitor = vizlog.watch(model, optimizer, to="runs/a", every=1)  # nobody has closed the first
        train(model, optimizer, 3)
    monitor.close()
    assert caplog.text.count("an earlier monitor of this model still wrote to") == 1
    assert tensorboard_steps("runs/a") == tensorboard_steps("runs/a-2") == [0, 1, 2]


@pytest.mark.parametrize("to", ["runs/a", vizlog.Memory()])
def test_two_monitors_of_one_model_go_on_side_by_side(to: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        vizlog.watch(model, optimizer, to=to, probes=[vizlog.WeightHistograms(every=1)]) as first,
        vizlog.watch(model, optimizer, to=to, probes=[vizlog.GradientHistograms(every=1)]) as second,
    ):
        train(model, optimizer, 2)
        assert (first._cost.steps, second._cost.steps) == (2, 2)
    assert caplog.text.count("closed") == 0


def test_folds_in_one_process_are_runs_of_their_own() -> None:
    threads = set(threading.enumerate())
    for _ in range(3):
        model = linear(3, 3)
        optimizer = SGD(model.parameters(), lr=0.1)
        monitor = vizlog.watch(model, optimizer, to="runs/fold", every=1)
        train(model, optimizer, 2)
        monitor.log({"loss": 1.0})
        monitor.flush()
        del model, optimizer, monitor  # never closed
        gc.collect()
        patiently(lambda: set(threading.enumerate()) <= threads)
    # The look that was to come would have had compiled models run eagerly.
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert [tensorboard_steps(f"runs/fold{part}") for part in ("", "-2", "-3")] == [[0, 1]] * 3


def test_a_monitor_that_nobody_closed_goes_with_its_model() -> None:
    """What is under way is written, its threads end, and nothing of it stays on other optimizers."""
    threads, told = set(threading.enumerate()), set(_AFTER_ALL._told)
    model = linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    memory = vizlog.Memory()
    monitor = vizlog.watch(model, optimizer, to=memory)
    train(model, optimizer, 2)
    monitor.flush()
    monitor.log({"loss": 1.0})  # waits for more
    reference = weakref.ref(monitor)
    del model, optimizer, monitor
    gc.collect()
    assert reference() is None
    patiently(lambda: len(memory.of("loss")) == 1)
    patiently(lambda: set(threading.enumerate()) <= threads)
    assert set(_AFTER_ALL._told) <= told


def test_a_resumed_run_goes_on_in_its_folder_and_the_projector_keeps_what_it_had() -> None:
    model = linear(3, 5, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    batch = torch.randn(12, 3), torch.arange(12) % 3
    for start in (0, 3):
        probes = [vizlog.WeightHistograms(every=1), vizlog.Embeddings(methods=["pca"], every=3)]
        to = vizlog.TensorBoard("runs/a", resume=start > 0)
        with vizlog.watch(model, optimizer, to=to, probes=probes, batch=batch, step=start):
            train(model, optimizer, 3)
    assert tensorboard_steps("runs/a") == [0, 1, 2, 3, 4, 5]
    config = Path("runs/a/projector_config.pbtxt").read_text()
    assert config.count("tensor_name") == 2
    assert len(list(Path("runs/a/projector").glob("*/tensors.*"))) == 2


def patiently(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def tensorboard_steps(folder: str) -> list[int]:
    events = EventAccumulator(folder, size_guidance={"tensors": 0}).Reload()
    return [event.step for event in events.Tensors("weights/0.weight")]


# Pictures under the training's own precision --------------------------------------------------------------------------


def test_pictures_are_made_under_the_autocast_inside_a_wrapper() -> None:
    run = trained("Fabric, bf16", "watched")
    record = seen(run, "activations")[2 * EVERY]["head"]
    with torch.no_grad():
        full = run.model.eval()(HELD_OUT[0])
        with torch.autocast("cpu", torch.bfloat16):
            half = run.model(HELD_OUT[0])
    assert isinstance(record, Histogram)
    assert [record.min, record.max] == [half.min().item(), half.max().item()]
    assert [record.min, record.max] != [full.min().item(), full.max().item()]
