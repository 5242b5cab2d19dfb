"""The fixed batch: what it keeps, in which order, and how the model is run on it."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import vizlog
from vizlog.batch import BatchDoesNotFit, FixedBatch, as_fixed_batch
from vizlog.given import describe
from vizlog.ranks import FailedElsewhereError
from vizlog.survey import survey
from vizlog.targets import kind_of

LOADER = DataLoader(range(4))  # type: ignore[arg-type,var-annotated]


def test_a_large_batch_is_cut_to_256_spread_over_all_of_it() -> None:
    batch = FixedBatch(torch.arange(10_000.0)[:, None])
    assert len(batch) == 256
    assert batch.ids[0] == 0
    assert batch.ids[-1] == 9_999
    assert torch.equal(batch.inputs[:, 0], batch.ids.float())


def test_classes_take_turns_so_that_the_first_few_show_all_of_them() -> None:
    labels = torch.cat([torch.zeros(900), torch.ones(70), torch.full((30,), 2)]).long()
    batch = FixedBatch(torch.arange(1000.0)[:, None], labels)
    assert batch.targets[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert Counter(batch.targets.tolist()) == {0: 156, 1: 70, 2: 30}
    assert torch.equal(labels[batch.ids], batch.targets)
    assert torch.equal(batch.inputs[:, 0].long(), batch.ids)


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda y: np.array(y, dtype=np.uint8),
        lambda y: torch.tensor(y)[:, None],
        lambda y: np.array(y[::-1])[::-1],
        lambda y: np.array(y, dtype=">i4"),
        lambda y: np.frombuffer(bytes(y), dtype=np.int8),  # read-only
    ],
)
def test_labels_may_be_a_list_an_array_or_a_column(make: Any) -> None:
    batch = FixedBatch(torch.randn(300, 2), make([2, 0, 1] * 100))
    assert batch.labels is not None
    assert batch.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(batch.labels, torch.tensor([2, 0, 1])[batch.ids % 3])


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda words: np.array(words, object)])
def test_targets_in_words_are_groups_and_no_numbers_of_the_models_classes(make: Any) -> None:
    words = [["dog", "cat"][k < 4] for k in range(300)]
    batch = FixedBatch(torch.arange(300.0)[:, None], make(words))
    assert batch.labels is None
    assert batch.groups is not None
    numbers, names = batch.groups
    assert names == ("cat", "dog")
    assert [names[k] for k in numbers] == [words[k] for k in batch.ids]
    assert numbers[:9].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 1]  # they take turns
    part = batch.part(2, 5)
    assert part.targets == ["cat", "dog", "cat"]
    assert part.groups is not None
    assert part.groups[0].tolist() == [0, 1, 0]


def test_words_are_numbered_by_their_places_among_the_names_of_the_classes() -> None:
    x, words = torch.randn(4, 2), ["b", "a", None, "c"]
    batch = FixedBatch(x, words, class_names=["c", "b", "a"])
    assert batch.labels is not None
    found = dict(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True))
    assert found == {0: 1, 1: 2, 2: -100, 3: 0}
    assert batch.part(0, 3).class_name(1) == "b"
    with pytest.raises(ValueError, match=r"must be among FixedBatch\(class_names=\), got 'c'; the nearest names are"):
        FixedBatch(x, words, class_names=["cart", "b", "a"])


@pytest.mark.parametrize("make", [list, tuple])  # a loader makes a tuple
def test_of_texts_beside_the_inputs_a_model_gets_those_of_its_examples(make: Any) -> None:
    texts, given = make(str(k) for k in range(6)), []
    batch = FixedBatch((torch.arange(6.0), texts, ["a", "b"]), forward=lambda _, inputs: given.append(inputs))
    batch.part(2, 4).run({"": nn.Identity()})
    ((numbers, those, others),) = given
    assert (numbers.tolist(), those, others) == ([2, 3], ["2", "3"], ["a", "b"])


def test_texts_and_words_that_are_not_one_an_example_are_no_groups() -> None:
    x = torch.randn(40, 2)
    texts = [f"a photo of a thing, number {k}" for k in range(40)]
    assert FixedBatch(x, texts).groups is None
    assert FixedBatch(x, texts).has_texts
    assert FixedBatch(x, texts).part(3, 5).targets == [texts[3], texts[4]]
    assert FixedBatch(x, texts, class_names=["a", "b"]).labels is None
    assert FixedBatch(x, texts[:20] * 2).groups is not None
    assert FixedBatch(x, ["a", "b"], loss=lambda output, _: output[:, 0]).groups is None
    with pytest.raises(ValueError, match="one for each of the 40 examples, got 39 words"):
        FixedBatch(x, ["a"] * 39)
    assert FixedBatch(x[:3], list("abc")).groups is not None  # few examples, one of each class


def test_regression_targets_are_no_classes() -> None:
    batch = FixedBatch(torch.randn(10, 3), torch.randn(10))
    assert batch.labels is None
    assert batch.ids.tolist() == list(range(10))


def test_targets_of_one_real_number_each_are_a_quantity() -> None:
    inputs, numbers = torch.randn(4, 3), torch.tensor([0.5, -2.0, float("nan"), 1e9])
    for targets in (numbers, numbers[:, None], numbers.double(), numbers.tolist()):
        found = FixedBatch(inputs, targets).quantity
        assert found is not None
        assert torch.equal(found.nan_to_num(7.0), numbers.double().nan_to_num(7.0))
    others = torch.randn(4, 2), torch.randn(4, 1, 1), numbers + 1j, torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.arange(4)
    assert [FixedBatch(inputs, targets).quantity for targets in (None, *others)] == [None] * 6


def test_a_number_that_cross_entropy_ignores_is_no_label() -> None:
    labels = torch.tensor([-100, 2, -100, 0, 1, 2, -100])
    batch = FixedBatch(torch.arange(7.0)[:, None], labels)
    assert batch.targets.tolist() == [0, 1, 2, 2, -100, -100, -100]
    assert FixedBatch(torch.randn(3, 1), torch.full((3,), -100)).labels is None


def test_examples_with_a_negative_label_come_last_unless_it_is_one_of_two_classes() -> None:
    inputs = torch.arange(6.0)[:, None]
    assert FixedBatch(inputs, torch.tensor([-1, 2, -1, 0, 2, -5])).targets.tolist() == [0, 2, 2, -5, -1, -1]
    assert FixedBatch(inputs, torch.tensor([-1, 1, 1, -1, -1, 1])).targets.tolist() == [-1, 1, -1, 1, -1, 1]


@pytest.mark.parametrize(("length", "chunk"), [(4, 32), (64, 32), (100, 20), (2048, 1), (5000, 1)])
def test_of_long_texts_fewer_go_through_the_model_at_once(length: int, chunk: int) -> None:
    assert FixedBatch(torch.zeros(3, length, dtype=torch.int64)).chunk == chunk


def test_labels_of_padding_are_not_looked_at() -> None:
    inputs = {"input_ids": torch.tensor([[4, 5, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert FixedBatch(inputs, torch.tensor([[7, -100, 3, -100]])).scored_positions.tolist() == [0]


def test_a_text_of_padding_alone_is_shown_as_it_is() -> None:
    batch = FixedBatch(torch.tensor([[0, 0], [3, 0]])).knowing(scored=True, padding=0)
    assert batch.token_mask.tolist() == [[True, True], [True, False]]


def test_numbers_without_a_name_are_called_by_themselves() -> None:
    batch = FixedBatch(torch.tensor([[0, 1]]), torch.tensor([0]), tokens=["the", "cat"], class_names=["no", "yes"])
    assert [batch.token_name(number) for number in (-1, 0, 1, 2)] == ["-1", "the", "cat", "2"]
    assert [batch.class_name(number) for number in (-1, 0, 1, 2)] == ["-1", "no", "yes", "2"]


def test_what_has_no_rows_passes_through() -> None:
    table = torch.randn(7, 5)
    batch = FixedBatch((torch.randn(300, 2), table, "mean", None), torch.arange(300) % 3)
    x, passed, word, nothing = batch.inputs
    assert (len(x), passed.shape, word, nothing) == (256, (7, 5), "mean", None)
    assert torch.equal(passed, table)


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return (a + 2 * b) * scale


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(4, 3), torch.ones(4, 3)),
        {"a": torch.ones(4, 3), "b": torch.ones(4, 3)},
        {"b": torch.ones(4, 3), "a": torch.ones(4, 3), "scale": 1.0},
    ],
)
def test_a_tuple_goes_in_by_position_and_a_mapping_by_name(inputs: Any) -> None:
    assert torch.equal(FixedBatch(inputs).run({"": TwoInputs()}), torch.full((4, 3), 3.0))


def test_a_forward_may_change_what_has_no_rows() -> None:
    class Changes(nn.Module):
        def forward(self, x: Tensor, table: Tensor, seen: list[int], about: dict[str, Tensor], note: Any) -> Tensor:
            table.add_(1)
            seen.append(1)
            about["x"] = x
            note.calls += 1
            return x @ table

    table, seen, about, note = torch.ones(3, 2), [0], {"y": torch.ones(1)}, SimpleNamespace(calls=0)
    batch = FixedBatch((torch.ones(4, 3), table, seen, about, note))
    for _ in range(2):
        assert torch.equal(batch.part(0, 2).run({"": Changes()}), torch.full((2, 2), 6.0))
    assert torch.equal(table, torch.ones(3, 2))
    assert (seen, list(about), note.calls) == ([0], ["y"], 0)


def test_what_cannot_be_copied_and_modules_are_given_as_they_are() -> None:
    class Single:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is one of it")

    single, teacher = Single(), nn.Linear(3, 3)
    batch = FixedBatch((torch.ones(4, 3), single, teacher), forward=lambda _, inputs: inputs)
    assert batch.run({"": nn.Identity()})[1:] == (single, teacher)
    constant = torch.empty(17, 1 << 20)
    lent, copied = FixedBatch((torch.ones(4, 3), constant, constant[0]), forward=lambda _, x: x[1:]).run({"": single})
    assert lent is constant
    assert copied.data_ptr() != constant.data_ptr()


def test_forward_says_how_to_call_the_model() -> None:
    batch = FixedBatch(torch.ones(4, 3), forward=lambda model, x: model(x, x))
    assert torch.equal(batch.run({"": TwoInputs()}), torch.full((4, 3), 3.0))
    models = {"G": nn.Identity(), "D": TwoInputs()}
    gan = FixedBatch(torch.ones(4, 3), forward=lambda models, z: models["D"](models["G"](z), z))
    assert torch.equal(gan.run(models), torch.full((4, 3), 3.0))


@pytest.mark.parametrize(("names", "classes", "said"), [(None, 32, True), (None, 31, False), (["a"] * 16, 32, False)])
def test_scores_of_many_more_classes_than_the_targets_have_are_said_to_be_read_so(
    names: list[str] | None, classes: int, *, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    batch = FixedBatch(torch.randn(40, 4), torch.arange(40) % 10, class_names=names)
    with caplog.at_level("INFO", "vizlog"):
        met = survey({"": nn.Linear(4, classes)}, batch)
    assert (met.classes, met.embeds) == (classes, (0, ""))
    assert ("(N, 32) is read as scores of 32 classes, of which the targets have 10 at most" in caplog.text) == said


def test_what_is_no_picture_is_not_shown_as_one() -> None:
    assert FixedBatch(torch.randn(3, 1, 1, 50)).images is None  # a sound
    smooth = torch.arange(4.0).repeat_interleave(4).expand(8, 16) + torch.rand(8, 1)
    assert FixedBatch(smooth).pictures is None  # too small a square to be sure
    another = FixedBatch((torch.rand(3, 1, 8, 8), torch.rand(3, 1, 6, 6)))
    assert not another.pictures_one_input
    assert FixedBatch((torch.rand(3, 1, 8, 8), torch.rand(3, 5))).pictures_one_input


def test_numbers_of_positions_kinds_and_masks_are_no_second_text() -> None:
    ids = torch.tensor([[5, 3, 4, 7], [2, 6, 3, 3]])
    reset, kinds = torch.tensor([[0, 1, 0, 2], [0, 1, 2, 0]]), torch.tensor([[0, 0, 2, 2], [0, 1, 1, 2]])
    for name, other in (("position_ids", reset), ("token_type_ids", kinds), ("attention_mask", kinds)):
        assert FixedBatch({"input_ids": ids, name: other}).second_text is None
    for other in (kinds.clamp(max=1), ids, torch.arange(3, 7).expand(2, 4), torch.cat([ids[:, 1:], kinds[:, :1]], 1)):
        assert FixedBatch((ids, other)).second_text is None
    for other in (reset, kinds, torch.tensor([[1, 3, 4, 7], [2, 4, 6, 8]])):
        found = FixedBatch((ids, other)).second_text
        assert found is not None
        assert torch.equal(found, other)


@pytest.mark.parametrize("name", ["score", "loss"])
def test_what_ones_own_function_raises_is_not_laid_to_the_model(name: str) -> None:
    batch = FixedBatch(torch.randn(4, 5), torch.ones(4), **{name: lambda *_: {}["missing"]})
    said = rf"output on the fixed batch is float32 \(2, 3\), of which FixedBatch\({name}=\) raised KeyError: 'missing'"
    with pytest.raises(BatchDoesNotFit, match=said):
        survey({"": nn.Linear(5, 3)}, batch)


def test_labels_in_a_mapping_are_the_targets() -> None:
    assert FixedBatch({"input_ids": torch.zeros(3, 2).long(), "labels": torch.tensor([2, 0, 1])}).targets.tolist() == [
        0,
        1,
        2,
    ]


def test_a_list_of_mappings_has_one_for_each_example_however_long_its_tensors_are() -> None:
    boxes = [{"boxes": torch.full((size, 4), float(number))} for number, size in enumerate((3, 1, 2))]
    batch = FixedBatch({"pixel_values": torch.arange(3.0)[:, None], "labels": boxes})
    taken = batch.take(torch.tensor([2, 0]))
    assert taken.inputs["pixel_values"].flatten().tolist() == [2.0, 0.0]
    assert [label["boxes"].shape[0] for label in taken.inputs["labels"]] == [2, 3]
    assert [float(target["boxes"][0, 0]) for target in taken.targets] == [2.0, 0.0]
    moved = batch.part(0, 1, torch.device("meta")).inputs["labels"]
    assert [label["boxes"].device.type for label in moved] == ["meta"]


def test_a_mapping_that_goes_in_by_position_is_taken_apart_like_any_other() -> None:
    batch = FixedBatch(({"image": torch.arange(3.0)[:, None], "id": ["a", "b", "c"]},), torch.tensor([0, 1, 2]))
    (mapping,) = batch.take(torch.tensor([2])).inputs
    assert mapping["image"].tolist() == [[2.0]]
    (mapping,) = FixedBatch(({"image": torch.ones(1, 1)},)).take(torch.tensor([0, 0])).inputs
    assert mapping["image"].tolist() == [[1.0], [1.0]]


def test_a_list_of_images_with_their_targets_is_no_batch_and_how_to_make_one_is_said() -> None:
    images, boxes = [torch.rand(3, 8, 8)] * 4, [{"boxes": torch.rand(2, 4)}] * 4
    for given in ((images, boxes), (tuple(images), tuple(boxes))):
        with pytest.raises(TypeError, match=r"FixedBatch\(torch.stack\(images\), targets, forward="):
            FixedBatch(*given)
    for targets in (boxes, tuple(boxes)):
        batch = FixedBatch(torch.stack(images), targets, forward=lambda model, images: model(list(images)))
        assert [len(part.targets) for part in (batch, batch.part(0, 2))] == [4, 2]


def test_labels_beside_the_inputs_are_no_input_to_explain() -> None:
    sound, words = torch.randn(3, 8, 40), torch.zeros(3, 5).long()
    batch = FixedBatch({"input_features": sound, "labels": words})
    assert batch.token_ids is None
    assert [tuple(x.shape) for x in batch.float_inputs] == [(3, 8, 40)]
    assert FixedBatch({"labels": words, "decoder_input_ids": words + 1}).token_ids is not None


def test_masks_are_neither_tokens_nor_an_input_to_explain() -> None:
    sound = torch.randn(3, 40)
    batch = FixedBatch({"attention_mask": torch.ones(3, 40).long(), "pixel_mask": torch.ones(3, 40), "sound": sound})
    assert batch.token_ids is None
    (explained,) = batch.float_inputs
    assert torch.equal(explained, sound)


def test_several_texts_an_example_are_no_tokens_of_it() -> None:
    choices = torch.zeros(3, 2, 5).long()
    assert FixedBatch({"input_ids": choices, "attention_mask": torch.ones_like(choices)}).token_ids is None


def test_labels_that_are_not_one_an_example_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"inputs\['labels'\] must be one for each of the 3 examples, got int64 \(7,\)"
    ):
        FixedBatch({"pixels": torch.randn(3, 4), "labels": torch.zeros(7).long()})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FixedBatch("text"), TypeError, "at least one tensor with examples along dimension 0, got str"),
        (lambda: FixedBatch(torch.tensor(3.0)), TypeError, "at least one tensor"),
        (lambda: FixedBatch(torch.zeros(4, 3).numpy()), TypeError, "torch.as_tensor makes one of a NumPy array"),
        (
            lambda: FixedBatch(SimpleNamespace(x=torch.zeros(4, 3))),
            TypeError,
            r"got SimpleNamespace; of an object.*; a graph.*FixedBatch\(torch.arange\(nodes\), y, forward=",
        ),
        (
            lambda: as_fixed_batch(SimpleNamespace(x=torch.zeros(4, 3))),
            TypeError,
            "got SimpleNamespace; of an object.*; a graph",
        ),
        (lambda: FixedBatch([{"x": torch.zeros(3)}] * 4), TypeError, "a list of examples is no batch yet"),
        (
            lambda: as_fixed_batch((torch.zeros(4, 3), torch.zeros(2, 9))),
            ValueError,
            r"FixedBatch\(\(a, b\), targets\)",
        ),
        (lambda: FixedBatch(torch.eye(4).to_sparse()), TypeError, "cannot be taken out of a sparse tensor.*forward="),
        (
            lambda: FixedBatch((torch.eye(4), torch.nested.nested_tensor([torch.ones(2)] * 4, layout=torch.jagged))),
            TypeError,
            "cannot be taken out of a nested tensor",
        ),
        (lambda: FixedBatch(torch.zeros(4, 3), np.zeros(5)), ValueError, r"4 examples, got float64 \(5,\)"),
        (lambda: FixedBatch(torch.zeros(0, 3)), ValueError, "at least one example"),
        (
            lambda: FixedBatch(torch.zeros(4, 3), torch.zeros(5)),
            ValueError,
            r"one for each of the 4 examples, got float32 \(5,\)",
        ),
        (lambda: FixedBatch(torch.zeros(4, 3), forward=3), TypeError, r"FixedBatch\(forward=\) takes a function"),
        (lambda: as_fixed_batch(3), TypeError, r"batch= takes \(inputs, targets\)"),
        (lambda: as_fixed_batch((1, 2, 3)), TypeError, "batch= takes"),
        (
            lambda: as_fixed_batch(LOADER),
            TypeError,
            r"got DataLoader; of a loader.*batch=lambda: next\(iter\(loader\)\)",
        ),
        (lambda: as_fixed_batch(iter([(1, 2)])), TypeError, r"next\(iter\(loader\)\)"),
        (lambda: FixedBatch(pack_sequence([torch.ones(3, 2)]), torch.zeros(1)), TypeError, "PackedSequence.*padded"),
        (lambda: FixedBatch({"x": pack_sequence([torch.ones(3, 2)])}), TypeError, "PackedSequence.*padded"),
        (
            lambda: FixedBatch((torch.zeros(5, 3), torch.zeros(2, 9, dtype=torch.long)), torch.zeros(4)),
            ValueError,
            r"5 examples, got float32 \(4,\).*a graph.*FixedBatch\(torch.arange\(nodes\), y",
        ),
        (
            lambda: FixedBatch((torch.arange(12), torch.tensor([0, 4, 8])), torch.zeros(3)),
            ValueError,
            r"12 examples, got float32 \(3,\).*of several inputs the first needs a row for each: .*forward=",
        ),
        (
            lambda: FixedBatch(torch.zeros(7, 4, 3), torch.zeros(4)),
            ValueError,
            r"7 examples, got float32 \(4,\).*inputs \(T, N, …\).*forward=lambda model, x: model\(x.transpose\(0, 1\)",
        ),
    ],
)
def test_what_is_no_batch_says_so(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_pair_a_tensor_and_a_mapping_are_batches() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    for given in ((x, y), [x, y], x, {"x": x}, FixedBatch(x)):
        batch = as_fixed_batch(given)
        assert batch is not None
        assert len(batch) == 2
    assert as_fixed_batch(None) is None


def test_a_batch_that_the_model_cannot_take_says_what_came_and_what_the_model_raised() -> None:
    with pytest.raises(BatchDoesNotFit, match=r"(?s)float32 \(2, 7\).*raised RuntimeError.*mat1 and mat2.*forward="):
        survey({"": nn.Linear(5, 3)}, FixedBatch(torch.randn(4, 7)))


def test_two_inputs_given_as_input_and_target_and_graphs_are_told_how_to_be_given() -> None:
    class Graph(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])

    class Degrees(nn.Module):
        """As torch_geometric's: torch raises another kind of error where a node is missing."""

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            ones = torch.ones(edges.shape[1])
            return x * torch.zeros(len(x)).scatter_add(0, edges[1], ones)[:, None]

    x, edges = torch.randn(40, 3), torch.arange(40).repeat(2, 2)
    with pytest.raises(BatchDoesNotFit, match=r"missing 1 required.*'b'.*given as vizlog.FixedBatch\(\(x, t\)\)"):
        survey({"": TwoInputs()}, FixedBatch(x, torch.rand(40)))
    with pytest.raises(
        BatchDoesNotFit, match=r"out of (bounds|range).*a graph.*FixedBatch\(torch.arange\(nodes\), y, forw"
    ):
        survey({"": Graph()}, FixedBatch((x, edges)))
    with pytest.raises(
        BatchDoesNotFit, match=r"raised RuntimeError.*a graph.*FixedBatch\(torch.arange\(nodes\), y, forw"
    ):
        survey({"": Degrees()}, FixedBatch((x, edges)))
    with pytest.raises(BatchDoesNotFit, match=r"raised IndexError((?!a graph).)*$"):  # two texts are no edges
        survey({"": nn.Embedding(3, 2)}, FixedBatch(torch.arange(40).reshape(8, 5)))
    whole = FixedBatch(torch.arange(40), forward=lambda model, i: model(x, edges)[i])
    assert survey({"": Graph()}, whole).scored == "logits"
    with pytest.raises(IndexError):  # nothing is known of it
        FixedBatch(x).run({"": nn.Unflatten(7, (1, 3))})


