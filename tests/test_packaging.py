"""What is built is what was written: the sdist and the wheel, imported where no checkout is near."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {
    "tensorboard": {"tensorboard", "google-crc32c"},
    "wandb": {"wandb", "wandb-workspaces", "plotly", "markdown-it-py"},
    "lightning": {"lightning"},
    "huggingface": {"transformers", "accelerate"},
    "embeddings": {"umap-learn", "scikit-learn"},
    "fast": {"numba"},
}

Run = Callable[..., str]


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(folder: Path, *what: str) -> None:
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *what, ROOT, cwd=folder)


def _files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    _build(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    (text,) = (content for name, content in _files(wheel).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs code in a new virtual environment that holds the wheel; `beside=True` adds the packages of this one."""
    home = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=home,
    )

    def run(code: str, *, beside: bool = False) -> str:
        # Packages only: an editable vizlog is a .pth file there, and a folder on sys.path does not run its .pth files.
        packages = f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n" if beside else ""
        return _run(python, "-I", "-c", packages + code, cwd=home)

    return run


def test_wheel_holds_every_source_file_as_it_is_and_nothing_else(wheel: Path) -> None:
    sources = [path for folder in ("vizlog", "callbacks") for path in (ROOT / folder).rglob("*") if path.is_file()]
    expected = {
        path.relative_to(ROOT).as_posix().replace("callbacks/", "vizlog/callbacks/"): path.read_bytes()
        for path in sources
        if "__pycache__" not in path.parts
    }
    assert {"vizlog/__init__.py", "vizlog/py.typed", "vizlog/callbacks/__init__.py"} <= expected.keys()
    assert {name: content for name, content in _files(wheel).items() if ".dist-info/" not in name} == expected


def test_wheel_from_the_sdist_is_the_wheel_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    _build(tmp_path, "--wheel")
    (direct,) = tmp_path.glob("*.whl")
    assert _files(direct) == _files(wheel)


def test_sdist_holds_the_tests_and_no_symlink(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert {"LICENSE", "README.md", "pyproject.toml", "callbacks/__init__.py", "tests/conftest.py"} <= members.keys()
    assert all(member.isfile() for member in members.values())
    assert not any(name.startswith("vizlog/callbacks") for name in members)


def test_vizlog_imports_with_nothing_else_installed(installed: Run) -> None:
    assert installed("import vizlog; print(vizlog.__version__)") == f"{_version()}\n"


def test_importing_vizlog_imports_no_torch_where_there_is_one(installed: Run) -> None:
    found = installed(
        "import vizlog, importlib.util; print(importlib.util.find_spec('torch') is not None)", beside=True
    )
    assert found == "True\n"
    assert installed("import vizlog; print('torch' in sys.modules)", beside=True) == "False\n"


def _version() -> str:
    (found,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "vizlog" / "__init__.py").read_text(), re.MULTILINE)
    return str(found)


def test_every_public_name_and_callback_imports_from_the_wheel(installed: Run) -> None:
    code = """
import vizlog, vizlog.callbacks.huggingface, vizlog.callbacks.lightning, vizlog.callbacks.loop
for name in vizlog.__all__:
    getattr(vizlog, name)
print(*{module.__file__ for name, module in sys.modules.items() if name.startswith("vizlog")}, sep="\\n")
"""
    # transformers says a line of its own where wandb is offline.
    files = [line for line in installed(code, beside=True).splitlines() if line.endswith(".py")]
    assert len(files) > 50
    assert all("/installed" in file and "/venv/" in file for file in files)


def test_metadata_says_what_the_project_is(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("vizlog", _version())
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"


def _required(metadata: Message, extra: str = "") -> set[str]:
    """Names that an extra asks for beyond the core; without one, the core's own."""
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    core = {found.name for found in requirements if found.marker is None}
    return {found.name for found in requirements if found.marker and found.marker.evaluate({"extra": extra})} or core


def test_extras_are_the_ones_that_are_documented(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS, "all", "test"}
    assert _required(metadata) == {"torch", "numpy", "pillow", "typing-extensions"}
    assert {extra: _required(metadata, extra) for extra in EXTRAS} == EXTRAS


def test_all_is_every_other_extra_of_a_user_but_the_trainer_that_only_its_users_need(metadata: Message) -> None:
    others = [required for extra, required in EXTRAS.items() if extra != "huggingface"]
    assert _required(metadata, "all") == set().union(*others)


def _pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_every_requirement_has_a_pin(metadata: Message) -> None:
    required = {canonicalize_name(Requirement(text).name) for text in metadata.get_all("Requires-Dist", [])}
    assert required - {"vizlog"} <= _pins().keys()


def test_what_is_tested_is_what_is_pinned() -> None:
    wrong = {}
    for name, pin in _pins().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # wanted on another platform
        if (pin.marker is None or pin.marker.evaluate()) and not pin.specifier.contains(found, prereleases=True):
            wrong[name] = f"{found}, not {pin.specifier}"
    assert not wrong


def test_torch_is_pinned_to_a_release_without_a_suffix() -> None:
    """With one, such as +cpu, the package index could not meet the pin; without, any build of the release does."""
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(_pins()["torch"].specifier))
