"""From when to when each stream runs: the same however deep one looks, and never guessed from a bit rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import frame_number, noise, place_of, write_media

from avssl.data.media import MediaError, MediaFile, extents, probe, read_audio, read_frames
from avssl.data.media.probe import CUT_OFF, RESTARTS
from avssl.data.media.stream import stream_audio

RATE = 48000
# container -> encoders of its pictures and its sound
CODECS = {"mp4": ("libx264", "aac"), "mov": ("libx264", "pcm_s16le"), "mkv": ("libx264", "aac"),
          "webm": ("libvpx", "libopus"), "flv": ("libx264", "aac"), "ts": ("libx264", "aac"),
          "mpg": ("mpeg1video", "mp2")}  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    """12 s in every container, with a keyframe every 2.4 s."""
    folder = tmp_path_factory.mktemp("films")
    return {
        extension: write_media(
            folder / f"a.{extension}", seconds=12.0, sample_rate=RATE, waveform=noise(12.0, RATE), gop=60,
            video_codec=video, audio_codec=audio,
        )
        for extension, (video, audio) in CODECS.items()
    }  # fmt: skip


def copied(source: Path, target: Path, keep, options: dict[str, str] | None = None) -> Path:
    """The packets that ``keep(kind, seconds)`` gives a time in seconds, at that time; None leaves one out."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options or {}) as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in (*reader.streams.video, *reader.streams.audio)}
        for packet in reader.demux():
            if not packet.size:
                continue
            base = packet.time_base
            if packet.dts is None:  # Matroska has none of the first frames
                packet.dts = packet.pts - round(0.08 / base)
            wanted = keep(packet.stream.type, float(packet.pts * base))
            if wanted is None:
                continue
            shift = round((wanted - float(packet.pts * base)) / base)
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copies[packet.stream_index]
            writer.mux(packet)
    return target


def together(path: Path, first: float, last: float, offset: float) -> None:
    """Sound and picture of an instant come from the same one of the film, about ``offset`` seconds further into it."""
    whole = noise(12.0, RATE)
    for start in np.linspace(first + 0.03, last - 0.53, 4):
        clip = read_audio(path, float(start), 0.5, RATE)
        assert clip.valid == pytest.approx(1.0, abs=1e-3)
        heard = place_of(clip.waveform, whole, RATE)
        seen = frame_number(read_frames(path, [start])[0]) / 25
        assert -0.01 < heard - seen < 0.065, "a frame lasts 0.04 s, and an encoder delays sound by 0.02 s"
        assert heard - start == pytest.approx(offset, abs=0.1)


@pytest.mark.parametrize("extension", [e for e in CODECS if e != "mpg"])
def test_a_clip_cut_at_packets(films, tmp_path, extension) -> None:
    """As ``ffmpeg -ss 3 -i in -t 6 -c copy`` does: sound from 3 s on, pictures from the next keyframe, at 4.8 s."""

    def keep(kind: str, time: float) -> float | None:
        inside = (4.79 if kind == "video" else 3.0) <= time < 9.0
        return time - 3.0 if inside else None

    path = copied(films[extension], tmp_path / f"cut.{extension}", keep)
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False)
    assert info.error == info.audio_error == info.video_error == info.warning == ""
    assert info.audio_start == pytest.approx(0.0, abs=0.03) and info.audio_end == pytest.approx(6.0, abs=0.06)
    assert info.video_start == pytest.approx(1.8, abs=0.1) and info.video_end == pytest.approx(6.0, abs=0.1)
    assert info.duration == max(info.audio_end, info.video_end)
    together(path, info.video_start, min(info.audio_end, info.video_end), 3.0)


