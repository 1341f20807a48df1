"""AudioSet: 10 s of YouTube videos with one or several of 527 sound events each (Gemmeke et al., ICASSP 2017)."""

import logging
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.layout import find_annotations, headerless_rows, read_table
from avssl.data.datasets.youtube import Segment, checked_id, youtube_rows
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

CLASSES, EVAL = "class_labels_indices.csv", "eval_segments.csv"
TRAIN = {
    "balanced": ["balanced_train_segments.csv"],
    "unbalanced": ["unbalanced_train_segments.csv"],
    "both": ["balanced_train_segments.csv", "unbalanced_train_segments.csv"],
}
SOURCE = "research.google.com/audioset/download.html"


@register_dataset(
    "audioset-20k", clip_seconds=10.0, eval_clips=1, head="sound", protocol="AST", options={"train": "balanced"}
)
@register_dataset("audioset", clip_seconds=10.0, eval_clips=1, head="sound", protocol="AST")
def audioset(
    root: Path,
    *,
    train: str = "both",
    annotations: str | None = None,
    whole_videos: bool = False,
    prefer_audio_files: bool = False,
) -> Manifest:
    """Clips ``ID.wav``, ``YID.wav``, ``ID_30.000_40.000.mp4`` and the like in any folder under ``root``.

    The head "sound" has several labels: the 527 classes by display name, in the order of ``class_labels_indices.csv``.
    The machine ids of a clip's labels are kept as they are listed in the column "mids", the video's id in
    "youtube_id". Training segments are split "train", the evaluation segments, on which published numbers are
    reported, split "test".

    Args:
        root: Folder of the media; endings and folders do not matter.
        train: "balanced" (AudioSet-20K), "unbalanced" or "both" (AudioSet-2M).
        annotations: Folder of the official CSV files; default: ``root`` or its folder ``annotations``. Without any
            training file there is only the split "test".
        whole_videos: The files are whole videos, ``ID.mp4``.
        prefer_audio_files: Take the sound file of a clip where there is a video file too.

    Raises:
        DataError: a file of annotations is missing, cut short or wrong; the message names it.
    """
    if train not in TRAIN:
        raise DataError(f"AudioSet: option train must be {', '.join(TRAIN)}, got {train!r}{nearest(train, TRAIN)}")
    folder = find_annotations(root, annotations, [EVAL], title="AudioSet", source=SOURCE)
    names, index = _classes(folder / CLASSES)
    files = [(folder / name, "train") for name in TRAIN[train]]
    absent = [str(file) for file, _ in files if not file.is_file()]
    if absent and len(absent) < len(files):
        raise DataError(f"AudioSet: no file {absent[0]}; get it from {SOURCE} or set the option train")
    if absent:
        logger.warning("AudioSet: there is only the split test, without %s", ", ".join(absent))
        files = []
    files.append((folder / EVAL, "test"))
    rows = youtube_rows(
        chain.from_iterable(_segments(file, split, index) for file, split in files),
        root,
        title="AudioSet",
        total=sum(_announced(file) or 0 for file, _ in files) or None,
        whole_videos=whole_videos,
        plain_names=True,
        prefer_audio_files=prefer_audio_files,
    )
    for row in rows:
        row["mids"] = row["label.sound"]
        row["label.sound"] = [index[mid] for mid in dict.fromkeys(row["mids"].split(","))]
    return Manifest.from_rows(rows, root, {"sound": names})


def _classes(file: Path) -> tuple[list[str], dict[str, int]]:
    """Class names in order, and the class of every machine id (mid)."""
    table = read_table(file, ["index", "mid", "display_name"])
    if table["index"] != [str(k) for k in range(len(table["index"]))]:
        raise DataError(f"{file}: column 'index' must count 0, 1, 2 ...")
    mids, names = [str(mid) for mid in table["mid"]], [str(name) for name in table["display_name"]]
    if len(set(mids)) < len(mids):
        raise DataError(f"{file}: column 'mid': an id repeats")
    # Two classes of one display name, as the ontology (not this list) has them, are told apart by their mids.
    names = [f"{name} ({mid})" if names.count(name) > 1 else name for name, mid in zip(names, mids, strict=True)]
    return names, {mid: k for k, mid in enumerate(mids)}


def _segments(file: Path, split: str, index: dict[str, int]) -> Iterator[Segment]:
    """The label of a segment is its mids, comma-separated as listed."""
    count, announced = 0, _announced(file)
    for line, (youtube_id, start, end, mids) in headerless_rows(file, 4):
        where = f"{file}: line {line}"
        try:
            span = float(start), float(end)
        except ValueError as error:
            raise DataError(f"{where}: {start!r}, {end!r} are not numbers of seconds") from error
        if not 0 <= span[0] < span[1]:
            raise DataError(f"{where}: the end, {end}, does not lie after the start, {start}")
        for mid in mids.split(","):
            if mid not in index:
                raise DataError(f"{where}: label {mid!r} is not in {CLASSES}{nearest(mid, index)}")
        count += 1
        yield Segment(checked_id(youtube_id, where), *span, split, mids)
    if announced is not None and announced != count:
        raise DataError(f"{file}: {count} segments, but its header announces {announced}; get it again: {SOURCE}")


def _announced(file: Path) -> int | None:
    """The number of segments that the second line says there are: ``# num_ytids=20371, num_segs=20371, ...``."""
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            found = re.search(r"num_segs=(\d+)", stream.readline() + stream.readline())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    return int(found[1]) if found else None