def test_a_model_that_takes_a_mapping_as_it_is_is_told_how_to_be_given() -> None:
    class Whole(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"] + batch["z"]

    inputs = {"x": torch.randn(6, 3), "z": torch.randn(6, 3)}
    said = r"raised TypeError.*argument 'x'.*as model\(\*\*inputs\).*forward=lambda model, inputs: model\(inputs\)"
    with pytest.raises(BatchDoesNotFit, match=said):
        survey({"": Whole()}, FixedBatch(inputs, torch.arange(6) % 3))
    batch = FixedBatch(inputs, torch.arange(6) % 3, forward=lambda model, inputs: model(inputs))
    assert torch.equal(batch.run({"": Whole()}), batch.inputs["x"] + batch.inputs["z"])


def test_nodes_and_their_adjacency_are_told_how_to_be_given() -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return adjacency @ x

    x, adjacency = torch.randn(40, 3), torch.ones(40, 40)
    for inputs in ((x, adjacency), {"x": x, "adjacency": adjacency}):
        with pytest.raises(
            BatchDoesNotFit, match=r"raised RuntimeError.*a graph.*FixedBatch\(torch.arange\(nodes\), y"
        ):
            survey({"": Dense()}, FixedBatch(inputs, torch.arange(40) % 3))
    with pytest.raises(BatchDoesNotFit, match=r"raised RuntimeError((?!a graph).)*$"):  # alone it is a table
        survey({"": nn.Linear(5, 3)}, FixedBatch(adjacency))


def test_a_graph_that_can_be_called_and_indexed_is_told_how_to_be_given() -> None:
    class Data:
        """As torch_geometric's."""

        edge_index = torch.zeros(2, 3, dtype=torch.long)

        def __call__(self) -> Any:
            yield "edge_index", self.edge_index

        def __getitem__(self, name: str) -> Any:
            return getattr(self, name)

        def __len__(self) -> int:
            return 1

    for take in (as_fixed_batch, lambda data: vizlog.watch(nn.Linear(2, 2), to=None, batch=data)):
        with pytest.raises(TypeError, match=r"got Data; of an object.*; a graph.*FixedBatch\(torch.arange\(nodes\), y"):
            take(Data())


def test_a_function_that_returns_the_batch_may_draw_random_numbers() -> None:
    model, before = nn.Linear(5, 3), torch.get_rng_state()
    with vizlog.Monitor(model, [], to=None, batch=lambda: (torch.randn(4, 5), torch.randint(3, (4,)))) as monitor:
        assert monitor._batch is not None
        assert len(monitor._batch) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_device_is_the_models_business() -> None:
    x, ids = torch.arange(12.0).reshape(4, 3), torch.arange(12).reshape(4, 3)
    with torch.device("meta"):
        for inputs, targets in ((x, torch.tensor([0, 1, 0, 1], device="cpu")), (ids, None)):
            batch = FixedBatch(inputs, targets).part(1, 3)
            assert torch.equal(batch.inputs, inputs[batch.ids])
        assert batch.last_positions.tolist() == [2, 2]


def test_parts_keep_ids_and_order() -> None:
    batch = FixedBatch(torch.arange(10.0)[:, None], torch.arange(10) % 2)
    part = batch.part(2, 5)
    assert torch.equal(part.ids, batch.ids[2:5])
    assert torch.equal(part.inputs, batch.inputs[2:5])
    assert torch.equal(part.targets, batch.targets[2:5])
    again = batch.take(torch.tensor([1, 1]))
    assert torch.equal(again.inputs[0], again.inputs[1])


def test_thumbnails_undo_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (3, 3, 4, 4)).float() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    batch = FixedBatch((pixels - mean[:, None, None]) / std[:, None, None], mean=mean.tolist(), std=std.tolist())
    shown = batch.thumbnails()
    assert shown is not None
    np.testing.assert_array_equal(shown, (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_thumbnails_of_values_out_of_range_are_stretched() -> None:
    shown = FixedBatch(torch.tensor([-3.0, 5.0, 1.0, float("nan")]).reshape(1, 1, 2, 2)).thumbnails()
    assert shown is not None
    assert shown.ravel().tolist() == [0, 255, 128, 0]
    assert FixedBatch(torch.randn(3, 5)).thumbnails() is None


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (torch.tensor([[0.3, 0.7], [1.0, 0.0]]), "shares"),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "sets"),
        (torch.tensor([[0.3, 0.9], [1.0, 0.0]]), "numbers"),
        (torch.tensor([[1.0], [1.0]]), ""),
        (torch.tensor([[1, 0], [0, 1]]), ""),
    ],
)
def test_floating_targets_of_two_columns_are_told_apart(targets: torch.Tensor, kind: str) -> None:
    assert kind_of(targets) == kind


