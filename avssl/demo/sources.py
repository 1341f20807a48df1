"""The set of sources: who sounds is one thing, what is played another, and only the second is the label.

A source is a timbre and a look, drawn once and shared by its clips, heard and seen alike: the larger, the lower; the
brighter its hue, the brighter its sound. Contrast between sound and picture is solved by recognizing sources: a
shortcut. The content is a word of three events in a rhythm, which are heard and seen at the same time, too.

    recipe = SourcesRecipe(pretrain=2000, sources=320, shortcut=1.0)
    rows, heads = set_rows(ensure_set(recipe), recipe)
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np

from avssl.demo.build import Recipe, RenderedClip
from avssl.demo.pictures import Painter, Palette, paint_background, paint_distractors
from avssl.demo.sounds import (
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Rng,
    add_at,
    equalize,
    frame_times,
    harmonics,
    level,
    room,
    shaped_noise,
)

NUM_FRAMES = 20
FRAME_SIZE = 56
NUM_SAMPLES = NUM_FRAMES * SAMPLES_PER_FRAME
SECONDS = NUM_FRAMES / FPS

SPLITS = ("pretrain", "train", "val", "test")
# Any two words have the same events in another order, or share two of three events.
WORDS = (
    ("knock", "tone", "rise"),
    ("rise", "knock", "tone"),
    ("knock", "trill", "tone"),
    ("tone", "knock", "trill"),
    ("rise", "trill", "knock"),
    ("trill", "knock", "rise"),
    ("tone", "rise", "trill"),
    ("trill", "tone", "rise"),
)
RHYTHMS = {"even": (0.45, 0.45), "short-long": (0.32, 0.58), "long-short": (0.58, 0.32)}  # seconds between onsets
CONTENTS = tuple(f"{'-'.join(word)} {rhythm}" for word, rhythm in product(WORDS, RHYTHMS))
EVENT_SECONDS = {"knock": 0.16, "tone": 0.26, "rise": 0.26, "trill": 0.26}
TRAITS = 6
HELD_OUT_SHARE = 4  # of so many training sources one more is in "val", and one more in "test"


@dataclass(frozen=True)
class SourcesRecipe(Recipe):
    """What the set consists of, and how hard it is.

    Attributes:
        seed: another seed gives other sources and clips.
        pretrain: clips without labels.
        train, val, test: labelled clips; the contents are equally frequent, and so are a split's sources.
        sources: number of sources of the splits "pretrain" and "train"; "val" and "test" have a quarter as many of
            their own each, which no other split has.
        shortcut: how far sound and look are the source's, 0 to 1. At 1 all clips of a source have one timbre and one
            look; at 0 timbre and look are drawn anew for every clip, each on its own, and tell nothing of the source.
        motion: how far events move the body, above 0 and up to 1: the smaller, the more the source alone is seen.
        noise: strength of noise, room and colouring of the sound and of the pictures' grain; 0 for none.
        distractors: silent shapes in the picture, and another source's weak sound in some clips.
        version: raised whenever the clips change.

    Raises:
        ValueError: a number cannot be one; the message names it.
    """

    name: ClassVar[str] = "demo-sources"

    seed: int = 0
    pretrain: int = 2000
    train: int = 960
    val: int = 240
    test: int = 480
    sources: int = 320
    shortcut: float = 1.0
    motion: float = 0.3
    noise: float = 1.0
    distractors: bool = True
    version: int = 2

    def __post_init__(self) -> None:
        for field in ("pretrain", "train", "val", "test"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if self.sources < 2:
            raise ValueError(f"sources must be at least 2, got {self.sources}")
        if not 0 <= self.shortcut <= 1:
            raise ValueError(f"shortcut must lie in 0..1, got {self.shortcut}")
        if not 0 < self.motion <= 1:
            raise ValueError(f"motion must lie above 0 and be at most 1, got {self.motion}")
        if not 0 <= self.noise <= 4:
            raise ValueError(f"noise must lie in 0..4, got {self.noise}")

    @property
    def heads(self) -> dict[str, list[str]]:
        return {"content": list(CONTENTS), "source": [f"source-{k:04d}" for k in range(self.sources_of("test").stop)]}

    def sources_of(self, split: str) -> range:
        """Numbers of the sources that a split has."""
        held_out = max(2, self.sources // HELD_OUT_SHARE)
        start = {"val": self.sources, "test": self.sources + held_out}.get(split, 0)
        return range(start, start + (held_out if start else self.sources))

    def clips(self) -> list[tuple[str, int]]:
        return [(split, index) for split in SPLITS for index in range(getattr(self, split))]

    def make(self, split: str, index: int) -> RenderedClip:
        """Pretraining clips have no label; whose they are is the column "speaker" of all."""
        rng = np.random.default_rng((self.seed, 1, SPLITS.index(split), index))
        sources = self.sources_of(split)
        source = sources[int(_order(self.seed, split, getattr(self, split))[index]) % len(sources)]
        content = CONTENTS[index % len(CONTENTS)]
        own = np.random.default_rng((self.seed, 0, source)).random(TRAITS)
        voice, look = self.shortcut * own + (1 - self.shortcut) * rng.random((2, TRAITS))
        onsets = draw_onsets(rng, content)
        events = content.split(" ")[0].split("-")
        audio = sound(rng, voice, events, onsets, self.noise, self.distractors)
        frames, place = picture(rng, look, events, onsets, self.motion, self.noise, self.distractors)
        names = self.heads["source"]
        label = {} if split == "pretrain" else {"label.content": content, "label.source": names[source]}
        truth = {"content": content, "onsets": np.round(onsets, 5).tolist(), "body": np.round(place, 2).tolist()}
        return RenderedClip(frames, audio, {"speaker": names[source], **label}, {"source": names[source], **truth})


@cache
def _order(seed: int, split: str, count: int) -> np.ndarray:
    """A permutation of the clips of a split, (count,), by which sources are dealt out whatever the contents are."""
    return np.random.default_rng((seed, 2, SPLITS.index(split))).permutation(count)


def draw_onsets(rng: Rng, content: str) -> np.ndarray:
    """Seconds (3,) at which the events of ``content`` begin, at a pace and from a start of the clip's own."""
    first, second = RHYTHMS[content.split(" ")[1]]
    return rng.uniform(0.06, 0.24) + rng.uniform(0.92, 1.08) * np.array([0.0, first, first + second])


