"""Any CSV or Parquet file that lists clips: a path column, and optionally start, end, split and label columns."""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import class_name, class_names, note_left_out, number, read_table, split_name
from avssl.data.failures import DataError
from avssl.data.manifest import SPLITS, Manifest, ManifestError
from avssl.data.manifest_checks import COLUMNS, LABEL_PREFIX
from avssl.errors import printable

logger = logging.getLogger(__name__)

Table = dict[str, list[str | None]]


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
    delimiter: str | None = None,
    separator: str | None = None,
    allow_absolute: bool = False,
) -> Manifest:
    """The clips that a table lists.

    Only the path column must be there. Upper and lower case and blanks around a column's name do not matter. Classes
    are the distinct values of a label column without blanks around them, in numeric order where all are whole numbers,
    else in alphabetical order; an empty cell is unlabelled. A head has its column's name. All other columns are kept
    as text, but for those that a scan fills (duration, fps ...). A row whose cells are not UTF-8 is left out, counted
    and named.

    Args:
        root: Folder that the paths are relative to.
        file: The table, relative to ``root`` or absolute; .parquet is Parquet, anything else CSV with a header.
        path: Name of the column of media paths.
        start, end: Names of the columns of seconds in the file; an empty cell is the file's bound.
        split: Name of the column of splits (pretrain, train, val, test or empty); without it all rows are "train".
        label: Name, or list of names, of the columns of classes; by default "label" where there is one.
        clip_id: Name of the column of unique ids; without it an id is the path with its span.
        delimiter: Between a CSV's cells; None: a comma, a semicolon or a tab, as the header has it.
        separator: Between the classes of a cell, such as "|"; all heads then have several labels a clip. A cell that
            holds nothing but the separator has none of the classes.
        allow_absolute: Take absolute paths, which may lie anywhere on this machine. By default they are refused: a
            table of someone else's must not choose which of your files are read.

    Raises:
        DataError: names the file, the row (counted from 1 after the header) and the column.
    """
    source = Path(root) / Path(file).expanduser()
    if separator == "":
        raise DataError(f"{source}: option separator must be a sign such as '|', or null")
    table = read_table(source, (), delimiter, escape=True)
    wanted = [label] if isinstance(label, str) else list(label)
    found = {name: _find(table, name, source) for name in (path, start, end, split, clip_id, *wanted)}
    heads = [head for head in wanted if found[head] is not None or wanted != ["label"]]
    for name in (path, *heads):
        if found[name] is None:
            raise DataError(f"{source}: no column {name!r}; there are {', '.join(table)}")
    if not heads:
        logger.info("%s: no column 'label', so no classes; of %s", source, ", ".join(table))
    used = {name: column for name, column in found.items() if column is not None}
    table = _utf8_rows(table, source)
    cells = {name: table[column] for name, column in used.items()}
    kept = [
        name for name in table
        if name.strip() and name not in used.values() and name not in COLUMNS and not name.startswith(LABEL_PREFIX)
    ]  # fmt: skip
    classes = {head: [_classes(cell, separator) for cell in cells[head]] for head in heads}
    if not allow_absolute:
        for k, media in enumerate(cells[path]):
            if media and media.startswith("/"):
                raise DataError(
                    f"{source}: row {k + 1}, column {path!r}: {printable(media)!r} is absolute; make it relative to "
                    "the root, or allow such paths by --data.options '{allow_absolute: true}'"
                )
    cells[path] = [media and _as_on_disk(Path(root), media) for media in cells[path]]
    rows = _rows(source, cells, {"path": path, "start": start, "end": end, "split": split, "clip_id": clip_id})
    for k, row in enumerate(rows):
        row |= {f"{LABEL_PREFIX}{head}": classes[head][k] for head in heads} | {name: table[name][k] for name in kept}
    names = {head: class_names([name for cell in classes[head] for name in _listed(cell)]) for head in heads}
    try:
        return Manifest.from_rows(rows, root, names, allow_absolute=allow_absolute)
    except ManifestError as error:
        raise DataError(f"{source}: {error}") from error


