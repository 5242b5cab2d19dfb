"""Embeddings: which vectors are shown, what colours them, and what is said about them."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import nn

import vizlog
from vizlog.compute.projection import knn_accuracy, knn_r2, pca
from vizlog.probes.standard import standard
from vizlog.process import LowPriority
from vizlog.records import Embedding, Scalar

TEXT = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [1, 1, 6, 7]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def look(model, probe, batch, steps=1, beside=()):
    """What the probe finds of the model at each step."""
    memory = vizlog.Memory()
    with vizlog.Monitor(model, [probe, *beside], to=memory, batch=batch) as monitor:
        for _ in range(steps):
            with monitor.step():
                pass
    return [record for _, record in memory.records if record.tag.startswith("embeddings/")]


def embeddings(*args, **kwargs):
    return [record for record in look(*args, **kwargs) if isinstance(record, Embedding)]


def evaluated(model, inputs):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(inputs).numpy()


class Text(nn.Module):
    """Token ids (N, T) -> logits of the next token (N, T, 8); with what text models do to shapes."""

    def __init__(self, shape="batch first"):
        super().__init__()
        self.shape, self.embed, self.mix, self.head = shape, nn.Embedding(8, 5), nn.Linear(5, 5), nn.Linear(5, 8)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        if self.shape == "sequence first":
            return self.head(self.mix(x.transpose(0, 1))).transpose(0, 1)
        if self.shape == "flat":
            return self.head(self.mix(x.flatten(0, 1))).unflatten(0, input_ids.shape)
        return self.head(self.mix(x))

    def features(self):
        with torch.no_grad():
            return self.mix(self.embed(TEXT)).numpy()


def text_batch(**options):
    return vizlog.FixedBatch({"input_ids": TEXT, "attention_mask": MASK}, **options)


class Translator(Text):
    """Makes of its labels, as T5 does, the text that it decodes: the layer of that one runs last."""

    def forward(self, input_ids, attention_mask, labels):
        return self.head(self.mix(self.embed(input_ids)).mean(1, keepdim=True) + self.embed(labels))


def test_points_of_a_decoder_are_not_called_as_the_tokens_of_the_encoder():
    labels = (TEXT + 1) % 8
    batch = vizlog.FixedBatch({"input_ids": TEXT, "attention_mask": MASK, "labels": labels}, tokens="abcdefgh")
    model = Translator()
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), batch)
    assert (embedding.vectors.shape, embedding.class_names) == ((3, 5), ())  # an example each, with no padding left out
    with torch.no_grad():
        expected = model.mix(model.embed(TEXT)).mean(1) + model.embed(labels).mean(1)
    np.testing.assert_allclose(embedding.vectors, expected.numpy(), atol=1e-6)


def test_what_is_no_second_text_leaves_the_tokens_their_names():
    class Kinds(Text):
        def __init__(self):
            super().__init__()
            self.kind = nn.Embedding(2, 5)

        def forward(self, input_ids, attention_mask, labels):
            return super().forward(input_ids) + 0 * self.kind(torch.zeros_like(input_ids)).sum()

    class Places(Kinds):
        """Words on a page, as LayoutLM reads them: two tables of one size take where each of them stands."""

        def __init__(self):
            super().__init__()
            self.x, self.y = nn.Embedding(9, 5), nn.Embedding(9, 5)

        def forward(self, input_ids, attention_mask, labels):
            place = torch.arange(4).expand(input_ids.shape)
            return super().forward(input_ids, attention_mask, labels) + 0 * (self.x(place) + self.y(place)).sum()

    masked = torch.where(TEXT == 1, TEXT, -100)
    for model, labels in ((Translator(), TEXT), (Kinds(), masked), (Places(), masked)):
        inputs = {"input_ids": TEXT, "attention_mask": MASK, "labels": labels}
        embedding = embeddings(model, vizlog.Embeddings(methods=["pca"]), vizlog.FixedBatch(inputs, tokens="abcdefgh"))[
            0
        ]
        assert len(embedding.vectors) == 9
        assert "colour: token" in embedding.caption


def test_the_features_before_the_last_linear_layer_are_found(digits, small_cnn):
    images, labels = digits
    model = small_cnn()
    embedding, knn, silhouette = look(model, vizlog.Embeddings(), (images[:100], labels[:100]))
    assert embedding.tag == "embeddings/8.input"
    expected = evaluated(model[:-1], images[:100])[embedding.ids]
    np.testing.assert_allclose(embedding.vectors, expected, atol=1e-5)
    assert embedding.labels.tolist() == labels[embedding.ids].tolist()
    assert set(embedding.layouts) == {"pca", "tsne"}
    np.testing.assert_allclose(embedding.layouts["pca"], pca(expected), atol=1e-4)
    assert (knn.tag, silhouette.tag) == ("embeddings/8.input/knn_accuracy", "embeddings/8.input/silhouette")
    assert knn.value == embedding.scores["knn_accuracy"] == knn_accuracy(expected, embedding.labels, k=9)
    assert silhouette.value == pytest.approx(silhouette_score(expected, embedding.labels), abs=1e-5)


@pytest.mark.parametrize("classes", [100, 1000])
def test_many_classes_that_separate_score_as_such_and_how_many_are_shown_is_said(classes):
    labels = torch.arange(5 * classes) % classes
    prototypes = torch.randn(classes, 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, classes))
    embedding, knn, silhouette = look(
        model, vizlog.Embeddings(methods=["pca"], examples=128), (prototypes[labels], labels)
    )
    assert knn.value == 1
    assert silhouette.value > 0.99
    assert f"32 of {classes} classes" in embedding.caption


def test_classes_of_one_example_each_get_no_score():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 40))
    (embedding,) = look(model, vizlog.Embeddings(methods=["pca"]), (torch.randn(40, 3), torch.arange(40)))
    assert embedding.scores == {}


def test_classes_of_a_few_examples_that_separate_score_as_such():
    labels = torch.arange(12) % 4
    inputs = nn.functional.one_hot(labels, 4) * 100.0 + torch.rand(12, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.eye_(model[0].weight)
    _, knn, _ = look(model, vizlog.Embeddings(methods=["pca"]), (inputs, labels))
    assert knn.value == 1
    assert "most of their 2 nearest others" in knn.caption


def test_more_examples_than_go_through_the_model_at_once_stay_in_order(digits, small_cnn):
    model = small_cnn()
    batch = vizlog.FixedBatch(*digits)
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"], examples=256), batch)
    assert len(embedding.vectors) == len(batch) == 256
    np.testing.assert_allclose(embedding.vectors, evaluated(model[:-1], batch.inputs), atol=1e-5)


def test_maps_of_a_named_layer_are_averaged_over_space(digits, small_cnn):
    images, labels = digits
    model = small_cnn()
    (embedding,) = embeddings(model, vizlog.Embeddings("3"), (images[:20], labels[:20]))
    assert embedding.tag == "embeddings/3"
    np.testing.assert_allclose(embedding.vectors, evaluated(model[:4], images)[embedding.ids].mean((2, 3)), atol=1e-5)
    assert f": {embedding.vectors.shape[1]} features, averaged over positions; " in embedding.caption
    (flat,) = embeddings(model, vizlog.Embeddings("8"), (images[:20], labels[:20]))
    assert "averaged" not in flat.caption


def test_features_are_those_of_the_layer_also_where_the_next_one_works_in_place():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), torch.randn(20, 4)
    (embedding,) = embeddings(model, vizlog.Embeddings("0", methods=["pca"]), x)
    np.testing.assert_allclose(embedding.vectors, evaluated(model[0], x), atol=1e-6)
    assert embedding.vectors.min() < 0


def test_several_layers_are_spread_over_the_depth_and_the_caption_says_so(digits, small_cnn):
    images, labels = digits
    probe = vizlog.Embeddings([nn.Conv2d, nn.ReLU], methods=["pca"], layers=2)
    found = embeddings(small_cnn(), probe, (images[:20], labels[:20]))
    assert [record.tag for record in found] == ["embeddings/0", "embeddings/4"]
    assert "2 of 4 selected layers are drawn" in found[0].caption


def test_a_linear_layer_beside_the_way_is_not_the_last_layer():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.into, self.out = nn.Linear(1, 4), nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3)

        def forward(self, x, t):
            return self.out(self.into(x) + self.time(t)[:, :, None, None])

    inputs = torch.randn(20, 1, 6, 6), torch.rand(20, 1)
    (embedding,) = embeddings(Denoiser(), vizlog.Embeddings(), vizlog.FixedBatch(inputs))
    assert (embedding.tag, embedding.vectors.shape) == ("embeddings/out.input", (20, 4))


def test_layers_that_keep_tokens_apart_and_layers_that_do_not_are_drawn_side_by_side():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(8, 5), nn.Linear(5, 3)

        def forward(self, ids):
            return self.head(self.embed(ids).mean(1))

    model, ids = Pooled(), torch.randint(8, (40, 6))
    of_tokens, of_texts = embeddings(model, vizlog.Embeddings(["embed", "head"], methods=["pca"]), ids)
    assert len(of_tokens.vectors) == 32 * 6  # of the first examples, that go through the model at once
    np.testing.assert_allclose(of_texts.vectors, evaluated(model, ids), atol=1e-6)


def test_the_first_examples_are_shown_where_fewer_are_asked_for():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(50, 4)
    probe, beside = vizlog.Embeddings(methods=["pca"], examples=10), [vizlog.ActivationHistograms()]  # of 32 examples
    (embedding,) = embeddings(model, probe, x, beside=beside)
    assert embedding.ids.tolist() == list(range(10))
    np.testing.assert_allclose(embedding.vectors, evaluated(model[0], x[:10]), atol=1e-6)


def test_of_texts_too_the_first_are_shown_where_fewer_are_asked_for():
    mask = torch.arange(6) < torch.randint(1, 7, (12, 1))
    inputs = {"input_ids": torch.randint(8, (12, 6)), "attention_mask": mask}
    model, batch = Text(), vizlog.FixedBatch(inputs, torch.zeros(12).long())
    probe, beside = vizlog.Embeddings(methods=["pca"], examples=5), [vizlog.ActivationHistograms()]
    (embedding,) = embeddings(model, probe, batch, beside=beside)
    assert embedding.ids.tolist() == list(range(5))
    expected = [model.mix(model.embed(inputs["input_ids"][row, mask[row]])).mean(0).detach() for row in range(5)]
    np.testing.assert_allclose(embedding.vectors, torch.stack(expected), atol=1e-6)


def test_a_layer_without_features_is_passed_over():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1), nn.Flatten(0))
    found = embeddings(model, vizlog.Embeddings([nn.Linear, nn.Flatten], methods=["pca"]), torch.randn(20, 4))
    assert [record.tag for record in found] == ["embeddings/0", "embeddings/1"]


def test_points_of_which_any_feature_is_nan_are_counted():
    x = torch.randn(20, 4)
    x[3, 1] = torch.nan
    (embedding,) = embeddings(nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), vizlog.Embeddings("0", methods=["pca"]), x)
    assert "1 of 20 points hold NaN or inf and have no place" in embedding.caption


@pytest.mark.parametrize("conjugated", [False, True])
def test_complex_features_are_shown_with_both_their_parts(conjugated):
    class Spectrum(nn.Module):
        def forward(self, x):
            spectrum = torch.fft.rfft(x)
            return spectrum.conj() if conjugated else spectrum

    class Listens(nn.Module):
        def __init__(self):
            super().__init__()
            self.spectrum, self.out = Spectrum(), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.spectrum(x).abs())

    x = torch.randn(20, 8)
    (embedding,) = embeddings(Listens(), vizlog.Embeddings("spectrum", methods=["pca"]), vizlog.FixedBatch(x))
    expected = torch.view_as_real(Spectrum()(x).resolve_conj()).flatten(1)
    np.testing.assert_allclose(embedding.vectors, expected.numpy(), atol=1e-5)


def test_without_a_linear_layer_it_is_what_goes_into_the_last_convolution(digits):
    images, labels = digits
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), (images[:20], labels[:20]))
    assert embedding.tag == "embeddings/2.input"
    np.testing.assert_allclose(embedding.vectors, evaluated(model[:2], images)[embedding.ids].mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("shape", ["batch first", "sequence first", "flat"])
def test_a_text_without_classes_is_a_point_for_each_token_but_padding(shape):
    model = Text(shape)
    names = ["<pad>", "a", "b", "c", "d", "e", "f", " "]
    (embedding,) = embeddings(model, vizlog.Embeddings(), text_batch(tokens=names))
    order = embedding.ids
    assert sorted(order.tolist()) == [0] * 3 + [1] * 2 + [2] * 4
    shown = [embedding.class_names[label] for label in embedding.labels]
    for example, tokens in enumerate((["a", "b", "c"], ["d", "e"], ["a", "a", "f", "' '"])):
        assert [shown[row] for row in np.flatnonzero(order == example)] == tokens
        expected = model.features()[example, : len(tokens)]
        np.testing.assert_allclose(embedding.vectors[order == example], expected, atol=1e-6)
    assert embedding.class_names[0] == "a", "the most frequent token has the first colour"
    assert "9 tokens, spread over 3 examples" in embedding.caption


def test_a_long_text_is_thinned_evenly():
    ids = torch.arange(40 * 50).reshape(40, 50) % 8
    model = nn.Sequential(nn.Embedding(8, 5), nn.Linear(5, 8))
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), vizlog.FixedBatch(ids))
    assert len(embedding.vectors) == 500
    assert len(np.unique(embedding.ids)) == 32, "only one chunk of examples goes through the model"
    np.testing.assert_allclose(
        embedding.vectors, model[0].weight.detach()[[int(embedding.class_names[label]) for label in embedding.labels]]
    )


def test_a_text_with_classes_is_a_point_each_averaged_over_what_is_no_padding():
    model = Text()
    batch = text_batch(targets=torch.tensor([0, 1, 0]), class_names=["cats", "dogs"])
    (embedding,) = embeddings(model, vizlog.Embeddings(), batch)
    assert sorted(embedding.ids.tolist()) == [0, 1, 2]
    for row, example in enumerate(embedding.ids):
        expected = model.features()[example, : int(MASK[example].sum())].mean(0)
        np.testing.assert_allclose(embedding.vectors[row], expected, atol=1e-6)
    assert embedding.class_names == ("cats", "dogs")
    assert ": 5 features, averaged over positions; " in embedding.caption
    by_token = embeddings(model, vizlog.Embeddings(label="token"), batch)[0]
    assert len(by_token.vectors) == 9
    assert "averaged" not in by_token.caption


def test_what_has_no_label_is_a_point_without_a_class():
    batch = vizlog.FixedBatch(torch.randn(6, 4), torch.tensor([0, -100, 1, 0, 1, -100]))
    embedding = embeddings(nn.Linear(4, 2), vizlog.Embeddings(methods=["pca"]), batch)[0]
    assert embedding.labels.tolist() == [0, 1, 0, 1, -1, -1]


@pytest.mark.parametrize("label", [None, "class"])
def test_tokens_that_are_classified_have_the_colour_of_their_class(label):
    model = Text()
    model.head = nn.Linear(5, 3)
    labels = torch.where(MASK.bool(), TEXT % 3, -1)
    labels[:, 0] = -1
    batch = text_batch(
        targets=torch.where(labels < 0, -100, labels), class_names=["none", "person", "place"], tokens="abcdefgh"
    )
    embedding = embeddings(model, vizlog.Embeddings(label=label), batch)[0]
    known = MASK.bool()
    assert embedding.labels.tolist() == torch.cat([labels[row][known[row]] for row in range(3)]).tolist()
    assert embedding.class_names == ("none", "person", "place")
    assert "colour: class" in embedding.caption
    by_token = embeddings(model, vizlog.Embeddings(label="token"), batch)[0]
    assert "colour: token" in by_token.caption
    beyond = text_batch(targets=torch.where(labels < 0, -100, labels + 1), tokens="abcdefgh")
    assert "colour: token" in embeddings(model, vizlog.Embeddings(), beyond)[0].caption  # a label is no class of these
    model.head = nn.Linear(5, 8)  # of the vocabulary: tokens are predicted
    assert "colour: token" in embeddings(model, vizlog.Embeddings(), batch)[0].caption


def test_padding_is_left_out_of_every_chunk_of_a_long_batch():
    model = nn.Sequential(nn.Embedding(8, 5), nn.Linear(5, 8))
    ids = torch.randint(8, (70, 6))
    mask = torch.arange(6) < torch.randint(1, 7, (70, 1))
    batch = vizlog.FixedBatch(
        {"input_ids": ids, "attention_mask": mask}, torch.arange(70) % 2, forward=lambda model, x: model(x["input_ids"])
    )
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), batch)
    for row, example in enumerate(embedding.ids):
        expected = model[0](ids[example, mask[example]]).detach().mean(0)
        np.testing.assert_allclose(embedding.vectors[row], expected, atol=1e-6)


def test_a_regression_is_coloured_and_scored_by_its_targets():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    targets = x[:, :1] * 3 + 100
    targets[7] = torch.nan
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    embedding, score = look(model, vizlog.Embeddings(methods=["pca"]), (x, targets))
    assert embedding.is_of_quantity
    np.testing.assert_array_equal(embedding.labels, targets[embedding.ids, 0].double())
    assert embedding.class_names == ("target",)
    assert "colour: target" in embedding.caption
    assert score.tag == "embeddings/1.input/knn_r2"
    assert score.value == embedding.scores["knn_r2"] == knn_r2(embedding.vectors, embedding.labels)
    assert "10 nearest" in score.caption


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_whole_numbers_that_one_number_predicts_are_a_quantity(shape):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    ages = (40 + 10 * x[:, 0]).long().reshape(shape)
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1), *([nn.Flatten(0)] if len(shape) == 1 else []))
    embedding, score = look(model, vizlog.Embeddings(methods=["pca"]), (x, ages))
    np.testing.assert_array_equal(embedding.labels, ages.reshape(-1)[embedding.ids].double())
    assert score.tag.endswith("/knn_r2")
    for labels, wide in ((torch.arange(60) % 2, model), ((torch.arange(60) % 2) * 2 - 1, model), (ages, Wide())):
        probe = vizlog.Embeddings(methods=["pca"])
        (embedding,) = embeddings(wide, probe, (x, labels.reshape(shape) if wide is model else labels.reshape(-1)))
        assert not embedding.is_of_quantity


class Chosen(nn.Sequential):
    """The class of each example, and no scores."""

    def forward(self, x):
        return super().forward(x).argmax(1)


@pytest.mark.parametrize(
    ("model", "names"),
    [(Chosen(nn.Linear(5, 3)), None), (nn.Sequential(nn.Linear(5, 1)), ["a", "b", "c"])],
    ids=["chosen", "named"],
)
def test_classes_that_were_chosen_or_have_names_are_no_quantity(model, names):
    batch = vizlog.FixedBatch(torch.randn(60, 5), torch.arange(60) % 3, class_names=names)
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), batch)
    assert not embedding.is_of_quantity
    np.testing.assert_array_equal(embedding.labels, embedding.ids % 3)


class Contrastive(nn.Module):
    """An encoder and a projection, whose rows are made as long as each other."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 6)
        self.projection = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, x):
        return nn.functional.normalize(self.projection(self.encoder(x)))


