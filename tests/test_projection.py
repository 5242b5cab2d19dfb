"""Projections and scores against scikit-learn and umap-learn, and how far layouts move while a network trains."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import r2_score, silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch import nn

from vizlog.compute import projection
from vizlog.compute.layouts import Layouts, Projected, check_methods, project
from vizlog.compute.projection import knn_accuracy, knn_r2, neighbours, pca, procrustes, silhouette, tsne, umap

DIGITS = load_digits()


@pytest.fixture(scope="module")
def snapshots():
    """What the layer before the last of an MLP makes of 300 held-out digits, ten times while it learns."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs, targets = torch.tensor(DIGITS.data / 16, dtype=torch.float32), torch.tensor(DIGITS.target)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        found = []
        for step in range(1, 301):
            rows = torch.randint(300, len(inputs), (64,))
            loss = nn.functional.cross_entropy(net(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 30 == 0:
                found.append(net[:-1](inputs[:300]).detach().numpy())
    return found


def moved(layouts):
    """Mean displacement over RMS radius, between one layout and the next."""
    return np.mean(
        [
            np.linalg.norm(after - before, axis=1).mean() / np.sqrt(((after - after.mean(0)) ** 2).sum(1).mean())
            for before, after in pairwise(layouts)
        ]
    )


def over_time(snapshots, method):
    layouts = Layouts([method])
    return [layouts.update(vectors, np.arange(len(vectors))).layouts[method] for vectors in snapshots]


@pytest.mark.parametrize("shape", [(200, 30), (30, 200), (10, 10)])
@pytest.mark.parametrize("k", [2, 3])
def test_pca_equals_scikit_learn_up_to_sign(shape, k):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 5
    expected = PCA(k, svd_solver="full").fit_transform(vectors.astype(np.float64))
    found = pca(vectors, k)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-9)


def test_pca_of_fewer_dimensions_than_asked_for_is_padded_with_zeros():
    found = pca(np.array([[1.0], [2.0], [4.0]]), 3)
    np.testing.assert_allclose(np.sort(np.abs(found[:, 0])), [1 / 3, 4 / 3, 5 / 3])
    assert (found[:, 1:] == 0).all()


def test_tsne_reaches_the_divergence_of_scikit_learns_exact_method():
    vectors = DIGITS.data[:350]
    layout, divergence = tsne(vectors)
    model = TSNE(method="exact", init="pca", max_iter=1000, random_state=0)
    reference = model.fit_transform(vectors)
    assert divergence == pytest.approx(model.kl_divergence_, rel=0.02)
    assert trustworthiness(vectors, layout) > trustworthiness(vectors, reference) - 0.005


def test_tsne_of_a_handful_of_points_shrinks_the_perplexity():
    corners = np.array([[0.0, 0], [0, 1], [10, 0], [10, 1], [20, 0], [20, 1]])
    layout, divergence = tsne(corners)
    assert np.isfinite(layout).all()
    assert np.isfinite(divergence)
    distances = np.linalg.norm(layout[:, None] - layout, axis=2) + np.diag([np.inf] * 6)
    assert distances.argmin(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_equal_vectors_stay_together_in_tsne():
    vectors = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 5, axis=0)
    layout, _ = tsne(vectors)
    centres = layout.reshape(6, 5, 2).mean(1)
    nearest = np.linalg.norm(layout[:, None] - centres, axis=2).argmin(1)
    assert nearest.tolist() == np.repeat(np.arange(6), 5).tolist()


def test_umap_keeps_neighbours_as_well_as_umap_learn_and_from_a_start_stays_near_it(snapshots):
    library = pytest.importorskip("umap")
    before, after = snapshots[-2:]
    reference = library.UMAP(random_state=1, n_jobs=1).fit_transform(after)
    expected = trustworthiness(after, reference)
    start = umap(before)
    layout, alone = umap(after, start=start), umap(after)
    assert trustworthiness(after, alone) > expected * 0.98
    assert trustworthiness(after, layout) > expected * 0.98
    assert moved([start, layout]) < 0.6 * moved([start, alone])
    for number in (4, 7, 16, 17):
        few = project(after[:number], ["umap"])
        assert np.isfinite(project(after[:number], ["umap"], few).layouts["umap"]).all()


def test_procrustes_undoes_a_turn_a_mirror_and_a_move_but_not_a_stretch():
    reference = np.random.default_rng(0).normal(size=(20, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])
    np.testing.assert_allclose(procrustes(reference @ turn + 7, reference), reference, atol=1e-12)
    stretched = procrustes(3 * reference @ turn, reference)
    np.testing.assert_allclose(
        np.linalg.norm(stretched - stretched.mean(0)), 3 * np.linalg.norm(reference - reference.mean(0))
    )


def test_procrustes_looks_only_at_points_it_knows():
    reference = np.random.default_rng(0).normal(size=(20, 2))
    turned = reference @ np.array([[0.0, -1], [1, 0]])
    partly = np.where(np.arange(20)[:, None] < 10, reference, np.nan)
    np.testing.assert_allclose(procrustes(turned, partly), reference, atol=1e-12)


def test_layouts_hold_still_while_a_network_trains(snapshots):
    """Without a memory t-SNE moves by about half its radius, and PCA by a third, from one snapshot to the next."""
    still = {method: over_time(snapshots, method) for method in ("pca", "tsne")}
    alone = {
        method: [project(vectors, [method]).layouts[method] for vectors in snapshots] for method in ("pca", "tsne")
    }
    assert moved(still["tsne"]) < 0.1
    assert moved(alone["tsne"]) > 0.3
    assert moved(still["pca"]) < 0.25 < moved(alone["pca"])
    for vectors, layout, fresh in zip(snapshots, still["tsne"], alone["tsne"], strict=True):
        assert trustworthiness(vectors, layout) > trustworthiness(vectors, fresh) - 0.01


def test_the_same_vectors_again_get_the_same_layout(snapshots):
    layouts = Layouts(["pca", "tsne"])
    ids = np.arange(300)
    first, second = (layouts.update(snapshots[-1], ids) for _ in range(2))
    np.testing.assert_allclose(second.layouts["pca"], first.layouts["pca"], atol=1e-6)
    np.testing.assert_allclose(second.layouts_3d["pca"], first.layouts_3d["pca"], atol=1e-6)
    assert moved([first.layouts["tsne"], second.layouts["tsne"]]) < 0.05


def test_points_are_recognised_by_their_ids(snapshots):
    layouts, order = Layouts(["pca", "tsne"]), np.random.default_rng(0).permutation(300)
    first = layouts.update(snapshots[-1], np.arange(300))
    second = layouts.update(snapshots[-1][order], order)
    assert moved([first.layouts["tsne"][order], second.layouts["tsne"]]) < 0.05
    np.testing.assert_allclose(second.layouts["pca"], first.layouts["pca"][order], atol=1e-6)


def test_points_that_are_not_finite_have_no_place_and_come_back_beside_their_neighbour(snapshots):
    vectors = snapshots[-1][:100].copy()
    layouts, ids = Layouts(["pca", "tsne"]), np.arange(100)
    broken = vectors.copy()
    broken[3, 5], broken[7] = np.nan, np.inf
    first = layouts.update(broken, ids)
    for layout in (*first.layouts.values(), *first.layouts_3d.values()):
        assert np.flatnonzero(np.isnan(layout).any(1)).tolist() == [3, 7]
    again = layouts.update(vectors, ids).layouts["tsne"]
    assert np.isfinite(again).all()
    assert moved([np.delete(first.layouts["tsne"], [3, 7], 0), np.delete(again, [3, 7], 0)]) < 0.1


def test_a_step_where_nothing_is_finite_does_not_lose_the_memory(snapshots):
    layouts, ids = Layouts(["pca"]), np.arange(300)
    first = layouts.update(snapshots[-1], ids).layouts["pca"]
    lost = layouts.update(np.full_like(snapshots[-1], np.nan), ids)
    assert np.isnan(lost.layouts["pca"]).all()
    np.testing.assert_allclose(layouts.update(snapshots[-1], ids).layouts["pca"], first, atol=1e-6)


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((1, 4)),
        np.eye(2),
        np.eye(3),
        np.ones((20, 3)),
        np.zeros((5, 1)),
        np.full((4, 2), np.nan),
        np.eye(50)[[0] * 40],
    ],
    ids=["one", "two", "three", "constant", "zeros", "nothing finite", "duplicates"],
)
def test_too_few_different_points_quietly_mean_pca(vectors):
    found = project(vectors, ["tsne", "umap"])
    assert list(found.layouts) == ["pca"]
    assert found.layouts["pca"].shape == (len(vectors), 2)
    assert found.layouts_3d["pca"].shape == (len(vectors), 3)
    assert (np.isfinite(found.layouts["pca"]) == np.isfinite(vectors).all(1)[:, None]).all()


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e30])
def test_the_unit_of_the_vectors_changes_nothing(factor):
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    expected, found = project(vectors, ["pca", "tsne"]), project(vectors * factor, ["pca", "tsne"])
    np.testing.assert_allclose(found.layouts["pca"] / factor, expected.layouts["pca"], atol=1e-9)
    np.testing.assert_allclose(found.layouts["tsne"], expected.layouts["tsne"], atol=1e-3)
    assert found.notes == expected.notes


