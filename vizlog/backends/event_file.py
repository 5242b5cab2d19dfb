"""TensorBoard's event files: appending to one so that a full disk never breaks it, and the steps that one holds."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

__all__ = ["SUFFIX", "EventFile", "event_files", "exists", "steps"]

SUFFIX = ".vizlog"
"""How the names of our own files end."""

_HEADER = struct.Struct("<QI")  # a frame: length, its masked CRC, the bytes, their masked CRC
_FOOTER = struct.Struct("<I")
_VARINT = 0x80
_LONGEST_START = 32  # bytes of an event that hold its time and step: 1 + 8 and 1 + 10


class EventFile:
    """A new event file in a directory. What `append` was given is with the operating system when it returns.

    Raises:
        OSError: the directory does not exist or takes no new file.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

        self._crc = _masked_crc()
        self._file = _create(directory)
        self.path = Path(str(self._file.name))
        self._identity = os.fstat(self._file.fileno())
        # Every event file opens with its version; it goes out with the first events.
        first = Event(
            wall_time=time.time(), file_version="brain.Event:2", source_metadata=SourceMetadata(writer="vizlog")
        )
        self._rest = self._framed(first.SerializeToString())

    def is_there(self) -> bool:
        """Whether the file still stands under its name: what is appended to a deleted one nobody will read."""
        return exists(self.path, self._identity)

    def append(self, events: Iterable[Any]) -> None:
        """Appends `Event` protos in order, in as few writes as can be; each is serialized before the next is asked for.

        Raises:
            OSError: not all of them could be written; the rest is lost, and the file stays readable: where the disk
                filled up in the middle of an event, its missing bytes go before those of the next call. (Cutting the
                file back instead would mislead a reader that has seen the first half.)
        """
        frames = [self._rest, *(self._framed(event.SerializeToString()) for event in events)]
        data = memoryview(b"".join(frames))
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            ends = itertools.accumulate(map(len, frames))
            self._rest = bytes(data[written : next(end for end in ends if end >= written)])
            raise
        self._rest = b""

    def _framed(self, data: bytes) -> bytes:
        length = struct.pack("<Q", len(data))
        return b"".join((length, _FOOTER.pack(self._crc(length)), data, _FOOTER.pack(self._crc(data))))

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._file.close()


def exists(path: Path, identity: os.stat_result | None = None) -> bool:
    """Whether something is there, or just this one; also where that cannot be looked at."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return identity is None or os.path.samestat(identity, found)


def event_files(directory: Path) -> list[Path]:
    """The files of a directory that TensorBoard reads as one run, in the order in which it reads them."""
    return sorted(path for path in directory.glob("*tfevents*") if path.is_file())


def steps(path: Path, size: int) -> Iterator[int]:
    """The step of every event in the first `size` bytes of a file; ends where a frame is cut short.

    Neither payloads nor checksums are read, so that a file of any size costs a microsecond or two an event. One that
    was deleted meanwhile, or cannot be read, has none: TensorBoard shows nothing of it either.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        at = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            at += _HEADER.size + length + _FOOTER.size
            if at > size:
                return
            yield _step_of(file.read(min(length, _LONGEST_START)))
            file.seek(at)


def _step_of(start: bytes) -> int:
    """The step in a serialized Event: field 1 is its time (a double), field 2 its step (a varint, absent where 0)."""
    if start[:1] == b"\x09":
        start = start[9:]
    if start[:1] != b"\x10":
        return 0
    step = 0
    for place, byte in enumerate(start[1:]):
        step |= (byte & ~_VARINT) << (7 * place)
        if byte < _VARINT:
            break
    return step - (1 << 64) if step >= 1 << 63 else step


def _create(directory: Path) -> FileIO:
    """A new, unbuffered file under a name that TensorBoard takes for an event file, and that sorts after older ones."""
    # The clock may have gone back since the older ones were made.
    latest = max((_made_at(path) for path in event_files(directory)), default=0.0)
    made_at = max(time.time(), latest + 1e-6)
    name = f"events.out.tfevents.{made_at:017.6f}.{socket.gethostname()}.{os.getpid()}{SUFFIX}"
    return FileIO(directory / name, "x")


def _made_at(path: Path) -> float:
    """The time in an event file's name; 0 where it has none. Whole seconds sort behind their fractions."""
    found = re.search(r"tfevents\.(\d{10})(\.\d+)?", path.name)
    return 0.0 if found is None else float(found[1]) + float(found[2] or 1)


def _masked_crc() -> Callable[[bytes], int]:
    """CRC-32C as TFRecord masks it: by google-crc32c where installed, else by TensorBoard's own Python (3 MB/s)."""
    try:
        import google_crc32c
    except ImportError:
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        return lambda data: int(masked_crc32c(data))

    def masked(data: bytes) -> int:
        crc = int(google_crc32c.value(data))
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    return masked
