"""Class-balanced sampling: the shares of the classes, resuming at any step, and ranks that share one stream."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from loading_samples import wav_manifest

from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError
from avssl.data.loader import WeightedSampler, make_train_loader
from avssl.data.manifest import Manifest
from avssl.data.samplers import balanced_shares

CLASSES = {"kind": ["a", "b", "c", "d"], "sound": ["x", "y", "z"]}


def build(labels: list, head: str, root: Path) -> Manifest:
    rows = [{"clip_id": str(k), "path": f"{k}.wav", f"label.{head}": label} for k, label in enumerate(labels)]
    return Manifest.from_rows(rows, root, {head: CLASSES[head]})


def test_every_class_is_drawn_equally_often(tmp_path: Path) -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10  # class d has no row
    shares = balanced_shares(build(labels, "kind", tmp_path), ["kind"])
    np.testing.assert_allclose(np.bincount(labels, shares), 1 / 3)
    sampler = WeightedSampler(shares, 100, seed=3)
    assert sampler.steps_per_epoch == 10
    drawn = [labels[row] for step in range(60) for _, row in sampler.batch(step)]
    # 6000 draws: three standard deviations of a share of a third are 0.018.
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), 1 / 3, atol=0.018)


def test_a_row_of_several_labels_weighs_the_sum_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = [[0], [0], [0, 1], [0, 1, 2], None, []]
    with caplog.at_level(logging.WARNING):
        shares = balanced_shares(build(labels, "sound", tmp_path), ["sound"])
    expected = np.array([1 / 4, 1 / 4, 1 / 4 + 1 / 2, 1 / 4 + 1 / 2 + 1, 0, 0])
    np.testing.assert_allclose(shares, expected / 3)
    assert "never draws 2 of 6 training clips" in caplog.text
    assert {row for step in range(50) for _, row in WeightedSampler(shares, 6).batch(step)} == {0, 1, 2, 3}


def test_two_heads_have_equal_parts(tmp_path: Path) -> None:
    """Rows of two sets: eight of one head, of four classes, and two of another, of one class."""
    rows = [{"clip_id": str(k), "path": "f", "label.kind": k // 2} for k in range(8)]
    rows += [{"clip_id": str(k), "path": "f", "label.sound": [0]} for k in range(8, 10)]
    shares = balanced_shares(Manifest.from_rows(rows, tmp_path, CLASSES), ["kind", "sound"])
    np.testing.assert_allclose(shares, [1 / 16] * 8 + [1 / 4] * 2)


def test_no_label_is_told(tmp_path: Path) -> None:
    manifest = build([None, None], "kind", tmp_path)
    for heads in (["kind"], []):
        with pytest.raises(DataError, match=r"data\.sampling balanced needs labels"):
            balanced_shares(manifest, heads)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13])
def test_resuming_and_ranks_draw_what_one_uninterrupted_process_draws(start: int) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(50))
    whole = list(itertools.islice(WeightedSampler(shares, 8, seed=1), 20))
    assert whole[0] != WeightedSampler(shares, 8, seed=2).batch(0)
    ranks = [WeightedSampler(shares, 2, seed=1, start_step=start, rank=rank, world=4) for rank in range(4)]
    parts = [list(itertools.islice(sampler, 20 - start)) for sampler in ranks]
    assert [list(itertools.chain(*batches)) for batches in zip(*parts, strict=True)] == whole[start:]
    assert [WeightedSampler(shares, 8, seed=1).batch(step) for step in range(20)] == whole


def test_a_row_that_repeats_within_an_epoch_is_cut_anew(tmp_path: Path) -> None:
    dataset = ClipDataset(wav_manifest(tmp_path, 4), modalities=("audio",), clip_seconds=0.5, seed=7)
    loader = make_train_loader(dataset, 4, seed=5, shares=np.array([0, 1.0, 0, 0]))
    batch = next(iter(loader))
    assert batch.index.tolist() == [1, 1, 1, 1] and len(set(batch.start.tolist())) == 4
    again = next(iter(make_train_loader(dataset, 4, seed=5, shares=np.array([0, 1.0, 0, 0]))))
    assert again.start.tolist() == batch.start.tolist()
