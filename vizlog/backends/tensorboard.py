"""TensorBoard as a destination: a run directory of vizlog's own, or the user's SummaryWriter."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vizlog.backends.base import Drawable
from vizlog.backends.event_file import SUFFIX, EventFile, event_files, exists, steps
from vizlog.backends.hparams import HParams
from vizlog.backends.projector import project
from vizlog.backends.summaries import Summaries, is_drawn
from vizlog.diagnosis import STOPPED_BECAUSE
from vizlog.messages import LOG, one_line
from vizlog.records import Embedding, Record, Scalar, Text

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["TensorBoard"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TensorBoard:
    """Writes to a TensorBoard run: scalars, histograms, text, pictures, and embeddings to the Projector tab too.

    With a path, vizlog keeps an event file of its own there, and what was written is on disk when `write` returns.
    Where the directory is deleted meanwhile it is made again, and one warning says so.

    A writer stays yours, and open; it is flushed after each `write`. (torch's computes checksums in Python, at 3 MB/s:
    for pictures a path is faster.) Where you close it first, or it broke over a full disk, the rest goes to an event
    file of vizlog's beside yours; also where its directory is deleted.

    A histogram becomes rows of left edge, right edge and count, finite values only; where a tensor has had others,
    their number is the scalar TAG/nonfinite. TensorBoard keeps the caption of a tag's first step alone.

    Where the disk is full, one warning says so, and writing goes on once there is space. A record that cannot be drawn
    is left out, and named once.

    With `hparams`, the HPARAMS tab compares this run with others: their hyperparameters and the health scalars
    (`vizlog/dead_units_worst` and the others, which are then written as scalars too).

    Args:
        path_or_writer: the run's directory, or a SummaryWriter of torch's or tensorboardX's; under Lightning, the
            TensorBoardLogger's `experiment`.
        resume: go on in a directory that already holds later steps. Otherwise "runs/a" becomes "runs/a-2" (or -3 …),
            and one line says so.
        hparams: name -> number, truth value or text, or what argparse gives (nested mappings and other things as far
            as they can be), the same names in all runs to compare. Of a SummaryWriter's run, instead of `add_hparams`,
            which makes a run beside it.
        metrics: tags of your own scalars that stand beside the hyperparameters, such as the accuracy, or one tag.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the directory cannot be made or written.
        TypeError, ValueError: neither a local path nor a writer, a writer that is closed, or hyperparameters without
            names.
    """

    def __init__(
        self,
        path_or_writer: str | os.PathLike[str] | Any,
        *,
        resume: bool = False,
        hparams: Mapping[str, Any] | Namespace | None = None,
        metrics: str | Sequence[str] = (),
    ) -> None:
        _require_tensorboard()
        if hparams is None and metrics:
            raise ValueError("metrics= stand beside hyperparameters in the HPARAMS tab: give hparams= as well")
        self._hparams = None if hparams is None else HParams(hparams, metrics)
        self._sink: _Sink
        if isinstance(path_or_writer, (str, os.PathLike)):
            self._sink = _Directory(_local(os.fspath(path_or_writer)), resume=resume)
        elif resume:
            raise ValueError("resume=True goes with a path: a writer of your own decides where it goes on")
        else:
            self._sink = _Writer(path_or_writer)
        self._summaries = Summaries()
        self._drawable = Drawable()
        self._full_since: int | None = None
        self._opened = False
        self._step = 0  # the latest that was to be written
        self._summary: dict[str, float | str] = {}  # tag -> what the run is to say of itself
        self._summary_written: dict[str, float | str] = {}
        self._closed = False

    def write(self, step: int, records: Sequence[Record]) -> None:
        if self._closed:
            raise ValueError("this TensorBoard is closed: make a new one (resume=True goes on in the same directory)")
        self._step = step
        try:
            if not self._sink.is_there():
                self._summaries.caption_again()
                self._opened = False
                self._summary_written = {}
            opening = self._hparams.start if self._hparams is not None and not self._opened else []
            numbers = [*(record for record in records if not is_drawn(record)), *self._changed()]
            self._summaries.expect(numbers)
            self._sink.add(step, [*opening, *self._drawable.each(self._summaries.of, numbers)])
            self._opened = True
            self._summary_written = dict(self._summary)
            # Each may take a while, and a run that is killed keeps the others.
            for picture in filter(is_drawn, records):
                self._sink.add(step, list(self._drawable.each(self._summaries.of, [picture])))
            deque(self._drawable.each(lambda record: self._project(step, record), records), maxlen=0)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._report_full(step, error)
        else:
            self._report_space(step)

    def _project(self, step: int, record: Record) -> None:
        if isinstance(record, Embedding) and self._sink.directory is not None:
            try:
                project(self._sink.directory, step, record)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise
                raise ValueError(f"its files for the Projector cannot be written: {one_line(error)}") from error

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        """Writes why the training stops, and for the HPARAMS tab the health scalars that have changed."""
        if self._hparams is not None:
            self._summary |= scalars
        if stopped_because:
            self._summary[STOPPED_BECAUSE] = stopped_because
        if self._summary != self._summary_written:
            self.write(step, [])

    def _changed(self) -> Iterator[Record]:
        """What the summary says and the run does not yet; a full disk may have taken what was written of it."""
        for tag, value in self._summary.items():
            if self._summary_written.get(tag) != value:
                yield Text(tag, value) if isinstance(value, str) else Scalar(tag, value)

    def close(self) -> None:
        if self._closed:
            return
        try:
            if self._summary != self._summary_written:
                self.write(self._step, [])
            if self._hparams is not None and self._opened:
                self._sink.add(self._step, [self._hparams.end()])
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._report_full(self._step, error)
        finally:
            self._closed = True
            self._sink.close()

    def _report_full(self, step: int, error: OSError) -> None:
        self._summaries.caption_again()
        if self._full_since is None:
            self._full_since = step
            LOG.warning("TensorBoard has no space at step %d (%s): what is logged is lost until there is", step, error)

    def _report_space(self, step: int) -> None:
        if self._full_since is not None:
            LOG.warning(
                "TensorBoard has space again at step %d; records since step %d were lost", step, self._full_since
            )
            self._full_since = None


class _Sink(Protocol):
    """Where summaries go."""

    @property
    def directory(self) -> Path | None:
        """Where the files of the Projector go, once something was added; None where no local directory is known."""

    def is_there(self) -> bool:
        """Whether what was written so far is still where it was written; else one warning has said so."""

    def add(self, step: int, summaries: Sequence[Summary]) -> None: ...

    def close(self) -> None: ...


class _Directory:
    """A run directory with an event file of our own, which is made when the first step is written."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        _check_writable(directory)
        self.directory = directory
        # As it is now: what others write beside us from here on belongs to the same run.
        self._earlier = {} if resume else _sizes(directory)
        self._file: EventFile | None = None

    def is_there(self) -> bool:
        if self._file is None or self._file.is_there():
            return True
        LOG.warning("%s was deleted: what was written is gone, and vizlog goes on there anew", self._file.path)
        self._file.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._file = EventFile(self.directory)
        return False

    def add(self, step: int, summaries: Sequence[Summary]) -> None:
        if self._file is None:
            self.directory.mkdir(parents=True, exist_ok=True)  # it may have been deleted since it was found writable
            self.directory = _free_directory(self.directory, self._earlier, step)
            self._earlier = {}  # it is free, also for the next try, should the disk be full
            self._file = EventFile(self.directory)
        self._file.append(_events(step, summaries))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _events(step: int, summaries: Sequence[Summary]) -> Iterator[Event]:
    """An event for each summary; always the same object, since to make a new one takes as long as the rest."""
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event(wall_time=time.time(), step=step)
    for summary in summaries:
        event.summary.CopyFrom(summary)
        yield event


