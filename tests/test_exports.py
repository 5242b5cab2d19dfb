"""What `import vizlog` gives: the public names, all of them, at next to no cost."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import vizlog
from vizlog.backends.base import Backend
from vizlog.probes.base import Probe
from vizlog.records import Record
from vizlog.schedules import Schedule

ROOT = Path(vizlog.__file__).parent.parent

PUBLIC = {
    "to watch a model": {"Monitor", "FixedBatch", "standard", "watch"},
    "probes": {
        "ActivationHistograms",
        "AttentionMaps",
        "Embeddings",
        "FeatureMaps",
        "FilterImages",
        "GradientHistograms",
        "Probe",
        "SaliencyMaps",
        "UpdateRatios",
        "WeightHistograms",
    },
    "records": {
        "Attention",
        "Curves",
        "Embedding",
        "Heatmaps",
        "Histogram",
        "Images",
        "Record",
        "Scalar",
        "Surface",
        "Text",
    },
    "schedules": {"AtSteps", "Every", "EveryEpoch", "LogSpaced", "Schedule", "Thinning"},
    "backends": {"FanOut", "Memory", "TensorBoard", "WandB"},
}


def _run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that sees this vizlog, whether or not it is installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run([sys.executable, *flags, "-c", code], check=True, capture_output=True, text=True)


def _modules_of(package: str) -> list[Any]:
    found = importlib.import_module(package)
    return [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(found.__path__)]


def test_all_is_what_is_public() -> None:
    assert sorted(set().union(*PUBLIC.values())) == vizlog.__all__


@pytest.mark.parametrize("name", vizlog.__all__)
def test_a_public_name_resolves_to_what_is_called_so(name: str) -> None:
    value = getattr(vizlog, name)
    assert getattr(value, "__name__", name) == name


def test_an_unknown_name_is_an_attribute_error_that_says_it() -> None:
    with pytest.raises(AttributeError, match="'vizlog' has no attribute 'GradientHistogram'"):
        vizlog.GradientHistogram  # noqa: B018
    assert not hasattr(vizlog, "np")


def test_dir_lists_public_names_before_they_are_used() -> None:
    listed = _run("import vizlog; print(*dir(vizlog))").stdout.split()
    assert set(vizlog.__all__) < set(listed)


@pytest.mark.parametrize(
    ("package", "base"), [("vizlog.probes", Probe), ("vizlog.backends", Backend), ("vizlog", Schedule)]
)
def test_a_probe_a_backend_or_a_schedule_that_exists_is_exported(package: str, base: type) -> None:
    kinds = {
        name
        for module in _modules_of(package)
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if issubclass(value, base) and not _is_refined(value)
    }
    assert kinds
    assert kinds <= set(vizlog.__all__)


def _is_refined(kind: type) -> bool:
    """Whether it is there for others of vizlog to build on."""
    return kind is Backend or any(child.__module__.startswith("vizlog.") for child in kind.__subclasses__())


def test_every_kind_of_record_is_exported() -> None:
    assert {kind.__name__ for kind in get_args(Record)} == PUBLIC["records"] - {"Record"}


def test_type_checkers_see_the_names_that_are_loaded_lazily() -> None:
    tree = ast.parse(Path(vizlog.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
        if alias.asname == alias.name  # `import X as X` is what makes a name public to a type checker
    }
    assert seen == vizlog._MODULE_OF


def test_importing_vizlog_imports_nothing_heavy() -> None:
    code = """
before = set(sys.modules)
import vizlog
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    loaded = set(_run(code, "-I").stdout.split())
    assert "vizlog" in loaded
    assert loaded - {"vizlog"} <= set(sys.stdlib_module_names)


def test_importing_vizlog_takes_at_most_a_tenth_of_importing_numpy() -> None:
    def milliseconds(module: str) -> float:
        log = _run(f"import {module}", "-I", "-X", "importtime").stderr
        (cumulative,) = re.findall(rf"\|\s+(\d+) \| {module}$", log, flags=re.MULTILINE)
        return int(cumulative) / 1000

    pairs = [(milliseconds("vizlog"), milliseconds("numpy")) for _ in range(7)]  # interleaved: the machine is not quiet
    ratio = statistics.median(ours / numpy for ours, numpy in pairs)
    assert ratio <= 0.1, f"import vizlog takes {ratio:.2f} of numpy's time: {pairs} ms"


@pytest.mark.parametrize("name", sorted(set(vizlog.__all__) - {"Record"}))  # Record is a union of documented ones
def test_what_is_public_says_what_it_does(name: str) -> None:
    value = getattr(vizlog, name)
    assert value.__doc__, f"{name} has no docstring"
    assert not value.__doc__.startswith(f"{name}("), f"{name} has only the signature that dataclass makes up"
    if inspect.isclass(value):
        methods = inspect.getmembers(value, lambda member: inspect.isfunction(member) or isinstance(member, property))
        silent = {method for method, member in methods if not method.startswith("_") and not inspect.getdoc(member)}
        said = set(vars(Backend)) if issubclass(value, Backend) else set()  # a backend does what Backend says
        assert not silent - said, f"{name} does not say what these do"
