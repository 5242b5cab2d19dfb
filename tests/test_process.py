"""The low-priority process: answers, failures, and that no child outlives what it was started for."""

from __future__ import annotations

import copy
import errno
import gc
import importlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

from vizlog.compute.layouts import project
from vizlog.process import LowPriority, _write_frame, shared

needs_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")


@pytest.fixture
def process():
    process = LowPriority()
    yield process
    process.close()


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A module of functions that behave badly, which can be imported."""
    (tmp_path / "odd.py").write_text(
        textwrap.dedent(
            """
            import os, sys, subprocess, time

            class Stubborn(Exception):
                def __init__(self, a, b):
                    super().__init__(f"{a} and {b}")

            def loaded():
                return sorted(sys.modules)

            def chatty(value):
                print("to stdout")
                print("to stderr", file=sys.stderr)
                os.write(1, b"straight to descriptor 1")
                subprocess.run([sys.executable, "-c", "print('from a child')"])
                return value, sys.stdin.read()

            def die_once(path):
                if os.path.exists(path):
                    return "alive"
                open(path, "w").close()
                os._exit(3)

            def die():
                print("x" * 5000 + " and what it said last", file=sys.stderr, flush=True)
                os._exit(7)

            def missing():
                raise ImportError("UMAP needs umap-learn: pip install 'vizlog[embeddings]'")

            def stubborn():
                raise Stubborn(1, 2)

            def unpicklable():
                return lambda: None

            def falls_silent():
                os.closerange(3, 64)
                time.sleep(60)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("odd")
    del sys.modules["odd"]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie has ended too
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return os.name != "posix" or not os.path.isdir("/proc")  # noqa: PTH112


def ends(pid, seconds=20):
    until = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def run(script, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),  # noqa: PTH100, PTH120
        **options,
    )


def test_the_result_equals_that_of_this_process(process):
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    there, here = process.call(project, vectors, ("pca", "tsne")), project(vectors, ("pca", "tsne"))
    for method in ("pca", "tsne"):
        np.testing.assert_allclose(there.layouts[method], here.layouts[method], atol=1e-6)
    assert there.notes == here.notes


def test_nothing_starts_before_the_first_call_and_one_child_serves_all(process):
    assert process.pid is None
    first = process.call(os.getpid)
    assert first == process.pid != os.getpid()
    assert process.call(os.getpid) == first


def test_the_child_imports_no_torch(process, odd):
    process.call(project, np.eye(10), ("pca", "tsne"))
    loaded = process.call(odd.loaded)
    assert "vizlog.compute.layouts" in loaded
    assert not {"torch", "sklearn", "umap"} & set(loaded)


@pytest.mark.parametrize("theirs", ["", "1000"])
def test_the_child_keeps_memory_for_the_next_picture_unless_the_person_decides_otherwise(process, monkeypatch, theirs):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if theirs:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", theirs)
    assert process.call(os.getenv, "MALLOC_TRIM_THRESHOLD_") == (theirs or str(64 * 1024**2))


@needs_posix
def test_the_child_has_low_priority_and_one_thread(process):
    assert process.call(os.nice, 0) >= min(os.nice(0) + 10, 19)
    assert process.call(os.getenv, "OMP_NUM_THREADS") == process.call(os.getenv, "NUMBA_NUM_THREADS") == "1"


def test_large_arguments_and_results_pass(process):
    large = np.arange(2_000_000, dtype=np.float64)
    assert process.call(np.add, large, 1.0)[-1] == 2_000_000


def test_what_libraries_print_does_not_come_between_answers(process, odd, capfd):
    assert process.call(odd.chatty, 5) == (5, "")
    assert process.call(math.sqrt, 9) == 3
    assert capfd.readouterr() == ("", "")


def test_an_error_comes_back_as_it_was_raised(process, odd):
    with pytest.raises(ImportError, match=r"UMAP needs umap-learn: pip install 'vizlog\[embeddings\]'") as caught:
        process.call(odd.missing)
    assert "odd.py" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Stubborn: 1 and 2"):
        process.call(odd.stubborn)
    with pytest.raises(Exception, match=r"pickle|local object"):  # as Python says it, from 3.13 on
        process.call(odd.unpicklable)
    assert process.call(math.sqrt, 4) == 2


def test_a_function_that_cannot_be_imported_is_refused(process, monkeypatch):
    monkeypatch.setattr(is_running, "__module__", "__main__")
    with pytest.raises(ValueError, match="needs a function that can be imported"):
        process.call(is_running, 1)
    assert process.pid is None


