"""What is read in a model's output: scores of classes, losses, embeddings, and which task is shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vizlog.batch import BatchDoesNotFit, FixedBatch
from vizlog.reading import Reading
from vizlog.survey import survey


def test_floating_class_numbers_are_classes_where_these_have_names() -> None:
    x, names = torch.randn(4, 2), ["a", "b", "c"]
    numbers = np.array([2.0, np.nan, 0.0, 1.0])  # as of a table with a gap
    batch = FixedBatch(x, numbers, class_names=names)
    assert batch.labels is not None
    assert dict(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)) == {0: 2, 1: -100, 2: 0, 3: 1}
    output = torch.randn(4, 3)
    assert Reading(batch, output).logits() is output
    for other in (numbers + 1, numbers / 2, numbers * np.nan, -numbers):
        assert FixedBatch(x, other, class_names=names).labels is None
    assert FixedBatch(x, numbers).labels is None
    assert FixedBatch(x, numbers, class_names=names, loss=lambda output, targets: targets).targets.is_floating_point()


def test_of_a_text_the_last_position_with_a_label_is_looked_at() -> None:
    ids = torch.tensor([[1, 5, 3, 2, 0], [1, 4, 4, 6, 2], [1, 3, 2, 0, 0]])
    labels = torch.tensor([[-100, 2, 1, -100, -100], [-100, 0, -100, -100, -100], [-100] * 5])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}
    batch = FixedBatch(inputs)
    assert batch.scored_positions.tolist() == [2, 1, 2]  # without any label, the last that is no padding
    assert batch.last_positions.tolist() == [3, 4, 2]
    scores = torch.randn(3, 5, 4)
    assert torch.equal(Reading(batch, scores).logits(), scores[torch.arange(3), [2, 1, 2]])  # type: ignore[arg-type]
    assert batch.token_labels is not None
    assert torch.equal(batch.token_labels, labels)
    assert FixedBatch(ids, torch.tensor([0, 1, 0])).token_labels is None


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


LOGITS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, torch.zeros(4, 3)),
        (torch.tensor(1.0), LOGITS),
        {"logits": LOGITS, "other": torch.zeros(4, 3)},
        {"embedding": torch.zeros(4, 2, 2, 2), "scores": LOGITS},
        SimpleNamespace(logits=LOGITS),
        Output(torch.tensor(1.0), LOGITS),
    ],
)
def test_logits_are_found_in_what_models_return(output: Any) -> None:
    found = Reading(FixedBatch(torch.randn(4, 5), torch.arange(4) % 3), output).logits()
    assert found is LOGITS


@pytest.mark.parametrize("output", [torch.zeros(4), torch.zeros(5, 3), "text", {"x": torch.zeros(3, 4).long()}, ()])
def test_no_logits_are_found_where_there_are_none(output: Any) -> None:
    assert Reading(FixedBatch(torch.randn(4, 5), torch.arange(4) % 3), output).logits() is None


def test_of_several_tasks_the_one_whose_targets_are_numbers_scores_no_classes() -> None:
    output = {"age": torch.randn(4, 2), "kind": LOGITS}
    batch = FixedBatch(torch.randn(8, 5), {"age": torch.arange(16.0).reshape(8, 2), "kind": torch.arange(8) % 3})
    assert Reading(batch.part(0, 4), output).logits() is LOGITS  # of the first rows alone, numbers may be 0 or 1
    assert Reading(batch.part(0, 4), {"age": output["age"]}).logits() is None
    sets = FixedBatch(torch.randn(4, 5), {"kind": torch.eye(3)[torch.tensor([0, 1, 2, 0])]})
    assert Reading(sets, output | {"kind": LOGITS, "age": None}).logits() is LOGITS


def test_a_reconstruction_is_no_class_scores() -> None:
    batch = FixedBatch(torch.randn(4, 5))
    assert Reading(batch, torch.randn(4, 5)).logits() is None
    assert Reading(batch, torch.randn(4, 6)).logits() is not None
    one = torch.randn(4, 1)  # of one column a regression, and of an image and a time a critic's
    assert Reading(FixedBatch(torch.randn(4, 1), torch.randn(4)), one).logits() is one
    assert Reading(FixedBatch((torch.randn(4, 3, 8, 8), torch.rand(4))), one).logits() is one


def test_token_models_are_scored_at_the_last_token_that_is_no_padding() -> None:
    ids = torch.arange(8).reshape(2, 4)
    output = torch.randn(2, 4, 11)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    padded = FixedBatch({"input_ids": ids, "attention_mask": mask})
    found = Reading(padded, SimpleNamespace(logits=output)).logits()
    assert found is not None
    assert torch.equal(found, torch.stack([output[0, 3], output[1, 1]]))


def test_embeddings_are_no_class_scores() -> None:
    x, embedded = torch.randn(4, 5), torch.randn(4, 64)
    hidden = {"last_hidden_state": embedded, "pooler_output": embedded, "image_embeds": embedded}
    assert Reading(FixedBatch(x), nn.functional.normalize(embedded)).logits() is None
    assert Reading(FixedBatch(x), hidden).logits() is None
    assert Reading(FixedBatch(x, class_names=list("abc")), embedded).logits() is None
    assert Reading(FixedBatch(x), hidden | {"scores": LOGITS}).logits() is LOGITS
    certain = nn.functional.one_hot(torch.tensor([0, 1, 2, 0])).float()  # probabilities, of length 1 too
    assert Reading(FixedBatch(x, class_names=list("abc")), certain).logits() is certain
    assert Reading(FixedBatch(x, class_names=list("ab")), LOGITS).logits() is LOGITS  # a head may be padded
    assert (
        Reading(FixedBatch(x, torch.tensor([0, 1, 2, 0]), class_names=list("a")), LOGITS).logits() is LOGITS
    )  # names are missing


def test_rows_of_about_length_1_and_heads_that_are_padded_score_classes() -> None:
    x, labels = torch.randn(6, 4), torch.arange(6) % 3
    named = FixedBatch(x, labels, class_names=["a", "b", "c"])
    for columns, scores in ((3, True), (6, True), (7, False)):
        assert (Reading(named, torch.randn(6, columns)).logits() is not None) == scores
    hundred = FixedBatch(x, labels, class_names=[str(k) for k in range(100)])
    for columns, scores in ((91, True), (100, True), (112, True), (128, False), (10, True)):
        assert (Reading(hundred, torch.randn(6, columns)).logits() is not None) == scores
    unnamed = FixedBatch(x)
    of_length_1 = nn.functional.normalize(torch.randn(6, 5))
    assert Reading(unnamed, of_length_1).logits() is None
    assert Reading(unnamed, of_length_1 * 1.05).logits() is not None
    assert Reading(unnamed, torch.eye(6)).logits() is not None  # sure of one class each


def test_how_wide_embeddings_are_and_how_they_are_known_is_said() -> None:
    x, labels, output = torch.randn(6, 4), torch.arange(6), torch.randn(6, 64)
    batch, unit = FixedBatch(x, labels), nn.functional.normalize(output)
    assert Reading(batch, output).embeds() == (0, "")
    assert Reading(batch, unit).embeds() == (64, "its rows have length 1")
    assert Reading(batch, {"h": output, "z": unit}).embeds() == (0, "")  # the first might be scores
    assert Reading(FixedBatch(x, labels, class_names=list("abcdef")), output).embeds() == (
        64,
        "it has 64 columns for 6 classes",
    )
    assert Reading(FixedBatch(x, labels * 40), output).embeds() == (64, "it has 64 columns and there is a class 200")
    assert Reading(FixedBatch(x, labels + 5), torch.randn(6, 6)).embeds() == (
        0,
        "",
    )  # a mistake, which is said elsewhere
    assert Reading(FixedBatch(x, output), unit).embeds() == (0, "")  # a regression
    assert Reading(FixedBatch(unit, labels), unit).embeds() == (0, "")  # it rebuilds its input
    assert Reading(FixedBatch(x, score=lambda found: found), unit).embeds() == (0, "")
    views = torch.randn(6, 3), torch.randn(6, 3)
    assert Reading(FixedBatch((x, x + 1)), views).embeds() == (3, "it has one part for each of several inputs")
    assert Reading(FixedBatch((x, x + 1), labels), views).embeds() == (0, "")
    for other in (views[0][:, 0], views[0].reshape(6, 1, 1, 3)):  # one number each, and maps
        assert Reading(FixedBatch((x, x + 1)), (other, other.clone())).embeds() == (0, "")
    assert Reading(FixedBatch(x, labels).knowing(scored=False), torch.randn(6, 2)).embeds() == (0, "")
    assert Reading(FixedBatch(x), views).embeds() == (0, "")


def test_one_number_an_example_is_no_score_of_three_classes() -> None:
    for classes, scores in ((2, True), (3, False)):
        batch = FixedBatch(torch.randn(6, 4), torch.arange(6) % classes)
        assert (Reading(batch, torch.randn(6)).logits() is not None) == scores


def test_whether_an_output_is_embeddings_is_found_out_once() -> None:
    """A single example's logits may have the length 1 by chance."""
    batch = FixedBatch(torch.randn(4, 5), torch.arange(4) % 3)
    unit = nn.functional.normalize(LOGITS - 5)
    assert Reading(batch, unit).logits() is None

    model = nn.Linear(5, 3)
    met = survey({"": model}, batch).batch
    assert Reading(met.part(0, 1), unit[:1]).logits() is not None
    assert Reading(met, unit).logits() is unit

    embeds = survey({"": nn.Sequential(model, Normalised())}, batch).batch
    assert Reading(embeds, LOGITS).logits() is None
    assert Reading(batch, LOGITS).logits() is LOGITS  # another model may be shown the same examples


