"""Heads whose clips have several labels: what a manifest makes of lists, keeps on disk, counts and refuses."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from avssl.data.clips import Clip, ClipDataset, Item
from avssl.data.manifest import Manifest, ManifestError

HEADS = {"sound": ["dog", "rain", "speech"], "place": ["in", "out"]}
ROWS = [
    {"clip_id": "a", "path": "a.wav", "label.sound": ["speech", "dog", "dog"], "label.place": "out"},
    {"clip_id": "b", "path": "b.wav", "label.sound": None},
    {"clip_id": "c", "path": "c.wav", "label.sound": [], "label.place": 0},
    {"clip_id": "d", "path": "d.wav", "label.sound": "rain"},
    {"clip_id": "e", "path": "e.wav", "label.sound": np.array([1, 2])},
]
HOT = [[1, 0, 1], [-1, -1, -1], [0, 0, 0], [0, 1, 0], [0, 1, 1]]


@pytest.fixture
def manifest(tmp_path):
    return Manifest.from_rows(ROWS, tmp_path, HEADS)


def test_lists_make_a_head_multi_label_and_no_other(manifest):
    assert manifest.multilabel == {"sound"}
    assert manifest.labels("sound").dtype == np.float32
    assert manifest.labels("sound").tolist() == HOT
    assert manifest.labels("place").tolist() == [1, -1, 0, -1, -1]
    assert manifest.row(0).labels == {"sound": [0, 2], "place": 1}
    assert manifest.row(1).labels == {"sound": None, "place": None}
    assert manifest.row(2).labels["sound"] == []
    assert "sound: 3 classes of several labels" in repr(manifest)


def test_labels_are_counted_without_the_whole_matrix(manifest):
    hot = manifest.labels("sound")
    rows, classes = manifest.label_pairs("sound")
    assert sorted(zip(rows.tolist(), classes.tolist(), strict=True)) == sorted(
        map(tuple, np.argwhere(hot > 0).tolist())
    )
    assert [values.tolist() for values in manifest.label_pairs("place")] == [[0, 2], [1, 0]]
    assert manifest.labelled("sound").tolist() == [True, False, True, True, True]
    assert manifest.labelled("place").tolist() == [True, False, True, False, False]


def test_values_hidden_under_a_null_list_are_no_labels(tmp_path):
    """Arrow may keep values where a list is null; some of its functions count them."""
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), pa.array([0, 2, 9, 1], pa.int64()), mask=pa.array([False, True, False])
    )
    table = pa.table({"clip_id": ["a", "b", "c"], "path": ["a", "b", "c"], "label.sound": lists})
    manifest = Manifest(table, tmp_path, {"sound": HEADS["sound"]})
    assert manifest.labels("sound").tolist() == [[1, 0, 0], [-1, -1, -1], [0, 1, 0]]
    plain = [
        {"clip_id": name, "path": name, "label.sound": label}
        for name, label in zip("abc", [[0], None, [1]], strict=True)
    ]
    assert manifest.digest == Manifest.from_rows(plain, tmp_path, {"sound": HEADS["sound"]}).digest


def test_disk_processes_and_subsets_keep_the_labels(manifest, tmp_path):
    manifest.save(tmp_path / "m.parquet")
    loaded = Manifest.load(tmp_path / "m.parquet")
    assert loaded.table.equals(manifest.table) and loaded.digest == manifest.digest
    for copy in (loaded, pickle.loads(pickle.dumps(manifest))):
        assert copy.multilabel == {"sound"} and copy.labels("sound").tolist() == HOT
    part = manifest.take([4, 1, 0])
    assert part.labels("sound").tolist() == [HOT[4], HOT[1], HOT[0]]
    assert part.label_pairs("sound")[0].tolist() == [0, 0, 2, 2]
    chunks = pa.concat_tables([manifest.table.slice(0, 2), manifest.table.slice(2)])
    assert Manifest(chunks, tmp_path, HEADS).digest == manifest.digest
    empty = manifest.select(mask=[False] * 5)
    assert empty.multilabel == {"sound"} and empty.labels("sound").shape == (0, 3)


def test_digest_sees_every_label(manifest, tmp_path):
    changes = [None, [], [1], [0, 1], [0, 2]]
    others = [Manifest.from_rows([{**ROWS[0], "label.sound": label}, *ROWS[1:]], tmp_path, HEADS) for label in changes]
    moved = [{**ROWS[0], "label.sound": [0]}, {**ROWS[1], "label.sound": [2]}, *ROWS[2:]]  # the same values, elsewhere
    assert others[-1].digest == manifest.digest
    assert len({other.digest for other in [*others, Manifest.from_rows(moved, tmp_path, HEADS)]}) == 6


def test_with_columns_keeps_the_kind_of_a_head(manifest):
    unlabelled = manifest.with_columns({"label.sound": [None] * 5, "note": "abcde"})
    assert unlabelled.multilabel == {"sound"} and not unlabelled.labelled("sound").any()
    assert manifest.with_columns({"label.place": [[0], [0, 1], None, [], [1]]}).multilabel == {"sound", "place"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 3], r"label of head 'sound' out of range 0..2 .*: 'x'"),
        ([-1], r"out of range .*: 'x'"),
        (["dog", "cat"], "unknown classes 'cat'"),
        (["dog", None], "must hold classes only"),
        ([0.5], "must hold whole numbers, not 0.5"),
        (1.5, "must hold whole numbers, not 1.5"),
        ([[0]], "must hold classes only"),
    ],
)
def test_bad_lists_are_refused_by_name(tmp_path, label, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_rows([*ROWS, {"clip_id": "x", "path": "x.wav", "label.sound": label}], tmp_path, HEADS)


def test_a_nan_beside_lists_is_unlabelled(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "label.sound": float("nan")}]
    assert Manifest.from_rows(rows, tmp_path, HEADS).labels("sound").tolist() == HOT[:2]


def test_batches_hold_a_row_of_zeros_and_ones(manifest):
    dataset = ClipDataset(manifest, modalities=("audio",), clip_seconds=0.1)
    silence = np.zeros(dataset.samples, np.float32)
    items = [Item([Clip(silence, None, manifest.row(k).labels, k, str(k), 0.0, 1.0)]) for k in range(5)]
    batch = dataset.collate(items)
    assert batch.labels["sound"].dtype == torch.float32 and batch.labels["sound"].tolist() == HOT
    assert batch.labels["place"].dtype == torch.int64 and batch.labels["place"].tolist() == [1, -1, 0, -1, -1]
    assert dataset.collate([]).labels["sound"].shape == (0, 3)
