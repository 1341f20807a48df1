"""Kinds with a pitch: plucked and bowed string, flute, siren, bird."""

import numpy as np

from avssl.data.demo.audio import Rng, add_at, band_noise, harmonics, note_envelope, pluck, smooth_curve
from avssl.data.demo.kinds import Performance, Style, phrase, register_kind, since_last
from avssl.data.demo.painter import Painter
from avssl.data.demo.scene import Palette
from avssl.data.demo.timing import NUM_SAMPLES, SAMPLE_RATE, SAMPLES_PER_FRAME, SECONDS, frame_times, sample_times

SCALE = np.array([-7, -5, -3, 0, 2, 4, 7])  # semitones round the register


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


@register_kind("pluck")
class Pluck:
    """Three strings between two pegs; a plucked one swings wide and dies away (Karplus-Strong)."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets = phrase(rng, style.period)
        strings = rng.integers(0, 3, len(onsets))
        strengths = rng.uniform(0.5, 1.0, len(onsets))
        softness = rng.uniform(0.1, 0.7)
        audio = np.zeros(NUM_SAMPLES)
        for onset, string, strength in zip(onsets, strings, strengths, strict=True):
            frequency = style.frequency * 2 ** ((string - 1) * 5 / 12)
            loss = 0.001 ** (1 / (frequency * 1.2))  # so that high strings ring as long as low ones: 60 dB in 1.2 s
            add_at(audio, strength * pluck(rng, frequency, 0.9, loss, softness), onset)
        return Performance(audio, onsets, strings - 1.0, strengths)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        index, since = since_last(t, performance.onsets)
        strings = np.append(performance.pitches, 9)
        arch = np.cos(np.pi / 2 * painter.y / 0.95)
        painter.box(0, -1.02, 0.95, 0.12, palette.main)
        painter.box(0, 1.02, 0.95, 0.12, palette.main)
        for string in (-1, 0, 1):
            swing = np.where(strings[index] == string, 0.34 * np.exp(-since / 0.22), 0.0)
            shade = palette.second + (swing[:, None] / 0.34) * (palette.light - palette.second)
            for side in (-1, 1):  # the eye sees both ends of the swing at once
                painter.curve(0.6 * string + side * (swing[:, None, None] * arch), -0.95, 0.95, 0.13, shade)


@register_kind("bow")
class Bow:
    """A bow that goes to and fro over a string: sawtooth with vibrato and slow swells."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets, semitones, curve, loudness = sustained(rng, style, vibrato=0.4)
        tone = harmonics(curve, 1 / np.arange(1, 21) ** rng.uniform(0.8, 1.4))
        scratch = 0.15 * band_noise(rng, 2 * style.frequency, 1.0)
        return Performance(
            (tone + scratch) * loudness, onsets, semitones / 7, np.ones(len(onsets)), {"loudness": loudness}
        )

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        index, _ = since_last(t, performance.onsets)
        loud = at_frames(performance.tracks["loudness"])
        direction = np.where(index % 2 == 0, 1.0, -1.0)
        travel = np.cumsum(direction * loud * 0.22)
        travel = 0.55 * np.sin(travel - travel.mean())
        painter.disc(0, 0.35, 0.62, palette.main, squash=0.75)
        painter.box(0, -0.55, 0.12, 0.75, palette.main)
        shade = palette.second + glow[:, None] * (palette.light - palette.second)
        painter.segment((travel - 0.95, 0.45 - 0.3), (travel + 0.95, 0.45 + 0.1), 0.14, shade)
        finger = performance.pitches[np.maximum(index, 0)]
        painter.disc(0, -0.6 + 0.5 * finger, 0.17, palette.light)


