"""The built-in sets: made on first use, the same everywhere."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from avssl.data.datasets import register_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

if TYPE_CHECKING:
    from avssl.demo.build import Recipe


# Two clips cover all of the 2.4 s.
@register_dataset("demo", clip_seconds=1.2, eval_clips=2, head=None, needs_root=False)
def demo(
    root: Path | None, *, seed: int = 0, pretrain: int = 800, train_per_class: int = 24, test_per_class: int = 12
) -> Manifest:
    """The demo's clips, generated into ``root`` (default: the cache folder) where they are not there yet.

    Args:
        root: The folder, or None.
        seed: Seed of the clips.
        pretrain: Number of unlabelled clips, split "pretrain".
        train_per_class, test_per_class: Numbers of labelled clips.
    """
    from avssl.demo.events import DemoRecipe  # the generator is imported only by those who use it

    return _made(DemoRecipe(seed, pretrain, train_per_class, test_per_class), root)


@register_dataset("demo-sources", clip_seconds=1.6, eval_clips=1, head="content", needs_root=False)
def demo_sources(
    root: Path | None,
    *,
    seed: int = 0,
    pretrain: int = 2000,
    train: int = 960,
    val: int = 240,
    test: int = 480,
    sources: int = 320,
    shortcut: float = 1.0,
    motion: float = 0.3,
    noise: float = 1.0,
    distractors: bool = True,
) -> Manifest:
    """Clips of many sources that play the same contents: heads "content" and "source", column "speaker" (the source).

    The splits "val" and "test" have sources of their own.

    Args:
        root: The folder, or None for the cache folder.
        seed: Seed of the sources and clips.
        pretrain: Number of unlabelled clips.
        train, val, test: Numbers of labelled clips.
        sources: Number of sources of the training splits.
        shortcut: How far sound and look are the source's, 0 to 1.
        motion: How far events are seen, above 0 and up to 1.
        noise: Strength of noise, room and colouring, 0 to 4; 0 for none.
        distractors: Silent shapes, and weak sounds of others.

    Raises:
        DataError: an option cannot have its value.
    """
    from avssl.demo.sources import SourcesRecipe

    try:
        recipe = SourcesRecipe(seed, pretrain, train, val, test, sources, shortcut, motion, noise, distractors)
    except ValueError as error:
        raise DataError(f"data set 'demo-sources': option {error}") from error
    return _made(recipe, root)


def _made(recipe: "Recipe", root: Path | None) -> Manifest:
    from avssl.demo.build import ensure_set, set_rows

    folder = ensure_set(recipe, root, workers=min(8, os.cpu_count() or 1))
    rows, heads = set_rows(folder, recipe)
    return Manifest.from_rows(rows, folder, heads)