def test_images_of_bytes_are_thumbnails_as_they_are() -> None:
    frames = torch.randint(0, 256, (3, 4, 6, 5), dtype=torch.uint8)
    shown = FixedBatch(frames).thumbnails(2)
    assert shown is not None
    np.testing.assert_array_equal(shown, frames[:2, :3].permute(0, 2, 3, 1).numpy())
    assert FixedBatch((frames, torch.randn(3, 5))).thumbnails() is None  # what is explained is the other
    assert FixedBatch(torch.zeros(3, 5, 6, 6, dtype=torch.uint8)).thumbnails() is None


def test_thumbnails_take_a_mean_or_a_standard_deviation_alone() -> None:
    x = torch.rand(2, 1, 4, 4) / 2
    for batch, pixels in ((FixedBatch(x, mean=0.5), x + 0.5), (FixedBatch(x, std=2.0), 2 * x)):
        np.testing.assert_array_equal(batch.thumbnails()[..., 0], (pixels[:, 0] * 255).round().byte())  # type: ignore[index]


def test_thumbnails_of_a_few_have_the_range_of_all() -> None:
    batch = FixedBatch(torch.linspace(-1, 1, 60).reshape(6, 1, 5, 2))
    few, every = batch.thumbnails(2), batch.thumbnails()
    assert few is not None
    assert every is not None
    np.testing.assert_array_equal(few, every[:2])
    assert (every.min(), every.max()) == (0, 255)
    below = FixedBatch(torch.tensor([-0.5, 0.0, 1.0, torch.inf]).reshape(1, 1, 2, 2)).thumbnails()
    assert below.ravel().tolist() == [0, 85, 255, 255]  # type: ignore[union-attr]