@pytest.mark.parametrize("extension", ["mp4", "mov", "3gp"])
def test_a_clip_whose_edit_list_hides_the_first_keyframe(films, tmp_path, extension) -> None:
    """As ``ffmpeg -ss 3 -i in -t 6 -c copy`` does where it can: the group of pictures is kept from 2.4 s on."""
    source = films[extension if extension in films else "mp4"]

    def keep(kind: str, time: float) -> float | None:
        return time - 3.0 if (2.39 if kind == "video" else 3.0) <= time < 9.0 else None

    path = copied(source, tmp_path / f"cut.{extension}", keep)
    with av.open(str(path)) as container:
        assert next(container.demux(video=0)).is_discard
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False)
    assert info.video_start == pytest.approx(0.0, abs=0.05) and info.video_end == pytest.approx(6.0, abs=0.1)
    together(path, 0.0, 5.9, 3.0)


@pytest.mark.parametrize("extension", CODECS)
@pytest.mark.parametrize("late", ["audio", "video"])
def test_a_stream_that_begins_late(films, tmp_path, extension, late) -> None:
    """By more than the seconds in which FFmpeg looks for streams."""
    path = copied(films[extension], tmp_path / f"late.{extension}", lambda kind, time: time + 8.0 * (kind == late))
    info = probe(path)
    assert info == probe(path, deep=True)
    assert info.audio_error == info.video_error == ""
    starts = {"audio": info.audio_start, "video": info.video_start}
    ends = {"audio": info.audio_end, "video": info.video_end}
    other = "audio" if late == "video" else "video"
    assert starts[late] - starts[other] == pytest.approx(8.0, abs=0.1) and min(starts.values()) == pytest.approx(
        0.0, abs=0.03
    )
    assert ends[late] == pytest.approx(20.0, abs=0.1) and ends[other] == pytest.approx(12.0, abs=0.1)
    sound = read_audio(path, 10.0, 0.5, RATE)
    assert 10.0 - place_of(sound.waveform, noise(12.0, RATE), RATE) == pytest.approx(8.0 * (late == "audio"), abs=0.045)
    shown = frame_number(read_frames(path, [10.0])[0]) / 25
    assert 10.0 - shown == pytest.approx(8.0 * (late == "video"), abs=0.06)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm", "ts"])
def test_one_picture_over_long_sound(films, tmp_path, extension) -> None:
    path = copied(
        films[extension], tmp_path / f"still.{extension}", lambda kind, t: t if kind == "audio" or t < 0.09 else None
    )
    info = probe(path)
    assert info == probe(path, deep=True)
    assert info.audio_end == info.duration == pytest.approx(12.0, abs=0.05)
    assert info.video_end is not None and 0.0 < info.video_end < 0.3


def test_matroska_of_a_live_stream_has_no_duration(films, tmp_path) -> None:
    path = copied(films["mkv"], tmp_path / "live.mkv", lambda kind, time: time, {"live": "1"})
    with av.open(str(path)) as container:
        assert not container.duration
    info = probe(path, deep=False)
    assert info == probe(path, deep=True) and info.error == ""
    assert info.audio_end == pytest.approx(12.0, abs=0.05) and info.video_end == pytest.approx(12.0, abs=0.05)


