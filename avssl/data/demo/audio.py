"""Synthesis primitives: struck modes, plucked strings, harmonics, noise, and the channel that colours them all."""

from collections.abc import Sequence

import numpy as np
from scipy.signal import fftconvolve, lfilter

from avssl.data.demo.timing import NUM_SAMPLES, SAMPLE_RATE, SAMPLES_PER_FRAME, sample_times

Rng = np.random.Generator


def add_at(track: np.ndarray, sound: np.ndarray, time: float) -> None:
    """Add ``sound`` (N,) into ``track`` (S,) so that its first sample falls on ``time`` seconds; cut at both ends."""
    start = round(time * SAMPLE_RATE)
    skip = max(0, -start)
    stop = min(len(track), start + len(sound))
    if stop > start + skip:
        track[start + skip : stop] += sound[skip : stop - start]


def modes(
    frequencies: np.ndarray, amplitudes: np.ndarray, decays: np.ndarray, seconds: float, fall: float = 0.0
) -> np.ndarray:
    """Modal synthesis: a sum of sine waves (Hz) that die away with the time constants ``decays`` (s); shape (N,).

    They begin ``fall`` octaves higher and slide down while they fade, as a soft body does when it springs back.
    """
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    heard = frequencies * 2**fall < 0.46 * SAMPLE_RATE
    turns = np.cumsum(2 ** (fall * np.exp(-3 * t / seconds))) / SAMPLE_RATE if fall else t
    waves = np.sin(2 * np.pi * np.outer(frequencies[heard], turns)) * np.exp(-t / decays[heard, None])
    return amplitudes[heard] @ waves


def pluck(rng: Rng, frequency: float, seconds: float, loss: float = 0.996, softness: float = 0.5) -> np.ndarray:
    """Karplus-Strong string: noise of one period in a comb filter with a two-tap low-pass; shape (N,).

    Karplus and Strong, "Digital Synthesis of Plucked-String and Drum Timbres", 1983. The second tap also tunes the
    delay to a fraction of a sample.
    """
    period = SAMPLE_RATE / frequency
    delay = int(period - 0.5)
    tap = np.clip(period - delay, 0.1, 0.9)
    excitation = np.zeros(int(seconds * SAMPLE_RATE))
    burst = rng.standard_normal(min(delay, len(excitation)))
    excitation[: len(burst)] = lfilter([1 - softness], [1, -softness], burst - burst.mean())
    feedback = np.zeros(delay + 2)
    feedback[0], feedback[delay], feedback[delay + 1] = 1.0, -loss * (1 - tap), -loss * tap
    sound = lfilter([1.0], feedback, excitation)
    return sound / (np.abs(sound).max() + 1e-9)


def impact(
    rng: Rng, frequency: float, ratios: Sequence[float], decay: float, noise: float, fall: float = 0.0
) -> np.ndarray:
    """A short knock: a few damped modes and a burst of noise, as of wood, skin or metal; shape (N,), peak about 1."""
    freq = frequency * np.asarray(ratios)
    ranks = np.arange(len(freq))
    sound = modes(freq, 0.7**ranks, decay * 0.75**ranks, 6 * decay, fall)
    burst = rng.standard_normal(len(sound)) * np.exp(-np.arange(len(sound)) / (0.006 * SAMPLE_RATE))
    sound = sound + noise * burst
    return sound / (np.abs(sound).max() + 1e-9)


def harmonics(frequency: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Harmonic tone that follows ``frequency`` (S,) in Hz; partials above the band fade out. Returns (S,)."""
    # Whole turns are dropped before the cast: single precision then suffices, and its sine is much faster.
    phase = (2 * np.pi * (np.cumsum(frequency) / SAMPLE_RATE % 1)).astype(np.float32)
    tone = np.zeros_like(phase)
    frequency = frequency.astype(np.float32)
    for order, weight in enumerate(weights, start=1):
        if weight and (order * frequency.min()) < 0.46 * SAMPLE_RATE:
            fade = np.clip((0.46 * SAMPLE_RATE - order * frequency) / 400, 0, 1)
            tone += np.float32(weight) * fade * np.sin(order * phase)
    return tone


def shaped_noise(rng: Rng, slope: float, samples: int = NUM_SAMPLES) -> np.ndarray:
    """Noise whose amplitude falls as frequency ** -slope (0 white, 0.5 pink, 1 brown, -0.5 blue); (S,), rms 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    freq = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * np.maximum(freq, 40.0) ** -slope, samples)
    return noise / noise.std()


def band_noise(rng: Rng, centre: float, octaves: float) -> np.ndarray:
    """Noise in a bell-shaped band on the log-frequency axis, ``octaves`` wide (one sigma); (S,), rms 1."""
    spectrum = np.fft.rfft(rng.standard_normal(NUM_SAMPLES))
    freq = np.maximum(np.fft.rfftfreq(NUM_SAMPLES, 1 / SAMPLE_RATE), 1.0)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * (np.log2(freq / centre) / octaves) ** 2), NUM_SAMPLES)
    return noise / noise.std()


def smooth_curve(rng: Rng, knots: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A slow random curve between ``low`` and ``high`` that reaches both, shape (S,): gusts, throttle, density."""
    values = rng.permutation(np.linspace(0, 1, knots))
    position = np.linspace(0, knots - 1, NUM_SAMPLES)
    left = np.minimum(position.astype(int), knots - 2)
    ease = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return low + (high - low) * (values[left] * (1 - ease) + values[left + 1] * ease)


def note_envelope(onset: float, seconds: float, attack: float, release: float) -> np.ndarray:
    """Rise, hold and fall of a sustained note that begins at ``onset`` and lasts ``seconds``; shape (S,) in 0..1."""
    t = sample_times() - onset
    return np.clip(t / attack, 0, 1) * np.clip((seconds - t) / release, 0, 1)


def equalize(rng: Rng, sound: np.ndarray, tilt: float, ripple: float) -> np.ndarray:
    """Random channel: ``tilt`` dB per octave round 1 kHz plus smooth ripples of ``ripple`` dB (one sigma); (S,)."""
    freq = np.maximum(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE), 20.0)
    octave = np.log2(freq / 1000)
    bumps = np.interp(octave, np.linspace(-4, 3, 9), rng.standard_normal(9) * ripple)
    return np.fft.irfft(np.fft.rfft(sound) * 10 ** ((tilt * octave + bumps) / 20), len(sound))


def room(rng: Rng, sound: np.ndarray, seconds: float, wet: float) -> np.ndarray:
    """Add a diffuse tail with time constant ``seconds``, ``wet`` times the direct sound's energy; the onset stays."""
    t = np.arange(int(4 * seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-t / seconds) * np.minimum(t / 0.01, 1)
    tail *= wet / np.sqrt(np.sum(tail**2))
    return sound + fftconvolve(sound, tail)[: len(sound)]


def level(sound: np.ndarray) -> float:
    """Root mean square over the loudest half of the clip, so that sparse knocks and steady hums compare fairly."""
    power = np.sort(frame_energy(sound) ** 2)
    power = power[len(power) // 2 :]
    return float(np.sqrt(power.mean()) + 1e-9)


def frame_energy(sound: np.ndarray) -> np.ndarray:
    """Root mean square of the sound during each video frame; (S,) -> (T,), S being T * SAMPLES_PER_FRAME."""
    return np.sqrt(np.mean(sound.reshape(-1, SAMPLES_PER_FRAME) ** 2, axis=1))
