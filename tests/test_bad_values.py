"""Bad values: every type, size and name gives a right picture, or is left out by name; nothing costs without bound."""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_records import every_record
from tensorboard_run import values
from torch import Tensor, nn
from wandb_file import read_run

import vizlog
from vizlog.compute.histogram import Uncountable, count_bits, histogram
from vizlog.isolation import isolated
from vizlog.probes.base import Figures
from vizlog.probes.health import draw
from vizlog.records import Embedding, Heatmaps, Images, Record, Scalar
from vizlog.selection import named_modules, named_parameters
from vizlog.views.notebook import html
from vizlog.views.raster import raster

pytestmark = [
    pytest.mark.filterwarnings("ignore:(?s).*([Nn]ested|Sparse|sparse|ComplexHalf|quantiz).*:UserWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*quantiz.*:DeprecationWarning"),
]

BASE = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 0.0, 100.0]])
NARROW = torch.zeros(8, dtype=torch.uint8)

ALL_TYPES = sorted({kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}, key=str)
READ = (
    "bfloat16 bool complex32 complex64 complex128 float16 float32 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 "
    "float8_e5m2fnuz float8_e8m0fnu int8 int16 int32 int64 qint8 qint32 quint4x2 quint8 uint8 uint16 uint32 uint64"
).split()
"""The others are sizes of 1 to 7 bits, and raw bits: torch has nothing that reads them."""


def of_type(kind: torch.dtype) -> Tensor:
    name = str(kind).removeprefix("torch.")
    if name in ("qint8", "quint8", "qint32"):
        return torch.quantize_per_tensor(BASE, 0.5, 0, kind)
    if name == "quint4x2":
        return torch.quantize_per_channel(BASE, torch.tensor([0.5, 0.5]), torch.zeros(2), 0, kind)
    if name == "quint2x4":
        return torch.empty(8, dtype=kind)
    try:
        return BASE.to(kind, copy=True)
    except RuntimeError:
        return NARROW.view(kind)


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Every value in float64, without the code under test."""
    if tensor.dtype == torch.quint4x2:
        return (BASE.double() / 0.5).round().clamp(0, 15).numpy() * 0.5
    if tensor.is_quantized:
        tensor = tensor.int_repr().double() * tensor.q_scale()
    if tensor.is_complex():
        return np.abs(tensor.to(torch.complex128).numpy())
    return tensor.to(torch.float64).numpy()


OTHERS: dict[str, tuple[Callable[[], Tensor], list[float] | None]] = {
    "coo": (BASE.to_sparse, BASE.flatten().tolist()),
    "csr": (BASE.to_sparse_csr, BASE.flatten().tolist()),
    "csc": (BASE.to_sparse_csc, BASE.flatten().tolist()),
    "bsr": (lambda: BASE.to_sparse_bsr((1, 2)), BASE.flatten().tolist()),
    "nested": (lambda: torch.nested.nested_tensor([BASE[0], BASE[1, :2]]), [0.0, 1, 2, 3, 5, 1]),
    "jagged": (
        lambda: torch.nested.nested_tensor([BASE[0], BASE[1, :2]], layout=torch.jagged),
        [0.0, 1, 2, 3, 5, 1],
    ),
    "no dimension": (BASE.sum, [112.0]),
    "one": (BASE[:1, 1:2].clone, [1.0]),
    "all equal": (lambda: torch.full((4, 4), 0.1), [float(np.float32(0.1))] * 16),
    "denormal": (lambda: torch.full((4, 4), 1e-42), [float(np.float32(1e-42))] * 16),
    "largest": (
        lambda: torch.tensor([[-1.0, 1.0]]) * torch.finfo(torch.float32).max,
        [-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)],
    ),
    "nan": (lambda: torch.full((4, 4), float("nan")), [np.nan] * 16),
    "infinite": (lambda: torch.tensor([[np.inf, -np.inf, 0.0]]), [np.inf, -np.inf, 0.0]),
    "empty": (lambda: BASE[:0], None),
    "meta": (lambda: BASE.to("meta"), None),
    "mkldnn": (BASE.to_mkldnn, None),
}


def check(record: Any, expected: np.ndarray) -> None:
    """A histogram against numpy on its own edges."""
    flat = np.asarray(expected, np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    assert record.count == len(flat)
    assert record.zeros == np.count_nonzero(flat == 0)
    assert (record.nans, record.pos_infs, record.neg_infs) == (
        np.isnan(flat).sum(),
        np.isposinf(flat).sum(),
        np.isneginf(flat).sum(),
    )
    assert record.counts.sum() == len(finite)
    if len(finite):
        assert (record.min, record.max) == (finite.min(), finite.max()), record.tag
        places = np.searchsorted(record.edges, finite, side="right") - 1
        places[finite == record.edges[-1]] -= 1
        width = np.diff(record.edges).max()
        counted = np.bincount(places.clip(0, len(record.counts) - 1), minlength=len(record.counts))
        # An edge is moved by a 4096th of the range at most: what lies nearer to one may be in either bin.
        near = np.abs(record.edges[:, None] - finite).min(0) <= width / 32
        assert np.abs(counted - record.counts).sum() <= 2 * near.sum()


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_TYPES, ids=str)
def test_every_type_gives_a_right_histogram_or_says_why_not(kind: torch.dtype) -> None:
    tensor = of_type(kind)
    if str(kind).removeprefix("torch.") not in READ:
        with pytest.raises(Uncountable, match=r"^no way to read the values: [^\n]{5,200}$"):
            count_bits(tensor)
        return
    check(histogram("a", count_bits(tensor)), as_numpy(tensor))


class Odd(nn.Module):
    """Returns a tensor of some kind, and goes on with what it was given."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make()


