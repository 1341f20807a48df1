"""Draws of few labels, and the curve over them."""

import numpy as np
import pytest

import avssl  # noqa: F401
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.few_label import draw_rows, few_label_curve
from avssl.evaluation.probe import linear_probe


def test_draws_keep_the_classes_shares_and_at_least_one_of_each():
    labels = np.repeat([0, 1, 2, -1], [200, 100, 3, 50])
    rows = draw_rows(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [20, 10, 1]
    assert (np.diff(rows) > 0).all()
    assert draw_rows(labels, 1.0, seed=0).tolist() == np.flatnonzero(labels >= 0).tolist()


def test_draws_depend_on_the_seed_and_smaller_ones_are_part_of_larger():
    labels = np.arange(300) % 3
    first = draw_rows(labels, 0.1, seed=0)
    assert first.tolist() == draw_rows(labels, 0.1, seed=0).tolist() != draw_rows(labels, 0.1, seed=1).tolist()
    assert set(first) <= set(draw_rows(labels, 0.5, seed=0))


def test_draws_of_several_labels_miss_no_class():
    labels = np.zeros((400, 6), np.float32)
    labels[np.arange(400), np.arange(400) % 4] = 1
    labels[17, 4] = labels[230, 5] = 1
    labels[300:320] = -1
    rows = draw_rows(labels, 0.02, seed=0)
    assert (labels[rows].max(axis=0) == 1).all() and (labels[rows] >= 0).all()
    assert 8 <= len(rows) <= 8 + 6
    assert len(draw_rows(labels, 1.0, seed=0)) == 380


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match="share of labels"):
        draw_rows(np.arange(4), share, seed=0)


def test_no_labelled_row_draws_none():
    assert draw_rows(np.full(5, -1), 0.5, seed=0).size == 0


def clouds(rows: int, seed: int) -> Embeddings:
    labels = np.arange(rows) % 4
    features = np.random.default_rng(9).normal(size=(4, 8))[labels] + np.random.default_rng(seed).normal(size=(rows, 8))
    return Embeddings(features.astype(np.float32), [str(i) for i in range(rows)], {"x": labels}, np.arange(rows))


def test_curve_is_the_probe_on_each_draw():
    train, test = clouds(160, 0), clouds(200, 1)
    few, all_labels = few_label_curve(train, test, "x", 4, shares=(1.0, 0.05), draws=2, seed=3, progress=False)
    assert (few.share, few.rows, all_labels.rows) == (0.05, 8, 160)
    by_hand = []
    for draw in range(2):
        part = train.select(draw_rows(train.labels["x"], 0.05, seed=3000 + draw))
        scores = linear_probe(part, test, "x", 4, seed=3).scores
        by_hand.append((scores.argmax(axis=1) == test.labels["x"]).mean())
    assert few.values == pytest.approx(by_hand)
    assert few.mean == pytest.approx(np.mean(by_hand)) and few.std == pytest.approx(np.std(by_hand, ddof=1))
    assert len(all_labels.values) == 1 and np.isnan(all_labels.std)
    assert all_labels.mean > few.mean


def test_curve_of_a_multilabel_head_is_mean_average_precision():
    rng = np.random.default_rng(0)
    tags = (rng.random((120, 3)) < 0.4).astype(np.float32)
    features = (tags @ rng.normal(size=(3, 6)) + 0.1 * rng.normal(size=(120, 6))).astype(np.float32)
    both = Embeddings(features, [str(i) for i in range(120)], {"tags": tags}, np.arange(120))
    (point,) = few_label_curve(both, both, "tags", 3, shares=(1.0,), progress=False)
    assert 0.95 < point.mean <= 1
