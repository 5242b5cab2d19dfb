"""Every loop of the README's table, run as it stands there: trained as without vizlog, and seen alike in all."""

from __future__ import annotations

import logging
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
from processes import Processes
from tensorboard.util import tensor_util
from tensorboard_run import values

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "runs/a")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def assert_seen(run: Path, norms: list[float], *, first: int = 0) -> None:
    """What was logged is what was computed by hand, under the names of the bare model."""
    board = values(run)
    tags = {tag for _, tag in board}
    names = {"0.weight", "0.bias", "3.weight", "3.bias"}
    found = {tag.removeprefix("weights/").removeprefix("net.") for tag in tags if tag.startswith("weights/")}
    assert found == names
    assert {"filters", "feature_maps", "saliency", "embeddings", "activations", "updates"} <= {
        tag.split("/")[0] for tag in tags
    }
    worst = {step: v for (step, tag), v in sorted(board.items(), key=str) if tag == "health/gradient_norm_worst"}
    assert sorted(worst) == [first, 100]
    logged = [float(tensor_util.make_ndarray(worst[step].tensor)) for step in (first, 100)]
    np.testing.assert_allclose(logged, [norms[0], norms[100 - first]], rtol=1e-4)


@pytest.mark.parametrize("loop", [loop for loop in loops.LOOPS if "torchrun" not in loop])
def test_a_loop_of_one_process(loop: str, tmp_path: Path) -> None:
    norms, weights = loops.reference(loops.SGD)
    loops.here(tmp_path / "with")
    watched = loops.run(loop, watched=True)
    loops.here(tmp_path / "without")
    plain = loops.run(loop, watched=False)
    for a, b, c in zip(watched, plain, weights, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert_seen(tmp_path / "with" / "runs" / "a", norms, first=1 if loop == "Hugging Face Trainer" else 0)


@pytest.mark.parametrize("loop", loops.SEVERAL)
def test_a_loop_of_two_ranks(loop: str, ranks: Processes, tmp_path: Path) -> None:
    norms, weights = loops.reference(torch.optim.AdamW if "FSDP2" in loop else loops.SGD)
    for trained in ranks.run(loops.on_each_rank, loop, tmp_path):
        for a, b in zip(trained, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    assert len(list((tmp_path / "runs" / "a").glob("*tfevents*"))) == 1
    assert_seen(tmp_path / "runs" / "a", norms)


def test_every_row_of_the_table_is_tested() -> None:
    assert loops.loops() == list(loops.LOOPS)
