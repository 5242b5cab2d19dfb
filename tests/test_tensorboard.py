"""What reaches a TensorBoard run: event files read back whole, and what a real server shows (both loaders)."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from sample_records import embedding, every_record, histogram_of, images
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util import tensor_util
from tensorboard_run import Server, events, server, until, values
from torch.utils.tensorboard import SummaryWriter

from vizlog.backends.event_file import EventFile, event_files, steps
from vizlog.backends.tensorboard import TensorBoard
from vizlog.records import Embedding, Histogram, Scalar


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What vizlog has told the person so far."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == "vizlog"]


def write(run: Path | SummaryWriter, *steps: int, **options: Any) -> None:
    backend = TensorBoard(run, **options)
    for step in steps:
        backend.write(step, [Scalar("loss", step)])
    backend.close()


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [
        (step, float(tensor_util.make_ndarray(value.tensor)))
        for (step, name), value in values(run).items()
        if name == tag
    ]


def rows(run: Path, tag: str, step: int = 0) -> np.ndarray:
    return tensor_util.make_ndarray(values(run)[step, tag].tensor)


# --- forms


def test_a_histogram_is_its_edges_and_counts(run: Path) -> None:
    record = histogram_of("weights/a", np.random.default_rng(0).normal(size=10_000))
    backend = TensorBoard(run)
    backend.write(0, [record])
    backend.close()
    left, right, counts = rows(run, "weights/a").T
    np.testing.assert_array_equal(counts, record.counts)
    np.testing.assert_array_equal(left, record.edges[:-1].astype(np.float32))
    np.testing.assert_array_equal(right, record.edges[1:].astype(np.float32))


def test_a_histogram_may_have_other_bins_at_each_step(run: Path) -> None:
    backend, records = TensorBoard(run), [histogram_of("a", np.arange(100.0), bins) for bins in (64, 16, 40)]
    for step, record in enumerate(records):
        backend.write(step, [record])
    backend.close()
    for step, record in enumerate(records):
        np.testing.assert_array_equal(rows(run, "a", step)[:, 2], record.counts)


def test_a_picture_comes_with_its_width_and_height(run: Path) -> None:
    backend = TensorBoard(run)
    backend.write(0, [images("filters/a")])
    backend.close()
    width, height, png = values(run)[0, "filters/a"].tensor.string_val
    assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
    assert width != height


@pytest.mark.parametrize(
    "edges",
    [
        1000 + np.linspace(0, 1e-3, 65),
        1000 + np.linspace(0, 1e-9, 65),
        -1e300 + np.linspace(0, 1e290, 3),
        np.linspace(-1e300, 1e300, 65),
        np.array([0.0, 5e-324]),
        np.array([3.4028234663852886e38, 1e300]),
        1 + np.linspace(0, 1e-9, 65),
        np.linspace(-1e-50, 0, 65),
    ],
    ids="few float32 values,one float32 value,one beyond float32,beyond float32,denormal,the largest,one,none".split(
        ","
    ),
)
def test_bins_that_float32_cannot_tell_apart_are_joined_and_nothing_is_lost(run: Path, edges: np.ndarray) -> None:
    counts = np.arange(1, len(edges))
    total = int(counts.sum())
    backend = TensorBoard(run)
    backend.write(0, [Histogram("a", edges, counts, total, 0, 0, 0, 0, edges[0], edges[-1], 0, 0, {})])
    backend.close()
    left, right, kept = rows(run, "a").T
    assert np.isfinite([left, right]).all()
    assert (left < right).all()
    np.testing.assert_array_equal(left[1:], right[:-1])
    assert kept.sum() == total


def test_bins_beyond_float32_are_cut_where_numpy_warns_of_nothing(run: Path) -> None:
    edges = np.array([-1e300, -1.0, 1.0, 1e300])
    backend = TensorBoard(run)
    with np.errstate(over="ignore"):
        backend.write(0, [Histogram("a", edges, np.ones(3), 3, 0, 0, 0, 0, edges[0], edges[-1], 0, 0, {})])
    backend.close()
    assert np.isfinite(rows(run, "a")).all()


@pytest.mark.parametrize("broken", [False, True])
def test_histograms_of_one_write_are_as_those_written_one_by_one(run: Path, *, broken: bool) -> None:
    """Whatever their bins are, however often a tag comes, and beside one that cannot be drawn."""
    generator = np.random.default_rng(0)
    wide = Histogram("wide", np.array([-1e300, 0, 1e300]), np.array([1, 2]), 3, 0, 0, 0, 0, -1e300, 1e300, 0, 0, {})
    narrow = Histogram("narrow", 1000 + np.linspace(0, 1e-3, 65), np.ones(64), 64, 0, 0, 0, 0, 1e3, 1e3, 1e3, 0, {})
    together, alone = TensorBoard(run / "together"), TensorBoard(run / "alone")
    for step in range(3):
        some = [histogram_of(f"a/{k}", generator.normal(size=100), bins) for k, bins in enumerate((64, 64, 8, 65))]
        some += [wide, narrow, histogram_of("a/0", generator.normal(size=10), 32 + step), Scalar("b", step)]
        bad = [Histogram.unchecked(**{**vars(wide), "tag": "bad", "counts": np.array(["many", "few"])})] * broken
        together.write(step, [*bad, *some])
        for record in some:
            alone.write(step, [record])
    together.close()
    alone.close()
    found, expected = (
        [(event.step, value.SerializeToString()) for event in events(run / folder) for value in event.summary.value]
        for folder in ("together", "alone")
    )
    assert found == expected
    assert len(found) == 3 * 8


def test_a_histogram_takes_at_most_1200_bytes_of_the_file(run: Path) -> None:
    backend = TensorBoard(run)
    record = histogram_of("weights/encoder.layers.11.self_attention.output.dense.weight", np.arange(1000.0))
    backend.write(0, [record])
    before = sum(file.stat().st_size for file in event_files(run))
    backend.write(450_000, [record])
    assert sum(file.stat().st_size for file in event_files(run)) - before <= 1200
    backend.close()


def test_how_many_values_are_not_finite_is_a_curve_that_comes_down_again(run: Path) -> None:
    backend = TensorBoard(run)
    for step, bad in enumerate(([], [np.nan, np.inf, -np.inf], [], [np.nan])):
        backend.write(step, [histogram_of("gradients/a", [1.0, 2.0, *bad]), histogram_of("gradients/b", [1.0])])
    backend.close()
    assert scalars(run, "gradients/a/nonfinite") == [(1, 3), (2, 0), (3, 1)]
    assert scalars(run, "gradients/b/nonfinite") == []


def test_a_persons_own_scalar_keeps_its_tag_where_vizlog_would_count_there(
    run: Path, said: Callable[[], list[str]]
) -> None:
    backend = TensorBoard(run)
    for step in range(3):
        backend.write(step, [Scalar("weights/a/nonfinite", 0.5)])
        backend.write(step, [histogram_of("weights/a", [1.0, np.nan])])
    backend.close()
    assert scalars(run, "weights/a/nonfinite") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert sum(value.tag == "weights/a/nonfinite" for event in events(run) for value in event.summary.value) == 3
    (message,) = said()
    assert "logged as weights/a/nonfinite" in message


def test_each_record_is_written_once_numbers_before_pictures(run: Path) -> None:
    backend = TensorBoard(run)
    backend.write(0, [images("filters/a"), Scalar("loss", 1.0), embedding("embeddings/a"), histogram_of("a", [1.0])])
    backend.close()
    written = [value.tag for event in events(run) for value in event.summary.value]
    assert written == ["loss", "a", "filters/a", "embeddings/a"]


def test_a_caption_goes_out_once_and_the_kind_every_time(run: Path) -> None:
    backend = TensorBoard(run)
    backend.write(0, [histogram_of("a", [1.0], caption="first")])
    backend.write(1, [histogram_of("a", [1.0], caption="second")])
    backend.close()
    metadata = [value.metadata for value in values(run).values()]
    assert [entry.summary_description for entry in metadata] == ["first", ""]
    assert [entry.plugin_data.plugin_name for entry in metadata] == ["histograms", "histograms"]


def test_writing_imports_neither_torch_nor_tensorflow() -> None:
    code = """