def test_a_fourth_channel_is_no_opacity() -> None:
    images = torch.rand(2, 4, 3, 3)
    images[:, 3] = -7.0  # a depth, which stretches no colour
    shown = FixedBatch(images).thumbnails()
    assert shown is not None
    np.testing.assert_array_equal(shown, (images[:, :3] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert FixedBatch(images, mean=[0.0] * 4).thumbnails().shape == (2, 3, 3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"class_names": "cat"}, "takes a list of names, got 'cat'"),
        ({"class_names": 3}, "takes a list of names, got 3"),
        ({"feature_names": "age"}, "takes a list of names, got 'age'"),
        ({"class_names": {"cat": 0}}, "takes names by the number of the class, got {'cat': 0}"),
        ({"tokens": {"the": 0}}, "takes strings by id; of a vocabulary of ids by string give sorted(vocabulary"),
        ({"feature_names": ["age"]}, "takes a name for each column of a table (N, F)"),
        ({"tokens": 3}, "takes a list of strings by id, a tokenizer, or a function"),
        ({"mean": "x"}, "takes a number, or one for each channel, got 'x'"),
        ({"std": [[1.0], "x"]}, "takes a number, or one for each channel"),
    ],
)
def test_what_only_matters_for_pictures_is_looked_at_too(given: dict[str, Any], why: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(f"FixedBatch({next(iter(given))}=) {why}")):
        FixedBatch(torch.zeros(2, 3, 8, 8), **given)


