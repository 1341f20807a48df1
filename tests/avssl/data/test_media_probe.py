"""Probing: the facts of good files, and a distinct reason for each kind of bad one."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import pytest
from media_factory import write_media

from avssl.data.media import MediaError, MediaFile, probe, read_audio, read_frames
from avssl.data.media import video as video_module
from avssl.limits import Limits


def test_facts_of_sound_and_pictures(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=2.0, fps=25, size=(80, 48), sample_rate=44100, layout="stereo")
    info = probe(path)
    assert (info.path, info.error, info.audio_error, info.video_error) == (str(path), "", "", "")
    assert (info.has_audio, info.sample_rate, info.channels, info.audio_codec) == (True, 44100, 2, "aac")
    assert (info.has_video, info.width, info.height, info.video_codec) == (True, 80, 48, "h264")
    assert info.fps == pytest.approx(25)
    assert info.duration == pytest.approx(2.0, abs=0.05)
    assert (info.audio_start, info.video_start) == (0.0, 0.0)
    assert (info.audio_end, info.video_end) == (pytest.approx(2.0, abs=0.05), pytest.approx(2.0, abs=0.05))
    assert probe(path, deep=True) == info


def test_streams_of_unlike_length(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=2.0, frame_times=[i / 25 for i in range(25)])
    info = probe(path)
    assert info.audio_end == pytest.approx(2.0, abs=0.1) and info.video_end == pytest.approx(1.0, abs=0.1)
    assert info.duration == info.audio_end


@pytest.mark.parametrize("deep", [False, True])
def test_one_kind_of_stream_only(tmp_path, deep):
    sound = probe(write_media(tmp_path / "a.mp4", video_codec=None), deep=deep)
    assert (sound.has_audio, sound.has_video, sound.error) == (True, False, "")
    assert sound.video_error == "no video stream" and sound.fps is None and sound.width is None
    pictures = probe(write_media(tmp_path / "b.mp4", audio_codec=None), deep=deep)
    assert (pictures.has_audio, pictures.has_video, pictures.error) == (False, True, "")
    assert pictures.audio_error == "no audio stream" and pictures.sample_rate is None


@pytest.mark.parametrize(("rate", "layout"), [(8000, "mono"), (96000, "stereo"), (192000, "mono"), (48000, "7.1")])
def test_rates_and_layouts(tmp_path, rate, layout):
    path = write_media(tmp_path / "a.wav", video_codec=None, audio_codec="pcm_s16le", sample_rate=rate, layout=layout)
    info = probe(path)
    assert (info.sample_rate, info.channels) == (rate, {"mono": 1, "stereo": 2, "7.1": 8}[layout])
    assert info.duration == pytest.approx(2.0)


@pytest.mark.parametrize("fps", [1, 240])
def test_frame_rates(tmp_path, fps):
    assert probe(write_media(tmp_path / "a.mp4", fps=fps, audio_codec=None)).fps == pytest.approx(fps)


def png(width: int = 1, height: int = 1) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("deep", [None, True])
def test_reasons(tmp_path, deep):
    whole = write_media(tmp_path / "whole.mp4").read_bytes()  # its index lies at the end
    files = {
        "absent.mp4": (None, "file not found"),
        "empty.mp4": (b"", "empty file"),
        "text.mp4": (b"no media here\n" * 100, "not a media file"),
        "text.txt": (b"no media here\n" * 100, "not a media file"),
        "cut.mp4": (whole[: len(whole) // 2], "not a media file"),
        "picture.mp4": (png(), "still image"),
        "list.m3u8": (b"#EXTM3U\n#EXTINF:2,\nwhole.mp4\n#EXT-X-ENDLIST\n", "not a media file"),
    }
    for name, (data, reason) in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        info = probe(tmp_path / name, deep=deep)
        assert info.error == reason, name
        assert not info.has_audio and not info.has_video and info.duration is None
    assert probe(tmp_path).error == "not a file"


def test_a_name_is_never_taken_for_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "plain.mp4").rename(tmp_path / "concat:a.mp4")
    assert probe("concat:a.mp4").error == ""


def test_a_cut_off_file_has_the_duration_that_is_there(tmp_path):
    for name, options in (("a.mp4", {"movflags": "faststart"}), ("a.wav", None)):
        codecs = {"video_codec": None, "audio_codec": "pcm_s16le"} if name.endswith("wav") else {}
        whole = write_media(tmp_path / name, seconds=8.0, options=options, **codecs)
        data = whole.read_bytes()
        whole.write_bytes(data[: len(data) // 2])
        assert probe(whole).duration < 7.0, f"{name}: a suspicious header must be verified without being asked"
        assert probe(whole, deep=False).has_audio


def test_an_undecodable_stream_is_found_by_looking_deep(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=2.0)
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov")
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    assert probe(path, deep=False).error == ""
    info = probe(path, deep=True)
    assert (info.has_audio, info.has_video) == (False, False)
    assert info.error == "audio does not decode" and info.video_error == "video does not decode"


def test_a_stream_without_data_is_passed_over(tmp_path):
    """A broadcast announces two sounds and sends the second: the first has no sample rate."""
    source = write_media(tmp_path / "one.ts", video_codec=None, audio_codec="mp2", sample_rate=32000)
    path = tmp_path / "two.ts"
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        silent = writer.add_stream("mp2", rate=48000, layout="stereo")
        copy = writer.add_stream_from_template(reader.streams.audio[0])
        for packet in reader.demux(audio=0):
            if packet.dts is not None:
                packet.stream = copy
                writer.mux(packet)
        assert silent.index == 0
    with av.open(str(path)) as reader:
        assert [stream.codec_context.sample_rate for stream in reader.streams.audio] == [0, 32000]
    info = probe(path)
    assert (info.error, info.audio_error, info.sample_rate) == ("", "", 32000)
    assert read_audio(path, 0.5, 1.0).valid == 1.0


def test_only_a_stream_without_data(tmp_path):
    path = tmp_path / "none.ts"
    write_media(tmp_path / "pictures.ts", video_codec="mpeg2video", audio_codec=None)
    with av.open(str(tmp_path / "pictures.ts")) as reader, av.open(str(path), "w") as writer:
        writer.add_stream("mp2", rate=48000, layout="stereo")
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                writer.mux(packet)
    info = probe(path)
    assert (info.has_audio, info.audio_error, info.has_video, info.error) == (False, "unknown sample rate", True, "")


def test_broken_files_leave_stderr_alone(tmp_path, capfd):
    (tmp_path / "junk.mp4").write_bytes(bytes(range(256)) * 200)
    probe(tmp_path / "junk.mp4", deep=True)
    probe(tmp_path / "absent.mp4")
    assert capfd.readouterr().err == ""


@pytest.mark.realdata
def test_real_files_are_what_their_datasets_say(real_data):
    clip = probe(sorted(real_data.glob("grid/clips/*.mp4"))[0])
    assert (clip.width, clip.height, clip.sample_rate, clip.channels, clip.error) == (180, 144, 44100, 1, "")
    assert clip.fps == pytest.approx(25) and clip.duration == pytest.approx(3.0, abs=0.05)
    digit = probe(sorted(real_data.glob("fsdd/recordings/*.wav"))[0])
    assert (digit.sample_rate, digit.has_video, digit.error) == (8000, False, "")
    bark = probe(sorted(real_data.glob("esc10/001*/*.ogg"))[0])
    assert (bark.sample_rate, bark.audio_codec) == (44100, "vorbis")


LARGE = {
    "a.avi": "mjpeg",
    "a.mkv": "mjpeg",
    "a.mp4": "libx264",
    "a.ts": "mpeg2video",
    "b.mkv": "ffv1",
    "a.webm": "libvpx",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_picture_that_is_too_large_is_refused(name: str, tmp_path, limited) -> None:
    sound = "libopus" if name.endswith("webm") else "pcm_s16le" if name.endswith("avi") else "aac"
    rate = 48000 if sound == "libopus" else 16000
    path = write_media(
        tmp_path / name, size=(320, 240), video_codec=LARGE[name], audio_codec=sound, sample_rate=rate, seconds=1.0
    )
    limited(Limits(max_pixels=320 * 240))
    assert probe(path, deep=True).width == 320, "the limit itself is allowed"
    assert len(read_frames(path, [0.2], size=48)) == 1
    path = path.rename(tmp_path / f"other {name}")  # within a process, what is known of a file is kept
    limited(Limits(max_pixels=320 * 240 - 1))
    for deep in (False, None, True):
        info = probe(path, deep=deep)
        assert (info.has_video, info.video_error, info.width) == (False, "picture too large", None)
        assert info.has_audio and not info.error
    told = r"picture too large \(320 x 240, limit 76799 pixels; max_pixels raises it\)"
    with pytest.raises(MediaError, match=told):
        read_frames(path, [0.2], size=48)
    with MediaFile(path) as file, pytest.raises(MediaError, match=told):
        file.frame_starts(0.0, 0.5)
    assert read_audio(path, 0.2, 0.5).valid == 1, "its sound is used all the same"


MEMORY = """
import sys
from pathlib import Path
from avssl.data.media import MediaError, probe, read_frames

