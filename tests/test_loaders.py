"""Examples out of a loader's data, where nobody gave a fixed batch: which ones, and what is left as it was."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset, default_collate

import vizlog
from vizlog.batch import FixedBatch
from vizlog.loaders import _held, _small, asked_for, inputs_and_targets, only_tensor, spread_examples


class Noisy(Dataset[Any]):
    """Draws from generators of its own and of its transform, as augmentations do."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.of_torch, self.of_python = torch.Generator().manual_seed(1), random.Random(1)
        self.transform = transform
        self.kind, self.library = Dataset, np  # which are not looked into
        self.same = self

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.rand(1, generator=self.of_torch) + self.of_python.random()
        return self.transform(torch.tensor([float(index)]) + noise)


class Jitter:
    def __init__(self) -> None:
        self.new, self.old = np.random.default_rng(1), np.random.RandomState(1)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.new.random() + self.old.rand()


class Masking:
    """Makes its generator when it is first called, as transformers' seeded masking does."""

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None

    def __call__(self, examples: list[Tensor], scale: float = 1.0) -> Tensor:
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(3)
        return default_collate(examples) + scale * torch.rand(len(examples), 1, generator=self.generator)


class LateMasking(Masking):
    """Has no attribute for it before."""

    def __init__(self) -> None:
        pass

    def __call__(self, examples: list[Tensor], scale: float = 1.0) -> Tensor:
        self.generator = getattr(self, "generator", None)
        return super().__call__(examples, scale)


class Several:
    def __init__(self, parts: list[Masking]) -> None:
        self.parts = parts

    def collate(self, examples: list[Tensor]) -> Tensor:
        return self.parts[0](examples)


def through(masking: Masking, examples: list[Tensor]) -> Tensor:
    return masking(examples)


COLLATORS: dict[str, Callable[[], Any]] = {
    "an object": Masking,
    "an object that makes it late": LateMasking,
    "a partial": lambda: partial(Masking(), scale=2.0),
    "a partial's argument": lambda: partial(through, Masking()),
    "a method, in a list": lambda: Several([Masking()]).collate,
}


@pytest.mark.parametrize("keeper", COLLATORS)
def test_generators_that_the_data_keeps_are_left_as_they_were(keeper: str) -> None:
    def batches(*, looks: bool) -> list[Tensor]:
        collate = COLLATORS[keeper]()
        loader = DataLoader(Subset(Noisy(Jitter()), range(0, 1000, 2)), batch_size=4, collate_fn=collate)
        if looks:
            spread_examples(loader)
        found = iter(loader)
        return [next(found) for _ in range(3)]

    plain, looked_at = batches(looks=False), batches(looks=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, looked_at, strict=True))


def test_examples_are_spread_from_the_first_to_the_last() -> None:
    found, numbers = spread_examples(DataLoader(list(torch.arange(1000.0)), batch_size=4, shuffle=True))
    expected = np.linspace(0, 999, 256).round()
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(numbers, expected)


def test_large_examples_are_fewer() -> None:
    found, _ = spread_examples(DataLoader(list(torch.zeros(100, 1 << 20)), batch_size=4))  # 4 MB each
    assert len(found) == 32


