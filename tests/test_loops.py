"""Compiled loops: once they are there they are used, and nothing waits until they are."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from vizlog.compute import histogram, loops

pytest.importorskip("numba")

TWICE = """
from vizlog.compute.compiled import compiled

@compiled("int64(int64)")
def twice(number):
    return 2 * number
"""

RUN = """
import logging, sys, threading
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from vizlog.compute import loops
loops._MODULES = ("twice",)
loops.prepare(waits=WAITS)
print(loops.are_compiled())
for thread in threading.enumerate():
    if thread.name == "vizlog-compiles":
        thread.join()
print(loops.are_compiled())
if twice := sys.modules.get("twice"):
    print(twice.twice(4), sum(twice.twice.stats.cache_hits.values()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a module that is small enough to be compiled in a second."""
    Path(tmp_path, "twice.py").write_text(TWICE, encoding="utf-8")
    return tmp_path


def run(folder: Path, code: str = RUN, *, waits: bool = False, **environment: str) -> list[str]:
    paths = os.pathsep.join([str(folder), str(Path(loops.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code.replace("WAITS", str(waits))],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def test_another_process_compiles_them_and_keeps_them_for_the_next(folder: Path) -> None:
    said, at_first, then, result = run(folder)
    assert said == "vizlog compiles its loops beside the training, which takes half a minute, once"
    assert (at_first, then) == ("False", "True")
    assert result == "8 1"  # this one has loaded what the other has compiled
    assert run(folder) == ["True", "True", "8 1"]


def test_who_waits_compiles_them_himself(folder: Path) -> None:
    said, at_first, then, result = run(folder, waits=True)
    assert said == "vizlog compiles its loops, which takes half a minute, once"
    assert (at_first, then, result) == ("True", "True", "8 0")
    assert run(folder, waits=True) == ["True", "True", "8 1"]


@pytest.mark.parametrize("waits", [False, True])
def test_without_a_folder_to_keep_them_in_this_process_compiles_them_at_each_start(
    folder: Path, *, waits: bool
) -> None:
    nowhere = "from numba.core import caching\ncaching.FunctionCache._impl_class._locator_classes.clear()\n"
    for _ in range(2):
        said, at_first, then, result = run(folder, nowhere + RUN, waits=waits)
        assert "as at each start, for numba has no folder" in said
        assert (at_first, then, result) == (str(waits), "True", "8 0")


@pytest.mark.parametrize("broken", ["raise SystemError('no such processor')", "import os; os._exit(3)"])
def test_where_they_cannot_be_compiled_numpy_counts_and_it_is_said(folder: Path, broken: str) -> None:
    in_the_other = f"\nimport os\nif os.environ.get('OMP_NUM_THREADS') == '1':\n    {broken}\n"
    Path(folder, "twice.py").write_text(TWICE + in_the_other, encoding="utf-8")
    _, at_first, said, then = run(folder, OMP_NUM_THREADS="2")
    assert "no compiled loops and counts with numpy" in said
    assert (at_first, then) == ("False", "False")


@pytest.mark.parametrize("waits", [False, True])
def test_a_numba_that_does_not_work_is_said(folder: Path, *, waits: bool) -> None:
    Path(folder, "twice.py").write_text("raise ImportError('numba needs another numpy')", encoding="utf-8")
    said, at_first, then = run(folder, waits=waits)
    assert said.endswith("takes longer: ImportError: numba needs another numpy")
    assert (at_first, then) == ("False", "False")


def test_a_process_that_ends_meanwhile_says_nothing_more(folder: Path) -> None:
    Path(folder, "twice.py").write_text(TWICE + "\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    said, at_first = run(folder, RUN.partition("for thread")[0])
    assert "beside the training" in said
    assert at_first == "False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_without_the_thread_that_compiles_begins_anew(folder: Path) -> None:
    fork = """
if not os.fork():
    print(loops.are_compiled(), flush=True)
    os._exit(0)
os.wait()
"""
    lines = run(folder, "import os\n" + RUN.replace("for thread", fork + "for thread", 1))
    assert sum("vizlog compiles its loops" in line for line in lines) == 2
    assert lines[-2:] == ["True", "8 1"]


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("cuda", False)])
def test_a_training_on_another_device_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, device: str, *, waits: bool
) -> None:
    prepare = Mock()
    monkeypatch.setattr(loops, "prepare", prepare)
    with suppress(Exception):  # what else is prepared for the device needs one
        histogram.prepare(torch.device(device))
    prepare.assert_called_once_with(waits=waits)


def test_numpy_counts_until_there_are_compiled_loops_and_then_no_more() -> None:
    """The same values, drawn alike, whichever way they were counted."""
    code = """
import numpy as np, torch
from vizlog.compute import histogram, loops
loops._prepared = True
tensors = [torch.randn(30_000), torch.arange(100.0)]
before = histogram.count_each(tensors)
loops.load()
after = histogram.count_each(tensors)
print(*(type(one).__name__ for one in [*before, *after]))
pairs = [histogram.histograms([("a", one, "") for one in found]) for found in (before, after, [before[0], after[1]])]
for record in zip(*pairs):
    print(*(np.array_equal(one.edges, record[0].edges) and np.array_equal(one.counts, record[0].counts)
            and one.quantiles == record[0].quantiles for one in record))
"""
    assert run(Path(), code) == ["BitCounts BitCounts Kept Kept", "True True True", "True True True"]