def test_of_a_model_that_embeds_its_own_output_is_shown_and_why_nothing_is_explained_is_said(caplog):
    model, x, labels = Contrastive(), torch.randn(40, 5), torch.arange(40) % 4
    memory = vizlog.Memory()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with caplog.at_level("INFO", "vizlog"), vizlog.watch(model, optimizer, to=memory, batch=(x, labels)):
        model(x).sum().backward()
        optimizer.step()
    (embedding,) = (record for _, record in memory.records if isinstance(record, vizlog.Embedding))
    assert embedding.tag == "embeddings/projection"
    np.testing.assert_array_equal(embedding.labels, labels[embedding.ids])
    expected = model.projection(model.encoder(x)).detach()[embedding.ids]
    np.testing.assert_allclose(embedding.vectors, expected, rtol=0.2, atol=0.2)  # before and after one step
    assert "read as embeddings since its rows have length 1: give FixedBatch(score=…)" in caplog.text


@pytest.mark.parametrize("said", [2.0, math.nan])
def test_the_first_of_several_numbers_to_be_predicted_colours_and_scores_the_points(said):
    x = torch.randn(40, 5)
    targets = torch.stack([torch.full((40,), said), x[:, 0], x[:, 1]], 1)  # of which the first says nothing
    found = look(nn.Sequential(nn.Linear(5, 3)), vizlog.Embeddings(methods=["pca"]), (x, targets))
    embedding, score = found
    np.testing.assert_allclose(embedding.labels, targets[embedding.ids, 1])
    assert "colour: target 2 of 3" in embedding.caption
    assert list(embedding.class_names) == ["target 2 of 3"]
    assert (score.tag, score.value) == ("embeddings/0.input/knn_r2", knn_r2(x[embedding.ids], embedding.labels, k=10))
    rebuilt = vizlog.FixedBatch(x, x.clone())
    (embedding, *_) = embeddings(nn.Sequential(nn.Linear(5, 5)), vizlog.Embeddings(methods=["pca"]), rebuilt)
    assert (embedding.labels == -1).all()


