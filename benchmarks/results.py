"""What a benchmark found: rows of asked and measured, plots, and the machine they were made on."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["FOLDER", "Found", "Plot", "Row", "at_least", "at_most", "read", "told", "write"]

FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "numba", "tensorboard", "wandb", "transformers")


@dataclass(frozen=True)
class Row:
    """One line of the table: what was asked for (None: nothing, it is told), and what was measured."""

    what: str
    asked: float | None
    measured: float
    unit: str
    at_most: bool

    @property
    def met(self) -> bool:
        if self.asked is None:
            return True
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked


def at_most(what: str, asked: float, measured: float, unit: str) -> Row:
    """A row that is met where no more was measured."""
    return Row(what, asked, float(measured), unit, at_most=True)


def at_least(what: str, asked: float, measured: float, unit: str = "x") -> Row:
    """A row that is met where no less was measured."""
    return Row(what, asked, float(measured), unit, at_most=False)


def told(what: str, measured: float, unit: str = "x") -> Row:
    """A row that nobody asked for, and that someone will want to know."""
    return Row(what, None, float(measured), unit, at_most=False)


@dataclass(frozen=True)
class Plot:
    """Lines over a common x, both axes logarithmic."""

    name: str
    caption: str
    x_label: str
    y_label: str
    x: list[float]
    lines: dict[str, list[float]]


@dataclass(frozen=True)
class Found:
    """All that one benchmark found; `numbers` are what the rows were made of."""

    rows: list[Row]
    numbers: dict[str, Any] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)


def write(name: str, found: Found, seconds: float) -> None:
    """Keeps what a benchmark found in `results/NAME.json`, with the machine, the versions and the date."""
    FOLDER.mkdir(exist_ok=True)
    content = {
        "command": f"python -m benchmarks {name}",
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "seconds": round(seconds),
        "machine": _machine(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "rows": [asdict(row) | {"met": row.met} for row in found.rows],
        "numbers": found.numbers,
        "plots": [asdict(plot) for plot in found.plots],
    }
    text = json.dumps(_short(content), indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> tuple[dict[str, Any], Found] | None:
    """What was kept: the whole, and its rows and plots; None where this benchmark never ran."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**{key: value for key, value in row.items() if key != "met"}) for row in content["rows"]]
    return content, Found(rows, content["numbers"], [Plot(**plot) for plot in content["plots"]])


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if platform.system() == "Linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "cpu": models[0] if models else platform.processor(),
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _short(value: Any) -> Any:
    """Numbers to four digits: the rest is noise."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {str(key): _short(item) for key, item in value.items()}
        case list() | tuple():
            return [_short(item) for item in value]
        case _:
            return value