def test_a_child_that_died_is_replaced(process, odd, tmp_path):
    first = process.call(os.getpid)
    assert process.call(odd.die_once, str(tmp_path / "died")) == "alive"
    assert process.call(os.getpid) not in (first, os.getpid())


def test_a_child_that_ended_between_calls_is_replaced(process):
    first = process.call(os.getpid)
    os.kill(first, 9)
    assert ends(first)
    second = process.call(os.getpid)
    assert second not in (first, os.getpid())
    process._child.stop()
    assert process.call(os.getpid) not in (first, second, os.getpid())


@needs_posix
def test_ctrl_c_is_for_the_parent(process):
    child = process.call(os.getpid)
    os.kill(child, signal.SIGINT)
    assert process.call(os.getpid) == child


def test_what_was_answered_in_time_is_not_given_up_later(process):
    assert process.call(math.sqrt, 4, timeout=60) == 2
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(30)
        assert not timer.is_alive()


def test_a_child_that_dies_twice_is_an_error_with_its_last_words(process, odd):
    with pytest.raises(RuntimeError, match=r"died twice: exit status 7, after x{1900,2000} and what it said last$"):
        process.call(odd.die)
    assert process.pid is None
    assert process.call(math.sqrt, 4) == 2


def test_a_child_that_falls_silent_has_no_last_words(process, odd, monkeypatch):
    monkeypatch.setattr("vizlog.process._PATIENCE", 0.1)
    with pytest.raises(RuntimeError, match=r"died twice: exit status None$"):
        process.call(odd.falls_silent)
    assert process.call(math.sqrt, 4) == 2


def test_where_the_disk_has_no_room_for_last_words_a_child_goes_without(process, odd, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert process.call(math.sqrt, 4) == 2
    with pytest.raises(RuntimeError, match=r"died twice: exit status 7$"):
        process.call(odd.die)


def test_a_call_that_takes_too_long_is_given_up(process):
    process.call(os.getpid)
    pid = process.pid
    with pytest.raises(TimeoutError, match=r"took longer than 0\.3 s and was stopped"):
        process.call(time.sleep, 60, timeout=0.3)
    assert ends(pid)
    assert process.pid is None
    assert process.call(math.sqrt, 4) == 2


def test_where_no_thread_can_start_the_answer_is_waited_for(process, monkeypatch):
    def none(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert process.call(math.sqrt, 9.0) == 3.0


def test_calls_of_several_threads_take_turns(process):
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: process.call(math.factorial, n)})) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: math.factorial(n) for n in range(8)}


def test_close_stops_the_child_and_a_call_under_way(process):
    pid, failed = process.call(os.getpid), []

    def wait():
        with pytest.raises(RuntimeError, match="closed"):
            process.call(time.sleep, 60)
        failed.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    process.close()
    thread.join(20)
    assert failed
    assert not os.path.isdir("/proc") or not os.path.isdir(f"/proc/{pid}")  # noqa: PTH112 -- not even as a zombie
    assert ends(pid)
    process.close()


def test_all_share_one_child_that_ends_with_the_last_of_them(monkeypatch):
    monkeypatch.setattr("vizlog.process._shared", weakref.WeakValueDictionary())  # which other tests may still hold
    first, second = shared("a"), shared("a")
    assert shared("b") is not first
    assert first is second is copy.deepcopy(first) is pickle.loads(pickle.dumps(first))
    pid = first.call(os.getpid)
    del first
    gc.collect()
    assert second.call(os.getpid) == pid
    del second
    gc.collect()
    assert ends(pid)
    assert shared("a").pid is None


def test_a_closed_one_is_not_shared_again(monkeypatch):
    monkeypatch.setattr("vizlog.process._shared", weakref.WeakValueDictionary())
    process = shared("a")
    process.close()
    assert shared("a") is not process


@needs_posix
@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit(3)", "1 / 0"])
def test_the_child_ends_with_its_parent_however_that_ends(end):
    ran = run(f"""
        import os
        from vizlog.process import shared
        process = shared("a")
        print(process.call(os.getpid), flush=True)
        {end}
    """)
    assert ends(int(ran.stdout))
    assert "vizlog" not in ran.stderr


