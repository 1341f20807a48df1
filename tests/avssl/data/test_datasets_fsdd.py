from pathlib import Path

import pytest

from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError
from avssl.data.strata import row_groups


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "recordings").mkdir()
    for digit in (0, 7):
        for speaker in ("theo", "jackson"):
            for take in (0, 4, 5, 49):
                (tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav").touch()
    (tmp_path / "recordings" / "notes_a_b.wav").touch()
    return tmp_path


def test_takes_0_to_4_are_the_official_test_split(root: Path) -> None:
    manifest = build_manifest("fsdd", root)
    assert len(manifest) == 16 and manifest.heads["speaker"] == ["jackson", "theo"]
    assert sorted(set(manifest.select(split="test").column("take"))) == ["0", "4"]
    assert sorted(set(manifest.select(split="train").column("take"))) == ["49", "5"]
    row = manifest.row(manifest.column("clip_id").index("7_theo_49"))
    assert row.labels == {"digit": 7, "speaker": 1}


def test_held_out_speakers_are_the_test_split(root: Path) -> None:
    manifest = build_manifest("fsdd", root / "recordings", held_out_speakers=["theo"])
    assert set(manifest.select(split="test").labels("speaker").tolist()) == {1}
    assert set(manifest.select(split="train").labels("speaker").tolist()) == {0}


def test_a_hold_out_keeps_the_clips_of_a_voice_together_unless_the_voice_is_the_label(root: Path) -> None:
    train = build_manifest("fsdd", root).select(split="train")
    groups, together = row_groups(train, ignore=["digit"])
    assert together == ["speaker"]
    assert len({*zip(groups.tolist(), train.column("speaker"), strict=True)}) == 2
    assert row_groups(train, ignore=["speaker"])[1] == []


def test_copies_of_a_recording_are_counted_not_listed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("0_theo_0.wav", "other.wav"):
        (root / "old" / name).parent.mkdir(exist_ok=True)
        (root / "old" / name).touch()
    manifest = build_manifest("fsdd", root)
    assert len(manifest) == 16 and "old/0_theo_0.wav" in manifest.column("path")
    assert "FSDD: 1 files are copies of others by their names, left out: recordings/0_theo_0.wav" in caplog.text


def test_errors_are_clear(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no speaker 'teo' \(did you mean 'theo'\?\); there are jackson, theo"):
        build_manifest("fsdd", root, held_out_speakers=["teo"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="FSDD: no recordings/DIGIT_SPEAKER_TAKE"):
        build_manifest("fsdd", tmp_path / "empty")


@pytest.mark.realdata
def test_real_fsdd(real_data: Path) -> None:
    manifest = build_manifest("fsdd", real_data / "fsdd")
    assert len(manifest) == 3000 and len(manifest.select(split="test")) == 300
    assert manifest.heads["speaker"] == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    held_out = build_manifest("fsdd", real_data / "fsdd", held_out_speakers=["lucas", "theo"])
    assert len(held_out.select(split="test")) == 1000
    assert not set(held_out.select(split="train").labels("speaker").tolist()) & {2, 4}