import sys
from vizlog import Scalar, TensorBoard
backend = TensorBoard("run")
backend.write(0, [Scalar("a", 1)])
backend.close()
print([name for name in ("torch", "tensorflow") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- the file


def test_what_was_written_is_on_disk_before_close(run: Path) -> None:
    backend = TensorBoard(run)
    for step in range(3):
        backend.write(step, [Scalar("loss", step)])
        assert scalars(run, "loss")[-1] == (step, step)
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.write(3, [])


def test_without_google_crc32c_the_file_reads_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    write(run, 0, 1)
    assert scalars(run, "loss") == [(0, 0), (1, 1)]


def test_steps_are_those_that_tensorboard_reads(run: Path) -> None:
    with SummaryWriter(run) as writer:
        for step in (0, 1, 127, 128, 70_000, 2**40, -5):
            writer.add_scalar("loss", 1.0, step)
            writer.add_text("note", "x" * 1000, step)
    (file,) = event_files(run)
    size = file.stat().st_size
    expected = [event.step for event in events(run)]
    assert len(expected) == 15
    assert list(steps(file, size)) == expected
    assert list(steps(file, size - 1000)) == expected[:-1]
    file.write_bytes(file.read_bytes()[: size - 1500])
    assert list(steps(file, size)) == expected[:-2]


@contextmanager
def _full_after(size: int) -> Iterator[None]:
    """A real limit: the operating system cuts the write that passes it short, and refuses the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_what_does_not_fit_and_nothing_else(run: Path, said: Callable[[], list[str]]) -> None:
    record = histogram_of("a", np.arange(100.0), caption="All elements.")
    backend = TensorBoard(run)
    backend.write(0, [record])
    (file,) = event_files(run)
    reader = RawEventFileLoader(str(file))  # as a running TensorBoard: it goes on where it stopped
    assert len(list(reader.Load())) == 2

    with _full_after(file.stat().st_size + 1300):  # one event and a part of the next
        backend.write(1, [record, record, record])
        backend.write(2, [record])
        assert len(list(reader.Load())) == 1
    backend.write(3, [record])
    with _full_after(file.stat().st_size):
        backend.write(4, [record])
    backend.close()

    assert len(list(reader.Load())) == 2, "the event that was cut, made whole, and the one after it"
    assert [event.step for event in events(run)] == [0, 0, 1, 1, 3]
    assert values(run)[3, "a"].metadata.summary_description == "All elements."
    assert len(said()) == 3
    assert "no space at step 1" in said()[0]
    assert "space again at step 3; records since step 1 were lost" in said()[1]
    assert "no space at step 4" in said()[2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_quota_is_a_full_disk_and_a_broken_one_is_not(
    number: int, run: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    backend = TensorBoard(run)
    monkeypatch.setattr(EventFile, "append", fails)
    with pytest.raises(OSError, match=os.strerror(number)) if number == errno.EIO else nullcontext():
        backend.write(0, [Scalar("loss", 1)])
    backend.close()
    assert len(said()) == (number != errno.EIO)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_at_the_end_is_said_and_the_file_closed(
    number: int, run: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    backend = TensorBoard(run, hparams={"lr": 0.1})
    backend.write(0, [Scalar("loss", 1)])
    monkeypatch.setattr(EventFile, "append", fails)
    closed, close = [], EventFile.close
    monkeypatch.setattr(EventFile, "close", lambda file: closed.append(close(file)))
    with pytest.raises(OSError, match=os.strerror(number)) if number == errno.EIO else nullcontext():
        backend.close()
    backend.close()
    assert closed == [None]
    assert ["no space at step 0" in line for line in said()] == [True] * (number != errno.EIO)


@pytest.mark.parametrize("deleted", ["file", "run", "all runs"])
@pytest.mark.parametrize("before", [(), (0,)], ids=["before the first step", "after a step"])
def test_what_is_deleted_is_made_anew(
    run: Path, before: tuple[int, ...], deleted: str, said: Callable[[], list[str]]
) -> None:
    backend = TensorBoard(run)
    for step in before:
        backend.write(step, [Scalar("loss", step, caption="of a batch")])
    if deleted == "file":
        for file in event_files(run):
            file.unlink()
    else:
        shutil.rmtree(run if deleted == "run" else run.parent)
    backend.write(1, [Scalar("loss", 1, caption="of a batch")])
    backend.close()
    assert scalars(run, "loss") == [(1, 1)]
    assert values(run)[1, "loss"].metadata.summary_description == "of a batch"
    assert ["was deleted" in line for line in said()] == [True] * len(before)


def test_an_earlier_run_that_is_cleared_away_before_the_first_step_leaves_its_place(
    run: Path, said: Callable[[], list[str]]
) -> None:
    write(run, 0, 100)
    backend = TensorBoard(run)
    for file in event_files(run):
        file.unlink()
    backend.write(1, [Scalar("loss", 1)])
    backend.close()
    assert scalars(run, "loss") == [(1, 1)]
    assert said() == []


@pytest.mark.parametrize("options", [{}, {"hparams": {"lr": 0.1}}], ids=["plain", "hyperparameters"])
def test_nothing_written_leaves_no_file(run: Path, options: dict[str, Any]) -> None:
    backend = TensorBoard(run, **options)
    backend.summarise(0, {})
    backend.close()
    assert event_files(run) == []


def test_hyperparameters_are_written_again_where_the_run_was_deleted(run: Path) -> None:
    backend = TensorBoard(run, hparams={"lr": 0.1})
    backend.write(0, [Scalar("loss", 0)])
    shutil.rmtree(run)
    backend.write(1, [Scalar("loss", 1)])
    backend.close()
    assert "_hparams_/session_start_info" in {tag for _, tag in values(run)}


def test_other_failures_are_raised(run: Path) -> None:
    backend = TensorBoard(run)
    run.rmdir()
    run.write_text("in the way")
    with pytest.raises(FileExistsError):
        backend.write(0, [Scalar("loss", 1)])


# --- which directory


def test_a_path_that_holds_later_steps_gets_a_number_and_one_line_says_so(
    run: Path, said: Callable[[], list[str]]
) -> None:
    write(run, 0, 100)
    write(run, 0, 50)
    write(run, 0, 50)
    assert [scalars(run.with_name(name), "loss")[-1][0] for name in ("a", "a-2", "a-3")] == [100, 50, 50]
    assert len(said()) == 2
    assert "holds steps from 0 on" in said()[0]
    assert f"writing to {run}-2 " in said()[0]
    assert "resume=True" in said()[0]


def test_a_path_goes_on_where_the_first_new_step_is_the_latest(run: Path, said: Callable[[], list[str]]) -> None:
    write(run, 0, 100)
    write(run, 100, 200)
    assert scalars(run, "loss") == [(0, 0), (100, 100), (200, 200)]
    assert said() == []


def test_a_run_that_starts_at_0_joins_no_other(run: Path, said: Callable[[], list[str]]) -> None:
    with SummaryWriter(run) as theirs:
        theirs.add_scalar("accuracy", 0.5, 0)
    for name in ("a", "a-2", "a-3"):
        write(run, 0)
        assert scalars(run.with_name(name), "loss") == [(0, 0)]
    assert ["holds steps from 0 on" in line for line in said()] == [True, True]


def test_a_name_that_a_file_has_is_passed_over(run: Path) -> None:
    write(run, 0, 100)
    run.with_name("a-2").write_text("in the way")
    write(run, 0, 50)
    assert scalars(run.with_name("a-3"), "loss") == [(0, 0), (50, 50)]


def test_resume_goes_on_in_the_same_directory(run: Path, said: Callable[[], list[str]]) -> None:
    write(run, 0, 100)
    write(run, 50, resume=True)
    assert [step for step, _ in scalars(run, "loss")] == [0, 100, 50]
    assert said() == []


def test_what_others_log_beside_us_is_no_earlier_run(run: Path) -> None:
    run.mkdir(parents=True)
    with SummaryWriter(run) as beside:
        backend = TensorBoard(run)
        beside.add_scalar("accuracy", 1.0, 5)
        beside.flush()
        backend.write(0, [Scalar("loss", 1)])
        backend.close()
    assert (0, "loss") in values(run)


def test_the_current_directory_can_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        write(Path(), 0, 1)
    assert scalars(tmp_path / "here-2", "loss") == [(0, 0), (1, 1)]


def test_a_path_may_be_anything_that_stands_for_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Place:
        def __fspath__(self) -> str:
            return "~/b"

    monkeypatch.setenv("HOME", str(run))
    backend = TensorBoard(Place())
    backend.write(0, [Scalar("loss", 1)])
    backend.close()
    assert scalars(run / "b", "loss") == [(0, 1)]


# --- what cannot be


def test_a_path_that_cannot_be_a_directory_is_refused_at_construction(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"cannot write to .*file' \(it is a file\): give a directory"):
        TensorBoard(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"cannot write to .*\(Not a directory\)"):
        TensorBoard(tmp_path / "file" / "a")
    for address in ("s3://bucket/a", Path("s3://bucket/a"), "GS://bucket/a"):
        with pytest.raises(ValueError, match=f"local directories, got '{address}': give it a SummaryWriter"):
            TensorBoard(address)


def test_a_directory_that_takes_no_files_is_refused_at_construction() -> None:
    with pytest.raises(OSError, match="cannot write to '/proc/self'") as raised:
        TensorBoard("/proc/self")
    assert raised.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)


def test_without_tensorboard_the_error_says_what_to_type(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboard."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs tensorboard: pip install 'vizlog\[tensorboard\]'"):
        TensorBoard(run)


def test_what_is_neither_path_nor_writer_is_refused(run: Path) -> None:
    from lightning.fabric.loggers.logger import _DummyExperiment  # what ranks that do not log get

    for odd in (3, _DummyExperiment()):
        with pytest.raises(TypeError, match="takes a path or a SummaryWriter"):
            TensorBoard(odd)
    with SummaryWriter(run) as writer, pytest.raises(ValueError, match="resume=True goes with a path"):
        TensorBoard(writer, resume=True)
    with pytest.raises(ValueError, match="this SummaryWriter is closed"):
        TensorBoard(writer)


# --- the user's writer


def _torch_writer(run: Path) -> Any:
    return SummaryWriter(run)


def _lightning_writer(run: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.parent, name="", version=run.name).experiment


def _tensorboardx_writer(run: Path) -> Any:
    return pytest.importorskip("tensorboardX").SummaryWriter(str(run))


@pytest.fixture(params=[_torch_writer, _lightning_writer, _tensorboardx_writer])
def writer(request: pytest.FixtureRequest, run: Path) -> Iterator[Any]:
    writer = request.param(run)
    yield writer
    writer.close()


def test_a_writer_gets_the_records_into_its_own_file_and_stays_open(writer: Any, run: Path) -> None:
    writer.add_scalar("accuracy", 0.5, 0)
    backend = TensorBoard(writer)
    backend.write(0, every_record())
    tags = {(0, record.tag) for record in every_record()}
    until(lambda: tags <= set(values(run)))  # it is flushed without being asked
    backend.close()
    writer.add_scalar("accuracy", 0.6, 1)
    writer.close()
    assert len(event_files(run)) == 1
    assert set(values(run)) == {(0, "accuracy"), (1, "accuracy"), *((0, record.tag) for record in every_record())}
    assert (run / "projector_config.pbtxt").exists()


def test_once_a_writer_is_closed_the_rest_goes_to_a_file_beside_it(writer: Any, run: Path) -> None:
    writer.add_scalar("accuracy", 0.5, 100)
    backend = TensorBoard(writer)
    backend.write(0, [Scalar("loss", 0)])
    writer.close()
    for step in (1, 2):
        backend.write(step, [Scalar("loss", step)])
    assert writer.all_writers is None, "it was not opened again"
    assert [file.suffix for file in event_files(run)].count(".vizlog") == 1
    assert sorted(scalars(run, "loss")) == [(0, 0), (1, 1), (2, 2)]

    shutil.rmtree(run)
    backend.write(3, [Scalar("loss", 3)])
    backend.close()
    assert scalars(run, "loss") == [(3, 3)], "made anew where it was deleted"


def test_a_writer_that_makes_no_folder_is_none_whose_folder_was_deleted(
    run: Path, said: Callable[[], list[str]]
) -> None:
    """As tensorboardX's with write_to_disk=False, on ranks that are to write nothing."""
    taken: list[int] = []

    class Nowhere:
        all_writers: ClassVar[dict[str, Any]] = {}

        def _get_file_writer(self) -> Nowhere:
            return self

        def get_logdir(self) -> str:
            return str(run)

        def add_summary(self, _summary: Any, step: int) -> None:
            taken.append(step)

        def flush(self) -> None: ...

    backend = TensorBoard(Nowhere())
    for step in (1, 2):
        backend.write(step, [Scalar("loss", step)])
    backend.close()
    assert taken == [1, 2]
    assert not run.exists()
    assert said() == []


def test_where_the_folder_of_a_writer_is_deleted_a_file_of_ours_goes_on_there(
    writer: Any, run: Path, said: Callable[[], list[str]]
) -> None:
    backend = TensorBoard(writer)
    backend.write(0, [Scalar("loss", 0, caption="of a batch")])
    shutil.rmtree(run)
    for step in (1, 2):
        backend.write(step, [Scalar("loss", step, caption="of a batch")])
    backend.close()
    assert scalars(run, "loss") == [(1, 1), (2, 2)]
    assert values(run)[1, "loss"].metadata.summary_description == "of a batch"
    (message,) = said()
    assert f"{run} was deleted" in message


def test_a_writer_that_has_found_its_folder_deleted_is_gone_on_with_beside_it(
    run: Path, said: Callable[[], list[str]]
) -> None:
    writer = SummaryWriter(run)
    backend = TensorBoard(writer)

    def fails(*_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    writer.file_writer.flush = fails  # as it does once its thread has met that, though the folder was made again since
    backend.write(0, [Scalar("a", 0), Scalar("b", 0)])
    backend.close()
    (own,) = [file for file in event_files(run) if file.suffix == ".vizlog"]
    written = [Event.FromString(raw) for raw in RawEventFileLoader(str(own)).Load()]
    assert [value.tag for event in written for value in event.summary.value] == ["a", "b"]
    (message,) = said()
    assert "was deleted" in message
    writer.file_writer.event_writer.close()  # its thread would outlive the folder


def test_a_writer_that_is_closed_while_we_write_loses_nothing(run: Path) -> None:
    writer = SummaryWriter(run)
    backend = TensorBoard(writer)
    backend.write(0, [Scalar("a", 0)])
    theirs, added = writer.file_writer, []
    add = theirs.add_summary

    def closes(summary: Any, step: int) -> None:
        if added:
            writer.close()
            raise OSError("write to a closed file")
        added.append(step)
        add(summary, step)

    theirs.add_summary = closes
    backend.write(1, [Scalar("a", 1), Scalar("b", 1)])
    backend.close()
    assert sorted(scalars(run, "a")) == [(0, 0), (1, 1)]
    assert scalars(run, "b") == [(1, 1)]
    assert sum(len(event.summary.value) for event in events(run)) == 3


def test_a_writer_whose_disk_fails_says_so_and_a_file_beside_it_goes_on(run: Path) -> None:
    writer = SummaryWriter(run)
    backend = TensorBoard(writer)

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer.file_writer.add_summary = fails
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        backend.write(0, [Scalar("a", 0)])
    backend.write(1, [Scalar("a", 1)])
    backend.close()
    writer.close()
    assert scalars(run, "a") == [(1, 1)]


class _InTheCloud:
    """A writer whose files lie where the Projector's cannot."""

    def __init__(self) -> None:
        self.all_writers: dict[str, Any] | None = {}
        self.written: list[Any] = []
        self.flushed = 0

    def _get_file_writer(self) -> Any:
        return self

    def get_logdir(self) -> str:
        return "s3://bucket/run"

    def add_summary(self, summary: Any, step: int) -> None:
        self.written.append(summary)

    def flush(self) -> None:
        self.flushed = len(self.written)


def test_a_writer_to_a_bucket_gets_all_but_the_projectors_files(said: Callable[[], list[str]]) -> None:
    writer = _InTheCloud()
    backend = TensorBoard(writer)
    backend.write(0, [Scalar("a", 0), embedding("embeddings/2")])
    assert {value.tag for summary in writer.written for value in summary.value} >= {"a"}
    assert writer.flushed == len(writer.written)
    assert said() == []
    writer.all_writers = None
    with pytest.raises(RuntimeError, match="close vizlog first"):
        backend.write(1, [Scalar("a", 1)])


# --- the Projector


def test_an_embedding_that_fails_is_named_and_the_others_go_on(
    run: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no such vectors")

    monkeypatch.setattr("vizlog.backends.tensorboard.project", fails)
    backend = TensorBoard(run)
    for step in range(2):
        backend.write(step, [embedding("embeddings/2"), Scalar("a", step)])
    backend.close()
    assert scalars(run, "a") == [(0, 0), (1, 1)]
    assert len([line for line in said() if "no such vectors" in line]) == 1


def test_files_of_the_projector_that_find_no_room_are_a_full_disk(
    run: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backend = TensorBoard(run)
    with monkeypatch.context() as patched:
        patched.setattr("vizlog.backends.tensorboard.project", fails)
        backend.write(0, [embedding("embeddings/2")])
    backend.write(1, [embedding("embeddings/2")])
    backend.close()
    assert ["no space at step 0" in said()[0], "space again at step 1" in said()[1]] == [True, True]


def config(run: Path) -> ProjectorConfig:
    return text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())


def project(run: Path, *records: Embedding, steps: tuple[int, ...] = (0,)) -> list[Any]:
    backend = TensorBoard(run, resume=True)
    for step in steps:
        backend.write(step, records)
    backend.close()
    return list(config(run).embeddings)


def with_vectors(vectors: np.ndarray, **fields: Any) -> Embedding:
    number = len(vectors)
    plain: dict[str, Any] = {"labels": np.full(number, -1), "class_names": [], "ids": np.arange(number)}
    return Embedding("embeddings/fc", vectors, {}, {}, **(plain | fields))


def test_the_projector_gets_a_quantity_as_numbers(run: Path) -> None:
    (entry,) = project(run, with_vectors(np.eye(3), labels=np.array([1 / 3, np.nan, -2e9]), class_names=["target"]))
    lines = (run / entry.metadata_path).read_text().splitlines()
    assert lines == ["label\texample", "0.333333\t0", "\t1", "-2e+09\t2"]  # or the column is one of words


def test_the_projector_gets_vectors_labels_and_thumbnails(run: Path) -> None:
    record = embedding("embeddings/fc", number=60)
    (entry,) = project(run, record)
    assert entry.tensor_name == "embeddings/fc latest, step 0"
    vectors = np.fromfile(run / entry.tensor_path, "<f4").reshape(tuple(entry.tensor_shape))
    np.testing.assert_array_equal(vectors, record.vectors.astype(np.float32))
    lines = (run / entry.metadata_path).read_text().splitlines()
    assert lines[0] == "label\texample"
    assert lines[1 + 7] == f"digit {record.labels[7]}\t7"
    assert len(lines) == 61
    assert record.thumbnails is not None
    width, height = entry.sprite.single_image_dim
    with Image.open(run / entry.sprite.image_path) as picture:
        sprite = np.array(picture)
    row, column = divmod(13, sprite.shape[1] // width)
    tile = sprite[row * height : (row + 1) * height, column * width : (column + 1) * width]
    np.testing.assert_array_equal(tile, np.repeat(record.thumbnails[13], 3, axis=-1))


def test_the_projector_keeps_the_first_and_the_latest_steps_and_their_files_alone(run: Path) -> None:
    entries = project(run, embedding("embeddings/fc"), embedding("embeddings/fc-2"), steps=(0, 5, 10, 15))
    entries = project(run, embedding("embeddings/fc"), steps=(20, 25))
    assert {entry.tensor_name for entry in entries} == {
        "embeddings/fc latest, step 25",
        *(f"embeddings/fc step {step}" for step in (0, 15, 20)),
        "embeddings/fc-2 latest, step 15",
        *(f"embeddings/fc-2 step {step}" for step in (0, 5, 10)),
    }
    assert {run / entry.tensor_path for entry in entries} == set((run / "projector").glob("*/tensors.bytes"))


def test_a_list_of_the_projector_that_cannot_be_replaced_is_as_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = project(run, embedding("embeddings/fc"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fails)
        project(run, embedding("embeddings/fc"), steps=(5,))
    assert list(config(run).embeddings) == before
    assert [path.name for path in run.glob("projector_config*")] == ["projector_config.pbtxt"]


@pytest.mark.parametrize("length", [190, 240, 255, 1000])
def test_a_tag_may_be_longer_than_a_files_name(length: int, run: Path) -> None:
    entries = project(run, embedding("e" * length), embedding("e" * length + "f"), steps=(1_000_000, 2_000_000))
    assert len({entry.tensor_path for entry in entries if (run / entry.tensor_path).is_file()}) == 4


def test_several_that_write_to_one_projector_lose_no_embedding(run: Path) -> None:
    run.mkdir(parents=True)
    script = (
        "import sys; from pathlib import Path; from sample_records import embedding\n"
        "from vizlog.backends.projector import project\n"
        "for number in range(20):\n"
        "    project(Path(sys.argv[1]), 0, embedding(f'embeddings/{sys.argv[2]}-{number}'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(run), str(writer)], env=environment) for writer in range(2)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert len(config(run).embeddings) == 40
    assert {path.name for path in run.iterdir()} == {"projector", "projector_config.pbtxt"}


def test_where_steps_go_back_the_projector_drops_those_beyond(run: Path) -> None:
    def kept(*steps: int) -> list[int]:
        entries = project(run, embedding("embeddings/fc"), steps=steps)
        assert entries[0].tensor_name == f"embeddings/fc latest, step {steps[-1]}"
        assert {run / entry.tensor_path for entry in entries} == set((run / "projector").glob("*/tensors.bytes"))
        return [int(entry.tensor_name.rpartition(" ")[2]) for entry in entries]

    assert kept(0, 700, 800, 900) == [900, 800, 700, 0]
    assert kept(500) == [500, 0, 900, 800]
    assert kept(500) == [500, 0, 900, 800]
    assert kept(600) == [600, 500, 0, 900]
    assert kept(700) == [700, 600, 500, 0]
    assert kept(0) == [0, 700, 600, 500]
    assert kept(100, 200, 300, 400) == [400, 300, 200, 0]


def test_embeddings_of_others_stay_listed(run: Path) -> None:
    import torch

    with SummaryWriter(run) as theirs:
        theirs.add_embedding(torch.eye(4), tag="mine")
    before = config(run).embeddings[0]
    entries = project(run, embedding("embeddings/fc"), steps=(0, 1, 2, 3, 4))
    assert entries[0] == before
    assert (run / before.tensor_path).exists()
    assert len(entries) == 5


def test_a_config_that_cannot_be_read_is_left_alone(run: Path, said: Callable[[], list[str]]) -> None:
    run.mkdir(parents=True)
    (run / "projector_config.pbtxt").write_text("not a {config")
    backend = TensorBoard(run)
    backend.write(0, [embedding("embeddings/fc")])
    backend.close()
    assert (run / "projector_config.pbtxt").read_text() == "not a {config"
    assert "move it away" in said()[0]
    assert (0, "embeddings/fc") in values(run)


NEWLINE = np.frombuffer(b"\0\0\n?", "<f4")[0]  # a first line that is text, whatever follows


@pytest.mark.parametrize("values", [(0, 0, 0), (2, 2, 2), (NEWLINE, 1 / 3, -5)], ids=["0", "2", "a line"])
def test_vectors_whose_bytes_are_text_are_written_as_text(run: Path, values: tuple[float, ...]) -> None:
    vectors = np.array([values] * 5)
    (entry,) = project(run, with_vectors(vectors))
    assert entry.tensor_path.endswith(".tsv")
    np.testing.assert_array_equal(np.loadtxt(run / entry.tensor_path, dtype=np.float32), vectors.astype(np.float32))


def test_labels_cannot_break_the_table(run: Path) -> None:
    labels = ["plain", "a\tb", "c\nd\r\u2028e", " é", ""]
    (entry,) = project(run, with_vectors(np.eye(7), labels=np.array([0, 1, 2, 3, 4, -1, 9]), class_names=labels))
    table = [line.split("\t") for line in (run / entry.metadata_path).read_text().split("\n")]
    shown = ["plain", r"a\tb", r"c\nd\r\u2028e", " é", "", "unlabelled", "9"]
    assert table == [["label", "example"], *([label, str(row)] for row, label in enumerate(shown)), [""]]


def test_vectors_that_are_not_finite_are_counted_in_the_table(run: Path) -> None:
    vectors = np.array([[0.1, 0.2], [np.nan, 1e300], [0.3, 0.4]])
    (entry,) = project(run, with_vectors(vectors))
    table = [line.split("\t") for line in (run / entry.metadata_path).read_text().splitlines()]
    assert [row[-1] for row in table] == ["non-finite values, shown as 0", "0", "2", "0"]
    shown = np.fromfile(run / entry.tensor_path, np.float32).reshape(tuple(entry.tensor_shape))
    np.testing.assert_array_equal(shown, np.float32([[0.1, 0.2, 0], [0, 0, 0], [0.3, 0.4, 0]]))


def test_thumbnails_that_are_not_square_stand_row_by_row(run: Path) -> None:
    thumbnails = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    (entry,) = project(run, with_vectors(np.eye(5, 3), thumbnails=thumbnails))
    assert list(entry.sprite.single_image_dim) == [3, 2]  # width and height
    with Image.open(run / entry.sprite.image_path) as picture:
        sprite = np.array(picture)
    assert sprite.shape == (2 * 2, 3 * 3, 3)
    for number, expected in enumerate(thumbnails):
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(sprite[2 * row : 2 * row + 2, 3 * column : 3 * column + 3], expected)


@pytest.mark.parametrize("size", [(1000, 900), (300, 1000)], ids=["high", "wide"])
def test_a_sprite_stays_within_what_browsers_draw(run: Path, size: tuple[int, int]) -> None:
    number = 90
    record = with_vectors(np.eye(number, 3), thumbnails=np.zeros((number, *size, 3), np.uint8))
    (entry,) = project(run, record)
    width, height = entry.sprite.single_image_dim
    with Image.open(run / entry.sprite.image_path) as sprite:
        columns, rows = sprite.size[0] // width, sprite.size[1] // height
        assert max(sprite.size) <= 8192
    assert columns * rows >= number


# --- what TensorBoard's server makes of it


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "runs"
    backend = TensorBoard(folder / "a")
    for step in (0, 10):
        backend.write(step, [*every_record(step), histogram_of("gradients/bad", [1.0, 2.0, np.nan])])
    backend.close()
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def served(request: pytest.FixtureRequest, logdir: Path) -> Iterator[Server]:
    with server(logdir, fast=request.param) as running:
        until(lambda: running.json("text/tags").get("a"))
        yield running


def test_the_server_lists_every_record_under_its_tab(served: Server) -> None:
    tags = {plugin: set(served.json(f"{plugin}/tags")["a"]) for plugin in ("scalars", "histograms", "images", "text")}
    kinds = {"Scalar": "scalars", "Histogram": "histograms", "Text": "text"}
    expected: dict[str, set[str]] = {"scalars": {"gradients/bad/nonfinite"}, "histograms": {"gradients/bad"}}
    for record in every_record():
        expected.setdefault(kinds.get(type(record).__name__, "images"), set()).add(record.tag)
    assert tags == expected


def test_the_server_shows_scalars_and_text(served: Server) -> None:
    points = served.json("scalars/scalars", run="a", tag="health/zeros_worst")
    assert [(step, value) for _, step, value in points] == [(0, 0.5), (10, 10.5)]
    texts = served.json("text/text", run="a", tag="text/note")
    assert ["<strong>step 0</strong>" in texts[0]["text"], texts[1]["step"]] == [True, 10]


def test_the_server_shows_all_of_a_histogram(served: Server) -> None:
    (_, first, shown), (_, second, _) = served.json("histograms/histograms", run="a", tag="weights/conv1")
    assert (first, second) == (0, 10)
    left, right, counts = np.array(shown).T
    assert counts.sum() == pytest.approx(5000)
    assert (left < right).all()


def test_the_server_shows_pictures_as_they_were_drawn(served: Server) -> None:
    from vizlog.views.raster import raster

    shown = served.json("images/images", run="a", tag="filters/conv1", sample=0)
    assert [picture["step"] for picture in shown] == [0, 10]
    png = served.data("images/individualImage", **dict(urllib.parse.parse_qsl(shown[0]["query"])))
    with Image.open(io.BytesIO(png)) as picture:
        np.testing.assert_array_equal(np.array(picture), raster(images()))


def test_the_server_shows_the_projector(served: Server) -> None:
    assert "a" in until(lambda: served.json("projector/runs"))
    names = [entry["tensorName"] for entry in served.json("projector/info", run="a")["embeddings"]]
    assert names == ["embeddings/fc latest, step 10", "embeddings/fc step 0"]
    raw = served.data("projector/tensor", run="a", name=names[1])
    record = embedding("embeddings/fc", 0)
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(60, 64), record.vectors.astype(np.float32))
    assert served.data("projector/metadata", run="a", name=names[0]).count(b"\n") == 61


def test_a_disk_that_is_full_for_a_while_moves_the_run_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        backend, fails = TensorBoard(tmp_path / "run"), [3 * number]

        def opened(path: Path, fails: list[int] = fails) -> EventFile:
            if fails[0]:
                fails[0] -= 1
                raise OSError(errno.ENOSPC, "no room")
            return EventFile(path)

        monkeypatch.setattr("vizlog.backends.tensorboard.EventFile", opened)
        for step in range(6):
            backend.write(step, [Scalar("x", 1.0)])
        backend.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]


@pytest.mark.parametrize("now", [5.0, 1.8e9, 9e9], ids=["1970", "2027", "2255"])
@pytest.mark.parametrize("older", ["", "9000000000.5.host.1.0", "9000000000.host", "of.another"])
def test_event_files_sort_in_the_order_made(run: Path, older: str, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run.mkdir(parents=True)
    made = [run / f"events.out.tfevents.{older}"] if older else []
    for file in made:
        file.write_bytes(b"")
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(3):
        new = EventFile(run)
        new.close()
        made.append(new.path)
    if not older:
        assert f".{now:017.6f}." in made[0].name
    # A name without a time stands behind every time there is.
    assert event_files(run) == (made if older != "of.another" else [*made[1:], made[0]])


def test_event_files_of_any_name_are_found_and_folders_are_not(run: Path) -> None:
    (run / "tfevents").mkdir(parents=True)
    (run / "kept.tfevents.1").write_bytes(b"")
    assert [file.name for file in event_files(run)] == ["kept.tfevents.1"]


@pytest.mark.parametrize("extra", range(1, 16))
def test_a_file_that_is_cut_anywhere_gives_the_steps_before(run: Path, extra: int) -> None:
    write(run, 3, 2**62)
    (file,) = event_files(run)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:extra])
    assert list(steps(file, len(whole) + extra)) == [0, 3, 2**62]


def test_an_event_without_a_time_has_its_step(run: Path) -> None:
    run.mkdir(parents=True)
    new = EventFile(run)
    new.append([Event(step=7), Event(step=-1), Event()])
    new.append(Event(wall_time=k) for k in range(1, 2000))  # the checksums behind some of them look like a step
    new.close()
    assert list(steps(new.path, new.path.stat().st_size)) == [0, 7, -1, 0] + 1999 * [0]


def test_what_the_system_takes_in_pieces_is_written_whole(run: Path) -> None:
    run.mkdir(parents=True)
    new = EventFile(run)
    file = new._file

    class Pipe:
        def write(self, data: memoryview) -> int:
            return file.write(data[:7])

    new._file = Pipe()  # type: ignore[assignment]
    new.append([Event(step=step) for step in range(5)])
    file.close()
    assert [event.step for event in events(run)] == [0, 0, 1, 2, 3, 4]


def test_a_file_that_another_process_makes_at_the_same_time_is_not_written_over(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.mkdir(parents=True)
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    first = EventFile(run)
    first.close()
    assert first.path.name.endswith(f".{socket.gethostname()}.{os.getpid()}.vizlog")
    monkeypatch.setattr("vizlog.backends.event_file.event_files", lambda _: [])  # it has come since we looked
    with pytest.raises(FileExistsError):
        EventFile(run)


def test_a_projector_that_cannot_be_written_costs_no_number(run: Path, said: Callable[[], list[str]]) -> None:
    run.mkdir(parents=True)
    (run / "projector").write_text("in the way")
    backend = TensorBoard(run)
    for step in range(2):
        backend.write(step, [Scalar("a", 1.0), embedding("embeddings/fc")])
    backend.close()
    assert scalars(run, "a") == [(0, 1.0), (1, 1.0)]
    assert sum("could not be drawn and is left out" in message for message in said()) == 1