class Views(nn.Module):
    """Embeddings of two views of an example, by a network that is trained and its copy, which is not."""

    def __init__(self):
        super().__init__()
        self.encoder, self.teacher = Contrastive(), Contrastive()
        self.teacher.requires_grad_(False)

    def forward(self, x, y):
        return self.encoder(x), self.encoder(y), self.teacher(x)


def test_of_embeddings_of_several_views_those_of_the_first_that_are_trained_are_shown():
    model, x = Views(), torch.randn(40, 5)
    batch = vizlog.FixedBatch((x, torch.randn(40, 5)))
    embedding, *_ = embeddings(model, vizlog.Embeddings(methods=["pca"]), batch)
    assert embedding.tag == "embeddings/encoder"
    np.testing.assert_allclose(embedding.vectors, model.encoder(x).detach()[embedding.ids], atol=1e-6)


class Sentences(nn.Module):
    """One embedding a text."""

    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(8, 5), nn.Linear(5, 6)

    def forward(self, input_ids):
        return nn.functional.normalize(nn.Flatten()(self.linear(self.embed(input_ids)).mean(1)))


def test_where_a_point_is_asked_for_each_token_it_is_no_embedding_of_the_text():
    probe = vizlog.Embeddings(methods=["pca"], label="token")
    (embedding,) = embeddings(Sentences(), probe, vizlog.FixedBatch({"input_ids": TEXT}))
    assert embedding.tag == "embeddings/linear.input"