def most():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

probe(sys.argv[1], deep=True)
before = most()
assert probe(sys.argv[2], deep=True).error == "picture too large"
try:
    read_frames(sys.argv[2], [0.1], size=64)
except MediaError as error:
    assert error.reason == "picture too large"
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory through /proc")
def test_a_picture_that_is_too_large_costs_no_memory(tmp_path) -> None:
    """Of PNG, whose decoder skips no picture when told to."""
    files = {16: tmp_path / "small.mp4", 6000: tmp_path / "large.mp4"}
    for size, path in files.items():
        with av.open(str(path), "w") as made:
            video = made.add_stream("png", rate=5)
            video.width, video.height, video.pix_fmt = size, size, "gray"
            frame = av.VideoFrame(size, size, "gray")
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            frame.pts = 0
            made.mux([*video.encode(frame), *video.encode()])
    done = subprocess.run([sys.executable, "-c", MEMORY, *map(str, files.values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 17, "half of what one picture takes, in MB"


@pytest.mark.parametrize("codec", ["mjpeg", "flv"])
def test_pictures_that_grow_within_the_file_are_not_decoded(codec: str, tmp_path, monkeypatch, limited) -> None:
    """decord, which reads AVI otherwise, has no limit."""
    pictures = {48: tmp_path / "small.avi", 1024: tmp_path / "large.avi"}
    for size, path in pictures.items():
        write_media(path, size=(size, size), video_codec=codec, audio_codec=None, seconds=1.0, fps=10)
    grown = tmp_path / "grown.avi"
    with av.open(str(grown), "w") as made, av.open(str(pictures[48])) as small, av.open(str(pictures[1024])) as large:
        stream = made.add_stream_from_template(small.streams.video[0])
        for number, (one, other) in enumerate(zip(small.demux(video=0), large.demux(video=0), strict=True)):
            packet = other if 3 <= number < 7 else one
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    limited(Limits(max_pixels=512 * 512))
    seen: list[int] = []
    monkeypatch.setattr(video_module, "read_with_decord", lambda *_: pytest.fail("decord has no limit"))
    monkeypatch.setattr(video_module, "upright", lambda image, frame: seen.append(frame.width) or image)
    frames = read_frames(grown, [0.05, 0.45, 0.85], size=32)
    assert frames.shape == (3, 32, 32, 3) and set(seen) == {48}


def test_a_clip_that_takes_too_much_memory_is_refused_before_it_does(tmp_path, limited) -> None:
    """Of a picture 8 pixels high, scaled to a short side of 224, a frame has 28 times as many pixels each way."""
    thin = write_media(tmp_path / "thin.avi", size=(1024, 8), video_codec="mjpeg", audio_codec=None, seconds=1.0)
    limited(Limits(max_clip_bytes=1 << 20))
    with pytest.raises(MediaError, match=r"clip too large \(77 MB, limit 1 MB; max_clip_bytes raises it\)"):
        read_frames(thin, [0.1, 0.2, 0.3, 0.4], size=224)
    assert read_frames(thin, [0.1, 0.2], size=8).shape == (2, 8, 1024, 3)
    sound = write_media(
        tmp_path / "sound.wav", video_codec=None, audio_codec="pcm_s16le", sample_rate=16000, seconds=20
    )
    assert read_audio(sound, 1.0, 2.0).valid == 1
    for duration in (15.0, None):
        with pytest.raises(MediaError, match=r"clip too large \(\d MB, limit 1 MB"):
            read_audio(sound, 0.0, duration)
