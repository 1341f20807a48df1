"""A sample within its tar: how its bytes are laid out, and its address as a manifest's path."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

BLOCK = 512
# A tar ends with two empty blocks.
END = bytes(2 * BLOCK)
# Of the 44 bytes that precede the samples of a plain PCM file.
WAV_HEADER = 44

_ADDRESS = re.compile(r"^(?P<shard>.*\.tar)#(?P<offset>\d+)\+(?P<size>\d+),(?P<header>\d+),(?P<crc>[0-9a-f]{8})$")
# The same from the name of the shard on, as RE2 and Python both read it.
ADDRESS_END = r"\.tar#\d+\+\d+,\d+,[0-9a-f]{8}$"


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
