"""The built-in demo set: made on first use, the same everywhere."""

import os
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.manifest import Manifest


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
    from avssl.data.demo import demo_rows, ensure_demo  # the generator is imported only by those who use it

    counts = {"pretrain": pretrain, "train_per_class": train_per_class, "test_per_class": test_per_class}
    folder = ensure_demo(root, seed=seed, workers=min(8, os.cpu_count() or 1), **counts)
    rows, heads = demo_rows(folder)
    return Manifest.from_rows(rows, folder, heads)