def test_generators_are_left_as_they_were_by_data_that_raises() -> None:
    class Breaks(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            if index:
                raise RuntimeError("gone")
            return super().__getitem__(index)

    data = Breaks(Jitter())
    before = data.of_python.getstate()
    with pytest.raises(RuntimeError, match="gone"):
        spread_examples(DataLoader(data))
    assert data.of_python.getstate() == before


def test_what_holds_each_other_is_looked_into_once() -> None:
    parts = [SimpleNamespace() for _ in range(60)]
    for part in parts:
        part.others = parts
    assert len(_held([SimpleNamespace(parts=parts)])) == 62  # and the list


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_data_that_opens_a_file_when_first_asked_has_not_been_asked(tmp_path: Path) -> None:
    """Loader processes that inherit an open file share its place in it."""
    (tmp_path / "data").write_bytes(bytes(range(64)))

    class OfFile(Dataset[Tensor]):
        file: Any = None

        def __init__(self) -> None:
            self.asked = 0
            self.of_list, self.of_dict = [random.Random(0)], {"rng": np.random.default_rng(0)}

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Tensor:
            self.file = self.file or (tmp_path / "data").open("rb")
            self.file.seek(index)
            self.asked += 1
            return torch.tensor([self.file.read(1)[0], self.of_list[0].random() + self.of_dict["rng"].random()])

    data = OfFile()
    examples, _ = spread_examples(DataLoader(data, batch_size=4))
    assert examples[:, 0].tolist() == list(range(64))
    assert data.file is None
    assert data.asked == 0
    assert data.of_list[0].random() == random.Random(0).random()
    assert data.of_dict["rng"].random() == np.random.default_rng(0).random()


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1])


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([1, 2], "list has no dataset"),
        (DataLoader(Stream()), "Stream is iterable"),
        (DataLoader([1, 2], batch_size=None), "list makes batches itself"),
    ],
)
def test_data_that_cannot_be_asked_by_index_is_named(loader: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        spread_examples(loader)


def test_examples_without_tensors_are_spread_too() -> None:
    assert spread_examples(DataLoader(["a", "b"])) == (["a", "b"], [0, 1])


def takes(signature: str) -> nn.Module:
    module = nn.Module()
    module.forward = eval(f"lambda {signature}: None")
    return module


X, M, Y = torch.zeros(2), torch.ones(2), torch.arange(2)
W = torch.zeros(2, 3)


@dataclass
class Sample:
    x: Tensor
    label: Tensor


@pytest.mark.parametrize(
    ("signature", "batch", "inputs", "targets"),
    [
        ("x", X, X, None),
        ("x", (X,), (X,), None),
        ("x", (X, Y), (X,), Y),
        ("x, mask", [X, M, Y], (X, M), Y),
        ("x, mask=None", (X, Y), (X,), Y),
        ("x, mask, more", (X, M), (X, M), None),
        ("*all", (X, Y), (X,), Y),
        ("x", ({"a": X}, Y), {"a": X}, Y),
        ("x", ({"a": X},), {"a": X}, None),
        ("x, mask", ([X, M], Y), (X, M), Y),
        ("*all", ([X, M], Y), (X, M), Y),
        ("both", ([X, M], Y), ([X, M],), Y),
        ("x", {"x": X, "id": M, "labels": Y}, {"x": X}, Y),
        ("**all", {"x": X, "y": Y}, {"x": X, "y": Y}, Y),
        ("batch", {"x": X, "target": Y}, ({"x": X, "target": Y},), Y),
        ("x", Sample(X, Y), {"x": X}, Y),
        ("image", Sample(X, Y), ({"x": X, "label": Y},), Y),
        ("batch", [X, Y], ([X, Y],), Y),
        ("batch", [[X, M], Y], ([[X, M], Y],), Y),
        ("batch, index=0", (X,), ((X,),), None),
        ("batch, mask", [X, M, Y], (X, M), Y),
    ],
)
def test_which_part_of_a_batch_is_input(signature: str, batch: Any, inputs: Any, targets: Any) -> None:
    found_inputs, found_targets = inputs_and_targets(batch, takes(signature))
    assert str(found_inputs) == str(inputs)
    assert found_targets is targets


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (([W, Y],), W),
        (((W.long(), Y, X),), W.long()),
        (([W, W + 1],), None),  # two views, or a pair: a label may be of both
        (([W, [W, Y]],), W),
        (({"a": W, "label": W, "id": Y},), W),
        (({"a": W, "b": W},), None),
        ((W,), None),
        (([W, Y], Y), None),
        (W, None),
    ],
)
def test_what_a_step_may_take_out_of_a_batch(inputs: Any, expected: Tensor | None) -> None:
    assert str(only_tensor(inputs)) == str(expected)


def first(loader: Any) -> Any:
    return next(iter(loader))


