"""Finding the official annotation files of a data set, and reading those that have no header."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from avssl.data.failures import DataError


def find_annotations(
    root: Path, folder: str | None, files: Sequence[str], *, title: str, source: str, also: Sequence[str] = ()
) -> Path:
    """The folder of a data set's annotation files.

    Args:
        root: Folder of the media.
        folder: Folder that the user named, absolute or relative to ``root``; None looks in ``root``, in its folder
            ``annotations`` and in those of ``also``.
        files: Names of which one at least must be there.
        title: Name of the data set, for the error.
        source: Where the files are distributed, for the error.
        also: Further folders of ``root`` to look in.

    Raises:
        DataError: none of ``files`` is in any of the folders.
    """
    places = [root / Path(folder).expanduser()] if folder else [root, *(root / name for name in ("annotations", *also))]
    for place in places:
        if any((place / name).is_file() for name in files):
            return place
    raise DataError(
        f"{title}: no {' or '.join(files)} in {', '.join(map(str, places))}; get the annotations from {source} and "
        "name their folder with the option annotations"
    )


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that ``folder`` holds, None where it holds none."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def headerless_rows(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and cells of a CSV file without a header; blank lines and those after ``#`` are left out.

    Blanks after a comma do not count, so that a quoted cell may follow one (``ID, 0.000, "a,b"``).

    Raises:
        DataError: no such file, not UTF-8 text, or a line that has not ``columns`` cells.
    """
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True)
            for cells in reader:
                if not cells or cells[0].startswith("#"):
                    continue
                if len(cells) != columns:
                    raise DataError(f"{file}: line {reader.line_num}: {len(cells)} cells instead of {columns}: {cells}")
                yield reader.line_num, [cell.strip() for cell in cells]
    except FileNotFoundError as error:
        raise DataError(f"no file {file}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV: {error}") from error
