"""One demo clip, wholly determined by (seed, split, index): what sounds, how it looks, what else is heard."""

from dataclasses import dataclass

import numpy as np

# Importing the modules of kinds registers them, in this order.
from avssl.data.demo import struck, tonal, textures  # noqa: F401  # isort: skip
from avssl.data.demo.audio import Rng, equalize, frame_energy, level, room, shaped_noise
from avssl.data.demo.kinds import KINDS, Performance, Style
from avssl.data.demo.painter import Painter
from avssl.data.demo.scene import Palette, paint_background, paint_distractors
from avssl.data.demo.timing import FPS, FRAME_SIZE, NUM_SAMPLES

CLASSES: tuple[str, ...] = tuple(KINDS)
SPLITS = ("pretrain", "train", "test")
NOISE_SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}
UNSEEN_NOISE_SLOPES = {"blue": -0.25, "pulsing": 0.3}


@dataclass(frozen=True)
class Clip:
    """A clip and the truth about it.

    Attributes:
        frames: (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3) uint8.
        audio: (NUM_SAMPLES,) float32 in -1..1, 16 kHz.
        event: name of the kind that sounds and is seen.
        style: register, tempo and loudness.
        onsets: (K,) seconds of the notes or impacts.
        box: x, y, size of the body in pixels.
    """

    frames: np.ndarray
    audio: np.ndarray
    event: str
    style: Style
    onsets: np.ndarray
    box: tuple[float, float, float]


def make_clip(seed: int, split: str, index: int) -> Clip:
    """Make clip ``index`` of ``split``. Training and test clips go round the classes; pretraining clips draw one.

    Test clips have registers, tempos, noises and backgrounds that occur in no other split.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    unseen = split == "test"
    drawn = int(rng.integers(len(CLASSES)))
    event = CLASSES[drawn if split == "pretrain" else index % len(CLASSES)]
    style = Style.draw(rng, unseen)
    performance = KINDS[event].perform(rng, style)
    glow = follow(frame_energy(performance.audio)) * (0.15 + 0.85 * style.loudness)
    frames, box = _picture(rng, event, style, performance, glow, unseen)
    audio = _channel(rng, performance.audio, style, unseen)
    return Clip(frames, audio, event, style, performance.onsets, box)


def follow(energy: np.ndarray, release: float = 0.2) -> np.ndarray:
    """Loudness as the eye shall see it: rises at once, falls with time constant ``release`` s; (T,) -> (T,) in 0..1."""
    peak, keep = energy.max() + 1e-9, np.exp(-1 / (release * FPS))
    glow = np.zeros(len(energy))
    value = 0.0
    for i, power in enumerate(energy / peak):
        value = max(float(power) ** 0.7, value * keep)
        glow[i] = value
    return glow


def _picture(
    rng: Rng, event: str, style: Style, performance: Performance, glow: np.ndarray, unseen: bool
) -> tuple[np.ndarray, tuple[float, float, float]]:
    palette = Palette.draw(rng)
    frames = paint_background(rng, palette, unseen)
    paint_distractors(rng, frames)
    size = 34 * 2 ** (-0.95 * style.pitch)
    margin = min(1.25 * size, FRAME_SIZE / 2)
    x, y = rng.uniform(margin, FRAME_SIZE - margin, 2)
    painter = Painter(frames, x, y, size, mirror=bool(rng.random() < 0.5), reach=1.8)
    painter.glow(0, 0, 0.75, palette.light, 0.8 * glow)
    KINDS[event].paint(painter, palette, performance, glow)
    frames += 0.012 * rng.standard_normal((FRAME_SIZE, FRAME_SIZE), np.float32)  # the grain of the sensor
    pixels = (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0)), (float(x), float(y), float(size))


def _channel(rng: Rng, sound: np.ndarray, style: Style, unseen: bool) -> np.ndarray:
    """Room, random equalizer, a weak sound of another kind, background noise, level."""
    sound = room(rng, sound, rng.uniform(0.03, 0.15), rng.uniform(0.0, 0.35))
    sound = equalize(rng, sound, tilt=rng.uniform(-2, 2), ripple=2.5)
    sound = sound / level(sound)
    if rng.random() < 0.3:
        other = CLASSES[rng.integers(len(CLASSES))]
        stray = KINDS[other].perform(rng, Style.draw(rng, unseen)).audio
        sound = sound + 10 ** (-rng.uniform(18, 26) / 20) * stray / level(stray)
    slopes = UNSEEN_NOISE_SLOPES if unseen else NOISE_SLOPES
    name = str(rng.choice(list(slopes)))
    noise = shaped_noise(rng, slopes[name])
    if name == "pulsing":
        noise = noise * (1 + 0.7 * np.sin(2 * np.pi * rng.uniform(2, 5) * np.arange(NUM_SAMPLES) / 16000))
    sound = sound + 10 ** (-rng.uniform(12, 28) / 20) * noise
    sound = sound * 10 ** ((-34 + 20 * style.loudness) / 20) / level(sound)
    return (0.98 * np.tanh(sound / 0.98)).astype(np.float32)
