"""Frames of a file at given instants: by its packets where they tell the times, else by decord, else by PyAV."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from avssl.data.media.container import (
    ROUNDING,
    decoded,
    file_identity,
    find_video,
    frame_indices,
    frame_rate,
    open_media,
    packets_of,
    seconds,
    start_of,
)
from avssl.data.media.errors import MediaError, check_size
from avssl.data.media.extents import LISTED, may_seek
from avssl.data.media.orientation import upright
from avssl.data.media.packets import PacketError, SequentialError, packet_starts, read_by_packets

logger = logging.getLogger(__name__)

# A seek aims this many seconds early, since containers index keyframes only roughly.
_RUN_UP = 1.0
# Share of frames that decord may patch with a neighbour before the file counts as undecodable.
_PATCHED_SHARE = 0.1
# A missing timestamp shows up in decord as one of 1e17 seconds.
_SANE_SECONDS = 1e9
# Containers whose header tells the times and parameters of their streams, so that no frame need be decoded to open
# them; and those that store the time of every packet, and which are keyframes: nearly all video there is.
QUICK = LISTED
TIMED = QUICK | {"matroska,webm", "flv"}
# Where decord is exact: in AVI, with codecs that have no B-frames. It is up to 50 frames off where frames are reordered
# (H.264 with open GOPs, HEVC, MPEG-1, 2 and 4 with B-frames, in any container), in ASF and in MPEG-TS.
# Its decoder knows no limit of pictures: not where they state their size themselves (flv; of mjpeg it is compared).
FOR_DECORD = {"avi": {"mjpeg", "ffv1", "msmpeg4", "msmpeg4v2", "wmv2"}}
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]")
# Containers that store one time for each frame, in the order of decoding.
_ONE_TIME = {"avi", "asf"}
# Containers in which FFmpeg counts times after a seek from the index, and may count wrong: AVI has empty chunks.
_INDEXED = {"avi"}
# Packets after which the order of the frames of such a container is known.
_ORDER_PACKETS = 32


def frames_of(
    container: InputContainer,
    stream: VideoStream,
    path: str | Path,
    original: tuple[int, int],
    wanted: np.ndarray,
    size: int | None = None,
) -> np.ndarray:
    """The frames on screen at ``wanted`` (T,) seconds; see `MediaFile.frames`.

    Args:
        container: The open file; it is left anywhere.
        stream: Its video, from `find_video`.
        path: The file.
        original: (width, height) of its pictures, from the header.
        wanted, size: As for `MediaFile.frames`.
    """
    shape = scaled_shape(*original, size)
    check_size(3 * (math.prod(original) + len(wanted) * math.prod(shape)), path)
    if container.format.name in TIMED:
        try:
            return read_by_packets(container, stream, wanted, original, shape, path)
        except SequentialError as error:
            logger.debug("%s: decoded from its beginning (%s)", path, error)
            return read_with_pyav(path, wanted, shape, ways=("all",))
        except PacketError as error:
            logger.debug("%s: not by packets (%s)", path, error)
    decord = _decord()
    name = stream.codec_context.name
    known = name in FOR_DECORD.get(container.format.name, ())
    if decord and known and (name != "mjpeg" or _of_one_size(path, file_identity(path), original)):
        start = seconds(stream, stream.start_time)
        offset = 0.0 if start is None else start - start_of(container)
        try:
            return read_with_decord(decord, path, wanted - offset, shape)
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError) as error:
            logger.debug("%s: decord failed (%s); reading with PyAV", path, str(error).split("\n")[0])
    ways = ("seek", "skip", "all") if may_seek(container, stream, path) else ("skip", "all")
    return read_with_pyav(path, wanted, shape, ways=ways)


@lru_cache(maxsize=4096)
def _of_one_size(path: str | Path, identity: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether every JPEG of a file is of ``size`` (width, height) by its own header, none being decoded."""
    with open_media(path) as container:
        packets = packets_of(container, find_video(container, path))
        return all(_jpeg_sizes(bytes(packet)) == {size} for packet in packets if packet.size)


