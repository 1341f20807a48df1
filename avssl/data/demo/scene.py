"""What surrounds the sounding body: colours, moving backgrounds and silent shapes, none of which tells its kind."""

import colorsys
from dataclasses import dataclass

import numpy as np

from avssl.data.demo.audio import Rng
from avssl.data.demo.painter import Painter
from avssl.data.demo.timing import FRAME_SIZE, NUM_FRAMES, frame_times

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
