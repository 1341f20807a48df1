"""The manifest: what it accepts, what it refuses, and that it survives disk and processes unchanged."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.catalog import list_data
from avssl.data.failures import DataError
from avssl.data.manifest import METADATA_KEY, Manifest, ManifestError

HEADS = {"verb": ["open", "close", "cut"], "noun": ["door", "bread"]}
ROWS = [
    {"clip_id": "a", "path": "x/a.mp4", "split": "train", "label.verb": 0, "label.noun": "bread", "fold": 1},
    {"clip_id": "b", "path": "x/a.mp4", "split": "train", "start": 1.0, "end": 2.5, "label.verb": "cut"},
    {"clip_id": "c", "path": "y/c.wav", "split": "test", "has_audio": True, "has_video": False, "duration": 3.5},
    {"clip_id": "d", "path": "y/d.wav", "split": "test", "error": "file not found"},
]


@pytest.fixture
def manifest(tmp_path):
    return Manifest.from_rows(ROWS, tmp_path, HEADS)


def rows_with(**changes):
    return [ROWS[0], {**ROWS[1], **changes}]


def test_a_flipped_bit_is_refused_or_harmless(manifest, tmp_path):
    path = tmp_path / "m.parquet"
    manifest.save(path)
    whole = path.read_bytes()
    bits = np.random.default_rng(0).integers(len(whole) * 8, size=400)
    refused = 0
    for bit in bits.tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            again = Manifest.load(path)
        except ManifestError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # in statistics that nobody reads
            assert again.table.equals(manifest.table) and (again.heads, again.root) == (manifest.heads, manifest.root)
    assert refused > 200


def test_a_manifest_without_checksums_is_read(manifest, tmp_path):
    """As earlier versions wrote them."""
    manifest.save(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    metadata = {key: value for key, value in table.schema.metadata.items() if not key.endswith(b".sha256")}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
    assert Manifest.load(tmp_path / "old.parquet").digest == manifest.digest


def test_row_gives_what_was_put_in(manifest, tmp_path):
    row = manifest.row(1)
    assert (row.clip_id, row.path, row.start, row.end, row.split) == ("b", tmp_path / "x/a.mp4", 1.0, 2.5, "train")
    assert row.labels == {"verb": 2, "noun": None}
    assert row.has_audio is None and row.duration is None
    assert manifest.row(-2).duration == 3.5
    with pytest.raises(IndexError, match="row 4"):
        manifest.row(4)


def test_labels_are_int64_with_minus_one_for_null(manifest):
    labels = manifest.labels("verb")
    assert labels.dtype == np.int64 and labels.tolist() == [0, 2, -1, -1]
    assert manifest.labels("noun").tolist() == [1, -1, -1, -1]
    with pytest.raises(KeyError, match="no head 'colour'"):
        manifest.labels("colour")


def test_extra_columns_are_kept_as_strings(manifest):
    assert manifest.column("fold") == ["1", None, None, None]


def test_rows_of_one_file_have_its_number(tmp_path):
    rows = [{**ROWS[0], "clip_id": str(k), "path": path} for k, path in enumerate(["b.mp4", "a.mp4", "b.mp4"])]
    assert Manifest.from_rows(rows, tmp_path, HEADS).files().tolist() == [1, 0, 1]
    cached = [{**row, "path": f"0/{k}", "source": row["path"], "cache_error": ""} for k, row in enumerate(rows)]
    assert Manifest.from_rows(cached, tmp_path, HEADS).files().tolist() == [1, 0, 1]


def test_select_by_split_and_mask(manifest):
    assert manifest.select("test").column("clip_id") == ["c", "d"]
    assert manifest.select("train", mask=[False, True, True, True]).column("clip_id") == ["b"]
    assert manifest.select("train").labels("verb").tolist() == [0, 2]
    assert manifest.take([3, 0]).column("clip_id") == ["d", "a"]
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        manifest.select("dev")
    with pytest.raises(ValueError, match="shape"):
        manifest.select(mask=[True])


def test_usable_counts_reasons(manifest):
    usable, reasons = manifest.usable(audio=True)
    assert usable.column("clip_id") == ["c"]
    assert reasons == {"not scanned": 2, "file not found": 1}
    usable, reasons = manifest.usable(video=True)
    assert len(usable) == 0 and reasons["no video stream"] == 1
    assert manifest.coverage(audio=True) == {
        "clips": 4, "usable": 1, "share": 0.25, "reasons": {"not scanned": 2, "file not found": 1},
    }  # fmt: skip
    assert manifest.usable()[0].column("clip_id") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_id": "a"}, "duplicate clip ids: 'a'"),
        ({"clip_id": ""}, "row 1 has no clip_id"),
        ({"path": ""}, "'b': path '' is empty"),
        ({"path": "/etc/passwd"}, "'b': path '/etc/passwd' is absolute"),
        ({"path": "../outside.mp4"}, "'b': path '../outside.mp4' leaves the root"),
        ({"path": "x/../../outside.mp4"}, "leaves the root"),
        ({"label.verb": 3}, r"label of head 'verb' out of range 0..2 .*: 'b'"),
        ({"label.verb": -1}, "out of range"),
        ({"label.verb": "shut"}, "unknown classes 'shut'"),
        ({"label.colour": 1}, "no head 'colour'"),
        ({"split": "dev"}, "split must be one of .*: 'b'"),
        ({"start": -1.0}, "start must not be negative.*: 'b'"),
        ({"start": 2.0, "end": 2.0}, "end must lie after start.*: 'b'"),
        ({"end": "late"}, "column 'end' must hold double"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_rows(rows_with(**changes), tmp_path, HEADS)


def test_inner_dots_and_symlinks_are_fine(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere.mp4").write_bytes(b"x")
    (tmp_path / "root/link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    rows = [{"clip_id": "a", "path": "x/../link.mp4"}, {"clip_id": "b", "path": "..hidden.mp4"}]
    manifest = Manifest.from_rows(rows, tmp_path / "root")
    assert manifest.select(mask=[False, True]).column("path") == ["..hidden.mp4"]


def test_absolute_paths_by_explicit_choice_only(tmp_path):
    rows = rows_with(path="/data/b.mp4")
    manifest = Manifest.from_rows(rows, tmp_path, HEADS, allow_absolute=True)
    assert str(manifest.row(1).path) == "/data/b.mp4"
    manifest.save(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"'/data/b\.mp4' is absolute.*--data\.options '\{allow_absolute: true\}'"):
        Manifest.load(tmp_path / "m.parquet")
    loaded = Manifest.load(tmp_path / "m.parquet", allow_absolute=True)
    assert loaded.allow_absolute and loaded.select("train").allow_absolute


def test_a_file_that_allows_itself_absolute_paths_is_not_heard(tmp_path):
    """As earlier versions wrote it, or whoever sends it."""
    Manifest.from_rows(rows_with(path="/data/b.mp4"), tmp_path, HEADS, allow_absolute=True).save(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    about = json.loads(table.schema.metadata[METADATA_KEY]) | {"allow_absolute": True}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about)}), tmp_path / "m.parquet")
    name = str(tmp_path / "m.parquet")
    for options in ({}, {"allow_absolute": False}, {"allow_absolute": "yes"}):
        with pytest.raises(ManifestError, match="is absolute"):
            list_data(name, None, options)
    assert list_data(name, None, {"allow_absolute": True})[0].allow_absolute
    with pytest.raises(DataError, match="takes no options but allow_absolute, got fold"):
        list_data(name, None, {"fold": 1, "allow_absolute": True})


def test_save_and_load_are_the_same_manifest(manifest, tmp_path):
    manifest.save(tmp_path / "deep/m.parquet")
    loaded = Manifest.load(tmp_path / "deep/m.parquet")
    assert loaded.table.equals(manifest.table)
    assert (loaded.root, loaded.heads, loaded.digest) == (manifest.root, manifest.heads, manifest.digest)
    assert os.listdir(tmp_path / "deep") == ["m.parquet"]
    moved = Manifest.load(tmp_path / "deep/m.parquet", root=tmp_path / "moved")
    assert moved.row(0).path == tmp_path / "moved/x/a.mp4" and moved.digest == manifest.digest


def test_a_failed_save_leaves_the_old_file(manifest, tmp_path, monkeypatch):
    manifest.save(tmp_path / "m.parquet")
    before = (tmp_path / "m.parquet").read_bytes()
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        manifest.select("train").save(tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.parquet"]


def test_load_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "text.parquet").write_text("clip_id,path")
    with pytest.raises(ManifestError, match=r"text\.parquet: not a Parquet file"):
        Manifest.load(tmp_path / "text.parquet")
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ManifestError, match=r"other\.parquet: not a manifest"):
        Manifest.load(tmp_path / "other.parquet")


def test_digest_sees_contents_and_order_but_not_the_root(manifest, tmp_path):
    same = Manifest.from_rows(ROWS, tmp_path / "other", HEADS)
    assert same.digest == manifest.digest
    others = [
        manifest.take([1, 0, 2, 3]),
        manifest.select("train"),
        manifest.with_columns({"fold": ["1", "", None, None]}),  # "" is not null
        manifest.with_columns({"duration": [None, 0.0, 3.5, None]}),  # nor is 0
        Manifest.from_rows(ROWS, tmp_path, {**HEADS, "noun": ["door", "bread", "knife"]}),
    ]
    assert len({manifest.digest, *(other.digest for other in others)}) == 6


def test_digest_does_not_depend_on_chunks(manifest, tmp_path):
    table = pa.concat_tables([manifest.table.slice(0, 1), manifest.table.slice(1)])
    assert Manifest(table, tmp_path, HEADS).digest == manifest.digest


def test_with_columns_checks_again(manifest):
    with pytest.raises(ManifestError, match="end must lie after start"):
        manifest.with_columns({"end": [None, 0.5, None, None]})


def test_a_hundred_thousand_rows_travel_whole_and_a_subset_alone(tmp_path):
    count = 100_000
    table = pa.table({
        "clip_id": [f"clip{i}" for i in range(count)],
        "path": [f"folder/{i % 100}/clip{i}.mp4" for i in range(count)],
        "label.verb": np.arange(count) % 3,
    })  # fmt: skip
    manifest = Manifest(table, tmp_path, HEADS)
    manifest.save(tmp_path / "m.parquet")
    loaded = Manifest.load(tmp_path / "m.parquet")
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.row(99_999) == loaded.row(99_999)
    assert len(pickle.dumps(loaded.take([5, 7]))) < 10_000, "a subset must not carry the whole table"


def test_repr_names_size_heads_and_digest(manifest):
    assert "4 clips" in repr(manifest) and "verb: 3 classes" in repr(manifest) and manifest.digest in repr(manifest)
