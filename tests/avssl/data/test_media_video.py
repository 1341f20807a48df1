"""Frames: the one on screen at the instant, at the size asked for, from every reader alike."""

import importlib.util
import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import frame_number, write_media
from packaging.requirements import Requirement

from avssl.data.media import MediaError, read_frames, video


@pytest.fixture(params=["packets", "pyav"])
def reader(request, monkeypatch):
    """Both ways of reading must agree; the second is normally a fallback."""
    if request.param == "pyav":
        monkeypatch.setattr(video, "TIMED", set())
    else:
        monkeypatch.setattr(video, "read_with_pyav", lambda *_: pytest.fail("the packets should have told"))
    return request.param


@pytest.mark.parametrize("fps", [1, 12.5, 25, 29.97, 60, 240])
def test_the_frame_on_screen(tmp_path, reader, fps):
    count = max(8, int(fps))
    path = write_media(tmp_path / "a.mp4", fps=fps, seconds=count / fps, audio_codec=None)
    wanted = [0, 1, count // 3, count // 2, count - 1]
    for share in (0.0, 0.2, 0.8):  # of the time that a frame is on
        frames = read_frames(path, (np.array(wanted) + share) / fps)
        assert frames.shape == (5, 48, 80, 3) and frames.dtype == np.uint8
        assert [frame_number(frame) for frame in frames] == wanted


def test_instants_on_the_border_belong_to_the_frame_that_starts(tmp_path, reader):
    path = write_media(tmp_path / "a.mp4", fps=25, audio_codec=None)
    assert [frame_number(frame) for frame in read_frames(path, np.arange(50) / 25)] == list(range(50))


def test_any_order_and_repeats(tmp_path, reader):
    path = write_media(tmp_path / "a.mp4", fps=25, audio_codec=None)
    assert [frame_number(frame) for frame in read_frames(path, [1.5, 0.1, 1.5, 0.0])] == [37, 2, 37, 0]


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, reader, extension):
    starts = [0.0, 0.1, 0.15, 0.5, 1.2, 1.25, 1.9]
    path = write_media(tmp_path / f"a.{extension}", frame_times=starts, audio_codec=None)
    frames = read_frames(path, [0.05, 0.14, 0.3, 0.51, 1.19, 1.22, 1.8, 1.95])
    assert [frame_number(frame) for frame in frames] == [0, 1, 2, 3, 3, 4, 5, 6]


def test_pictures_that_start_late_keep_their_place(tmp_path, reader):
    """The clock starts with the sound, 0.4 s before the first frame."""
    path = write_media(tmp_path / "a.mp4", frame_times=0.4 + np.arange(40) / 25, sample_rate=48000)
    with av.open(str(path)) as container:
        starts = [float(s.start_time * s.time_base) for s in container.streams]
    assert starts[0] - starts[1] == pytest.approx(0.4, abs=0.05)
    assert [frame_number(frame) for frame in read_frames(path, [0.2, 0.45, 1.0])] == [0, 1, 15]


@pytest.mark.parametrize(("extension", "codec"), [("webm", "libvpx-vp9"), ("mkv", "libx264"), ("mov", "mpeg4")])
def test_containers(tmp_path, reader, extension, codec):
    path = write_media(tmp_path / f"a.{extension}", video_codec=codec, audio_codec=None)
    assert [frame_number(frame) for frame in read_frames(path, [0.0, 0.5, 1.9])] == [0, 12, 47]


@pytest.mark.parametrize(("size", "wanted"), [((80, 48), (32, 53)), ((48, 80), (53, 32)), ((66, 50), (32, 42))])
def test_short_side_is_scaled_and_the_aspect_kept(tmp_path, reader, size, wanted):
    path = write_media(tmp_path / "a.mp4", size=size, audio_codec=None)
    frames = read_frames(path, [0.0, 1.0], size=32)
    assert frames.shape == (2, *wanted, 3)
    assert read_frames(path, [0.0], size=100).shape[1:3] == tuple(round(side * 100 / min(size)) for side in size[::-1])


