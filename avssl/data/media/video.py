"""Frames of a file at given instants, by decord, or by PyAV where decord cannot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import av
import decord
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from avssl.data.media.errors import MediaError
from avssl.data.media.probe import decode_frames, find_video, open_media, seconds, start_of

logger = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

# How far outside the pictures an instant may lie (sound often runs a little longer) and still get the nearest frame.
_TOLERANCE = 0.5
# Containers round timestamps, to 1 ms at worst; a frame that starts this much after an instant is already on.
_ROUNDING = 6e-4
# A seek aims this many seconds early, since containers index keyframes only roughly.
_RUN_UP = 1.0
# Share of frames that decord may patch with a neighbour before the file counts as undecodable.
_PATCHED_SHARE = 0.1
# A missing timestamp shows up in decord as one of 1e17 seconds.
_SANE_SECONDS = 1e9
# Broadcast streams, in which decord cannot seek, and containers that store no timestamps: it fails on most, loudly.
_NOT_FOR_DECORD = {"mpegts", "mpeg", "avi", "pmp"}


def read_frames(path: str | Path, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
    """The frames on screen at ``times``.

    Args:
        path: media file.
        times: seconds from the file's start (that of its earliest stream, as for `read_audio`), in any order.
        size: scale the short side to this many pixels, keeping the aspect; done while decoding. None keeps the size.

    Returns:
        (T, H, W, 3) uint8 RGB; rotation flags are not applied.

    Raises:
        MediaError: no usable video stream; "frame outside video" for an instant more than 0.5 s (or one frame, if
            longer) before the first or after the last frame; "video does not decode".
    """
    wanted = np.asarray(times, dtype=np.float64)
    if wanted.ndim != 1 or not len(wanted) or not np.isfinite(wanted).all() or wanted.min() < 0:
        raise ValueError(f"times must be a non-empty list of seconds >= 0, got {times!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    with open_media(path) as container:
        stream = find_video(container, path)
        shape = _scaled(stream.codec_context.width, stream.codec_context.height, size)
        if container.format.name in _NOT_FOR_DECORD:
            return _read_with_pyav(path, wanted, shape)
        start = seconds(stream, stream.start_time)
        offset = 0.0 if start is None else start - start_of(container)
    try:
        return _read_with_decord(path, wanted - offset, shape)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError) as error:
        logger.debug("%s: decord failed (%s); reading with PyAV", path, str(error).split("\n")[0])
    return _read_with_pyav(path, wanted, shape)


def _scaled(width: int, height: int, size: int | None) -> tuple[int, int]:
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


def frame_indices(starts: np.ndarray, wanted: np.ndarray, path: str | Path) -> np.ndarray:
    """Index of the frame on screen at each instant; ``starts`` (N,) ascending, ``wanted`` (T,), both in seconds.

    A frame stays until the next one starts, whatever the frame rate does; the last one stays for a typical interval.
    """
    interval = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    first, end, tolerance = starts[0], starts[-1] + interval, max(_TOLERANCE, interval)
    if wanted.min() < first - tolerance or wanted.max() > end + tolerance:
        span = f"asked {wanted.min():.2f} to {wanted.max():.2f} s, pictures {first:.2f} to {end:.2f} s"
        raise MediaError(path, "frame outside video", span)
    return np.clip(np.searchsorted(starts, wanted + _ROUNDING, side="right") - 1, 0, len(starts) - 1)


def _read_with_pyav(path: str | Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Decode from the keyframe before the first instant; slower than decord, and for what decord cannot read."""
    for seek in (True, False):
        with open_media(path) as container:
            stream = find_video(container, path)
            assert stream.time_base is not None
            origin, sought = start_of(container), seek and wanted.min() > _RUN_UP
            if sought:
                with suppress(av.FFmpegError):  # some containers cannot seek: decode from the beginning
                    container.seek(int((wanted.min() - _RUN_UP + origin) / stream.time_base), stream=stream)
            starts, images = _decode_until(container, stream, np.sort(wanted) + _ROUNDING, origin, shape, sought)
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
    shape: tuple[int, int],
    sought: bool,
) -> tuple[list[float], dict[int, np.ndarray]]:
    """Start of every frame up to the last instant, and as RGB the ones that are on screen at an instant."""
    starts: list[float] = []
    images: dict[int, np.ndarray] = {}
    interval = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    previous: av.VideoFrame | None = None

    def keep(frame: av.VideoFrame) -> None:
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
