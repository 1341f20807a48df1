"""Clips lie where the streams run that they need: cut clips, late sound, one picture, pictures shorter than sound."""

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_factory import frame_number, noise, write_media

from avssl.commands.prepare import PrepareOptions, prepare
from avssl.config import DataConfig
from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.manifest import Manifest
from avssl.data.media import read_audio, read_frames
from avssl.data.scan import report_lines, scan, scan_report
from avssl.data.shards import encode
from avssl.data.shards.encode import Settings
from avssl.data.shards.sample import open_source
from avssl.data.shards.write import write_cache
from avssl.data.spans import NO_COMMON_TIME, OUTSIDE, TOO_LITTLE
from avssl.data.splits import open_splits
from avssl.data.windows import cut_into_windows

MADE, RATE, FPS, SECONDS = 48000, 16000, 25, 8.0
NEEDS = (("audio",), ("video",), ("audio", "video"))
# Of each file, seconds between which sound and pictures run.
SPANS = {
    "cut.mp4": ((0.0, 6.0), (1.8, 6.0)),
    "late.mp4": ((3.0, 8.0), (0.0, 8.0)),
    "one.mp4": ((0.0, 8.0), (0.0, 0.04)),
    "brief.mp4": ((0.0, 8.0), (0.0, 2.0)),
    "apart.mov": ((4.0, 6.0), (0.0, 2.0)),
}
WAVE = noise(SECONDS, MADE)


