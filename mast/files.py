"""Files appear whole or not at all, and stay when the machine loses power."""

import errno
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems answer that cannot write a folder's names down at once.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)


# Names of the temporary files of `atomic_path`: the stem and suffix of the target are in them.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp(\.[^.]*)?")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of a full disk in here names ``path``: what writes to an open file does not say to which."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path with the same suffix in the same folder; a clean exit renames it to ``path``.

    Contents are on the disk before the name is, and the name is before this returns. The folder is made when it is
    missing. After an exception nothing is left behind and ``path`` is untouched.

    Raises:
        OSError: the disk did not take it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}.tmp{target.suffix}")
    try:
        with naming(target):
            yield temporary
            move_into_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str], names: Collection[str] | None = None) -> None:
    """Deletes what killed processes left of :func:`atomic_path`; for whoever alone may write there now.

    Args:
        folder: Where; it may be absent.
        names: Files that were being written; None means any.
    """
    for leftover in Path(folder).glob(".*.tmp*"):
        parts = _TEMPORARY.fullmatch(leftover.name)
        if parts and (names is None or parts[1] + (parts[2] or "") in names):
            leftover.unlink(missing_ok=True)


def move_into_place(file: Path, target: Path) -> None:
    """Renames ``file``, which is on the same file system, to ``target``; the disk has its contents first."""
    with file.open("r+b") as written:
        os.fsync(written.fileno())
    os.replace(file, target)
    try:
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
