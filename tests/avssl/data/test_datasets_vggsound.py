import csv
import logging
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.datasets.vggsound import VGGSOUND_CLASSES
from avssl.data.failures import DataError

FULL = """aaaaaaaaaaa,30,"bee, wasp, etc. buzzing",train
aaaaaaaaaaa,90,zebra braying,train
-bbbbbbbbb_,0,air horn,test
ccccccccccc,5,playing tympani,test
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "vggsound.csv").write_text(FULL)
    return tmp_path


def test_the_full_list(root: Path) -> None:
    manifest = build_manifest("vggsound", root)
    assert manifest.column("clip_id") == [
        "aaaaaaaaaaa_000030", "aaaaaaaaaaa_000090", "-bbbbbbbbb__000000", "ccccccccccc_000005"
    ]  # fmt: skip
    assert manifest.column("split") == ["train", "train", "test", "test"]
    labels = [manifest.heads["sound"][label] for label in manifest.labels("sound")]
    assert labels == ["bee, wasp, etc. buzzing", "zebra braying", "air horn", "playing tympani"]
    assert manifest.heads["sound"] == sorted(manifest.heads["sound"]) and len(set(manifest.heads["sound"])) == 309


def test_a_small_tree_with_missing_and_corrupt_clips(root: Path, tmp_path: Path) -> None:
    write_media(root / "train" / "aaaaaaaaaaa_000030.mp4", seconds=0.4)
    write_media(root / "video" / "-bbbbbbbbb__000000.wav", seconds=0.4, video_codec=None, audio_codec="pcm_s16le")
    (root / "aaaaaaaaaaa_000090.mp4").write_bytes(b"not a video")
    manifest = open_data("vggsound", root, cache_dir=tmp_path / "cache", workers=0)
    assert [bool(error) for error in manifest.column("error")] == [False, True, False, True]
    usable, reasons = manifest.usable(audio=True)
    assert usable.column("clip_id") == ["aaaaaaaaaaa_000030", "-bbbbbbbbb__000000"] and reasons.total() == 2
    assert manifest.row(0).path == root / "train" / "aaaaaaaaaaa_000030.mp4"
    assert manifest.row(0).has_video and not manifest.row(2).has_video


def test_whole_videos(root: Path) -> None:
    (root / "aaaaaaaaaaa.mp4").touch()
    manifest = build_manifest("vggsound", root, whole_videos=True)
    row = manifest.row(1)
    assert (row.path.name, row.start, row.end) == ("aaaaaaaaaaa.mp4", 90.0, 100.0)


def test_the_older_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "test.csv").write_text('-bbbbbbbbb__000012.mp4,"bee, wasp, etc. buzzing"\n')
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("vggsound", tmp_path)
    assert "no train.csv" in caplog.text and manifest.column("split") == ["test"]
    (tmp_path / "train.csv").write_text("aaaaaaaaaaa_000030.mp4,air horn\n")
    (tmp_path / "vggsound.csv").write_text(FULL)
    assert len(build_manifest("vggsound", tmp_path)) == 4
    manifest = build_manifest("vggsound", tmp_path, lists="split")
    assert manifest.column("clip_id") == ["aaaaaaaaaaa_000030", "-bbbbbbbbb__000012"]
    assert manifest.column("split") == ["train", "test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("aaaaaaaaaaa,30,air hron,train", r"line 1: 'air hron' is none of VGGSound's 309 .*'air horn'"),
        ("aaaaaaaaaaa,30,air horn,val", r"line 1: split 'val' is neither"),
        ("aaaaaaaaaaa,3.5,air horn,test", r"line 1: start '3\.5' is not a whole number"),
        ("aaaaaaaaa,30,air horn,test", r"line 1: 'aaaaaaaaa' is not a YouTube id"),
        ("aaaaaaaaaaa,30,bee, wasp, etc. buzzing,test", r"line 1: 6 cells instead of 4"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "vggsound.csv").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        build_manifest("vggsound", tmp_path)


def test_options_and_lists_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vggsound\.csv or test\.csv in .*robots\.ox\.ac\.uk.*option annotations"):
        build_manifest("vggsound", tmp_path)
    with pytest.raises(DataError, match=r"option lists must be auto, full, split, got 'ful' \(did you mean 'full'"):
        build_manifest("vggsound", tmp_path, lists="ful")
    (tmp_path / "test.csv").write_text("aaaaaaaaaaa.mp4,air horn\n")
    with pytest.raises(DataError, match=r"line 1: 'aaaaaaaaaaa\.mp4' is not named like ID_SSSSSS\.mp4"):
        build_manifest("vggsound", tmp_path)


@pytest.mark.realdata
def test_the_official_test_list(real_data: Path) -> None:
    folder = real_data / "annotations" / "vggsound"
    with open(folder / "stat.csv", encoding="utf-8") as stream:
        assert sorted(cells[0] for cells in csv.reader(stream)) == VGGSOUND_CLASSES
    manifest = build_manifest("vggsound", folder, lists="split")
    assert len(manifest) == 15446 and set(manifest.column("split")) == {"test"}
    assert set(manifest.labels("sound").tolist()) == set(range(309))
    names = [(row.clip_id, VGGSOUND_CLASSES[row.labels["sound"] or 0]) for row in (manifest.row(0), manifest.row(-1))]
    assert names == [("glLQrEijrKg_000300", "playing hammond organ"), ("E75i9rHDHaE_000000", "strike lighter")]
    assert manifest.column("youtube_id")[0] == "glLQrEijrKg"
