"""What TensorBoard itself reads from a run, and its server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

_T = TypeVar("_T")


def events(run: Path) -> list[Event]:
    """Every event of a run's files, in order; nothing is sampled, and checksums are checked."""
    files = sorted(path for path in run.iterdir() if "tfevents" in path.name)
    return [Event.FromString(raw) for file in files for raw in RawEventFileLoader(str(file)).Load()]


def values(run: Path) -> dict[tuple[int, str], Any]:
    """(step, tag) -> the summary value written last."""
    return {(event.step, value.tag): value for event in events(run) for value in event.summary.value}


class Server:
    """A TensorBoard that is running."""

    def __init__(self, address: str) -> None:
        self.address = address

    def data(self, route: str, **query: str | int) -> bytes:
        url = f"{self.address}data/plugin/{route}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read()

    def json(self, route: str, **query: str | int) -> Any:
        return json.loads(self.data(route, **query))


@contextmanager
def server(logdir: Path, *, fast: bool) -> Iterator[Server]:
    """Starts TensorBoard over `logdir` on a free port, under one of its two loaders."""
    options = [
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--load_fast",
        "true" if fast else "false",
        "--reload_interval",
        "1",
    ]
    log = logdir.parent / f"tensorboard-{fast}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), *options], stdout=out, stderr=out
        )
    try:
        yield Server(until(lambda: _address(log, process)))
    finally:
        process.terminate()
        process.wait(30)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str | None:
    text = log.read_text()
    assert process.poll() is None, text
    found = re.search(r"http://[\w.]+:\d+/", text)
    return found and found.group()


def until(ask: Callable[[], _T | None], patience: float = 90) -> _T:
    """What `ask` answers, once it is something."""
    end = time.monotonic() + patience
    while not (answer := ask()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return answer