def test_what_has_no_rows_is_never_cut_however_long_a_part_of_the_batch_is() -> None:
    x, mask, table, boxes = torch.randn(300, 4), torch.ones(8, 8), torch.zeros(256, 3), [{"box": torch.ones(1)}] * 8
    batch = FixedBatch({"x": x, "mask": mask, "more": (table, boxes)}, torch.arange(300) % 3)
    assert len(batch) == 256
    for part in (batch.part(0, 8, torch.device("cpu")).part(2, 5), batch.cast(torch.float32, torch.float64).part(0, 8)):
        assert part.inputs["x"].shape == (len(part), 4)
        assert part.inputs["mask"].shape == (8, 8)
        assert part.inputs["more"][0].shape == (256, 3)
        assert len(part.inputs["more"][1]) == 8
        assert [tuple(tensor.shape) for tensor in part.float_inputs] == [(len(part), 4)]
    eight = batch.part(0, 8)
    noisy = eight.substitute(eight.inputs["x"], torch.zeros(8, 4)).take(torch.tensor([1, 1]))
    assert (noisy.inputs["x"].shape, noisy.inputs["mask"].shape) == ((2, 4), (8, 8))
    theirs = FixedBatch({"x": x + 1, "mask": mask, "more": (table, boxes)}, torch.arange(300) % 3)
    examples = pickle.loads(pickle.dumps(theirs.part(0, 8).examples))
    common = batch.with_examples(examples).part(0, 3)
    assert (common.inputs["mask"].shape, len(common.inputs["more"][1])) == ((8, 8), 8)
    torch.testing.assert_close(common.inputs["x"], theirs.inputs["x"][:3])