@needs_posix
def test_a_child_that_is_busy_does_not_outlive_the_exit():
    ran = run("""
        import contextlib, os, threading, time
        from vizlog.process import shared
        process = shared("a")
        print(process.call(os.getpid), flush=True)
        def wait():
            with contextlib.suppress(RuntimeError):
                process.call(time.sleep, 60)
        threading.Thread(target=wait, daemon=True).start()
        time.sleep(0.3)
    """)
    assert ends(int(ran.stdout))
    assert ran.stderr == ""


@needs_posix
def test_what_is_called_at_the_exit_finds_the_child_as_it_was():
    ran = run("""
        import atexit, os
        from vizlog.process import shared
        process = shared("a")
        atexit.register(lambda: print(process.call(os.getpid) == pid))
        pid = process.call(os.getpid)
    """)
    assert ran.stdout == "True\n", ran.stderr
    assert ran.stderr == ""


def test_what_is_no_text_in_the_path_is_passed_over(process, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path("nowhere")])
    assert process.call(math.sqrt, 4) == 2


@needs_posix
def test_a_fork_neither_ends_nor_uses_the_child_of_its_parent():
    ran = run("""
        import os, sys, warnings
        warnings.simplefilter("always", ResourceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from vizlog.process import shared
        process = shared("a")
        pid = process.call(os.getpid)
        fork = os.fork()
        if fork == 0:
            assert process.pid is None
            assert process.call(os.getpid) not in (pid, os.getpid(), os.getppid())
            sys.exit(0)  # runs what is registered for the exit
        assert os.waitpid(fork, 0)[1] == 0
        assert process.call(os.getpid) == pid
        print("same")
    """)
    assert ran.stdout == "same\n", ran.stderr
    assert ran.stderr == ""


def fork_that_waits(reads, writes):
    """A forked process that lives until the pipe's end to write to is closed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        fork = os.fork()
    if fork == 0:
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    return fork


@needs_posix
def test_a_child_ends_by_itself_though_a_fork_of_its_parent_goes_on(process):
    process.call(os.getpid)
    child = process._child  # held, as by a thread that is left behind by the fork
    reads, writes = os.pipe()
    fork = fork_that_waits(reads, writes)
    process.close()
    os.close(writes)
    os.close(reads)
    assert os.waitpid(fork, 0)[1] == 0
    assert child._process.returncode == 0  # else it had to be killed


@needs_posix
@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="posix_spawn starts it, without the pipe that a fork keeps open"
)
def test_a_fork_while_a_child_is_started_does_not_hold_it_up(process, monkeypatch):
    reads, writes = os.pipe()
    pipe, made = os.pipe, []
    under_way, forked = threading.Event(), threading.Event()

    def pipe_and_wait():
        made.append(pipe())
        if len(made) == 3:  # input, output, and the one that tells whether the child could be started
            under_way.set()
            forked.wait(0.5)
        return made[-1]

    monkeypatch.setattr(os, "pipe", pipe_and_wait)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(process.call(math.sqrt, 4)))
    thread.start()
    assert under_way.wait(30)
    fork = fork_that_waits(reads, writes)
    forked.set()
    thread.join(10)
    answered = list(answers)
    os.close(writes)
    os.close(reads)
    assert os.waitpid(fork, 0)[1] == 0
    thread.join()
    assert answered == [2]


@needs_posix
def test_a_fork_in_the_thread_that_starts_a_child_goes_on(process, monkeypatch):
    make_file = tempfile.TemporaryFile

    def fork_first():
        monkeypatch.undo()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            fork = os.fork()
        if fork == 0:
            os._exit(0 if LowPriority().call(math.sqrt, 4) == 2 else 1)
        assert os.waitpid(fork, 0)[1] == 0
        return make_file()

    monkeypatch.setattr(tempfile, "TemporaryFile", fork_first)
    assert process.call(math.sqrt, 9) == 3


@needs_posix
def test_a_busy_child_that_is_let_go_is_neither_waited_for_nor_ended(process, monkeypatch):
    pid = process.call(os.getpid)
    child = process._child
    monkeypatch.setattr("vizlog.process._PATIENCE", 0.1)
    _write_frame(child._requests, pickle.dumps((time.sleep, (60,))))
    child.disown()
    child.stop()
    try:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it runs
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_script_is_not_run_again_and_the_current_folder_is_not_searched(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    script = tmp_path / "scripts" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "print('running')\n"
        "import numpy\n"
        "from vizlog.process import shared\n"
        "from vizlog.compute.projection import pca\n"
        "process = shared('a')\n"
        "print(process.call(pca, numpy.eye(3)).shape)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert ran.stdout == "running\n(3, 2)\n", ran.stderr
