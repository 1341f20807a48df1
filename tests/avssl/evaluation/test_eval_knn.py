"""Nearest neighbours against scikit-learn's, and the choice of k."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier

import avssl  # noqa: F401
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.knn import choose_k, knn_scores


def blobs(rows: int, classes: int, seed: int, spread: float = 1.0) -> Embeddings:
    labels = np.arange(rows) % classes
    features = np.random.default_rng(99).normal(size=(classes, 16))[labels]
    features = features + spread * np.random.default_rng(seed).normal(size=(rows, 16))
    return Embeddings(features.astype(np.float32), [str(i) for i in range(rows)], {"class": labels}, np.arange(rows))


def test_knn_with_equal_votes_equals_sklearn():
    train, test = blobs(90, 3, 0, spread=3.0), blobs(50, 3, 1, spread=3.0)
    scores = knn_scores(train, test, "class", 3, k=7, temperature=1e6, chunk=13)
    reference = KNeighborsClassifier(7, metric="cosine").fit(train.features.astype(float), train.labels["class"])
    np.testing.assert_allclose(scores, reference.predict_proba(test.features.astype(float)), atol=1e-5)


def test_knn_weights_nearer_rows_more_and_takes_any_k():
    train = Embeddings(
        np.array([[1, 0], [0.6, 0.8], [0.5, 0.9]], np.float32), list("abc"), {"x": np.array([0, 1, 1])}, np.arange(3)
    )
    test = Embeddings(np.array([[1, 0]], np.float32), ["t"], {"x": np.array([0])}, np.arange(1))
    scores = knn_scores(train, test, "x", 2, k=20, temperature=0.07)
    assert scores[0, 0] > 0.9
    assert scores.sum() == pytest.approx(1.0)


def test_choose_k_leaves_each_row_out_as_by_hand():
    train = blobs(70, 3, 0, spread=2.5)
    distances = pairwise_distances(train.features.astype(np.float64), metric="cosine")
    np.fill_diagonal(distances, np.inf)
    accuracy = {}
    for k in (1, 5, 10, 20, 50):
        nearest = np.argsort(distances, axis=1)[:, :k]
        weight = np.exp(-np.take_along_axis(distances, nearest, axis=1) / 0.07)
        votes = np.stack([(weight * (train.labels["class"][nearest] == c)).sum(axis=1) for c in range(3)], axis=1)
        accuracy[k] = (votes.argmax(axis=1) == train.labels["class"]).mean()
    assert choose_k(train, "class", 3) == max(accuracy, key=accuracy.__getitem__)


def test_choose_k_with_hardly_any_rows():
    assert choose_k(blobs(1, 1, 0), "class", 3) == 1
    assert choose_k(blobs(4, 2, 0), "class", 2) == 1


def test_neighbours_of_a_multilabel_head_vote_for_each_of_their_labels():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    tags = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    train = Embeddings(features, ["a", "b", "c"], {"tags": tags}, np.arange(3))
    test = Embeddings(np.array([[1, 0.01]], np.float32), ["q"], {}, np.arange(1))
    np.testing.assert_allclose(knn_scores(train, test, "tags", 3, k=2, temperature=1e6), [[1, 0.5, 0]], atol=1e-6)
    assert choose_k(train, "tags", 3) == 1


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="train features have 16 columns, test features 2"):
        knn_scores(blobs(5, 2, 0), Embeddings(np.ones((1, 2), np.float32), ["q"], {}, np.arange(1)), "class", 2)
