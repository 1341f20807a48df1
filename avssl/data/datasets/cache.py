"""What ``avssl cache`` wrote: the rows, splits and labels of the data that it was made of."""

from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.shards.index import open_cache


@register_dataset("cache", clip_seconds=None, eval_clips=1, head=None, needs_root=False)
def cache(root: Path | None, *, location: str | None = None) -> Manifest:
    """A finished cache.

    Args:
        root: Its folder.
        location: Its folder or URL (s3://, gs://, memory:// ...), instead.
    """
    if root is None and not location:
        raise DataError("data set 'cache' needs a place: give its folder with --data.root, or the option location")
    return open_cache(location or str(root))
