"""What the data sets share: finding media files under a folder, and reading tables of annotations."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from avssl.data.failures import DataError
from avssl.progress import track

VIDEO = frozenset({".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"})
AUDIO = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif", ".wma"})
MEDIA = VIDEO | AUDIO


def media_files(folder: Path, extensions: Collection[str] = MEDIA) -> list[str]:
    """Paths of the media files under ``folder``, relative to it, posix, sorted; hidden ones are left out.

    Symbolic links are followed, a folder being visited once.
    """
    found = _walk(folder, "", frozenset(extensions), set())
    return sorted(track(found, f"listing {folder}", "file"))


def _walk(folder: Path, prefix: str, extensions: frozenset[str], seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", extensions, seen)
            elif os.path.splitext(entry.name)[1].lower() in extensions:
                yield prefix + entry.name


def read_table(file: Path, columns: Sequence[str] = (), delimiter: str = ",") -> dict[str, list[str | None]]:
    """A CSV (UTF-8, with header) or Parquet file as columns of strings; an empty or absent value is None.

    Raises:
        DataError: no such file, not a table, one of ``columns`` is missing, or one holds lists.
    """
    try:
        table = pyarrow.parquet.read_table(file) if file.suffix.lower() == ".parquet" else _read_csv(file, delimiter)
    except FileNotFoundError as error:
        raise DataError(f"no file {file}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: cannot be read as a table: {error}") from error
    for field in table.schema:
        if pa.types.is_nested(field.type):  # as text, ["dog", "cat"] would be a class of its own
            raise DataError(
                f"{file}: column {field.name!r} holds {field.type}: leave it out; for several labels a clip, write the "
                "file with Manifest.from_rows and Manifest.save"
            )
    for column in columns:
        if column not in table.column_names:
            raise DataError(f"{file}: no column {column!r}; there are {', '.join(table.column_names)}")
    return {
        name: [None if value is None or value == "" else str(value) for value in table[name].to_pylist()]
        for name in table.column_names
    }


def _read_csv(file: Path, delimiter: str) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(file, parse_options=parse) as reader:
        names = reader.schema.names
    # Strings throughout: a type guessed from the first block would turn class "007" into 7.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)


def number(text: str | None, file: Path, row: int, column: str) -> float | None:
    """A cell as a number; ``row`` counts from 1 after the header, for the message."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{file}: row {row}, column {column!r}: {text!r} is not a number") from error


def class_names(values: Collection[str]) -> list[str]:
    """Distinct class names in order: by number where all are whole numbers, else alphabetically."""
    names = set(values)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