class Normalised(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x)


def test_positions_of_a_second_text_are_not_those_of_the_first() -> None:
    source, target = torch.randint(2, 9, (2, 4)), torch.randint(2, 9, (2, 4))
    output = torch.randn(2, 4, 11)
    assert Reading(FixedBatch({"input_ids": source, "decoder_input_ids": target}), output).logits() is None
    assert Reading(FixedBatch((source, target), target), output).logits() is None
    assert (
        Reading(FixedBatch(source), {"logits": output, "encoder_last_hidden_state": torch.randn(2, 4, 3)}).logits()
        is None
    )
    assert (
        Reading(FixedBatch({"input_ids": source, "position_ids": torch.arange(4).expand(2, 4)}), output).logits()
        is not None
    )
    assert Reading(FixedBatch((source, torch.arange(4).expand(2, 4))), output).logits() is not None
    assert Reading(FixedBatch((source[:, :-1], source[:, 1:])), output[:, 1:]).logits() is not None


def test_a_score_of_ones_own_is_checked() -> None:
    batch = FixedBatch(torch.randn(4, 5), score=lambda output: output["a"])
    assert Reading(batch, {"a": LOGITS}).logits() is LOGITS
    with pytest.raises(BatchDoesNotFit, match=r"must return \(N, classes\) with N=4, got float32 \(3, 3\)"):
        Reading(batch, {"a": torch.zeros(3, 3)}).logits()


