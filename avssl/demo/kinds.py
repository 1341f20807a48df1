"""The twelve kinds of sounding things: each makes a phrase, and paints itself playing that phrase.

Struck ones (bell, drum, ball, clock), ones with a pitch (plucked and bowed string, flute, siren, bird) and ones without
notes (engine, rain, wind), whose curves are slow: throttle, density, gusts.
"""

from typing import Protocol

import numpy as np
from scipy.signal import lfilter

from avssl.demo.pictures import Painter, Palette
from avssl.demo.sounds import (
    NUM_SAMPLES,
    SAMPLE_RATE,
    SECONDS,
    Performance,
    Rng,
    Style,
    add_at,
    at_frames,
    band_noise,
    frame_times,
    harmonics,
    impact,
    knocks,
    knots_for,
    melody,
    modes,
    phrase,
    pluck,
    resonance,
    sample_times,
    since_last,
    smooth_curve,
    sustained,
    until_next,
)

SKIN = (1.0, 1.59, 2.14, 2.65)  # modes of a round membrane
RUBBER = (1.0, 2.0)
BRASS = (1.0, 1.47, 2.09, 3.7)
NOTHING = np.zeros(0)


class Kind(Protocol):
    """A sounding thing: makes a phrase, and paints itself playing that phrase."""

    def perform(self, rng: Rng, style: Style) -> Performance: ...

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        """``glow``: (NUM_FRAMES,) smoothed loudness of the phrase in 0..1."""
        ...


class Bell:
    """Three metal bars, longer ones lower; a mallet strikes them and they ring with the partials of a free bar."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets = phrase(rng, style.period)
        bars = rng.integers(0, 3, len(onsets))
        strengths = rng.uniform(0.5, 1.0, len(onsets))
        ratios = np.array([1.0, 2.756, 5.404, 8.933]) * rng.normal(1, 0.01, 4)
        brightness, ring = rng.uniform(0.3, 0.8), rng.uniform(0.18, 0.45)
        audio = np.zeros(NUM_SAMPLES)
        for onset, bar, strength in zip(onsets, bars, strengths, strict=True):
            frequencies = style.frequency * 2 ** ((bar - 1) * 5 / 12) * ratios
            amplitudes = strength * brightness ** np.arange(4)
            add_at(audio, modes(frequencies, amplitudes, ring * 0.6 ** np.arange(4), 1.2), onset)
        return Performance(audio, onsets, bars - 1.0, strengths)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        index, since = since_last(t, performance.onsets)
        bars = np.append(performance.pitches, 9)
        shake = np.exp(-since / 0.25)
        for bar in (-1, 0, 1):
            rings = np.where(bars[index] == bar, shake, 0.0)
            wobble = 0.07 * rings * np.sin(40 * t)
            shade = palette.main + rings[:, None] * (palette.light - palette.main)
            painter.box(0.62 * bar, 0.25 + wobble, 0.26, 0.62 - 0.2 * bar, shade)
        following, wait = until_next(t, performance.onsets)
        near = np.minimum(np.minimum(since, wait) / 0.12, 1)
        target = np.where(wait < since, bars[np.minimum(following, len(bars) - 2)], bars[np.maximum(index, 0)])
        x, y = 0.62 * target, 0.15 - 0.9 * near
        painter.segment((x, y), (x + 0.25, y - 0.7), 0.09, palette.second)
        painter.disc(x, y, 0.19, palette.second)


class Drum:
    """Two sticks on a drum, in phrases and rolls."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets = phrase(rng, style.period)
        roll = rng.integers(0, len(onsets))
        steps = onsets[roll] + np.arange(1, rng.integers(3, 6)) * 0.075
        onsets = np.sort(np.append(onsets, steps[steps < SECONDS - 0.08]))
        onsets = onsets[np.append(True, np.diff(onsets) > 0.05)]
        hands = np.where(np.arange(len(onsets)) % 2 == 0, -1.0, 1.0)
        strengths = rng.uniform(0.45, 1.0, len(onsets))
        decay, rattle = rng.uniform(0.05, 0.12), rng.uniform(0.08, 0.16)
        sounds = []
        for hand in hands:
            skin = impact(rng, style.frequency * 2 ** (1.5 * hand / 12), SKIN, decay, noise=0.4)
            snare = rng.standard_normal(len(skin)) * np.exp(-np.arange(len(skin)) / (0.6 * decay * SAMPLE_RATE))
            sounds.append(skin + rattle * snare)
        return Performance(knocks(onsets, strengths, sounds), onsets, hands, strengths)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        painter.box(0, 0.5, 0.9, 0.38, palette.main)
        painter.disc(0, 0.88, 0.9, palette.main, squash=3.2)
        shade = palette.second + glow[:, None] * (palette.light - palette.second)
        painter.disc(0, 0.12, 0.9, shade, squash=3.2)
        for hand in (-1.0, 1.0):
            mine = performance.onsets[performance.pitches == hand]
            near = np.minimum(np.minimum(since_last(t, mine)[1], until_next(t, mine)[1]) / 0.11, 1)
            tip_x, tip_y = 0.3 * hand, 0.08 - 0.75 * near
            painter.segment((tip_x, tip_y), (tip_x + 0.75 * hand, tip_y - 0.45), 0.13, palette.light)


