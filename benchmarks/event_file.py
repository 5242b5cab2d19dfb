"""Event files: how large histograms are in them, how fast TensorBoard reads them, and how fast pictures go in."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorboard_data_server  # type: ignore[import-untyped]
import torch
from tensorboard.summary.writer import record_writer
from torch.utils.tensorboard import SummaryWriter

import vizlog
from benchmarks.histogram import counted
from benchmarks.measure import in_turns
from benchmarks.models import resnet
from benchmarks.results import Found, Row, at_least, at_most
from vizlog.compute.histogram import histogram

_TAGS, _STEPS = 500, 100
_PICTURES = 20


def run() -> Found:
    torch.set_num_threads(1)
    rows, numbers = _histograms()
    more_rows, more_numbers = _pictures()
    return Found(rows + more_rows, numbers | more_numbers)


# histograms


def _histograms() -> tuple[list[Row], dict[str, Any]]:
    tensors = [torch.randn(10_000) * 0.02 for _ in range(50)]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "vizlog"), Path(folder, "torch")
        backend = vizlog.TensorBoard(ours)
        counts = [counted(tensor) for tensor in tensors]
        for step in range(_STEPS):
            names = (f"weights/layer{tag}.weight" for tag in range(_TAGS))
            backend.write(step, [histogram(name, counts[tag % 50]) for tag, name in enumerate(names)])
        backend.close()
        with _fast_checksums(), SummaryWriter(theirs) as writer:
            _add_histograms(writer, tensors)
        sizes = {"vizlog": _size(ours), "torch": _size(theirs)}
        seconds = in_turns({"vizlog": lambda: _load(ours), "torch": lambda: _load(theirs)}, repeats=3)
    rows = [
        at_most("event file, a histogram", 1.2, sizes["vizlog"] / (_TAGS * _STEPS) / 1e3, "KB"),
        at_least(f"{_TAGS} tags x {_STEPS} steps: smaller than torch's", 8, sizes["torch"] / sizes["vizlog"]),
        at_least("read faster by TensorBoard's fast loader", 3, seconds["torch"] / seconds["vizlog"]),
    ]
    return rows, {"bytes": sizes, "seconds to load": seconds}


@contextmanager
def _fast_checksums() -> Iterator[None]:
    """Inside, torch's writer writes the same bytes in a minute less: only size and reading are looked at."""
    slow = record_writer.masked_crc32c

    def masked(data: bytes) -> int:
        crc = int(google_crc32c.value(bytes(data)))
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    record_writer.masked_crc32c = masked
    try:
        yield
    finally:
        record_writer.masked_crc32c = slow


def _add_histograms(writer: SummaryWriter, tensors: list[torch.Tensor]) -> None:
    """As `add_histogram` would, but binned once for all steps."""
    from torch.utils.tensorboard.summary import histogram as summary_of

    values = [tensor.numpy() for tensor in tensors]
    summaries = [
        summary_of(f"weights/layer{tag}.weight", values[tag % len(values)], bins=writer.default_bins)
        for tag in range(_TAGS)
    ]
    for step in range(_STEPS):
        for summary in summaries:
            writer._get_file_writer().add_summary(summary, step)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _load(folder: Path) -> None:
    """TensorBoard's data server reads a log directory once."""
    command = [
        tensorboard_data_server.server_binary(),
        "--logdir",
        str(folder),
        "--reload",
        "once",
        "--port",
        "0",
        "-v",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        loaded = any("Finished load cycle" in line for line in server.stderr)
        server.kill()
    if not loaded:
        raise RuntimeError("TensorBoard's data server did not read the log")


# pictures


def _pictures() -> tuple[list[Row], dict[str, Any]]:
    noise = np.random.default_rng(0).integers(0, 256, (_PICTURES, 400, 400, 3), np.uint8)
    model, images = resnet((1, 1, 1, 1)), torch.randn(4, 3, 32, 32)

    def train() -> None:
        model(images).sum().backward()

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(Path(folder, "torch")) as writer:
        backend = vizlog.TensorBoard(Path(folder, "vizlog"))
        records = [
            vizlog.Images(f"filters/{number}", pixels[None], [""], (0.0, 1.0)) for number, pixels in enumerate(noise)
        ]

        def ours() -> None:
            backend.write(0, records)

        def theirs() -> None:
            for number, pixels in enumerate(noise):
                writer.add_image(f"filters/{number}", pixels, 0, dataformats="HWC")
            writer.flush()

        ours()
        theirs()
        sizes = {"vizlog": _size(Path(folder, "vizlog")), "torch": _size(Path(folder, "torch"))}
        seconds = in_turns({"vizlog": ours, "torch": theirs}, repeats=3)
        slowed = {"vizlog": _slowed(train, ours), "torch": _slowed(train, theirs)}
        backend.close()
    rows = [
        at_least(
            "pictures of noise, drawn, encoded and written", 20, sizes["vizlog"] / seconds["vizlog"] / 1e6, "MB/s"
        ),
        at_most("training beside it, one thread, a step takes", 1.1, slowed["vizlog"], "x as long"),
    ]
    return rows, {"bytes": sizes, "seconds": seconds, "a training step beside it takes": slowed}


def _slowed(train: Callable[[], None], write: Callable[[], None]) -> float:
    """How much longer a training step takes while a thread writes, over and over."""
    ends = threading.Event()

    def keep_writing() -> None:
        while not ends.is_set():
            write()

    ratios = []
    for _ in range(5):
        alone = _rate(train)
        ends.clear()
        thread = threading.Thread(target=keep_writing)
        thread.start()
        ratios.append(alone / _rate(train))
        ends.set()
        thread.join()
    return float(np.median(ratios))


def _rate(train: Callable[[], None], seconds: float = 1.0) -> float:
    """Steps a second."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        train()
        steps += 1
    return steps / (time.perf_counter() - start)
