"""Strata and shares of the training rows."""

import itertools

import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.data.strata import held_out, row_groups, strata, stratified_share, training_share

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


def grouped(tmp_path, count: int = 60, **columns: list[str | None]) -> Manifest:
    """``count`` clips of two classes with further ``columns``, ``path`` among them."""
    rows = [
        {"clip_id": str(k), "path": f"{k}.wav", "split": "train", "label.kind": "ab"[k % 2]}
        | {name: values[k] for name, values in columns.items()}
        for k in range(count)
    ]
    return Manifest.from_rows(rows, tmp_path, {"kind": ["a", "b"]})


def test_clips_of_one_file_recording_or_speaker_are_one_group(tmp_path) -> None:
    files = [f"{k // 2}.wav" for k in range(60)]
    groups, shared = row_groups(grouped(tmp_path, path=files))
    assert shared == ["file"] and groups.tolist() == [k // 2 for k in range(60)]
    speakers = [None if k < 4 else f"s{k // 20}" for k in range(60)]
    groups, shared = row_groups(grouped(tmp_path, path=files, speaker=speakers))
    assert shared == ["file", "speaker"]
    assert groups.tolist() == [0, 0, 1, 1, *[2] * 16, *[3] * 20, *[4] * 20], "a clip without a speaker is alone"
    assert row_groups(grouped(tmp_path, speaker=speakers), ignore=["speaker"])[1] == []


def test_groups_that_overlap_are_joined(tmp_path) -> None:
    """Clips 0 and 1 share a file, 1 and 2 a recording."""
    manifest = grouped(tmp_path, 4, path=["a", "a", "b", "c"], recording=["x", "y", "y", ""])
    assert row_groups(manifest)[0].tolist() == [0, 0, 0, 1]


def test_what_all_clips_share_is_no_group_and_said(tmp_path, caplog) -> None:
    groups, shared = row_groups(grouped(tmp_path, recording=["one"] * 60))
    assert shared == [] and len(set(groups.tolist())) == 60
    assert "all clips share their recording" in caplog.text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_a_hold_out_is_stratified_and_takes_whole_groups(fraction: float, seed: int) -> None:
    labels = np.repeat([0, 1, 2, -1], [200, 100, 40, 60])
    groups = np.arange(400) // 4
    mask = held_out(groups, pairs(labels), fraction, seed)
    for kind, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs(mask[labels == kind].sum() - fraction * count) <= 4
    assert not set(groups[mask]) & set(groups[~mask])
    assert (mask == held_out(groups, pairs(labels), fraction, seed)).all()
    assert (mask != held_out(groups, pairs(labels), fraction, seed + 1)).any()


def test_of_few_clips_every_class_is_held_out_and_left() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    mask = held_out(np.arange(6), pairs(labels), 0.2, 0, every_class=True)
    assert sorted(labels[mask]) == [0, 1] and sorted(set(labels[~mask])) == [0, 1, 2]


def test_no_class_goes_to_the_hold_out_alone() -> None:
    """Class 1 is only in one large group."""
    labels, groups = np.repeat([0, 1], [30, 30]), np.r_[np.arange(30), np.full(30, 30)]
    for seed in range(10):
        mask = held_out(groups, pairs(labels), 0.5, seed)
        assert mask.any() and not mask[30:].any()


@pytest.mark.parametrize(
    ("groups", "labels", "told"),
    [([0], [0], "only one clip"), ([0, 0, 0], [0, 1, 1], "all clips are of one"), ([0, 1], [0, 1], "every class has")],
)
def test_what_cannot_be_held_out_is_said(groups: list[int], labels: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        held_out(np.array(groups), pairs(np.array(labels)), 0.2, 0)


def test_unlabelled_rows_are_held_out_at_random() -> None:
    none = np.zeros(0, dtype=np.int64)
    drawn = np.mean([held_out(np.arange(50), (none, none), 0.2, seed) for seed in range(300)], axis=0)
    assert np.abs(drawn - 0.2).max() < 0.12 and drawn.sum() == pytest.approx(10)
