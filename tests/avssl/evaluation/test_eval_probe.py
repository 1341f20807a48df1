"""The linear probe against a scikit-learn pipeline, and what it does with awkward splits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import avssl  # noqa: F401
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.probe import ABSENT_BIAS, linear_probe


def blobs(rows: int, classes: int, seed: int, spread: float = 1.0, dim: int = 16) -> Embeddings:
    """Gaussian classes round centres that do not depend on ``seed``, far from zero mean and unit variance."""
    labels = np.arange(rows) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    features = centres[labels] + spread * np.random.default_rng(seed).normal(size=(rows, dim))
    features = features * np.logspace(-2, 2, dim) + 5
    return Embeddings(features.astype(np.float32), [str(i) for i in range(rows)], {"class": labels}, np.arange(rows))


@pytest.mark.parametrize("classes", [2, 5])
def test_folded_probe_equals_the_sklearn_pipeline(classes):
    train, test = blobs(100, classes, 0), blobs(60, classes, 1)
    result = linear_probe(train, test, "class", classes, cs=(0.1,))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=1e-8))
    reference.fit(train.features.astype(np.float64), train.labels["class"])
    probabilities = torch.tensor(result.scores).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(test.features.astype(np.float64)), atol=5e-3)
    assert result.c == 0.1


def test_linear_layer_gives_the_scores_on_raw_features():
    train, test = blobs(60, 3, 0), blobs(30, 3, 1)
    result = linear_probe(train, test, "class", 3)
    layer = result.linear()
    torch.testing.assert_close(
        layer(torch.tensor(test.features)).detach(), torch.tensor(result.scores), atol=2e-3, rtol=0
    )


def test_c_is_chosen_on_training_rows_alone():
    train = blobs(80, 4, 0, spread=2.0)
    plain, shifted = blobs(40, 4, 1, spread=2.0), blobs(40, 4, 2, spread=9.0)
    first, second = linear_probe(train, plain, "class", 4), linear_probe(train, shifted, "class", 4)
    assert first.c == second.c and first.cv_accuracy == second.cv_accuracy
    np.testing.assert_array_equal(first.weight, second.weight)
    assert first.cv_accuracy[first.c] == max(first.cv_accuracy.values())


def test_noise_features_stay_at_chance():
    rng = np.random.default_rng(0)
    parts = [
        Embeddings(
            rng.normal(size=(200, 64)).astype(np.float32), ["x"] * 200, {"class": np.arange(200) % 4}, np.arange(200)
        )
        for _ in range(2)
    ]
    accuracy = (linear_probe(*parts, "class", 4).scores.argmax(1) == parts[1].labels["class"]).mean()
    assert 0.12 < accuracy < 0.38


def test_class_absent_from_training_is_never_predicted():
    train, test = blobs(60, 3, 0), blobs(30, 3, 1)
    result = linear_probe(train, test, "class", 6)
    assert result.scores.shape == (30, 6) and np.isfinite(result.scores).all()
    assert (result.scores[:, 3:] == ABSENT_BIAS).all()
    assert (result.scores.argmax(1) == test.labels["class"]).mean() > 0.8


def test_unlabelled_training_rows_change_nothing():
    train, test = blobs(60, 3, 0), blobs(30, 3, 1)
    junk = Embeddings(
        np.r_[train.features, 1e3 * np.ones((5, 16), np.float32)], train.clip_ids + ["j"] * 5,
        {"class": np.r_[train.labels["class"], [-1] * 5]}, np.arange(65),
    )  # fmt: skip
    np.testing.assert_array_equal(
        linear_probe(train, test, "class", 3).weight, linear_probe(junk, test, "class", 3).weight
    )


def test_too_few_members_for_folds():
    test = blobs(9, 3, 1)
    assert linear_probe(blobs(3, 3, 0), test, "class", 3).cv_accuracy == {}
    rare = blobs(30, 3, 0).select(np.r_[np.arange(12), 14])
    rare.labels["class"][-1] = 2
    assert linear_probe(rare, test, "class", 3).scores.shape == (9, 3)
    single = linear_probe(blobs(4, 1, 0), test, "class", 3)
    assert (single.scores.argmax(1) == 0).all()


def test_constant_column_does_no_harm():
    train, test = blobs(60, 3, 0), blobs(30, 3, 1)
    train.features[:, 4] = 7.3
    test.features[:, 4] = 7.3
    result = linear_probe(train, test, "class", 3)
    assert np.isfinite(result.weight).all() and (result.scores.argmax(1) == test.labels["class"]).mean() > 0.8


def test_broken_input_is_refused():
    train, test = blobs(30, 3, 0), blobs(30, 3, 1)
    with pytest.raises(ValueError, match="no labels for head 'verb'; there are: class"):
        linear_probe(train, test, "verb", 3)
    with pytest.raises(ValueError, match="label 2 does not fit into 2 classes"):
        linear_probe(train, test, "class", 2)
    with pytest.raises(ValueError, match="train features have 16 columns, test features 8"):
        linear_probe(train, blobs(30, 3, 1, dim=8), "class", 3)
    train.features[3, 2] = np.nan
    with pytest.raises(ValueError, match="train features: 1 of 30 rows hold NaN"):
        linear_probe(train, test, "class", 3)


def several(rows: int, classes: int, seed: int) -> Embeddings:
    """Rows with any number of labels, each of which pushes the features its own way; the last row is unlabelled."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, classes)) < 0.3).astype(np.float32)
    directions = np.random.default_rng(99).normal(size=(classes, 12))
    features = (labels @ directions + 0.7 * rng.normal(size=(rows, 12))).astype(np.float32)
    labels[-1] = -1
    return Embeddings(features, [str(i) for i in range(rows)], {"tags": labels}, np.arange(rows))


def test_multilabel_probe_equals_one_logistic_regression_for_each_class():
    train, test = several(120, 4, 0), several(50, 4, 1)
    result = linear_probe(train, test, "tags", 4, cs=(0.3,))
    scaler = StandardScaler().fit(train.features[:-1].astype(np.float64))
    standard, asked = (scaler.transform(part.astype(np.float64)) for part in (train.features[:-1], test.features))
    for label in range(4):
        one = LogisticRegression(C=0.3, max_iter=2000, tol=1e-8).fit(standard, train.labels["tags"][:-1, label])
        np.testing.assert_allclose(result.scores[:, label], one.decision_function(asked), atol=2e-2)


def test_multilabel_probe_ranks_well_chooses_c_and_leaves_absent_classes_alone():
    train, test = several(200, 4, 0), several(80, 4, 1)
    train.labels["tags"] = np.c_[train.labels["tags"], np.where(np.arange(200) < 199, 0, -1)].astype(np.float32)
    result = linear_probe(train, test, "tags", 5)
    assert (result.scores[:, 4] == ABSENT_BIAS).all()
    known = test.labels["tags"][:-1]
    assert average_precision_score(known, result.scores[:-1, :4], average="macro") > 0.9
    assert result.cv_accuracy[result.c] == max(result.cv_accuracy.values()) > 0.8


def test_multilabel_probe_refuses_what_it_cannot_fit():
    train, test = several(20, 3, 0), several(5, 3, 1)
    with pytest.raises(ValueError, match=r"shape \(20, 3\), expected \(20, 4\)"):
        linear_probe(train, test, "tags", 4)
    train.labels["tags"][:] = 0
    with pytest.raises(ValueError, match="not one row has a label"):
        linear_probe(train, test, "tags", 3)
    train.labels["tags"][:] = -1
    with pytest.raises(ValueError, match="every row is unlabelled"):
        linear_probe(train, test, "tags", 3)