def _jpeg_sizes(data: bytes) -> set[tuple[int, int]]:
    """(width, height) by all that looks like the header of a frame; what is coded holds nothing that does."""
    places = [match.end() for match in _JPEG_FRAME.finditer(data)]
    sides = [(data[place + 5 : place + 7], data[place + 3 : place + 5]) for place in places]
    return {(int.from_bytes(width, "big"), int.from_bytes(height, "big")) for width, height in sides}


@cache
def _decord() -> Any:
    """The module decord, quiet; None where there is none: it has no build for some machines."""
    try:
        import decord
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def starts_of(container: InputContainer, stream: VideoStream, path: str | Path, start: float, end: float) -> np.ndarray:
    """Start of each frame on screen between ``start`` and ``end``; see `MediaFile.frame_starts`."""
    starts: np.ndarray | None = None
    if container.format.name in TIMED:
        try:
            starts = packet_starts(container, stream, start, end)
        except PacketError as error:
            logger.debug("%s: not by packets (%s)", path, error)
    if starts is None:
        with open_media(path) as again:
            video = find_video(again, path)
            lag = _lag(path, file_identity(path)) if again.format.name in _ONE_TIME else None
            packets = packets_of(again, video)
            rate, until = frame_rate(again, video), np.asarray([end])
            starts = np.asarray(_decode_until(packets, rate, until, start_of(again), None, False, lag)[0])
    if not len(starts):
        raise MediaError(path, "video does not decode")
    first = max(0, int(np.searchsorted(starts, start + ROUNDING, side="right")) - 1)
    return starts[first : max(first + 1, np.searchsorted(starts, end - ROUNDING))]


