"""Kinetics-Sounds: the classes of Kinetics-400 that can be heard as well as seen.

Arandjelovic & Zisserman (Look, Listen and Learn, ICCV 2017, appendix A.1) named 34 classes, before Kinetics-400 was
released. The release renamed some of them, and has nothing like "patting". Published lists are therefore:

- 32 classes (Sarkar & Etemad, CrissCross, AAAI 2023; repository pritamqu/CrissCross), the default here;
- 31 classes (Panda et al., AdaMML, ICCV 2021; repository IBM/AdaMML): those without "strumming guitar";
- 33 classes (Owens & Efros, ECCV 2018; repository andrewowens/multisensory): the 32 and "using computer" for
  "typing". The 34 here are these and "patting", which has no clip in the released lists.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import find_annotations, first_file, number, read_table
from avssl.data.datasets.youtube import Segment, checked_id, youtube_rows
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)

CLASSES_32 = [
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet", "playing drums",
    "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano", "playing saxophone",
    "playing trombone", "playing trumpet", "playing violin", "playing xylophone", "ripping paper", "shoveling snow",
    "shuffling cards", "singing", "stomping grapes", "strumming guitar", "tap dancing", "tapping guitar",
    "tapping pen", "tickling",
]  # fmt: skip
CLASSES_31 = [name for name in CLASSES_32 if name != "strumming guitar"]
CLASSES_34 = sorted([*CLASSES_32, "patting", "using computer"])
# The paper's name -> the name in the released Kinetics-400.
RENAMED = {
    "blowing out": "blowing out candles",
    "dribbling ball": "dribbling basketball",
    "fingerpicking": "strumming guitar",
    "mowing the lawn by pushing lawnmower": "mowing lawn",
    "stomping": "stomping grapes",
    "typing": "using computer",
}
CLASSES = {31: CLASSES_31, 32: CLASSES_32, 34: CLASSES_34}
FILES = {
    "train": ["train.csv", "kinetics-400_train.csv", "kinetics_400_train.csv", "kinetics_train.csv"],
    "validate": ["validate.csv", "val.csv", "kinetics-400_val.csv", "kinetics_400_val.csv", "kinetics_val.csv"],
    "test": ["test.csv", "kinetics-400_test.csv", "kinetics_400_test.csv", "kinetics_test.csv"],
}
SOURCE = "github.com/cvdfoundation/kinetics-dataset"


@register_dataset("kinetics-sounds", clip_seconds=10.0, eval_clips=1, head="sound")
def kinetics_sounds(
    root: Path,
    *,
    classes: int = 32,
    test: str = "validate",
    annotations: str | None = None,
    whole_videos: bool = False,
    prefer_audio_files: bool = False,
) -> Manifest:
    """Clips ``ID_SSSSSS_EEEEEE.mp4`` of Kinetics-400, in class folders or not; head "sound", column "youtube_id".

    Args:
        root: Folder of the media; clips of other classes may lie there too.
        classes: Version of the class list, 31, 32 or 34, in alphabetical order of the released names; "patting" of
            the 34 has clips only in lists of before the release.
        test: What is split "test": "validate", the official validation list, on which numbers are usually reported; or
            "test", the official test list, the validation list being split "val" then.
        annotations: Folder of Kinetics-400's lists (train.csv, validate.csv or val.csv, test.csv); default: ``root``,
            its folder ``annotations`` or ``kinetics400``. Without train.csv there is no split "train".
        whole_videos: The files are whole videos, ``ID.mp4``.
        prefer_audio_files: Take the extracted sound of a clip where both are there.

    Raises:
        DataError: no list, an unknown version, or a wrong row; the message names it.
    """
    if classes not in CLASSES:
        raise DataError(f"Kinetics-Sounds: option classes must be 31, 32 or 34, got {classes!r}")
    if test not in ("validate", "test"):
        raise DataError(f"Kinetics-Sounds: option test must be validate or test, got {test!r}")
    folder = find_annotations(
        root, annotations, FILES[test], title="Kinetics-Sounds", source=SOURCE, also=["kinetics400"]
    )
    splits = {"train": "train", "validate": "test"} if test == "validate" else {
        "train": "train", "validate": "val", "test": "test"
    }  # fmt: skip
    segments: list[Segment] = []
    for kind, split in splits.items():
        file = first_file(folder, FILES[kind])
        if file is None:
            logger.warning("Kinetics-Sounds: no %s in %s: there is no split %s", FILES[kind][0], folder, split)
        else:
            segments += _segments(file, split, CLASSES[classes])
    found = {segment.label for segment in segments}
    without = [name for name in CLASSES[classes] if name not in found]
    if not found:
        raise DataError(f"Kinetics-Sounds: the lists in {folder} have none of its classes: are they Kinetics-400's?")
    if without:
        logger.warning("Kinetics-Sounds: %d classes have no clip: %s", len(without), ", ".join(without))
    rows = youtube_rows(
        segments, root, title="Kinetics-Sounds", whole_videos=whole_videos, prefer_audio_files=prefer_audio_files
    )
    return Manifest.from_rows(rows, root, {"sound": CLASSES[classes]})


def _segments(file: Path, split: str, classes: list[str]) -> Iterator[Segment]:
    columns = ["label", "youtube_id", "time_start", "time_end"]
    table = read_table(file, columns)
    for k, (label, youtube_id, start, end) in enumerate(zip(*(table[column] for column in columns), strict=True)):
        name = (label or "").replace("_", " ")
        name = RENAMED.get(name, name)
        if name not in classes:
            continue
        span = number(start, file, k + 1, "time_start"), number(end, file, k + 1, "time_end")
        if span[0] is None or span[1] is None or not 0 <= span[0] < span[1]:
            raise DataError(f"{file}: row {k + 1}: the clip's times, {start} to {end}, are not a span of seconds")
        yield Segment(checked_id(youtube_id or "", f"{file}: row {k + 1}"), span[0], span[1], split, name)
