"""Every example is run, shorter than a person would, and what it wrote is read back."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard_run import events
from wandb_file import read_run

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    specification.loader.exec_module(module)
    return module


def steps_of(found: list[Event]) -> dict[str, list[int]]:
    steps: dict[str, list[int]] = {}
    for event in found:
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    return steps


def test_digits_under_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = example("lightning_digits", monkeypatch).main(epochs=4, folder=str(tmp_path))
    found = events(Path(where))
    steps = steps_of(found)
    # 92 steps: numbers every 30, pictures at 30, 60, then 120.
    numbers = ("weights/conv1.weight", "gradients/hidden.bias", "activations/relu@3", "updates/classifier.weight")
    for tag in (*numbers, "health/dead_units_worst"):
        assert steps[tag] == [0, 30, 60, 90], tag
    pictures = ("filters/conv1", "feature_maps/conv2", "saliency/gradient", "saliency/gradcam")
    for tag in (*pictures, "embeddings/classifier.input", "health/dead_units"):
        assert steps[tag] == [0, 30, 60], tag
    assert steps["accuracy"] == [23 * epoch - 1 for epoch in range(1, 5)]
    accuracies = [v.simple_value for event in found for v in event.summary.value if v.tag == "accuracy"]
    assert accuracies[-1] > 0.9


def test_text_in_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = example("plain_loop_text", monkeypatch).main(steps=60, folder=str(tmp_path))
    found = events(Path(where))
    steps = steps_of(found)
    for tag in (
        "weights/blocks.0.qkv.weight",
        "gradients/blocks.1.contract.bias",
        "activations/blocks.0.gelu",
        "updates/head.weight",
        "attention/blocks.0",
        "attention/blocks.1",
        "embeddings/head.input",
        "saliency/gradient/predicted",
    ):
        assert steps[tag] == [0, 50], tag
    assert steps["loss/train"] == list(range(60))
    losses = [value(v) for event in found for v in event.summary.value if v.tag == "loss/train"]
    assert losses[-1] < losses[0] - 1


def value(summary_value: object) -> float:
    from tensorboard.util import tensor_util

    return float(tensor_util.make_ndarray(summary_value.tensor))  # type: ignore[attr-defined]


def test_both_write_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = read_run(Path(example("lightning_digits", monkeypatch).main("wandb", epochs=2, folder=str(tmp_path))))
    text = read_run(Path(example("plain_loop_text", monkeypatch).main("wandb", steps=3, folder=str(tmp_path))))
    of_weights = [row["vizlog/step"] for row in digits.rows if "weights/conv1/weight" in row]
    assert of_weights == [0, 30]
    assert {"saliency/gradient", "embeddings/classifier/input", "filters/conv1"} <= digits.keys
    assert {"attention/blocks/0", "weights/blocks/0/qkv/weight"} <= text.keys
    assert len(text.of("loss/train")) == 3


def test_a_probe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    example("custom_probe", monkeypatch).main(tmp_path / "spectra", epochs=4)
    steps = steps_of(events(tmp_path / "spectra"))
    assert {tag: seen for tag, seen in steps.items() if tag.startswith("spectra/")} == {
        f"spectra/{layer}.weight": [0, 100] for layer in (1, 3, 5)
    }
    assert "tensorboard --logdir" in capsys.readouterr().out


def test_attention_of_a_hugging_face_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example("huggingface_attention", monkeypatch).main(tmp_path / "attention")
    tags = [tag for tag in steps_of(events(tmp_path / "attention")) if tag.startswith("attention/")]
    pictures = [path.stem for path in (tmp_path / "attention").glob("*.png")]
    assert len(tags) == 6
    assert sorted(pictures) == sorted(tag.replace("/", "-") for tag in tags)


def test_every_example_is_tested_and_says_how_it_is_run() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = set(re.findall(r'example\("(\w+)"', tests))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}
