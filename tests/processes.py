"""Processes that train together: they stay up between tests, and run what a test asks of all of them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

PATIENCE = 60.0
"""Seconds after which ranks that wait for each other are taken to do so forever."""

START = 120.0
"""They may take longer where they have just started: modules are imported, and numba compiles."""


class Processes:
    """Ranks of one gloo group that stay up between tests, and are replaced where they hang or die."""

    def __init__(self, world: int, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, *arguments)` returns on each rank."""
        patience = PATIENCE if self._processes else START
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(patience):
                self.stop()
                pytest.fail(f"rank {rank} did not come back from {function.__name__}: the ranks wait for each other")
            try:
                answers.append(pipe.recv())
            except EOFError:
                self.stop()  # the next test gets others
                pytest.fail(f"rank {rank} died in {function.__name__}")
        for rank, (error, _) in enumerate(answers):
            assert not error, f"rank {rank}:\n{error}"
        return [answer for _, answer in answers]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        port = free_port()
        for rank in range(self._world):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, self._world, port, theirs, self._folder), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)


def free_port() -> int:
    """One of this machine's ports that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serve(rank: int, world: int, port: int, pipe: Connection, folder: Path) -> None:
    faulthandler.enable()  # one that dies says where all of its threads were
    os.chdir(folder)  # the test's own folder goes with the test
    torch.set_num_threads(1)
    if world > 2:
        sys.modules["numba"] = None  # type: ignore[assignment]  # counts are the same without; its import takes long
    # As torchrun sets it.
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    dist.init_process_group("gloo", timeout=timedelta(seconds=START))
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send(("", function(rank, *arguments)))
        except BaseException:  # noqa: BLE001 -- the test raises it
            pipe.send((traceback.format_exc(), None))
