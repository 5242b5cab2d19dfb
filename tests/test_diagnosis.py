"""A run's health as one number a concept: from records to scalars, and from real models to the same."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard_run import until
from torch import Tensor, nn
from torch.optim import SGD

import vizlog
from vizlog.diagnosis import CONDITIONS, KEYS, Diagnosis
from vizlog.records import Curves, Embedding, Histogram, Record, Scalar

NAN, INF = math.nan, math.inf


def layers(kind: str, *values: float, source: str = "") -> Curves:
    return Curves(f"health/{kind}", np.arange(len(values)), {source or kind: np.array(values)}, "layer", kind)


def nonfinite(tag: str, nans: int = 0, infs: int = 0) -> Histogram:
    counts = np.ones(2)
    return Histogram(tag, np.arange(3.0), counts, 2 + nans + infs, 0, nans, infs, 0, 0.0, 2.0, 1.0, 0.5, {})


def embedding(**scores: float) -> Embedding:
    points = np.zeros((3, 2), np.float32)
    return Embedding("embeddings/a", points, {}, {}, np.arange(3), [], np.arange(3), scores=scores)


HEALTHY = Diagnosis().scalars()

# What one step wrote -> what is not as in a run of which nothing is known.
FOLDED: dict[str, tuple[Sequence[Record], dict[str, float]]] = {
    "nothing": ([], {}),
    "a number of one's own": ([Scalar("loss", NAN)], {}),
    "dead units": (
        [Scalar("health/dead_units_worst", 0.75), Scalar("health/dead_units_mean", 0.25)],
        {"dead_units_worst": 0.75, "dead_units_mean": 0.25},
    ),
    "saturation": ([Scalar("health/saturated_worst", 0.5)], {"saturated_worst": 0.5}),
    "a gradient": (
        [layers("gradient_norm", 3.0, 0.0, 4.0)],
        {"gradient_norm": 5.0, "gradient_norm_max": 5.0, "vanishing": 0.75},
    ),
    "no gradient at the first layer": (
        [layers("gradient_norm", 0.0, 2.0)],
        {"gradient_norm": 2.0, "gradient_norm_max": 2.0, "vanishing": 1e-12},
    ),
    "none at the last": (
        [layers("gradient_norm", 2.0, 0.0)],
        {"gradient_norm": 2.0, "gradient_norm_max": 2.0, "vanishing": 1e12},
    ),
    "none at all": ([layers("gradient_norm", 0.0, 0.0)], {}),
    "a gradient of NaN": (
        [layers("gradient_norm", 1.0, NAN)],
        {"gradient_norm": 1e12, "gradient_norm_max": 1e12, "vanishing": 1e-12},
    ),
    "an infinite update": (
        [Scalar("health/update_ratio_worst", INF)],
        {"update_ratio_worst": 1e12, "update_ratio_max": 1e12},
    ),
    "an update of NaN": ([Scalar("health/update_ratio_worst", NAN)], {}),
    "non-finite values": (
        [
            nonfinite("weights/a", nans=3),
            nonfinite("activations/b", infs=2),
            layers("nonfinite", 0.6, source="weights"),
        ],
        {"nonfinite_total": 5, "first_bad_step": 7},
    ),
    "some where nothing is drawn": (
        [nonfinite("weights/a"), layers("nonfinite", 0.0, 0.1, source="weights")],
        {"nonfinite_total": 1, "first_bad_step": 7},
    ),
    "those of a probe of one's own": ([nonfinite("spectra/a", nans=3)], {}),
    "a step that the gradient scaler skipped": (
        [
            layers("gradient_norm", INF, INF, source="of a skipped step"),
            nonfinite("gradients/a", infs=4),
            layers("nonfinite", 1.0, source="gradients of a skipped step"),
        ],
        {},
    ),
    "an embedding": ([embedding(knn_accuracy=0.9, silhouette=-0.1)], {"knn_accuracy": 0.9, "silhouette": -0.1}),
    "attention": (
        [Scalar("health/attention_entropy_worst", 0.1), Scalar("health/attention_sinks_mean", 0.25)],
        {"attention_entropy": 0.1, "attention_sinks": 0.25},
    ),
    "its cost": ([Scalar("health/vizlog_time_share", 0.02)], {"time_share": 0.02}),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_a_step_wrote_becomes_one_finite_number_a_concept(name: str) -> None:
    records, expected = FOLDED[name]
    scalars = Diagnosis().after(7, records).scalars()
    assert scalars == HEALTHY | {f"vizlog/{key}": pytest.approx(value) for key, value in expected.items()}
    assert all(math.isfinite(value) for value in scalars.values())


def test_the_latest_counts_but_the_highest_gradient_and_the_first_bad_step_stay() -> None:
    found = Diagnosis()
    for step, (norm, nans) in enumerate([(1.0, 0), (8.0, 2), (2.0, 1)]):
        found = found.after(step, [layers("gradient_norm", norm), nonfinite("weights/a", nans)])
    assert (found.gradient_norm, found.gradient_norm_max) == (2.0, 8.0)
    assert (found.nonfinite_total, found.first_bad_step) == (3, 1)


def test_features_without_a_score_leave_no_earlier_one_behind() -> None:
    found = Diagnosis().after(0, [embedding(knn_accuracy=0.9, silhouette=0.5)]).after(1, [embedding()])
    assert (found.knn_accuracy, found.silhouette) == (0.0, 0.0)


def test_a_score_that_is_not_finite_is_none() -> None:
    found = Diagnosis().after(0, [embedding(knn_accuracy=0.9, silhouette=0.5)])
    found = found.after(1, [embedding(knn_accuracy=NAN, silhouette=-INF)])
    assert (found.knn_accuracy, found.silhouette) == (0.0, -1e12)
    assert found == found.after(2, [embedding(knn_accuracy=NAN, silhouette=-INF)])  # nothing new to write


def test_a_checkpoint_keeps_figures_but_nothing_that_stops() -> None:
    looked = [layers("gradient_norm", 0.0), layers("nonfinite", 1.0, source="weights")]
    found = Diagnosis().after(3, looked).after(4, looked)
    resumed = Diagnosis.from_state(found.state_dict())
    assert resumed.scalars() == found.scalars()
    assert (found.looks, resumed.looks, resumed.bad, resumed.gone) == (2, 0, 0, 0)


NORMAL = [layers("gradient_norm", 1.0, 1.0), layers("dead_units", 0.0), layers("nonfinite", 0.0, source="weights")]
NO_GRADIENT = [layers("gradient_norm", 0.0, 1.0)]
DEAD = [Scalar("health/dead_units_worst", 1.0), layers("dead_units", 1.0)]
WITH_NAN = [layers("nonfinite", 0.1, source="weights")]


@pytest.mark.parametrize(
    ("looks", "met"),
    [
        ([NORMAL, NORMAL], set()),
        ([NORMAL, NO_GRADIENT], set()),  # one look may deceive
        ([[layers("gradient_norm", 1e-6, 1.0)]] * 2, set()),
        ([[layers("gradient_norm", 1e-9, 1.0)]] * 2, {"gradients_gone"}),
        ([[layers("gradient_norm", 0.0, 0.0)]] * 2, {"gradients_gone"}),
        ([NO_GRADIENT, WITH_NAN], {"nonfinite"}),  # which is no second look at gradients
        ([[Scalar("health/dead_units_worst", 0.9), layers("dead_units", 0.9)]] * 2, set()),
        ([NORMAL, NO_GRADIENT, NO_GRADIENT], {"gradients_gone"}),
        ([NO_GRADIENT, NO_GRADIENT, NORMAL], set()),
        ([DEAD], set()),
        ([DEAD, DEAD], {"dead"}),  # nobody looks at gradients
        ([NORMAL + DEAD, NORMAL + DEAD], set()),  # a way round it
        ([NO_GRADIENT + DEAD, NO_GRADIENT + DEAD], {"dead", "gradients_gone"}),
        ([NO_GRADIENT, DEAD, NO_GRADIENT, DEAD], {"dead", "gradients_gone"}),  # looked at in turn
        ([WITH_NAN], {"nonfinite"}),
        ([WITH_NAN, NORMAL], set()),
        ([[layers("nonfinite", 0.1, source="activations")]], {"nonfinite"}),
    ],
)
def test_a_condition_is_met_by_what_the_last_looks_have_in_common(looks: list[list[Record]], met: set[str]) -> None:
    found = Diagnosis()
    for step, records in enumerate(looks):
        found = found.after(step, records)
    assert {name for name, (holds, _) in CONDITIONS.items() if holds(found)} == met


def test_where_steps_go_back_looks_count_anew_and_a_late_picture_is_none() -> None:
    found = Diagnosis()
    for step in (0, 10, 20):
        found = found.after(step, WITH_NAN)
    found = found.after(10, [embedding(knn_accuracy=0.5)])
    assert (found.looks, found.latest_look, found.bad, found.knn_accuracy) == (3, 20, 3, 0.5)
    found = found.after(10, NORMAL)
    assert (found.looks, found.latest_look, found.bad, found.first_bad_step) == (1, 10, 0, 0)
    assert found.after(10, NORMAL).looks == 2  # the same step once more is no step back


def test_activations_that_are_infinite_by_design_stop_nothing_where_weights_are_looked_at() -> None:
    both = {"activations": np.array([0.1]), "weights": np.array([0.0])}
    found = Diagnosis().after(0, [Curves("health/nonfinite", np.arange(1), both, "layer", "nonfinite")])
    assert (found.bad, found.first_bad_step) == (0, 0)


def test_the_guide_says_of_each_key_what_it_is_where_it_lies_and_which_value_is_neutral() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("| `vizlog/")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split(" |")] for line in lines]
    assert tuple(key for key, *_ in rows) == KEYS
    for key, formula, of, neutral, healthy in rows:
        assert formula
        assert healthy
        if key != "vizlog/stopped_because":
            number = float(neutral.partition(":")[0].replace("−", "-"))
            assert number == HEALTHY[key]
            low, _, high = of.replace("−", "-").partition(" ")
            assert float(low) <= number <= float(high.removeprefix("to ").replace("upwards", "inf"))


# From real models -----------------------------------------------------------------------------------------------------

PROBES: Callable[[], list[vizlog.Probe]] = lambda: [  # noqa: E731
    vizlog.WeightHistograms(every=1),
    vizlog.GradientHistograms(every=1),
    vizlog.UpdateRatios(every=1),
    vizlog.ActivationHistograms(every=1),
    vizlog.Embeddings(every=1, methods=("pca",)),
]


def mlp(depth: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    hidden = [part for _ in range(depth) for part in (nn.Linear(6, 6), activation())]
    return nn.Sequential(*hidden, nn.Linear(6, 3))


def summary_after(model: nn.Module, steps: int = 2, to: Any = None, **options: Any) -> tuple[vizlog.Memory, Any]:
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    memory = vizlog.Memory()
    optimizer = SGD(model.parameters(), lr=0.1)
    options = {"probes": PROBES(), "batch": (x, y)} | options
    with vizlog.watch(model, optimizer, to=memory if to is None else [memory, to], **options):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
    return memory, (x, before)


def test_the_figures_of_a_model_are_what_torch_says_of_it() -> None:
    model = mlp(2)
    with torch.no_grad():
        model[0].bias[:3] = -100  # three of six units answer to nothing
    memory, (x, before) = summary_after(model)
    gradients = [p.grad for p in model.parameters()]
    parameters = [p.detach() for p in model.parameters()]
    of_layers = [torch.stack([g.norm() for g in gradients[i : i + 2]]).norm() for i in (0, 2, 4)]
    ratios = []
    for i in (0, 2, 4):
        new, old = parameters[i : i + 2], before[i : i + 2]
        update = torch.stack([(a - b).norm() for a, b in zip(new, old, strict=True)]).norm()
        ratios.append(update / torch.stack([b.norm() for b in old]).norm())
    hidden = torch.relu(model[0](x))
    dead = [float((out == 0).all(0).float().mean()) for out in (hidden, model[:4](x))]
    found = {key.removeprefix("vizlog/"): value for key, value in memory.summary.items()}
    assert found["gradient_norm"] == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-4)
    assert found["vanishing"] == pytest.approx(float(of_layers[0] / of_layers[2]), rel=1e-4)
    assert found["update_ratio_worst"] == pytest.approx(float(max(ratios)), rel=1e-4)
    assert found["dead_units_worst"] == pytest.approx(max(dead))
    assert found["dead_units_mean"] == pytest.approx(sum(dead) / 5)  # three linear layers have none
    assert 0 < found["time_share"] <= 1
    assert found["first_bad_step"] == -1


def test_nan_in_training_is_counted_from_the_step_it_came() -> None:
    model = mlp(1)
    with torch.no_grad():
        model[0].weight[0, :2] = math.nan
    memory, _ = summary_after(model, steps=1)
    written = [record for _, record in memory.records if isinstance(record, Histogram)]
    assert memory.summary["vizlog/nonfinite_total"] == sum(r.nans + r.pos_infs + r.neg_infs for r in written)
    assert memory.summary["vizlog/first_bad_step"] == 0
    assert all(math.isfinite(value) for key, value in memory.summary.items() if key != "vizlog/stopped_because")


@pytest.mark.parametrize(
    "options",
    [
        {"probes": []},
        {"probes": [vizlog.UpdateRatios()], "batch": None},
        {"steps": 0, "probes": [vizlog.WeightHistograms()]},
    ],
    ids=["no probe", "one probe", "no step"],
)
def test_every_run_has_the_same_keys(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with_all, _ = summary_after(mlp(3, nn.Tanh))
    steps = options.pop("steps", 2)
    if steps:
        memory, _ = summary_after(mlp(1), **options)
    else:
        memory = vizlog.Memory()
        vizlog.Monitor(mlp(1), options["probes"], to=memory).close()
    assert tuple(memory.summary) == tuple(with_all.summary) == KEYS


def test_a_summary_that_fails_reaches_neither_training_nor_the_other_backends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def write(self, step: int, records: Any) -> None:
            pass

        def summarise(self, step: int, scalars: Any, stopped_because: str = "") -> None:
            raise RuntimeError("no summary today")

        def close(self) -> None:
            pass

    memory, _ = summary_after(mlp(1), to=Broken())
    assert tuple(memory.summary) == KEYS
    assert "no summary today" in caplog.text


def test_a_picture_that_comes_late_is_summed_up_at_the_latest_step() -> None:
    told, go = [], threading.Event()

    class Keeps(vizlog.Memory):
        def summarise(self, step: int, *_: Any) -> None:
            told.append(step)

    class Late(vizlog.Probe):
        slow = True

        def measure(self, context: Any) -> None:
            return None

        def finish(self, measured: Any) -> Any:
            go.wait(60)
            yield embedding(knn_accuracy=0.5)

    model = mlp(1)
    probes = [vizlog.GradientHistograms(every=1), Late(every=vizlog.AtSteps(0))]
    with vizlog.Monitor(model, probes, to=Keeps()) as monitor:
        for step in range(3):
            with monitor.step():
                model(torch.full((2, 6), 1.0 + step)).sum().backward()
        until(lambda: 2 in told, patience=60)
        go.set()
    assert told == sorted(told)
    assert told.count(2) == 2


# Attention ------------------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """One layer of attention over (N, T, 8), two heads, by one of the ways that models write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True) if way == "mha" else None

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        forbidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.mha is not None:
            return self.head(self.mha(x, x, x, attn_mask=forbidden)[0].mean(1))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.way == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.way == "sdpa, -1e4":
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=-1e4 * forbidden.float())
        else:
            scores = (q @ k.transpose(-2, -1) / 2).masked_fill(forbidden, -1e4 if self.way == "-1e4" else -math.inf)
            out = scores.softmax(-1) @ v
        return self.head(out.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("way", ["sdpa", "sdpa, -1e4", "mha", "written out", "-1e4"])
def test_entropy_and_sinks_are_what_numpy_makes_of_the_probabilities(way: str) -> None:
    model, x = Attends(way).eval(), 3 * torch.randn(4, 16, 8)
    memory = vizlog.Memory()
    monitor = vizlog.Monitor(model, [vizlog.AttentionMaps(every=1)], to=memory, batch=(x, torch.arange(4) % 3))
    with monitor.step():
        model(x)
    monitor.close()
    (weights,) = (record.weights.astype(float) for _, record in memory.records if record.tag.startswith("attention/"))
    by_query = [
        # The first query may look at one key alone: it has no choice.
        [
            -(weights[:, head, i] * np.log(np.maximum(weights[:, head, i], 1e-300))).sum(-1) / math.log(i + 1)
            for i in range(1, 16)
        ]
        for head in range(2)
    ]
    assert memory.summary["vizlog/attention_entropy"] == pytest.approx(
        min(np.mean(head) for head in by_query), abs=1e-5
    )
    to_first = weights[..., 0].mean((0, 2))
    assert memory.summary["vizlog/attention_sinks"] == np.mean(to_first > 0.3)


def test_one_head_that_looks_at_one_token_shows_in_the_lowest_entropy_and_as_a_sink() -> None:
    model, x = Attends("sdpa").eval(), torch.randn(2, 16, 8)
    x[..., 0], x[:, 0, 0] = 1, 100  # the first token stands out
    with torch.no_grad():
        model.qkv.weight.zero_()
        model.qkv.bias.zero_()
        model.qkv.weight[0, 0] = model.qkv.weight[8, 0] = 10  # of the first head's query and key alone
    memory = vizlog.Memory()
    monitor = vizlog.Monitor(model, [vizlog.AttentionMaps(every=1)], to=memory, batch=(x, torch.arange(2)))
    with monitor.step():
        model(x)
    monitor.close()
    assert memory.summary["vizlog/attention_entropy"] == pytest.approx(0, abs=1e-6)
    # Of the other head, which looks everywhere alike, the first token gets H(16) / 16 = 0.21.
    assert memory.summary["vizlog/attention_sinks"] == 0.5