class Ball:
    """A ball that bounces under gravity: each impact is heard when it is seen, intervals shrink geometrically."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        keep = rng.uniform(0.7, 0.86)
        onsets, strengths = [rng.uniform(0.1, 0.35)], [1.0]
        while onsets[-1] < SECONDS - 0.08:
            gap = 1.7 * style.period * strengths[-1]
            if gap < 0.075:  # it lies still for a moment, then somebody throws it again
                gap, strengths[-1] = 0.45, 1.0
                continue
            onsets.append(onsets[-1] + gap)
            strengths.append(strengths[-1] * keep)
        times, force = np.array(onsets[:-1]), np.array(strengths[:-1])
        decay = rng.uniform(0.03, 0.06)
        thuds = [impact(rng, style.frequency, RUBBER, decay, noise=0.15, fall=1.0) for _ in times]
        audio = knocks(times, force, thuds)
        tracks = {"next": np.array(onsets[1:]), "first": np.array(onsets[:1])}
        return Performance(audio, times, np.zeros(len(times)), force, tracks)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        floor, radius = 0.95, 0.36
        height = self.height(frame_times(), performance)
        press = np.exp(-np.minimum(since_last(frame_times(), performance.onsets)[1], 9) / 0.04)
        painter.box(0, floor + 0.1, 1.1, 0.1, palette.second)
        shade = palette.main + glow[:, None] * (palette.light - palette.main)
        painter.disc(0, floor - radius * (1 - 0.25 * press) - height, radius, shade, squash=1 + 0.35 * press)

    @staticmethod
    def height(t: np.ndarray, performance: Performance) -> np.ndarray:
        """Height of the ball over the floor at ``t``, in body units: parabolas that touch 0 at every onset."""
        onsets, ends = performance.onsets, performance.tracks["next"]
        index, since = since_last(t, onsets)
        flight = (ends - onsets)[np.maximum(index, 0)]
        # Before the first impact it falls from the top of an arc like the next one.
        since = np.where(index < 0, t - onsets[0] + flight, since)
        return 1.5 * np.clip(4 * since / flight * (1 - since / flight), 0, None) * np.minimum(flight / 0.75, 1) ** 1.2


class Clock:
    """A pendulum clock: strictly even ticks, tick higher than tock, the hand steps on each."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        onsets = np.arange(rng.uniform(0.03, 0.03 + style.period), SECONDS - 0.08, style.period)
        sides = np.where(np.arange(len(onsets)) % 2 == 0, 1.0, -1.0)
        strengths = np.where(sides > 0, 1.0, rng.uniform(0.6, 1.0))
        decay, gap = rng.uniform(0.006, 0.014), rng.uniform(0.025, 0.045)
        ticks = []
        for side in sides:  # the escapement falls in two steps: every tick is a double click
            click = impact(rng, 1.5 * style.frequency * 2 ** (2 * side / 12), BRASS, decay, noise=0.6)
            tick = np.zeros(len(click) + int(gap * SAMPLE_RATE))
            tick[: len(click)] += 0.6 * click
            tick[-len(click) :] += click
            ticks.append(tick)
        return Performance(knocks(onsets, strengths, ticks), onsets, sides, strengths)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        onsets = performance.onsets
        period = onsets[1] - onsets[0]
        swing = 0.55 * np.cos(np.pi * (t - onsets[0]) / period)
        painter.segment((0, 0), (1.15 * np.sin(swing), 1.15 * np.cos(swing)), 0.1, palette.second)
        painter.disc(1.15 * np.sin(swing), 1.15 * np.cos(swing), 0.2, palette.second)
        shade = palette.main + glow[:, None] * (palette.light - palette.main)
        painter.disc(0, -0.25, 0.75, palette.second)
        painter.disc(0, -0.25, 0.62, shade)
        angle = (since_last(t, onsets)[0] + 1) * np.pi / 6
        dark = palette.ground * 0.4
        painter.segment((0, -0.25), (0.5 * np.sin(angle), -0.25 - 0.5 * np.cos(angle)), 0.13, dark)


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