@pytest.mark.parametrize("targets", [torch.arange(60) % 5 + 2, (torch.arange(60) % 5 + 2.0)], ids=["whole", "floating"])
def test_whole_numbers_that_one_number_predicts_are_classes_where_asked_for(targets):
    probe = vizlog.Embeddings(methods=["pca"], label="class")
    (embedding,) = embeddings(nn.Sequential(nn.Linear(5, 1)), probe, (torch.randn(60, 5), targets))
    assert embedding.class_names == ("2", "3", "4", "5", "6")
    np.testing.assert_array_equal(embedding.labels, embedding.ids % 5)
    assert "colour: class" in embedding.caption
    with pytest.raises(ValueError, match="needs targets that are whole numbers or words"):
        look(nn.Sequential(nn.Linear(5, 1)), probe, (torch.randn(60, 5), torch.rand(60)))


def test_classes_of_ones_own_that_are_floating_are_called_by_whole_numbers():
    labels = np.arange(60) % 3 + 10.0
    labels[::6] = np.nan  # unknown, as a table's
    probe = vizlog.Embeddings(methods=["pca"], label=labels)
    (embedding,) = embeddings(nn.Sequential(nn.Linear(5, 1)), probe, vizlog.FixedBatch(torch.randn(60, 5)))
    assert embedding.class_names == ("10", "11", "12")
    np.testing.assert_array_equal(embedding.labels, np.where(embedding.ids % 6, embedding.ids % 3, -1))