class _Writer:
    """A SummaryWriter of the user's."""

    def __init__(self, writer: Any) -> None:
        if getattr(writer, "all_writers", self) is None:
            raise ValueError("this SummaryWriter is closed: give one that is open, or a path")
        self._writer = writer
        file_writer = self._file_writer()
        if not hasattr(file_writer, "add_summary"):
            raise TypeError(
                "TensorBoard takes a path or a SummaryWriter (torch's, tensorboardX's, or a Lightning logger's "
                f"experiment), got {writer!r}"
            )
        log_dir = str(file_writer.get_logdir())
        self.directory = None if "://" in log_dir else Path(log_dir).absolute()
        # tensorboardX makes none where it is told write_to_disk=False.
        self._has_directory = self.directory is not None and exists(self.directory)
        self._late: _Directory | None = None

    def is_there(self) -> bool:
        if self._late is not None:
            return self._late.is_there()
        if self.directory is None or not self._has_directory or exists(self.directory):
            return True
        self._say_deleted()
        self._late = self._beside()  # it writes into a file that nobody will read, or never again
        return False

    def add(self, step: int, summaries: Sequence[Summary]) -> None:
        if self._writer.all_writers is None and self._late is None:
            self._late = self._beside()
        if self._late is not None:
            self._late.add(step, summaries)
            return
        file_writer = self._file_writer()
        added = 0
        try:
            for summary in summaries:
                file_writer.add_summary(self._as_theirs(summary), step)
                added += 1
            self._writer.flush()
        except OSError as error:
            self._late = self._beside()  # it never writes again, not even once there is space
            if error.errno == errno.ENOENT:  # deleted a while ago, and it has found out on a thread of its own
                self._say_deleted()
                added = 0
            elif error.errno is not None:
                raise
            self._late.add(step, summaries[added:])  # the user closes it at this moment, on another thread

    def _say_deleted(self) -> None:
        LOG.warning("%s was deleted: what was written is gone, and vizlog goes on there anew", self.directory)

    def close(self) -> None:
        if self._late is not None:
            self._late.close()

    def _beside(self) -> _Directory:
        """Where to go on once the user has closed the writer: adding to it would open it again, for nobody to close."""
        if self.directory is None:
            raise RuntimeError("the SummaryWriter was closed before vizlog was: close vizlog first")
        return _Directory(self.directory, resume=True)

    def _file_writer(self) -> Any:
        """What takes ready-made summaries, which a SummaryWriter has no public way to; None where this is none."""
        return getattr(self._writer, "_get_file_writer", lambda: None)()

    def _as_theirs(self, summary: Summary) -> Any:
        """The summary in the writer's own class: tensorboardX brings a copy of TensorBoard's protos."""
        if not any(kind.__module__.startswith("tensorboardX.") for kind in type(self._writer).__mro__):
            return summary
        from tensorboardX.proto.summary_pb2 import Summary as TheirSummary

        return TheirSummary.FromString(summary.SerializeToString())


