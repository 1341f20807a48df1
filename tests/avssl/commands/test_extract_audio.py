import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from forked_tools import ForkedTools
from media_factory import noise, write_media

from avssl.commands import main
from avssl.commands.extract_audio import SUMMARY, extract_all
from avssl.data.clips import ClipDataset
from avssl.data.datasets import build_manifest
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.media import probe, read_audio
from avssl.data.media.probe import RESTARTS
from avssl.data.media.stream import stream_audio
from avssl.data.media.write import Extraction, extract_audio
from avssl.data.scan import scan

TOOL = Path(__file__).resolve().parents[3] / "tools" / "extract_audio.py"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    write_media(root / "P01/videos/P01_01.MP4", seconds=2.0, sample_rate=24000, waveform=noise(2.0, 24000))
    write_media(root / "P02/videos/P02_01.MP4", seconds=1.0, sample_rate=24000, layout="stereo")
    write_media(root / "P02/videos/silent.mp4", seconds=1.0, audio_codec=None)
    (root / "P02/videos/broken.mp4").write_bytes(b"not a video" * 100)
    return root


def test_silence_before_late_sound_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_media(tmp_path / "in" / "late.mov", seconds=3.0, audio_codec="pcm_s16le", audio_start=1.5)
    write_media(tmp_path / "in" / "fine.mov", seconds=1.0, audio_codec="pcm_s16le")
    command = ["extract-audio", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 0
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert summary["late"] == {str(tmp_path / "in" / "late.mov"): pytest.approx(1.5)}
    assert "1 begin with silence" in capsys.readouterr().out


def test_recordings_joined_in_one_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    (tmp_path / "in").mkdir()
    parts = [
        write_media(tmp_path / f"{seconds}.ogg", seconds=seconds, video_codec=None, audio_codec="libopus",
                    sample_rate=48000).read_bytes()
        for seconds in (3.0, 4.0)
    ]  # fmt: skip
    (tmp_path / "in" / "joined.ogg").write_bytes(b"".join(parts))
    (tmp_path / "in" / "fine.ogg").write_bytes(parts[0])
    command = ["extract-audio", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 0
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert summary["warnings"] == {str(tmp_path / "in" / "joined.ogg"): RESTARTS}
    assert "1 in part: timestamps start over, used up to there" in capsys.readouterr().out
    assert "joined.ogg: timestamps start over, used up to there (3.0" in caplog.text


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_clips_of_extracted_sound_are_those_of_the_video(tmp_path: Path, format: str) -> None:
    """Not of the silence that stands for what there is not."""
    wave = noise(2.5, 16000)
    write_media(tmp_path / "a.mov", seconds=4.0, audio_codec="pcm_s16le", audio_start=1.5, waveform=wave)
    extract_all(
        Manifest.from_rows([{"clip_id": "a", "path": "a.mov"}], tmp_path),
        tmp_path / "out",
        format=format,
        workers=0,
        progress=False,
    )
    target = tmp_path / "out" / f"a.{format}"
    for deep in (None, True):
        assert (probe(target, deep=deep).audio_start, probe(target, deep=deep).audio_end) == pytest.approx((1.5, 4.0))
    clips = []
    for folder, name in ((tmp_path, "a.mov"), (target.parent, target.name)):
        scanned = scan(Manifest.from_rows([{"clip_id": "a", "path": name}], folder), workers=0, progress=False)
        dataset = ClipDataset(scanned, modalities=("audio",), clip_seconds=1.0, mode="uniform", clips_per_item=3)
        clips.append([(round(clip.start, 6), clip.audio) for clip in dataset[0, 0].clips])
    for (start, sound), (other, same) in zip(*clips, strict=True):
        assert start == other >= 1.5
        np.testing.assert_array_equal(sound, same)
    covered: list[tuple[float, float]] = []
    assert sum(map(len, stream_audio(target, 16000, covered=covered))) == 64000
    assert covered == [pytest.approx((1.5, 4.0))]


@pytest.mark.parametrize("format", ["flac", "wav"])
@pytest.mark.parametrize("audio_start", [0.0, 0.5])
def test_any_span_of_the_sound_file_is_that_of_the_video(tmp_path: Path, format: str, audio_start: float) -> None:
    source = write_media(
        tmp_path / "a.mkv",
        seconds=3.0,
        sample_rate=24000,
        waveform=noise(2.5, 24000),
        audio_codec="pcm_s16le",
        audio_start=audio_start,
    )
    done = extract_audio(Extraction(str(source), str(tmp_path / f"a.{format}")))
    assert done.error == "" and done.seconds == pytest.approx(2.5 + audio_start, abs=0.001)
    info = probe(done.target)
    assert (info.sample_rate, info.channels, info.error) == (24000, 1, "")
    for start, seconds in ((0.0, 2.4), (0.5, 1.0), (1.337, 0.5)):
        kept = read_audio(done.target, start, seconds, 24000).waveform
        np.testing.assert_array_equal(kept, read_audio(source, start, seconds, 24000).waveform)  # 16 bits of 16 bits
    again = read_audio(done.target, 1.0, 1.0, 16000).waveform
    np.testing.assert_allclose(again, read_audio(source, 1.0, 1.0, 16000).waveform, atol=1e-6)


def test_lossy_stereo_at_another_rate(tmp_path: Path) -> None:
    sound = np.stack([noise(2.0, 44100, seed=1), noise(2.0, 44100, seed=2)])
    source = write_media(tmp_path / "a.mp4", seconds=2.0, sample_rate=44100, layout="stereo", waveform=sound)
    done = extract_audio(Extraction(str(source), str(tmp_path / "deep/er/a.flac"), sample_rate=16000))
    assert probe(done.target).sample_rate == 16000
    expected = read_audio(source, 0.2, 1.5, 16000).waveform
    got = read_audio(done.target, 0.2, 1.5, 16000).waveform
    assert np.abs(got - expected).max() < 2e-3 < 0.1 < np.abs(expected).max()


def test_too_loud_is_clipped_and_never_wraps(tmp_path: Path) -> None:
    loud = (1.8 * np.sin(np.arange(16000) / 10)).astype("f4")
    source = write_media(tmp_path / "a.wav", seconds=1.0, waveform=loud, video_codec=None, audio_codec="pcm_f32le")
    done = extract_audio(Extraction(str(source), str(tmp_path / "out" / "a.wav")))
    got = read_audio(done.target, 0.0, 1.0).waveform
    np.testing.assert_allclose(got, np.clip(loud, -1, 32767 / 32768), atol=1 / 32768)


def test_a_folder_of_videos_and_again(videos: Path, tmp_path: Path, forked_tools: ForkedTools) -> None:
    output = tmp_path / "audio"
    options = ["--data", str(videos), "--output", str(output), "--workers", "1"]
    done = forked_tools.run(TOOL, options, environment=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 files: 2 extracted (0.00 h of sound), 0 there already, 2 failed" in done.stdout
    assert "1 x no audio stream" in done.stdout and "1 x not a media file" in done.stdout
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    assert files == ["P01/videos/P01_01.flac", "P02/videos/P02_01.flac", SUMMARY]
    summary = json.loads((output / SUMMARY).read_text())
    assert summary["reasons"] == {"no audio stream": 1, "not a media file": 1}
    assert set(summary["failures"]) == {str(videos / f"P02/videos/{name}.mp4") for name in ("broken", "silent")}
    assert summary["hours"] * 3600 == pytest.approx(3.0, abs=0.1)

    stamp = (output / "P01/videos/P01_01.flac").stat().st_mtime_ns
    (output / "P02/videos/P02_01.flac").unlink()  # as if the run had been stopped before it
    summary = extract_all(build_manifest("folder", videos), output, workers=0)
    assert (summary.extracted, summary.there, len(summary.failures)) == (1, 1, 2)
    assert (output / "P01/videos/P01_01.flac").stat().st_mtime_ns == stamp


def test_epic_kitchens_finds_the_extracted_sound(videos: Path, tmp_path: Path) -> None:
    folder = videos / "annotations"
    folder.mkdir()
    (folder / "EPIC_100_verb_classes.csv").write_text("id,key\n0,take\n")
    (folder / "EPIC_100_noun_classes.csv").write_text("id,key\n0,tap\n")
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    for name, video in (("train", "P01_01"), ("validation", "P03_01")):
        row = f"{video}_0,{video[:3]},{video},00:00:00.5,00:00:01.5,0,0\n"
        (folder / f"EPIC_100_{name}.csv").write_text(header + row)
    summary = extract_all(build_manifest("epic-kitchens", videos), videos / "audio", workers=0)
    assert (summary.extracted, dict(summary.reasons)) == (1, {"file not found": 1})
    row = build_manifest("epic-kitchens", videos, prefer_audio_files=True).row(0)
    assert row.path == videos / "audio/P01/videos/P01_01.flac"
    elsewhere = build_manifest("epic-kitchens", videos / "audio", annotations=str(folder))
    assert elsewhere.row(0).path == row.path
    assert build_manifest("epic-kitchens", videos).row(0).path == videos / "P01/videos/P01_01.MP4"


def test_beside_the_videos_nothing_is_overwritten(tmp_path: Path) -> None:
    write_media(tmp_path / "a.mp4", seconds=0.5)
    write_media(tmp_path / "a.mkv", seconds=0.5)
    write_media(tmp_path / "b.flac", seconds=0.5, video_codec=None, audio_codec="flac")
    before = (tmp_path / "b.flac").read_bytes()
    summary = extract_all(build_manifest("folder", tmp_path), tmp_path, workers=0)
    assert (summary.extracted, summary.there) == (1, 1)
    assert summary.failures == {str(tmp_path / "a.mp4"): "same name as another file (a.mkv)"}
    assert (tmp_path / "b.flac").read_bytes() == before
    again = extract_all(build_manifest("folder", tmp_path), tmp_path, workers=0)  # now lists a.flac, too
    assert (again.extracted, again.there, len(again.failures)) == (0, 3, 1)


def test_what_a_killed_run_left_is_removed(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "P01" / "videos"
    folder.mkdir(parents=True)
    theirs, ours = ".P01_08.0123456789ab.tmp.flac", ".P01_01.0123456789ab.tmp.flac"
    for name, age in ((theirs, 7200), (ours, -7200)):  # by the clock, which may be wrong, nothing is judged
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    extract_all(build_manifest("folder", videos), tmp_path / "out", workers=0)
    assert sorted(file.name for file in folder.iterdir()) == [theirs, "P01_01.flac"]


def test_other_settings_want_another_folder(videos: Path, tmp_path: Path) -> None:
    manifest = build_manifest("folder", videos)
    extract_all(manifest, tmp_path / "out", workers=0)
    with pytest.raises(DataError, match=r"extract_audio\.json: was extracted with .*None.*16000.*another --output"):
        extract_all(manifest, tmp_path / "out", sample_rate=16000, workers=0)
    (tmp_path / "out" / SUMMARY).write_text("{}")
    with pytest.raises(DataError, match="not the summary of an extraction"):
        extract_all(manifest, tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="format: must be flac or wav, got 'mp3'"):
        extract_all(manifest, tmp_path / "other", format="mp3")
    with pytest.raises(ValueError, match="sample-rate: must be at least 1 Hz, got 0"):
        extract_all(manifest, tmp_path / "other", sample_rate=0)


def test_a_cut_off_source_leaves_no_file(tmp_path: Path) -> None:
    short = write_media(tmp_path / "short.mkv", seconds=4.0, waveform=noise(1.0, 16000))
    done = extract_audio(Extraction(str(short), str(tmp_path / "short.flac")))
    assert done.error == "" and done.seconds == pytest.approx(1.0, abs=0.1)  # only its sound ends early
    source = write_media(tmp_path / "a.mkv", seconds=4.0, waveform=noise(4.0, 16000), audio_codec="pcm_s16le")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    done = extract_audio(Extraction(str(source), str(tmp_path / "out" / "a.flac")))
    there = probe(source, deep=False).duration
    assert there is not None and there < 3.0  # the header says 4 s
    assert done.error == "file cut off" and done.detail.endswith(" of 4.00 s")
    assert list((tmp_path / "out").iterdir()) == []


def test_errors_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract-audio", "--data", "epic-kitchen", "--output", str(tmp_path)]) == 1
    assert "did you mean 'epic-kitchens'" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"no video" * 99)
    arguments = ["--data", str(tmp_path / "bad"), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main(["extract-audio", *arguments]) == 1  # nothing at all was extracted
    assert "1 x not a media file" in capsys.readouterr().out
