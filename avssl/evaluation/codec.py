"""A waveform through a lossy codec and back, in memory."""

import io
from typing import Literal

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from avssl.evaluation.arrays import FloatArray

Codec = Literal["mp3", "opus"]
_CONTAINERS = {"mp3": ("libmp3lame", "mp3"), "opus": ("libopus", "ogg")}
# What the encoders take, in Hz; other rates are converted to the largest.
_RATES = {"mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), "opus": (48000,)}


def through_codec(waveform: FloatArray, sample_rate: int, codec: Codec, bit_rate: int) -> FloatArray:
    """What is left of a mono waveform after encoding and decoding.

    The containers carry the encoder's delay, which the decoder takes off again: the result lies on the samples of the
    input and is as long.

    Args:
        waveform: (S,) float32 in about [-1, 1], not empty; values beyond are clipped.
        sample_rate: in Hz.
        bit_rate: in bits a second; encoders take the nearest that they have.
    """
    rates = _RATES[codec]
    rate = sample_rate if sample_rate in rates else rates[-1]
    sound = np.clip(waveform, -1, 1).astype(np.float32)
    sound = soxr.resample(sound, sample_rate, rate) if rate != sample_rate else sound
    decoded, decoded_rate = _decode(_encode(sound, rate, codec, bit_rate))
    back = soxr.resample(decoded, decoded_rate, sample_rate) if decoded_rate != sample_rate else decoded
    result = np.zeros(len(waveform), np.float32)
    result[: len(back)] = back[: len(result)]
    return result


def _encode(waveform: FloatArray, rate: int, codec: Codec, bit_rate: int) -> io.BytesIO:
    name, container = _CONTAINERS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        assert isinstance(file, OutputContainer)
        stream = file.add_stream(name, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = bit_rate
        stream.codec_context.thread_count = 1
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(converted))
        file.mux(stream.encode())
    buffer.seek(0)
    return buffer


def _decode(buffer: io.BytesIO) -> tuple[FloatArray, int]:
    with av.open(buffer) as file:
        assert isinstance(file, InputContainer)
        stream = file.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        parts = [converted.to_ndarray()[0] for frame in file.decode(stream) for converted in resampler.resample(frame)]
        parts += [converted.to_ndarray()[0] for converted in resampler.resample(None)]
        return np.concatenate(parts), stream.rate
