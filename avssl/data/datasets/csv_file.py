"""Any CSV or Parquet file that lists clips: a path column, and optionally start, end, split and label columns."""

from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import class_names, number, read_table
from avssl.data.failures import DataError
from avssl.data.manifest import SPLITS, Manifest, ManifestError


@register_dataset("csv", clip_seconds=None, eval_clips=1, head=None)
def csv_file(
    root: Path,
    *,
    file: str = "index.csv",
    path: str = "path",
    start: str = "start",
    end: str = "end",
    split: str = "split",
    label: str | list[str] = "label",
    clip_id: str = "clip_id",
    delimiter: str = ",",
) -> Manifest:
    """The clips that a table lists.

    Only the path column must be there. Classes are the distinct values of a label column, in numeric order where all
    are whole numbers, else in alphabetical order; an empty cell is unlabelled. A head has its column's name.

    Args:
        root: Folder that the paths are relative to.
        file: The table, relative to ``root`` or absolute; .parquet is Parquet, anything else CSV with a header.
        path: Name of the column of media paths.
        start, end: Names of the columns of seconds in the file; an empty cell is the file's bound.
        split: Name of the column of splits (pretrain, train, val, test or empty); without it all rows are "train".
        label: Name, or list of names, of the columns of classes; by default "label" where there is one.
        clip_id: Name of the column of unique ids; without it an id is the path with its span.
        delimiter: Between a CSV's cells.

    Raises:
        DataError: names the file, the row (counted from 1 after the header) and the column.
    """
    source = Path(root) / Path(file).expanduser()
    table = read_table(source, [path], delimiter)
    heads = [label] if isinstance(label, str) else list(label)
    if heads == ["label"] and "label" not in table:
        heads = []
    for head in heads:
        if head not in table:
            raise DataError(f"{source}: no column {head!r}; there are {', '.join(table)}")
    rows: list[dict[str, object]] = []
    first_with: dict[str, int] = {}
    for k, media in enumerate(table[path]):
        if media is None:
            raise DataError(f"{source}: row {k + 1}, column {path!r}: empty")
        bounds = [number(table[name][k], source, k + 1, name) if name in table else None for name in (start, end)]
        kind = (table[split][k] or "") if split in table else "train"
        if kind not in SPLITS:
            known = ", ".join(name for name in SPLITS if name)
            raise DataError(f"{source}: row {k + 1}, column {split!r}: {kind!r} is none of {known}")
        if bounds[0] is not None and bounds[0] < 0:
            raise DataError(f"{source}: row {k + 1}, column {start!r}: {bounds[0]} is negative")
        if bounds[1] is not None and bounds[1] <= (bounds[0] or 0):
            raise DataError(f"{source}: row {k + 1}, column {end!r}: {bounds[1]} does not lie after the start")
        span = "" if bounds == [None, None] else f"@{bounds[0] or 0:g}-{'' if bounds[1] is None else f'{bounds[1]:g}'}"
        name = (table[clip_id][k] if clip_id in table else None) or media + span
        if first_with.setdefault(name, k) != k:
            raise DataError(f"{source}: row {k + 1} repeats row {first_with[name] + 1}, clip {name!r}")
        rows.append(
            {
                "clip_id": name,
                "path": media,
                "start": bounds[0],
                "end": bounds[1],
                "split": kind,
                **{f"label.{head}": table[head][k] for head in heads},
            }
        )
    if not rows:
        raise DataError(f"{source}: no row")
    classes = {head: class_names([name for name in table[head] if name is not None]) for head in heads}
    absolute = any(str(row["path"]).startswith("/") for row in rows)
    try:
        return Manifest.from_rows(rows, root, classes, allow_absolute=absolute)
    except ManifestError as error:
        raise DataError(f"{source}: {error}") from error