def test_losses_are_found_or_made() -> None:
    batch = FixedBatch(torch.randn(4, 5))
    assert Reading(batch, Output(torch.tensor(2.0), LOGITS)).losses() == 2
    assert Reading(batch, {"loss": torch.tensor(3.0)}).losses() == 3
    assert Reading(batch, LOGITS).losses() is None
    made = FixedBatch(torch.randn(4, 5), torch.ones(4), loss=lambda out, y: (out.mean(1) - y) ** 2)
    assert Reading(made, LOGITS).losses().tolist() == [0, 9, 36, 81]  # type: ignore[union-attr]


def test_examples_of_another_rank_are_scored_as_there() -> None:
    x = torch.randn(6, 4)
    theirs, mine = FixedBatch(x, torch.arange(6) % 3), FixedBatch(x, torch.arange(6) % 5)
    output = torch.zeros(6, 5), torch.zeros(6, 3)
    common = mine.with_examples(theirs.examples)
    for batch in (theirs, common):
        assert Reading(batch, output).logits().shape == (6, 3)  # type: ignore[union-attr]
        assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]  # type: ignore[union-attr]


def test_classes_with_names_are_believed_where_one_is_missing_from_the_batch() -> None:
    names, x = list("abcdefghij"), torch.randn(9, 10)
    logits = torch.randn(9, 10)
    assert Reading(FixedBatch(x, torch.arange(9), class_names=names), logits).logits() is logits


@dataclass
class Heads:
    kind: Any
    age: Any


class Named(NamedTuple):
    age: Any
    kind: Any


class Kind(Enum):
    KIND, AGE = range(2)


LABELS, AGES = torch.arange(6) % 3, torch.rand(6) * 80


SCORES, YEARS = torch.randn(2, 3), torch.randn(2, 1)


