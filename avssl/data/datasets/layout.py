"""What the data sets share: finding media files under a folder, and reading tables of annotations."""

import csv
import logging
import math
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter, itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from avssl.data.failures import DataError
from avssl.errors import is_of_machine, printable
from avssl.progress import track

logger = logging.getLogger(__name__)

VIDEO = frozenset({
    ".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".vob", ".ts", ".mts",
    ".m2ts", ".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv",
})  # fmt: skip
AUDIO = frozenset({
    ".wav", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".m4a", ".aac",
    ".mka", ".weba", ".aiff", ".aif", ".au", ".caf", ".wma", ".amr", ".ac3",
})  # fmt: skip
MEDIA = VIDEO | AUDIO


_left_out: ContextVar[dict[str, list[str]] | None] = ContextVar("left_out", default=None)


@contextmanager
def noting_left_out() -> Iterator[dict[str, list[str]]]:
    """Gives what listings within leave out and warn of: printable names by what is wrong with them."""
    noted: dict[str, list[str]] = {}
    token = _left_out.set(noted)
    try:
        yield noted
    finally:
        _left_out.reset(token)


def note_left_out(what: str, names: Iterable[str]) -> None:
    """Notes names that a listing leaves out for whoever asked with :func:`noting_left_out`."""
    if (noted := _left_out.get()) is not None:
        noted.setdefault(what, []).extend(names)


