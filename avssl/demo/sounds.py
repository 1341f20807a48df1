"""How the clips sound: their clock, the synthesis of struck, plucked and blown notes and of noise, the channel that
colours them, and the phrase that a clip plays.

Every synthesizer and painter of a set shares the rates; the lengths are the demo's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import fftconvolve, lfilter

SAMPLE_RATE = 16000
FPS = 12.5
NUM_FRAMES = 30
FRAME_SIZE = 80
SECONDS = NUM_FRAMES / FPS
SAMPLES_PER_FRAME = 1280  # a whole number at 12.5 frames a second: sound and picture share one grid
NUM_SAMPLES = NUM_FRAMES * SAMPLES_PER_FRAME


def frame_times(count: int = NUM_FRAMES) -> np.ndarray:
    """Mid-exposure time of each frame in seconds, shape (count,): frame i shows [i, i + 1) / FPS."""
    return (np.arange(count) + 0.5) / FPS


def sample_times() -> np.ndarray:
    """Time of each audio sample in seconds, shape (NUM_SAMPLES,)."""
    return np.arange(NUM_SAMPLES) / SAMPLE_RATE


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


BANDS = 5
UNSEEN_SHARE = 0.3
SCALE = np.array([-7, -5, -3, 0, 2, 4, 7])  # semitones round the register


@dataclass(frozen=True)
class Style:
    """How one clip sounds and moves, each in 0..1 and drawn alike for every kind.

    Attributes:
        pitch: register; as it rises the body shrinks.
        tempo: pace of the phrase.
        loudness: level of the sound; the glow of the body follows it.
    """

    pitch: float
    tempo: float
    loudness: float

    @classmethod
    def draw(cls, rng: Rng, unseen: bool) -> "Style":
        """Pitch and tempo lie in bands: the upper 30 % of each of five bands is kept for the unseen test clips."""

        def banded() -> float:
            low, high = (1 - UNSEEN_SHARE, 1.0) if unseen else (0.0, 1 - UNSEEN_SHARE)
            return float((rng.integers(BANDS) + rng.uniform(low, high)) / BANDS)

        return cls(pitch=banded(), tempo=banded(), loudness=float(rng.random()))

    @property
    def frequency(self) -> float:
        """Register in Hz: 180 to 1250, even on the log axis."""
        return 180 * 2 ** (2.8 * self.pitch)

    @property
    def period(self) -> float:
        """Beat in seconds: 0.5 down to 0.17."""
        return 0.5 * 2 ** (-1.55 * self.tempo)


@dataclass
class Performance:
    """A phrase as it sounds.

    Attributes:
        audio: (S,) waveform before the channel.
        onsets: (K,) seconds at which something is struck, plucked or begun (empty for textures).
        pitches: (K,) place of each note within the phrase, -1..1, as the picture shows it.
        strengths: (K,) loudness of each note, 0..1.
        tracks: further curves that the picture follows, (S,) or as the kind likes.
    """

    audio: np.ndarray
    onsets: np.ndarray
    pitches: np.ndarray
    strengths: np.ndarray
    tracks: dict[str, np.ndarray] = field(default_factory=dict)


def phrase(rng: Rng, period: float, start: float | None = None) -> np.ndarray:
    """Onsets (K,) in seconds of a short rhythm: even, dotted, galloping or with rests, hardly jittered."""
    pattern = [[1.0], [1.5, 0.5], [0.5, 0.5, 1.0], [1.0, 1.0, 2.0], [0.75, 0.75, 0.5]][rng.integers(5)]
    steps = np.tile(pattern, 40) * period
    first = rng.uniform(0.03, 0.03 + period) if start is None else start
    onsets = first + np.concatenate([[0.0], np.cumsum(steps)])
    onsets = onsets + rng.normal(0, 0.006, len(onsets))
    return onsets[onsets < SECONDS - 0.08]


def since_last(times: np.ndarray, onsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each time, (index of the last onset, or -1; seconds since it, or 9): both of the shape of ``times``."""
    index = np.searchsorted(onsets, times, side="right") - 1
    if len(onsets) == 0:
        return index, np.full(np.shape(times), 9.0)
    return index, np.where(index >= 0, times - onsets[np.maximum(index, 0)], 9.0)


def until_next(times: np.ndarray, onsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each time, (index of the next onset, or K; seconds until it, or 9)."""
    index = np.searchsorted(onsets, times, side="right")
    padded = np.append(onsets, np.inf)
    return index, np.minimum(padded[index] - times, 9.0)


def knocks(onsets: np.ndarray, strengths: np.ndarray, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Place one sound (N,) of the given strength at every onset; (S,)."""
    audio = np.zeros(NUM_SAMPLES)
    for onset, strength, sound in zip(onsets, strengths, sounds, strict=True):
        add_at(audio, strength * sound, onset)
    return audio


def at_frames(track: np.ndarray) -> np.ndarray:
    """Sample a curve (S,) in the middle of every frame: (NUM_FRAMES,)."""
    return track[SAMPLES_PER_FRAME // 2 :: SAMPLES_PER_FRAME]


def melody(rng: Rng, count: int) -> np.ndarray:
    """Semitones (count,) of a random walk on the scale."""
    steps = np.clip(np.cumsum(rng.integers(-2, 3, count)) + rng.integers(2, 5), 0, len(SCALE) - 1)
    return SCALE[steps]


def sustained(rng: Rng, style: Style, vibrato: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Slow notes: (onsets (K,), semitones (K,), pitch curve in Hz (S,), loudness curve (S,) in 0..1)."""
    onsets = phrase(rng, 2.2 * style.period, start=rng.uniform(-0.1, 0.3))
    semitones = melody(rng, len(onsets))
    ends = np.append(onsets[1:], SECONDS + 0.2) - rng.uniform(0.03, 0.1)
    loudness = np.zeros(NUM_SAMPLES)
    for onset, end in zip(onsets, ends, strict=True):
        loudness = np.maximum(loudness, rng.uniform(0.5, 1) * note_envelope(onset, end - onset, 0.07, 0.08))
    t = sample_times()
    index, _ = since_last(t, onsets)
    wobble = vibrato * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * t + rng.uniform(0, 6.3))
    curve = style.frequency * 2 ** ((semitones[np.maximum(index, 0)] + wobble) / 12)
    return onsets, semitones, curve, loudness


def resonance(frequency: float, ring: float) -> tuple[list[float], list[float]]:
    """Two-pole resonator at ``frequency`` Hz that rings for ``ring`` seconds, as (numerator, denominator)."""
    radius, angle = np.exp(-1 / (ring * SAMPLE_RATE)), 2 * np.pi * frequency / SAMPLE_RATE
    return [np.sin(angle)], [1.0, -2 * radius * np.cos(angle), radius**2]


def knots_for(style: Style) -> int:
    """Turning points of a slow curve: 3 to 7 in a clip, more when the tempo is high."""
    return 3 + round(4 * style.tempo)
