"""Metrics against torchmetrics, scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

import avssl  # noqa: F401
from avssl.evaluation.classification import (
    action_metrics,
    classification_report,
    mean_average_precision,
    multi_head_metrics,
)


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 300)
    scores = rng.normal(size=(300, 12))
    scores[np.arange(300), labels] += 1.0
    return scores, labels


def test_metrics_equal_torchmetrics_and_sklearn(scored):
    scores, labels = scored
    report = classification_report(scores, labels)
    tensors = torch.tensor(scores), torch.tensor(labels)
    for name, expected in {
        "top1": multiclass_accuracy(*tensors, 12, average="micro"),
        "top5": multiclass_accuracy(*tensors, 12, average="micro", top_k=5),
        "mean_class_accuracy": balanced_accuracy_score(labels, scores.argmax(1)),
    }.items():
        assert report.metrics[name] == pytest.approx(float(expected), abs=1e-6), name
    # One-vs-rest ranks rows, and softmax changes the order of rows: both sides take probabilities.
    expected = multiclass_average_precision(tensors[0].softmax(1), tensors[1], 12)
    assert mean_average_precision(tensors[0].softmax(1), tensors[1]) == pytest.approx(float(expected), abs=1e-6)
    np.testing.assert_array_equal(report.confusion, confusion_matrix(labels, scores.argmax(1)))
    np.testing.assert_array_equal(report.support, np.bincount(labels))
    assert report.metrics["top1_low"] < report.metrics["top1"] < report.metrics["top1_high"]


def test_six_of_six_is_not_100_to_100():
    labels = np.arange(6) % 2
    metrics = classification_report(np.eye(2)[labels], labels).metrics
    assert (metrics["top1"], metrics["top1_high"]) == (1.0, 1.0)
    assert metrics["top1_low"] == pytest.approx(0.6097, abs=5e-5)
    action = action_metrics(np.eye(2)[labels], np.eye(2)[labels], labels, labels)
    assert action["top1_low"] == pytest.approx(0.6097, abs=5e-5)


def test_constant_scores_get_chance_not_everything():
    labels = np.repeat(np.arange(10), 5)
    metrics = classification_report(np.zeros((50, 10)), labels).metrics
    assert metrics["top1"] == pytest.approx(0.1)
    assert metrics["top5"] == pytest.approx(0.5)
    assert metrics["mAP"] == pytest.approx(0.1)


def test_absent_class_and_unlabelled_rows_are_left_out():
    scores = np.eye(4)[[0, 1, 1, 2]]
    report = classification_report(scores, np.array([0, 1, -1, 3]))
    assert report.metrics["count"] == 3
    assert report.metrics["top1"] == pytest.approx(2 / 3)
    assert report.metrics["mean_class_accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(report.per_class[2])
    assert "top5" not in report.metrics


def test_one_sample():
    metrics = classification_report(np.array([[0.1, 0.9]]), np.array([1])).metrics
    assert metrics["top1"] == metrics["mAP"] == metrics["count"] == 1


def test_multi_label_map():
    scores = np.array([[0.9, 0.2], [0.8, 0.7], [0.1, 0.6]])
    targets = np.array([[1, 0], [0, 1], [1, 1]])
    assert mean_average_precision(scores, targets) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert np.isnan(mean_average_precision(scores, np.zeros((3, 2), int)))


def test_action_equals_brute_force_over_all_pairs():
    rng = np.random.default_rng(2)
    verb, noun = rng.integers(-1, 7, 200), rng.integers(-1, 9, 200)
    verbs, nouns = rng.normal(size=(200, 7)), rng.normal(size=(200, 9))
    verbs[np.arange(200), verb] += 2
    nouns[np.arange(200), noun] += 2
    top1, top5 = [], []
    for row in range(200):
        if verb[row] < 0 or noun[row] < 0:
            continue
        joint = np.outer(np.exp(verbs[row]) / np.exp(verbs[row]).sum(), np.exp(nouns[row]) / np.exp(nouns[row]).sum())
        best = np.argsort(-joint.ravel())[:5]
        top1.append(best[0] == verb[row] * 9 + noun[row])
        top5.append(verb[row] * 9 + noun[row] in best)
    metrics = action_metrics(verbs, nouns, verb, noun)
    assert metrics["count"] == len(top1)
    assert metrics["top1"] == pytest.approx(np.mean(top1))
    assert metrics["top5"] == pytest.approx(np.mean(top5))


def test_heads_are_named_and_action_is_added(scored):
    scores, labels = scored
    metrics = multi_head_metrics({"verb": scores, "noun": scores}, {"verb": labels, "noun": labels, "extra": labels})
    assert metrics["verb/top1"] == metrics["noun/top1"] == metrics["action/top1"]
    assert "extra/top1" not in metrics
    with pytest.raises(ValueError, match="heads without labels: noun"):
        multi_head_metrics({"noun": scores}, {"verb": labels})


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.array([[0.0, np.nan], [0, 0]]), np.array([0, 1]), "1 of 2 rows hold NaN or infinity, first row 0"),
        (np.zeros((2, 2)), np.array([0, 2]), "label 2 does not fit into 2 classes"),
        (np.zeros((2, 2)), np.array([0, -2]), "label -2 is below -1"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "expected integer labels"),
        (np.zeros((2, 2)), np.array([0]), "expected 2 labels"),
        (np.zeros((2, 2)), np.array([-1, -1]), "every row is unlabelled"),
        (np.zeros((0, 2)), np.array([], int), "non-empty"),
    ],
)
def test_broken_input_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_report(scores, labels)
