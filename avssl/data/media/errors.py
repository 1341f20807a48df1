"""The one exception of the media readers, and what is not the files' fault."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import av

from avssl.errors import FULL, printable
from avssl.limits import limits
from avssl.urls import hide_credentials

# So many bytes a machine has that is not out of memory.
_SPARE = 1 << 26


class MediaError(Exception):
    """A file that cannot give what was asked of it.

    Attributes:
        path: the file.
        reason: a short phrase from a small set ("no audio stream", "file not found"), fit for counting.
        detail: what is particular to this case ("ends at 2.98 s"), or "".
    """

    def __init__(self, path: str | Path, reason: str, detail: str = "") -> None:
        # FFmpeg's messages run over several lines; a log line must not.
        self.path, self.reason, self.detail = str(path), reason, hide_credentials(" ".join(detail.split()))
        super().__init__(f"{printable(self.path)}: {reason}" + (f" ({self.detail})" if self.detail else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.detail)  # crosses process borders whole


def check_size(size: float, path: str | Path) -> None:
    """Refuses a read of decoded sound or pictures that takes ``size`` bytes, where those are too many.

    Raises:
        MediaError: "clip too large".
    """
    if told := limits().too_large(size):
        raise MediaError(path, "clip too large", told)


def raise_if_machine(error: BaseException, path: str | Path = "") -> None:
    """Raises an OSError where ``error`` tells of this machine, not of the file: it must end a job, which can resume.

    That is a full disk, too many open files, a disk that cannot be read, or no memory. FFmpeg says the latter two of
    some broken files as well, whose headers ask for too much or whose ends are missing: then the machine is tried.

    Args:
        error: What reading or writing raised.
        path: The file, which the OSError names; "file:" before it, as containers have it, is left out.
    """
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    name = str(path).removeprefix("file:")
    unsure = isinstance(error, av.FFmpegError)
    if (
        code in FULL
        or (code == errno.EIO and not (unsure and _can_be_read(name)))
        or (code == errno.ENOMEM and not _has_memory())
    ):
        raise OSError(code, os.strerror(code), name or None) from error


def _can_be_read(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            while file.read(1 << 22):
                pass
    except OSError as error:
        return error.errno != errno.EIO
    return True


def _has_memory() -> bool:
    try:
        bytearray(_SPARE)
    except MemoryError:
        return False
    return True