def sound(
    rng: Rng, voice: np.ndarray, events: list[str], onsets: np.ndarray, noise: float, distractors: bool
) -> np.ndarray:
    """The events in the timbre of ``voice`` (TRAITS,), over a room, a channel and noise: (NUM_SAMPLES,) float32."""
    track = np.zeros(NUM_SAMPLES)
    for event, onset in zip(events, onsets, strict=True):
        add_at(track, rng.uniform(0.7, 1.0) * _note(rng, voice, event), onset)
    track = track / level(track)
    if noise:
        track = room(rng, track, rng.uniform(0.03, 0.1), noise * rng.uniform(0.0, 0.25))
        track = equalize(rng, track, tilt=noise * rng.uniform(-1.0, 1.0), ripple=1.5 * noise)
        track = track / level(track)
    if distractors and rng.random() < 0.3:
        other = np.zeros(NUM_SAMPLES)
        event = str(rng.choice(list(EVENT_SECONDS)))
        add_at(other, _note(rng, rng.random(TRAITS), event), rng.uniform(0.0, SECONDS - EVENT_SECONDS[event]))
        track = track + 10 ** (-rng.uniform(14, 22) / 20) * other / level(other)
    if noise:
        hiss = shaped_noise(rng, float(rng.uniform(0.0, 1.0)), NUM_SAMPLES)
        track = track + noise * 10 ** (-rng.uniform(10, 24) / 20) * hiss
    track = track * 10 ** (-rng.uniform(18, 30) / 20) / level(track)
    return (0.98 * np.tanh(track / 0.98)).astype(np.float32)


def _note(rng: Rng, voice: np.ndarray, event: str) -> np.ndarray:
    """One event, (N,), peak about 1: a struck, a held, a rising or a trembling note."""
    register, brightness, formant, breath, odd, _ = voice
    count = int(EVENT_SECONDS[event] * SAMPLE_RATE)
    t = np.arange(count) / SAMPLE_RATE
    frequency = np.full(count, 140 * 2 ** (2.2 * register))
    if event == "rise":
        frequency = frequency * 2 ** (0.9 * t / t[-1] - 0.3)
    ranks = np.arange(1, 17)
    weights = ranks ** -(2.2 - 1.7 * brightness)
    weights = weights * np.where(ranks % 2 == 0, 1 - 0.9 * odd, 1.0)
    centre = 500 * 2 ** (2.4 * formant)
    peak = 0.12 + np.exp(-0.5 * (np.log2(ranks * frequency[0] / centre) / 0.45) ** 2)
    tone = harmonics(frequency, weights * peak)
    air = shaped_noise(rng, 0.2, count) * np.abs(tone).mean() * (0.05 + 0.9 * breath**2)
    note = tone + air
    if event == "knock":
        click = shaped_noise(rng, 0.3, count) * np.exp(-t / 0.004) * np.abs(tone).max()
        note = (note + 0.5 * click) * np.exp(-t / 0.03)
    else:
        note = note * np.clip(t / 0.02, 0, 1) * np.clip((t[-1] - t) / 0.03, 0, 1)
    if event == "trill":
        note = note * (0.5 - 0.5 * np.cos(2 * np.pi * 19 * t))
    return note / (np.abs(note).max() + 1e-9)


