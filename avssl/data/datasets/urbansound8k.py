"""UrbanSound8K: city sounds of up to 4 s in ten classes and ten official folds (Salamon et al., ACM MM 2014)."""

from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import read_table
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

# In the order of the column "classID".
CLASSES = [
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
]  # fmt: skip
TABLE = "metadata/UrbanSound8K.csv"
FOLDS = range(1, 11)


@register_dataset("urbansound8k", clip_seconds=4.0, eval_clips=1, head="sound")
def urbansound8k(root: Path, *, fold: int | None = 1) -> Manifest:
    """``metadata/UrbanSound8K.csv`` and ``audio/fold1`` to ``fold10``, with head "sound" (10 classes).

    Columns "fold", "recording" (the Freesound id: slices of one recording are in one fold) and "salience"
    (1 foreground, 2 background). Published numbers are means over the ten official folds, each being the test split
    once; other divisions put slices of one recording on both sides and score far too high. The table's "start" and
    "end" are times in the original recording, not in the slice, and are left out.

    Args:
        root: The folder, or the one above it (``UrbanSound8K``).
        fold: Official fold, 1 to 10, that is split "test"; the others are "train". None: all are "train", for a
            cross-validation over the column "fold".

    Raises:
        DataError: The table is missing, or a row of it is wrong; the message names it.
    """
    if fold is not None and fold not in FOLDS:
        raise DataError(f"UrbanSound8K: option fold must be 1 to 10 or null, got {fold!r}")
    prefix = next((prefix for prefix in ("", "UrbanSound8K/") if (root / prefix / TABLE).is_file()), None)
    if prefix is None:
        raise DataError(f"UrbanSound8K: no {TABLE} in {root}; get the data from urbansounddataset.weebly.com")
    file = root / prefix / TABLE
    table = read_table(file, ["slice_file_name", "fsID", "salience", "fold", "classID", "class"])
    rows = []
    for k, name in enumerate(table["slice_file_name"]):
        number, label = table["fold"][k], table["class"][k]
        if name is None or "/" in name:
            raise DataError(f"{file}: row {k + 1}, column 'slice_file_name': {name!r} is not the name of a file")
        if number is None or not number.isdecimal() or int(number) not in FOLDS:
            raise DataError(f"{file}: row {k + 1} ({name}), column 'fold': {number!r} is not in 1..10")
        if label not in CLASSES or table["classID"][k] != str(CLASSES.index(label)):
            raise DataError(
                f"{file}: row {k + 1} ({name}): class {label!r} with classID {table['classID'][k]!r} is none of the ten"
            )
        rows.append(
            {
                "clip_id": Path(name).stem,
                "path": f"{prefix}audio/fold{number}/{name}",
                "split": "test" if int(number) == fold else "train",
                "fold": number,
                "recording": table["fsID"][k],
                "salience": table["salience"][k],
                "label.sound": label,
            }
        )
    return Manifest.from_rows(rows, root, {"sound": CLASSES})
