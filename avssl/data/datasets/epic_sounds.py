"""EPIC-Sounds: sound events in the videos of EPIC-Kitchens-100, 44 classes (Huh et al., ICASSP 2023)."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avssl.data.datasets import nearest, register_dataset
from avssl.data.datasets.epic_kitchens import locate, seconds
from avssl.data.datasets.layout import find_annotations, read_table
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

TRAIN, VALIDATION = "EPIC_Sounds_train.csv", "EPIC_Sounds_validation.csv"
CHALLENGE = "EPIC_Sounds_recognition_test_timestamps.csv"
SOURCE = "github.com/epic-kitchens/epic-sounds-annotations"
# Columns "class_id" and "class" of EPIC_Sounds_validation.csv, in which every class occurs. Earlier releases had other
# numbers, so that a file that disagrees is an error rather than another meaning of the same number.
CLASSES = [
    "metal-only collision", "scrub / scrape / scour / wipe", "cut / chop", "open / close", "rustle", "water",
    "plastic-only collision", "footstep", "stir / mix / whisk", "slide object", "metal / wood collision",
    "metal / plastic collision", "metal / ceramic collision", "background", "ceramic-only collision", "beep", "click",
    "metal / glass collision", "paper-only collision", "pour", "glass-only collision", "wood-only collision",
    "plastic / paper collision", "metal / paper collision", "human", "metal / cloth collision",
    "plastic / ceramic collision", "plastic / wood collision", "metal / marble collision", "sizzling / boiling",
    "ceramic / glass collision", "plastic / marble collision", "plastic / glass collision",
    "kettle / mixer / appliance", "ceramic / wood collision", "kneading", "cloth-only collision",
    "ceramic / marble collision", "glass / marble collision", "wood / glass collision", "hoover / fan", "spray", "zip",
    "drink / eat",
]  # fmt: skip


# As in its authors' configuration: clips of 2 s, and a score is the mean softmax of 5 of them (NUM_ENSEMBLE_VIEWS).
@register_dataset("epic-sounds", clip_seconds=2.0, eval_clips=5, head="sound", protocol="EPIC-Sounds")
def epic_sounds(
    root: Path, *, annotations: str | None = None, test: str = "validation", prefer_audio_files: bool = False
) -> Manifest:
    """Sound segments with the head "sound" (44 classes); columns "participant" and "video".

    A segment is timed by its timestamps: the sample columns count at 24 kHz, and once held seconds.

    Args:
        root: Folder of the videos or of their extracted sound, laid out as for the data set epic-kitchens.
        annotations: Folder of the official CSV files; default: ``root``, its folder ``annotations`` or
            ``epic-sounds-annotations``. Without the training file there is no split "train".
        test: What is split "test": "validation", the official validation segments, on which published numbers are
            reported; or "challenge", the official test segments, which have no labels, the validation segments being
            split "val" then.
        prefer_audio_files: Take the extracted sound of a video where both are there.

    Raises:
        DataError: a file of annotations is missing or wrong; the message names it.
    """
    if test not in ("validation", "challenge"):
        known = ["validation", "challenge"]
        raise DataError(f"EPIC-Sounds: option test must be {' or '.join(known)}, got {test!r}{nearest(test, known)}")
    folder = find_annotations(
        root, annotations, [VALIDATION], title="EPIC-Sounds", source=SOURCE, also=["epic-sounds-annotations"]
    )
    rows: list[dict[str, Any]] = []
    if (folder / TRAIN).is_file():
        rows += _segments(folder / TRAIN, "train")
    else:
        logger.warning("EPIC-Sounds: no %s in %s: there is no split train", TRAIN, folder)
    rows += _segments(folder / VALIDATION, "test" if test == "validation" else "val")
    if test == "challenge":
        rows += _segments(folder / CHALLENGE, "test", labelled=False)
    locate(rows, root, prefer_audio_files, "EPIC-Sounds")
    return Manifest.from_rows(rows, root, {"sound": CLASSES})


def _segments(file: Path, split: str, labelled: bool = True) -> Iterator[dict[str, Any]]:
    columns = ["annotation_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp"]
    table = read_table(file, [*columns, "class", "class_id"] if labelled else columns)
    for k in range(len(table["annotation_id"])):
        clip_id, participant, video, start, stop = (str(table[column][k]) for column in columns)
        where = f"{file}: row {k + 1} ({clip_id})"
        try:
            span = seconds(start), seconds(stop)
        except ValueError as error:
            raise DataError(f"{where}: {start!r}, {stop!r} are not timestamps HH:MM:SS.sss: {error}") from error
        if not span[0] < span[1]:
            raise DataError(f"{where}: column 'stop_timestamp': {stop} is not after {start}")
        yield {
            "clip_id": clip_id,
            "participant": participant,
            "video": video,
            "start": span[0],
            "end": span[1],
            "split": split,
            "label.sound": _label(table["class_id"][k], table["class"][k], where) if labelled else None,
        }


def _label(class_id: str | None, name: str | None, where: str) -> int:
    if class_id is None or not class_id.isdecimal() or int(class_id) >= len(CLASSES):
        raise DataError(f"{where}: column 'class_id': {class_id!r} is not in 0..{len(CLASSES) - 1}")
    if name != CLASSES[int(class_id)]:
        raise DataError(
            f"{where}: column 'class': {name!r}, where class {class_id} is {CLASSES[int(class_id)]!r}; this is another "
            f"release, get the current one from {SOURCE}"
        )
    return int(class_id)