def test_both_readers_give_the_same_pixels(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", audio_codec=None)
    by_packets = read_frames(path, [0.0, 1.0], size=32)
    monkeypatch.setattr(video, "TIMED", set())
    assert np.array_equal(by_packets, read_frames(path, [0.0, 1.0], size=32))


def test_without_decord_pyav_gives_the_same_frames(tmp_path):
    """There is no decord for some machines; where there is one it reads AVI with codecs that have no B-frames."""
    path = write_media(tmp_path / "a.avi", video_codec="mjpeg", audio_codec=None)
    code = """
import sys, types
import numpy as np
if sys.argv[1] == "blocked":
    sys.modules["decord"] = None
from avssl.data.media import MediaFile, video
assert "decord" not in sys.modules or sys.modules["decord"] is None, "decord is loaded at first use only"
if sys.argv[1] != "blocked":
    video.read_with_pyav = None
with MediaFile(sys.argv[2]) as file:
    np.save(sys.argv[3], file.frames([0.0, 0.5, 1.0, 1.9], 40))
"""
    frames = {}
    for decord in ("blocked", "there"):
        if decord == "there" and importlib.util.find_spec("decord") is None:
            pytest.skip("decord has no build for this machine")
        target = tmp_path / f"{decord}.npy"
        done = subprocess.run(
            [sys.executable, "-c", code, decord, str(path), str(target)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        frames[decord] = np.load(target)
    assert [frame_number(frame) for frame in frames["blocked"]] == [0, 12, 25, 47]
    assert np.abs(frames["blocked"].astype(int) - frames["there"]).mean() < 3


def test_a_little_past_the_end_is_the_last_frame_and_more_is_an_error(tmp_path, reader):
    path = write_media(tmp_path / "a.mp4", fps=25, audio_codec=None)
    assert frame_number(read_frames(path, [2.4])[0]) == 49
    with pytest.raises(MediaError, match="frame outside video") as caught:
        read_frames(path, [0.0, 2.6])
    assert caught.value.reason == "frame outside video" and "2.60 s" in str(caught.value)


def test_a_cut_off_file_gives_what_it_has(tmp_path):
    path = write_media(tmp_path / "whole.mp4", seconds=4.0, audio_codec=None, options={"movflags": "faststart"})
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    assert frame_number(read_frames(cut, [0.5])[0]) == 12
    with pytest.raises(MediaError):
        read_frames(cut, [3.9])


def test_decord_is_asked_for_only_where_it_has_a_build():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (decord,) = (Requirement(text) for text in project["dependencies"] if text.startswith("decord"))
    for machine, there in (("x86_64", True), ("AMD64", True), ("arm64", False), ("aarch64", False)):
        assert decord.marker.evaluate({"platform_machine": machine}) is there, machine


def test_decord_failing_is_only_a_debug_message(tmp_path, monkeypatch, caplog):
    pytest.importorskip("decord")
    path = write_media(tmp_path / "a.avi", video_codec="mjpeg", audio_codec=None)
    monkeypatch.setattr(video, "read_with_decord", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with caplog.at_level(logging.DEBUG, logger="avssl"):
        read_frames(path, [0.0])
    assert [record.levelname for record in caplog.records] == ["DEBUG"] and "broken" in caplog.text


def test_cover_art_is_not_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        packets = [*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode()]
        block = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        block.sample_rate = 16000
        for packet in [*packets, *sound.encode(block), *sound.encode()]:
            container.mux(packet)
    with pytest.raises(MediaError, match="no video stream"):
        read_frames(path, [0.0])


def test_reasons_for_files_without_pictures(tmp_path):
    write_media(tmp_path / "a.m4a", video_codec=None)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no pictures here\n" * 50)
    for name, reason in {"a.m4a": "no video stream", "empty.mp4": "empty file", "text.mp4": "not a media file",
                         "absent.mp4": "file not found"}.items():  # fmt: skip
        with pytest.raises(MediaError) as caught:
            read_frames(tmp_path / name, [0.0])
        assert caught.value.reason == reason


def test_bad_arguments():
    for times in ([], [-1.0], [float("nan")], [[0.0]]):
        with pytest.raises(ValueError, match="times must be"):
            read_frames("a.mp4", times)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        read_frames("a.mp4", [0.0], size=0)
