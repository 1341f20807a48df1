"""Metrics of several labels a clip against scikit-learn, and their intervals against drawing rows by hand."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from avssl.evaluation.class_ranking import rank_classes
from avssl.evaluation.classification import (
    classification_report,
    mean_average_precision,
    multi_head_metrics,
    multilabel_report,
)


@pytest.fixture
def scored():
    """400 rows, 9 classes of which the last has no positive row; rounded scores, so that many are equal."""
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 9)) < np.linspace(0.02, 0.4, 9)).astype(np.float32)
    labels[:, 8] = 0
    scores = np.round(rng.normal(size=(400, 9)) + 1.2 * labels, 1)
    return scores, labels


def test_every_class_equals_scikit_learn(scored):
    scores, labels = scored
    report = multilabel_report(scores, torch.tensor(labels))
    for k in range(8):
        assert report.ap[k] == pytest.approx(average_precision_score(labels[:, k], scores[:, k]))
        assert report.auc[k] == pytest.approx(roc_auc_score(labels[:, k], scores[:, k]))
    assert np.isnan(report.ap[8]) and np.isnan(report.auc[8])
    assert report.support.tolist() == labels.sum(axis=0).tolist()
    expected = {
        "mAP": average_precision_score(labels[:, :8], scores[:, :8], average="macro"),
        "mAUC": roc_auc_score(labels[:, :8], scores[:, :8], average="macro"),
        "count": 400,
    }
    expected["d_prime"] = np.sqrt(2) * norm.ppf(expected["mAUC"])
    for name, value in expected.items():
        assert report.metrics[name] == pytest.approx(value), name
    assert mean_average_precision(scores, labels) == pytest.approx(expected["mAP"])
    assert report.metrics.keys() == {*expected, "mAP_low", "mAP_high"}


def test_d_prime_is_the_distance_of_two_normal_distributions():
    rng = np.random.default_rng(1)
    labels = rng.random((40_000, 1)) < 0.5
    scores = rng.normal(size=(40_000, 1)) + 1.7 * labels  # unit variances, means 1.7 apart
    assert rank_classes(scores, labels).metrics["d_prime"] == pytest.approx(1.7, abs=0.03)


def test_one_label_a_clip_is_ranked_by_its_probability():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 7, 300)
    scores = rng.normal(size=(300, 7)) * rng.uniform(0.5, 3, (300, 1))
    scores[np.arange(300), labels] += 1
    probabilities, hot = softmax(scores, axis=1), labels[:, None] == np.arange(7)
    expected = {"mAP": average_precision_score(hot, probabilities), "mAUC": roc_auc_score(hot, probabilities)}
    for given in (scores, probabilities, np.log(probabilities), scores + 5):
        metrics = classification_report(given, labels).metrics
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value), name
        assert metrics["d_prime"] == pytest.approx(np.sqrt(2) * norm.ppf(expected["mAUC"]))
        assert metrics["mAP_low"] < metrics["mAP"] < metrics["mAP_high"]


def test_interval_has_the_width_of_the_bootstrap_over_rows(scored):
    scores, labels = scored[0][:, :8], scored[1][:, :8]
    rng, drawn = np.random.default_rng(3), []
    for _ in range(300):
        rows = rng.integers(400, size=400)
        present = labels[rows].any(axis=0)
        drawn.append(average_precision_score(labels[rows][:, present], scores[rows][:, present], average="macro"))
    found = rank_classes(scores, labels > 0, resamples=600)
    assert found.high - found.mean_ap == pytest.approx(1.96 * np.std(drawn), rel=0.15)
    assert found.mean_ap - found.low == pytest.approx(found.high - found.mean_ap)
    again = rank_classes(scores, labels > 0, resamples=600)
    assert (again.low, again.high) == (found.low, found.high) != (rank_classes(scores, labels > 0).low, found.high)


def test_edges(scored):
    scores, labels = scored
    one = multilabel_report(np.array([[2.0, 1.0]]), np.array([[1, 0]]))
    assert one.metrics == {"mAP": 1.0, "mAP_low": 1.0, "mAP_high": 1.0, "count": 1.0}  # no negative row: no AUC
    perfect = multilabel_report(labels[:, :8], labels[:, :8]).metrics
    assert perfect["mAP"] == perfect["mAUC"] == 1.0 and "d_prime" not in perfect
    constant = multilabel_report(np.zeros_like(labels), labels)
    np.testing.assert_allclose(constant.ap[:8], labels[:, :8].mean(axis=0), rtol=1e-6)
    assert constant.metrics["mAUC"] == 0.5 and constant.metrics["d_prime"] == 0.0
    partly = labels.copy()
    partly[:100] = -1
    assert multilabel_report(scores, partly).metrics == multilabel_report(scores[100:], labels[100:]).metrics


def test_heads_of_both_kinds_side_by_side(scored, caplog):
    scores, labels = scored
    single = np.arange(400) % 9
    heads = {"sound": scores, "verb": scores, "noun": scores, "none": scores}
    truth = {"sound": labels, "verb": single, "noun": labels, "none": np.full(400, -1)}
    with caplog.at_level(logging.WARNING):
        metrics = multi_head_metrics(heads, truth)
    assert "no metrics of none" in caplog.text
    assert {key.split("/")[0] for key in metrics} == {"sound", "verb", "noun"}  # an action needs two single labels
    assert "sound/top1" not in metrics and "verb/top1" in metrics
    assert metrics["sound/mAP"] == multilabel_report(scores, labels).metrics["mAP"]
    with pytest.raises(ValueError, match="every row is unlabelled"):
        multi_head_metrics({"none": scores}, truth)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\) does not match scores \(3, 2\)"),
        (np.full((3, 2), 0.5), "must be 0 and 1"),
        (np.array([[1, 0], [-1, 0], [0, 1]]), "row 1 is -1 in a part"),
        (-np.ones((3, 2)), "every row is unlabelled"),
        (np.zeros((3, 2)), "not one row has a class"),
    ],
)
def test_broken_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        multilabel_report(np.arange(6.0).reshape(3, 2), labels)
