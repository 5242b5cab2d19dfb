"""Weights & Biases: each record as the panel that W&B draws best, in rows that leave the owner's own rows whole."""

from __future__ import annotations

import atexit
import functools
import hashlib
import html
import importlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_never

from vizlog.backends.base import Drawable
from vizlog.backends.patience import Patience
from vizlog.backends.pictures import Pictures
from vizlog.backends.wandb_numbers import bins_of, short, short_histograms
from vizlog.backends.wandb_process import runs
from vizlog.backends.wandb_rows import Rows
from vizlog.diagnosis import STOPPED_BECAUSE
from vizlog.messages import LOG, one_line
from vizlog.records import (
    Attention,
    Curves,
    Embedding,
    Heatmaps,
    Histogram,
    Images,
    Record,
    Scalar,
    Surface,
    Text,
    without_surrogates,
)

if TYPE_CHECKING:
    import wandb

__all__ = ["WandB"]

_STEP = "vizlog/step"
_NONFINITE = "vizlog/nonfinite_scalars"
_LEFT_OUT = "vizlog/files_left_out"
_HISTOGRAMS_LEFT_OUT = "vizlog/histograms_left_out"
_MOST_BINS = 64
_FEWEST_BINS = 8
_ROW_BYTES = 900_000
_BIN_BYTES = 24
_NAME_BYTES = 120
_LONGEST_ARTIFACT = 100  # bytes of a name of 128, the run's id and the key of a table among them
_LONGEST_KEY = 180  # bytes; file systems take names of 255, and the client adds step, hash and ending
_KINDS = "activations attention embeddings feature_maps filters gradients health saliency updates weights".split()
_PARTS = {
    "Histogram": "_type bins values",
    "Image": "_type caption format height path sha256 size width",
    "Plotly": "_type path sha256 size",
    "Html": "_type path sha256 size",
    "Table": "_latest_artifact_path _type artifact_path log_mode ncols nrows path sha256 size",
}
"""What the client takes each type apart into for the summary."""
_STYLE = """
body { font: 14px/1.5 sans-serif; color: #222; background: #fff; margin: 12px }
td, th { padding: 2px 12px 2px 0; text-align: left }
footer { color: #666 }
"""


