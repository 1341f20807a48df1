"""How the clips look: anti-aliased shapes painted into all frames at once, and what surrounds the sounding body.

Colours, moving backgrounds and silent shapes tell nothing of the kind.
"""

import colorsys
import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avssl.demo.sounds import FRAME_SIZE, NUM_FRAMES, Rng, frame_times

Track = float | np.ndarray
Colour = np.ndarray


class Painter:
    """Paints shapes in the units of one body: (0, 0) is its centre, 1 its size, y points down.

    Every coordinate, radius and opacity may be a number or a track of shape (T,), a value a frame.

    Args:
        frames: (3, T, H, W) float32 in 0..1, painted in place (planes blend fastest).
        x, y: the body's centre in pixels, number or track.
        size: pixels per unit.
        mirror: swap left and right.
        reach: how far from the centre, in units, shapes are painted (the rest is clipped, which saves time).
    """

    def __init__(
        self, frames: np.ndarray, x: Track, y: Track, size: float, mirror: bool = False, reach: float = 1.5
    ) -> None:
        self.size = size
        margin = reach * size
        height, width = frames.shape[2:]
        columns = slice(max(0, int(np.min(x) - margin)), min(width, int(np.max(x) + margin) + 2))
        rows = slice(max(0, int(np.min(y) - margin)), min(height, int(np.max(y) + margin) + 2))
        self.frames = frames[:, :, rows, columns]
        grid_x = (np.arange(width, dtype=np.float32)[columns] + 0.5)[None, None, :]
        grid_y = (np.arange(height, dtype=np.float32)[rows] + 0.5)[None, :, None]
        self.x = (grid_x - _track(x)) / np.float32(-size if mirror else size)
        self.y = (grid_y - _track(y)) / np.float32(size)

    def disc(self, x: Track, y: Track, radius: Track, colour: Colour, alpha: Track = 1.0, squash: Track = 1.0) -> None:
        """Filled ellipse; ``squash`` divides its height."""
        distance = np.hypot(self.x - _track(x), (self.y - _track(y)) * _track(squash)) - _track(radius)
        self._fill(distance, colour, alpha)

    def ring(self, x: Track, y: Track, radius: Track, width: Track, colour: Colour, alpha: Track = 1.0) -> None:
        """Circle line of the given width."""
        distance = np.abs(np.hypot(self.x - _track(x), self.y - _track(y)) - _track(radius)) - _track(width) / 2
        self._fill(distance, colour, alpha)

    def segment(
        self, start: tuple[Track, Track], end: tuple[Track, Track], width: Track, colour: Colour, alpha: Track = 1.0
    ) -> None:
        """Line with round ends."""
        from_x, from_y = self.x - _track(start[0]), self.y - _track(start[1])
        along_x, along_y = _track(end[0]) - _track(start[0]), _track(end[1]) - _track(start[1])
        share = (from_x * along_x + from_y * along_y) / (along_x**2 + along_y**2 + np.float32(1e-6))
        share = np.clip(share, 0, 1)
        distance = np.hypot(from_x - share * along_x, from_y - share * along_y) - _track(width) / 2
        self._fill(distance, colour, alpha)

    def box(
        self, x: Track, y: Track, half_width: Track, half_height: Track, colour: Colour, alpha: Track = 1.0
    ) -> None:
        """Upright rectangle."""
        distance = np.maximum(
            np.abs(self.x - _track(x)) - _track(half_width), np.abs(self.y - _track(y)) - _track(half_height)
        )
        self._fill(distance, colour, alpha)

    def polygon(self, corners: Sequence[tuple[Track, Track]], colour: Colour, alpha: Track = 1.0) -> None:
        """Convex polygon, corners clockwise as seen on the screen."""
        distance = np.full_like(self.x[:1] + self.y[:1], -9)
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            step_x, step_y = _track(x1) - _track(x0), _track(y1) - _track(y0)
            normal = np.hypot(step_x, step_y) + np.float32(1e-6)
            side = ((self.x - _track(x0)) * step_y - (self.y - _track(y0)) * step_x) / normal
            distance = np.maximum(distance, side)
        self._fill(distance, colour, alpha)

    def curve(self, sideways: np.ndarray, low: Track, high: Track, width: float, colour: Colour) -> None:
        """Upright curve x = sideways(y) between the heights ``low`` < ``high``; ``sideways`` has the grid's shape."""
        beyond_ends = np.maximum(_track(low) - self.y, self.y - _track(high))
        distance = np.maximum(np.abs(self.x - sideways) - width / 2, beyond_ends)
        self._fill(distance, colour, 1.0)

    def glow(self, x: Track, y: Track, radius: float, colour: Colour, strength: Track) -> None:
        """Soft halo."""
        square = (self.x - _track(x)) ** 2 + (self.y - _track(y)) ** 2
        self._blend(np.exp(square * np.float32(-0.5 / radius**2)) * _track(strength), colour)

    def during(self, frames: np.ndarray) -> "Painter":
        """A painter of these frames only (indices without gaps); tracks given to it have shape (len(frames),)."""
        span = slice(int(frames[0]), int(frames[-1]) + 1)
        part = copy.copy(self)
        part.frames = self.frames[:, span]
        part.x = self.x[span] if len(self.x) > 1 else self.x
        part.y = self.y[span] if len(self.y) > 1 else self.y
        return part

    def _fill(self, distance: np.ndarray, colour: Colour, alpha: Track) -> None:
        coverage = np.clip(np.float32(0.5) - distance * np.float32(self.size), 0, 1)
        self._blend(coverage * _track(alpha), colour)

    def _blend(self, alpha: np.ndarray, colour: Colour) -> None:
        """Colour is (3,) or a track (T, 3)."""
        for plane, shade in zip(self.frames, np.asarray(colour, np.float32).T, strict=True):
            plane += alpha * (_track(shade) - plane)


