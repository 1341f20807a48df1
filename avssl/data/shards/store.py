"""Where the samples of a cache lie: its folder or URL (s3://, gs:// ..., by fsspec), and the bytes of each in a tar.

A sample's address, with the name of its tar, is its path in a manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.data.failures import DataError
from avssl.files import atomic_path
from avssl.urls import hide_credentials, keep_back, reveal

OPEN_FILES = 64
BLOCK = 512
# A tar ends with two empty blocks.
END = bytes(2 * BLOCK)
# Of the 44 bytes that precede the samples of a plain PCM file.
WAV_HEADER = 44

_ADDRESS = re.compile(r"^(?P<shard>.*\.tar)#(?P<offset>\d+)\+(?P<size>\d+),(?P<header>\d+),(?P<crc>[0-9a-f]{8})$")
# The same from the name of the shard on, as RE2 and Python both read it.
ADDRESS_END = r"\.tar#\d+\+\d+,\d+,[0-9a-f]{8}$"


def is_url(location: str) -> bool:
    """Whether ``location`` is a URL rather than a path."""
    return "://" in location


class Store:
    """Files directly under one place.

    Args:
        location: A folder or a URL. Its credentials are used, but not kept in the attribute ``location``.

    Raises:
        DataError: no such kind of URL, or its package is not installed.
    """

    def __init__(self, location: str) -> None:
        self.location: str = keep_back(location.removeprefix("file://"))
        self.local = None if is_url(self.location) else Path(self.location).expanduser().absolute()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()  # one thread must not close what another reads
        self._fs: Any = None
        self._root = ""
        if self.local is None:
            import fsspec

            try:
                self._fs, self._root = fsspec.core.url_to_fs(reveal(self.location))
            except (ValueError, ImportError) as error:
                raise DataError(hide_credentials(f"{self.location}: {error}")) from error

    def read(self, name: str, start: int | None = None, size: int | None = None) -> bytes:
        """The bytes of a file, or ``size`` of them from ``start`` on (fewer where it ends).

        Raises:
            OSError: it cannot be read.
        """
        if self.local is None:
            end = None if start is None or size is None else start + size
            data: bytes = self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)
            return data
        if start is None or size is None:
            return (self.local / name).read_bytes()
        with self._lock:
            return os.pread(self._descriptor(name), size, start)

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        try:
            if self.local is None:
                self._fs.invalidate_cache(self._root)
                return int(self._fs.size(f"{self._root}/{name}"))
            return (self.local / name).stat().st_size
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""
        if self.local is None:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", data)
            return
        with atomic_path(self.local / name) as temporary:
            temporary.write_bytes(data)

    def put(self, file: Path, name: str) -> None:
        """Moves a local file to here; it appears whole or not at all."""
        if self.local is None:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.put_file(str(file), f"{self._root}/{name}")
            file.unlink()
            return
        from mast.files import move_into_place  # which brings torch

        move_into_place(file, self.local / name)

    def sha256(self, name: str) -> tuple[str, int]:
        """SHA-256 and length of a file."""
        digest, length = hashlib.sha256(), 0
        with (
            self._fs.open(f"{self._root}/{name}", "rb")
            if self.local is None
            else (self.local / name).open("rb") as file
        ):
            while block := file.read(1 << 22):
                digest.update(block)
                length += len(block)
        return digest.hexdigest(), length

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file to a local one."""
        with atomic_path(target) as temporary:
            if self.local is None:
                self._fs.get_file(f"{self._root}/{name}", str(temporary))
            else:
                shutil.copyfile(self.local / name, temporary)

    def close(self) -> None:
        """Closes the files that :meth:`read` keeps open."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _descriptor(self, name: str) -> int:
        """An open file; the one that was not used for longest is closed when there are too many."""
        assert self.local is not None
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        descriptor = os.open(self.local / name, os.O_RDONLY)
        self._files[name] = descriptor
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sample lies; as text ``SHARD.tar#OFFSET+SIZE,HEADER,CRC``, which is its path in a manifest.

    Attributes:
        shard: Name of the tar.
        offset, size: Bytes of the sample within it, with the headers of its members.
        header: Bytes of the JSON, its first member.
        crc: CRC-32 of the JSON, which holds those of everything else.
    """

    shard: str
    offset: int
    size: int
    header: int
    crc: int

    def __str__(self) -> str:
        return f"{self.shard}#{self.offset}+{self.size},{self.header},{self.crc:08x}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address of a text.

        Raises:
            ValueError: it is none.
        """
        match = _ADDRESS.match(text)
        if match is None:
            raise ValueError(f"{text} is not the address of a cached sample")
        offset, size, header = (int(match[name]) for name in ("offset", "size", "header"))
        return cls(match["shard"], offset, size, header, int(match["crc"], 16))

    def after(self, *sizes: int) -> int:
        """First byte, counted from the sample's, of the member that follows members of these sizes."""
        return sum(BLOCK + padded(size) for size in sizes) + BLOCK


def is_address(path: str) -> bool:
    """Whether ``path`` is a sample of a shard rather than a file."""
    return _ADDRESS.match(path) is not None


def padded(size: int) -> int:
    """Bytes that ``size`` bytes take in a tar, without their header."""
    return -(-size // BLOCK) * BLOCK


def pack(key: str, members: Mapping[str, bytes]) -> bytes:
    """The members ``KEY.EXTENSION`` as a stretch of a tar, the same bytes wherever and whenever it is made."""
    parts: list[bytes] = []
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size, info.mode = len(data), 0o644
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(padded(len(data)) - len(data))]
    return b"".join(parts)


def header_of(part: bytes) -> bytes:
    """The first member of a stretch that :func:`pack` made."""
    size = tarfile.TarInfo.frombuf(part[:BLOCK], "ascii", "strict").size
    return part[BLOCK : BLOCK + size]


def crc(data: bytes | memoryview) -> int:
    """CRC-32."""
    return zlib.crc32(data)
