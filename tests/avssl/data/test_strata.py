"""Strata and shares of the training rows."""

import itertools

import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.data.strata import strata, stratified_share, training_share

LABELS = np.repeat([0, 1, 2, -1], [200, 40, 3, 20])


def multi_hot(rows: list[list[int]], classes: int) -> np.ndarray:
    out = np.zeros((len(rows), classes), dtype=np.float32)
    for row, labels in zip(out, rows, strict=True):
        row[labels] = 1
    return out


def pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, class) of (N,) class indices or of (N, C) zeros and ones."""
    if labels.ndim == 2:
        rows, classes = np.nonzero(labels > 0)
        return rows, classes
    return np.flatnonzero(labels >= 0), labels[labels >= 0]


def share_of(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    return stratified_share(len(labels), pairs(labels), fraction, seed)


def test_a_row_with_several_labels_belongs_to_the_rarest() -> None:
    labels = multi_hot([[0], [0, 1], [0, 1, 2], [0, 1], []], 4)
    assert strata(6, pairs(labels)).tolist() == [0, 1, 2, 1, -1, -1]
    assert strata(len(LABELS), pairs(LABELS)).tolist() == LABELS.tolist()
    assert strata(3, pairs(multi_hot([[1, 2], [2, 1], []], 3))).tolist() == [1, 1, -1]  # as rare: the first


def test_pairs_say_what_the_table_of_zeros_and_ones_does() -> None:
    labels = np.random.default_rng(0).random((500, 12)) < np.linspace(0.01, 0.5, 12)
    counts = np.where(labels, labels.sum(axis=0), 1000)
    expected = np.where(labels.any(axis=1), counts.argmin(axis=1), -1)
    assert strata(500, pairs(labels)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, [2, 1, 1, 1]), (0.1, [20, 4, 1, 2]), (1.0, [200, 40, 3, 20])]
)
def test_every_class_has_its_share_and_at_least_one_row(fraction: float, expected: list[int]) -> None:
    chosen = LABELS[share_of(LABELS, fraction, seed=3)]
    assert [(chosen == label).sum() for label in (0, 1, 2, -1)] == expected


def test_shares_are_nested_drawn_by_the_seed_and_random() -> None:
    masks = [share_of(LABELS, fraction, seed=5) for fraction in (0.01, 0.05, 0.3, 1.0)]
    for small, large in itertools.pairwise(masks):
        assert not (small & ~large).any()
    assert (share_of(LABELS, 0.05, seed=5) == masks[1]).all()
    assert (share_of(LABELS, 0.05, seed=6) != masks[1]).any()
    drawn = np.mean([share_of(LABELS, 0.25, seed=seed) for seed in range(400)], axis=0)
    assert np.abs(drawn[:200] - 0.25).max() < 0.1  # binomial, deviation 0.022: every row has its chance


def test_several_labels_every_class_survives() -> None:
    """Class 3 stands only beside rarer ones: no stratum is its own."""
    labels = multi_hot([[0, 3], [1, 3], [2, 3]] * 2 + [[0]] * 20 + [[1]] * 20 + [[4]] * 300, 5)
    for seed in range(20):
        small, large = (share_of(labels, fraction, seed) for fraction in (0.02, 0.3))
        assert (labels[small].sum(axis=0) > 0).all() and small.sum() < 20 and not (small & ~large).any()


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_a_wrong_fraction_names_the_option(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"data\.train_fraction must"):
        share_of(LABELS, fraction, seed=0)


def test_rows_of_a_manifest(tmp_path) -> None:
    rows = [{"clip_id": str(k), "path": f"{k}.wav", "split": "train", "label.kind": "ab"[k % 2]} for k in range(40)]
    manifest = Manifest.from_rows(rows, tmp_path, {"kind": ["a", "b"]})
    share = training_share(manifest, "kind", 0.25, seed=0)
    assert np.bincount(share.labels("kind")).tolist() == [5, 5]
    assert len(training_share(manifest, None, 0.1, seed=0)) == 4
