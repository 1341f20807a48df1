"""Which way up the pictures of a file are: phones store them as the sensor lies, with a matrix that turns them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from avssl.data.media.container import decode_frames, find_video, open_media
from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.data.media.extents import LISTED

# Boxes of an MP4 or MOV file on the way to the matrix of a track.
_BOXES = (b"moov", b"trak")
_UNTURNED = (1 << 16, 0, 0, 1 << 16)
# Matroska's angle (ProjectionPoseRoll, a float of 4 or 8 bytes), and where it is looked for.
_ROLLS = (b"\x76\x75\x84", b"\x76\x75\x88")
_HEAD = 1 << 15


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """A picture (H, W, 3) of ``frame`` as it is to be seen; for a quarter turn (W, H, 3)."""
    matrix = _matrix(frame)
    if matrix is None:
        return image
    a, b, c, d = matrix  # a point (x, y) is seen at (a x + c y, b x + d y)
    if abs(b) > abs(a):
        image = image.transpose(1, 0, 2)
        flips = slice(None, None, -1 if b < 0 else 1), slice(None, None, -1 if c < 0 else 1)
    else:
        flips = slice(None, None, -1 if d < 0 else 1), slice(None, None, -1 if a < 0 else 1)
    return image[flips]


def upright_size(path: str | Path, format_name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a file's pictures as they are to be seen, given those of the ones it stores.

    A picture is decoded only where the header hints at a turn.
    """
    if _hint(path, format_name):
        with open_media(path) as container:
            for frame in decode_frames(container, find_video(container, path)):
                matrix = _matrix(frame)
                return size[::-1] if matrix is not None and abs(matrix[1]) > abs(matrix[0]) else size
    return size


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """The part of the display matrix that turns and mirrors, row by row; None where there is none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    numbers = np.frombuffer(data, dtype=np.int32)
    matrix = (int(numbers[0]), int(numbers[1]), int(numbers[3]), int(numbers[4]))
    return None if matrix == _UNTURNED else matrix


def _hint(path: str | Path, format_name: str) -> bool:
    """Whether the header speaks of a turn; by the bytes, since PyAV shows it of decoded pictures only."""
    if format_name not in LISTED | {"matroska,webm"}:
        return False
    try:
        with open(path, "rb") as file:
            if format_name in LISTED:
                return any(matrix != _UNTURNED for matrix in _track_matrices(file, file.seek(0, 2), 0))
            head = file.read(_HEAD)
            return any(roll in head for roll in _ROLLS)
    except OSError as error:
        raise_if_machine(error, path)
        raise MediaError(path, "unreadable file", error.strerror or "") from error


def _track_matrices(
    file: BinaryIO, end: int, position: int, boxes: tuple[bytes, ...] = _BOXES
) -> Iterator[tuple[int, ...]]:
    """The matrices of an MP4 file's tracks (ISO/IEC 14496-12, 8.3.2), between two bytes of it, inside of ``boxes``."""
    while position + 8 <= end:
        file.seek(position)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        begin = position + 8
        if size == 1 and len(head) == 16:
            size, begin = struct.unpack(">Q", head[8:])[0], position + 16
        size = size or end - position
        if size < begin - position:
            return  # broken
        if boxes and kind == boxes[0]:
            yield from _track_matrices(file, min(end, position + size), begin, boxes[1:])
        elif not boxes and kind == b"tkhd":
            file.seek(begin)
            body = file.read(96)
            offset = 52 if body[:1] == b"\1" else 40
            if len(body) >= offset + 36:
                numbers = struct.unpack(">9i", body[offset : offset + 36])
                yield numbers[0], numbers[1], numbers[3], numbers[4]
        position += size