class Oddities(nn.Module):
    """One layer of each kind; odd weights too, with gradients where a tensor may have one."""

    def __init__(self, makers: dict[str, Callable[[], Tensor]]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.odd = nn.ModuleDict({f"k {name}".replace(".", "_"): Odd(make) for name, make in makers.items()})
        for name, module in self.odd.items():
            made = module.make()  # type: ignore[operator]
            trains = (made.is_floating_point() or made.is_complex()) and made.dtype != torch.float4_e2m1fn_x2
            if name not in ("k nested", "k mkldnn"):
                module.weight = nn.Parameter(made, requires_grad=trains)  # type: ignore[assignment]
                module.register_buffer("kept", module.make())  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for module in self.odd.values():
            module(x)
        return self.fc(x)


class OneStep(torch.optim.SGD):
    """Moves what can be moved."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    plain = parameter.layout == torch.strided and not parameter.is_nested
                    if parameter.grad is not None and plain and parameter.dtype == torch.float32:
                        parameter.sub_(0.1 * parameter.grad)


def test_a_model_of_every_kind_is_shown_and_what_cannot_be_is_counted_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    makers: dict[str, Callable[[], Tensor]] = {str(kind)[6:]: lambda kind=kind: of_type(kind) for kind in ALL_TYPES}  # type: ignore[misc]
    makers |= {name: make for name, (make, _) in OTHERS.items()}
    model, memory = Oddities(makers), vizlog.Memory()
    optimizer = OneStep(model.parameters(), lr=0.1)
    with vizlog.watch(
        model,
        optimizer,
        to=memory,
        batch=(torch.randn(8, 3), torch.arange(8) % 3),
        probes=[
            vizlog.WeightHistograms(every=1, most=None),
            vizlog.GradientHistograms(every=1, most=None),
            vizlog.UpdateRatios(every=1, most=None),
            vizlog.ActivationHistograms(every=1, most=None),
        ],
    ):
        model(torch.randn(4, 3)).sum().backward()
        for parameter in model.odd.parameters():
            if parameter.requires_grad and not parameter.is_meta:
                parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text
    tags = {record.tag for _, record in memory.records}
    counted = 0
    for name, module in model.odd.items():
        short = name.removeprefix("k ")
        hopeless = short not in READ if short not in OTHERS else OTHERS[short][1] is None
        tag = f"activations/odd.{name}"
        if hopeless:
            counted += 1
            assert tag not in tags
            continue
        (_, record), *_ = memory.of(tag)
        check(record, np.asarray(OTHERS[short][1]) if short in OTHERS else as_numpy(module.make()))  # type: ignore[operator]
        if short != "nested":
            assert f"weights/odd.{name}.weight" in tags, name
        if short != "nested" and module.weight.requires_grad:  # type: ignore[union-attr]
            assert f"gradients/odd.{name}.weight" in tags, name
    ((_, whole),) = memory.of("activations/fc")
    assert f"{counted} layers skipped (odd." in whole.caption
    ((_, health),) = memory.of("health/update_ratio")
    assert "skipped (odd." in health.caption  # sparse and nested weights have no norm


@pytest.mark.parametrize("function", [torch.relu, torch.softmax])
def test_odd_outputs_of_a_live_forward_reach_nobody(function: Callable[..., Tensor]) -> None:
    """The training's own forward, which an error of ours inside a hook would end."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.odd = nn.Linear(3, 3), Odd(lambda: torch.nested.nested_tensor([torch.ones(2, 3)]))

        def forward(self, x: Tensor) -> Tensor:
            function(self.odd(x), *([-1] if function is torch.softmax else []))
            return self.fc(x)

    model, memory = Model(), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.ActivationHistograms(every=1)], to=memory) as monitor, monitor.step():
        model(torch.ones(2, 3)).sum().backward()
    assert {"activations/fc", "activations/odd"} <= {record.tag for _, record in memory.records}