def test_classes_in_words_colour_points_and_are_none_of_the_models_own(caplog):
    words = [["dog", "cat", "bird"][k % 3] for k in range(60)]
    batch = vizlog.FixedBatch(torch.randn(60, 5), words)
    probes = [vizlog.Embeddings(methods=["pca"], label="class"), vizlog.SaliencyMaps()]
    with caplog.at_level("INFO", "vizlog"):
        memory = vizlog.Memory()
        with vizlog.Monitor(nn.Sequential(nn.Linear(5, 3)), probes, to=memory, batch=batch) as monitor, monitor.step():
            pass
    found = {record.tag: record for _, record in memory.records}
    embedding, saliency = found["embeddings/0.input"], found["saliency/gradient/predicted"]
    assert embedding.class_names == ("bird", "cat", "dog")
    assert [embedding.class_names[k] for k in embedding.labels] == [words[k] for k in embedding.ids]
    assert "colour: class" in embedding.caption
    assert "saliency/gradient" not in found  # which class is the true one is not known
    assert saliency.titles[:3] == [f"example {k}: {words[k]}" for k in embedding.ids[:3]]
    assert "wrong" not in " ".join(saliency.notes)
    assert "of targets in words embeddings show the classes (3)" in caplog.text
    texts = vizlog.FixedBatch(torch.randn(60, 5), [f"{k}!" for k in range(60)])
    with caplog.at_level("INFO", "vizlog"):
        look(nn.Linear(5, 3), vizlog.SaliencyMaps(), texts)
    assert "most of them different, are read as texts and no classes" in caplog.text


def test_of_whole_numbers_that_one_number_predicts_the_one_that_is_no_label_is_none():
    counts = torch.where(torch.arange(60) % 4 == 0, -100, torch.arange(60))
    memory = vizlog.Memory()
    probes = [vizlog.Embeddings(methods=["pca"]), vizlog.SaliencyMaps(examples=60)]
    batch = (torch.randn(60, 5), counts)
    with vizlog.Monitor(nn.Sequential(nn.Linear(5, 1)), probes, to=memory, batch=batch) as monitor, monitor.step():
        pass
    found = {record.tag: record for _, record in memory.records}
    embedding = found["embeddings/0.input"]
    np.testing.assert_array_equal(np.isnan(embedding.labels), embedding.ids % 4 == 0)
    notes = found["saliency/gradient"].notes
    assert [", target" in note for note in notes] == [k % 4 > 0 for k in embedding.ids.tolist()]


class Wide(nn.Sequential):
    """Scores of as many classes as there are ages."""

    def __init__(self):
        super().__init__(nn.Linear(5, 8), nn.Linear(8, 100))


class Tasks(nn.Module):
    """An age, a kind of four, and one of two by one logit."""

    def __init__(self):
        super().__init__()
        self.base, self.age, self.kind, self.old = (nn.Linear(5, n) for n in (5, 1, 4, 1))

    def forward(self, x):
        return {name: getattr(self, name)(self.base(x)) for name in ("age", "kind", "old")}


def test_of_several_tasks_the_first_that_tells_classes_is_shown(caplog):
    x, kinds = torch.randn(40, 5), torch.arange(40) % 4
    targets = {"old": kinds % 2, "kind": kinds, "age": torch.rand(40, 1) * 80}
    with caplog.at_level("INFO", "vizlog"):
        embedding, *_ = embeddings(Tasks(), vizlog.Embeddings(methods=["pca"]), vizlog.FixedBatch(x, targets))
    np.testing.assert_array_equal(embedding.labels, kinds[embedding.ids])
    assert "those of 'kind' are shown, as classes" in caplog.text
    ages = vizlog.FixedBatch(x, {"age": torch.arange(40)})
    embedding, *_ = embeddings(Tasks(), vizlog.Embeddings(methods=["pca"]), ages)
    np.testing.assert_array_equal(embedding.labels, embedding.ids)
    assert embedding.is_of_quantity
    assert "colour: age" in embedding.caption
    # A number of the example, as image_id, is no class: nothing of that name is put out.
    no_classes = {"image_id": kinds}, {"kind": torch.arange(40)}, {"kind": torch.full((40,), -100)}
    for others in (*no_classes, {"kind": torch.tensor([1, 2])}, {"kind": ["a"] * 39}, {}):
        embedding, *_ = embeddings(Tasks(), vizlog.Embeddings(methods=["pca"]), vizlog.FixedBatch(x, others))
        assert (embedding.labels == -1).all()


def test_texts_with_a_number_for_each_are_a_point_each():
    batch = text_batch(targets=torch.tensor([0.3, 0.1, 2.5]))
    (embedding, *_) = embeddings(Text(), vizlog.Embeddings(methods=["pca"]), batch)
    assert embedding.labels.tolist() == pytest.approx([0.3, 0.1, 2.5])


