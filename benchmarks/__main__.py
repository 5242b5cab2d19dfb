"""`python -m benchmarks`: runs all benchmarks, each in a process of its own, and makes README.md anew."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from contextlib import suppress

from benchmarks import report, results
from vizlog.compute.loops import load

NAMES = ("startup", "histogram", "bins", "idle", "logged_step", "training", "event_file", "memory", "long_run", "scale")
ON_A_GPU = ("cuda", "cuda_training")
KNOWN = NAMES + ON_A_GPU


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(KNOWN)}; without: all that need no GPU"
    )
    names = parser.parse_args().names
    if unknown := set(names) - set(KNOWN):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(KNOWN)}")
    if len(names) == 1:
        found = _run(names[0])
        report.update_readme(KNOWN)
        return 0 if all(row.met for row in found.rows) else 1
    failed = [
        name
        for name in names or NAMES
        if subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode
    ]
    print(f"not met, in {', '.join(failed)}" if failed else "all met")
    return 1 if failed else 0


def _run(name: str) -> results.Found:
    with suppress(ImportError):  # of numba
        load()  # else some of what follows would be measured while a process compiles
    start = time.perf_counter()
    found: results.Found = importlib.import_module(f"benchmarks.{name}").run()
    seconds = time.perf_counter() - start
    results.write(name, found, seconds)
    print(f"\n{name} ({seconds:.0f} s)\n\n{report.table(found.rows)}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
