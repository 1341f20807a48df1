"""Results of a long pass over files, appended as they come, so that a killed pass continues where it was."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from avssl.files import naming

logger = logging.getLogger(__name__)


class Journal:
    """A line per result, its JSON and CRC-32, keyed by what was read: kind, path, size, time of change, and more.

    A line that was cut off when the process was killed, or damaged since, is left out; its file is read again. A file
    that has changed since has another key, and is read again as well.

    Args:
        path: The journal's file; None keeps nothing.
        version: Settings on which the results depend; a journal of other settings is thrown away.

    >>> with Journal(None, "1") as journal:
    ...     journal.take("anything") is None
    True
    """

    def __init__(self, path: str | Path | None, version: str) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, list[Any]] = {}
        self._file = None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._read(version):
            self.path.write_text(json.dumps({"version": version}) + "\n", encoding="utf-8")
        # Line buffering hands every line to the system at once: killing the process loses none.
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def __len__(self) -> int:
        """Results of an earlier pass that have not been taken yet."""
        return len(self._known)

    def take(self, key: str | None) -> list[Any] | None:
        """The result of an earlier pass, if there is one; it is handed out once, which frees its memory."""
        return None if key is None else self._known.pop(key, None)

    def add(self, key: str | None, result: Sequence[Any]) -> None:
        """Keep a result; None as key (a file that cannot be told from its successor) keeps nothing."""
        if self._file is not None and key is not None:
            assert self.path is not None
            with naming(self.path):
                text = json.dumps([key, list(result)], separators=(",", ":"))
                self._file.write(f"{text}\t{zlib.crc32(text.encode()):08x}\n")

    def close(self) -> None:
        """Stop writing; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and delete: the pass is complete and its result saved elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, version: str) -> bool:
        """Whether there is a journal of these settings; its complete lines are then known, its torn end is closed."""
        assert self.path is not None
        if not self.path.is_file():
            return False
        with open(self.path, "r+b") as file:
            lines = iter(file)
            if _parsed(next(lines, b"")) != {"version": version}:
                logger.warning("%s: of other settings or not a journal: starting over", self.path)
                return False
            torn = 0
            for line in lines:
                text, _, checksum = line.rstrip(b"\n").rpartition(b"\t")
                entry = _parsed(text) if checksum == b"%08x" % zlib.crc32(text) else None
                if isinstance(entry, list) and len(entry) == 2:
                    self._known[entry[0]] = entry[1]
                else:
                    torn += 1
            if torn:
                logger.info("%s: %d incomplete or damaged lines left out", self.path, torn)
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        logger.info("%s: continuing after %d results", self.path, len(self._known))
        return True


def file_key(kind: str, path: str | Path, *more: Any) -> str | None:
    """A key that changes with the file: kind, path, size, time of change and ``more``; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return json.dumps([kind, str(path), found.st_size, found.st_mtime_ns, *more], separators=(",", ":"))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
