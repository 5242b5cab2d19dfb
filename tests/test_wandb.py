"""What reaches a W&B run: real offline runs of the real client, read back from the file that it wrote."""

from __future__ import annotations

import builtins
import dataclasses
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from wandb_file import WrittenRun, read_run

import vizlog
from vizlog.backends.memory import Memory
from vizlog.backends.wandb import WandB, _FileBudget, _histograms, _spread
from vizlog.backends.wandb_numbers import _short_edges, short, short_histograms
from vizlog.records import Attention, Curves, Embedding, Heatmaps, Histogram, Images, Record, Scalar, Surface, Text
from vizlog.views.raster import raster

if TYPE_CHECKING:
    import wandb


@pytest.fixture
def start() -> Iterator[Callable[..., wandb.Run]]:
    """Starts offline runs, and finishes those that a test left open."""
    import wandb

    runs = []

    def init(**options: Any) -> wandb.Run:
        runs.append(wandb.init(project="test", reinit="create_new", **options))
        return runs[-1]

    yield init
    for run in runs:
        run.finish()


@pytest.fixture
def run(start: Callable[..., wandb.Run]) -> wandb.Run:
    return start()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What vizlog has told the person so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "vizlog"]


def finish(run: wandb.Run) -> WrittenRun:
    folder = Path(run.dir).parent
    run.finish()
    return read_run(folder)


def histogram(tag: str, values: np.ndarray, bins: int = 64) -> Histogram:
    values = np.asarray(values, dtype=float)
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, bins)
    return Histogram(
        tag,
        edges=edges,
        counts=counts,
        count=len(values),
        zeros=int((values == 0).sum()),
        nans=int(np.isnan(values).sum()),
        pos_infs=int((values == np.inf).sum()),
        neg_infs=int((values == -np.inf).sum()),
        min=float(finite.min()),
        max=float(finite.max()),
        mean=float(finite.mean()),
        std=float(finite.std()),
        quantiles={},
    )


def picture(tag: str = "filters/conv1", shade: int = 0) -> Images:
    pixels = np.random.default_rng(shade).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    return Images(tag, pixels=pixels, titles=[str(i) for i in range(6)], limits=(-1.0, 1.0), caption="six filters")


def embedding(number: int = 12, dimensions: int = 4) -> Embedding:
    rng = np.random.default_rng(0)
    return Embedding(
        "embeddings/fc.1",
        vectors=rng.normal(size=(number, dimensions)).astype(np.float32),
        layouts={"pca": rng.normal(size=(number, 2))},
        layouts_3d={},
        labels=np.arange(number) % 3 - 1,
        class_names=["cat", "dog"],
        ids=np.arange(number) * 7,
        scores={"knn_accuracy": 0.75},
        caption="twelve examples",
    )


def curves(tag: str = "health/dead_units") -> Curves:
    ys = {"conv": np.array([0.0, np.nan, 0.5])}
    return Curves(tag, x=np.arange(3), ys=ys, x_label="layer", y_label="share", x_names=["a", "b", "c"], caption="dead")


def every_kind() -> list[Any]:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 6, 6)).astype(np.float32)
    attention = rng.dirichlet(np.ones(4), size=(1, 2, 4)).astype(np.float32)
    tokens = [["the", "cat", "sat", "."]]
    return [
        Scalar("loss/train", value=0.25),
        histogram("weights/layer1.0.conv", rng.normal(size=1000)),
        picture(),
        Heatmaps(
            "saliency/gradient", values=maps, titles=["a", "b"], notes=["", ""], limits=(-3, 3), colormap="diverging"
        ),
        Attention(
            "attention/h.0", weights=attention, examples=[3], heads=[0, 1], query_tokens=tokens, key_tokens=tokens
        ),
        embedding(),
        curves(),
        Surface(
            "landscape",
            x=np.arange(3.0),
            y=np.arange(2.0),
            z=np.ones((2, 3)),
            path=None,
            x_label="a",
            y_label="b",
            z_label="loss",
        ),
        Text("text/notes", text="# Title\n\n| a | b |\n|---|---|\n| 1 | <script>x</script> |\n"),
    ]


# What each record becomes


def test_every_kind_of_record_arrives_in_its_native_form(run: wandb.Run) -> None:
    backend = WandB(run)
    backend.write(7, every_kind())
    backend.close()
    written = finish(run)

    (row,) = written.rows
    kinds = {key: value["_type"] for key, value in row.items() if isinstance(value, dict) and "_type" in value}
    assert kinds == {
        "weights/layer1/0/conv": "histogram",
        "filters/conv1": "image-file",
        "saliency/gradient": "image-file",
        "attention/h/0": "image-file",
        "embeddings/fc/1": "image-file",
        "embeddings/fc/1/table": "table-file",
        "health/dead_units": "plotly-file",
        "landscape": "plotly-file",
        "text/notes": "html-file",
    }
    numbers = {key: value for key, value in row.items() if key not in kinds and not key.startswith("_")}
    assert numbers == {
        "vizlog/step": 7,
        "vizlog/nonfinite_scalars": 0,
        "loss/train": 0.25,
        "embeddings/fc/1/knn_accuracy": 0.75,
    }


def test_each_key_has_its_own_x_axis_and_none_is_filled_in(run: wandb.Run) -> None:
    backend = WandB(run)
    backend.write(0, every_kind())
    backend.write(1, every_kind())
    written = finish(run)

    ours = {"step_metric": "vizlog/step", "step_sync": False, "hidden": False}
    assert written.metrics.pop("vizlog/step")["hidden"]
    of_keys = {key: metric for key, metric in written.metrics.items() if "." not in key}  # the others say of its parts
    assert of_keys == dict.fromkeys(written.keys - {"vizlog/step"}, ours)