def scaled_shape(width: int, height: int, size: int | None) -> tuple[int, int]:
    """(width, height) with the short side at ``size``."""
    if size is None:
        return width, height
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def read_with_decord(decord: Any, path: str | Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The frames (N, H, W, 3) uint8 on screen at ``wanted`` (N,), in s, by decord; where `FOR_DECORD` says it is exact.

    Raises:
        RuntimeError: decord cannot read it.
    """
    reader = decord.VideoReader(
        str(path), ctx=decord.cpu(0), width=shape[0], height=shape[1], num_threads=1, fault_tol=_PATCHED_SHARE
    )
    # Counted from the packets, not from the header's frame count, which may promise more.
    starts = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)[:, 0]
    if not (np.diff(starts) >= 0).all() or abs(starts[0]) > _SANE_SECONDS:
        raise RuntimeError("no usable timestamps")  # PyAV derives the ones that are missing
    indices, inverse = np.unique(frame_indices(starts, wanted, path), return_inverse=True)
    return reader.get_batch(indices.tolist()).asnumpy()[inverse]


def read_with_pyav(
    path: str | Path, wanted: np.ndarray, shape: tuple[int, int], ways: tuple[str, ...] = ("seek", "skip", "all")
) -> np.ndarray:
    """Decode from a keyframe before the first instant; slower, and for what the other readers cannot read.

    Args:
        path, wanted, shape: As for `read_by_packets`.
        ways: To find that keyframe, tried in turn: "seek"; "skip" all packets before it; or decode "all" of the file.
    """
    first = float(wanted.min())
    if first <= _RUN_UP:
        ways = ("all",)
    for way in ways:
        with open_media(path) as container:
            stream = find_video(container, path)
            origin = start_of(container)
            lag = _lag(path, file_identity(path)) if container.format.name in _ONE_TIME else None
            packets = _from_keyframe(container, stream, first - _RUN_UP + origin, way)
            instants = np.sort(wanted) + ROUNDING
            rate = frame_rate(container, stream)
            starts, images = _decode_until(packets, rate, instants, origin, shape, way != "all", lag)
        if way == "all" or (starts and starts[0] <= first):
            break
    if not starts:
        raise MediaError(path, "video does not decode")
    return np.stack([images[i] for i in frame_indices(np.asarray(starts), wanted, path)])


def _from_keyframe(container: InputContainer, stream: VideoStream, target: float, way: str) -> Iterator[Packet]:
    """Packets from a keyframe at or before ``target``, in seconds of the stream, or where a seek finds none, later.

    There are none where a seek leaves the clock wrong.
    """
    if way == "seek":
        assert stream.time_base is not None
        with suppress(av.FFmpegError):  # some containers cannot seek: what follows is read from the beginning
            container.seek(int(target / stream.time_base), stream=stream)
    held: list[Packet] = []
    begun = way == "all"
    for packet in packets_of(container, stream, sought=way == "seek"):
        if begun:
            yield packet
            continue
        time = seconds(packet, packet.dts if packet.pts is None else packet.pts)
        if packet.is_keyframe and packet.size:
            if way == "seek" and container.format.name in _INDEXED and not _is_indexed(stream, packet):
                return
            held.clear()
        elif not held:
            continue  # in the middle of a group: some decoders make garbage of it
        held.append(packet)
        if way == "seek" or not packet.size or (time is not None and time >= target):
            begun = True
            yield from held
            held.clear()


def _is_indexed(stream: VideoStream, packet: Packet) -> bool:
    """Whether a packet has the time that the file's index gives a frame."""
    entries, time = stream.index_entries, packet.dts
    place = -1 if time is None else entries.search_timestamp(time, any_frame=True)
    return place >= 0 and entries[place].timestamp == time


@lru_cache(maxsize=4096)
def _lag(path: str | Path, identity: tuple[int, int]) -> float | None:
    """Seconds by which the times of packets run behind those of the frames that come out; None where they do not.

    A container that stores one time for each frame gives H.264 and HEVC with B-frames times in the order of decoding.
    The decoder gives the frames in the order of display with the rising times of the packets that went in.
    """
    with open_media(path) as container:
        stream = find_video(container, path)
        if not stream.codec_context.has_b_frames:
            return None
        stamps: list[int] = []
        lag: float | None = None
        for packet in packets_of(container, stream):
            if packet.pts is not None:
                stamps.append(packet.pts)
            for frame in decoded(packet):
                if lag is None and frame.pts is not None and frame.dts is not None:
                    lag = seconds(frame, frame.dts - frame.pts)
            if len(stamps) >= _ORDER_PACKETS:
                break
    return lag if stamps == sorted(stamps) else None


def _decode_until(
    packets: Iterator[Packet],
    rate: float | None,
    instants: np.ndarray,
    origin: float,
    shape: tuple[int, int] | None,
    sought: bool,
    lag: float | None,
) -> tuple[list[float], dict[int, np.ndarray]]:
    """Start of every frame up to the last instant, and as RGB the ones on screen at an instant, if a shape is given."""
    starts: list[float] = []
    images: dict[int, np.ndarray] = {}
    interval = 1 / (rate or 25)
    previous: av.VideoFrame | None = None

    def keep(frame: av.VideoFrame) -> None:
        if shape is None:
            return
        scaled = frame.reformat(width=shape[0], height=shape[1], format="rgb24", interpolation="BICUBIC")
        images[len(starts) - 1] = upright(scaled.to_ndarray(), frame)

    for frame in (frame for packet in packets for frame in decoded(packet)):
        after = starts[-1] if starts else -np.inf
        stamp = frame.dts if frame.pts is None or lag is not None else frame.pts
        if stamp is not None:
            time = max((seconds(frame, stamp) or 0.0) - (lag or 0.0) - origin, after)
        elif starts:
            time = after + interval
        else:
            time = np.inf if sought else 0.0  # after a seek it could be any frame: make the caller start over
        if previous is not None and (len(starts) == 1 or np.any((instants >= after) & (instants < time))):
            keep(previous)
        starts.append(time)
        previous = frame
        if time > instants[-1]:
            break
    if previous is not None:
        keep(previous)
    return starts, images
