import logging
from pathlib import Path

import numpy as np
import pytest
from media_factory import write_media

from avssl.data.catalog import find_entry, open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00092,"Wind"\n'


def segments(title: str, *lines: str) -> str:
    header = f"# Segments csv\n# num_ytids={len(lines)}, num_segs={len(lines)}, num_unique_labels=3\n"
    return header + "# YTID, start_seconds, end_seconds, positive_labels\n" + "".join(line + "\n" for line in lines)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "class_labels_indices.csv").write_text(CLASSES)
    files = {
        "balanced_train": ['--aaaaaaaaa, 30.000, 40.000, "/m/09x0r,/t/dd00092"'],
        "unbalanced_train": ['bbbbbbbbbbb, 0.000, 4.500, "/m/05zppz"', 'ccccccccccc, 12.500, 22.500, "/m/09x0r"'],
        "eval": ['ddddddddddd, 70.000, 80.000, "/m/09x0r,/m/05zppz,/t/dd00092"'],
    }
    for name, lines in files.items():
        (folder / f"{name}_segments.csv").write_text(segments(name, *lines))
    return tmp_path


def test_several_labels_of_a_clip(root: Path) -> None:
    manifest = build_manifest("audioset", root)
    assert manifest.column("split") == ["train", "train", "train", "test"]
    assert manifest.multilabel == {"sound"}
    expected = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=np.float32)
    assert np.array_equal(manifest.labels("sound"), expected)
    assert manifest.heads["sound"] == ["Speech", "Male speech, man speaking", "Wind"]
    assert manifest.column("mids")[0] == "/m/09x0r,/t/dd00092"
    assert manifest.column("youtube_id")[0] == "--aaaaaaaaa"
    assert manifest.column("clip_id")[2] == "ccccccccccc_000012.500"


def test_training_lists(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {train: len(build_manifest("audioset", root, train=train)) for train in ("balanced", "unbalanced", "both")}
    assert sizes == {"balanced": 2, "unbalanced": 3, "both": 4}
    assert build_manifest("audioset-20k", root).column("clip_id") == build_manifest(
        "audioset", root, train="balanced"
    ).column("clip_id")
    assert len(build_manifest("audioset-20k", root, train="both")) == 4 and find_entry("audioset-20k").seconds() == 10
    with pytest.raises(DataError, match=r"option train must be .*, got 'balance' \(did you mean 'balanced'"):
        build_manifest("audioset", root, train="balance")
    (root / "annotations" / "unbalanced_train_segments.csv").unlink()
    with pytest.raises(DataError, match=r"no file .*unbalanced_train_segments\.csv; get it from .* or set the option"):
        build_manifest("audioset", root)
    (root / "annotations" / "balanced_train_segments.csv").unlink()
    with caplog.at_level(logging.WARNING):
        assert build_manifest("audioset", root).column("split") == ["test"]
    assert "there is only the split test, without" in caplog.text


def test_a_small_tree_with_missing_and_corrupt_clips(root: Path, tmp_path: Path) -> None:
    for path in ("bal/--aaaaaaaaa.flac", "unbal/part1/Ybbbbbbbbbbb.wav"):
        codec = "flac" if path.endswith("flac") else "pcm_s16le"
        write_media(root / path, seconds=0.4, video_codec=None, audio_codec=codec)
    (root / "eval").mkdir()
    (root / "eval" / "ddddddddddd_70.000_80.000.wav").write_bytes(b"RIFF")
    manifest = open_data("audioset", root, cache_dir=tmp_path / "cache", workers=0)
    assert [bool(error) for error in manifest.column("error")] == [False, False, True, True]
    assert [row.path.name for row in map(manifest.row, range(4))] == [
        "--aaaaaaaaa.flac", "Ybbbbbbbbbbb.wav", "ccccccccccc_000012.500.mp4", "ddddddddddd_70.000_80.000.wav"
    ]  # fmt: skip
    manifest.save(tmp_path / "saved.parquet")
    again = Manifest.load(tmp_path / "saved.parquet")
    assert again.digest == manifest.digest and np.array_equal(again.labels("sound"), manifest.labels("sound"))
    small = open_data("audioset-20k", root, cache_dir=tmp_path / "cache", workers=0)
    assert len(small) == 2 and len(small.usable(audio=True)[0]) == 1


def test_whole_videos(root: Path) -> None:
    (root / "ddddddddddd.mp4").touch()
    row = build_manifest("audioset", root, whole_videos=True).row(-1)
    assert (row.path.name, row.start, row.end) == ("ddddddddddd.mp4", 70.0, 80.0)


def test_two_classes_of_one_name(root: Path) -> None:
    file = root / "annotations" / "class_labels_indices.csv"
    file.write_text(CLASSES.replace("Wind", "Speech"))
    names = build_manifest("audioset", root).heads["sound"]
    assert names == ["Speech (/m/09x0r)", "Male speech, man speaking", "Speech (/t/dd00092)"]
    file.write_text(CLASSES.replace("/t/dd00092", "/m/09x0r"))
    with pytest.raises(DataError, match="column 'mid': an id repeats"):
        build_manifest("audioset", root)
    file.write_text(CLASSES.replace("2,", "3,"))
    with pytest.raises(DataError, match="column 'index' must count 0, 1, 2"):
        build_manifest("audioset", root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('ddddddddddd, 70.000, 80.000, "/m/09x0r,/m/nowhere"', r"line 4: label '/m/nowhere' is not in class_labels"),
        ('ddddddddddd, 70.000, 70.000, "/m/09x0r"', r"line 4: the end, 70\.000, does not lie after the start"),
        ('ddddddddddd, x, 70.000, "/m/09x0r"', r"line 4: 'x', '70\.000' are not numbers"),
        ("ddddddddddd, 70.000, 80.000, /m/09x0r,/t/dd00092", r"line 4: 5 cells instead of 4"),
        ('dddd, 70.000, 80.000, "/m/09x0r"', r"line 4: 'dddd' is not a YouTube id"),
    ],
)
def test_wrong_lines_are_named(root: Path, line: str, message: str) -> None:
    (root / "annotations" / "eval_segments.csv").write_text(segments("eval", line))
    with pytest.raises(DataError, match=message):
        build_manifest("audioset", root)


def test_a_list_that_was_cut_short(root: Path) -> None:
    file = root / "annotations" / "unbalanced_train_segments.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"unbalanced.*: 1 segments, but its header announces 2; get it again"):
        build_manifest("audioset", root)


@pytest.mark.realdata
def test_the_official_evaluation_list(real_data: Path) -> None:
    manifest = build_manifest("audioset", real_data / "annotations" / "audioset")
    assert len(manifest) == 20371 and set(manifest.column("split")) == {"test"}
    assert len(manifest.heads["sound"]) == 527 and manifest.heads["sound"][526] == "Field recording"
    labels = manifest.labels("sound")
    assert labels.shape == (20371, 527) and labels.sum() == 51804  # "num_positive_labels" of the file's header
    assert (labels.sum(axis=0) > 0).all()
    first = [manifest.heads["sound"][k] for k in np.flatnonzero(labels[0])]
    assert first == ["Animal", "Domestic animals, pets", "Dog", "Squeak"]
    assert manifest.column("clip_id")[0] == "--4gqARaEJE_000000"
    assert manifest.column("mids")[-1] == "/m/03m9d0z,/m/07qwyj0,/t/dd00092"