class Holder:
    """Holds a loader, and gives its first batch in whatever way it is asked."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def batch(self) -> Any:
        return next(iter(self.loader))

    __call__ = batch


WAYS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "closure": lambda loader: lambda: next(iter(loader)),
    "default": lambda loader: lambda of=loader: next(iter(of)),
    "partial": lambda loader: partial(first, loader),
    "dict of loaders": lambda loader: partial(lambda loaders: first(loaders["train"]), {"train": loader}),
    "method": lambda loader: Holder(loader).batch,
    "callable": Holder,
    "object": lambda loader: partial(Holder.batch, Holder(loader)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_loader_with_a_generator_is_as_before_however_the_function_gets_at_it(way: str) -> None:
    def order(*, asked: bool) -> list[float]:
        data = TensorDataset(torch.arange(16.0)[:, None], torch.arange(16) % 2)
        loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
        if asked:
            vizlog.Monitor(nn.Linear(1, 2), [], to=None, batch=WAYS[way](loader)).close()
        return [value for x, _ in loader for value in x.flatten().tolist()]

    assert order(asked=True) == order(asked=False)


class Shuffled(Sampler[int]):
    """Shuffles one list again and again."""

    def __init__(self) -> None:
        self.order = list(range(16))

    def __len__(self) -> int:
        return 16

    def __iter__(self) -> Iterator[int]:
        random.Random(1).shuffle(self.order)
        return iter(list(self.order))


class Remembering(Dataset[Any]):
    """Keeps what it was asked for, in place, in a list, an array and a tensor."""

    def __init__(self) -> None:
        self.asked, self.sum, self.number = [0], np.zeros(1), torch.zeros(1)
        self.fixed, self.table = torch.zeros(1).expand(2), np.zeros(1)
        self.table.flags.writeable = False

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        self.sum += index
        self.number += 1
        return torch.tensor([len(self.asked), self.sum[0], self.number[0], index]).float(), index % 2


def test_what_samplers_and_datasets_change_in_place_is_put_back() -> None:
    def seen(*, asked: bool) -> list[float]:
        loader = DataLoader(Remembering(), batch_size=4, sampler=Shuffled())
        if asked:
            vizlog.Monitor(nn.Linear(4, 2), [], to=None, batch=lambda: next(iter(loader))).close()
        return [value for x, _ in loader for value in x.flatten().tolist()]

    assert seen(asked=True) == seen(asked=False)


class Buffering:
    """A collator that gives out memory of its own."""

    def __init__(self) -> None:
        self.buffer, self.array = torch.zeros(16, 1), np.zeros(16)

    def __call__(self, examples: list[Any]) -> tuple[Tensor, Any]:
        self.buffer[:] = torch.stack(examples)
        self.array[:] = self.buffer[:, 0]
        return self.buffer, self.array


def test_a_batch_in_memory_that_the_collator_keeps_is_that_batch() -> None:
    loader = DataLoader(list(torch.arange(1.0, 17)[:, None]), batch_size=16, collate_fn=Buffering())
    (spread, array), _ = spread_examples(loader)
    asked = asked_for(lambda: next(iter(loader))[0], FixedBatch)
    expected = list(range(1, 17))
    assert [spread.flatten().tolist(), array.tolist(), asked.inputs.flatten().tolist()] == [expected] * 3
    assert not loader.collate_fn.buffer.any()  # type: ignore[attr-defined]


def test_what_a_dataset_holds_is_kept_up_to_a_size() -> None:
    large, small = torch.zeros(5 << 20), [torch.zeros(3 << 20) for _ in range(8)]
    kept = list(_small([large, *small, [1]]))
    assert [id(tensor) for tensor in kept[:-1]] == [id(tensor) for tensor in small[:5]]
    assert kept[-1] == [1]


def test_iterations_on_other_threads_and_afterwards_are_left_alone() -> None:
    plain, loader = DataLoader.__iter__, DataLoader([1, 2], shuffle=True, generator=torch.Generator().manual_seed(1))
    before = loader.generator.get_state()

    def elsewhere() -> None:
        thread = threading.Thread(target=list, args=(loader,))
        thread.start()
        thread.join()

    with pytest.raises(ZeroDivisionError):
        asked_for(lambda: [list(DataLoader([1])), elsewhere(), 1 / 0], FixedBatch)
    assert DataLoader.__iter__ is plain
    assert not torch.equal(loader.generator.get_state(), before)


def test_a_training_in_the_middle_of_persistent_workers_goes_on_with_its_own() -> None:
    def order(*, asked: bool) -> list[int]:
        loader = DataLoader(range(12), batch_size=2, num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
        batches = iter(loader)
        found = next(batches).tolist()
        if asked:
            assert asked_for(lambda: first(loader).float()[:, None], FixedBatch).inputs.flatten().tolist() == [0, 1]
        return found + [value for batch in batches for value in batch.tolist()]

    assert order(asked=True) == order(asked=False) == list(range(12))


@pytest.mark.parametrize("kind", ["generator", "persistent workers"])
def test_a_loader_that_the_batch_is_asked_of_is_as_before(kind: str) -> None:
    given: dict[str, Any] = {"generator": torch.Generator().manual_seed(5)}
    if kind == "persistent workers":
        given = {"num_workers": 1, "persistent_workers": True}

    def order(*, asked: bool) -> list[float]:
        model = nn.Linear(1, 2)
        torch.manual_seed(0)
        if "generator" in given:
            given["generator"].manual_seed(5)
        data = TensorDataset(torch.arange(16.0)[:, None], torch.arange(16) % 2)
        loader = DataLoader(data, batch_size=4, shuffle=True, **given)
        if asked:
            vizlog.Monitor(model, [], to=None, batch=lambda: next(iter(loader))).close()
        return [value for x, _ in loader for value in x.flatten().tolist()]

    assert order(asked=True) == order(asked=False)