def test_notes_say_how_much_of_the_variance_two_components_keep():
    vectors = DIGITS.data[:100]
    share = PCA(2, svd_solver="full").fit(vectors).explained_variance_ratio_.sum()
    assert project(vectors, ["pca"]).notes == {"pca": f"{share:.0%} of the variance"}


@pytest.mark.parametrize("methods", [["tsnee"], [], ["pca", "lda"]])
def test_unknown_methods_are_refused(methods):
    with pytest.raises(ValueError, match="methods= takes some of 'pca', 'tsne', 'umap', got"):
        check_methods(methods)


def test_one_method_may_be_a_word_and_named_twice_counts_once():
    assert check_methods("tsne") == ("tsne",)
    assert check_methods(["pca", "pca"]) == ("pca",)


def test_umap_without_umap_learn_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("vizlog.compute.layouts.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"UMAP needs umap-learn: pip install 'vizlog\[embeddings\]'"):
        check_methods(["umap"])


@pytest.mark.parametrize("k", [1, 5, 10])
def test_knn_accuracy_equals_scikit_learns_leave_one_out(k):
    # Noise, so that no two distances are equal: which of equally near neighbours counts is nobody's to say.
    vectors = DIGITS.data[:100] + np.random.default_rng(0).normal(scale=6, size=(100, 64))
    labels = DIGITS.target[:100]
    expected = cross_val_score(KNeighborsClassifier(k), vectors, labels, cv=LeaveOneOut()).mean()
    assert 0.3 < expected < 0.99
    assert knn_accuracy(vectors, labels, k=k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_knn_r2_equals_scikit_learns_leave_one_out(k):
    data = load_diabetes()
    vectors, values = data.data[:200], data.target[:200]
    guesses = cross_val_predict(KNeighborsRegressor(k), vectors, values, cv=LeaveOneOut())
    assert -0.5 < r2_score(values, guesses) < 0.5
    assert knn_r2(vectors, values, k=k) == pytest.approx(r2_score(values, guesses))
    assert knn_r2(vectors * 1e200, values * 1e200, k=k) == pytest.approx(r2_score(values, guesses))


def test_knn_r2_of_values_that_lie_in_order_is_high_and_of_shuffled_ones_is_not():
    values = np.linspace(5, 6, 100)
    assert knn_r2(values[:, None], values) > 0.99
    assert knn_r2(values[:, None], np.random.default_rng(0).permutation(values)) < 0.2


def test_knn_r2_leaves_out_points_without_a_value_or_a_finite_vector():
    vectors, values = DIGITS.data[:60].copy(), DIGITS.data[:60].sum(1)
    expected = knn_r2(vectors[10:], values[10:])
    vectors[:5] = np.inf
    values[5:10] = np.nan
    assert knn_r2(vectors, values) == expected


def test_knn_r2_of_fewer_than_three_values_or_of_equal_ones_is_nan():
    assert np.isnan(knn_r2(np.eye(2), [1.0, 2.0]))
    assert np.isnan(knn_r2(np.eye(9), np.full(9, 3.0)))
    assert np.isnan(knn_r2(np.eye(4), np.full(4, np.nan)))


def test_silhouette_equals_scikit_learns():
    vectors, labels = DIGITS.data[:200], DIGITS.target[:200]
    assert silhouette(vectors, labels) == pytest.approx(silhouette_score(vectors, labels), abs=1e-9)
    assert silhouette(vectors + 1e5, labels) == pytest.approx(silhouette(vectors, labels), abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4, 30])
def test_no_more_neighbours_are_asked_than_a_class_has_points(size):
    labels = np.append(np.repeat(np.arange(4), size), [-1] * 9)
    separated = np.eye(5)[labels] * 100 + np.random.default_rng(0).normal(size=(len(labels), 5))
    k = neighbours(labels, 10)
    assert k == min(size - 1, 10)
    assert knn_accuracy(separated, labels, k=k) == 1


def test_one_neighbour_at_least_is_asked():
    assert neighbours(np.arange(5), 10) == neighbours(np.full(5, -1), 10) == neighbours([], 10) == 1


@pytest.mark.parametrize("score", [knn_accuracy, silhouette])
def test_scores_leave_out_points_without_a_label_or_a_finite_vector(score):
    vectors, labels = DIGITS.data[:60].copy(), DIGITS.target[:60].copy()
    expected = score(vectors[10:], labels[10:])
    vectors[:5] = np.nan
    labels[5:10] = -1
    assert score(vectors, labels) == expected


@pytest.mark.parametrize("score", [knn_accuracy, silhouette])
def test_scores_of_fewer_than_two_classes_are_nan(score):
    assert np.isnan(score(DIGITS.data[:10], np.zeros(10, dtype=int)))
    assert np.isnan(score(DIGITS.data[:10], np.full(10, -1)))
    assert np.isnan(score(np.full((4, 2), np.nan), np.arange(4)))


@pytest.mark.parametrize("far", [1e6, 1e14, 1e30])
def test_scores_of_points_beside_one_far_off_are_those_of_the_points(far, monkeypatch):
    monkeypatch.setattr(projection, "_CHUNK", 1000)  # 15 pairs at a time
    vectors, labels = DIGITS.data[:100], DIGITS.target[:100]
    beside = np.vstack([vectors, np.full((2, 64), far)]), np.append(labels, [99, 99])  # a class of their own
    assert knn_accuracy(*beside) == pytest.approx(knn_accuracy(vectors, labels) * 100 / 102)
    assert silhouette(*beside) == pytest.approx((silhouette(vectors, labels) * 100 + 2) / 102, rel=1e-6)
    moved_off = vectors + far if far < 1e10 else vectors
    assert knn_accuracy(moved_off, labels) == knn_accuracy(vectors, labels)


@pytest.mark.parametrize("score", [knn_accuracy, silhouette])
def test_points_that_are_alone_in_their_class_are_not_scored(score):
    vectors, labels = DIGITS.data[:100], DIGITS.target[:100].copy()
    labels[:30] = np.arange(100, 130)
    assert score(vectors, labels) == score(vectors[30:], labels[30:])
    assert np.isnan(score(vectors[:31], labels[:31]))
    assert neighbours(labels, 10) == neighbours(labels[30:], 10)


def test_scores_of_two_points_and_of_equal_points_are_defined():
    assert np.isnan(knn_accuracy(np.eye(2), np.arange(2)))
    assert np.isnan(silhouette(np.eye(2), np.arange(2)))
    assert silhouette(np.ones((6, 2)), np.arange(6) % 2) == 0


@pytest.mark.parametrize("function", [pca, tsne])
def test_projections_say_what_they_need(function):
    with pytest.raises(ValueError, match=r"needs vectors \(N, D\), got \(3,\)"):
        function(np.ones(3))
    with pytest.raises(ValueError, match="needs finite vectors"):
        function(np.array([[1.0, np.nan], [0, 1]]))


def test_projecting_imports_no_torch():
    code = "import sys, vizlog.compute.layouts; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_projected_has_room_for_more_methods_than_were_asked_for():
    previous = Projected({"tsne": np.zeros((30, 2))})
    assert set(project(DIGITS.data[:30], ["pca"], previous).layouts) == {"pca"}