def _find(table: Table, name: str, source: Path) -> str | None:
    """The column of that name, else the one that differs by case and blanks alone."""
    if name in table:
        return name
    alike = [column for column in table if column.strip().casefold() == name.strip().casefold()]
    if len(alike) > 1:
        raise DataError(f"{source}: which column is {name!r}: {' or '.join(map(repr, alike))}? rename one")
    return alike[0] if alike else None


def _utf8_rows(table: Table, source: Path) -> Table:
    """The table without the rows that hold bytes that are not UTF-8."""
    columns = list(table.values())
    bad: dict[int, str] = {}
    for cells in columns:
        for k, cell in enumerate(cells):
            if cell is not None and not cell.isascii() and printable(cell) != cell:
                bad.setdefault(k, printable(cell))
    if not bad:
        return table
    some = ", ".join(f"row {k + 1} ({bad[k]})" for k in sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    logger.warning("%s: %d of %d rows left out, they are not UTF-8: %s", source, len(bad), len(columns[0]), some)
    note_left_out("rows that are not UTF-8", (f"row {k + 1} ({bad[k]})" for k in sorted(bad)))
    return {name: [cell for k, cell in enumerate(cells) if k not in bad] for name, cells in table.items()}


def _as_on_disk(root: Path, media: str) -> str:
    """The path, or the form of its accents in which the file is there: systems write them as one sign or as two."""
    forms = [] if media.isascii() else [media, *(unicodedata.normalize(form, media) for form in ("NFC", "NFD"))]
    return next((form for form in forms if (root / form).exists()), media)


def _rows(
    source: Path, cells: Mapping[str, Sequence[str | None]], columns: Mapping[str, str]
) -> list[dict[str, object]]:
    """Id, path, span and split of every row; ``columns`` maps what is looked for to its name in ``cells``."""
    rows: list[dict[str, object]] = []
    first_with: dict[str, int] = {}
    names = [columns[key] for key in ("start", "end")]
    for k, media in enumerate(cells[columns["path"]]):
        where = f"{source}: row {k + 1}"
        if media is None:
            raise DataError(f"{where}, column {columns['path']!r}: empty")
        start, end = (number(cells[name][k], source, k + 1, name) if name in cells else None for name in names)
        if start is not None and start < 0:
            raise DataError(f"{where}, column {names[0]!r}: {start} is negative")
        if end is not None and end <= (start or 0):
            raise DataError(f"{where}, column {names[1]!r}: {end} does not lie after the start")
        kind: str | None = "train"
        if columns["split"] in cells:
            cell = (cells[columns["split"]][k] or "").strip()
            kind = split_name(cell) if cell else ""
            if kind is None:
                known = ", ".join(name for name in SPLITS if name)
                raise DataError(f"{where}, column {columns['split']!r}: {cell!r} is none of {known}")
        span = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else f'{end:g}'}"
        name = (cells[columns["clip_id"]][k] if columns["clip_id"] in cells else None) or media + span
        first = rows[first_with[name]] if name in first_with else None
        if first and name == media + span and (first["start"], first["end"]) != (start, end):  # by six digits the same
            name = f"{media}@{start or 0}-{'' if end is None else end}"
        if first_with.setdefault(name, k) != k:
            raise DataError(
                f"{where} repeats row {first_with[name] + 1}, clip {name!r}: delete one, or give each an id of its own "
                f"in a column {columns['clip_id']!r}"
            )
        rows.append({"clip_id": name, "path": media, "start": start, "end": end, "split": kind})
    if not rows:
        raise DataError(f"{source}: no row")
    return rows


def _classes(cell: str | None, separator: str | None) -> str | list[str] | None:
    """What a cell names: a class, several where there is a separator, None where it is blank."""
    text = class_name(cell or "").strip()
    if not text:
        return None
    if separator is None:
        return text
    return list(dict.fromkeys(name for part in text.split(separator) if (name := part.strip())))


def _listed(cell: str | list[str] | None) -> list[str]:
    return [] if cell is None else cell if isinstance(cell, list) else [cell]