@pytest.mark.parametrize("classes", [1, 3, 32])
def test_classes_take_turns_and_the_first_examples_of_each_come_first(classes: int) -> None:
    labels = torch.randint(7, classes + 7, (1000,))
    seen: Counter[int] = Counter()
    turns = []
    for row, label in enumerate(labels.tolist()):
        turns.append((seen[label], label, row))
        seen[label] += 1
    assert FixedBatch(torch.zeros(1000, 2), labels).ids.tolist() == [row for _, _, row in sorted(turns)[:256]]


@pytest.mark.parametrize("classes", [33, 100, 300])
def test_of_many_classes_a_few_spread_over_all_have_several_of_the_first_examples(classes: int) -> None:
    labels = (torch.arange(5 * classes) * 7 + 3) % classes
    batch = FixedBatch(torch.arange(len(labels)), labels)
    assert batch.labels is not None
    first = batch.labels[:128].reshape(4, 32)
    assert torch.equal(first, torch.linspace(0, classes - 1, 32).round().long().expand(4, 32))
    assert len(set(batch.ids.tolist())) == min(256, len(labels))
    assert torch.equal(labels[batch.ids], batch.labels)
    if classes == 33:  # nobody is left out who has room
        assert len(batch.labels.unique()) == classes


def test_of_many_classes_those_of_several_examples_come_first() -> None:
    labels = torch.cat([torch.arange(1000), torch.tensor([-1, -1, 7, 500, 7])])
    batch = FixedBatch(torch.zeros(1005), labels)
    assert batch.ids.tolist()[:8] == [7, 500, 1002, 1003, 1004, 0, 1, 2]


def test_classes_of_one_example_each_take_turns_as_they_are() -> None:
    assert FixedBatch(torch.zeros(300), torch.arange(300)).ids.tolist() == list(range(256))


