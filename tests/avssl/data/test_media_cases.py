"""Small files of which each went wrong in one way: times by stream, guessed durations, turned pictures, joined clocks.

All are cut from one recording of 30 s whose frames show their number and whose sound is noise that tells its time.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from media_factory import place_of

from avssl.data.media import MediaError, MediaFile, probe, read_audio, read_frames
from avssl.data.media.probe import RESTARTS
from avssl.data.media.stream import stream_audio

pytestmark = pytest.mark.realdata

RATE, FPS, FRAME = 16000, 25, 0.04
VIDEO_STARTS = [4.70, 3.73, 2.76, 1.79, 0.82, 4.85, 3.88, 2.91]


@cache
def recording() -> np.ndarray:
    """(480000,) the sound of the 30 s at 16 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(1_440_000))
    hertz = np.fft.rfftfreq(1_440_000, 1 / 48000)
    spectrum[(hertz < 200) | (hertz > 6000)] = 0
    return np.fft.irfft(spectrum[: 30 * RATE // 2 + 1], 30 * RATE)


def sound_second(path: Path, start: float, seconds: float = 1.0) -> float:
    """Second of the recording from which ``path`` plays at ``start``."""
    clip = read_audio(path, start, seconds)
    assert clip.valid > 0.99
    return place_of(clip.waveform, recording(), RATE)


def picture_second(path: Path, time: float) -> float:
    """Second of the recording at which the frame begins that ``path`` shows at ``time``."""
    image = read_frames(path, [time])[0]
    row = image[image.shape[0] // 2].mean(axis=-1)
    bits = [bar.mean() > 127 for bar in np.array_split(row, 12)]
    return sum(1 << b for b, on in enumerate(bits) if on) / FPS


def together(path: Path, times: list[float]) -> None:
    for time in times:
        sound, picture = sound_second(path, time), picture_second(path, time)
        assert -0.005 <= sound - picture < FRAME + 0.025, (path.name, time, sound, picture)


@pytest.mark.parametrize("number", range(8))
def test_a_clip_cut_without_decoding_is_healthy(cases: Path, number: int) -> None:
    path = cases / f"cut/{number}.mp4"
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False)
    assert (info.error, info.audio_error, info.video_error, info.warning) == ("", "", "", "")
    assert info.audio_start == pytest.approx(0.0, abs=0.03) and info.audio_end == pytest.approx(10.0, abs=0.1)
    # The file's clock begins with its sound, up to 0.02 s after the container's.
    assert info.video_start == pytest.approx(VIDEO_STARTS[number], abs=0.03)
    assert info.video_end == pytest.approx(10.0, abs=0.15)
    together(path, [info.video_start + 0.01, 6.0, 8.4])


def test_sound_that_begins_late(cases: Path) -> None:
    path = cases / "late/audio_late_8.mp4"
    info = probe(path)
    assert info == probe(path, deep=True)
    assert (info.video_start, info.video_end) == (0.0, pytest.approx(30.0, abs=0.05))
    assert info.audio_start == pytest.approx(8.0, abs=0.05) and info.audio_end == pytest.approx(30.0, abs=0.05)
    assert info.duration == pytest.approx(30.0, abs=0.05)
    for time in (8.1, 17.3, 28.9):
        assert picture_second(path, time) == pytest.approx(time, abs=FRAME)
        assert read_audio(path, time, 1.0).valid == 1.0


@pytest.mark.parametrize(("name", "video_end"), [("one_frame", 0.04), ("video5s_audio30s", 5.08)])
def test_pictures_that_end_early(cases: Path, name: str, video_end: float) -> None:
    info = probe(cases / f"still/{name}.mp4")
    assert info == probe(cases / f"still/{name}.mp4", deep=True)
    assert (info.audio_start, info.audio_end) == (0.0, pytest.approx(30.0, abs=0.05))
    assert (info.video_start, info.video_end) == (0.0, pytest.approx(video_end, abs=0.05))
    assert sound_second(cases / f"still/{name}.mp4", 29.0) == pytest.approx(29.0, abs=0.005)


@pytest.mark.parametrize("name", ["vbr_noxing_quiet_start.mp3", "adts_vbr_quiet_end.aac"])
def test_a_duration_is_counted_where_it_would_be_guessed(cases: Path, name: str) -> None:
    path = cases / "vbr" / name
    info = probe(path)
    assert info == probe(path, deep=True) == probe(path, deep=False)
    assert info.audio_end == info.duration == pytest.approx(30.0, abs=0.08)
    whole = read_audio(path).waveform
    assert len(whole) == pytest.approx(30.03 * RATE, abs=0.05 * RATE)
    assert sum(map(len, stream_audio(path, RATE))) == pytest.approx(len(whole), abs=2)
    loud = {"mp3": (16.0, 21.5, 27.3), "aac": (2.0, 4.4, 7.9)}[path.suffix[1:]]  # the rest is all but silent
    for start in loud:
        assert sound_second(path, start) == pytest.approx(start, abs=0.06)  # the encoder's delay is nowhere told
        assert np.abs(read_audio(path, start, 1.0).waveform - whole[round(start * RATE) :][:RATE]).max() < 0.02


def test_frames_of_windows_media(cases: Path) -> None:
    path = cases / "wmv/default.wmv"
    for time in np.random.default_rng(0).uniform(0.1, 29.9, 30):
        assert picture_second(path, time) == pytest.approx(time - 0.043, abs=FRAME)
    with MediaFile(path) as file:
        assert len(file.frames(np.arange(0.1, 29.9, 0.5), 64)) == 60
    together(path, [1.0, 11.7, 28.0])


def test_a_phone_s_clip_stands_upright(cases: Path) -> None:
    path = cases / "rotated/rot90b.mp4"
    info = probe(path)
    with MediaFile(path) as file:
        size = file.frame_size()
    image = read_frames(path, [0.5])[0]
    assert (info.width, info.height) == size == (image.shape[1], image.shape[0])


def test_two_broadcasts_in_one_file(cases: Path) -> None:
    path = cases / "restart/concat.ts"
    info = probe(path)
    assert info == probe(path, deep=True)
    assert info.warning == RESTARTS and info.error == ""
    assert info.audio_end == pytest.approx(10.0, abs=0.15) and info.video_end == pytest.approx(10.0, abs=0.15)
    together(path, [0.2, 3.0, 5.5, 8.8])
    with pytest.raises(MediaError, match="no audio in span"):
        read_audio(path, 10.5, 1.0)
    with pytest.raises(MediaError, match="frame outside video"):
        read_frames(path, [11.0])


def test_a_wrong_byte_rate_leads_nowhere_else(cases: Path) -> None:
    path = cases / "adpcm/adpcm_ima.wav"
    assert probe(path).audio_end == pytest.approx(30.02, abs=0.01)
    for start in (0.0, 5.0, 14.2, 28.9):
        assert sound_second(path, start) == pytest.approx(start, abs=0.001)
