"""What it costs that vizlog is installed: `import vizlog`, and a TensorBoard that finds it."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.measure import in_turns, output_of
from benchmarks.results import Found, at_most

_IMPORT = "import sys, time; start = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - start)"
_MODULES = "import sys; before = set(sys.modules); import vizlog; print(*(set(sys.modules) - before))"
# TensorBoard finds plugins by what is installed: here as if vizlog were not.
_WITHOUT = """
import importlib.metadata as metadata
found = metadata.distributions
metadata.distributions = lambda **chosen: (d for d in found(**chosen) if d.metadata["Name"] != "vizlog")
"""
_TENSORBOARD = "from tensorboard.main import run_main; run_main()"


def run() -> Found:
    imports = {
        name: sorted(float(output_of(_IMPORT, name)) for _ in range(9))[4] for name in ("numpy", "vizlog", "torch")
    }
    heavy = {"torch", "numpy", "tensorboard", "wandb", "lightning"} & set(output_of(_MODULES).split())
    starts = in_turns({"with": lambda: _start(_TENSORBOARD), "without": lambda: _start(_WITHOUT + _TENSORBOARD)})
    rows = [
        at_most("import vizlog, of import numpy", 10, 100 * imports["vizlog"] / imports["numpy"], "%"),
        at_most("of torch, numpy and the backends, imported by import vizlog", 0, len(heavy), "packages"),
        at_most("tensorboard starts later with vizlog installed", 0.3, starts["with"] - starts["without"], "s"),
    ]
    return Found(rows, {"imports": imports, "starts": starts})


def _start(code: str) -> None:
    """Starts TensorBoard, waits until it serves, and ends it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, "--logdir", folder, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            served = any("http://" in line for line in server.stderr)
            server.terminate()
        if not served:
            raise RuntimeError("TensorBoard did not start")
