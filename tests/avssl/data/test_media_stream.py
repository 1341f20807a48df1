"""Sound in blocks: the same samples as a whole reading gives, from files, pipes and raw streams cut anywhere."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from media_factory import noise, write_media
from scipy.io import wavfile

from avssl.data.media import MediaError, read_audio, stream
from avssl.data.media.stream import RAW_FORMATS, stream_audio, stream_raw


class OddPipe:
    """Gives its bytes in pieces of odd sizes, and cannot seek."""

    def __init__(self, data: bytes, largest: int = 997) -> None:
        self.data, self.at, self.largest = data, 0, largest

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.largest, 1 + self.at * 7 % self.largest) if size > 0 else self.largest
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        return piece


def whole(blocks) -> np.ndarray:
    return np.concatenate(list(blocks))


FILES = {
    "mono.wav": {"video_codec": None, "audio_codec": "pcm_s16le", "sample_rate": 44100},
    "same rate.flac": {"video_codec": None, "audio_codec": "flac"},
    "stereo.mp4": {"sample_rate": 48000, "layout": "stereo"},
    "surround.mkv": {"sample_rate": 48000, "layout": "5.1"},
    "late.mkv": {"audio_start": 0.7, "audio_codec": "flac"},
    "voice.ogg": {"video_codec": None, "audio_codec": "libopus", "sample_rate": 48000},
}


@pytest.mark.parametrize("name", FILES)
def test_blocks_are_what_a_whole_reading_gives(name: str, tmp_path) -> None:
    rate = FILES[name].get("sample_rate", 16000)
    path = write_media(tmp_path / name, **FILES[name], waveform=noise(2.3, rate), seconds=2.3)
    expected = read_audio(path, 0.0, None, 16000).waveform
    got = whole(stream_audio(path, 16000))
    assert abs(len(got) - len(expected)) <= 2
    common = min(len(got), len(expected))
    difference = np.abs(got[:common] - expected[:common])
    assert common > 16000 and difference[:-200].max() < 1e-4
    assert difference.max() < 2e-3  # the filter sees a codec's padding beyond the end, or does not


def test_a_pipe_in_odd_pieces_equals_the_file(tmp_path) -> None:
    for name, codec in {"a.wav": "pcm_s16le", "a.ogg": "libopus", "a.mkv": "aac"}.items():
        path = tmp_path / name
        write_media(path, video_codec=None, audio_codec=codec, sample_rate=48000, waveform=noise(2, 48000))
        piped = whole(stream_audio(OddPipe(path.read_bytes()), 16000, "stdin"))
        np.testing.assert_array_equal(piped, whole(stream_audio(path, 16000)))


def test_sound_that_begins_late_in_a_pipe(tmp_path) -> None:
    path = write_media(tmp_path / "late.mkv", seconds=3.0, sample_rate=48000, waveform=noise(1, 48000), audio_start=2.0)
    piped = whole(stream_audio(OddPipe(path.read_bytes()), 16000, "stdin"))
    np.testing.assert_array_equal(piped, whole(stream_audio(path, 16000)))
    assert not piped[:31000].any() and piped[32000:].std() > 0.05


class Endless:
    """Begins with ``head``, then repeats ``unit``; counts what is taken, and ends only where that is absurd."""

    def __init__(self, head: bytes, unit: bytes) -> None:
        self.rest, self.unit, self.taken = head, unit, 0

    def read(self, size: int) -> bytes:
        while len(self.rest) < size and self.taken < 1 << 26:
            self.rest += self.unit * (1 + size // len(self.unit))
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.taken += len(piece)
        return piece


NULL_PACKET = b"\x47\x1f\xff\x10" + b"\xff" * 184
ENDLESS = {
    "a.mkv": ("aac", bytes(4096)),
    "a.mp3": ("libmp3lame", bytes(4096)),
    "a.avi": ("pcm_s16le", bytes(4096)),
    "a.ts": ("aac", NULL_PACKET),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_pipe_that_never_ends_is_given_up_where_no_sound_comes(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stream, "SOUNDLESS", 1 << 21)
    codec, unit = ENDLESS[name]
    path = write_media(
        tmp_path / name, video_codec=None, audio_codec=codec, sample_rate=48000, waveform=noise(1, 48000)
    )
    pipe, blocks = Endless(path.read_bytes(), unit), []
    with pytest.raises(MediaError, match=r"^stdin: no more sound \(none in 2 MiB"):
        blocks.extend(stream_audio(pipe, 16000, "stdin"))
    assert pipe.taken < 1 << 22
    assert sum(map(len, blocks)) == pytest.approx(16000, abs=1200), "what came before is given"


@pytest.mark.parametrize("unit", [b"\0", b"\xff", b"hello\n"])
def test_endless_bytes_that_are_no_media_are_refused_soon(unit: bytes) -> None:
    pipe = Endless(b"", unit)
    with pytest.raises(MediaError, match="stdin: not a media file"):
        next(stream_audio(pipe, 16000, "stdin"))
    assert pipe.taken <= 1 << 22


def test_a_long_pipe_with_sound_all_along_is_not_given_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stream, "SOUNDLESS", 1 << 17)
    path = write_media(tmp_path / "a.wav", video_codec=None, audio_codec="pcm_s16le", waveform=noise(20, 16000))
    assert len(whole(stream_audio(OddPipe(path.read_bytes()), 16000, "stdin"))) == 20 * 16000


@pytest.mark.parametrize("sample_format", RAW_FORMATS)
def test_raw_samples_of_every_format(sample_format: str) -> None:
    wave = noise(0.5, 16000)
    dtype = np.dtype(RAW_FORMATS[sample_format])
    full = {"u": 128, "i": 1 << (8 * dtype.itemsize - 1), "f": 1}[dtype.kind]
    coded = wave.astype("f8") * full
    coded = (np.round(coded) + (128 if dtype.kind == "u" else 0) if dtype.kind != "f" else coded).astype(dtype)
    stereo = np.stack([coded, coded], axis=1).astype(dtype)  # stacking gives the machine's byte order
    got = whole(stream_raw(OddPipe(stereo.tobytes()), 16000, 16000, sample_format=sample_format, channels=2))
    assert np.abs(got - wave).max() <= 0.51 / full + 1e-6


def test_raw_samples_are_resampled_like_a_file(tmp_path) -> None:
    samples = (noise(1.5, 22050) * 32767).astype("<i2")
    wavfile.write(tmp_path / "a.wav", 22050, samples)
    got = whole(stream_raw(OddPipe(samples.tobytes()), 22050, 16000))
    np.testing.assert_allclose(got, whole(stream_audio(tmp_path / "a.wav", 16000)), atol=1e-6)


def test_raw_stream_that_ends_within_a_sample_or_is_empty(caplog) -> None:
    assert len(whole(stream_raw(io.BytesIO(b"\1\0\2\0\3"), 16000, 16000))) == 2
    assert "ends within a sample (1 of 2 bytes)" in caplog.text
    with pytest.raises(MediaError, match="no audio"):
        list(stream_raw(io.BytesIO(b""), 16000, 16000))
    with pytest.raises(MediaError, match="non-finite audio"):
        list(stream_raw(io.BytesIO(np.float32([0, np.nan]).tobytes()), 16000, 16000, sample_format="f32le"))
    for options in ({"sample_format": "mp3"}, {"rate": 0}, {"channels": 0}):
        with pytest.raises(ValueError):
            list(stream_raw(io.BytesIO(b"1234"), **{"rate": 8000, "sample_rate": 16000, **options}))


def test_what_is_broken_is_told(tmp_path) -> None:
    (tmp_path / "text.wav").write_text("no sound\n" * 50)
    silent = write_media(tmp_path / "silent.mp4", audio_codec=None)
    cut = tmp_path / "cut.mp4"
    movie = write_media(tmp_path / "a.mp4", seconds=6, options={"movflags": "faststart"}).read_bytes()
    cut.write_bytes(movie[: len(movie) // 2])
    for path, reason in ((tmp_path / "text.wav", "not a media file"), (silent, "no audio stream"), (cut, "shorter")):
        with pytest.raises(MediaError, match=reason):
            list(stream_audio(path, 16000))
    with pytest.raises(MediaError, match="stdin: not a media file"):
        list(stream_audio(OddPipe(b"no sound" * 500), 16000, "stdin"))
    given = []
    with pytest.raises(MediaError, match="shorter"):
        given.extend(stream_audio(cut, 16000))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{tmp_path / 'a.mp4'}\n#EXT-X-ENDLIST\n")
    with playlist.open("rb") as file, pytest.raises(MediaError):
        list(stream_audio(file, 16000, "stdin"))


def test_memory_does_not_grow_with_length(tmp_path) -> None:
    wavfile.write(tmp_path / "long.wav", 8000, np.zeros(8000 * 200, dtype=np.int16))  # 13 MB once at 16 kHz
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(tmp_path / "long.wav", 16000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 200 * 16000 and peak < 3e6


@pytest.mark.realdata
def test_odd_files_give_what_a_whole_reading_gives(real_data: Path) -> None:
    compared = 0
    for path in sorted((real_data / "odd_media").glob("*a*__*")):
        try:
            expected = read_audio(path, 0.0, None, 16000).waveform
        except MediaError as error:
            with pytest.raises(MediaError, match=error.reason):
                list(stream_audio(path, 16000))
            continue
        got = whole(stream_audio(path, 16000))
        common = min(len(got), len(expected))
        assert abs(len(got) - len(expected)) <= 2, path.name
        assert np.abs(got[:common] - expected[:common])[:-100].max() < 5e-3, path.name  # the end has no neighbours
        compared += 1
    assert compared >= 15