@pytest.mark.parametrize(
    ("output", "targets", "task", "scores"),
    [
        (SCORES, {"label": LABELS}, (None, "label"), SCORES),
        ({"logits": SCORES, "features": YEARS}, {"label": LABELS}, (None, "label"), SCORES),
        ({"out": SCORES}, {"label": {"kind": LABELS.tolist()}}, (None, "label.kind"), SCORES),
        (YEARS, {"age": AGES}, (None, "age"), YEARS),
        (YEARS, {"age": torch.arange(6)}, (None, "age"), YEARS),
        ({"kind": SCORES, "age": YEARS}, {"age": AGES}, ("age", "age"), YEARS),
        ({"kind": SCORES, "age": YEARS}, {"age": AGES, "kind": LABELS}, ("kind", "kind"), SCORES),
        ({"box": SCORES, "age": YEARS}, {"box": torch.rand(6, 3), "age": AGES}, ("age", "age"), YEARS),
        ({"kind": SCORES, "age": YEARS, "of": SCORES}, Named(AGES, LABELS), ("kind", "kind"), SCORES),
        ({0: YEARS, 1: SCORES}, {0: AGES, 1: LABELS}, (1, 1), SCORES),
        ({Kind.AGE: YEARS, Kind.KIND: SCORES}, {Kind.AGE: AGES, Kind.KIND: LABELS}, (Kind.KIND, Kind.KIND), SCORES),
        (Heads(SCORES, YEARS), {"age": AGES, "kind": LABELS}, ("kind", "kind"), SCORES),
        ({"heads": {"kind": SCORES, "age": YEARS}}, {"kind": LABELS, "age": AGES}, ("heads.kind", "kind"), SCORES),
        (Heads(None, YEARS), {"heads": {"age": AGES, "kind": LABELS}}, None, YEARS),
        ({"heads": Heads(SCORES, YEARS)}, {"heads": {"kind": LABELS}}, ("heads.kind", "heads.kind"), SCORES),
        ({"kind": SCORES, "age": YEARS}, {"image_id": LABELS}, None, SCORES),
        ({"kind": SCORES}, {"image_id": LABELS, "label": LABELS}, (None, "label"), SCORES),
        (Heads(SCORES, YEARS), LABELS, None, SCORES),
        ({"maps": {"a": torch.randn(2, 8)}, "out": SCORES}, LABELS, None, SCORES),  # at the surface
        ({"features": {"a": torch.randn(2, 8)}, "heads": {"a": SCORES}}, LABELS, None, SCORES),
        ({"loss": torch.tensor(1.0), "heads": {"a": SCORES}}, LABELS, None, SCORES),
        ({"pos": SCORES}, {"pos": torch.randn(6, 3)}, ("pos", "pos"), None),
        ((torch.randn(2, 8), SCORES), {"label": LABELS}, (None, "label"), SCORES),
        ({"rebuilt": torch.randn(2, 5), "logits": SCORES}, {"rebuilt": torch.randn(6, 5), "of": LABELS}, None, SCORES),
        (SCORES, {"id": torch.arange(6), "label": LABELS}, (None, "label"), SCORES),
        ({"logits": SCORES, "loss": torch.tensor(1.0)}, {"id": LABELS, "y": LABELS, "z": AGES}, (None, "y"), SCORES),
        (SCORES, {"label": LABELS, "y": LABELS}, None, SCORES),
    ],
)
def test_outputs_and_targets_are_matched_by_their_names(output: Any, targets: Any, task: Any, scores: Any) -> None:
    batch = FixedBatch(torch.randn(6, 5), targets)
    assert Reading(batch.part(0, 2), output).task(batch.targets, len(batch)) == task
    read = batch if task is None else batch.of_task(task)
    assert Reading(read.part(0, 2), output).logits() is scores
    if task is not None and scores is SCORES:
        assert read.labels is not None
        assert read.labels.tolist() == LABELS[batch.ids].tolist()