def test_names_may_be_given_by_number() -> None:
    batch = FixedBatch(
        torch.zeros(2, 3).long(), class_names={2: "dog", 0: "cat"}, tokens={0: "the", 5: "end", 2**40: "far"}
    )
    assert batch.class_names == ("cat", "1", "dog")
    assert batch._token_names([0, 1, 5, 6, 2**40]) == ["the", "1", "end", "6", "far"]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (TensorDataset(torch.zeros(3, 2)), r"got TensorDataset; of a dataset give some examples, .*default_collate"),
        (lambda: (torch.zeros(3, 2), None), r"a function that returns one, got function$"),
    ],
)
def test_what_is_no_batch_is_told_what_to_give(batch: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        as_fixed_batch(batch)


def test_what_a_video_was_normalised_with_is_not_refused() -> None:
    assert FixedBatch(torch.zeros(2, 3, 4, 8, 8), mean=[0.5, 0.4, 0.3]).thumbnails() is None


def test_class_names_are_used_where_given() -> None:
    batch = FixedBatch(torch.zeros(2, 3), class_names=["cat", "dog"])
    assert [batch.class_name(n) for n in (0, 1, 2)] == ["cat", "dog", "2"]


def test_feature_names_are_of_the_columns_of_the_table_that_is_explained() -> None:
    table, ids = torch.zeros(2, 3), torch.zeros(2, 4).long()
    assert FixedBatch({"ids": ids, "table": table}, feature_names=list("abc")).feature_names == ("a", "b", "c")
    with pytest.raises(
        ValueError, match=r"the first floating point input, got 4 names for \(int64 \(2, 4\), float32 \(2, 3\)\)"
    ):
        FixedBatch((ids, table), feature_names=list("abcd"))


def test_a_value_is_described_in_a_few_words() -> None:
    assert describe({"a": torch.zeros(2, 3), "b": [1, None]}) == "{a: float32 (2, 3), b: (int, None)}"
    assert describe((torch.zeros(2, 3),)) == "(float32 (2, 3),)"


def test_of_a_value_with_many_parts_it_is_said_that_there_are_more() -> None:
    assert describe([0] * 9) == "(" + "int, " * 8 + "…)"
    assert describe(dict.fromkeys("abcdefghi", 0)) == "{" + "".join(f"{name}: int, " for name in "abcdefgh") + "…}"


def test_zeros_and_ones_of_a_binary_loss_are_classes() -> None:
    x, yes = torch.randn(6, 2), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert FixedBatch(x, yes).labels.tolist() == [0, 1, 0, 1, 0, 1]  # type: ignore[union-attr]
    assert FixedBatch(x, yes[:, None]).labels.tolist() == [0, 1, 0, 1, 0, 1]  # type: ignore[union-attr]
    assert [FixedBatch(x, yes).part(k, k + 1).labels.tolist() for k in (0, 1)] == [[0], [1]]  # type: ignore[union-attr]
    assert FixedBatch(x, torch.arange(6.0)).part(0, 2).labels is None
    assert FixedBatch(x, yes + 0.5).labels is None
    assert FixedBatch(x, torch.zeros(6)).labels is None
    assert FixedBatch(x, torch.eye(6)[:, :2]).labels is None


def test_each_with_each_is_no_score_of_classes() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = self.a(x) @ self.b(y).T
            return found

    inputs = torch.randn(6, 4), torch.randn(6, 5)
    met = survey({"": Towers()}, FixedBatch(inputs, torch.arange(6)))
    assert (met.scored, met.classes) == ("", 0)
    met = survey({"": Towers()}, FixedBatch(inputs, torch.arange(6), loss=lambda output, _: -output.diag()))
    assert met.scored == "loss"
    met = survey({"": nn.Linear(4, 2)}, FixedBatch(inputs[0], torch.arange(6) % 2))
    assert (met.scored, met.classes) == ("logits", 2)

    class Compares(Towers):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            logits = super().forward(x, y)
            return SimpleNamespace(loss=nn.functional.cross_entropy(logits, torch.arange(len(x))), logits_per_x=logits)

    assert survey({"": Compares()}, FixedBatch(inputs)).scored == ""  # of one example alone it is 0, whatever that is
    assert survey({"": Compares()}, FixedBatch(tuple(x[:1] for x in inputs))).scored == "loss"
    alike = FixedBatch(inputs[0], torch.randn(6, 3), loss=lambda output, _: output.squeeze()[1].square().sum())
    assert survey({"": nn.Linear(4, 3)}, alike).scored == "loss"  # one example alone raises, which is said later


def test_targets_by_name_may_be_arrays_and_lists() -> None:
    class Tasks(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {"age": found[:, :1], "kind": found[:, 1:]}

    kinds = np.arange(8) % 3
    for given in (kinds, kinds.tolist()):
        batch = FixedBatch(torch.randn(8, 5), {"age": np.ones(8), "kind": given, "weights": [0.5, 2.0], "of": 3})
        assert (batch.targets["weights"], batch.targets["of"]) == ([0.5, 2.0], 3)
        labels = survey({"": Tasks(5, 4)}, batch).batch.part(2, 6).labels
        assert labels is not None
        assert labels.tolist() == kinds[batch.ids[2:6].numpy()].tolist()


class InNamedTuple(NamedTuple):
    age: Any
    kind: Any


@dataclass
class InDataclass:
    age: Any
    kind: Any


@pytest.mark.parametrize("kind", [InNamedTuple, InDataclass])
def test_targets_by_name_may_lie_in_a_named_tuple_or_a_dataclass(kind: Any) -> None:
    class Tasks(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {"age": found[:, :1], "kind": found[:, 1:]}

    kinds = np.random.default_rng(0).integers(0, 3, 300)
    batch = survey({"": Tasks(5, 4)}, FixedBatch(torch.randn(300, 5), kind(torch.rand(300), kinds))).batch
    rows = torch.tensor([7, 2, 200])
    labels = batch.take(rows).labels
    assert labels is not None
    assert labels.tolist() == kinds[batch.ids[rows].numpy()].tolist()

    of_loss = FixedBatch(torch.randn(4, 5), InNamedTuple(torch.rand(4), kinds[:4]), loss=lambda _, targets: targets.age)
    assert of_loss.part(0, 2).targets.age.shape == (2,)


def test_targets_without_a_name_are_called_by_their_place() -> None:
    batch = FixedBatch(torch.randn(4, 5), (torch.randn(4, 2), torch.randn(4)))
    assert [batch.of_task((k, k)).shade[1] for k in (0, 1)] == ["target[0] 1 of 2", "target[1]"]  # type: ignore[index]


def test_classes_of_a_task_are_counted_over_all_examples() -> None:
    class Task(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"kind": super().forward(x)}

    batch = FixedBatch(torch.randn(12, 6), {"kind": torch.arange(12) % 6})
    met = survey({"": Task(6, 6)}, batch)  # as many scores as values, which is not to rebuild them
    assert (met.scored, met.classes, met.rebuilds) == ("logits", 6, False)


@pytest.mark.parametrize("column", [slice(0, 1), 0])
def test_one_logit_of_two_classes_is_a_task_in_either_shape(column: Any) -> None:
    class Task(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"is": super().forward(x)[:, column]}

    met = survey({"": Task(5, 2)}, FixedBatch(torch.randn(12, 5), {"is": torch.arange(12) % 2}))
    assert (met.scored, met.classes) == ("logits", 1)
    assert met.batch.labels is not None


@pytest.mark.parametrize(("loss", "got"), [(1.5, "float"), (None, "None")])
def test_a_loss_that_is_no_tensor_is_told(loss: Any, got: str) -> None:
    batch = FixedBatch(torch.randn(6, 4), torch.randn(6, 3), loss=lambda output, _: loss)
    with pytest.raises(BatchDoesNotFit, match=rf"must return a tensor, \(N,\) or a scalar, got {got}$"):
        survey({"": nn.Linear(4, 3)}, batch)


def test_what_another_rank_tells_is_not_taken_for_an_error_of_one_example_alone() -> None:
    class Stops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise FailedElsewhereError(1, "ValueError: no")
            return x

    batch = FixedBatch(torch.randn(6, 3), torch.randn(6, 3), loss=lambda output, y: (output - y).square().mean())
    with pytest.raises(FailedElsewhereError):
        survey({"": Stops()}, batch)


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_ranks_run_the_model_equally_often_whatever_their_loss_is(loss: float) -> None:
    ran = []

    class Runs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(len(x))
            return x

    batch = FixedBatch(torch.randn(6, 3), torch.randn(6, 3), loss=lambda output, _: output.sum() * 0 + loss)
    assert survey({"": Runs()}, batch).scored == "loss"
    assert ran == [2, 1]


def test_a_sparse_adjacency_is_told_how_a_graph_is_given() -> None:
    with pytest.raises(TypeError, match=r"a graph, whose nodes .*torch\.arange\(nodes\)"):
        FixedBatch((torch.randn(5, 2), torch.eye(5).to_sparse()))


def test_labels_of_which_an_example_has_several_are_sets() -> None:
    x, sets = torch.randn(4, 5), torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
    batch = FixedBatch(x, sets)
    assert batch.labels is None
    assert batch.label_sets is not None
    assert batch.part(1, 3).label_sets.tolist() == [[True, False, False], [True, True, False]]  # type: ignore[union-attr]
    assert FixedBatch(x, torch.randn(4, 3)).label_sets is None


def test_a_batch_is_told_in_a_few_words() -> None:
    batch = FixedBatch({"x": torch.zeros(40, 3), "path": [f"{n}.png" for n in range(40)]}, ["cat", "dog"] * 20)
    assert repr(batch) == "FixedBatch({x: float32 (40, 3), path: strings (40,)}, targets=strings (40,))"


def test_classes_are_called_as_the_models_configuration_calls_them() -> None:
    class Configured(nn.Linear):
        config = SimpleNamespace(id2label={0: "cat", 2: "hat", 1: "dog"})

    x, y = torch.randn(6, 4), torch.arange(6) % 3
    met = survey({"": Configured(4, 3)}, FixedBatch(x, y)).batch
    assert met.class_names == met.part(0, 2).class_names == ("cat", "dog", "hat")
    given = FixedBatch(x, y, class_names="a b c".split())
    assert survey({"": Configured(4, 3)}, given).batch.class_names == ("a", "b", "c")
    assert survey({"": Configured(4, 5)}, FixedBatch(x, y)).batch.class_names == ()  # those of a vocabulary, say


class SpeciesForImageClassification(nn.Linear):
    def __init__(self, *names: str) -> None:
        super().__init__(4, 3)
        self.config = SimpleNamespace(id2label=dict(enumerate(names)))


class AnEncoder(SpeciesForImageClassification):
    """Its names are those of what it was trained for before."""


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([SpeciesForImageClassification("cat", "dog", "hat")], ("cat", "dog", "hat")),
        ([SpeciesForImageClassification("cat", "dog", "hat"), AnEncoder("no", "yes", "so")], ("cat", "dog", "hat")),
        ([SpeciesForImageClassification("a", "b", "c"), SpeciesForImageClassification("d", "e", "f")], ()),
        ([AnEncoder("no", "yes", "so")], ()),
    ],
)
def test_classes_are_called_as_the_classifier_within_a_module_calls_them(
    parts: list[nn.Module], expected: tuple[str, ...]
) -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x: Tensor) -> Any:
            return self.parts[0](x)

    assert survey({"": Wraps()}, FixedBatch(torch.zeros(3, 4), torch.arange(3))).batch.class_names == expected


