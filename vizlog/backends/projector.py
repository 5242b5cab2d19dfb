"""Embeddings for TensorBoard's Projector tab: files of vectors, labels and thumbnails, and their list."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from vizlog.messages import LOG
from vizlog.views import png

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vizlog.records import Embedding

__all__ = ["project"]

_LATEST = 3
_LONGEST_NAME = 200  # file systems take 255 bytes, the step among them
_SPRITE_LIMIT = 8192  # pixels a side: the largest texture that browsers are sure to take
# What would end a field or a line of a TSV file, written as in a Python literal.
_ESCAPES = {ord(mark): repr(mark)[1:-1] for mark in "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


def project(directory: Path, step: int, record: Embedding) -> None:
    """Adds an embedding to the Projector tab of the run in `directory`, as "TAG latest, step STEP".

    Of each tag the first step and the latest three stay: enough to compare, and a run does not grow without bound.
    Where the steps have gone back, those beyond make room for them.
    What others have listed in the directory's `projector_config.pbtxt` stays listed. (A running TensorBoard reads that
    list when it first meets the run; it shows later steps after a restart: tensorboardX#306.)

    Raises:
        OSError: the files cannot be written; the list is as before.
    """
    with _alone(directory):
        config = _read(directory / "projector_config.pbtxt")
        if config is not None:
            _add(directory, step, record, config)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps others that write to the Projector here, in this process or another, waiting; where the system can."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            held = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX)
            stack.callback(fcntl.flock, held, fcntl.LOCK_UN)  # a fork of this moment holds it too
        except (ImportError, OSError):  # not on every system, nor on every network's files
            pass
        yield


def _add(directory: Path, step: int, record: Embedding, config: Any) -> None:
    from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo

    home = _home(record.tag, step)
    (directory / home).mkdir(parents=True, exist_ok=True)
    entry = EmbeddingInfo()
    vectors, nonfinite = _finite(record.vectors)
    _write_vectors(directory, home, vectors, entry)
    _write_metadata(directory, home, record, nonfinite, entry)
    if record.thumbnails is not None:
        _write_sprite(directory, home, record.thumbnails, entry)

    kept, dropped = _thin([*config.embeddings, entry], record.tag, step)
    del config.embeddings[:]
    config.embeddings.extend(kept)
    _replace(directory / "projector_config.pbtxt", config)
    for old in dropped:
        shutil.rmtree((directory / old.tensor_path).parent, ignore_errors=True)


def _home(tag: str, step: int) -> PurePosixPath:
    """Where the files of one embedding lie, relative to the run: the Projector takes no path that leads out of it."""
    name = quote(tag, safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(tag.encode()).hexdigest()[:16]}"
    return PurePosixPath("projector", f"{name}-{step}")


def _step_of(entry: Any, tag: str) -> int | None:
    """The step of an entry that `project` wrote for `tag`; None for any other."""
    step = PurePosixPath(entry.tensor_path).parent.name.rpartition("-")[2]
    ours = step.isdecimal() and PurePosixPath(entry.tensor_path).parent == _home(tag, int(step))
    return int(step) if ours else None


def _thin(entries: list[Any], tag: str, now: int) -> tuple[list[Any], list[Any]]:
    """Entries to keep (others', then those of `tag`, named, the one of `now` first) and entries of `tag` to drop.

    Steps beyond `now` are of a future that was given up, for an earlier checkpoint: they are the first to go.
    """
    others = [entry for entry in entries if _step_of(entry, tag) is None]
    ours = {step: entry for entry in entries if (step := _step_of(entry, tag)) is not None}
    for step, entry in ours.items():
        # The tab sorts by name and opens the first: "latest" comes before "step".
        entry.tensor_name = f"{tag} latest, step {step}" if step == now else f"{tag} step {step}"
    past = sorted((step for step in ours if step <= now), reverse=True)
    given_up = sorted((step for step in ours if step > now), reverse=True)
    kept = [*past[:_LATEST], *past[_LATEST:][-1:], *given_up][: _LATEST + 1]
    return others + [ours[step] for step in kept], [ours[step] for step in ours if step not in kept]


def _read(path: Path) -> Any:
    """The ProjectorConfig in a file (empty where there is none), or None, with a warning, where it cannot be parsed."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = ProjectorConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except FileNotFoundError:
        pass
    except (text_format.ParseError, UnicodeDecodeError) as error:
        LOG.warning("%s is no projector config (%s): move it away to see embeddings in the Projector tab", path, error)
        return None
    return config


def _replace(path: Path, config: Any) -> None:
    """Writes the config in one go: who reads it sees the old or the new one."""
    from google.protobuf import text_format

    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        new.write_text(text_format.MessageToString(config), encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _write_vectors(directory: Path, home: PurePosixPath, vectors: NDArray[np.float32], entry: Any) -> None:
    """(N, D) as raw little-endian float32, with columns of zeros up to D = 3: the tab draws nothing of less."""
    vectors = np.pad(vectors, ((0, 0), (0, max(0, 3 - vectors.shape[1]))))
    raw = vectors.tobytes()
    # The tab tries TSV first, and takes raw numbers only where decoding fails: at the first line at the latest.
    if _is_text(raw.split(b"\n", 1)[0]):
        name = home / "tensors.tsv"
        np.savetxt(directory / name, vectors, fmt="%.9g", delimiter="\t")
    else:
        name = home / "tensors.bytes"
        (directory / name).write_bytes(raw)
    entry.tensor_path = str(name)
    entry.tensor_shape.extend(vectors.shape)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _finite(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Vectors as float32, with 0 for what is not finite (the tab cannot place it), and how many such each row has."""
    with np.errstate(over="ignore"):
        narrow = vectors.astype("<f4")
    finite = np.isfinite(narrow)
    return np.where(finite, narrow, np.float32(0)), np.count_nonzero(~finite, axis=1)


def _write_metadata(
    directory: Path, home: PurePosixPath, record: Embedding, nonfinite: NDArray[np.intp], entry: Any
) -> None:
    """One row per vector: label, example, and, where any vector has such, how many of its values are not finite."""
    columns: dict[str, list[str]] = {
        "label": [_label(number, record).translate(_ESCAPES) for number in record.labels.tolist()],
        "example": [str(number) for number in record.ids],
    }
    if nonfinite.any():
        columns["non-finite values, shown as 0"] = [str(number) for number in nonfinite]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    name = home / "metadata.tsv"
    text = "".join("\t".join(row) + "\n" for row in rows)
    (directory / name).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    entry.metadata_path = str(name)


def _label(number: float, record: Embedding) -> str:
    if record.is_of_quantity:
        return f"{number:.6g}" if math.isfinite(number) else ""  # a word would make it no numbers, which have colours
    number = int(number)
    if number < 0:
        return "unlabelled"
    return record.class_names[number] if number < len(record.class_names) else str(number)


def _write_sprite(directory: Path, home: PurePosixPath, thumbnails: NDArray[np.uint8], entry: Any) -> None:
    """All thumbnails in one picture, row by row; every k-th pixel alone where they would exceed the limit."""
    columns = math.ceil(math.sqrt(len(thumbnails)))
    shrink = math.ceil(columns * max(thumbnails.shape[1:3]) / _SPRITE_LIMIT)
    tiles = thumbnails[:, ::shrink, ::shrink, :3]
    number, height, width, channels = tiles.shape
    rows = math.ceil(number / columns)
    sprite = np.zeros((rows * columns, height, width, 3), np.uint8)
    sprite[:number] = np.broadcast_to(tiles, (number, height, width, 3)) if channels == 1 else tiles
    sprite = sprite.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    name = home / "sprite.png"
    (directory / name).write_bytes(png.encode(sprite))
    entry.sprite.image_path = str(name)
    entry.sprite.single_image_dim.extend((width, height))
