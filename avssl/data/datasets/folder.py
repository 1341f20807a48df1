"""Any folder: of media, whose classes and splits are the names of folders, or of what ``avssl cache`` wrote."""

import logging
from collections import Counter
from itertools import takewhile
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import class_name, class_names, media_files, split_name
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.shards.index import open_cache

logger = logging.getLogger(__name__)


@register_dataset("folder", clip_seconds=None, eval_clips=1, head=None)
def folder(root: Path, *, split: str = "train") -> Manifest:
    """A tree of audio and video files.

    The class of a file is the name of the folder that holds it; files directly under the root, or directly under a
    split's folder, have none. Folders of the top level named pretrain, train (training), val (valid, validation) or
    test are splits: ``train/dog/1.wav`` is of split train and class dog. They may also lie within a folder that holds
    all the rest (``sounds/train/dog/1.wav``), or in every class's folder (``dog/train/1.wav``). The head is called
    "label"; it is absent where no file has a class.

    Args:
        root: The folder.
        split: Split of files that lie in no split's folder.
    """
    paths = media_files(root)
    if not paths:
        raise DataError(f"no media file under {root}: give the folder that holds them with --data.root")
    rows: list[dict[str, object]] = []
    for path, (found, name) in zip(paths, _splits_and_classes([path.split("/")[:-1] for path in paths]), strict=True):
        label = None if name is None else class_name(name)
        rows.append({"clip_id": path, "path": path, "split": found or split, "label.label": label})
    names = class_names([str(row["label.label"]) for row in rows if row["label.label"] is not None])
    if not names:
        rows = [{key: value for key, value in row.items() if key != "label.label"} for row in rows]
        return Manifest.from_rows(rows, root)
    bare = Counter(str(row["split"]) for row in rows if row["label.label"] is None and row["split"] != "pretrain")
    if bare:
        counts = ", ".join(f"{count} of split {name}" for name, count in bare.items())
        logger.warning("%s: files without a class, in no folder of a class: %s", root, counts)
    return Manifest.from_rows(rows, root, {"label": names})


def _splits_and_classes(folders: list[list[str]]) -> list[tuple[str | None, str | None]]:
    """The split and the class of every file, None where it has none; ``folders`` are those that it lies in."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False)))
    levels = [k for k in range(shared + 1) if any(split_name(parts[k]) for parts in folders if len(parts) > k)]
    if not levels and all(len(parts) > 1 and split_name(parts[-1]) for parts in folders):
        return [(split_name(parts[-1]), parts[-2]) for parts in folders]
    level = levels[0] if levels else 0
    places: list[tuple[str | None, str | None]] = []
    for parts in folders:
        below = parts[level:]
        found = split_name(below[0]) if below else None
        classes = below[1:] if found else below
        places.append((found, classes[-1] if classes else None))
    odd = sorted({name for found, name in places if not found and name and split_name(name)})
    if odd:
        logger.warning("folders named like splits are taken for classes: %s; splits lie at the top", ", ".join(odd))
    return places


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