def cut_copy(source: Path, target: Path, start: float, pictures: float) -> Path:
    """What ``ffmpeg -ss START -i SOURCE -c copy`` makes: sound from START on, pictures from a later keyframe on."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
        begun: dict[int, bool] = {}
        for packet in given.demux():
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            index, time = packet.stream_index, float(packet.pts * packet.time_base)
            sound = packet.stream.type == "audio"
            begun[index] = begun.get(index, False) or (
                time >= start if sound else packet.is_keyframe and time > pictures
            )
            if begun[index]:
                shift = round(Fraction(start) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, streams[index]
                made.mux(packet)
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    options: dict[str, Any] = {"seconds": SECONDS, "fps": FPS, "sample_rate": MADE, "waveform": WAVE}
    whole = write_media(tmp_path_factory.mktemp("whole") / "whole.mp4", **options)
    cut_copy(whole, folder / "cut.mp4", 2.0, 3.8)  # a keyframe every 0.48 s
    write_media(folder / "late.mp4", **options | {"audio_start": 3.0, "waveform": WAVE[3 * MADE :]})
    write_media(folder / "one.mp4", **options | {"frame_times": np.asarray([0.0])})
    write_media(folder / "brief.mp4", **options | {"frame_times": np.arange(50) / FPS})
    write_media(folder / "apart.mov", **options | {"seconds": 2.0, "audio_start": 4.0, "waveform": WAVE[: 2 * MADE]})
    return folder


def listed(root: Path, **columns: Any) -> Manifest:
    return Manifest.from_rows([{"clip_id": name, "path": name, "split": "train"} | columns for name in SPANS], root)


@pytest.fixture(scope="module")
def scanned(root: Path) -> Manifest:
    return scan(listed(root), workers=0, progress=False)


def common(name: str, needs: Sequence[str]) -> tuple[float, float]:
    spans = [SPANS[name][("audio", "video").index(need)] for need in needs]
    return max(low for low, _ in spans), min(high for _, high in spans)


@pytest.mark.parametrize("deep", [None, True])
def test_a_scan_tells_when_each_stream_runs(root: Path, deep: bool | None) -> None:
    result = scan(listed(root), workers=0, progress=False, deep=deep)
    for row, (sound, pictures) in enumerate(SPANS.values()):
        found = [result.column(name)[row] for name in ("audio_start", "audio_end", "video_start", "video_end")]
        assert found == pytest.approx([*sound, *pictures], abs=0.09), result.column("path")[row]
        assert result.column("duration")[row] == max(found)


@pytest.mark.parametrize("needs", NEEDS)
def test_spans_are_what_all_needed_streams_have(scanned: Manifest, needs: tuple[str, ...]) -> None:
    lows, highs = scanned.spans(needs)
    for row, name in enumerate(SPANS):
        assert scanned.row(row).span(needs) == (lows[row], highs[row])
        assert (lows[row], highs[row]) == pytest.approx(common(name, needs), abs=0.09), name


def heard_at(sound: np.ndarray) -> float:
    """The second of the recording from which a piece of sound at 16 kHz comes."""
    recording = WAVE[:: MADE // RATE]
    size = len(recording) + len(sound)
    product = np.fft.rfft(recording, size) * np.conj(np.fft.rfft(sound, size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return (lag if lag < len(recording) else lag - size) / RATE


@pytest.mark.parametrize("needs", NEEDS)
@pytest.mark.parametrize("mode", ["random", "center", "uniform"])
def test_every_clip_is_full_and_lies_in_its_span(scanned: Manifest, needs: tuple[str, ...], mode: str) -> None:
    count = 1 if mode == "center" else 4
    options: dict[str, Any] = {"clip_seconds": 1.0, "num_frames": 3, "frame_size": 48, "mode": mode, "retries": 0}
    dataset = ClipDataset(scanned, modalities=needs, clips_per_item=count, **options)  # type: ignore[arg-type]
    for row, name in enumerate(SPANS):
        item, (low, high) = dataset[3, row], common(name, needs)
        # One picture is enough where no sound is wanted: only sound is padded.
        reason = NO_COMMON_TIME if high < low else TOO_LITTLE if high - low < 0.05 and len(needs) == 2 else ""
        assert [failure.reason for failure in item.failures] == ([reason] if reason else []), name
        assert len(item.clips) == (0 if reason else count)
        for clip in item.clips:
            assert low - 0.09 <= clip.start <= max(low, high - 1.0) + 0.09, name
            if clip.audio is not None:
                assert clip.audio_fraction > 0.99, name
                # cut.mp4 holds the recording from second 2 on, apart.mov from its beginning, at second 4.
                moved = {"cut.mp4": 2.0, "apart.mov": -4.0}.get(name, 0.0)
                assert heard_at(clip.audio) == pytest.approx(clip.start + moved, abs=0.05), name


@pytest.mark.parametrize("name", ["cut.mp4", "late.mp4", "brief.mp4"])
def test_sound_and_pictures_of_one_instant_belong_together(scanned: Manifest, name: str) -> None:
    row = scanned.row(list(SPANS).index(name))
    low, high = row.span(("audio", "video"))
    times = np.linspace(low + 0.1, high - 0.6, 4)
    shown = np.asarray([frame_number(frame) for frame in read_frames(row.path, times)]) / FPS
    heard = np.asarray([heard_at(read_audio(row.path, time, 0.5, RATE).waveform) for time in times])
    assert ((heard - shown > -0.03) & (heard - shown < 1 / FPS + 0.03)).all()


def test_windows_of_sound_alone_look_at_no_picture(scanned: Manifest) -> None:
    windows, rows = cut_into_windows(scanned, 1.0, "all", modalities=("audio",))
    counts = {name: int((rows == row).sum()) for row, name in enumerate(SPANS)}
    assert counts == {"cut.mp4": 6, "late.mp4": 5, "one.mp4": 8, "brief.mp4": 8, "apart.mov": 2}
    dataset = ClipDataset(windows, modalities=("audio",), clip_seconds=1.0, mode="center")
    items = [dataset[0, row] for row in range(len(windows))]
    assert [(item.failures, item.clips[0].audio_fraction > 0.95) for item in items] == [([], True)] * len(windows)
    both, rows = cut_into_windows(scanned, 1.0, "all", modalities=("audio", "video"))
    assert {name: int((rows == row).sum()) for row, name in enumerate(SPANS)} == {
        "cut.mp4": 5, "late.mp4": 5, "one.mp4": 1, "brief.mp4": 2, "apart.mov": 0,
    }  # fmt: skip
    assert both.column("start")[0] == pytest.approx(1.84, abs=0.05)


def test_segments_are_judged_by_the_streams_that_are_needed(root: Path) -> None:
    segments = {"late.mp4": (0.0, 2.0), "brief.mp4": (1.0, 4.0), "cut.mp4": (0.0, 4.0), "apart.mov": (0.0, 6.0),
                "one.mp4": (7.0, 12.0)}  # fmt: skip
    rows = [{"clip_id": name, "path": name, "start": low, "end": high} for name, (low, high) in segments.items()]
    result = scan(Manifest.from_rows([*rows, {"clip_id": "past", "path": "cut.mp4", "start": 7.0}], root), workers=0)
    assert result.reasons(audio=True) == [OUTSIDE, "", "", "", "", OUTSIDE]
    assert result.reasons(video=True) == ["", "", "", "", OUTSIDE, OUTSIDE]
    assert result.reasons(audio=True, video=True) == [OUTSIDE, "", "", NO_COMMON_TIME, OUTSIDE, OUTSIDE]
    assert result.column("error") == ["", "", "", "", "", OUTSIDE]
    report = scan_report(result)
    assert report["usable"] == {"audio": 4, "video": 4, "both": 2}
    # Sound: apart (from 4.0 s) and one (to 8.0 s); pictures: brief (to 2.0 s), cut (from 1.84 s), apart (to 2.0 s).
    assert report["cut_short"] == {"audio": 2, "video": 3, "both": 2}
    told = "\n".join(report_lines(report))
    assert "1 clips: sound and pictures never at the same time" in told and "apart.mov" in told
    assert "their clips will be shorter: sound 2, pictures 3, both 2" in told


def test_the_report_says_where_streams_do_not_overlap(scanned: Manifest) -> None:
    report = scan_report(scanned)
    assert report["apart"]["clips"] == 1 and report["overlap"]["clips"] == 4
    (told,) = report["apart"]["examples"]
    assert told.startswith("apart.mov: sound 3.98 to 6.") and told.endswith("s, pictures 0.00 to 2.00 s")
    hours = report["usable_hours"]
    assert hours["audio"] * 3600 == pytest.approx(6 + 5 + 8 + 8 + 2, abs=0.3)
    assert hours["both"] * 3600 == pytest.approx(4.16 + 5 + 0.04 + 2, abs=0.3)


def test_a_run_counts_clips_that_would_be_padding(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "listed.parquet"
    listed(root).save(file)
    config = DataConfig(name=str(file), clip_seconds=6.0, frame_size=16)
    with caplog.at_level(logging.WARNING):
        splits = open_splits(config, modalities=("audio", "video"), labelled=False)
    assert splits.train.column("clip_id") == ["cut.mp4", "late.mp4", "brief.mp4"]
    assert splits.coverage["train"]["reasons"] == {TOO_LITTLE: 1, NO_COMMON_TIME: 1}
    assert (
        splits.coverage["train"]["mostly_padding"] == 1 and "of 1 clips of 6 s more than half is padding" in caplog.text
    )
    # Both streams run together for 4.16 s in cut.mp4, for 5 in late.mp4 and for 2 in brief.mp4.
    assert splits.coverage["train"]["shorter"] == 3
    assert "3 of 3 clips are shorter than data.clip_seconds, 6 s: " in caplog.text
    splits = open_splits(config, modalities=("audio",), labelled=False)
    assert len(splits.train) == 5 and splits.coverage["train"]["reasons"] == {}


def test_a_deep_look_calls_none_of_them_corrupt(root: Path, tmp_path: Path) -> None:
    options = PrepareOptions(str(root), tmp_path / "deep.parquet", workers=0, deep=True, clip_seconds=1.0)
    report = prepare(options, lambda line: None)
    found = {name: finding["clips"] for name, finding in report["findings"].items() if finding["clips"]}
    assert report["errors"] == {} and found == {"apart": 1}


@pytest.mark.parametrize("needs", NEEDS)
def test_a_cache_gives_the_clips_of_the_originals(
    scanned: Manifest, tmp_path: Path, needs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WINDOW", 1.0)  # some stretches of the files have no pictures at all
    write_cache(scanned, str(tmp_path / "cache"), Settings(short_side=48, quality=95), workers=0, progress=False)
    cached = open_data(str(tmp_path / "cache"))
    for name in ("audio_start", "audio_end", "video_start", "video_end"):
        assert cached.column(name) == scanned.column(name)
    options: dict[str, Any] = {"clip_seconds": 1.0, "num_frames": 3, "frame_size": 48, "mode": "uniform"}
    one, other = (
        ClipDataset(manifest, modalities=needs, clips_per_item=3, **options)  # type: ignore[arg-type]
        for manifest in (scanned, cached)
    )
    for row, name in enumerate(SPANS):
        first, second = one[0, row], other[0, row]
        assert [f.reason for f in first.failures] == [f.reason for f in second.failures], name
        for a, b in zip(first.clips, second.clips, strict=True):
            assert a.start == b.start and a.audio_fraction == pytest.approx(b.audio_fraction, abs=1e-3)
            if a.audio is not None and b.audio is not None:
                assert np.abs(a.audio - b.audio).max() < 2e-2  # an AAC decoder fills noisy bands with random numbers
            if a.video is not None and b.video is not None:
                assert np.abs(a.video.astype(int) - b.video).mean() < 4


def test_a_manifest_without_spans_is_scanned_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    rows = [{"clip_id": "a", "path": "late.mp4", "duration": 5.0, "has_audio": True, "has_video": True}]
    old = Manifest.from_rows(rows, root)
    gone = ("audio_start", "audio_end", "video_start", "video_end", "warning")
    object.__setattr__(old, "table", old.table.drop_columns(list(gone)))
    old.save(tmp_path / "old.parquet")
    assert not Manifest.load(tmp_path / "old.parquet").scanned
    opened = open_data(str(tmp_path / "old.parquet"))
    assert opened.scanned and opened.row(0).span(("audio", "video")) == pytest.approx((3.0, 8.0), abs=0.09)
    opened.save(tmp_path / "new.parquet")
    assert Manifest.load(tmp_path / "new.parquet").digest == opened.digest
    assert open_data(str(tmp_path / "new.parquet")).digest == opened.digest


@pytest.mark.realdata
def test_real_cut_clips_are_usable(cases: Path) -> None:
    rows = [{"clip_id": f"{k}", "path": f"cut/{k}.mp4"} for k in range(8)]
    starts = [4.70, 3.73, 2.76, 1.79, 0.82, 4.85, 3.88, 2.91]
    result = scan(Manifest.from_rows(rows, cases), workers=0)
    dataset = ClipDataset(result, clip_seconds=2.0, num_frames=4, frame_size=64, mode="uniform", clips_per_item=3)
    for row, start in enumerate(starts):
        assert result.row(row).span(("audio", "video")) == pytest.approx((start, 10.0), abs=0.05)
        assert result.row(row).span(("audio",)) == pytest.approx((0.0, 10.0), abs=0.05)
        item = dataset[0, row]
        assert item.failures == [] and [clip.audio_fraction > 0.99 for clip in item.clips] == [True] * 3


@pytest.mark.realdata
def test_real_stills_and_late_sound(cases: Path) -> None:
    names = ["still/one_frame.mp4", "still/video5s_audio30s.mp4", "late/audio_late_8.mp4"]
    rows = [{"clip_id": name, "path": name} for name in names]
    result = scan(Manifest.from_rows(rows, cases), workers=0)
    assert [result.row(row).span(("audio",)) for row in range(3)] == [
        pytest.approx(span, abs=0.03) for span in ((0.0, 30.0), (0.0, 30.0), (8.0, 30.0))
    ]
    assert result.row(1).span(("audio", "video")) == pytest.approx((0.0, 5.08), abs=0.03)
    assert result.row(2).span(("audio", "video")) == pytest.approx((8.0, 30.0), abs=0.03)
    windows, index = cut_into_windows(result, 1.0, "all", modalities=("audio",))
    assert np.bincount(index).tolist() == [30, 30, 22]
    dataset = ClipDataset(windows, modalities=("audio",), clip_seconds=1.0, mode="center")
    items = [dataset[0, row] for row in range(len(windows))]
    assert [(item.failures, item.clips[0].audio_fraction > 0.99) for item in items] == [([], True)] * len(windows)


@pytest.mark.realdata
def test_a_cached_phone_video_is_upright(cases: Path, tmp_path: Path) -> None:
    rows = [{"clip_id": "a", "path": "rotated/rot90b.mp4"}]
    result = scan(Manifest.from_rows(rows, cases), workers=0)
    assert (result.column("width"), result.column("height")) == ([240], [320])
    write_cache(result, str(tmp_path / "cache"), Settings(short_side=120, quality=95), workers=0, progress=False)
    cached = open_data(str(tmp_path / "cache"))
    times = np.linspace(0.2, 1.8, 4)
    with open_source(result.row(0).path) as original, open_source(cached.row(0).path) as sample:
        shown, kept = original.frames(times, 120), sample.frames(times, 120)
    assert shown.shape == kept.shape == (4, 160, 120, 3)
    error, turned = (np.abs(shown.astype(int) - frames).mean() for frames in (kept, kept[:, ::-1, ::-1]))
    assert error < 8 and turned > 5 * error
    assert (cached.column("width"), cached.column("height")) == ([120], [160])
