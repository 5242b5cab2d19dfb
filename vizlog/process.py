"""Low-priority processes: where pictures are drawn and what takes seconds runs, so that training never waits."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable
from io import FileIO
from typing import IO, Any, TypeVar, cast

__all__ = ["ClosedError", "LowPriority", "shared"]

T = TypeVar("T")

_LENGTH = struct.Struct("<Q")
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 26)}
"""Has GNU's C library keep up to 64 MB that a child has freed: to hand it back after each picture, and to be given it
anew page by page, took a quarter of the time in which one is drawn."""
_NICE = 10
_PATIENCE = 2.0
"""Seconds in which a child that is told to stop may do so by itself."""

_starting = threading.RLock()
"""Held while a child is started and while this process forks: a fork made in between would keep its pipes open."""

_live: weakref.WeakSet[LowPriority] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[str, LowPriority] = weakref.WeakValueDictionary()


class ClosedError(RuntimeError):
    """The low-priority process is closed, as all are where this process ends."""


class LowPriority:
    """Runs functions in one child process of low priority, with one thread, that starts with the first call.

    The child is a fresh interpreter which imports nothing but what the functions need; the person's script is not run
    in it. It ends with this object and with this process, however that ends, but not with a fork of it. Pickled, this
    object becomes the one that is shared under its name where it arrives.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._forget()
        _live.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False

    def __reduce__(self) -> tuple[Callable[[str], LowPriority], tuple[str]]:
        return shared, (self._name,)

    def __deepcopy__(self, memo: dict[int, Any]) -> LowPriority:
        return self

    @property
    def pid(self) -> int | None:
        """The child's process id; None where none runs."""
        child = self._child
        return None if child is None else child.pid

    def call(self, function: Callable[..., T], *arguments: Any, timeout: float = 600.0) -> T:
        """What `function(*arguments)` returns in the child; blocks the calling thread alone.

        A child that has died is replaced once.

        Args:
            function: of a module that can be imported; it and its arguments are pickled.
            timeout: seconds after which the child is killed.

        Raises:
            TimeoutError: it took longer than that.
            RuntimeError: the child died twice, with what it said last.
            ClosedError: this object is closed.
            Exception: whatever the function raised, with the child's traceback as its cause.
        """
        if getattr(function, "__module__", None) == "__main__":
            raise ValueError(
                f"a low-priority process needs a function that can be imported, got {function!r} of a script"
            )
        request = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                answer = self._started().ask(request, timeout)
            except _DiedError:
                self._drop()
                try:
                    answer = self._started().ask(request, timeout)
                except _DiedError as died:
                    self._drop()
                    raise RuntimeError(f"the low-priority process died twice: {died}") from None
            except TimeoutError:
                self._drop()
                raise
        succeeded, result, where = pickle.loads(answer)  # noqa: S301 (from our own child)
        if not succeeded:
            raise result from RuntimeError(f"in the low-priority process:\n{where}")
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Stops the child, for good; a call under way fails."""
        self._closed = True
        self._drop()

    def _started(self) -> _Child:
        if self._closed:
            raise ClosedError("the low-priority process is closed")
        if self._child is None:
            with _starting:
                self._child = _Child()
            weakref.finalize(self, self._child.stop).atexit = False  # what is registered for the exit may need it
        return self._child

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def _left_by_fork(self) -> None:
        """In a forked child: the process belongs to the parent, and a lock may be held by a thread that is not here."""
        if self._child is not None:
            self._child.disown()
        self._forget()


def shared(name: str) -> LowPriority:
    """The low-priority process that all who ask for this name share, as long as anyone holds it."""
    found = _shared.get(name)
    if found is None or found._closed:  # noqa: SLF001 (its own module)
        found = _shared[name] = LowPriority(name)
    return found


class _DiedError(Exception):
    """The child ended without an answer."""


class _Child:
    """A child process and the pipes to it: frames of a length and a pickle, both ways."""

    def __init__(self) -> None:
        # Where this process finds modules, the child finds them too, and nowhere else: not in the current folder.
        paths = [path for path in sys.path if isinstance(path, str)]
        code = f"import sys; sys.path[:] = {paths!r}; from vizlog.process import _serve; _serve()"
        self._said = _scratch()
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own code)
                [sys.executable, "-c", code],
                bufsize=0,  # a buffer has a lock, which a fork would inherit as it is
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if self._said is None else self._said,
                env={**_MEMORY, **os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows
            )
        except BaseException:
            self._close_scratch()
            raise
        self._requests, self._answers = cast(FileIO, self._process.stdin), cast(FileIO, self._process.stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: bytes, timeout: float) -> bytearray:
        """The pickled answer to a pickled request."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(timeout, expire)  # a daemon where its caller is
        # While the interpreter ends, Python 3.12 starts no thread: then the answer is waited for.
        with contextlib.suppress(RuntimeError):
            timer.start()
        try:
            _write_frame(self._requests, request)
            answer = _read_frame(self._answers)
        except (OSError, ValueError):  # a broken pipe, or one that close() closed
            answer = None
        finally:
            timer.cancel()
        if answer is not None:
            return answer
        if expired.is_set():
            raise TimeoutError(f"the low-priority process took longer than {timeout:g} s and was stopped")
        raise _DiedError(self._last_words())

    def stop(self) -> None:
        """Closes the child's input, which ends it; ends it the hard way where it is busy. May be called twice."""
        self._requests.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._close_scratch()

    def disown(self) -> None:
        """Lets go of it without a trace: it is another process's child."""
        for pipe in (self._requests, self._answers):
            pipe.close()
        self._process.returncode = 0  # so that nothing here waits for it, nor ends it

    def _close_scratch(self) -> None:
        if self._said is not None:
            self._said.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        words = ""
        if self._said is not None:
            with contextlib.suppress(ValueError):  # close() closed it
                end = self._said.seek(0, os.SEEK_END)
                self._said.seek(max(0, end - 2000))
                words = self._said.read().decode(errors="replace").strip()
        return f"exit status {self._process.returncode}{', after ' + words if words else ''}"


