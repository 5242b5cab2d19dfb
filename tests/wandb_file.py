"""Reads the `.wandb` file of an offline run: what the client really wrote, independent of the code under test."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")  # crc, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WrittenRun:
    """What an offline run holds: its history's rows in order, how its metrics are defined, and its media."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    directory: Path = Path()

    def of(self, key: str) -> list[Any]:
        """The values of `key`, in order."""
        return [row[key] for row in self.rows if key in row]

    @property
    def media(self) -> list[Path]:
        return sorted(path for path in (self.directory / "files" / "media").rglob("*") if path.is_file())

    @property
    def keys(self) -> set[str]:
        """Every key of every row, the client's own (`_step`, `_runtime`, `_timestamp`) aside."""
        return {key for row in self.rows for key in row if not key.startswith("_")}


def read_run(directory: Path, *, timeout: float = 20.0) -> WrittenRun:
    """Reads the finished offline run in `directory` (`run.dir`'s parent), waiting until its last record is on disk."""
    deadline = time.monotonic() + timeout
    while not any(record.HasField("exit") for record in _records(directory)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{directory} holds no exit record after {timeout:g} s")
        time.sleep(0.005)
    return _collect(directory)


def _collect(directory: Path) -> WrittenRun:
    run = WrittenRun(directory=directory)
    for record in _records(directory):
        match record.WhichOneof("record_type"):
            case "history":
                run.rows.append(_nested(record.history.item))
            case "metric":
                run.metrics[record.metric.name or record.metric.glob_name] = {
                    "step_metric": record.metric.step_metric,
                    "step_sync": record.metric.options.step_sync,
                    "hidden": record.metric.options.hidden,
                }
            case "artifact":
                run.artifacts.append(record.artifact.name)
            case "request" if record.request.HasField("log_artifact"):
                run.artifacts.append(record.request.log_artifact.artifact.name)
    return run


def _records(directory: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("*.wandb")
    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log; one that is not complete yet ends it."""
    if data[:4] != b":W&B":
        return
    position, parts = 7, b""
    while position + CHUNK_HEADER.size <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK_HEADER.size:
            position += left_in_block
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, position)
        position += CHUNK_HEADER.size
        if kind not in (FULL, FIRST, MIDDLE, LAST) or position + length > len(data):
            return
        chunk = data[position : position + length]
        position += length
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            yield parts


def _nested(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        level = row
        for key in parents:
            level = level.setdefault(key, {})
        level[last] = _value(item)
    return row


def _value(item: Any) -> Any:
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None  # 0.30 has JSON alone
    if kind is None:
        return json.loads(item.value_json)
    if kind == "json":
        return json.loads(item.json)
    return None if kind == "none" else getattr(item, kind)
