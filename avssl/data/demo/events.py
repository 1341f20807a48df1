"""The demo set: which clips it has, and what its manifest says of them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from avssl.data.demo.build import Made, Recipe, build_set, ensure_set, set_rows
from avssl.data.demo.clip import CLASSES, make_clip
from avssl.data.demo.timing import FRAME_SIZE

HEAD = "event"


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

    def make(self, split: str, index: int) -> Made:
        """Pretraining clips get no label."""
        clip = make_clip(self.seed, split, index)
        truth = {"onsets": np.round(clip.onsets, 5).tolist(), "body": np.round(clip.box, 2).tolist()}
        label = {} if split == "pretrain" else {f"label.{HEAD}": clip.event}
        return Made(clip.frames, clip.audio, label, {**asdict(clip.style), **truth})


def ensure_demo(root: Path | None = None, *, workers: int = 2, **counts: int) -> Path:
    """`ensure_set` of the demo; ``counts`` are the fields of `DemoRecipe`."""
    return ensure_set(DemoRecipe(**counts), root, workers=workers)


def build_demo(root: Path, *, workers: int = 2, **counts: int) -> Path:
    """`build_set` of the demo; ``counts`` are the fields of `DemoRecipe`."""
    return build_set(DemoRecipe(**counts), root, workers=workers)


def demo_rows(root: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Manifest rows and heads of a finished demo set; see `set_rows`. Rows have ``label.event`` where labelled."""
    return set_rows(root, DemoRecipe.of(Path(root)))