def _scratch() -> IO[bytes] | None:
    """A file for what a child says; None where the disk has no room for one, for it does its work all the same."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return None


def _write_frame(pipe: FileIO, payload: bytes) -> None:
    rest = memoryview(_LENGTH.pack(len(payload)) + payload)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read_frame(pipe: FileIO) -> bytearray | None:
    """The next frame, or None where the other side has closed."""
    head = _read(pipe, _LENGTH.size)
    return None if head is None else _read(pipe, _LENGTH.unpack(head)[0])


def _read(pipe: FileIO, length: int) -> bytearray | None:
    found = bytearray(length)
    rest = memoryview(found)
    while rest:
        if not (number := pipe.readinto(rest)):
            return None
        rest = rest[number:]
    return found


def _serve() -> None:
    """In the child: answers requests until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if hasattr(os, "nice"):
        os.nice(_NICE)
    # What libraries print goes where errors go, and must not come between two answers.
    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    while (request := _read_frame(requests)) is not None:
        _write_frame(answers, _answer(request))


def _answer(request: bytearray) -> bytes:
    try:
        function, arguments = pickle.loads(request)  # noqa: S301 (from our own parent)
        return pickle.dumps((True, function(*arguments), ""), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 (the parent raises it)
        return pickle.dumps((False, _portable(error), traceback.format_exc()))


def _portable(error: Exception) -> Exception:
    """The error, or its words where it does not survive being pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _close_all() -> None:
    for process in list(_live):
        process.close()


def _left_by_fork() -> None:
    _starting.release()
    for process in list(_live):
        process._left_by_fork()  # noqa: SLF001 (its own module)


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_left_by_fork)