def test_padding_is_what_the_embedding_of_the_tokens_says_it_is() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.tokens(ids))

    ids = torch.tensor([[5, 3, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    met = survey({"": Tagger()}, FixedBatch(ids))
    assert met.batch.token_mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    assert met.batch.last_positions.tolist() == [1, 3, 3]
    assert met.scores_a_position
    given = FixedBatch(
        {"input_ids": ids, "attention_mask": torch.ones(3, 4).long()}, forward=lambda m, x: m(x["input_ids"])
    )
    assert survey({"": Tagger()}, given).batch.token_mask.all()


def test_a_forward_that_differentiates_its_inputs_is_told_how_to() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.body(x).tanh().sum(), x, create_graph=True)
            return slope

    def with_gradients(model: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return model(x)

    with pytest.raises(BatchDoesNotFit, match=r"FixedBatch\(forward=…\) may torch\.enable_grad\(\)"):
        survey({"": Residual()}, FixedBatch(torch.randn(4, 2)))
    assert survey({"": Residual()}, FixedBatch(torch.randn(4, 2), forward=with_gradients)).layers


def test_an_embedding_on_another_device_is_asked_nothing_of_its_ids() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tokens = nn.Linear(4, 2), nn.Embedding(9, 4, device="meta")

        def forward(self, ids: Tensor) -> Tensor:
            looked_up = self.tokens(ids.to("meta"))
            return self.head(torch.ones(looked_up.shape[0], 4, device="cpu"))

    assert not survey({"": Elsewhere()}, FixedBatch(torch.randint(0, 9, (4, 5)))).token_embeddings
