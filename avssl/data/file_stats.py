"""Size and time of change of files: what tells, without opening them, whether they are those of yesterday."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from avssl.data.manifest import Manifest
from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.progress import Meter

CHANGED = "file changed since the scan"

# A file server answers each question in about a millisecond, but many at a time.
_THREADS, _CHUNK = 16, 512
# So many files, spread over all, show whether the times of a scan are those of the files or, of copies, others.
_SAMPLE = 32


def file_stats(root: Path, paths: Sequence[str], progress: bool = True) -> list[tuple[int, int] | None]:
    """(bytes, nanoseconds of the last change) of each file, None of one that is not there; in the order of ``paths``.

    Args:
        root: Folder that the paths are relative to.
        paths: Files.
        progress: Show files/s and the time left.
    """
    found: list[tuple[int, int] | None] = []
    chunks = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
    with (
        Meter("checking files", total=len(paths), unit="file", shown=progress) as meter,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for part in pool.map(lambda chunk: [_stat(os.path.join(root, path)) for path in chunk], chunks):
            found += part
            meter.update(len(part))
    return found


def _stat(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise_if_machine(error, path)
        return None
    return stat.st_size, stat.st_mtime_ns


def times_hold(manifest: Manifest) -> bool:
    """Whether the times of change that the scan of ``manifest`` found are those of most of its files, by a sample.

    They are not of a copy of the files: there only the sizes tell which ones were replaced.
    """
    places = np.linspace(0, len(manifest) - 1, min(_SAMPLE, len(manifest))).round().astype(int).tolist()
    rows = [manifest.row(place) for place in places]
    found = [_stat(os.fspath(row.path)) for row in rows if row.file_modified is not None]
    known = [row.file_modified for row in rows if row.file_modified is not None]
    same = [stat is not None and stat[1] // 1000 == time for stat, time in zip(found, known, strict=True)]
    return 2 * sum(same) > len(same)


@contextmanager
def unchanged(path: str | Path, size: int | None, modified: int | None) -> Iterator[None]:
    """Reading the file at ``path``, which is to be that of the scan, before and after.

    Args:
        path: The file.
        size: Its bytes; None where they are not known.
        modified: Microseconds from 1970 to its last change; None where that is not known or tells nothing.

    Raises:
        MediaError: "file changed since the scan".
    """
    _compare(path, size, modified)
    try:
        yield
    finally:
        _compare(path, size, modified)


def _compare(path: str | Path, size: int | None, modified: int | None) -> None:
    if size is None or (found := _stat(os.fspath(path))) is None:  # whoever opens it tells why it is not there
        return
    if found[0] != size:
        raise MediaError(path, CHANGED, f"{found[0]} bytes, not {size}: start again, or prepare the data anew")
    if modified not in (None, found[1] // 1000):
        raise MediaError(path, CHANGED, "written to: start again, or prepare the data anew")