def _track(value: Track) -> np.ndarray:
    """Numbers become scalars, tracks (T,) become (T, 1, 1), grids stay."""
    array = np.asarray(value, np.float32)
    return array.reshape(-1, 1, 1) if array.ndim == 1 else array


BACKGROUNDS = ("gradient", "stripes", "clouds")
UNSEEN_BACKGROUNDS = ("checks", "ripples")


@dataclass(frozen=True)
class Palette:
    """Colours of a clip, each (3,) in 0..1: a bright body on a dark ground, hues at random.

    None depends on the kind or on the sound: a hue that followed the register would pair sound and picture without
    any look at what sounds.
    """

    main: np.ndarray
    second: np.ndarray
    light: np.ndarray
    ground: np.ndarray
    ground_end: np.ndarray

    @classmethod
    def draw(cls, rng: Rng) -> "Palette":
        def colour(lightness: float, saturation: float) -> np.ndarray:
            return np.array(colorsys.hls_to_rgb(rng.random(), lightness, saturation), np.float32)

        return cls(
            main=colour(rng.uniform(0.5, 0.6), rng.uniform(0.6, 1.0)),
            second=colour(rng.uniform(0.65, 0.8), rng.uniform(0.2, 1.0)),
            light=colour(0.93, 1.0),
            ground=colour(rng.uniform(0.03, 0.16), rng.uniform(0.1, 0.8)),
            ground_end=colour(rng.uniform(0.03, 0.2), rng.uniform(0.1, 0.8)),
        )


def paint_background(
    rng: Rng, palette: Palette, unseen: bool, count: int = NUM_FRAMES, size: int = FRAME_SIZE
) -> np.ndarray:
    """Drifting texture between the two ground colours: (3, count, size, size) float32 in 0..1."""
    kind = rng.choice(UNSEEN_BACKGROUNDS if unseen else BACKGROUNDS)
    angle, wavelength, speed = rng.uniform((0, 0.25, -0.25), (2 * np.pi, 0.9, 0.25)).astype(np.float32)
    axis = np.arange(size, dtype=np.float32) / size - np.float32(0.5)
    x, y = axis[None, None, :], axis[None, :, None]
    t = frame_times(count).astype(np.float32)[:, None, None]
    along = np.cos(angle) * x + np.sin(angle) * y + speed * t
    across = -np.sin(angle) * x + np.cos(angle) * y
    if kind == "gradient":
        share = 0.5 + 0.7 * (along - speed * t) + 0.3 * np.sin(4 * speed * t)
    elif kind == "stripes":
        share = 0.5 + 0.5 * np.sin(2 * np.pi * along / wavelength)
    elif kind == "clouds":
        share = 0.5 + sum(
            0.4 / k * np.sin(np.float32(np.pi * k) / wavelength * along + p) * np.cos(5 * k * across + q)
            for k, p, q in zip((1, 2, 3), *rng.uniform(0, 6.3, (2, 3)).astype(np.float32), strict=True)
        )
    elif kind == "checks":
        share = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * along / wavelength) * np.sin(2 * np.pi * across / wavelength))
    else:
        share = 0.5 + 0.5 * np.sin(2 * np.pi * (np.hypot(x - 0.3 * np.cos(angle), y) / wavelength + 2 * speed * t))
    share = np.broadcast_to(np.clip(share, 0, 1).astype(np.float32), (count, size, size))
    return np.stack([a + share * (b - a) for a, b in zip(palette.ground, palette.ground_end, strict=True)])


def paint_distractors(rng: Rng, frames: np.ndarray) -> None:
    """Up to two small dim shapes that drift evenly and make no sound."""
    t, size = frame_times(frames.shape[1]), frames.shape[2]
    for _ in range(rng.integers(0, 3)):
        colour = np.array(colorsys.hls_to_rgb(rng.random(), rng.uniform(0.15, 0.35), 0.5), np.float32)
        x = rng.uniform(0, size) + rng.uniform(-10, 10) * t
        y = rng.uniform(0, size) + rng.uniform(-10, 10) * t
        painter = Painter(frames, x, y, rng.uniform(3, 7))
        shape = rng.integers(3)
        if shape == 0:
            painter.disc(0, 0, 1, colour)
        elif shape == 1:
            painter.box(0, 0, 1.0, rng.uniform(0.3, 1.0), colour)
        else:
            painter.ring(0, 0, 0.9, 0.4, colour)
