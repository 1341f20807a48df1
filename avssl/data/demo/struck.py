"""Kinds that are struck: bell bars, a drum, a bouncing ball, a clock."""

from collections.abc import Sequence

import numpy as np

from avssl.data.demo.audio import Rng, add_at, impact, modes
from avssl.data.demo.kinds import Performance, Style, phrase, register_kind, since_last, until_next
from avssl.data.demo.painter import Painter
from avssl.data.demo.scene import Palette
from avssl.data.demo.timing import NUM_SAMPLES, SAMPLE_RATE, SECONDS, frame_times

SKIN = (1.0, 1.59, 2.14, 2.65)  # modes of a round membrane
RUBBER = (1.0, 2.0)
BRASS = (1.0, 1.47, 2.09, 3.7)


def knocks(onsets: np.ndarray, strengths: np.ndarray, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Place one sound (N,) of the given strength at every onset; (S,)."""
    audio = np.zeros(NUM_SAMPLES)
    for onset, strength, sound in zip(onsets, strengths, sounds, strict=True):
        add_at(audio, strength * sound, onset)
    return audio


@register_kind("bell")
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


@register_kind("drum")
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


@register_kind("ball")
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


@register_kind("clock")
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
