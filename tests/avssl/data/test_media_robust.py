"""One process reads every bad file, over and over, and neither dies nor grows."""

import csv
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from media_factory import write_media

from avssl.data.media import MediaError, probe, read_audio, read_frames

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors through /proc")


def use(path: Path) -> set[str]:
    """Ask a file for everything; returns what it gave and its reasons for the rest. Any other exception is a bug."""
    info = probe(path)
    outcomes = {info.error} - {""}
    for start in (0.0, (info.duration or 0.0) / 2):
        try:
            clip = read_audio(path, start, 0.5)
            assert clip.waveform.shape == (8000,) and np.isfinite(clip.waveform).all() and 0 < clip.valid <= 1
            outcomes.add("audio")
        except MediaError as error:
            outcomes.add(error.reason)
        try:
            frames = read_frames(path, [start, start + 0.02], size=48)
            assert frames.dtype == np.uint8 and frames.shape[0] == 2 and min(frames.shape[1:3]) == 48
            outcomes.add("video")
        except MediaError as error:
            outcomes.add(error.reason)
    return outcomes


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def assert_flat(paths: list[Path], opens: int) -> None:
    """Descriptors and memory do not grow over ``opens`` openings (`use` does five a file)."""
    for _ in range(2):  # allocator arenas, codec tables, fallbacks
        for path in paths:
            use(path)
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident_megabytes()
    for _ in range(max(1, opens // (5 * len(paths)))):
        for path in paths:
            use(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident_megabytes() - memory < 50


@pytest.fixture(scope="module")
def bad_media(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    whole = write_media(folder / "whole.mp4", options={"movflags": "faststart"}).read_bytes()
    late = write_media(folder / "late_index.mp4").read_bytes()
    random = np.random.default_rng(0)
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"this is a text\n" * 100,
        "cut.mp4": whole[: len(whole) * 6 // 10],
        "cut_index.mp4": late[: len(late) * 9 // 10],
        "header_only.mp4": whole[: whole.index(b"mdat") + 4],
        "noise.mp4": random.bytes(20_000),
    }
    for seed in range(6):
        damaged = bytearray(whole)
        for position in np.random.default_rng(seed).integers(40, len(whole), 30):
            damaged[position] ^= 0xFF
        contents[f"damaged{seed}.mp4"] = bytes(damaged)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    write_media(folder / "silent.mp4", audio_codec=None)
    write_media(folder / "blind.mp4", video_codec=None)
    write_media(folder / "slow.mp4", fps=1)
    write_media(folder / "fast.mp4", fps=240, seconds=0.6)
    write_media(folder / "phone.mp4", sample_rate=8000)
    write_media(folder / "studio.mkv", sample_rate=192000, audio_codec="pcm_s16le")
    write_media(folder / "cinema.mp4", sample_rate=48000, layout="7.1")
    write_media(folder / "broadcast.ts", video_codec="mpeg2video", audio_codec="mp2", sample_rate=48000)
    write_media(folder / "old.avi", video_codec="mpeg4", audio_codec="libmp3lame")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_every_bad_file_is_read_or_reported(bad_media, capfd):
    outcomes = {name: use(path) for name, path in bad_media.items()}
    both = {"audio", "video"}
    assert outcomes["whole.mp4"] == both
    assert outcomes["empty.mp4"] == {"empty file"}
    assert outcomes["text.mp4"] == outcomes["noise.mp4"] == outcomes["cut_index.mp4"] == {"not a media file"}
    assert outcomes["silent.mp4"] == {"video", "no audio stream"}
    assert outcomes["blind.mp4"] == {"audio", "no video stream"}
    assert both <= outcomes["cut.mp4"]
    assert not both & outcomes["header_only.mp4"]
    for name in ("slow", "fast", "phone", "cinema"):
        assert outcomes[f"{name}.mp4"] == both, name
    assert outcomes["studio.mkv"] == outcomes["broadcast.ts"] == outcomes["old.avi"] == both
    assert capfd.readouterr().err == "", "a log must stay readable"


@needs_proc
def test_descriptors_and_memory_stay_flat(bad_media):
    assert_flat(list(bad_media.values()), opens=400)


@pytest.mark.realdata
def test_odd_media_are_read_or_reported(real_data, capfd):
    """At least what ffprobe says is there (`index.csv`); a file has more outcomes than one if it is cut off."""
    with open(real_data / "odd_media/index.csv") as file:
        listed = [row["file"] for row in csv.DictReader(file)]
    outcomes = {path.name: use(path) for path in sorted((real_data / "odd_media").glob("*__*"))}
    assert len(outcomes) >= 44 and set(outcomes) <= set(listed)
    # A stream whose frame size no header gives; timestamps that claim a third more time than there are samples.
    no_pictures, no_sound = {"av__pmtchange.mp4"}, {"a__ergon.wav"}
    for name, got in outcomes.items():
        kinds = name.split("__")[0]
        if "a" in kinds and kinds != "bad" and name not in no_sound:
            assert "audio" in got, (name, got)
        if "v" in kinds and name not in no_pictures:
            assert "video" in got, (name, got)
    assert capfd.readouterr().err == ""


@pytest.mark.realdata
@needs_proc
def test_odd_media_leave_no_trace(real_data):
    small = [p for p in sorted((real_data / "odd_media").glob("*__*"))[::2] if p.stat().st_size < 100_000]
    assert_flat(small, opens=100)
