"""What may happen to a sound before a classifier hears it: noise, rooms, telephones, codecs, gaps."""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.codec import Codec, through_codec

Change = Callable[[FloatArray, int, np.random.Generator], FloatArray]


@dataclass(frozen=True)
class Degradation:
    """One condition.

    Attributes:
        group: kind of damage, "noise" for example.
        name: within all conditions, with its strength: "noise, SNR 10 dB".
        change: waveform (S,), sample rate in Hz and a generator -> waveform (S,).
    """

    group: str
    name: str
    change: Change

    def __call__(self, waveform: FloatArray, sample_rate: int, key: str, seed: int = 0) -> FloatArray:
        """The degraded waveform; all that is random in it depends on ``seed``, ``key`` (a clip's id) and the name."""
        if not len(waveform):
            return waveform
        rng = np.random.default_rng((seed, zlib.crc32(key.encode()), zlib.crc32(self.name.encode())))
        return self.change(waveform, sample_rate, rng).astype(np.float32)


def degradations(sample_rate: int) -> list[Degradation]:
    """All conditions that make sense at a sample rate: no filter whose edge lies beyond half of it."""
    conditions = [Degradation("noise", f"noise, SNR {snr} dB", _noise(snr)) for snr in (20, 10, 0, -5)]
    conditions += [Degradation("room", f"reverberation, {time:g} s", _room(time)) for time in (0.3, 0.8, 2.0)]
    bands = {"low-pass 4 kHz": (None, 4000.0), "high-pass 500 Hz": (500.0, None), "telephone band": (300.0, 3400.0)}
    conditions += [
        Degradation("band", name, _band(low, high))
        for name, (low, high) in bands.items()
        if max(low or 0, high or 0) < 0.475 * sample_rate
    ]
    conditions += [Degradation("level", f"gain {gain:+d} dB", _gain(gain)) for gain in (-40, -20)]
    conditions += [Degradation("level", f"clipped, {share:.0%} of samples", _clip(share)) for share in (0.05, 0.25)]
    codecs: tuple[tuple[Codec, int], ...] = (("mp3", 32), ("mp3", 16), ("opus", 12), ("opus", 6))
    conditions += [Degradation("codec", f"{codec} {rate} kbit/s", _codec(codec, rate)) for codec, rate in codecs]
    return conditions + [Degradation("gap", f"{share:.0%} missing", _gap(share)) for share in (0.2, 0.5)]


def _noise(snr: float) -> Change:
    """White noise at a signal-to-noise ratio in dB over the clip; digital silence stays as it is."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        power = float(np.mean(np.square(waveform, dtype=np.float64)))
        return waveform + np.sqrt(power / 10 ** (snr / 10)) * rng.standard_normal(len(waveform))

    return change


def _room(seconds: float) -> Change:
    """A synthetic room: direct sound, then noise that falls by 60 dB in ``seconds``, as loud as the direct sound.

    Exponentially decaying noise is Polack's model of late reverberation (1988). The result has the power of the input.
    """

    def change(waveform: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
        time = np.arange(round(seconds * sample_rate)) / sample_rate
        tail = rng.standard_normal(len(time)) * np.exp(-np.log(1000) * time / seconds)
        tail[: round(0.002 * sample_rate)] = 0  # no wall is nearer
        response = tail / max(np.linalg.norm(tail), 1e-12)
        response[0] = 1.0
        wet = fftconvolve(waveform.astype(np.float64), response)[: len(waveform)]
        before, after = (float(np.mean(np.square(part, dtype=np.float64))) for part in (waveform, wet))
        return wet * np.sqrt(before / after) if after > 0 else wet

    return change


def _band(low: float | None, high: float | None) -> Change:
    """Butterworth filter of order 8 with edges in Hz (order 4 at each edge of a band-pass)."""

    def change(waveform: FloatArray, sample_rate: int, _: np.random.Generator) -> FloatArray:
        return sosfilt(_butterworth(low, high, sample_rate), waveform.astype(np.float64))

    return change


@functools.lru_cache
def _butterworth(low: float | None, high: float | None, sample_rate: int) -> FloatArray:
    if low and high:
        return butter(4, (low, high), "bandpass", fs=sample_rate, output="sos")
    return butter(8, low or high, "highpass" if low else "lowpass", fs=sample_rate, output="sos")


def _gain(decibels: float) -> Change:
    """Quieter, then rounded to 16 bits, as a recording at that level is: what is too quiet is gone."""
    return lambda waveform, _, rng: np.round(waveform * 10 ** (decibels / 20) * 32768) / 32768


def _clip(share: float) -> Change:
    """Hard clipping at the level that this share of the samples is above."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        limit = float(np.quantile(np.abs(waveform), 1 - share))
        return np.clip(waveform, -limit, limit)

    return change


def _codec(codec: Codec, kilobits: int) -> Change:
    """Encoded at a low bit-rate and decoded."""
    return lambda waveform, rate, _: through_codec(waveform, rate, codec, 1000 * kilobits)


def _gap(share: float) -> Change:
    """One gap of silence, anywhere."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        length = round(share * len(waveform))
        start = int(rng.integers(len(waveform) - length + 1))
        result = waveform.copy()
        result[start : start + length] = 0
        return result

    return change
