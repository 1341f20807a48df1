"""Clustering metrics at both ends of their scale and against scikit-learn."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score, silhouette_score

from avssl.evaluation.clustering import cluster_metrics, silhouette


def clouds(spread: float, rows: int = 90):
    labels = np.arange(rows) % 3
    return np.eye(3)[labels] * 5 + np.random.default_rng(0).normal(size=(rows, 3)) * spread, labels


def test_separate_classes_are_found_whole():
    features, labels = clouds(0.1)
    metrics = cluster_metrics(features, labels)
    assert metrics["NMI"] == metrics["ARI"] == metrics["V-measure"] == pytest.approx(1)
    assert metrics["silhouette"] > 0.9 and metrics["classes"] == 3 and metrics["count"] == 90


def test_noise_is_at_chance_and_worse_in_every_number():
    good = cluster_metrics(*clouds(0.5))
    noise = cluster_metrics(np.random.default_rng(1).normal(size=(300, 3)), np.arange(300) % 3)
    assert abs(noise["ARI"]) < 0.05
    assert noise["NMI"] < good["NMI"] and noise["silhouette"] < good["silhouette"]
    assert noise["davies_bouldin"] > good["davies_bouldin"]
    assert noise["calinski_harabasz"] < good["calinski_harabasz"]


def test_internal_indices_take_the_labels_as_clusters():
    features, labels = clouds(2.0)
    metrics = cluster_metrics(features, labels, normalize=False)
    assert metrics["silhouette"] == pytest.approx(silhouette_score(features, labels))
    assert metrics["davies_bouldin"] == pytest.approx(davies_bouldin_score(features, labels))


def test_same_seed_same_numbers():
    features, labels = clouds(3.0)
    assert cluster_metrics(features, labels, seed=3) == cluster_metrics(features, labels, seed=3)


def test_collapse_warns_nobody_and_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = cluster_metrics(np.ones((30, 4), np.float32), np.arange(30) % 3)
    assert metrics["NMI"] == metrics["ARI"] == 0


def test_small_sets():
    single = cluster_metrics(np.ones((1, 4)), np.array([0]))
    assert np.isnan(single["silhouette"]) and np.isnan(single["davies_bouldin"])
    each_its_own = cluster_metrics(np.eye(3), np.arange(3))
    assert np.isnan(each_its_own["silhouette"]) and each_its_own["NMI"] == pytest.approx(1)
    one_class = cluster_metrics(np.random.default_rng(0).normal(size=(5, 2)), np.zeros(5, int))
    assert np.isnan(one_class["calinski_harabasz"])


def test_unlabelled_rows_are_left_out_and_silhouette_is_sampled():
    features, labels = clouds(0.5)
    more = np.r_[features, 100 * np.ones((10, 3))]
    assert cluster_metrics(more, np.r_[labels, [-1] * 10]) == cluster_metrics(features, labels)
    assert silhouette(features, labels, sample_size=40) == pytest.approx(silhouette(features, labels), abs=0.1)
    with pytest.raises(ValueError, match="unlabelled"):
        cluster_metrics(np.ones((2, 2)), np.array([-1, -1]))
    with pytest.raises(ValueError, match="features: 1 of 2 rows hold NaN"):
        cluster_metrics(np.array([[np.nan, 1], [1, 1]]), np.array([0, 1]))