class Engine:
    """Combustion pulses through a resonant body; the wheel turns and puffs leave the exhaust as fast as it runs."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        throttle = smooth_curve(rng, knots_for(style))
        rate = 16 * 2 ** (1.9 * throttle)
        beat = np.cumsum(rate / SAMPLE_RATE)
        fires = np.flatnonzero(np.diff(np.floor(beat), prepend=0) > 0)
        uneven = 1 + 0.35 * rng.standard_normal(4)
        pulses = np.zeros(NUM_SAMPLES)
        pulses[fires] = uneven[np.arange(len(fires)) % 4] + 0.1 * rng.standard_normal(len(fires))
        ring = rng.uniform(0.004, 0.012)
        low = lfilter(*resonance(style.frequency, ring), pulses)
        high = lfilter(*resonance(min(style.frequency * rng.uniform(2.1, 3.3), 6000), ring / 2), pulses)
        audio = (low / (low.std() + 1e-9) + rng.uniform(0.2, 0.8) * high / (high.std() + 1e-9)) * (0.5 + 0.5 * throttle)
        return Performance(audio, NOTHING, NOTHING, NOTHING, {"throttle": throttle})

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        throttle = at_frames(performance.tracks["throttle"])
        angle = np.cumsum(0.15 + 0.75 * throttle)
        shake = 0.05 * throttle * np.where(np.arange(len(throttle)) % 2 == 0, 1, -1)
        shade = palette.main + glow[:, None] * (palette.light - palette.main)
        painter.box(0.1, -0.3 + shake, 0.95, 0.4, shade)
        painter.box(0.75, -0.85 + shake, 0.13, 0.25, palette.main)
        painter.disc(-0.1, 0.4, 0.62, palette.second)
        painter.disc(-0.1, 0.4, 0.5, palette.ground * 0.6)
        for spoke in range(3):
            turn = angle + spoke * 2 * np.pi / 3
            tip = (-0.1 + 0.5 * np.cos(turn), 0.4 + 0.5 * np.sin(turn))
            painter.segment((-0.1, 0.4), tip, 0.15, palette.light if spoke == 0 else palette.second)
        for puff in range(3):
            rise = (angle / 4 + puff / 3) % 1
            radius = 0.13 + 0.3 * rise * throttle
            painter.disc(0.75 + 0.3 * rise, -1.1 - 0.35 * rise, radius, palette.light, 0.8 * (1 - rise))


class Rain:
    """Drops at random times, denser and sparser: each falls out of a cloud and pings when it lands."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        density = smooth_curve(rng, knots_for(style), 0.1, 1.0)
        count = rng.poisson(150 * SECONDS * density.mean())
        places = np.searchsorted(np.cumsum(density) / density.sum(), rng.random(count))
        onsets = np.sort(places / SAMPLE_RATE)
        strengths = 0.15 + rng.random(count) ** 3
        audio = np.zeros(NUM_SAMPLES)
        length = int(0.04 * SAMPLE_RATE)
        t = np.arange(length) / SAMPLE_RATE
        frequencies = 1.5 * style.frequency * 2 ** (0.4 * rng.standard_normal((count, 1)))
        decays = rng.uniform(0.003, 0.009, (count, 1))
        drops = strengths[:, None] * np.sin(2 * np.pi * frequencies * t * (1 + 6 * t)) * np.exp(-t / decays)
        for onset, drop in zip(onsets, drops, strict=True):
            add_at(audio, drop, onset)
        hiss = 0.06 * density * band_noise(rng, 2 * style.frequency, 1.0)
        seen = np.argsort(strengths)[::-1][: max(8, count // 5)]
        tracks = {"density": density, "seen": np.sort(onsets[seen]), "lanes": rng.uniform(-0.85, 0.85, len(seen))}
        return Performance(audio + hiss, NOTHING, NOTHING, NOTHING, tracks)

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        t = frame_times()
        for onset, lane in zip(performance.tracks["seen"], performance.tracks["lanes"], strict=True):
            wait = onset - t
            frames = np.flatnonzero((wait > -0.1) & (wait < 0.32))
            if len(frames):
                self._paint_drop(painter.during(frames), palette, wait[frames], lane)
        density = at_frames(performance.tracks["density"])
        shade = palette.main + 0.8 * density[:, None] * (palette.light - palette.main)
        for x, y, radius in ((-0.5, -0.8, 0.38), (0.0, -0.95, 0.45), (0.5, -0.8, 0.38)):
            painter.disc(x, y, radius, shade, squash=1.2)

    @staticmethod
    def _paint_drop(painter: Painter, palette: Palette, wait: np.ndarray, lane: float) -> None:
        bottom = 1.0 - 5.5 * np.maximum(wait, 0)
        painter.segment((lane, bottom - 0.22), (lane, bottom), 0.11, palette.light, (wait > 0) * 1.0)
        painter.ring(lane, 1.02, 0.12 + 1.2 * np.maximum(-wait, 0), 0.08, palette.second, (wait <= 0) * 0.9)


class Wind:
    """Gusts of filtered noise; blades of grass bend as far as it blows, and lean further in higher whistling."""

    def perform(self, rng: Rng, style: Style) -> Performance:
        gust = smooth_curve(rng, knots_for(style))
        bands = [band_noise(rng, style.frequency * 2**octave, rng.uniform(0.12, 0.3)) for octave in (-0.7, 0.0, 0.7)]
        weights = [np.exp(-0.5 * ((gust - centre) / 0.25) ** 2) for centre in (0.15, 0.55, 0.95)]
        audio = sum(weight * band for weight, band in zip(weights, bands, strict=True)) * (0.12 + gust**1.5)
        return Performance(np.asarray(audio), NOTHING, NOTHING, NOTHING, {"gust": gust})

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        gust = at_frames(performance.tracks["gust"])
        t = frame_times()
        painter.box(0, 1.02, 1.05, 0.1, palette.main)
        height = np.clip(1 - painter.y, 0, 2.2) / 2
        for blade in range(5):
            root = -0.95 + 0.36 * blade
            bend = 1.05 * gust + 0.06 * np.sin(9 * t + blade)
            top = -0.85 + 0.45 * gust + 0.12 * (blade % 2)
            shade = palette.second + glow[:, None] * (palette.light - palette.second)
            painter.curve(root + bend[:, None, None] * height**1.7, top, 1.0, 0.15, shade)


# By name, in the order of the classes.
KINDS: dict[str, Kind] = {
    "bell": Bell(),
    "drum": Drum(),
    "ball": Ball(),
    "clock": Clock(),
    "pluck": Pluck(),
    "bow": Bow(),
    "flute": Flute(),
    "siren": Siren(),
    "bird": Bird(),
    "engine": Engine(),
    "rain": Rain(),
    "wind": Wind(),
}