def _require_tensorboard() -> None:
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401 -- found out now, not at the first write
    except ImportError as error:
        raise ImportError("the TensorBoard backend needs tensorboard: pip install 'vizlog[tensorboard]'") from error


def _local(path: str) -> Path:
    if re.match(r"[a-z][a-z0-9+.-]+:/", path, re.IGNORECASE):  # one slash is left of an address in a Path
        raise ValueError(f"TensorBoard writes to local directories, got {path!r}: give it a SummaryWriter instead")
    # Not resolve(): a link stays a link, but "." gets a name that "-2" can be added to.
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _check_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror
        message = f"TensorBoard cannot write to {str(directory)!r} ({reason}): give a directory that can be"
        raise OSError(error.errno, message) from error


def _sizes(directory: Path) -> Mapping[Path, int]:
    sizes = {}
    for path in event_files(directory):
        with contextlib.suppress(OSError):  # deleted at this moment
            sizes[path] = path.stat().st_size
    return sizes


def _free_directory(directory: Path, earlier: Mapping[Path, int], first: int) -> Path:
    """`directory`, or the first of directory-2, -3 … that holds no other run."""
    chosen, number = directory, 1
    while _is_taken(earlier, first):
        number += 1
        chosen = directory.with_name(f"{directory.name}-{number}")
        try:
            chosen.mkdir(exist_ok=True)
        except FileExistsError:  # a file is called so
            continue
        earlier = _sizes(chosen)
    if chosen != directory:
        LOG.warning(
            "%s holds steps %s: writing to %s (TensorBoard(path, resume=True) goes on in the old one)",
            *(directory, f"above {first}" if first else "from 0 on", chosen),
        )
    return chosen


def _is_taken(earlier: Mapping[Path, int], first: int) -> bool:
    """Whether these files hold steps above `first`; or of ours any, where it is 0: such a run goes on with nothing."""
    return any(
        step > first or (step == first == 0 and path.suffix == SUFFIX)
        for path, size in earlier.items()
        for step in steps(path, size)
    )
