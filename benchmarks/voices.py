"""Data set "voices": spoken digits of FSDD in many voices, each with a drawn face whose mouth follows the sound.

    python tools/pretrain.py --import benchmarks/voices.py --data voices --data.root FSDD --config grid
    python benchmarks/transfer.py --rows voices --columns voices --fsdd FSDD

Real speech for the question of ``demo-sources``: every voice has one face, so that contrast is solved by knowing who
speaks, while the label is what is said. A recording is played faster or slower, and so higher or lower, by eight
factors: of six speakers come 48 voices. A clip is two digits in a row; a hundred words in all. Speakers of the test are
in no other split. The clips are made once, in the cache folder.
"""

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

from avssl.data.datasets import register_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.demo.build import Recipe, RenderedClip, ensure_set, set_rows
from avssl.demo.pictures import Painter
from avssl.demo.sounds import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Rng, level, shaped_noise

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")  # digit, speaker, take
RECORDED = 8000  # samples a second
# How much slower a voice is played than it was recorded, as a fraction.
SPEEDS = ((17, 20), (9, 10), (19, 20), (1, 1), (21, 20), (11, 10), (23, 20), (6, 5))
NUM_FRAMES = 13
FRAME_SIZE = 72
NUM_SAMPLES = NUM_FRAMES * SAMPLES_PER_FRAME
SPLITS = ("pretrain", "train", "test")
WORDS = tuple(f"{first} {second}" for first in range(10) for second in range(10))


@dataclass(frozen=True)
class VoicesRecipe(Recipe):
    """What the set consists of.

    Attributes:
        recordings: folder of FSDD.
        held_out_speakers: whose voices are the test's, with blanks between them.
        seed: another seed gives other clips.
        pretrain, train, test: clips of each split; words are equally frequent in each.
        motion: how far the mouth opens, 0 to 1: the smaller, the more the face alone is seen.
        version: raised whenever the clips change.
    """

    name: ClassVar[str] = "voices"

    recordings: str
    held_out_speakers: str
    seed: int = 0
    pretrain: int = 1600
    train: int = 1600
    test: int = 400
    motion: float = 0.3
    version: int = 1

    @property
    def heads(self) -> dict[str, list[str]]:
        return {"word": [*WORDS]}

    def clips(self) -> list[tuple[str, int]]:
        return [(split, index) for split in SPLITS for index in range(getattr(self, split))]

    def make(self, split: str, index: int) -> RenderedClip:
        """Clips of "pretrain" have no label; whose they are is the column "speaker" of all."""
        rng = np.random.default_rng((self.seed, SPLITS.index(split), index))
        known = takes(self.recordings)
        speakers = sorted(
            {speaker for _, speaker in known if (speaker in self.held_out_speakers.split()) == (split == "test")}
        )
        speaker, speed = str(rng.choice(speakers)), int(rng.integers(len(SPEEDS)))
        word = WORDS[index % len(WORDS)]
        spoken = [known[int(digit), speaker] for digit in word.split()]
        heard = speak([said[int(rng.integers(len(said)))] for said in spoken], SPEEDS[speed])
        voice = f"{speaker}-{speed}"
        frames = face(rng, voice, opening(heard), self.motion)
        sound = heard + 10 ** (-rng.uniform(15, 35) / 20) * shaped_noise(rng, float(rng.uniform(0, 1)), NUM_SAMPLES)
        sound = (10 ** (-rng.uniform(18, 28) / 20) * sound).clip(-1, 1).astype(np.float32)
        label = {} if split == "pretrain" else {"label.word": word}
        return RenderedClip(frames, sound, {"speaker": voice, **label}, {"voice": voice, "word": word})


@cache
def takes(folder: str) -> dict[tuple[int, str], list[np.ndarray]]:
    """Samples of every recording, without the silence around them, by digit and speaker."""
    out: dict[tuple[int, str], list[np.ndarray]] = {}
    for path in sorted(Path(folder).rglob("*.wav")):
        if found := NAME.fullmatch(path.stem):
            samples = wavfile.read(path)[1].astype(np.float32)
            loud = np.flatnonzero(np.abs(samples) > 0.03 * np.abs(samples).max())
            out.setdefault((int(found[1]), found[2]), []).append(samples[max(0, loud[0] - 200) : loud[-1] + 400])
    return out


