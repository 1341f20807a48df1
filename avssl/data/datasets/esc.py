"""ESC-10 and ESC-50: environmental sounds of 5 s in five official folds (Piczak, ACM Multimedia 2015)."""

import re
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import media_files, read_table, unique_by_name
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

# ESC-10's folders in their order, under the names that ESC-50 gives these classes, so that both layouts of the data
# have the same labels.
ESC10 = {
    "Dog bark": "dog",
    "Rain": "rain",
    "Sea waves": "sea_waves",
    "Baby cry": "crying_baby",
    "Clock tick": "clock_tick",
    "Person sneeze": "sneezing",
    "Helicopter": "helicopter",
    "Chainsaw": "chainsaw",
    "Rooster": "rooster",
    "Fire crackling": "crackling_fire",
}


@register_dataset("esc10", clip_seconds=5.0, eval_clips=1, head="sound", protocol="AST")
def esc10(root: Path, *, fold: int | None = 1) -> Manifest:
    """ESC-10, as its authors laid it out (``001 - Dog bark/1-30226-A.ogg``) or out of ESC-50's folder.

    Args:
        root: The folder.
        fold: Official fold, 1 to 5, that is split "test"; the others are "train". None: all are "train", for a
            cross-validation over the column "fold". Clips of one value in the column "recording" are of one recording.
    """
    if _esc50_table(root):
        return _from_esc50(root, fold, only_esc10=True)
    rows = []
    matches = (re.fullmatch(r"(?:.*/)?\d+ - ([^/]+)/(\d)-[^/]+", path) for path in media_files(root))
    found = {match[0]: match for match in matches if match and match[1] in ESC10}
    for path in unique_by_name(found, "ESC-10"):
        rows.append(_row(path, ESC10[found[path][1]], int(found[path][2]), fold))
    if not rows:
        raise DataError(
            f"ESC-10: neither '001 - Dog bark/1-30226-A.ogg' and the like nor meta/esc50.csv under {root}; "
            "get it from github.com/karolpiczak/ESC-50"
        )
    return Manifest.from_rows(rows, root, {"sound": list(ESC10.values())})


@register_dataset("esc50", clip_seconds=5.0, eval_clips=1, head="sound", protocol="AST")
def esc50(root: Path, *, fold: int | None = 1) -> Manifest:
    """ESC-50: ``meta/esc50.csv`` and ``audio/*.wav``; ``fold`` as in :func:`esc10`."""
    if not _esc50_table(root):
        raise DataError(f"ESC-50: no meta/esc50.csv under {root}; get it from github.com/karolpiczak/ESC-50")
    return _from_esc50(root, fold, only_esc10=False)


def _esc50_table(root: Path) -> Path | None:
    file = root / "meta" / "esc50.csv"
    return file if file.is_file() else None


def _from_esc50(root: Path, fold: int | None, only_esc10: bool) -> Manifest:
    file = root / "meta" / "esc50.csv"
    table = read_table(file, ["filename", "fold", "target", "category", "esc10"])
    rows, classes = [], {}
    for k, name in enumerate(table["filename"]):
        cells = {column: table[column][k] for column in ("fold", "target", "category")}
        for column, cell in cells.items():
            if cell is None or (column != "category" and not cell.isdecimal()):
                raise DataError(f"{file}: row {k + 1}, column {column!r}: {cell!r} is not valid")
        if only_esc10 and str(table["esc10"][k]).lower() != "true":
            continue
        classes[int(str(cells["target"]))] = str(cells["category"])
        rows.append(_row(f"audio/{name}", str(cells["category"]), int(str(cells["fold"])), fold))
    names = list(ESC10.values()) if only_esc10 else [classes[target] for target in sorted(classes)]
    return Manifest.from_rows(rows, root, {"sound": names})


def _row(path: str, label: str, fold: int, test_fold: int | None) -> dict[str, object]:
    if test_fold is not None and test_fold not in range(1, 6):
        raise DataError(f"ESC: option fold must be 1 to 5 or null, got {test_fold!r}")
    split = "test" if fold == test_fold else "train"
    parts = Path(path).stem.split("-")  # fold, recording, take and class: 1-100032-A-0
    recording = parts[1] if len(parts) >= 3 else None
    row: dict[str, object] = {"clip_id": Path(path).stem, "path": path, "split": split, "fold": str(fold)}
    return row | {"recording": recording, "label.sound": label}
