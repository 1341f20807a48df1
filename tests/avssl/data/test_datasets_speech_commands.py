import logging
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError

TRAIN, VAL, TEST = "yes/aaaa0001_nohash_0.wav", "no/bbbb0002_nohash_1.wav", "zero/cccc0003_nohash_0.wav"


def lay_out(root: Path, *more: str) -> Path:
    for path in (TRAIN, VAL, TEST, "_background_noise_/white_noise.wav", *more):
        write_media(root / path, seconds=0.3, video_codec=None, audio_codec="pcm_s16le")
    (root / "validation_list.txt").write_text(f"{VAL}\n")
    (root / "testing_list.txt").write_text(f"{TEST}\n\nup/dddd0004_nohash_0.wav\n")
    (root / "README.md").write_text("words")
    return root


def test_the_official_lists_are_the_splits(tmp_path: Path) -> None:
    manifest = build_manifest("speech-commands", lay_out(tmp_path))
    splits = dict(zip(manifest.column("clip_id"), manifest.column("split"), strict=True))
    assert splits == {
        "no/bbbb0002_nohash_1": "val",
        "up/dddd0004_nohash_0": "test",  # listed, though not there
        "yes/aaaa0001_nohash_0": "train",
        "zero/cccc0003_nohash_0": "test",
    }
    words = manifest.heads["word"]
    assert len(words) == 35 and words == sorted(words)
    assert [words[k] for k in manifest.labels("word")] == ["no", "up", "yes", "zero"]
    assert manifest.column("speaker") == ["bbbb0002", "dddd0004", "aaaa0001", "cccc0003"]


def test_missing_and_corrupt_recordings(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "data")
    (root / TRAIN).write_bytes(b"no sound" * 50)
    manifest = open_data("speech-commands", root, cache_dir=tmp_path / "cache", workers=0)
    good, reasons = manifest.usable(audio=True)
    assert len(good) == 2 and reasons == {"file not found": 1, "not a media file": 1}


def test_the_folder_above_will_do(tmp_path: Path) -> None:
    lay_out(tmp_path / "SpeechCommands" / "speech_commands_v0.02")
    manifest = build_manifest("speech-commands", tmp_path)
    assert manifest.row(0).path == tmp_path / "SpeechCommands" / "speech_commands_v0.02" / VAL
    assert manifest.row(0).path.is_file()


def test_other_words_are_counted_and_absent_ones_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("speech-commands", lay_out(tmp_path, "hello/a.wav", "hello/b.wav", "yes/deep/c.wav"))
    assert len(manifest) == 4
    assert "3 files are of no word of version 2, left out: hello (2), yes (1)" in caplog.text
    assert "no recording of backward, bed" in caplog.text


def test_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no validation_list\.txt and testing_list\.txt in .*unpack"):
        build_manifest("speech-commands", tmp_path)
    lay_out(tmp_path)
    (tmp_path / "testing_list.txt").write_text(f"{TEST}\nhello/x.wav\n")
    with pytest.raises(DataError, match=r"testing_list\.txt: line 2: 'hello/x\.wav' is not WORD/FILE\.wav"):
        build_manifest("speech-commands", tmp_path)
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "empty" / name).touch()
    with pytest.raises(DataError, match=r"no WORD/SPEAKER_nohash_0\.wav under"):
        build_manifest("speech-commands", tmp_path / "empty")