@pytest.mark.parametrize("last", [lambda: nn.Linear(4, 3), lambda: nn.LazyLinear(3)])
def test_what_is_not_initialised_yet_is_seen_from_the_next_due_step_on(
    last: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model, memory = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), last()), vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"not initialised yet .*: run it once on a batch before vizlog"):
        vizlog.watch(model, optimizer, to=None, batch=torch.ones(2, 3))
    probes = [kind(every=1) for kind in (vizlog.WeightHistograms, vizlog.GradientHistograms, vizlog.UpdateRatios)]
    with vizlog.watch(model, optimizer, to=memory, probes=probes):
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    for tag in ("weights/0.weight", "gradients/0.weight"):
        assert [step for step, _ in memory.of(tag)] == [1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("batch", [None, torch.ones(2, 3)])
def test_a_model_without_values_says_what_to_do(batch: Tensor | None) -> None:
    model = nn.Sequential(nn.Linear(3, 3, device="meta"))
    with pytest.raises(ValueError, match=r"on the meta device.*once they have, after model\.to_empty\(device=…\)"):
        vizlog.watch(model, torch.optim.SGD(model.parameters()), to=None, batch=batch)


def test_a_model_of_which_parts_have_no_values_is_watched_without_them() -> None:
    model, memory = nn.ModuleList([nn.Linear(3, 3, device="meta"), nn.Linear(3, 3)]), vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.WeightHistograms(every=1)], to=memory) as monitor, monitor.step():
        model[1](torch.ones(2, 3)).sum().backward()
    weights = {record.tag for _, record in memory.records if record.tag.startswith("weights/")}
    assert weights == {"weights/1.weight", "weights/1.bias"}