def test_numbers_of_ones_own_are_a_quantity_where_they_have_fractions(digits, small_cnn):
    images, labels = digits
    for label, is_of_quantity in ((labels[:60] / 2, True), (labels[:60].float(), False)):
        probe = vizlog.Embeddings(label=label, methods=["pca"])
        (embedding,) = embeddings(small_cnn(), probe, (images[:60], labels[:60]))
        assert embedding.is_of_quantity is is_of_quantity
        shown = embedding.labels if is_of_quantity else [float(embedding.class_names[i]) for i in embedding.labels]
        np.testing.assert_array_equal(shown, label[embedding.ids])


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (np.array([None, "a", np.nan, "b"] * 5, dtype=object), ("a", "b")),
        (np.array([np.nan, 1.0, np.nan, 2.0] * 5), ("1", "2")),
        (np.array(["NaT", "2020-01-01", "NaT", "2021-01-01"] * 5, dtype="datetime64[D]"), ("2020-01-01", "2021-01-01")),
        (np.full(20, np.nan), ()),
    ],
    ids=["words", "numbers", "days", "nothing"],
)
def test_a_label_of_ones_own_that_is_missing_is_none(label, names):
    probe = vizlog.Embeddings(label=label, methods=["pca"])
    (embedding,) = embeddings(nn.Sequential(nn.Linear(3, 2)), probe, torch.randn(20, 3))
    assert embedding.class_names == names
    numbers = {1: 0, 3: 1} if names else {}
    assert embedding.labels.tolist() == [numbers.get(k % 4, -1) for k in embedding.ids.tolist()]


def test_labels_of_ones_own_follow_their_examples_and_tokens(digits, small_cnn):
    images, labels = digits
    parity = ["odd" if label % 2 else "even" for label in labels[:60].tolist()]
    (embedding,) = embeddings(
        small_cnn(), vizlog.Embeddings(label=parity, methods=["pca"]), (images[:60], labels[:60])
    )  # fmt: skip
    assert [embedding.class_names[label] for label in embedding.labels] == [parity[i] for i in embedding.ids]

    kinds = torch.tensor([[7, -1, 9, 0], [9, 9, 0, 0], [7, 7, -1, 9]])
    (embedding,) = embeddings(Text(), vizlog.Embeddings(label=kinds), text_batch())
    names = [embedding.class_names[label] if label >= 0 else "-1" for label in embedding.labels]
    expected = {0: ["7", "-1", "9"], 1: ["9", "9"], 2: ["7", "7", "-1", "9"]}
    for example, tokens in expected.items():
        assert [names[row] for row in np.flatnonzero(embedding.ids == example)] == tokens
    assert embedding.class_names == ("7", "9")


def test_without_classes_there_are_points_but_no_scores(digits):
    images, _ = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 64))
    (embedding,) = look(model, vizlog.Embeddings(), images[:40])
    assert embedding.scores == {}
    assert set(embedding.labels.tolist()) == {-1}
    assert "colour: nothing" in embedding.caption


def test_layouts_are_comparable_from_step_to_step(digits, small_cnn):
    images, labels = digits
    model = small_cnn()

    def moved(before, after):
        return np.linalg.norm(after - before, axis=1).mean() / np.sqrt((after**2).sum(1).mean())

    first, second = embeddings(model, vizlog.Embeddings(every=1), (images[:100], labels[:100]), steps=2)
    assert moved(first.layouts["pca"], second.layouts["pca"]) < 1e-3
    assert moved(first.layouts_3d["pca"], second.layouts_3d["pca"]) < 1e-3
    assert moved(first.layouts["tsne"], second.layouts["tsne"]) < 0.1


@pytest.mark.parametrize(("methods", "starts"), [(["pca"], False), (["pca", "tsne"], True)])
def test_only_what_takes_long_goes_to_the_low_priority_process(methods, starts, digits, small_cnn):
    images, labels = digits
    probe = vizlog.Embeddings(methods=methods)
    probe._process = LowPriority()
    assert embeddings(small_cnn(), probe, (images[:20], labels[:20]))
    assert (probe._process.pid is not None) == starts


def test_all_probes_share_one_low_priority_process():
    assert vizlog.Embeddings()._process is vizlog.Embeddings()._process


def test_thumbnails_are_the_images_of_the_points_and_small(digits, small_cnn):
    images, labels = digits
    (embedding,) = embeddings(small_cnn(), vizlog.Embeddings(methods=["pca"]), (images[:20], labels[:20]))
    expected = (images[embedding.ids].permute(0, 2, 3, 1) * 255).round().numpy()
    np.testing.assert_array_equal(embedding.thumbnails, expected)
    large = images[:20].repeat_interleave(8, 2).repeat_interleave(10, 3)
    (embedding,) = embeddings(small_cnn(), vizlog.Embeddings(methods=["pca"]), (large, labels[:20]))
    assert embedding.thumbnails.shape == (20, 32, 32, 1)
    tall = nn.functional.interpolate(images[:20], (64, 8))
    (embedding,) = embeddings(small_cnn(), vizlog.Embeddings(methods=["pca"]), (tall, labels[:20]))
    assert embedding.thumbnails.shape == (20, 32, 8, 1)
    expected = nn.functional.avg_pool2d(tall, (2, 1))[embedding.ids].permute(0, 2, 3, 1) * 255
    np.testing.assert_allclose(embedding.thumbnails, expected, atol=1)


def test_captions_say_what_the_picture_does_not_mean(digits, small_cnn):
    images, labels = digits
    (both,) = embeddings(small_cnn(), vizlog.Embeddings(), (images[:40], labels[:40]))
    assert "input of 8 for 40 examples, eval mode: 64 features; colour: class" in both.caption
    assert "% of the variance; tsne: KL divergence" in both.caption
    assert "distances and cluster sizes in t-SNE and UMAP mean nothing" in both.caption
    (alone,) = embeddings(small_cnn(), vizlog.Embeddings(methods=["pca"]), (images[:40], labels[:40]))
    assert "t-SNE" not in alone.caption
    assert "classes" not in alone.caption  # all are shown


def test_too_few_examples_quietly_mean_pca(digits, small_cnn):
    images, labels = digits
    (embedding,) = embeddings(small_cnn(), vizlog.Embeddings(), (images[:3], labels[:3]))
    assert set(embedding.layouts) == {"pca"}
    assert "too few different points for more than PCA" in embedding.caption
    (single,) = embeddings(small_cnn(), vizlog.Embeddings(), (images[:1], labels[:1]))
    assert single.layouts["pca"].shape == (1, 2)


