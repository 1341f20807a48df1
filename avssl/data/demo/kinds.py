"""The interface of a sounding kind, its registry, and the style that every clip draws before it sounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from avssl.data.demo.audio import Rng
from avssl.data.demo.painter import Painter
from avssl.data.demo.scene import Palette
from avssl.data.demo.timing import SECONDS

BANDS = 5
UNSEEN_SHARE = 0.3


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


class Kind(Protocol):
    """A sounding thing: makes a phrase, and paints itself playing that phrase."""

    def perform(self, rng: Rng, style: Style) -> Performance: ...

    def paint(self, painter: Painter, palette: Palette, performance: Performance, glow: np.ndarray) -> None:
        """``glow``: (NUM_FRAMES,) smoothed loudness of the phrase in 0..1."""
        ...


KINDS: dict[str, Kind] = {}


def register_kind(name: str) -> Callable[[type], type]:
    """Class decorator: makes an instance known as ``name``; the order of registration is the order of the classes."""

    def register(kind: type) -> type:
        KINDS[name] = kind()
        return kind

    return register


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