class WandB:
    """Writes to a W&B run that you started and will finish.

    One call of `write` makes one row of the run's history, with `vizlog/step` as its x-axis. Dots in tags become `/`:
    W&B takes dots for nesting; keys of more than 180 bytes are cut and end in a hash. What a record becomes:

    - Scalar: a number. Sweeps read the summary, which must stay finite: NaN and infinite values are left out, counted
      in `vizlog/nonfinite_scalars`, and the first one is said.
    - Histogram: a native one of 64 bins; of a tensor of up to 2,048 values 32, of up to 512 16. Fewer where a row would
      pass 1 MB, from about 500 histograms of many values on, and over 2,900 some are left out and counted in
      `vizlog/histograms_left_out`. From the first non-finite value on also `TAG/nans` and `TAG/infs`.
    - Images, Heatmaps, Attention: one PNG with the caption.
    - Curves, Surface: an interactive Plotly chart, or a PNG where plotly is not installed.
    - Embedding: a PNG of its layouts, its scores as `TAG/SCORE`, and a table `TAG/table` (id, label, a column for each
      dimension) for W&B's "2D Projection". Tables are artifacts, and slow: one is kept when the step has doubled.
    - Text: a page of HTML.

    The run's summary gets the health scalars, `vizlog/dead_units_worst` and the others, under the same keys in every
    run, so that a sweep can compare them; what else vizlog writes depends on the model, and stays out of it. What is
    logged with `monitor.log` gets into it under any name. Where `stop_when` stops the training, W&B sends you an alert.

    Where you log with `step=`, W&B keeps one row for each of your steps and refuses to go back; vizlog then writes into
    your rows, or between them, and what finds no row there until `close` follows as you finish the run. Its rows wait
    for your first, to learn which way you log: at most 100 of them, and until `close` or the end of the run.
    `run.log({})` sends them at once, and `run.log({}, step=0)` before training says that you will number your rows. A
    run that is finished before the monitor is closed first takes all that is under way.

    A key that is yours by the time of vizlog's first value, in the summary or as one of `wandb.watch`, stays yours:
    vizlog's own value is `KEY-vizlog` then, and that is said. One that you take later is a key of both.

    Where W&B's process on this machine is dead or stopped, nothing waits for it longer than 4 seconds, and what it did
    not take is said; as long as it lives, everything is handed to it, on a busy machine too. The service itself is
    asked for tables alone: where it does not answer, rows go without them, and they follow when it does.

    Args:
        run: a `wandb.Run`, such as Lightning's `WandbLogger.experiment`; None: the active one. A disabled run, and what
            Lightning hands to ranks that do not log, are taken, and nothing is written.
        step_key: a second key for the step, which is yours too: Lightning's logger makes `trainer/global_step` the
            x-axis of every key. Rows that are late have `vizlog/step` alone, for W&B fills the latest value of yours
            that it has seen into rows of yours that lack it.
        max_files: pictures, charts and tables are files. The first half goes to whatever comes; after that each tenfold
            of the steps takes half of what is left, evenly over tags. `vizlog/files_left_out` counts the rest.

    Raises:
        ImportError: wandb is not installed.
        RuntimeError: no run is active, or this one is finished.
        TypeError: `run` is not a run.
        ValueError: `max_files` is no number of files.
    """

    def __init__(self, run: wandb.Run | None = None, *, step_key: str | None = None, max_files: int = 1000) -> None:
        if isinstance(max_files, bool) or not isinstance(max_files, int) or max_files < 0:
            raise ValueError(f"WandB needs max_files >= 0, got {max_files!r}")
        opened = _open_run(run)
        self._step_keys = (_STEP,) if step_key is None else (_STEP, step_key)
        self._client = Patience(lives=lambda: opened is not None and runs(opened))
        self._service = Patience()
        self._refused_tables = False
        self._now: Callable[[], int] = lambda: -1
        self._deliver: Callable[[], None] | None = None
        if opened is not None:
            _import_what_rows_take()
        self._rows = None if opened is None else self._open_rows(opened, step_key)
        self._files = _FileBudget(max_files)
        self._drawable = Drawable()
        self._pictures = Pictures()
        self._defined = set(self._step_keys)
        self._tags: dict[str, str] = {}
        self._logged: set[str] = set()
        self._names: dict[str, str] = {}
        self._bins = _MOST_BINS
        self._histograms_left_out = 0
        self._with_nonfinite: set[str] = set()
        self._nonfinite_scalars = 0
        self._alerted = False
        self._is_closed = False

    def write(self, step: int, records: Sequence[Record]) -> None:
        if self._is_closed:
            raise ValueError("this WandB is closed: give each training a new one, vizlog.WandB(run)")
        rows = self._rows
        if rows is None:
            return
        if _is_finished(rows.run):
            self._give_up(rows.run, step)
            return
        row = self._row(step, records)
        tables = {key: row.pop(key) for key in list(row) if type(row[key]).__name__ == "Table"}
        self._call(self._adding(rows, step, {**row, **self._registered(rows, step, tables)}), step)

    def summarise(self, step: int, scalars: Mapping[str, float], stopped_because: str = "") -> None:
        """Writes the health scalars into the run's summary."""
        if self._rows is None or _is_finished(self._rows.run):
            return
        run = self._rows.run
        alerts = bool(stopped_because) and not self._alerted
        self._alerted = self._alerted or alerts

        def summarise() -> None:
            run.summary.update({**scalars, STOPPED_BECAUSE: stopped_because})
            if alerts:
                text = f"At step {step}: {stopped_because}"
                run.alert(title="vizlog: the training should stop", text=text, level="WARN")

        self._call(summarise, step)

    def accompany(self, now: Callable[[], int], deliver: Callable[[], None]) -> None:
        """Has `deliver` called where the owner finishes the run first; `now` says which step the training is at."""
        self._now, self._deliver = now, deliver

    def close(self) -> None:
        """Lets go of the run, which stays open: it is its owner's."""
        if self._rows is not None:
            self._end(self._rows, self._rows.close)
            self._is_closed = True
        self._rows = self._deliver = None

    def _open_rows(self, run: wandb.Run, step_key: str | None) -> Rows:
        """Rows that wait for the owner's, unless those are charted by a key: then they are not numbered by `step=`."""

        def run_ends() -> None:
            if self._deliver is not None:
                self._deliver()
            if rows.pending or self._rows is rows:
                self._end(rows, rows.run_ends)

        def now() -> int:
            return self._now()

        will_hear = _before_finish(run, run_ends)
        # What waits would be lost where the owner finishes the run before us and nobody says so.
        waits = will_hear and step_key is None
        rows = Rows(
            run,
            waits=waits,
            hears_end=will_hear,
            keys=self._step_keys,
            shared_key=step_key,
            now=now,
            written=self._client.sign_of_life,
        )
        return rows

    def _row(self, step: int, records: Sequence[Record]) -> dict[str, Any]:
        """What these records become, by key."""
        fitting = self._fitting(records)
        # Numbers of vizlog's own have a caption.
        self._logged.update(_key(one.tag) for one in fitting if isinstance(one, Scalar) and not one.caption)
        try:
            histograms = _histograms(fitting, self._bins)
        except Exception:  # noqa: BLE001 -- with one among them that cannot be drawn, each by itself, to find which
            histograms = {}
        row: dict[str, Any] = {}
        for record in fitting:
            if isinstance(record, Histogram) and (found := histograms.get(id(record))):
                row.update(self._histogram(record, found))
            else:
                for values in self._drawable.each(lambda record: dict(self._values(step, record)), [record]):
                    row.update(values)
        return row | self._counts(records)

    def _key_of(self, tag: str) -> str:
        key = _key(tag)
        if (other := self._tags.setdefault(key, tag)) not in (tag, ""):
            self._tags[key] = ""
            LOG.warning("the tags %r and %r have one W&B key, under which the later value is written", other, tag)
        return key

    def _adding(self, rows: Rows, step: int, row: Mapping[str, Any]) -> Callable[[], None]:
        """What writes a row."""

        def add() -> None:
            if _is_finished(rows.run):  # while we drew; the client would wait half a minute
                if self._rows is rows:
                    self._give_up(rows.run, step)
                return
            ours = self._apart(rows.run, row)
            self._define(rows.run, ours)
            rows.add(step, {**ours, **dict.fromkeys(self._step_keys, step)})

        return add

    def _apart(self, run: wandb.Run, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row, with another name for what vizlog would write under a key of the owner's, which keeps its x-axis.

        Looked for once a key, before its first value. Such keys are the owner's if they are in the summary: vizlog
        keeps its own out of it, in runs that are resumed and by other monitors too.
        """
        new = [key for key, value in row.items() if key not in self._names and self._is_of_its_own(key, value)]
        if new:
            owners = _keys_of_owner(run)
            self._names.update({key: f"{key}-vizlog" if key in owners else key for key in new})
            if taken := [key for key in new if key in owners]:
                LOG.warning(
                    "%d keys of vizlog's are its owner's in the W&B run %s: instead of %r vizlog writes %r",
                    len(taken),
                    run.id,
                    taken[0],
                    self._names[taken[0]],
                )
        return {self._names.get(key, key): value for key, value in row.items()}

    def _registered(self, rows: Rows, step: int, tables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of the tables that the client has made artifacts of, for which it asks the service and waits.

        Where it waits long none of them; they come as a row of their own, then.
        """
        if not tables:
            return {}
        try:
            from wandb.sdk.data_types.utils import val_to_json
        except ImportError:  # of another version of the client: it asks while the row is logged, then
            return tables
        run, taken = rows.run, {}

        def register() -> None:
            for key, table in tables.items():
                try:
                    val_to_json(run, key, table, namespace=step)  # what `run.log` does with one that it has not seen
                except Exception as error:  # noqa: BLE001 -- whatever the service says, the rest of the row goes out
                    self._say_refused(run, error)
                else:
                    taken[key] = table

        def follow() -> None:
            if taken:
                self._call(self._adding(rows, step, taken), step)

        done = self._service.call(register, follow)
        return dict(taken) if done else {}

    def _say_refused(self, run: wandb.Run, error: Exception) -> None:
        if not self._refused_tables and not _is_finished(run):
            self._refused_tables = True
            LOG.warning("the W&B run %s took no table: %s", run.id, one_line(error))

    def _end(self, rows: Rows, write: Callable[[], None]) -> None:
        """Writes what waits, as far as the client takes it."""
        if _is_finished(rows.run) or self._client.is_forked:
            return
        if not self._service.wait() or self._service.dropped:
            LOG.warning("the W&B service does not answer: the run %s may lack vizlog's latest tables", rows.run.id)
        done = self._client.call(write)
        if not done or self._client.dropped:
            LOG.warning(
                "the W&B client does not answer: the run %s may lack vizlog's latest rows, %d of them for certain",
                rows.run.id,
                self._client.dropped,
            )

    def _call(self, work: Callable[[], None], step: int) -> None:
        from wandb.errors import UsageError

        rows = self._rows
        try:
            self._client.call(work)
        except (UsageError, TimeoutError):
            if rows is None or not _is_finished(rows.run):
                raise
            self._give_up(rows.run, step)  # finished at this very moment

    def _give_up(self, run: wandb.Run, step: int) -> None:
        self._rows = None
        LOG.warning(
            "the W&B run %s was finished before vizlog: what came from step %d on is not in it "
            "(close the monitor before the run)",
            run.id,
            step,
        )

    def _values(self, step: int, record: Record) -> Iterator[tuple[str, Any]]:
        key = self._key_of(record.tag)
        match record:
            case Scalar():
                yield from self._scalar(step, key, record.value)
            case Histogram():
                yield from self._histogram(record, _histograms([record], self._bins)[id(record)])
            case Images() | Heatmaps() | Attention():
                if self._files.take(step, key):
                    yield key, self._picture(record)
            case Curves() | Surface():
                if self._files.take(step, key):
                    yield key, self._chart(record)
            case Embedding():
                yield from self._embedding(step, key, record)
            case Text():
                if self._files.take(step, key):
                    yield key, _page(record)
            case _:
                assert_never(record)

    def _scalar(self, step: int, key: str, value: float) -> Iterator[tuple[str, float]]:
        if math.isfinite(value):
            yield key, float(value)
            return
        self._nonfinite_scalars += 1
        if self._nonfinite_scalars == 1:
            LOG.warning(
                "%s is %s at step %d: W&B gets finite scalars only; such ones are counted in %s",
                key,
                value,
                step,
                _NONFINITE,
            )

    def _histogram(self, record: Histogram, drawn: wandb.Histogram) -> Iterator[tuple[str, Any]]:
        key = self._key_of(record.tag)
        yield key, drawn
        if self._tells_nonfinite(record):
            self._with_nonfinite.add(record.tag)
            yield f"{key}/nans", record.nans
            yield f"{key}/infs", record.pos_infs + record.neg_infs

    def _tells_nonfinite(self, record: Histogram) -> bool:
        # That they are gone is worth seeing too.
        return bool(record.nans or record.pos_infs or record.neg_infs) or record.tag in self._with_nonfinite

    def _picture(self, record: Record) -> wandb.Image:
        import wandb
        from PIL import Image

        drawn = Image.open(io.BytesIO(self._pictures.of(record).png))
        return wandb.Image(drawn, caption=record.caption or None)

    def _chart(self, record: Curves | Surface) -> wandb.Plotly | wandb.Image:
        import wandb

        try:
            from plotly.graph_objects import Figure
        except ImportError:
            return self._picture(record)
        chart = self._pictures.chart(record)
        # It was checked where it was made; plotly would take the interpreter from training for that again.
        return wandb.Plotly(Figure(chart, skip_invalid=True, _validate=False))

    def _embedding(self, step: int, key: str, record: Embedding) -> Iterator[tuple[str, Any]]:
        if self._files.take(step, key):
            yield key, self._picture(record)
        assert self._rows is not None
        table = _cut(key, max(_LONGEST_ARTIFACT - len(self._rows.run.id), 20)) + "/table"
        if self._files.take(step, table, files=2, growth=2.0):  # the table and its artifact
            yield table, _table(record)
        for name, score in record.scores.items():
            yield from self._scalar(step, f"{key}/{_key(name)}", score)

    def _counts(self, records: Iterable[Record]) -> dict[str, int]:
        counts: dict[str, int] = {}
        if any(isinstance(record, Scalar) for record in records):
            counts[_NONFINITE] = self._nonfinite_scalars  # 0 too: the runs of a sweep must have the same keys
        if self._files.left_out:
            counts[_LEFT_OUT] = self._files.left_out
        if self._histograms_left_out:
            counts[_HISTOGRAMS_LEFT_OUT] = self._histograms_left_out
        return counts

    def _fitting(self, records: Sequence[Record]) -> Sequence[Record]:
        """What fits a row: with many histograms each has fewer bins, and of very many some are left out, evenly."""
        histograms = [record for record in records if isinstance(record, Histogram)]
        if not histograms:
            return records
        keys = 1 + 2 * sum(map(self._tells_nonfinite, histograms)) / len(histograms)
        most = int(_ROW_BYTES / (keys * _NAME_BYTES + _FEWEST_BINS * _BIN_BYTES))
        shown = min(len(histograms), most)
        kept = {id(record): bins_of(record) for record in _spread(histograms, shown)}
        bins, room = self._bins, int((_ROW_BYTES - shown * keys * _NAME_BYTES) / _BIN_BYTES)
        while bins > _FEWEST_BINS and sum(min(wanted, bins) for wanted in kept.values()) > room:
            bins //= 2
        left_out = len(histograms) - shown
        if bins < self._bins or (left_out and not self._histograms_left_out):
            LOG.warning(
                "%d histograms are too many for a row of a W&B run: vizlog writes %d, of at most %d bins; %s counts "
                "those left out; select fewer for finer ones",
                len(histograms),
                shown,
                bins,
                _HISTOGRAMS_LEFT_OUT,
            )
        self._bins = bins
        self._histograms_left_out += left_out
        return [record for record in records if not isinstance(record, Histogram) or id(record) in kept]

    def _define(self, run: wandb.Run, row: Mapping[str, Any]) -> None:
        """Gives each new key its x-axis under its exact name: which of several matching globs wins is chance in W&B.

        A key of one kind of model alone stays out of the summary, where all runs of a sweep should have the same.
        """
        if self._defined == set(self._step_keys):
            run.define_metric(_STEP, hidden=True)
        for key, value in row.items():
            if key not in self._defined:
                self._defined.add(key)
                summary = "none" if self._is_of_its_own(key, value) else None
                run.define_metric(key, step_metric=_STEP, step_sync=False, summary=summary)
                for part in _parts(value):  # where a value has parts, the client heeds only what is said of each
                    run.define_metric(f"{key}.{part}", summary="none")
                self._client.sign_of_life()

    def _is_of_its_own(self, key: str, value: Any) -> bool:
        """Whether a key may be of one kind of model alone; what `monitor.log` takes is its caller's choice."""
        if _parts(value) or key in (_LEFT_OUT, _HISTOGRAMS_LEFT_OUT):
            return True
        return key.partition("/")[0] in _KINDS and key not in self._logged


def _parts(value: Any) -> list[str]:
    return _PARTS.get(type(value).__name__, "").split()


class _FileBudget:
    """Spreads at most `most` files over a run whose length nobody knows, evenly over keys, from the step alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = most
        self._last: dict[str, int] = {}
        self.left_out = 0

    def take(self, step: int, key: str, *, files: int = 1, growth: float = 1.0) -> bool:
        """Whether something of `key` may be written: files are left, and the step has grown enough since the last one.

        What its own `growth` (a factor) leaves out is by design, and not counted.
        """
        last = self._last.get(key, -1)
        starts = last < 0 or step < last  # a step that goes back starts a new count
        if not starts and step < growth * last:
            return False
        if self._left < files or not (starts or step >= self._growth() * last):
            self._leave_out(step)
            return False
        self._last[key] = step
        self._left -= files
        return True

    def _growth(self) -> float:
        if 2 * self._left > self._most:
            return 1.0
        # 1.5 times the keys in the exponent: a tenfold of the steps leaves exp(-1 / 1.5), about half, of what is left.
        return float(10.0 ** min(1.5 * len(self._last) / self._left, 100.0))

    def _leave_out(self, step: int) -> None:
        self.left_out += 1
        if self.left_out == 1:
            LOG.warning(
                "vizlog writes at most %d files into a W&B run: from step %d on pictures are thinned, and %s counts "
                "what is left out; WandB(max_files=...) sets the limit",
                self._most,
                step,
                _LEFT_OUT,
            )


def _open_run(run: Any) -> wandb.Run | None:
    """The run to write to, or None where there is nothing to write."""
    try:
        import wandb
    except ImportError:
        raise ImportError("the W&B backend needs wandb: pip install 'vizlog[wandb]'") from None
    run = wandb.run if run is None else run
    if run is None:
        raise RuntimeError("no W&B run is active: call wandb.init() first, or pass a run: vizlog.WandB(run)")
    if type(run).__name__.endswith("DummyExperiment"):  # Lightning's, on ranks that do not log
        return None
    if not isinstance(run, wandb.Run):
        raise TypeError(
            f"WandB takes a wandb.Run (a Lightning logger's is logger.experiment), got {type(run).__name__}"
        )
    if run.disabled:
        return None
    if _is_finished(run):
        raise RuntimeError(f"the W&B run {run.id} is already finished: call wandb.init() for a new one")
    return run


def _import_what_rows_take() -> None:
    """Imports here, if it is there, what the client and the first chart would import in the midst of the first steps.

    That takes seconds there, and holds training up: at each of some hundred files a thread gives the interpreter up and
    waits for it again. And plotly looks into a pandas that it finds half imported, and fails.
    """
    with suppress(Exception):  # whoever needs it says what is wrong with it
        importlib.import_module("pandas")
    with suppress(Exception):
        from plotly.graph_objects import Figure

        # It imports each kind of trace when one is made.
        Figure({"data": [{"type": "scatter"}, {"type": "surface"}], "layout": {"template": "plotly_white"}})


def _before_finish(run: wandb.Run, work: Callable[[], None]) -> bool:
    """Has `work` done once, when the owner finishes the run or the process ends; False where the client cannot."""
    try:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage
    except ImportError:
        return False
    hooks = getattr(run, "_teardown_hooks", None)
    if not isinstance(hooks, list):
        return False

    process = os.getpid()

    def call() -> None:
        atexit.unregister(call)
        if os.getpid() != process:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 -- the owner's run finishes, whatever happens to us
            LOG.warning("vizlog could not write all that it has for the W&B run %s: %s", run.id, error)

    hooks.append(TeardownHook(call, TeardownStage.EARLY))
    atexit.register(call)  # the client ends runs that are open then without a word to anybody
    return True


def _keys_of_owner(run: wandb.Run) -> set[str]:
    """What the owner has logged, and what `wandb.watch` is going to log."""
    try:
        summary: Any = run.summary
        return {*summary.keys(), *getattr(getattr(run, "_torch_history", None), "_hook_handles", ())}
    except Exception:  # noqa: BLE001 -- a client that does not answer says so of the row
        return set()


def _is_finished(run: wandb.Run) -> bool:
    return bool(getattr(run, "_is_finished", False))


@functools.lru_cache(1 << 16)  # the same at every due step
def _key(tag: str) -> str:
    """A tag as W&B takes it: dots nest there, a star is a wildcard, and media files are called after their key."""
    return _cut(without_surrogates(tag).translate({ord("."): "/", ord("*"): "_", 0: "_"}), _LONGEST_KEY)


def _cut(key: str, most: int) -> str:
    """A key of at most so many bytes; one that was cut ends in a hash of all of it."""
    encoded = key.encode()
    if len(encoded) <= most:
        return key
    return f"{encoded[: most - 17].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _histograms(records: Sequence[Record], most: int) -> dict[int, wandb.Histogram]:
    """The histograms among them, by id."""
    import wandb

    histograms = [record for record in records if isinstance(record, Histogram)]
    columns: Any = short_histograms(histograms, most)
    return {id(record): wandb.Histogram(np_histogram=both) for record, both in zip(histograms, columns, strict=True)}


def _spread(records: Sequence[Histogram], number: int) -> Iterator[Histogram]:
    """So many of them, evenly."""
    return (records[k * len(records) // number] for k in range(number))


def _table(record: Embedding) -> wandb.Table:
    import wandb

    labels = _labels(record)
    rows = [
        [example, label, *vector]
        for example, label, vector in zip(record.ids.tolist(), labels, short(record.vectors).tolist(), strict=True)
    ]
    columns: list[str | int] = ["id", "label", *(f"x{dimension}" for dimension in range(record.vectors.shape[1]))]
    # The client checks each number that it is given, which is most of a table's cost; all rows are typed as one.
    typed = next((row for row in rows if row[1] is not None), rows[0])
    table = wandb.Table(columns=columns, data=[typed])
    table.data[:] = rows
    return table


def _labels(record: Embedding) -> list[Any]:
    """A name for each point, or a number of a quantity; None for none."""
    if record.is_of_quantity:
        return [label if math.isfinite(label) else None for label in short(record.labels, 6).tolist()]
    names = {number: without_surrogates(str(name)) for number, name in enumerate(record.class_names)} | {-1: ""}
    return [names.get(label, str(label)) for label in record.labels.tolist()]


def _page(record: Text) -> wandb.Html:
    """Markdown as a page that needs nothing from outside; tags in the text are shown, not obeyed."""
    import wandb
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(record.text)
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(record.tag)}</title><style>{_STYLE}</style>"
    return wandb.Html(f"{head}{body}<footer>{html.escape(record.caption)}</footer>", inject=False)
