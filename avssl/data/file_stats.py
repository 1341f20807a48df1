"""Size and time of change of many files: what tells, without opening them, whether they are those of yesterday."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from avssl.data.media.errors import raise_if_machine
from avssl.progress import Meter

# A file server answers each question in about a millisecond, but many at a time.
_THREADS, _CHUNK = 16, 512


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