def media_files(folder: Path, extensions: Collection[str] = MEDIA) -> list[str]:
    """Paths of the media files under ``folder``, relative to it, posix, sorted; hidden ones are left out.

    Symbolic links are followed. A folder or file that is reached by several ways is listed once, under its own name
    rather than a link's. What is left out is counted in a warning: names that are not UTF-8, which no table can hold,
    folders that cannot be read, and links to what is listed already.
    """
    walk = _Walk(folder, frozenset(extensions))
    found = sorted(track(walk.paths(), f"listing {folder}", "file"))
    for what, names in walk.left_out.items():
        some = ", ".join(map(printable, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
        logger.warning("%s: %d left out: %s: %s", folder, len(names), what, some)
        note_left_out(what, map(printable, sorted(names)))
    return found


def unique_by_name(paths: Iterable[str], title: str) -> list[str]:
    """One path of each file name: of copies in several folders the first, the others being counted in a warning.

    For data sets whose file names say which recording it is.
    """
    first: dict[str, str] = {}
    copies = [path for path in paths if first.setdefault(Path(path).stem, path) != path]
    if copies:
        logger.warning("%s: %d files are copies of others by their names, left out: %s", title, len(copies),
                       ", ".join(copies[:5]) + (", ..." if len(copies) > 5 else ""))  # fmt: skip
        note_left_out("copies of other files by their names", copies)
    return list(first.values())


class _Walk:
    """One pass over a tree: first its own folders, then linked folders, then linked files."""

    def __init__(self, root: Path, extensions: frozenset[str]) -> None:
        self.root, self.extensions = root, extensions
        self.left_out: dict[str, list[str]] = {}
        self._walked: set[str] = set()  # real paths of folders
        self._taken: set[str] = set()  # real paths of linked files
        self._folder_links: list[tuple[str, str]] = []  # real path, path under the root
        self._file_links: list[str] = []

    def paths(self) -> Iterator[str]:
        yield from self._own(os.path.realpath(self.root), "")
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links, key=itemgetter(1)), []
            for real, path in links:
                if real in self._walked:
                    self._leave("links to folders that are listed already", path)
                else:
                    yield from self._own(real, path + "/")
        for path in sorted(self._file_links):
            real = os.path.realpath(self.root / path)
            if os.path.exists(real) and self._is_listed(real):
                self._leave("links to files that are listed already", path)
            else:
                self._taken.add(real)
                yield path

    def _own(self, real: str, prefix: str) -> Iterator[str]:
        """Files of a folder and of the folders in it that are no links."""
        self._walked.add(real)
        try:
            with os.scandir(real) as entries:
                listed = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            if is_of_machine(error):
                raise
            if not prefix:
                raise DataError(f"{printable(self.root.as_posix())}: cannot be read: {error.strerror}") from error
            self._leave(f"folders that cannot be read ({error.strerror})", prefix)
            return
        for entry in listed:
            path = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if entry.is_symlink():
                    self._folder_links.append((os.path.realpath(entry.path), path))
                elif entry.path not in self._walked:  # not below a linked folder that holds this tree
                    yield from self._own(entry.path, path + "/")
            elif not self._is_media(entry.name):
                continue
            elif printable(path) != path:
                self._leave("names that are not UTF-8, rename them", path)
            elif entry.is_symlink():
                self._file_links.append(path)
            else:
                yield path

    def _is_media(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.extensions

    def _is_listed(self, real: str) -> bool:
        folder, name = os.path.split(real)
        own = folder in self._walked and self._is_media(name) and not name.startswith(".") and printable(name) == name
        return own or real in self._taken

    def _leave(self, what: str, path: str) -> None:
        self.left_out.setdefault(what, []).append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_of_machine(error):
            raise
        return False  # a link that leads to itself


def read_table(
    file: Path, columns: Sequence[str] = (), delimiter: str | None = ",", *, escape: bool = False
) -> dict[str, list[str | None]]:
    """A CSV (UTF-8, with header) or Parquet file as columns of strings; an empty or absent value is None.

    Args:
        file: The table; .parquet is Parquet, anything else CSV.
        columns: Names that must be there.
        delimiter: Between a CSV's cells; None: a comma, a semicolon or a tab, as the header has it.
        escape: Give bytes that are not UTF-8 as `os.fsdecode` does, rather than refuse the file.

    Raises:
        DataError: no such file, not a table, not UTF-8, one of ``columns`` is missing, a name repeats, or a column
            holds lists.
    """
    try:
        table = pyarrow.parquet.read_table(file) if file.suffix.lower() == ".parquet" else _read_csv(file, delimiter)
    except FileNotFoundError as error:
        raise DataError(f"no file {file}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: its header is not UTF-8: save the table as CSV in UTF-8") from error
    except (pa.ArrowInvalid, OSError) as error:
        if is_of_machine(error):
            raise
        raise DataError(f"{file}: cannot be read as a table: {' '.join(str(error).split())}") from error
    for position, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):  # as text, ["dog", "cat"] would be a class of its own
            raise DataError(
                f"{file}: column {field.name!r} holds {field.type}: leave it out; for several labels a clip, write the "
                "file with Manifest.from_rows and Manifest.save"
            )
        if field.name in table.column_names[:position]:
            raise DataError(f"{file}: two columns are named {field.name!r}; rename one")
    for column in columns:
        if column not in table.column_names:
            raise DataError(f"{file}: no column {column!r}; there are {', '.join(table.column_names)}")
    return {
        name: [_cell(value, file, name, escape) for value in table[name].to_pylist()] for name in table.column_names
    }


def _cell(value: object, file: Path, column: str, escape: bool) -> str | None:
    if value is None or value in (b"", "") or value != value:  # a NaN differs from itself
        return None
    try:
        return (
            value.decode("utf-8", "surrogateescape" if escape else "strict") if isinstance(value, bytes) else str(value)
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: column {column!r}: {value!r} is not UTF-8: save the table as CSV in UTF-8") from error


def _read_csv(file: Path, delimiter: str | None) -> pa.Table:
    with open(file, "rb") as stream:
        start = stream.readline()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: is in UTF-16: save the table as CSV in UTF-8")
    if delimiter is None:
        delimiter = max(",;\t", key=lambda sign: start.count(sign.encode()))  # of equals, the first
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(file, parse_options=parse) as reader:
        names = reader.schema.names
    # Bytes throughout: a type guessed from the first block would turn class "007" into 7, and one cell that is not
    # UTF-8 would make all the others unreadable.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False)
    return pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)


def number(text: str | None, file: Path, row: int, column: str) -> float | None:
    """A cell as a finite number; ``row`` counts from 1 after the header, for the message."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{file}: row {row}, column {column!r}: {text!r} is not a number")
    return value


def class_name(text: str) -> str:
    """A class as it is named everywhere: in Unicode's composed form, so that what looks alike is one class."""
    return unicodedata.normalize("NFC", text)


def class_names(values: Collection[str]) -> list[str]:
    """Distinct class names in order: by number where all are whole numbers, else alphabetically."""
    names = set(values)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


SPLIT_NAMES = {
    "pretrain": "pretrain",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def split_name(text: str) -> str | None:
    """The split that a folder or a cell names, in any case; None where it names none."""
    return SPLIT_NAMES.get(text.strip().lower())


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