@register_kind("flute")
class Flute:
    """A pipe: nearly pure tone and breath; rings leave its end as wide as it is loud, a finger shows the note."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets, semitones, curve, loudness = sustained(rng, style, vibrato=0.15)
        tone = harmonics(curve, [1.0, rng.uniform(0.02, 0.3), rng.uniform(0.02, 0.2)])
        breath = rng.uniform(0.1, 0.35) * band_noise(rng, 1.5 * style.frequency, 0.7)
        tremolo = 1 + 0.25 * np.sin(2 * np.pi * rng.uniform(4, 6) * sample_times())
        audio = (tone + breath) * loudness * tremolo
        return Performance(audio, onsets, semitones / 7, np.ones(len(onsets)), {"loudness": loudness})

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        index, _ = since_last(frame_times(), performance.onsets)
        loud = at_frames(performance.tracks["loudness"])
        painter.segment((-1.0, 0.35), (0.35, 0.0), 0.4, palette.main)
        dark = palette.ground * 0.4
        for hole in (-0.7, -0.35, 0.0):
            painter.disc(hole, 0.35 - 0.26 * (hole + 1), 0.1, dark)
        finger = -0.35 + 0.5 * performance.pitches[np.maximum(index, 0)]
        painter.segment((finger, 0.05 - 0.26 * (finger + 1)), (finger, -0.45), 0.2, palette.second)
        painter.ring(0.75, -0.1, 0.08 + 0.3 * loud, 0.13, palette.light, (loud > 0.03) * 1.0)
        painter.ring(0.75, -0.1, 0.12 + 0.55 * loud, 0.1, palette.light, (loud > 0.03) * 0.6)


@register_kind("siren")
class Siren:
    """A tone that sweeps up and down; a slider on a rail stands as high as the pitch."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        cycle = 3.2 * style.period
        place = (sample_times() / cycle + rng.random()) % 1
        shape = rng.integers(4)
        if shape == 0:
            sweep = np.sin(2 * np.pi * place)
        elif shape == 1:
            sweep = 4 * np.abs(place - 0.5) - 1
        else:  # rising or falling again and again, with a quick return
            sweep = np.where(place < 0.9, place / 0.9, (1 - place) / 0.1) * 2 - 1
            sweep = sweep if shape == 2 else -sweep
        frequency = style.frequency * 2 ** (0.7 * sweep)
        richness = rng.uniform(0.05, 0.6)
        tone = harmonics(frequency, [richness**k for k in range(8)])
        loudness = smooth_curve(rng, 4, 0.5, 1.0)
        return Performance(tone * loudness, np.zeros(0), np.zeros(0), np.zeros(0), {"sweep": sweep})

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        height = -0.75 * at_frames(performance.tracks["sweep"])
        painter.box(0.55, 0, 0.09, 1.05, palette.second)
        painter.box(0.55, height, 0.3, 0.16, palette.light)
        shade = palette.main + glow[:, None] * (palette.light - palette.main)
        painter.polygon([(-1.0, height - 0.45), (0.1, height), (-1.0, height + 0.45)], shade)


@register_kind("bird")
class Bird:
    """A bird that twitters: groups of fast frequency-modulated chirps; its beak opens and it hops with each."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets = phrase(rng, 1.6 * style.period)
        count, length = int(rng.integers(2, 5)), rng.uniform(0.035, 0.06)
        direction, width = rng.choice([-1, 1]), rng.uniform(0.5, 1.0)
        semitones = melody(rng, len(onsets))
        strengths = rng.uniform(0.6, 1.0, len(onsets))
        t = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
        audio = np.zeros(NUM_SAMPLES)
        for onset, semitone, strength in zip(onsets, semitones, strengths, strict=True):
            frequency = 1.3 * style.frequency * 2 ** (semitone / 12 + direction * width * (2 * t / length - 1) / 2)
            chirp = strength * np.sin(np.pi * t / length) ** 0.5 * harmonics(frequency, [1.0, 0.3, 0.1])
            for repeat in range(count):
                add_at(audio, chirp, onset + repeat * 1.25 * length)
        return Performance(audio, onsets, semitones / 7, strengths, {"song": np.array([count * 1.25 * length])})

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        index, since = since_last(frame_times(), performance.onsets)
        song = performance.tracks["song"][0]
        sings = np.clip((song + 0.1 - since) / 0.1, 0, 1)
        up = 0.12 * sings
        head_y = -0.3 - up - 0.15 * performance.pitches[np.maximum(index, 0)]
        for leg in (-0.3, 0.0):
            painter.segment((leg, 0.5 - up), (leg, 1.05 - up), 0.08, palette.second)
        painter.polygon([(-0.6, 0.05 - up), (-0.45, 0.45 - up), (-1.25, 0.1 - up + 0.25 * sings)], palette.main)
        painter.disc(-0.15, 0.3 - up, 0.6, palette.main, squash=1.3)
        shade = palette.second + glow[:, None] * (palette.light - palette.second)
        painter.disc(0.3, head_y, 0.4, shade)
        gape = 0.05 + 0.45 * sings
        painter.polygon([(0.62, head_y - 0.08), (1.15, head_y - gape), (0.68, head_y + 0.05)], palette.light)
        painter.polygon([(0.66, head_y - 0.02), (1.15, head_y + gape), (0.58, head_y + 0.14)], palette.light)
        painter.disc(0.38, head_y - 0.1, 0.09, palette.ground * 0.3)