def test_a_model_that_diverged_is_said_to_have(digits, small_cnn):
    images, labels = digits
    images = images[:40].clone()
    images[2] = float("nan")
    (embedding,) = embeddings(small_cnn(), vizlog.Embeddings(), (images, labels[:40]))
    (lost,) = np.flatnonzero(embedding.ids == 2)
    for layout in embedding.layouts.values():
        assert np.flatnonzero(np.isnan(layout).any(1)).tolist() == [lost]
    assert "1 of 40 points hold NaN or inf and have no place" in embedding.caption
    model = small_cnn()
    nn.init.constant_(model[0].weight, float("inf"))
    (embedding,) = embeddings(model, vizlog.Embeddings(), (images, labels[:40]))
    assert np.isnan(embedding.layouts["pca"]).all()
    assert embedding.scores == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_becomes_float32(digits, small_cnn, dtype):
    images, labels = digits
    (embedding,) = embeddings(
        small_cnn().to(dtype), vizlog.Embeddings(methods=["pca"]), (images[:20].to(dtype), labels[:20])
    )
    assert embedding.vectors.dtype == np.float32


def test_it_is_among_the_standard_probes_where_there_is_a_batch(digits, small_cnn):
    images, labels = digits
    chosen = [type(probe) for probe in standard(small_cnn(), (images[:20], labels[:20]))]
    assert vizlog.Embeddings in chosen
    assert vizlog.Embeddings not in [type(probe) for probe in standard(small_cnn())]


def test_as_a_standard_probe_it_shows_128_examples_for_each_is_a_forward_more(digits, small_cnn):
    images, labels = digits
    batch = images[:200], labels[:200]
    (probe,) = [probe for probe in standard(small_cnn(), batch) if isinstance(probe, vizlog.Embeddings)]
    assert {len(record.ids) for record in embeddings(small_cnn(), probe, batch)} == {128}


def test_it_travels_to_another_process(digits, small_cnn):
    images, labels = digits
    probe = pickle.loads(pickle.dumps(copy.deepcopy(vizlog.Embeddings("re:[37]", label=[0] * 20))))
    assert [record.tag for record in embeddings(small_cnn(), probe, (images[:20], labels[:20]))] == [
        "embeddings/3",
        "embeddings/7",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["lda"]}, "methods= takes some of 'pca', 'tsne', 'umap'"),
        ({"label": "colour"}, "takes 'class', 'token' or an array of labels, got 'colour'"),
        ({"layers": 0}, "needs a number >= 1, got 0"),
    ],
)
def test_what_it_does_not_know_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        vizlog.Embeddings(**options)


def test_umap_without_umap_learn_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("vizlog.compute.layouts.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vizlog\[embeddings\]'"):
        vizlog.Embeddings(methods=["umap"])


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (vizlog.Embeddings("8x"), "no layer that ran on the batch matches '8x'; the nearest names are '8'"),
        (vizlog.Embeddings(label="token"), "a point for each token needs a layer that gives one vector a token"),
        (vizlog.Embeddings(label=[1, 2, 3]), r"takes \(N,\) or \(N, T\) labels with N >= 20"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_once(probe, message, digits, small_cnn):
    images, labels = digits
    with pytest.raises(ValueError, match=message):
        vizlog.Monitor(small_cnn(), [probe], to=None, batch=(images[:20], labels[:20]))


def test_what_does_not_fit_the_batch_is_refused_at_once(digits, small_cnn):
    images, _ = digits
    with pytest.raises(ValueError, match="labels with N >= 300, one for each example given"):
        vizlog.Monitor(small_cnn(), [vizlog.Embeddings(label=np.zeros(256))], to=None, batch=images[:300])
    with pytest.raises(ValueError, match="Embeddings needs batch="):
        vizlog.Monitor(small_cnn(), [vizlog.Embeddings()], to=None)
    with pytest.raises(ValueError, match="needs targets that are whole numbers or words"):
        vizlog.Monitor(small_cnn(), [vizlog.Embeddings(label="class")], to=None, batch=images[:20])
    with pytest.raises(ValueError, match="no linear layer and no convolution ran"):
        vizlog.Monitor(nn.Sequential(nn.Flatten(), nn.ReLU()), [vizlog.Embeddings()], to=None, batch=images[:20])
    with pytest.raises(ValueError, match=r"labels for tokens must be \(3, 4\)"):
        vizlog.Monitor(Text(), [vizlog.Embeddings(label=np.zeros((3, 5)))], to=None, batch=text_batch())


def test_scores_are_said_to_be_those_of_the_features(digits, small_cnn):
    images, labels = digits
    scalars = [r for r in look(small_cnn(), vizlog.Embeddings(), (images[:40], labels[:40])) if isinstance(r, Scalar)]
    assert all("by the features" in scalar.caption for scalar in scalars)


@pytest.mark.parametrize("targets", [torch.arange(100) % 4, None])
def test_nodes_of_a_graph_are_rows_of_what_a_layer_gives_for_all(targets):
    x, numbers = torch.randn(150, 3), torch.randperm(150)[:100]
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    batch = vizlog.FixedBatch(numbers, targets, forward=lambda model, nodes: model(x)[nodes])
    probe = vizlog.Embeddings(methods=["pca"], examples=70)  # three passes
    embedding = embeddings(model, probe, batch, beside=[vizlog.ActivationHistograms()])[0]
    assert (embedding.tag, embedding.ids.shape) == ("embeddings/2.input", (70,))
    expected = evaluated(model[:2], x)[numbers[torch.as_tensor(embedding.ids)]]
    np.testing.assert_allclose(embedding.vectors, expected, atol=1e-6)


def test_rows_that_are_parts_of_the_examples_are_not_taken_for_nodes(caplog):
    x = torch.randn(12, 16, 3)
    batch = vizlog.FixedBatch(torch.arange(12), forward=lambda model, rows: model(x[rows].flatten(0, 1)))
    assert not embeddings(nn.Linear(3, 6), vizlog.Embeddings(methods=["pca"]), batch)
    assert "has 192 rows here and had 32" in caplog.text


def test_a_linear_layer_of_a_librarys_own_class_is_found():
    class Dense(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs))

        def forward(self, x):
            return x @ self.weight.T

    (embedding,) = embeddings(
        nn.Sequential(Dense(3, 5), nn.ReLU(), Dense(5, 4)), vizlog.Embeddings(methods=["pca"]), torch.randn(8, 3)
    )
    assert embedding.tag == "embeddings/2.input"


