"""Kinds without notes: engine, rain, wind. Their curves are slow: throttle, density, gusts."""

import numpy as np
from scipy.signal import lfilter

from avssl.data.demo.audio import Rng, add_at, band_noise, smooth_curve
from avssl.data.demo.kinds import Performance, Style, register_kind
from avssl.data.demo.painter import Painter
from avssl.data.demo.scene import Palette
from avssl.data.demo.timing import NUM_SAMPLES, SAMPLE_RATE, SECONDS, frame_times
from avssl.data.demo.tonal import at_frames

NOTHING = np.zeros(0)


def resonance(frequency: float, ring: float) -> tuple[list[float], list[float]]:
    """Two-pole resonator at ``frequency`` Hz that rings for ``ring`` seconds, as (numerator, denominator)."""
    radius, angle = np.exp(-1 / (ring * SAMPLE_RATE)), 2 * np.pi * frequency / SAMPLE_RATE
    return [np.sin(angle)], [1.0, -2 * radius * np.cos(angle), radius**2]


def knots_for(style: Style) -> int:
    """Turning points of a slow curve: 3 to 7 in a clip, more when the tempo is high."""
    return 3 + round(4 * style.tempo)


@register_kind("engine")
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


@register_kind("rain")
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


@register_kind("wind")
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
