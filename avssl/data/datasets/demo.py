"""The built-in demo set: made on first use, the same everywhere."""

from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.manifest import Manifest


@register_dataset("demo", needs_root=False)
def demo(root: Path | None, *, seed: int = 0) -> Manifest:
    """The demo's clips, generated into ``root`` (default: the cache folder) where they are not there yet."""
    from avssl.data.demo import demo_rows, ensure_demo  # the generator is imported only by those who use it

    folder = ensure_demo(root, seed=seed)
    rows, heads = demo_rows(folder)
    return Manifest.from_rows(rows, folder, heads)
