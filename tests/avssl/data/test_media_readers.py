"""Every container and codec that can be written here: each frame and each second of sound is where it was put."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import frame_number, noise, place_of, write_media

from avssl.data.media import MediaFile, probe, read_frames, video
from avssl.data.media.container import find_video, open_media

SECONDS, FPS, RATE = 4.0, 25, 48000
X264 = {"preset": "ultrafast", "x264-params": "bframes=3:scenecut=0:b-adapt=0"}
X264_OPEN = {"preset": "ultrafast", "x264-params": "bframes=3:scenecut=0:b-adapt=0:open-gop=1"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:b-adapt=0:open-gop=1"}
VPX = {"cpu-used": "8", "deadline": "realtime"}
SVT = {"preset": "8", "crf": "20", "svtav1-params": "lp=1:scm=0"}
B = {"bf": "2"}
# container -> its sound, and its pictures: name, encoder, options
CONTAINERS = {
    "mp4": ("aac", [("h264", "libx264", X264), ("h264_open", "libx264", X264_OPEN), ("hevc", "libx265", X265),
                    ("vp9", "libvpx-vp9", VPX), ("av1", "libsvtav1", SVT), ("mpeg1", "mpeg1video", B),
                    ("mpeg2", "mpeg2video", B), ("mpeg4", "mpeg4", B), ("mjpeg", "mjpeg", {})]),
    "mov": ("pcm_s16le", [("h264", "libx264", X264_OPEN), ("mpeg4", "mpeg4", B)]),
    "mkv": ("libopus", [("h264_open", "libx264", X264_OPEN), ("hevc", "libx265", X265), ("vp8", "libvpx", VPX),
                        ("mpeg2", "mpeg2video", B), ("mpeg4", "mpeg4", B), ("msmpeg4", "msmpeg4", {})]),
    "webm": ("libopus", [("vp8", "libvpx", VPX), ("vp9", "libvpx-vp9", VPX), ("av1", "libsvtav1", SVT)]),
    "avi": ("libmp3lame", [("h264", "libx264", X264), ("mpeg2", "mpeg2video", B), ("mpeg4", "mpeg4", B),
                           ("mpeg4_plain", "mpeg4", {})]),
    "flv": ("aac", [("h264_open", "libx264", X264_OPEN), ("hevc", "libx265", X265), ("flv1", "flv", {})]),
    "ts": ("mp2", [("h264_open", "libx264", X264_OPEN), ("hevc", "libx265", X265), ("mpeg2", "mpeg2video", B),
                   ("mpeg4", "mpeg4", {})]),
    "mpg": ("mp2", [("mpeg1", "mpeg1video", B)]),
    "vob": ("ac3", [("mpeg2", "mpeg2video", B)]),
    "wmv": ("wmav2", [("msmpeg4", "msmpeg4", {}), ("msmpeg4v2", "msmpeg4v2", {}), ("wmv1", "wmv1", {}),
                      ("wmv2", "wmv2", {}), ("h264", "libx264", X264), ("mjpeg", "mjpeg", {})]),
    "3gp": ("aac", [("h263", "h263", {}), ("mpeg4", "mpeg4", B)]),
    "ogv": ("flac", [("vp8", "libvpx", VPX)]),
}  # fmt: skip
CASES = [(extension, *picture) for extension, (_, pictures) in CONTAINERS.items() for picture in pictures]
# What an encoder's delay may add to where the sound is, and a container's rounding.
SOUND_TOLERANCE = 0.05


def written(path: Path, encoder: str, options: dict[str, str], gop: int, sound: str | None) -> Path:
    """A film of `SECONDS` whose frames show their number and whose sound is noise."""
    for name in (encoder, *([sound] if sound else [])):
        if name not in av.codecs_available:
            pytest.skip(f"this FFmpeg has no {name}")
    return write_media(path, seconds=SECONDS, size=(176, 144), sample_rate=RATE, video_codec=encoder, audio_codec=sound,
                       codec_options=options, gop=gop, waveform=noise(SECONDS, RATE))  # fmt: skip


def wrong_frames(file: MediaFile, start: float) -> dict[int, int]:
    """Frames that come where another should, one by one in any order; the first one is on screen at ``start``."""
    wrong = {}
    for k in (0, 1, 11, 12, 13, 97, 50, 49, 30, 99):
        number = frame_number(file.frames([start + (k + 0.5) / FPS])[0])
        if number != k:
            wrong[k] = number
    return wrong


def first_start(path: Path) -> float:
    """When the frame with number 0 begins: before the last frame of all that shows it, if a writer repeats it."""
    info = probe(path)
    assert info.video_start is not None and info.video_end is not None
    return info.video_end - SECONDS


@pytest.mark.parametrize("gop", [12, 60])
@pytest.mark.parametrize(("extension", "name", "encoder", "options"), CASES, ids=[f"{c[1]}.{c[0]}" for c in CASES])
def test_every_frame_is_where_it_was_put(tmp_path, extension, name, encoder, options, gop) -> None:
    sound = CONTAINERS[extension][0] if gop == 12 else None
    path = written(tmp_path / f"a.{extension}", encoder, options, gop, sound)
    info = probe(path)
    assert info.error == "" and info.video_error == "" and probe(path, deep=True) == info
    with MediaFile(path) as file:
        assert wrong_frames(file, first_start(path)) == {}
        together = file.frames(first_start(path) + (np.arange(100) + 0.5) / FPS, 72)
        assert [frame_number(frame) for frame in together] == list(range(100))
        if sound is None:
            return
        whole = noise(SECONDS, RATE)
        places = []
        for start in (0.2, 1.3, 2.4):
            piece = file.audio(start, 1.0, RATE).waveform
            places.append(start - place_of(piece, whole, RATE))
        assert max(places) - min(places) < 0.0015, "the same in every span"
        assert -0.001 < places[0] - first_start(path) < SOUND_TOLERANCE or abs(places[0]) < SOUND_TOLERANCE


def test_a_seek_in_an_avi_with_empty_chunks_shifts_nothing(tmp_path) -> None:
    """As ``ffmpeg -c copy`` makes it of H.264 with B-frames: more chunks than frames; the sound ends before."""
    path = write_media(tmp_path / "a.avi", frame_times=np.arange(250) / FPS, gop=50, codec_options=X264,
                       sample_rate=RATE, audio_codec="libmp3lame", waveform=noise(3.0, RATE))  # fmt: skip
    info = probe(path)
    assert info == probe(path, deep=True)
    times = info.video_start + (np.arange(0, 250, 7) + 0.25) / FPS  # before the middle: half a frame counts
    with MediaFile(path) as file:
        together = [frame_number(image) for image in file.frames(times)]
    assert [frame_number(read_frames(path, [time])[0]) for time in times] == together
    assert together == list(range(0, 250, 7)) and info.fps == FPS


@pytest.mark.parametrize("gop", [12, 60])
@pytest.mark.parametrize(
    ("container", "codec"), [(c, codec) for c, codecs in video.FOR_DECORD.items() for codec in sorted(codecs)]
)
def test_decord_is_exact_where_it_reads(tmp_path, container, codec, gop, monkeypatch) -> None:
    pytest.importorskip("decord")
    path = written(tmp_path / f"a.{container}", codec, {}, gop, "libmp3lame" if gop == 12 else None)
    monkeypatch.setattr(video, "read_with_pyav", lambda *_, **__: pytest.fail("decord should have read it"))
    with open_media(path) as opened:
        assert find_video(opened, path).codec_context.name in video.FOR_DECORD[container]
    with MediaFile(path) as file:
        assert wrong_frames(file, first_start(path)) == {}


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_pictures_are_upright_by_every_reader(tmp_path, extension, rotation, monkeypatch) -> None:
    path = write_media(tmp_path / f"a.{extension}", size=(80, 48), audio_codec=None, seconds=1.0, rotation=rotation)
    plain = write_media(tmp_path / f"b.{extension}", size=(80, 48), audio_codec=None, seconds=1.0)
    wanted = np.rot90(read_frames(plain, [0.5])[0], rotation // 90)
    size = wanted.shape[1], wanted.shape[0]
    info = probe(path)
    assert (info.width, info.height) == size and probe(path, deep=True) == info
    with MediaFile(path) as file:
        assert file.frame_size() == size
        assert np.array_equal(file.frames([0.5])[0], wanted)
        scaled = file.frames([0.5], 24)[0]
    assert scaled.shape == ((24, 40, 3) if rotation == 180 else (40, 24, 3))
    monkeypatch.setattr(video, "TIMED", set())
    assert np.array_equal(read_frames(path, [0.5])[0], wanted)