def test_a_batch_that_does_not_fit_the_models_type_says_what_to_do() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"(?s)inputs are float64 \(2, 3\).*Give inputs as the model takes them"):
        vizlog.watch(model, torch.optim.SGD(model.parameters()), to=None, batch=torch.ones(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"(?s)inputs are float32 \(2, 3\).*Give inputs as the model takes them"):
        vizlog.watch(model, torch.optim.SGD(model.parameters()), to=None, batch=torch.ones(4, 3, device="meta"))


# Storms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_storm_of_values_that_are_not_finite_is_drawn_and_floods_no_log(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    optimizer, memory = torch.optim.SGD(model.parameters(), lr=0.1), vizlog.Memory()
    batch = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    probes = vizlog.standard(model, batch, every=vizlog.Every(10))
    caplog.clear()
    with vizlog.watch(model, optimizer, to=[memory, tmp_path], probes=probes, batch=batch) as monitor:
        for _ in range(50):
            optimizer.zero_grad()
            loss = (nn.functional.cross_entropy(model(batch[0]), batch[1]) * value).nan_to_num(nan=value)
            loss.backward()
            optimizer.step()
            monitor.log({"loss": loss})
            monitor.flush()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1, caplog.text
    written = {tag for step, tag in values(tmp_path) if step == 40}
    kinds = {tag.partition("/")[0] for tag in written}
    assert {"weights", "gradients", "activations", "filters", "feature_maps", "saliency", "embeddings"} <= kinds, kinds
    assert {"weights/0.weight/nonfinite", "health/nonfinite", "loss"} <= written | {"loss"}
    assert len([1 for step, tag in values(tmp_path) if tag == "loss"]) == 50


# Sizes ----------------------------------------------------------------------------------------------------------------


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def seconds(function: Callable[[], Any], tries: int = 2) -> float:
    """Of this process, whoever else has the machine; the best try."""
    times = []
    for _ in range(tries):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def many(number: int) -> nn.Module:
    return nn.Sequential(*[nn.Sequential(*[Leaf() for _ in range(99)]) for _ in range(number // 100)], nn.Linear(3, 3))


def test_what_walks_a_model_takes_linear_time_up_to_40_000_modules() -> None:
    def walk(models: dict[str, nn.Module]) -> None:
        named_modules(models)
        named_parameters(models)
        with isolated(models.values()):
            pass

    def figures(number: int) -> list[Figures]:
        layers = {f"layer {i}": 0.5 for i in range(number)}
        some = {name: value for i, (name, value) in enumerate(layers.items()) if i % 3}
        return [Figures("zeros", some, source="a"), Figures("zeros", layers, source="b")]

    small, large = {"": many(4_000)}, {"": many(40_000)}
    assert seconds(lambda: walk(large), tries=1) < 40 * seconds(lambda: walk(small))
    few, all_ = figures(4_000), figures(40_000)
    assert seconds(lambda: draw(all_), tries=1) < 40 * seconds(lambda: draw(few))


def test_a_due_step_of_ten_times_the_modules_takes_ten_times_as_long() -> None:
    def whole(number: int) -> float:
        model = many(number)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        batch = torch.randn(4, 3), torch.arange(4) % 3
        start = time.process_time()
        probes = [vizlog.WeightHistograms(), vizlog.GradientHistograms(), vizlog.ActivationHistograms()]
        monitor = vizlog.watch(model, optimizer, to=vizlog.Memory(), probes=probes, batch=batch)
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        monitor.close()
        return time.process_time() - start

    whole(100)
    assert whole(2_000) < 40 * whole(200)


# Names ----------------------------------------------------------------------------------------------------------------

NAMES = [
    "a b",
    "a/b",
    "../../up",
    "größe/层",
    "line\nbreak\ttab",
    "<script>alert(1)</script>",
    "x" * 300,
    "层" * 300,
    "star*",
    "nul\0",
    "lone \udcff",
]


def named(name: str) -> list[Record]:
    return [dataclasses.replace(record, tag=f"{record.tag.partition('/')[0]}/{name}") for record in every_record()]


def test_any_name_reaches_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = vizlog.TensorBoard(tmp_path / "run")
    for name in NAMES:
        backend.write(0, named(name))
    backend.close()
    written = {tag for _, tag in values(tmp_path / "run")}
    assert written == {record.tag for name in NAMES for record in named(name)}
    assert len(list((tmp_path / "run" / "projector").iterdir())) == len(NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # no name leads out of it
    assert not caplog.records


def test_any_name_reaches_wandb(caplog: pytest.LogCaptureFixture) -> None:
    import wandb

    run = wandb.init(project="test")
    backend = vizlog.WandB(run)
    for name in NAMES:
        backend.write(0, named(name))
    backend.close()
    run.finish()
    folder = Path(run.dir).parent
    written = read_run(folder)
    for value in [value for row in written.rows for value in row.values() if isinstance(value, dict)]:
        assert "path" not in value or (folder / "files" / value["path"]).is_file()
    keys = [key for key in written.keys if not key.startswith("vizlog/") and key.partition("/")[0] != "embeddings"]
    others = {record.tag.partition("/")[0] for record in every_record() if not isinstance(record, Embedding)}
    assert len(keys) == len(NAMES) * len(others)
    # The client stages tables beside the run, but for those of a process that has done so elsewhere.
    assert {path.name for path in folder.parent.parent.iterdir()} <= {"wandb", "artifacts"}
    assert not [record for record in caplog.records if record.name == "vizlog"]


def test_modules_of_any_name_are_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, memory = nn.Sequential(), vizlog.Memory()
    names = [name for name in NAMES if "." not in name]
    for name in names:
        model.add_module(name, nn.Linear(3, 3))
    batch = torch.randn(12, 3), torch.arange(12) % 3
    fixed = vizlog.FixedBatch(*batch, class_names=["<b>bold</b>", "tab\tand\nline", "x" * 300])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vizlog.watch(model, optimizer, to=[memory, tmp_path], batch=fixed, every=1):
        model(batch[0]).sum().backward()
        optimizer.step()
    tags = {record.tag for _, record in memory.records}
    readable = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    assert {f"activations/{name}" for name in readable} <= tags
    assert {f"weights/{name}.weight" for name in readable} <= tags
    assert {record.tag for _, record in memory.records} <= {tag for _, tag in values(tmp_path)} | {"health/nothing"}
    table = next(tmp_path.rglob("metadata.tsv")).read_text(encoding="utf-8").splitlines()
    assert table[0].split("\t") == ["label", "example"]
    assert {row.split("\t")[0] for row in table[1:]} == {"<b>bold</b>", r"tab\tand\nline", "x" * 300}
    assert all(len(row.split("\t")) == 2 for row in table)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "a\tb\nc", "x" * 3000, "\u202ereversed", "\udcff"])
def test_labels_are_text_in_pictures_and_pages(text: str) -> None:
    """Drawn at a bounded size, and in a notebook's page escaped."""
    embedding = next(record for record in every_record() if isinstance(record, Embedding))
    named_so = dataclasses.replace(embedding, class_names=[text] * 10, caption=text, tag=f"embeddings/{text}")
    pixels = np.zeros((1, 4, 4, 1), np.uint8)
    maps = np.zeros((1, 4, 4), np.float32)
    rows = [[text] * 4]
    records: list[Record] = [
        named_so,
        Images("filters/a", pixels, [text], (0.0, 1.0), caption=text),
        Heatmaps("saliency/a", maps, [text], [text], (0.0, 1.0), row_labels=rows, column_labels=rows),
        vizlog.Curves("health/a", np.arange(3), {text: np.zeros(3)}, text, text, [text] * 3),
        vizlog.Text(f"text/{text}", text, caption=text),
    ]
    for record in records:
        drawn = raster(record)
        assert drawn.shape[0] * drawn.shape[1] < 4_000_000
        page = html(record)
        assert "<img src=x" not in page
        pytest.importorskip("plotly")
        from vizlog.views.figures import figure

        assert "<img src=x" not in figure(record).to_json()


def test_texts_that_cannot_be_encoded_reach_every_destination(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import wandb

    text, rows = "lone \ud800", [["lone \ud800"] * 4]
    embedding = next(record for record in every_record() if isinstance(record, Embedding))
    records: list[Record] = [
        dataclasses.replace(embedding, class_names=[text] * 10, scores={text: 0.5}, tag="embeddings/a"),
        Images("filters/a", np.zeros((1, 4, 4, 1), np.uint8), [text], (0.0, 1.0)),
        Heatmaps("saliency/a", np.zeros((1, 4, 4), np.float32), [text], [text], (0.0, 1.0), row_labels=rows),
        vizlog.Curves("health/a", np.arange(3), {text: np.zeros(3)}, text, text, [text] * 3),
        vizlog.Text("text/a", text),
    ]
    run = wandb.init(project="test")
    for backend in (vizlog.TensorBoard(tmp_path / "run"), vizlog.WandB(run)):
        backend.write(0, records)
        backend.close()
    run.finish()
    tags = {record.tag for record in records}
    assert {tag for _, tag in values(tmp_path / "run")} == tags
    assert tags | {r"embeddings/a/lone \ud800"} <= read_run(Path(run.dir).parent).keys
    assert not [record for record in caplog.records if record.name == "vizlog"]


@pytest.mark.parametrize(
    "wrong",
    [{"counts": np.array([3, -1])}, {"zeros": -1}, {"nans": -1, "count": 3}, {"pos_infs": -2, "neg_infs": 2}],
)
def test_a_histogram_of_negative_counts_is_none(wrong: dict[str, Any]) -> None:
    good = {"edges": np.arange(3.0), "counts": np.array([3, 1]), "count": 4, "zeros": 0}
    good |= {"nans": 0, "pos_infs": 0, "neg_infs": 0, "min": 0.0, "max": 2.0, "mean": 1.0, "std": 0.5, "quantiles": {}}
    assert vizlog.Histogram("a", **good).count == 4
    with pytest.raises(ValueError, match="must be 0 or more, got -"):
        vizlog.Histogram("a", **(good | {"count": int(sum(wrong.get("counts", [4])))} | wrong))


def test_a_text_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="the text of a must be a str, got None"):
        vizlog.Text("a", None)  # type: ignore[arg-type]


def test_a_scalar_of_a_bad_name_is_a_scalar() -> None:
    assert Scalar("loss/\udcff", 1.0).tag == r"loss/\udcff"


def test_a_tag_of_another_kind_of_text_is_plain_text() -> None:
    class Tag(str, enum.Enum):
        LOSS = "loss"

    record = Scalar(Tag.LOSS, 1.0, caption=Tag.LOSS)
    assert [type(record.tag), type(record.caption), f"{record.tag}/{record.caption}"] == [str, str, "loss/loss"]
