"""Writes small media files with known contents, for tests: numbered frames and a known waveform."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODE_BITS = 10


def numbered_frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 whose vertical bars, white for 1, spell ``number`` in binary; survives lossy coding."""
    width, height = size
    bits = [(number >> bit) & 1 for bit in reversed(range(CODE_BITS))]
    bars = np.asarray(bits, dtype=np.uint8)[np.arange(width) * CODE_BITS // width] * 255
    return np.repeat(np.repeat(bars[None, :, None], height, axis=0), 3, axis=2)


def frame_number(image: np.ndarray) -> int:
    """The number in a frame made by `numbered_frame`, at any scale."""
    width = image.shape[1]
    centres = ((np.arange(CODE_BITS) + 0.5) * width / CODE_BITS).astype(int)
    bits = image[:, centres].mean(axis=(0, 2)) > 127
    return int("".join("1" if bit else "0" for bit in bits), 2)


def tone(seconds: float, sample_rate: int, frequency: float = 440.0) -> np.ndarray:
    """(S,) float32 sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sample_rate)) / sample_rate)).astype("f4")


def noise(seconds: float, sample_rate: int, seed: int = 0, cutoff: float = 3000.0) -> np.ndarray:
    """(S,) float32 noise below ``cutoff`` Hz: every instant is recognisable and lossy codecs keep it."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * sample_rate)))
    spectrum[np.fft.rfftfreq(round(seconds * sample_rate), 1 / sample_rate) > cutoff] = 0
    wave = np.fft.irfft(spectrum, round(seconds * sample_rate))
    return (0.5 * wave / np.abs(wave).max()).astype("f4")


def place_of(piece: np.ndarray, whole: np.ndarray, sample_rate: int) -> float:
    """Second of ``whole`` from which ``piece`` is cut, by the peak of their cross-correlation; both are noise."""
    size = 1 << (len(piece) + len(whole)).bit_length()
    spectrum = np.fft.rfft(whole, size) * np.conj(np.fft.rfft(piece, size))
    correlation = np.fft.irfft(spectrum, size)
    peak = int(correlation.argmax())
    if correlation[peak] < 8 * correlation.std():
        raise AssertionError("the sound is of no place")
    return (peak if peak < len(whole) else peak - size) / sample_rate


def write_media(
    path: str | Path,
    *,
    seconds: float = 2.0,
    fps: float = 25,
    size: tuple[int, int] = (80, 48),
    sample_rate: int = 16000,
    layout: str = "mono",
    video_codec: str | None = "libx264",
    audio_codec: str | None = "aac",
    frequency: float = 440.0,
    waveform: np.ndarray | None = None,
    audio_start: float = 0.0,
    frame_times: np.ndarray | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    gop: int = 12,
    rotation: int = 0,
) -> Path:
    """Write a file that tells its times: frame i shows the number i, and sound such as `noise` tells where it is from.

    Args:
        path: its extension chooses the container unless ``format`` does.
        size: (width, height).
        layout: "mono", "stereo", "5.1", "7.1", ...; every channel gets the same sound.
        video_codec, audio_codec: None leaves the stream out.
        waveform: (S,) or (channels, S) float32; a tone of ``frequency`` otherwise.
        audio_start: seconds by which the sound starts later than the pictures.
        frame_times: seconds at which frames start, for a variable rate; replaces ``fps``.
        options: of the container, such as {"movflags": "faststart"}.
        codec_options: of the video's encoder, such as {"bf": "2"}.
        gop: frames from one keyframe to the next.
        rotation: degrees counterclockwise by which the pictures are to be turned before they are seen.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        video = audio = None
        if video_codec is not None:
            rate = Fraction(fps).limit_denominator(1001)
            video = container.add_stream(video_codec, rate=rate, options=codec_options or {})
            video.width, video.height, video.pix_fmt = *size, "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            video.codec_context.gop_size = gop
            video.codec_context.thread_count = 1
            if rotation:
                video.set_display_rotation(rotation)
        if audio_codec is not None:
            audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
            audio.codec_context.thread_count = 1
            if audio_codec.startswith("wma"):
                audio.bit_rate = 128_000
        if video is not None:
            _write_frames(container, video, seconds, fps, size, frame_times)
        if audio is not None:
            sound = tone(seconds, sample_rate, frequency) if waveform is None else np.asarray(waveform, dtype="f4")
            _write_sound(container, audio, sound, sample_rate, layout, audio_start)
    return path


def _write_frames(container, stream, seconds, fps, size, frame_times) -> None:
    times = np.arange(max(1, round(seconds * fps))) / fps if frame_times is None else np.asarray(frame_times)
    if frame_times is not None:
        stream.codec_context.time_base = Fraction(1, 1000)
    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(numbered_frame(number, size), format="rgb24")
        base = Fraction(1, 1000) if frame_times is not None else 1 / Fraction(fps).limit_denominator(1001)
        frame.time_base = base
        frame.pts = number if frame_times is None else round(time * 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _write_sound(container, stream, sound, sample_rate, layout, start) -> None:
    channels = len(av.AudioLayout(layout).channels)
    sound = np.ascontiguousarray(np.broadcast_to(np.atleast_2d(sound), (channels, sound.shape[-1])))
    resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=sample_rate)
    offset, step = round(start * sample_rate), 1024
    for position in range(0, sound.shape[1], step):
        block = np.ascontiguousarray(sound[:, position : position + step].T).reshape(1, -1)  # interleaved
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = sample_rate, Fraction(1, sample_rate), offset + position
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    container.mux(stream.encode())