def test_a_picture_is_one_lossless_file_of_the_raster_with_its_caption(run: wandb.Run) -> None:
    record = picture()
    WandB(run).write(0, [record])
    written = finish(run)

    (value,) = written.of("filters/conv1")
    with Image.open(written.directory / "files" / value["path"]) as image:
        assert np.array_equal(np.asarray(image), raster(record))
    assert value["caption"] == "six filters"
    assert len(written.media) == 1
    assert written.keys == {"filters/conv1", "vizlog/step"}


def test_a_histogram_is_numpys_and_short(run: wandb.Run) -> None:
    values = np.random.default_rng(1).normal(size=5000)
    WandB(run).write(0, [histogram("weights/a", values)])
    (value,) = finish(run).of("weights/a")

    counts, edges = np.histogram(values, 64)
    assert value["values"] == counts.tolist()
    np.testing.assert_allclose(value["bins"], edges, rtol=5e-5)
    assert len(json.dumps(value)) < 1200


def test_more_than_64_bins_are_merged_without_moving_a_count(run: wandb.Run) -> None:
    values = np.random.default_rng(2).integers(0, 150, size=5000)  # 149 bins: groups of 3, and a last one of 2
    WandB(run).write(0, [histogram("weights/a", values, bins=149)])
    (value,) = finish(run).of("weights/a")

    assert len(value["values"]) == 50
    np.testing.assert_allclose(value["bins"][:3] + value["bins"][-1:], [0, 3, 6, 149], rtol=1e-5)
    counts, _ = np.histogram(values, [*range(0, 148, 3), 149])
    assert value["values"] == counts.tolist()


@pytest.mark.parametrize(
    "edges",
    [
        np.linspace(999.9999, 1000.0001, 65),
        np.linspace(-1e-30, 1e-30, 65),
        np.linspace(1.0, np.nextafter(1.0, 2.0), 2),
        np.array([-3.4e38, 0.0, 3.4e38]),
        np.array([-1.0, 0.0, 1.0]) * np.finfo(np.float64).max,
        np.linspace(0.996, 1.004, 65),  # a LayerNorm's weight after some steps
        np.linspace(9.96, 10.04, 65),
    ],
)
def test_short_edges_show_each_bin_as_wide_as_it_is(edges: np.ndarray) -> None:
    (found,) = _short_edges(edges[None])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.diff(np.divide(found, 4)), np.diff(edges / 4), rtol=0.021)
    np.testing.assert_allclose(found, edges, rtol=5e-5)


def test_numbers_of_many_histograms_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    records = []
    for number, (bins, low, high) in enumerate(
        [(64, -3, 3), (7, 999.9999, 1000.0001), (64, 0, 1e-30), (33, -1e300, 1)]
    ):
        counts = generator.integers(0, 10**9, bins) if number % 2 else generator.random(bins) * 1e6
        records.append(record_of(np.linspace(low, high, bins + 1), counts))
    for most in (64, 8):
        together = short_histograms(records, most)
        assert together == [short_histograms([record], most)[0] for record in records]
        for (counts, edges), record in zip(together, records, strict=True):
            assert len(edges) - 1 == len(counts) <= most
            assert sum(counts) == pytest.approx(record.count, rel=1e-4)
            assert {type(count) for count in counts} == {int if record.counts.dtype == np.int64 else float}
    ((counts, _),) = short_histograms([record_of(np.arange(3.0), np.array([1e30, 2.0]))], 64)
    assert counts == [1e30, 2.0]
    ((counts, _),) = short_histograms([record_of(np.arange(3.0), np.array([0.25, 1.25]))], 64)
    assert counts == [0.25, 1.25]


def test_of_histograms_in_one_row_each_has_the_bins_of_its_own_number_of_values() -> None:
    many, few = (record_of(np.linspace(-1, 1, 65), np.full(64, each)) for each in (10_000, 2))
    for records, bins in (([many, few], [64, 16]), ([few, many], [16, 64])):
        assert [len(counts) for counts, _ in short_histograms(records, 64)] == bins


def test_the_largest_number_there_is_stays_one() -> None:
    largest = np.finfo(np.float64).max
    assert short(np.array([largest, -largest, 1.23456789])).tolist() == [largest, -largest, 1.2346]


def record_of(edges: np.ndarray, counts: np.ndarray) -> Histogram:
    return Histogram("a", edges, counts, float(counts.sum()), 0, 0, 0, 0, edges[0], edges[-1], 0.0, 1.0, {})


@pytest.mark.parametrize("digits", [1, 5, 12])
@pytest.mark.parametrize("power", [-300, -21, -5, 0, 3, 15, 20, 300])
def test_short_numbers_are_those_that_python_writes(power: int, digits: int) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)) * 10.0**power
    values[0, 0] = 0.0
    expected = [[float(f"{value:.{digits}g}") for value in row] for row in values]
    assert short(values, digits).tolist() == expected


@pytest.mark.parametrize(
    ("number", "bins"), [(1, 16), (100, 16), (512, 16), (513, 32), (2048, 32), (2049, 64), (10**6, 64)]
)
def test_few_values_have_few_bins(run: wandb.Run, number: int, bins: int) -> None:
    values = np.random.default_rng(4).normal(size=number)
    WandB(run).write(0, [histogram("weights/a", values)])
    (value,) = finish(run).of("weights/a")

    counts, edges = np.histogram(values, bins)
    assert value["values"] == counts.tolist()
    np.testing.assert_allclose(value["bins"], edges, rtol=1e-4, atol=1e-5)


def test_bins_of_ones_own_stay_as_they_are(run: wandb.Run) -> None:
    WandB(run).write(0, [histogram("own/classes", np.arange(20.0), bins=20)])
    (value,) = finish(run).of("own/classes")
    assert value["values"] == [1] * 20


def test_of_two_tags_with_one_key_the_later_value_is_written(run: wandb.Run) -> None:
    WandB(run).write(0, [histogram("own/a", np.arange(20.0)), Scalar("own.a", 2.0)])
    assert finish(run).of("own/a") == [2.0]


