"""Classification metrics against scikit-learn and hand-counted cases, of one label a clip and of several."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, roc_auc_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

import avssl  # noqa: F401
from avssl.evaluation.class_ranking import rank_classes
from avssl.evaluation.classification import (
    action_metrics,
    classification_report,
    mean_average_precision,
    multi_head_metrics,
    multilabel_report,
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


@pytest.fixture
def several_labels():
    """400 rows, 9 classes of which the last has no positive row; rounded scores, so that many are equal."""
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 9)) < np.linspace(0.02, 0.4, 9)).astype(np.float32)
    labels[:, 8] = 0
    scores = np.round(rng.normal(size=(400, 9)) + 1.2 * labels, 1)
    return scores, labels


def test_every_class_equals_scikit_learn(several_labels):
    scores, labels = several_labels
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


def test_interval_has_the_width_of_the_bootstrap_over_rows(several_labels):
    scores, labels = several_labels[0][:, :8], several_labels[1][:, :8]
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


def test_edges(several_labels):
    scores, labels = several_labels
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


def test_heads_of_both_kinds_side_by_side(several_labels, caplog):
    scores, labels = several_labels
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
