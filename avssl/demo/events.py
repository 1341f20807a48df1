"""The demo set: its clips, each wholly determined by (seed, split, index), and what its manifest says of them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from avssl.demo.build import Recipe, RenderedClip, build_set, ensure_set, set_rows
from avssl.demo.kinds import KINDS
from avssl.demo.pictures import Painter, Palette, paint_background, paint_distractors
from avssl.demo.sounds import (
    FPS,
    FRAME_SIZE,
    NUM_SAMPLES,
    Performance,
    Rng,
    Style,
    equalize,
    frame_energy,
    level,
    room,
    shaped_noise,
)

HEAD = "event"
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


@dataclass(frozen=True)
class DemoRecipe(Recipe):
    """Seed and numbers of clips of the demo set.

    Attributes:
        seed: another seed gives other clips of the same kinds.
        pretrain: clips without labels.
        train_per_class, test_per_class: labelled clips of each of the `CLASSES`.
        version: raised whenever the clips change.
    """

    name: ClassVar[str] = "demo"
    standing: ClassVar[int | None] = FRAME_SIZE

    seed: int = 0
    pretrain: int = 800
    train_per_class: int = 24
    test_per_class: int = 12
    version: int = 2

    @property
    def heads(self) -> dict[str, list[str]]:
        return {HEAD: list(CLASSES)}

    def clips(self) -> list[tuple[str, int]]:
        counts = {
            "pretrain": self.pretrain,
            "train": self.train_per_class * len(CLASSES),
            "test": self.test_per_class * len(CLASSES),
        }
        return [(split, index) for split, count in counts.items() for index in range(count)]

    def make(self, split: str, index: int) -> RenderedClip:
        """Pretraining clips get no label."""
        clip = make_clip(self.seed, split, index)
        truth = {"onsets": np.round(clip.onsets, 5).tolist(), "body": np.round(clip.box, 2).tolist()}
        label = {} if split == "pretrain" else {f"label.{HEAD}": clip.event}
        return RenderedClip(clip.frames, clip.audio, label, {**asdict(clip.style), **truth})


def ensure_demo(root: Path | None = None, *, workers: int = 2, **counts: int) -> Path:
    """`ensure_set` of the demo; ``counts`` are the fields of `DemoRecipe`."""
    return ensure_set(DemoRecipe(**counts), root, workers=workers)


def build_demo(root: Path, *, workers: int = 2, **counts: int) -> Path:
    """`build_set` of the demo; ``counts`` are the fields of `DemoRecipe`."""
    return build_set(DemoRecipe(**counts), root, workers=workers)


def demo_rows(root: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Manifest rows and heads of a finished demo set; see `set_rows`. Rows have ``label.event`` where labelled."""
    return set_rows(root, DemoRecipe.of(Path(root)))