def test_fragments_are_counted(films, tmp_path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = copied(films["mp4"], tmp_path / "frag.mp4", lambda kind, time: time, options)
    info = probe(path, deep=False)
    assert info == probe(path, deep=True)
    assert info.audio_end == pytest.approx(12.0, abs=0.1) and info.video_end == pytest.approx(12.0, abs=0.1)


def test_fragments_whose_edit_list_cuts_sound_off(films, tmp_path) -> None:
    """A decoder throws that sound away, though its packets are there; no such thing befalls the pictures."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov"}
    path = copied(
        films["mp4"], tmp_path / "frag.mp4", lambda _, time: time - 3.0 if 2.39 < time < 9.0 else None, options
    )
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False) and info.warning == ""
    assert info.video_start < 0.2 and info.audio_start == pytest.approx(0.6, abs=0.1)
    together(path, info.audio_start, min(info.audio_end, info.video_end), 2.4)
    with pytest.raises(MediaError, match="no audio in span"):
        read_audio(path, 0.0, info.audio_start - 0.1)


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
def test_pictures_of_a_variable_rate_end_with_the_last_one(tmp_path, extension) -> None:
    """MP4 lists times of decoding only, among which the long ones at the end are not."""
    times = np.concatenate([np.arange(40) / 25, 1.6 + np.arange(1, 5) * 0.4])
    path = write_media(tmp_path / f"a.{extension}", frame_times=times, audio_codec=None, codec_options={"bf": "3"})
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False)
    assert times[-1] < info.video_end < times[-1] + 0.5
    assert frame_number(read_frames(path, [times[-1] + 0.01])[0]) == len(times) - 1


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
def test_a_good_header_costs_no_reading_of_packets(films, extension, monkeypatch) -> None:
    monkeypatch.setattr(extents, "packet_extents", lambda *_: pytest.fail("all packets are read"))
    info = probe(films[extension])
    assert info.audio_end == pytest.approx(12.0, abs=0.05)


@pytest.mark.parametrize(("name", "codec"), [("noxing.mp3", "libmp3lame"), ("a.aac", "aac")])
def test_a_variable_rate_is_not_extrapolated(tmp_path, name, codec) -> None:
    """Loud noise after near silence: what the first seconds cost says nothing of the rest."""
    wave = np.concatenate([noise(6.0, RATE) * 1e-4, noise(6.0, RATE)])
    path = tmp_path / name
    with av.open(str(path), "w", options={"write_xing": "0"} if codec == "libmp3lame" else {}) as container:
        stream = container.add_stream(
            codec, rate=RATE, layout="mono", options={"q": "2"} if codec == "libmp3lame" else {}
        )
        if codec == "aac":
            stream.codec_context.flags |= 0x2  # constant quality
            stream.codec_context.global_quality = 118
        else:
            stream.codec_context.qscale = True
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler("fltp", "mono", RATE, frame_size=1152 if codec == "libmp3lame" else 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.duration is None or abs(container.duration / av.time_base - 12.0) > 0.5, (
            "FFmpeg's guess is off"
        )
    info = probe(path)
    assert info == probe(path, deep=True) and info.audio_end == info.duration == pytest.approx(12.05, abs=0.06)
    whole = read_audio(path).waveform
    assert len(whole) == pytest.approx(12.05 * 16000, abs=0.06 * 16000)
    assert abs(sum(map(len, stream_audio(path, 16000))) - len(whole)) <= 2


def test_two_broadcasts_joined(films, tmp_path) -> None:
    """The second one's clock begins anew: its sound must not meet the first one's pictures."""
    for extension in ("ts", "mpg"):
        path = tmp_path / f"joined.{extension}"
        second = copied(
            films[extension], tmp_path / f"b.{extension}", lambda kind, time: time - 4.8 if time > 4.79 else None
        )
        path.write_bytes(films[extension].read_bytes()[: 188 * 2000] + second.read_bytes())
        info = probe(path)
        assert info == probe(path, deep=True)
        assert info.warning == RESTARTS and info.error == ""
        last = min(info.audio_end, info.video_end)
        together(path, 0.1, last - 0.1, 0.0)
        whole = read_audio(path)
        assert len(whole.waveform) / 16000 == pytest.approx(info.audio_end, abs=0.1)
        with pytest.raises(MediaError):
            read_audio(path, info.audio_end + 0.5, 1.0)


@pytest.mark.parametrize("extension", ["ts", "mpg"])
def test_a_joined_broadcast_whose_pictures_begin_late(films, tmp_path, extension) -> None:
    """Its first pictures come without a time, or with one that carries on the first broadcast's clock."""

    def keep(kind: str, time: float) -> float | None:
        return time - 3.0 if time > (4.79 if kind == "video" else 3.0) else None

    path = tmp_path / f"joined.{extension}"
    second = copied(films[extension], tmp_path / f"b.{extension}", keep)
    first = copied(films[extension], tmp_path / f"a.{extension}", lambda _, time: time if time < 3.0 else None)
    alone = probe(first)
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info = probe(path)
    assert info == probe(path, deep=True) and info.warning == RESTARTS
    assert info.video_end == pytest.approx(alone.video_end, abs=0.05)
    assert info.audio_end == pytest.approx(alone.audio_end, abs=0.05)
    times = np.arange(info.video_start + 0.02, info.video_end, 0.04)
    with MediaFile(path) as file:
        shown = [frame_number(image) for image in file.frames(times)]
    assert np.abs(np.asarray(shown) - np.arange(len(times))).max() <= 2


def test_ogg_files_joined(tmp_path) -> None:
    first = write_media(tmp_path / "a.ogg", video_codec=None, audio_codec="libopus", sample_rate=RATE,
                        waveform=noise(3.0, RATE)).read_bytes()  # fmt: skip
    for codec in ("libopus", "flac"):
        second = write_media(tmp_path / "b.ogg", video_codec=None, audio_codec=codec, sample_rate=RATE,
                             waveform=noise(4.0, RATE, seed=1)).read_bytes()  # fmt: skip
        path = tmp_path / f"{codec}.ogg"
        path.write_bytes(first + second)
        info = probe(path)
        assert info.warning == RESTARTS and info.audio_end == pytest.approx(3.0, abs=0.05), codec
        piece = read_audio(path, 1.5, 1.0, RATE).waveform
        assert place_of(piece, noise(3.0, RATE), RATE) == pytest.approx(1.5, abs=0.001)
    assert probe(tmp_path / "a.ogg").warning == ""


@pytest.mark.parametrize("broken", ["audio", "video"])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_broken_stream_leaves_the_other_one(films, tmp_path, extension, broken) -> None:
    path = tmp_path / f"broken.{extension}"
    with av.open(str(films[extension])) as reader, av.open(str(path), "w") as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in (*reader.streams.video, *reader.streams.audio)}
        for packet in reader.demux():
            if packet.dts is None:
                continue
            kind, stream = packet.stream.type, copies[packet.stream_index]
            if kind == broken:
                junk = av.Packet(bytes([0xFF, 0x00, 0x55, 0xAA]) * (packet.size // 4 + 1))
                junk.pts, junk.dts, junk.time_base, junk.duration = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.duration,
                )
                packet = junk
            packet.stream = stream
            writer.mux(packet)
    sound = broken == "video"
    info = probe(path, deep=True)
    assert (info.has_audio, info.has_video, info.error) == (sound, not sound, "")
    with MediaFile(path) as file:
        if sound:
            assert place_of(file.audio(3.0, 1.0, RATE).waveform, noise(12.0, RATE), RATE) == pytest.approx(
                3.0, abs=0.05
            )
            assert abs(sum(map(len, stream_audio(path, 16000))) - 12 * 16000) < 1600
            with pytest.raises(MediaError, match="video"):
                file.frames([3.0])
        else:
            assert frame_number(file.frames([3.0])[0]) == pytest.approx(75, abs=1)
            with pytest.raises(MediaError):
                file.audio(3.0, 1.0)


def test_a_file_cut_off_says_so_and_tells_what_is_there(films, tmp_path) -> None:
    for extension in ("mkv", "webm"):
        path = tmp_path / f"half.{extension}"
        data = films[extension].read_bytes()
        path.write_bytes(data[: len(data) // 2])
        info = probe(path)
        assert info == probe(path, deep=True)
        assert info.warning == CUT_OFF and 3.0 < info.duration < 9.0


@pytest.mark.realdata
def test_odd_files_run_as_long_however_deep_one_looks(real_data: Path) -> None:
    compared = 0
    for path in sorted((real_data / "odd_media").glob("*__*")):
        header, packets = probe(path, deep=False), probe(path, deep=True)
        for kind in ("audio", "video"):
            if getattr(packets, f"has_{kind}"):
                for side in ("start", "end"):
                    assert getattr(header, f"{kind}_{side}") == getattr(packets, f"{kind}_{side}"), (path.name, kind)
                compared += 1
    assert compared > 40