@pytest.mark.parametrize(
    ("outputs", "targets", "task"),
    [
        ((SCORES, AGES[:2, None]), (LABELS, AGES[:, None]), (0, 0)),
        ([AGES[:2], SCORES], [AGES, LABELS.numpy()], (1, 1)),
        ((SCORES, torch.randn(2, 3, 4, 4)), (LABELS, torch.zeros(6, 4, 4).long()), (0, 0)),  # and a map of classes
        ((torch.randn(2, 5), SCORES), (torch.randn(6, 5), LABELS), (1, 1)),  # and an input, rebuilt
        ((SCORES, AGES[:2, None]), (AGES[:, None], LABELS), None),  # in another order
        ((SCORES, AGES[:2], AGES[:2]), (LABELS, AGES), None),
        (SCORES, (LABELS, AGES), None),
        (SCORES, [LABELS, tuple("abcdef")], None),  # and the names of files
    ],
)
def test_outputs_and_targets_without_names_are_matched_by_their_order(
    outputs: Any, targets: Any, task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return outputs

    batch = FixedBatch(torch.randn(6, 5), targets)
    assert Reading(batch.part(0, 2), outputs).task(batch.targets, len(batch)) == task
    caplog.set_level("INFO", "vizlog")
    found = survey({"": Model()}, batch).batch
    if task is None:
        assert found.labels is None
        assert Reading(found.part(0, 2), outputs).logits() is SCORES
        assert "belongs to the output is not known, and none is shown" in caplog.text
    else:
        assert found.labels is not None
        assert found.labels.tolist() == LABELS[batch.ids].tolist()
        assert f"those of {task[0]} are shown, as classes" in caplog.text


def test_a_target_that_is_the_only_one_may_be_in_words() -> None:
    x, words = torch.randn(6, 5), ["b", "a", "c"] * 2
    named = FixedBatch(x, {"label": words}, class_names=["a", "b", "c"]).of_task((None, "label"))
    assert named.labels is not None
    assert [["a", "b", "c"][k] for k in named.labels] == [words[k] for k in named.ids]
    unnamed = FixedBatch(x, {"label": words})
    output = {"label": SCORES, "other": YEARS}
    assert Reading(unnamed, output).task(unnamed.targets, len(unnamed)) == ("label", "label")
    shown = unnamed.of_task((None, "label"))
    assert shown.labels is None
    assert shown.groups is not None
    assert [shown.groups[1][k] for k in shown.groups[0]] == [words[k] for k in shown.ids]


def test_of_several_outputs_the_one_as_wide_as_there_are_classes_scores_them() -> None:
    x, labels = torch.randn(6, 5), torch.arange(6) % 3
    features, scores = torch.randn(6, 8), torch.randn(6, 3)
    assert Reading(FixedBatch(x, labels), (features, scores)).logits() is scores
    assert Reading(FixedBatch(x, class_names=list("abc")), {"hidden": features, "out": scores}).logits() is scores
    assert Reading(FixedBatch(x, labels), {"parity": torch.randn(6, 1), "digit": scores}).logits() is scores
    assert Reading(FixedBatch(x, labels), (torch.randn(6, 1), torch.randn(6, 4))).logits().shape == (
        6,
        4,
    )  # a class is missing
    assert Reading(FixedBatch(x, labels), (features, torch.randn(6, 8))).logits() is None  # two views of an example
    assert Reading(FixedBatch(x), (features, scores)).logits() is features  # nobody knows


def test_of_exits_that_are_alike_the_first_scores_classes_where_one_of_these_is_missing() -> None:
    x, exits = torch.randn(6, 5), (torch.randn(6, 10), torch.randn(6, 10))
    for labels in (torch.arange(6), torch.zeros(6).long()):
        assert Reading(FixedBatch(x, labels), exits).logits() is exits[0]
        assert Reading(FixedBatch((x, x + 1), labels), exits).logits() is None  # what it makes of each
    assert Reading(FixedBatch(x, torch.arange(6) % 4), exits).logits() is None  # views, rather than six classes more
    assert Reading(FixedBatch(x, class_names=list("abcdefghi")), exits).logits() is exits[0]  # and the background


def test_numbers_between_0_and_1_are_no_shares_of_classes() -> None:
    x, output = torch.randn(64, 5), torch.randn(64, 3)
    boxes = torch.rand(64, 3)
    assert Reading(FixedBatch(x, boxes), output).logits() is None
    spread = torch.randn(64, 3) * 5
    spread[0] = torch.tensor([0.2, 0.5, 0.9])
    assert survey({"": nn.Linear(5, 3)}, FixedBatch(x, spread)).scored == ""
    shares = boxes.softmax(1)
    assert Reading(FixedBatch(x, shares), output).logits() is output
    assert FixedBatch(x, shares).labels is None
    classes = torch.arange(64) % 3
    one_hot = FixedBatch(x, nn.functional.one_hot(classes).float())
    assert Reading(one_hot, output).logits() is output
    assert one_hot.labels is not None
    assert one_hot.labels.tolist() == classes[one_hot.ids].tolist()


def test_one_logit_of_two_classes_goes_before_wider_outputs() -> None:
    x, labels, logit, wide = torch.randn(6, 5), torch.arange(6) % 2, torch.randn(6, 1), torch.randn(6, 8)
    assert Reading(FixedBatch(x, labels), (wide, logit)).logits() is logit
    assert Reading(FixedBatch(x, labels), (wide, logit, pair := torch.randn(6, 2))).logits() is pair
