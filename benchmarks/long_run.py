"""What a run of 450,000 steps writes at the default schedules: real records, written as often as they come due."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

import vizlog
from benchmarks.models import resnet
from benchmarks.peers import offline_run
from benchmarks.results import Found, at_most
from vizlog.backends.summaries import Summaries
from vizlog.records import Curves, Embedding, Histogram, Record, Scalar, Text

_STEPS = 450_000
_PICTURES = ("filters", "feature_maps", "saliency", "embeddings", "attention")


def run() -> Found:
    memory = _recorded()
    steps = sorted({step for step, _ in memory.records})
    records = {step: [record for at, record in memory.records if at == step] for step in steps}
    numbers, pictures = (list(_due(schedule)) for schedule in (vizlog.Thinning(), vizlog.LogSpaced(every=100)))
    times = Counter(numbers=len(numbers), pictures=len(pictures))
    bytes_of = _tensorboard_bytes(records, times)
    rows = [
        at_most("histograms a tag", 500, times["numbers"], ""),
        at_most("pictures a tag", 60, times["pictures"], ""),
        at_most("files in W&B", 1000, _wandb_files(records[steps[-1]], numbers, set(pictures)), ""),
        at_most("TensorBoard's run of a ResNet-50", 250, sum(bytes_of.values()) / 1e6, "MB"),
    ]
    return Found(rows, {"bytes": dict(bytes_of)})


def _recorded() -> vizlog.Memory:
    """All records of a ResNet-50 at its first three due steps."""
    torch.manual_seed(0)
    model = resnet((3, 4, 6, 3), expansion=4)
    images, labels = torch.rand(256, 3, 32, 32), torch.randint(0, 10, (256,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    memory = vizlog.Memory()
    with vizlog.Monitor(model, to=memory, batch=(images, labels), optimizer=optimizer) as monitor:
        for step in (0, 100, 200):
            with monitor.step(step):
                optimizer.zero_grad()
                F.cross_entropy(model(images[:8]), labels[:8]).backward()
            optimizer.step()
            monitor.flush()
    return memory


def _due(schedule: vizlog.Schedule) -> Iterator[int]:
    step: int | None = schedule.next_step(-1)
    while step is not None and step < _STEPS:
        yield step
        step = schedule.next_step(step)


def _is_picture(record: Record) -> bool:
    return record.tag.partition("/")[0] in _PICTURES or isinstance(record, Curves)


def _tensorboard_bytes(records: dict[int, list[Record]], times: Counter[str]) -> dict[str, int]:
    """Bytes by kind: those of the first step, which have captions, and those of the last as often as they come."""
    from tensorboard.compat.proto.event_pb2 import Event

    summaries = Summaries()
    total: defaultdict[str, int] = defaultdict(int)
    first, *_, last = sorted(records)
    for step in (first, last):
        for record in records[step]:
            often = 1 if step == first else times["pictures" if _is_picture(record) else "numbers"] - 1
            event = Event(wall_time=1e9, step=_STEPS, summary=summaries.of(record))
            total[record.tag.partition("/")[0]] += often * (event.ByteSize() + 16)
    return dict(total)


def _wandb_files(records: Sequence[Record], numbers: Sequence[int], pictures: set[int]) -> int:
    """Files of a W&B run that is given the same records whenever they come due."""
    # Numbers and histograms make no files, and 443 times as many rows.
    with_files = [record for record in records if not isinstance(record, (Scalar, Histogram))]
    assert all(not isinstance(record, Text) for record in with_files)
    assert any(isinstance(record, Embedding) for record in with_files)
    with offline_run() as run:
        backend = vizlog.WandB(run)
        for step in sorted({*numbers, *pictures}):
            due = [
                record for record in with_files if (step in pictures if _is_picture(record) else step in set(numbers))
            ]
            backend.write(step, due)
        backend.close()
        folder = Path(run.dir)
        run.finish()
        return sum(path.is_file() for path in (folder / "media").rglob("*"))