def speak(digits: Sequence[np.ndarray], slower: tuple[int, int]) -> np.ndarray:
    """The digits one after the other in the middle of a clip, each as loud, (NUM_SAMPLES,); what is longer is cut."""
    up, down = slower[0] * SAMPLE_RATE // RECORDED, slower[1]
    parts = [part / np.abs(part).max() for part in (resample_poly(each, up, down) for each in digits)]
    longest = min(1.0, 0.98 * NUM_SAMPLES / sum(map(len, parts)))
    said = np.concatenate([part[: int(len(part) * longest)] for part in parts])
    before = (NUM_SAMPLES - len(said)) // 2
    track = np.pad(said, (before, NUM_SAMPLES - len(said) - before))
    return track / level(track)


def opening(heard: np.ndarray) -> np.ndarray:
    """How far the mouth is open in every frame, (NUM_FRAMES,) of 0 to 1: its loudness."""
    loudness = np.sqrt((heard.reshape(NUM_FRAMES, -1) ** 2).mean(axis=1))
    return loudness / loudness.max()


def face(rng: Rng, voice: str, opening: np.ndarray, motion: float) -> np.ndarray:
    """The face of a voice before any background, (NUM_FRAMES, H, W, 3) uint8."""
    own = np.random.default_rng([*voice.encode()]).random(6)

    def colour(hue: float, lightness: float, saturation: float) -> np.ndarray:
        return np.array(colorsys.hls_to_rgb(0.85 * hue, lightness, saturation), np.float32)

    upper, lower = colour(rng.random(), 0.25, 0.5), colour(rng.random(), 0.35, 0.5)
    down = np.linspace(0, 1, FRAME_SIZE, dtype=np.float32)[:, None]
    ground = upper[:, None, None] * (1 - down) + lower[:, None, None] * down
    frames = np.broadcast_to(ground[:, None], (3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)).copy()
    x, y = rng.uniform(0.42 * FRAME_SIZE, 0.58 * FRAME_SIZE, 2)
    drift = rng.normal(0, 0.2, NUM_FRAMES).cumsum()
    painter = Painter(frames, x + drift, y, (0.3 - 0.1 * own[0]) * FRAME_SIZE, reach=1.7)
    painter.disc(0, -0.2, 1.15, colour(own[1], 0.3, 0.8))
    painter.disc(0, 0, 1.0, colour(own[2], 0.45 + 0.3 * own[3], 0.6), squash=1 - 0.25 * own[4])
    dark = np.full(3, 0.1, np.float32)
    for side in (-0.35, 0.35):
        painter.disc(side, -0.25, 0.1 + 0.1 * own[5], dark)
    painter.disc(0, 0.42, 0.07 + 0.3 * motion * opening, dark)
    frames += 0.02 * rng.standard_normal(frames.shape, np.float32)
    pixels = (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0))


@register_dataset("voices", clip_seconds=NUM_FRAMES / FPS, eval_clips=1, head="word")
def voices(
    root: Path,
    *,
    held_out_speakers: Sequence[str] = ("lucas", "yweweler"),
    seed: int = 0,
    pretrain: int = 1600,
    train: int = 1600,
    test: int = 400,
    motion: float = 0.3,
) -> Manifest:
    """See the module.

    Args:
        root: Folder of FSDD.
        held_out_speakers: Whose voices are the test's.
        seed: Seed of the clips.
        pretrain: Number of unlabelled clips.
        train, test: Numbers of labelled clips.
        motion: How far the mouth opens, 0 to 1.

    Raises:
        DataError: a speaker is not there, or none is left.
    """
    speakers = {speaker for _, speaker in takes(str(root))}
    if not set(held_out_speakers) < speakers or not held_out_speakers:
        raise DataError(f"voices: held_out_speakers must be some of {', '.join(sorted(speakers)) or 'nobody'}")
    held_out = sorted(held_out_speakers)
    recipe = VoicesRecipe(str(root), " ".join(held_out), seed, pretrain, train, test, motion)
    folder = ensure_set(recipe)
    rows, heads = set_rows(folder, recipe)
    rows = [row | {"clip_id": "-".join([*held_out, row["clip_id"]])} for row in rows]  # other speakers, other clips
    return Manifest.from_rows(rows, folder, heads)
