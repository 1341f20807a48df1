"""VGGSound: 10 s of YouTube videos whose sound can be seen, 309 classes (Chen et al., ICASSP 2020)."""

import logging
from collections.abc import Iterator
from pathlib import Path

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.layout import find_annotations, headerless_rows
from avssl.data.datasets.vggsound_classes import VGGSOUND_CLASSES
from avssl.data.datasets.youtube import Segment, checked_id, youtube_rows
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

FULL, TRAIN, TEST = "vggsound.csv", "train.csv", "test.csv"
SOURCE = "www.robots.ox.ac.uk/~vgg/data/vggsound"
SECONDS = 10.0


@register_dataset("vggsound", clip_seconds=SECONDS, eval_clips=1, head="sound", protocol="CAV-MAE")
def vggsound(
    root: Path,
    *,
    annotations: str | None = None,
    lists: str = "auto",
    whole_videos: bool = False,
    prefer_audio_files: bool = False,
) -> Manifest:
    """Clips ``ID_SSSSSS.mp4`` (S: start in seconds) in any folder under ``root``; head "sound", column "youtube_id".

    Classes are in alphabetical order, as in the authors' evaluation code; stat.csv, which is sorted by frequency, gives
    another one.

    Args:
        root: Folder of the media.
        annotations: Folder of the official lists; default: ``root`` or its folder ``annotations``.
        lists: "full": ``vggsound.csv`` (id, start, label, split); "split": the older ``train.csv`` and ``test.csv``
            (``ID_SSSSSS.mp4``, label); "auto": the full list where it is there. Without train.csv there is only the
            split "test".
        whole_videos: The files are whole videos, ``ID.mp4``.
        prefer_audio_files: Take the extracted sound of a clip where both are there.

    Raises:
        DataError: no list, or a wrong line; the message names it.
    """
    wanted = {"auto": (FULL, TEST), "full": (FULL,), "split": (TEST,)}
    if lists not in wanted:
        raise DataError(f"VGGSound: option lists must be {', '.join(wanted)}, got {lists!r}{nearest(lists, wanted)}")
    folder = find_annotations(root, annotations, wanted[lists], title="VGGSound", source=SOURCE, also=["data"])
    if lists != "split" and (folder / FULL).is_file():
        segments = list(_full_list(folder / FULL))
    else:
        if not (folder / TRAIN).is_file():
            logger.warning("VGGSound: no %s in %s: there is only the split test", TRAIN, folder)
        files = {"train": folder / TRAIN, "test": folder / TEST}
        segments = [item for split, file in files.items() if file.is_file() for item in _split_list(file, split)]
    rows = youtube_rows(
        segments, root, title="VGGSound", whole_videos=whole_videos, prefer_audio_files=prefer_audio_files
    )
    return Manifest.from_rows(rows, root, {"sound": VGGSOUND_CLASSES})


def _full_list(file: Path) -> Iterator[Segment]:
    known = set(VGGSOUND_CLASSES)
    for line, (youtube_id, start, label, split) in headerless_rows(file, 4):
        where = f"{file}: line {line}"
        if split not in ("train", "test"):
            raise DataError(f"{where}: split {split!r} is neither train nor test")
        yield _segment(youtube_id, start, label, split, known, where)


def _split_list(file: Path, split: str) -> Iterator[Segment]:
    known = set(VGGSOUND_CLASSES)
    for line, (name, label) in headerless_rows(file, 2):
        where = f"{file}: line {line}"
        if name[11:12] != "_":
            raise DataError(f"{where}: {name!r} is not named like ID_SSSSSS.mp4")
        yield _segment(name[:11], name[12:].removesuffix(".mp4"), label, split, known, where)


def _segment(youtube_id: str, start: str, label: str, split: str, known: set[str], where: str) -> Segment:
    checked_id(youtube_id, where)
    if not start.isdecimal():
        raise DataError(f"{where}: start {start!r} is not a whole number of seconds")
    if label not in known:
        raise DataError(f"{where}: {label!r} is none of VGGSound's 309 classes{nearest(label, known)}")
    return Segment(youtube_id, float(start), float(start) + SECONDS, split, label)
