"""Frames of a file at given instants: by its packets where they tell the times, else by decord, else by PyAV."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import av
import decord
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from avssl.data.media.container import decode_frames, find_video, open_media, seconds, start_of
from avssl.data.media.errors import MediaError
from avssl.data.media.packets import PacketError, SequentialError, packet_starts, read_by_packets
from avssl.data.media.timing import ROUNDING, frame_indices

logger = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

# A seek aims this many seconds early, since containers index keyframes only roughly.
_RUN_UP = 1.0
# Share of frames that decord may patch with a neighbour before the file counts as undecodable.
_PATCHED_SHARE = 0.1
# A missing timestamp shows up in decord as one of 1e17 seconds.
_SANE_SECONDS = 1e9
# Containers whose header tells the times and parameters of their streams, so that no frame need be decoded to open
# them; and those that store the time of every packet, and which are keyframes: nearly all video there is.
QUICK = {"mov,mp4,m4a,3gp,3g2,mj2"}
TIMED = QUICK | {"matroska,webm"}
# Broadcast streams, in which decord cannot seek, and containers that store no timestamps: it fails on most, loudly.
_NOT_FOR_DECORD = {"mpegts", "mpeg", "avi", "pmp"}


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
    if container.format.name in TIMED:
        try:
            return read_by_packets(container, stream, wanted, original, shape, path)
        except SequentialError as error:
            logger.debug("%s: decoded from its beginning (%s)", path, error)
            return _read_with_pyav(path, wanted, shape, seek=False)
        except PacketError as error:
            logger.debug("%s: not by packets (%s)", path, error)
    if container.format.name not in _NOT_FOR_DECORD:
        start = seconds(stream, stream.start_time)
        offset = 0.0 if start is None else start - start_of(container)
        try:
            return _read_with_decord(path, wanted - offset, shape)
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError) as error:
            logger.debug("%s: decord failed (%s); reading with PyAV", path, str(error).split("\n")[0])
    return _read_with_pyav(path, wanted, shape)


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
            starts = np.asarray(_decode_until(again, video, np.asarray([end]), start_of(again), None, False)[0])
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


def _read_with_decord(path: str | Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    reader = decord.VideoReader(
        str(path), ctx=decord.cpu(0), width=shape[0], height=shape[1], num_threads=1, fault_tol=_PATCHED_SHARE
    )
    # Counted from the packets, not from the header's frame count, which may promise more.
    starts = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)[:, 0]
    if not (np.diff(starts) >= 0).all() or abs(starts[0]) > _SANE_SECONDS:
        raise RuntimeError("no usable timestamps")  # PyAV derives the ones that are missing
    indices, inverse = np.unique(frame_indices(starts, wanted, path), return_inverse=True)
    return reader.get_batch(indices.tolist()).asnumpy()[inverse]


def _read_with_pyav(path: str | Path, wanted: np.ndarray, shape: tuple[int, int], seek: bool = True) -> np.ndarray:
    """Decode from the keyframe before the first instant; slower than decord, and for what decord cannot read."""
    for may_seek in (True, False) if seek else (False,):
        with open_media(path) as container:
            stream = find_video(container, path)
            assert stream.time_base is not None
            origin, sought = start_of(container), may_seek and wanted.min() > _RUN_UP
            if sought:
                with suppress(av.FFmpegError):  # some containers cannot seek: decode from the beginning
                    container.seek(int((wanted.min() - _RUN_UP + origin) / stream.time_base), stream=stream)
            starts, images = _decode_until(container, stream, np.sort(wanted) + ROUNDING, origin, shape, sought)
        if not sought or (starts and starts[0] <= wanted.min()):
            break  # else the seek landed beyond its target: once more, from the beginning
    if not starts:
        raise MediaError(path, "video does not decode")
    return np.stack([images[i] for i in frame_indices(np.asarray(starts), wanted, path)])


def _decode_until(
    container: InputContainer,
    stream: VideoStream,
    instants: np.ndarray,
    origin: float,
    shape: tuple[int, int] | None,
    sought: bool,
) -> tuple[list[float], dict[int, np.ndarray]]:
    """Start of every frame up to the last instant, and as RGB the ones on screen at an instant, if a shape is given."""
    starts: list[float] = []
    images: dict[int, np.ndarray] = {}
    interval = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    previous: av.VideoFrame | None = None

    def keep(frame: av.VideoFrame) -> None:
        if shape is None:
            return
        scaled = frame.reformat(width=shape[0], height=shape[1], format="rgb24", interpolation="BICUBIC")
        images[len(starts) - 1] = scaled.to_ndarray()

    for frame in decode_frames(container, stream):
        after = starts[-1] if starts else -np.inf
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is not None:
            time = max((seconds(stream, stamp) or 0.0) - origin, after)
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