def test_a_table_of_vectors_is_no_linear_layer():
    batch = vizlog.FixedBatch(torch.randint(10, (12, 4)), torch.arange(12) % 3)
    with pytest.raises(ValueError, match="no linear layer and no convolution ran on the batch"):
        vizlog.Monitor(nn.Sequential(nn.EmbeddingBag(10, 3)), [vizlog.Embeddings()], to=None, batch=batch)


def test_numbers_that_are_no_rows_are_told():
    x = torch.randn(150, 3)
    model = nn.Linear(3, 6)
    for numbers in (torch.arange(100, 200), torch.rand(20)):
        batch = vizlog.FixedBatch(numbers, forward=lambda model, nodes: model(x)[: len(nodes)])
        with pytest.raises(ValueError, match="no dimension for examples"):
            vizlog.Monitor(model, [vizlog.Embeddings()], to=None, batch=batch)


class VAE(nn.Module):
    """An autoencoder of 12 values over 3: (what it rebuilds, means, logarithms of variances)."""

    def __init__(self):
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.decode, self.last = nn.Linear(3, 9), nn.Linear(9, 12)

    def forward(self, x, *times):
        hidden = self.encode(x).relu()
        return self.last(self.decode(self.mean(hidden)).relu()), self.mean(hidden), self.spread(hidden)


def test_of_an_autoencoder_the_narrowest_layer_is_shown():
    model, x = VAE(), torch.randn(20, 12)
    embedding = embeddings(model, vizlog.Embeddings(methods=["pca"]), (x, torch.arange(20) % 2))[0]
    assert embedding.tag == "embeddings/mean"
    _, means, _ = model(x)
    np.testing.assert_allclose(embedding.vectors, means.detach()[embedding.ids], atol=1e-6)
    assert "output of mean for 20 examples" in embedding.caption


class Rebuilds(nn.Module):
    """An autoencoder of 12 values over 4, with a head for three classes."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode, self.head = nn.Linear(12, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.encode(x).relu()
        return self.decode(hidden), self.head(hidden)


def test_a_head_for_classes_is_no_bottleneck():
    x = torch.randn(20, 12)
    for model, shown in ((Rebuilds(), "encode"), (VAE(), "mean")):
        embedding, *_ = embeddings(model, vizlog.Embeddings(methods=["pca"]), (x, torch.arange(20) % 3))
        assert embedding.tag == f"embeddings/{shown}"


class Gated(nn.Module):
    """Images -> images, over channels that two layers scale; 1x1 convolutions or linear ones."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.pool = (
            nn.AdaptiveAvgPool2d(1) if kind is nn.Conv2d else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )
        self.scale = nn.Sequential(kind(8, 2, *self.one(kind)), nn.ReLU(), kind(2, 8, *self.one(kind)), nn.Sigmoid())

    def one(self, kind):
        return (1,) if kind is nn.Conv2d else ()

    def forward(self, x):
        maps = self.first(x)
        return self.last(maps * self.scale(self.pool(maps)).reshape(len(x), 8, 1, 1))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_what_scales_channels_is_no_bottleneck(kind):
    (embedding,) = embeddings(Gated(kind), vizlog.Embeddings(methods=["pca"]), torch.randn(20, 1, 6, 6))
    assert embedding.tag == "embeddings/last.input"


def test_a_bottleneck_as_wide_as_there_are_channels_is_one():
    encoder = nn.Conv2d(1, 8, 2, stride=2), nn.Flatten(), nn.Linear(8 * 9, 8)
    decoder = nn.Linear(8, 8 * 9), nn.Unflatten(1, (8, 3, 3)), nn.ConvTranspose2d(8, 1, 2, stride=2)
    model = nn.Sequential(*encoder, *decoder)
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), torch.randn(20, 1, 6, 6))
    assert embedding.tag == "embeddings/2"


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Linear(12, 32), nn.Linear(32, 12)), torch.randn(20, 12)),  # none is narrower
        (VAE(), (torch.randn(20, 12), torch.randn(20, 1))),  # what is narrowest may have to do with the other input
        (nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 5)), torch.randn(20, 12)),  # it rebuilds nothing
    ],
    ids=["wide", "two inputs", "other output"],
)
def test_what_is_no_autoencoder_is_shown_before_its_last_layer(model, inputs):
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), vizlog.FixedBatch(inputs))
    assert embedding.tag.endswith(".input")


class Momentum(nn.Module):
    """A trained encoder, and one that follows it and runs last, as of MoCo and BYOL."""

    def __init__(self):
        super().__init__()
        self.online, self.target = (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)) for _ in range(2))

    def forward(self, x):
        return self.online(x), self.target(x)


def test_of_a_momentum_encoder_the_part_that_is_trained_is_shown():
    model = Momentum()
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), torch.randn(8, 3))
    assert embedding.tag == "embeddings/target.1.input"  # both are trained: nothing says which of them matters
    model.target.requires_grad_(False)
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), torch.randn(8, 3))
    assert embedding.tag == "embeddings/online.1.input"
    model.online.requires_grad_(False)
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), torch.randn(8, 3))
    assert embedding.tag == "embeddings/target.1.input"


@pytest.mark.parametrize("width", [4, 5])
def test_a_frozen_last_layer_of_its_own_is_shown(width):
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 5)), nn.Sequential(nn.Linear(5, width)))
    model[1].requires_grad_(False)  # as the head of a model whose layers alone are tuned
    (embedding,) = embeddings(model, vizlog.Embeddings(methods=["pca"]), torch.randn(8, 5))
    assert embedding.tag == "embeddings/1.0.input"