def test_histograms_of_one_row_do_not_mind_each_other(run: wandb.Run) -> None:
    values = np.random.default_rng(3).normal(size=5000)
    records = [
        histogram("weights/a", values),
        histogram("weights/b", 1e-30 * values, bins=10),  # too small for the powers of ten that are exact
        histogram("weights/c", 1000 + 1e-5 * values),  # five digits would not tell its edges apart
        histogram("weights/d", np.arange(100.0), bins=4),
    ]
    records[3] = Histogram(**{**vars(records[3]), "counts": np.array([10 / 3, 20 / 3, 30.0, 60.0])})
    WandB(run).write(0, records)
    written = finish(run)

    for record, digits in zip(records, (5, 5, 12, 5), strict=True):
        (value,) = written.of(record.tag)
        assert value["bins"] == [float(f"{edge:.{digits}g}") for edge in record.edges]
        assert value["values"] == [float(f"{count:.5g}") for count in record.counts]


def test_a_histogram_that_cannot_be_drawn_costs_no_other(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    one = histogram("weights/a", np.arange(4.0), bins=2)
    bad = Histogram.unchecked(**{**vars(one), "tag": "own/bad", "counts": np.array(["many", "few"])})
    WandB(run).write(0, [bad, one, Scalar("loss", 1.0)])
    (row,) = finish(run).rows
    assert {key for key in row if not key.startswith(("_", "vizlog/"))} == {"weights/a", "loss"}
    (line,) = said()
    assert "own/bad could not be drawn and is left out" in line


def test_tags_that_become_one_key_are_told_once(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    for step in range(2):
        backend.write(step, [Scalar("loss.train", 1.0), Scalar("loss/train", 2.0)])
    assert finish(run).of("loss/train") == [2.0, 2.0]
    assert said() == ["the tags 'loss.train' and 'loss/train' have one W&B key, under which the later value is written"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_ends_nothing_and_says_nothing(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    run.log({"loss": 1})
    backend.write(0, [Scalar("a", 1.0)])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        backend.close()
        os._exit(len(said()))
    assert os.waitpid(child, 0)[1] == 0
    backend.close()
    assert finish(run).of("a") == [1.0]


def test_interpolated_counts_keep_their_sum(run: wandb.Run) -> None:
    whole = histogram("weights/a", np.arange(100.0), bins=4)
    shares = np.array([10 / 3, 20 / 3, 30.0, 60.0])
    WandB(run).write(0, [Histogram(**{**vars(whole), "counts": shares})])
    (value,) = finish(run).of("weights/a")
    assert value["values"] == [3.3333, 6.6667, 30, 60]


def test_nonfinite_values_of_a_tensor_are_counted_beside_its_histogram_until_they_are_gone(run: wandb.Run) -> None:
    backend = WandB(run)
    clean = np.arange(10.0)
    for step, values in enumerate([clean, np.append(clean, [np.nan, np.nan, np.inf, -np.inf, np.inf]), clean]):
        backend.write(step, [histogram("gradients/a", values)])
    written = finish(run)

    assert [sum(value["values"]) for value in written.of("gradients/a")] == [10, 10, 10]
    assert written.of("gradients/a/nans") == [2, 0]
    assert written.of("gradients/a/infs") == [3, 0]


def test_a_nan_never_reaches_the_summary_but_is_counted_and_said_once(
    run: wandb.Run, said: Callable[[], list[str]]
) -> None:
    backend = WandB(run)
    for step, value in enumerate([1.0, float("nan"), float("-inf"), 2.0]):
        backend.write(step, [Scalar("loss/train", value=value)])
    backend.close()
    summary = dict(run.summary)
    written = finish(run)

    assert written.of("loss/train") == [1.0, 2.0]
    assert written.of("vizlog/nonfinite_scalars") == [0, 1, 2, 2]
    assert summary["loss/train"] == 2.0
    assert summary["vizlog/nonfinite_scalars"] == 2
    (line,) = said()
    assert "loss/train is nan at step 1" in line


def test_an_embedding_is_a_table_with_a_numeric_column_for_each_dimension(run: wandb.Run) -> None:
    record = embedding()
    WandB(run).write(0, [record])
    written = finish(run)

    (value,) = written.of("embeddings/fc/1/table")
    table = json.loads((written.directory / "files" / value["path"]).read_text())
    assert table["columns"] == ["id", "label", "x0", "x1", "x2", "x3"]
    assert [row[0] for row in table["data"]] == record.ids.tolist()
    assert [row[1] for row in table["data"]][:4] == ["", "cat", "dog", ""]
    assert [row[2:] for row in table["data"]] == [[float(f"{x:.5g}") for x in row] for row in record.vectors.tolist()]


def test_an_embedding_is_a_picture_each_time_and_a_table_when_the_step_has_doubled(run: wandb.Run) -> None:
    backend = WandB(run)
    for step in (1, 2, 3, 4):
        backend.write(step, [embedding()])
    written = finish(run)
    assert len(written.of("embeddings/fc/1")) == 4
    assert len(written.of("embeddings/fc/1/table")) == 3


def test_the_table_of_a_long_tag_has_a_name_that_artifacts_may_have(
    run: wandb.Run, said: Callable[[], list[str]]
) -> None:
    record = dataclasses.replace(embedding(), tag=f"embeddings/{'layers.0.' * 20}fc")
    WandB(run).write(0, [record])
    (key,) = [key for key in finish(run).keys if key.endswith("/table")]
    assert len(f"run-{run.id}-{key}") <= 128  # of which W&B says that no name is longer
    assert said() == []


def test_a_quantity_is_a_column_of_numbers(run: wandb.Run) -> None:
    labels = np.array([np.nan, 1 / 3, 2e9])
    record = Embedding("embeddings/a", np.eye(3), {}, {}, labels, ["target"], np.arange(3))
    WandB(run).write(0, [record])
    written = finish(run)
    (value,) = written.of("embeddings/a/table")
    table = json.loads((written.directory / "files" / value["path"]).read_text())
    assert [row[1] for row in table["data"]] == [None, 0.333333, 2e9]


def test_a_chart_is_plain_lists_that_any_plotly_reads(run: wandb.Run) -> None:
    WandB(run).write(0, [curves()])
    written = finish(run)

    (value,) = written.of("health/dead_units")
    text = (written.directory / "files" / value["path"]).read_text()
    assert "bdata" not in text
    assert "NaN" not in text
    ys = [trace["y"] for trace in json.loads(text)["data"]]
    assert [0.0, None, 0.5] in ys


def test_without_plotly_a_chart_is_a_picture(run: wandb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "plotly")
    WandB(run).write(0, [curves()])
    (value,) = finish(run).of("health/dead_units")
    assert value["_type"] == "image-file"


def test_text_is_a_page_that_loads_nothing_and_runs_nothing(run: wandb.Run) -> None:
    WandB(run).write(0, [Text("text/notes", every_kind()[-1].text, caption="of <b>three</b> layers")])
    written = finish(run)

    page = (written.directory / "files" / written.of("text/notes")[0]["path"]).read_text()
    assert "<h1>Title</h1>" in page
    assert "<td>1</td>" in page
    assert "&lt;script&gt;" in page
    assert "<footer>of &lt;b&gt;three&lt;/b&gt; layers</footer>" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("number", "bins", "nans"), [(300, 64, 0), (1500, 20, 0), (4000, 8, 0), (300, 64, 9), (1500, 10, 9)]
)
def test_a_row_stays_under_one_megabyte(
    run: wandb.Run, said: Callable[[], list[str]], number: int, bins: int, nans: int
) -> None:
    values = np.random.default_rng(0).normal(scale=1e-3, size=100_000)
    one = vars(histogram("a", values))
    one |= {"nans": nans, "count": one["count"] + nans}
    name = "gradients/model.encoder.layers.{}.self_attention.projection.weight"
    backend = WandB(run)
    records = backend._fitting([Histogram(**{**one, "tag": name.format(i)}) for i in range(number)])
    (value,) = _histograms(records[:1], backend._bins).values()
    sent = value.to_json(run)
    keys = [f"{record.tag}{end}" for record in records for end in ["/nans", "/infs"] * bool(nans)]

    sizes = [len(json.dumps({record.tag: sent})) for record in records] + [len(json.dumps({key: 9})) for key in keys]
    assert sum(sizes) < 1_000_000
    assert bins // 2 < len(sent["values"]) <= bins
    assert sum(sent["values"]) == 100_000
    counted = backend._counts(records).get("vizlog/histograms_left_out", 0)
    assert len({record.tag for record in records}) + counted == number
    assert (counted > 0) == (number > 3000)
    assert (bins < 64) == any("too many for a row" in line for line in said())


def test_what_would_not_fit_a_row_is_written_coarser(run: wandb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizlog.backends.wandb._ROW_BYTES", 20_000)
    backend = WandB(run)
    for step in range(2):
        backend.write(step, [histogram(f"weights/{i}", np.arange(100.0)) for i in range(100)])
    written = finish(run)
    assert [len(json.dumps(row)) < 20_000 for row in written.rows] == [True, True]
    assert written.of("vizlog/histograms_left_out") == [36, 72]
    exact, _ = np.histogram(np.arange(100.0), 64)
    assert written.of("weights/0")[1]["values"] == exact.reshape(8, 8).sum(axis=1).tolist()


# Rows: the owner's are whole, and ours are too


def test_rows_beside_an_owner_who_logs_without_step(run: wandb.Run) -> None:
    backend = WandB(run)
    for step in range(6):
        run.log({"loss": step / 2, "extra": step})
        if step % 2 == 0:
            backend.write(step, [Scalar("health/x", value=float(step)), histogram("weights/a", np.arange(9.0) + step)])
    backend.close()
    run.log({"after": 1})
    written = finish(run)

    assert written.of("loss") == [0, 0.5, 1, 1.5, 2, 2.5]
    assert written.of("extra") == [0, 1, 2, 3, 4, 5]
    assert written.of("after") == [1]
    assert all(row.keys() - {"_step", "_runtime", "_timestamp"} for row in written.rows)
    assert [(row["vizlog/step"], row["health/x"]) for row in written.rows if "health/x" in row] == [
        (0, 0),
        (2, 2),
        (4, 4),
    ]
    assert [value["bins"][0] for value in written.of("weights/a")] == [0, 2, 4]


def test_rows_that_the_owner_has_begun_are_kept(run: wandb.Run) -> None:
    backend = WandB(run)
    for step in range(4):
        run.log({"loss": step}, commit=False)
        backend.write(step, [Scalar("health/x", value=float(step))])
        run.log({"accuracy": -step})
    written = finish(run)

    assert written.of("loss") == [0, 1, 2, 3]
    assert written.of("accuracy") == [0, -1, -2, -3]
    assert written.of("health/x") == [0, 1, 2, 3]


def test_an_owner_who_passes_step_loses_nothing_and_shares_his_rows(run: wandb.Run) -> None:
    backend = WandB(run)
    for step in range(6):
        if step % 2 == 0:  # before his row of this step is there
            backend.write(step, [Scalar("health/x", value=float(step))])
        run.log({"loss": step}, step=step)
        if step == 3:  # in the midst of it
            backend.write(step, [Scalar("health/x", value=float(step))])
        run.log({"accuracy": -step}, step=step)
    backend.close()
    run.log({"after": 1}, step=6)
    written = finish(run)

    his = [(row["_step"], row["loss"], row["accuracy"]) for row in written.rows if "loss" in row]
    assert his == [(step, step, -step) for step in range(6)]
    assert written.of("after") == [1]
    ours = [(row["vizlog/step"], row["health/x"]) for row in written.rows if "health/x" in row]
    assert ours == [(step, step) for step in (0, 2, 3, 4)]


def test_an_owner_who_counts_epochs_with_step_loses_nothing(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    run.log({}, step=0)
    for step in range(0, 1000, 100):  # 500 steps an epoch
        backend.write(step, [Scalar("health/x", value=float(step))])
        if step % 500 == 400:
            run.log({"accuracy": 0.5}, step=step // 500)
            run.log({"f1": 0.25}, step=step // 500)
    written = finish(run)

    assert [row["_step"] for row in written.rows if "accuracy" in row and "f1" in row] == [0, 1]
    assert [(row["vizlog/step"], row["health/x"]) for row in written.rows if "health/x" in row][-1] == (900, 900)
    (line,) = said()
    assert "keeps one row for each such step" in line


def test_an_owner_who_passes_step_seldom_costs_us_few_rows(run: wandb.Run) -> None:
    backend = WandB(run)
    for step in range(0, 4000, 10):
        if step % 100 == 0:
            backend.write(step, [Scalar("health/x", value=float(step))])
        if step % 500 == 0:
            run.log({"loss": step}, step=step)
            run.log({"accuracy": step}, step=step)
    written = finish(run)

    assert [row["_step"] for row in written.rows if "accuracy" in row and "loss" in row] == list(range(0, 4000, 500))
    ours = [row["vizlog/step"] for row in written.rows if "health/x" in row]
    assert ours[-30:] == list(range(1000, 4000, 100))
    assert written.of("health/x") == ours


@pytest.mark.parametrize("watches", [True, False])
def test_a_key_of_the_owners_keeps_his_values_and_its_x_axis(
    run: wandb.Run,
    said: Callable[[], list[str]],
    watches: bool,  # noqa: FBT001
) -> None:
    his, model = "gradients/weight", nn.Linear(2, 2, bias=False)
    backend = WandB(run)
    if watches:
        run.watch(model, log_freq=1)  # writes while a row is open, and may do so first after vizlog
    for step in range(6):
        if step >= 2 or not watches:
            run.log({his: step}, step=step)
        if step >= 2:
            backend.write(step, [histogram(his, np.arange(9.0)), Scalar("health/x", 1.0, caption="of a layer")])
    run.unwatch(model)
    written = finish(run)
    assert written.of(his) == [*range(2 if watches else 0, 6)]
    assert his not in written.metrics
    assert [value["_type"] for value in written.of(f"{his}-vizlog")] == ["histogram"] * 4
    assert written.metrics[f"{his}-vizlog"]["step_metric"] == "vizlog/step"
    assert len(written.of("health/x")) == 4
    (line,) = [line for line in said() if "keeps one row" not in line]
    assert f"instead of {his!r} vizlog writes" in line


def test_what_another_monitor_wrote_into_a_run_is_not_taken_for_the_owners(
    run: wandb.Run, said: Callable[[], list[str]]
) -> None:
    records = [*every_kind(), Scalar("updates/a", 1.0, caption="of a layer"), Scalar("health/mine", 1.0)]
    for step in range(3):
        backend = WandB(run)
        run.log({})
        backend.write(step, records)
        backend.close()
    written = finish(run)
    assert not {key for key in written.keys if "-vizlog" in key}
    assert len(written.of("updates/a")) == len(written.of("health/mine")) == 3
    assert said() == []


def test_the_first_row_is_not_lost_where_nobody_else_logs(start: Callable[..., wandb.Run]) -> None:
    for closes in (True, False):
        run = start()
        backend = WandB(run)
        backend.write(0, [Scalar("health/x", value=1.0)])
        if closes:
            backend.close()
            WandB(run).write(0, [Scalar("health/x", value=2.0)])
        assert finish(run).of("health/x") == ([1.0, 2.0] if closes else [1.0])


def waiting(backend: WandB) -> int:
    assert backend._rows is not None
    return len(backend._rows._held)


def test_rows_wait_for_the_owners_first_and_not_without_end(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    for step in range(101):  # the first one goes into the row that will be his
        backend.write(step, [Scalar("health/x", value=float(step))])
    assert waiting(backend) == 100
    assert said() == []
    backend.write(101, [Scalar("health/x", value=101.0)])
    assert waiting(backend) == 0
    run.log({"loss": 1})
    (line,) = said()
    assert "nobody else has logged" in line
    assert finish(run).of("health/x") == [*range(102)]


def test_an_empty_row_of_the_owners_ends_the_wait(
    run: wandb.Run, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vizlog.backends.wandb_rows._LONG", 0.0)
    backend = WandB(run)
    for step in range(3):
        backend.write(step, [Scalar("health/x", value=float(step))])
    (line,) = said()
    assert "wait for your first run.log()" in line
    assert "until then a run that is killed loses them" in line
    run.log({})
    backend.write(3, [Scalar("health/x", value=3.0)])
    assert waiting(backend) == 0
    assert finish(run).of("health/x") == [0, 1, 2, 3]


def test_an_owner_who_logs_once_at_the_end_with_step_loses_nothing(run: wandb.Run) -> None:
    with_vizlog = WandB(run)
    for step in range(5):
        with_vizlog.write(step, [Scalar("health/x", value=float(step))])
    run.log({"accuracy": 0.5}, step=0)
    with_vizlog.close()
    written = finish(run)
    assert written.of("accuracy") == [0.5]
    assert written.of("health/x") == [*range(5)]


def test_what_found_no_row_beside_an_owner_who_passes_step_follows_at_the_end_of_his_run(run: wandb.Run) -> None:
    """As in a trial that is over before the worker has drawn anything."""
    backend = WandB(run)
    for step in range(30):
        run.log({"loss": step}, step=step)
    for step in range(0, 30, 5):
        backend.write(step, [Scalar("health/x", value=float(step)), histogram("weights/a", np.arange(9.0) + step)])
    backend.close()
    run.log({"loss": 30}, step=30)
    run.log({"accuracy": 0.5}, step=30)
    written = finish(run)

    his = [(row["_step"], row["loss"]) for row in written.rows if "loss" in row]
    assert his == [(step, step) for step in range(31)]
    assert [row["_step"] for row in written.rows if "accuracy" in row] == [30]
    ours = [(row["vizlog/step"], row["weights/a"]["bins"][0]) for row in written.rows if "health/x" in row]
    assert ours == [(step, step) for step in range(0, 30, 5)]
    assert written.of("health/x") == [*range(0, 30, 5)]


class TakesItsTime(vizlog.Probe):
    """The worker is behind the training."""

    def __init__(self) -> None:
        super().__init__(every=1)

    def measure(self, context: Any) -> int:
        return int(context.step)

    def finish(self, measured: int) -> Iterator[Scalar]:
        time.sleep(0.02)
        yield Scalar("health/x", measured)


def test_a_run_that_its_owner_finishes_first_has_all_that_was_under_way(run: wandb.Run) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = Memory()
    monitor = vizlog.watch(model, optimizer, to=[memory, run], probes=[TakesItsTime()])
    for step in range(20):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        monitor.log({"loss": step})
    written = finish(run)
    monitor.close()
    assert written.of("loss") == [*range(20)]
    assert written.of("health/x") == [*range(20)]
    assert len(memory.of("health/x")) == len(memory.of("loss")) == 20


def test_the_end_of_a_process_ends_its_runs_too(tmp_path: Path) -> None:
    """Nobody closes and nobody finishes; a fork that ends in between has nothing to do with it."""
    script = """
import os, wandb
from vizlog.backends.wandb import WandB
from vizlog.records import Scalar
run = wandb.init(project="test")
backend = WandB(run)
for step in range(9):
    run.log({"loss": step}, step=step)
if os.fork() == 0: raise SystemExit
os.wait()
for step in range(9):
    backend.write(step, [Scalar("health/x", float(step))])
print(run.dir)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    written = read_run(Path(done.stdout.strip()).parent)
    assert written.of("loss") == written.of("health/x") == [*range(9)]
    assert "does not answer" not in done.stderr


@pytest.mark.parametrize("without_hooks", [False, True])
def test_a_client_that_calls_nobody_before_it_finishes_is_not_waited_for(
    run: wandb.Run,
    monkeypatch: pytest.MonkeyPatch,
    without_hooks: bool,  # noqa: FBT001
) -> None:
    if without_hooks:
        monkeypatch.delattr("wandb.sdk.wandb_run.TeardownHook")
    else:
        monkeypatch.setattr(run, "_teardown_hooks", ())
    backend = WandB(run)
    for step in range(3):
        backend.write(step, [Scalar("health/x", value=float(step))])
    assert waiting(backend) == 0


def test_under_lightnings_logger_rows_carry_its_step(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    run = logger.experiment
    backend = WandB(run, step_key="trainer/global_step")
    for step in range(0, 30, 10):
        backend.write(step, [Scalar("health/x", value=float(step))])
        logger.log_metrics({"loss": step / 2}, step=step + 9)
    written = finish(run)

    where = "trainer/global_step"
    assert [(row[where], row["loss"]) for row in written.rows if "loss" in row] == [(9, 0), (19, 5), (29, 10)]
    ours = [(row["vizlog/step"], row["health/x"]) for row in written.rows if "health/x" in row]
    assert ours == [(0, 0), (10, 10), (20, 20)]
    assert [row[where] for row in written.rows if "health/x" in row] == [0, 10, 20]


def test_rows_that_come_late_leave_the_owners_step_in_his_rows_and_in_the_summary(run: wandb.Run) -> None:
    key, now = "trainer/global_step", [0]
    run.define_metric(key)
    run.define_metric("*", step_metric=key, step_sync=True)  # as Lightning's logger does
    backend = WandB(run, step_key=key)
    backend.accompany(lambda: now[0], lambda: None)
    for step in range(0, 60, 10):
        now[0] = step
        run.log({"loss": step, key: step})
    for step in (20, 40):
        backend.write(step, [Scalar("health/x", value=float(step))])
        run.log({"his": step})
        assert run.summary.get(key) == 50
    now[0] = 60
    backend.write(60, [Scalar("health/x", value=60.0)])
    backend.close()
    assert run.summary.get(key) == 60
    written = finish(run)
    assert [row[key] for row in written.rows if "his" in row] == [50, 50]
    assert [(row["vizlog/step"], row.get(key)) for row in written.rows if "health/x" in row] == [
        (20, None),
        (40, None),
        (60, 60),
    ]


def test_two_runs_in_one_process_have_the_same_keys(start: Callable[..., wandb.Run]) -> None:
    keys = []
    for _ in range(2):
        run = start()
        WandB(run).write(0, every_kind())
        keys.append(finish(run).keys)
    assert keys[0] == keys[1]


def test_rows_come_whole_from_a_thread_while_the_owner_logs(run: wandb.Run) -> None:
    backend = WandB(run)

    def work() -> None:
        for step in range(50):
            backend.write(step, [Scalar("health/x", value=float(step)), histogram("weights/a", np.arange(5.0))])

    thread = threading.Thread(target=work)
    thread.start()
    for step in range(200):
        run.log({"loss": step, "accuracy": -step})
    thread.join()
    written = finish(run)

    assert [(row["loss"], row["accuracy"]) for row in written.rows if "loss" in row] == [(s, -s) for s in range(200)]
    assert [(row["vizlog/step"], row["health/x"]) for row in written.rows if "health/x" in row] == [
        (s, s) for s in range(50)
    ]


# Files are bounded


def test_files_stay_within_the_limit_and_the_rest_is_counted(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run, max_files=12)
    for step in range(0, 400, 10):
        backend.write(step, [picture(shade=step), curves(), Scalar("loss/train", value=1.0)])
    written = finish(run)

    drawn = len(written.of("filters/conv1")) + len(written.of("health/dead_units"))
    assert len(written.media) == drawn <= 12
    assert written.of("vizlog/files_left_out")[-1] == 80 - drawn
    assert len(written.of("loss/train")) == 40
    assert ["at most 12 files" in line for line in said()] == [True]


def test_where_no_file_is_wanted_numbers_are_all_there_is(run: wandb.Run) -> None:
    WandB(run, max_files=0).write(0, every_kind())
    written = finish(run)
    assert written.media == []
    assert written.keys == {
        "vizlog/step",
        "vizlog/nonfinite_scalars",
        "vizlog/files_left_out",
        "loss/train",
        "weights/layer1/0/conv",
        "embeddings/fc/1/knn_accuracy",
    }
    assert written.of("vizlog/files_left_out") == [8]


def test_a_long_run_is_thinned_evenly_and_not_cut_off() -> None:
    files = _FileBudget(1000)
    taken: dict[str, list[int]] = {f"filters/{i}": [] for i in range(25)}
    for step in range(0, 450_000, 900):
        for key, steps in taken.items():
            if files.take(step, key):
                steps.append(step)

    assert 500 < sum(map(len, taken.values())) <= 1000
    assert max(map(len, taken.values())) - min(map(len, taken.values())) <= 2
    assert all(max(steps) > 250_000 for steps in taken.values())
    assert files.left_out == 25 * 500 - sum(map(len, taken.values()))


def test_of_too_many_histograms_those_that_are_kept_lie_evenly() -> None:
    assert list(_spread(range(10), 4)) == [0, 2, 5, 7]  # type: ignore[arg-type]
    assert list(_spread(range(3), 3)) == [0, 1, 2]  # type: ignore[arg-type]


def test_the_first_half_of_the_files_goes_to_whatever_comes() -> None:
    files = _FileBudget(1000)
    assert all(files.take(step, f"filters/{i}") for step in range(100, 105) for i in range(100))
    assert files.left_out == 0
    assert not files.take(105, "filters/0")


def test_a_tag_for_almost_every_file_is_fine() -> None:
    files = _FileBudget(500)
    assert all(files.take(0, f"filters/{i}") for i in range(499))
    assert [files.take(step, "filters/0") for step in (10, 100)] == [True, False]
    assert files.left_out == 1


def test_a_client_that_lets_no_table_be_registered_apart_gets_it_with_its_row(
    run: wandb.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if len(args) > 2 and args[2] == ("val_to_json",):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    record = next(record for record in every_kind() if isinstance(record, Embedding))
    WandB(run).write(0, [record])
    monkeypatch.undo()
    written = finish(run)
    (table,) = written.of(f"{record.tag.replace('.', '/')}/table")
    assert table["nrows"] == len(record.ids)


def test_tables_are_kept_when_the_step_has_doubled() -> None:
    files = _FileBudget(1000)
    taken = [step for step in range(0, 10_000, 100) if files.take(step, "embeddings/fc/table", files=2, growth=2.0)]
    assert taken == [0, 100, 200, 400, 800, 1600, 3200, 6400]
    assert files.left_out == 0


def test_what_takes_several_files_counts_as_so_many() -> None:
    files = _FileBudget(5)
    takes = [files.take(0, key, files=number) for key, number in (("a", 2), ("b", 2), ("c", 2), ("d", 1), ("e", 1))]
    assert takes == [True, True, False, True, False]
    assert files.left_out == 2


def test_steps_that_start_over_are_drawn_again() -> None:
    files = _FileBudget(1000)
    assert [files.take(step, "a/table", growth=2.0) for step in (0, 500, 0, 100, 150)] == [
        True,
        True,
        True,
        True,
        False,
    ]


# The run is its owner's


def test_the_run_stays_open(run: wandb.Run) -> None:
    backend = WandB(run)
    backend.write(0, [Scalar("loss/train", value=1.0)])
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match=r"closed: give each training a new one"):
        backend.write(1, [Scalar("loss/train", value=2.0)])
    run.log({"mine": 3})
    written = finish(run)
    assert written.of("mine") == [3]
    assert written.of("loss/train") == [1.0]


def test_the_active_run_is_taken_where_none_is_given() -> None:
    import wandb

    with wandb.init(project="test") as run:
        WandB().write(0, [Scalar("loss/train", value=1.0)])
        assert finish(run).of("loss/train") == [1.0]


def test_no_active_run_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"call wandb\.init\(\) first"):
        WandB()


def test_a_finished_run_is_refused_when_built(run: wandb.Run) -> None:
    run.finish()
    with pytest.raises(RuntimeError, match=f"{run.id} is already finished"):
        WandB(run)


def test_a_run_that_its_owner_finishes_is_one_warning(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    backend.write(0, [Scalar("loss/train", value=1.0)])
    written = finish(run)
    for step in (1, 2):
        backend.write(step, [Scalar("loss/train", value=2.0)])
    backend.close()

    assert written.of("loss/train") == [1.0]
    (line,) = said()
    assert f"{run.id} was finished before vizlog: what came from step 1 on is not in it" in line


def test_a_run_that_ends_while_the_client_hangs_says_what_it_may_lack(
    run: wandb.Run, said: Callable[[], list[str]]
) -> None:
    backend = WandB(run)
    run.log({})
    backend.write(0, [Scalar("loss/train", value=1.0)])
    goes_on = threading.Event()
    backend._client._seconds, backend._client._lives = 0.1, lambda: False
    assert not backend._client.call(goes_on.wait)  # type: ignore[arg-type]
    run.finish()
    goes_on.set()
    (line,) = said()
    assert f"the W&B client does not answer: the run {run.id} may lack" in line


def test_rows_that_were_dropped_are_said(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    backend = WandB(run)
    backend._client.dropped = 2
    backend.close()
    (line,) = said()
    assert "2 of them for certain" in line


def test_what_fails_as_a_run_ends_is_no_matter_of_its_owners(run: wandb.Run, said: Callable[[], list[str]]) -> None:
    def fail() -> None:
        raise RuntimeError("not today")

    WandB(run).accompany(lambda: 0, fail)
    run.finish()
    (line,) = said()
    assert f"could not write all that it has for the W&B run {run.id}: not today" in line


def test_a_finished_run_keeps_nothing_of_vizlogs(run: wandb.Run) -> None:
    backend = WandB(run)
    gone = weakref.ref(backend)
    backend.close()
    run.finish()
    del backend
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("again", [False, True], ids=["a new key", "a known key"])
def test_a_run_that_is_finished_while_vizlog_draws_is_one_warning(
    run: wandb.Run,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    again: bool,  # noqa: FBT001
) -> None:
    backend = WandB(run)
    if again:
        backend.write(0, [picture()])
    draw = backend._pictures.of

    def finish_and_draw(record: Any) -> Any:
        run.finish()
        return draw(record)

    monkeypatch.setattr(backend._pictures, "of", finish_and_draw)
    for step in (1, 2):
        backend.write(step, [picture()])
    (line,) = said()
    assert "was finished before vizlog: what came from step 1 on is not in it" in line


@pytest.mark.parametrize("error", ["UsageError", "TimeoutError"])
def test_what_a_client_says_of_a_run_that_is_finished_as_a_row_is_written_is_the_same_warning(
    run: wandb.Run, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    import wandb.errors

    backend = WandB(run)
    with monkeypatch.context() as patch:

        def finished(*_: Any) -> None:
            patch.setattr(run, "_is_finished", True)
            raise getattr(wandb.errors, error, TimeoutError)("too late")

        patch.setattr(backend._rows, "add", finished)
        for step in (1, 2):
            backend.write(step, [Scalar("loss/train", value=1.0)])
    (line,) = said()
    assert "was finished before vizlog: what came from step 1 on is not in it" in line


def test_what_an_open_run_refuses_is_an_error_like_any_other(run: wandb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.errors import UsageError

    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("no")

    monkeypatch.setattr(run, "log", refuse)
    with pytest.raises(UsageError, match="no"):
        WandB(run).write(0, [Scalar("loss/train", value=1.0)])


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
def test_a_table_that_is_answered_after_its_run_has_ended_is_no_news(
    run: wandb.Run,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    refused: bool,  # noqa: FBT001
) -> None:
    from wandb.sdk.data_types import utils

    answers, to_json = threading.Event(), utils.val_to_json

    def late(run: wandb.Run, key: str, value: Any, **options: Any) -> Any:
        if not key.endswith("/table"):
            return to_json(run, key, value, **options)
        answers.wait(60)
        if refused:
            raise ConnectionError("too late")
        return None

    monkeypatch.setattr(utils, "val_to_json", late)
    backend = WandB(run)
    backend._service._seconds = 0.1
    backend.write(0, [embedding()])
    backend.close()
    run.finish()
    answers.set()
    while backend._service._jobs:
        time.sleep(0.01)
    (line,) = said()
    assert "the W&B service does not answer" in line


def test_why_a_training_stops_is_said_in_one_alert_while_the_run_is_open(
    run: wandb.Run, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts: list[str] = []
    monkeypatch.setattr(run, "alert", lambda text, **_: alerts.append(text))
    backend = WandB(run)
    for step, because in enumerate(["", "dead: all of it", "dead: all of it"]):
        backend.summarise(step, {"vizlog/vanishing": 1.0}, because)
    assert alerts == ["At step 1: dead: all of it"]
    assert run.summary["vizlog/stopped_because"] == "dead: all of it"
    run.finish()
    backend.summarise(3, {"vizlog/vanishing": 2.0}, "dead: all of it")
    assert said() == []


def test_ranks_that_do_not_log_draw_and_write_nothing(
    start: Callable[..., wandb.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    from lightning.fabric.loggers.logger import _DummyExperiment

    drawn: list[Record] = []
    monkeypatch.setattr("vizlog.backends.pictures.Pictures.of", lambda _, record: drawn.append(record))
    for run in (_DummyExperiment(), start(mode="disabled")):
        backend = WandB(run)
        backend.write(0, every_kind())
        backend.close()
    assert drawn == []


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a wandb\.Run .* got str"):
        WandB("runs/a")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_a_limit_that_is_no_number_of_files_is_refused(run: wandb.Run, number: Any) -> None:
    with pytest.raises(ValueError, match="max_files >= 0, got"):
        WandB(run, max_files=number)


def test_without_wandb_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "wandb")
    with pytest.raises(ImportError, match=r"pip install 'vizlog\[wandb\]'"):
        WandB()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes imports of `package` fail from here on."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == package or name.startswith(f"{package}."):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_a_chart_is_drawn_while_another_thread_imports_pandas(
    run: wandb.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pandas.py").write_text(
        "import sys, time\n"
        "while 'goes on' not in sys.argv: time.sleep(0.01)\n"
        "class Series: pass\nclass Index: pass\nclass DataFrame: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pandas"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    importing = threading.Thread(target=lambda: importlib.import_module("pandas"))
    importing.start()
    while "pandas" not in sys.modules:
        time.sleep(0.01)
    threading.Timer(0.3, lambda: sys.argv.append("goes on")).start()
    backend = WandB(run)
    backend.write(0, [curves()])
    backend.close()
    importing.join()
    monkeypatch.delitem(sys.modules, "pandas")
    (chart,) = finish(run).of("health/dead_units")
    assert chart["_type"] == "plotly-file"


def test_the_first_row_imports_neither_pandas_nor_plotly_while_training_runs(tmp_path: Path) -> None:
    script = """
import sys, wandb, numpy as np
from vizlog import WandB
from vizlog.records import Curves
run = wandb.init(mode="offline", project="vizlog-tests", dir=sys.argv[1])
backend, before = WandB(run), set(sys.modules)
backend.write(0, [Curves("health/dead_units", x=np.arange(2), ys={"share": np.zeros(2)}, x_label="layer", y_label="y")])
backend.close()
run.finish()
print("imported:", *sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"pandas", "plotly"}))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "imported:"
