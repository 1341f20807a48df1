import logging
from collections import Counter
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import find_entry, open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError

HEADER = (
    "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,"
    "class_id\n"
)


def line(annotation: str, start: str, stop: str, name: str = "rustle", number: object = 4) -> str:
    video = annotation.rsplit("_", 1)[0]
    # The sample columns are wrong on purpose: only timestamps count.
    return f"{annotation},{video[:3]},{video},{start},{stop},0,1,paper rustle,{name},{number}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "EPIC_Sounds_train.csv").write_text(
        HEADER
        + line("P01_01_0", "00:00:00.100", "00:00:00.300")
        + line("P02_03_0", "01:00:00.000", "01:00:00.250", "drink / eat", 43)
    )
    (tmp_path / "EPIC_Sounds_validation.csv").write_text(
        HEADER + line("P01_11_0", "00:00:02.069", "00:00:02.993", "ceramic / wood collision", 34)
    )
    (tmp_path / "EPIC_Sounds_recognition_test_timestamps.csv").write_text(
        "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp\n"
        "P02_106_0,P02,P02_106,00:00:03.855,00:00:04.142\n"
    )
    return tmp_path


def test_segments_and_splits(root: Path) -> None:
    manifest = build_manifest("epic-sounds", root)
    assert manifest.column("split") == ["train", "train", "test"]
    row = manifest.row(-1)
    assert (row.clip_id, row.start, row.end, row.labels) == ("P01_11_0", 2.069, 2.993, {"sound": 34})
    assert manifest.row(1).start == 3600.0 and manifest.column("participant")[1] == "P02"
    assert len(manifest.heads["sound"]) == 44 == len(set(manifest.heads["sound"]))


def test_the_challenge(root: Path) -> None:
    manifest = build_manifest("epic-sounds", root, test="challenge")
    assert manifest.column("split") == ["train", "train", "val", "test"]
    assert manifest.labels("sound").tolist() == [4, 43, 34, -1]
    with pytest.raises(DataError, match=r"option test must be validation or challenge, got 'chalenge' \(did you mean"):
        build_manifest("epic-sounds", root, test="chalenge")
    (root / "EPIC_Sounds_recognition_test_timestamps.csv").unlink()
    with pytest.raises(DataError, match=r"no file .*recognition_test_timestamps"):
        build_manifest("epic-sounds", root, test="challenge")


def test_a_small_tree_with_missing_and_corrupt_videos(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_media(root / "P01" / "videos" / "P01_01.MP4", seconds=0.4, sample_rate=24000)
    write_media(root / "audio" / "P01_01.wav", seconds=0.4, video_codec=None, audio_codec="pcm_s16le")
    (root / "P01" / "videos" / "P01_11.MP4").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        manifest = open_data("epic-sounds", root, cache_dir=tmp_path / "cache", workers=0)
    assert "EPIC-Sounds: 1 of 3 videos are missing" in caplog.text
    assert [bool(error) for error in manifest.column("error")] == [False, True, True]
    assert manifest.row(0).has_video and manifest.column("sample_rate")[0] == 24000
    sound = build_manifest("epic-sounds", root, prefer_audio_files=True)
    assert sound.row(0).path == root / "audio" / "P01_01.wav"
    entry = find_entry("epic-sounds")
    assert (entry.clip_seconds, entry.eval_clips, entry.head) == (2.0, 5, "sound")


def test_without_the_training_file(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "EPIC_Sounds_train.csv").unlink()
    with caplog.at_level(logging.WARNING):
        assert build_manifest("epic-sounds", root).column("split") == ["test"]
    assert "there is no split train" in caplog.text
    (root / "EPIC_Sounds_validation.csv").unlink()
    with pytest.raises(DataError, match=r"no EPIC_Sounds_validation\.csv in .*epic-sounds-annotations; get"):
        build_manifest("epic-sounds", root)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("P01_01_0", "00:00:01.0", "00:00:02.5", "rustle", 44), r"row 1 \(P01_01_0\): .*'44' is not in 0\.\.43"),
        (line("P01_01_0", "00:00:01.0", "00:00:02.5", "rustle", -1), r"row 1 .*'-1' is not in 0\.\.43"),
        (line("P01_01_0", "00:00:01.0", "00:00:02.5", "rustle", 3), r"class 3 is 'open / close'; this is another rele"),
        (line("P01_01_0", "00:00:01.0", "00:00:01.0"), r"row 1 .*'stop_timestamp': 00:00:01\.0 is not after"),
        (line("P01_01_0", "24000", "48000"), r"row 1 .*'24000', '48000' are not timestamps"),
    ],
)
def test_wrong_rows_are_named(root: Path, bad: str, message: str) -> None:
    (root / "EPIC_Sounds_train.csv").write_text(HEADER + bad)
    with pytest.raises(DataError, match=message):
        build_manifest("epic-sounds", root)


@pytest.mark.realdata
def test_the_official_validation_file(real_data: Path) -> None:
    manifest = build_manifest("epic-sounds", real_data / "annotations" / "epic-sounds")
    assert len(manifest) == 8035 and set(manifest.column("split")) == {"test"}
    first, last = manifest.row(0), manifest.row(-1)
    assert (first.clip_id, first.start, first.end, first.labels) == ("P01_11_0", 2.069, 2.993, {"sound": 34})
    assert (last.clip_id, last.start, last.end, last.labels) == ("P32_10_77", 396.984, 397.484, {"sound": 3})
    assert sorted(Counter(manifest.labels("sound").tolist())) == list(range(44))
    assert manifest.heads["sound"][34] == "ceramic / wood collision"