def picture(
    rng: Rng,
    look: np.ndarray,
    events: list[str],
    onsets: np.ndarray,
    motion: float,
    noise: float,
    distractors: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The events as a body of this ``look`` (TRAITS,) moves, and its place: (NUM_FRAMES, H, W, 3) uint8, (x, y, size).

    A knock flattens and brightens it, a tone opens its mouth, a rise lifts it, a trill shakes it.
    """
    size_trait, hue, corners, ring, second_hue, ground_hue = look
    palette = _palette(hue, second_hue, ground_hue)
    frames = paint_background(rng, palette, False, NUM_FRAMES, FRAME_SIZE)
    if distractors:
        paint_distractors(rng, frames)
    size = 15.0 - 6.5 * size_trait
    x, y = rng.uniform(0.36 * FRAME_SIZE, 0.64 * FRAME_SIZE, 2)
    move = {event: np.zeros(NUM_FRAMES) for event in EVENT_SECONDS}
    t = frame_times(NUM_FRAMES)
    for event, onset in zip(events, onsets, strict=True):
        # A frame is open for its whole time: an event counts by the share of it that it fills.
        seconds = EVENT_SECONDS[event] if event != "knock" else 0.1
        share = np.clip((t + 0.5 / FPS - onset) * FPS, 0, 1) * np.clip((onset + seconds - t + 0.5 / FPS) * FPS, 0, 1)
        if event == "rise":
            share = share * np.clip((t - onset) / seconds + 0.3, 0, 1)
        move[event] = np.maximum(move[event], motion * share)
    shake = np.where(np.arange(NUM_FRAMES) % 2 == 0, 1.0, -1.0) * move["trill"]
    painter = Painter(frames, x + 0.45 * size * shake, y - 0.75 * size * move["rise"], size, reach=1.7)
    flash = move["knock"][:, None]
    shade = palette.main + 0.8 * flash * (palette.light - palette.main)
    painter.ring(0, 0, 1.05 + 0.3 * ring, 0.05 + 0.35 * ring, palette.second)
    _body(painter, float(corners), move["knock"], shade)
    for side in (-0.35, 0.35):
        painter.disc(side, -0.25, 0.16, palette.ground * 0.4)
    painter.disc(0, 0.35, 0.08 + 0.4 * move["tone"], palette.ground * 0.4)
    frames += 0.012 * noise * rng.standard_normal((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE), np.float32)
    pixels = (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0)), np.array([x, y, size])


def _body(painter: Painter, corners: float, press: np.ndarray, shade: np.ndarray) -> None:
    """From a triangle over a square to a disc, flattened by ``press`` (NUM_FRAMES,)."""
    flat = 1 - 0.5 * press
    if corners > 0.66:
        painter.disc(0, 0, 1.0, shade, squash=1 / flat)
        return
    count = 3 if corners < 0.33 else 4
    angles = 2 * np.pi * (np.arange(count) + 0.5 * (count == 4)) / count - np.pi / 2
    painter.polygon([(1.15 * np.cos(a), 1.15 * np.sin(a) * flat) for a in angles], shade)


def _palette(hue: float, second_hue: float, ground_hue: float) -> Palette:
    """Colours of a look. Hues keep away from the circle's end, where neighbours in the trait would be the same."""

    def colour(hue: float, lightness: float, saturation: float) -> np.ndarray:
        return np.array(colorsys.hls_to_rgb(0.85 * hue, lightness, saturation), np.float32)

    return Palette(
        main=colour(hue, 0.5, 0.9),
        second=colour(second_hue, 0.6, 0.8),
        light=np.ones(3, np.float32),
        ground=colour(ground_hue, 0.12, 0.7),
        ground_end=colour(ground_hue, 0.22, 0.7),
    )
