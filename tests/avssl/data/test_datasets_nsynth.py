import json
import logging
from pathlib import Path

import pytest
from media_factory import write_media

from avssl.data.catalog import open_data
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError


def note(name: str, family: int, source: int, **changes: object) -> dict[str, object]:
    instrument, pitch, velocity = name.rsplit("-", 2)
    return {
        "note": 1,
        "note_str": name,
        "instrument_str": instrument,
        "instrument_family": family,
        "instrument_source": source,
        "pitch": int(pitch),
        "velocity": int(velocity),
        "sample_rate": 16000,
    } | changes


NOTES = {
    "nsynth-train": [("synth_lead_synthetic_004-021-127", 9, 2), ("bass_acoustic_001-060-050", 0, 0)],
    "nsynth-valid": [("guitar_electronic_028-108-025", 3, 1)],
    "nsynth-test": [("vocal_acoustic_014-060-100", 10, 0)],
}


def lay_out(root: Path, *folders: str) -> Path:
    for folder in folders or NOTES:
        (root / folder / "audio").mkdir(parents=True)
        examples = {name: note(name, family, source) for name, family, source in NOTES[folder]}
        (root / folder / "examples.json").write_text(json.dumps(examples))
    return root


def test_notes_splits_and_heads(tmp_path: Path) -> None:
    manifest = build_manifest("nsynth", lay_out(tmp_path))
    assert manifest.column("split") == ["train", "train", "val", "test"]
    assert manifest.column("instrument")[0] == "bass_acoustic_001"  # by name within a split
    families = [manifest.heads["family"][k] for k in manifest.labels("family")]
    assert families == ["bass", "synth_lead", "guitar", "vocal"] and len(manifest.heads["family"]) == 11
    assert [manifest.heads["source"][k] for k in manifest.labels("source")] == [
        *("acoustic", "synthetic"),
        *("electronic", "acoustic"),
    ]
    assert manifest.labels("pitch").tolist() == [60, 21, 108, 60] and len(manifest.heads["pitch"]) == 128
    assert manifest.row(2).path == tmp_path / "nsynth-valid" / "audio" / "guitar_electronic_028-108-025.wav"


def test_missing_and_corrupt_members(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "data")
    for folder, name in (("nsynth-train", "bass_acoustic_001-060-050"), ("nsynth-test", "vocal_acoustic_014-060-100")):
        write_media(root / folder / "audio" / f"{name}.wav", seconds=0.2, video_codec=None, audio_codec="pcm_s16le")
    (root / "nsynth-valid/audio/guitar_electronic_028-108-025.wav").write_bytes(b"no sound" * 50)
    manifest = open_data("nsynth", root, cache_dir=tmp_path / "cache", workers=0)
    good, reasons = manifest.usable(audio=True)
    assert good.column("split") == ["train", "test"]
    assert reasons == {"file not found": 1, "not a media file": 1}


def test_an_absent_split_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = build_manifest("nsynth", lay_out(tmp_path, "nsynth-valid", "nsynth-test"))
    assert manifest.column("split") == ["val", "test"]
    assert "no nsynth-train/examples.json under" in caplog.text


def test_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no nsynth-train/examples\.json, .* under .*magenta"):
        build_manifest("nsynth", tmp_path)
    lay_out(tmp_path, "nsynth-test")
    file = tmp_path / "nsynth-test" / "examples.json"
    for changes, message in [
        ({"instrument_family": 11}, r"vocal-060-100: field 'instrument_family': 11 is not in 0\.\.10"),
        ({"pitch": "high"}, r"field 'pitch': 'high' is not in 0\.\.127"),
        ({"instrument_source": None}, r"field 'instrument_source': None"),
    ]:
        file.write_text(json.dumps({"vocal-060-100": note("vocal-060-100", 10, 0, **changes)}))
        with pytest.raises(DataError, match=message):
            build_manifest("nsynth", tmp_path)
    file.write_text('{"half": ')
    with pytest.raises(DataError, match=r"examples\.json: not JSON: .*unpack the archive again"):
        build_manifest("nsynth", tmp_path)
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match="must map names of notes to their fields"):
        build_manifest("nsynth", tmp_path)
