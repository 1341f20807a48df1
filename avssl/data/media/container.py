"""Opening media files: a container with a reason where it cannot be, its streams, their clocks, their frames."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.frame import Frame
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.limits import limits

StreamT = TypeVar("StreamT", AudioStream, VideoStream)

# Broadcast streams, which have no header in front: FFmpeg finds what is in the first 5 seconds or megabytes. Where that
# is not all, it is told to look at so many microseconds and bytes.
_BROADCAST = {"mpegts", "mpeg"}
_LOOK_FURTHER = {"analyzeduration": "60000000", "probesize": "50000000"}
# A stream whose decoding order goes back by more seconds than this has a clock that starts over: two files in one.
_RESTART = 1.0


@contextmanager
def open_media(path: str | Path, *, quick: bool = False) -> Iterator[InputContainer]:
    """Open for reading; raises MediaError with a reason that tells a missing file from a broken one.

    No picture larger than `avssl.limits` allows is decoded, here or later. ``quick`` decodes none at all to find out
    what the header leaves open: ten times faster for large pictures.
    """
    name, largest = os.path.abspath(path), {"max_pixels": str(limits().max_pixels)}
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(path, "not a file")
        if status.st_size == 0:
            raise MediaError(path, "empty file")
        # A playlist under a media file's name must not reach for the network, nor "a:b.mp4" for a protocol "a".
        options = {"protocol_whitelist": "file"} | largest | ({"skip_frame": "all"} if quick else {})
        container = av.open(f"file:{name}", options=options, metadata_errors="ignore")
        if container.format.name in _BROADCAST and _may_miss_stream(container):
            container.close()
            container = av.open(f"file:{name}", options=options | _LOOK_FURTHER, metadata_errors="ignore")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(path, "file not found") from error
    except PermissionError as error:
        raise MediaError(path, "unreadable file", error.strerror or "") from error
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise_if_machine(error, name)
        detail = str(getattr(error, "strerror", "") or error)
        raise MediaError(path, "not a media file", detail) from error
    with container:
        if container.format.name == "tty":  # FFmpeg renders any text file as a picture of a terminal
            raise MediaError(path, "not a media file", "text")
        if container.format.name.startswith("image2") or container.format.name.endswith("_pipe"):
            raise MediaError(path, "still image", container.format.name)
        yield container


def file_identity(path: str | Path) -> tuple[int, int]:
    """Size and time of a file, by which what is known of it is kept; raises MediaError: "file not found"."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise_if_machine(error, path)
        raise MediaError(path, "file not found") from error
    return status.st_size, status.st_mtime_ns


def _may_miss_stream(container: InputContainer) -> bool:
    """Whether a broadcast may hold sound or pictures of which nothing has come yet, as they begin late.

    A transport stream lists what it holds; in a program stream anything may follow.
    """
    sounds = [bool(s.codec_context and s.codec_context.sample_rate) for s in container.streams.audio]
    pictures = [bool(s.codec_context and s.codec_context.width) for s in container.streams.video]
    if container.format.name == "mpegts":
        return not all(sounds + pictures)
    return not (any(sounds) and any(pictures))


def find_audio(container: InputContainer, path: str | Path) -> AudioStream:
    """The sound to read: FFmpeg's choice if it has a decoder and a sample rate, else the first stream that has.

    Raises MediaError: "no audio stream", "no audio decoder", "unknown sample rate".
    """
    streams = list(container.streams.audio)
    problems = {}
    for stream in _preferred_first(streams, container.streams.best("audio"), path, "audio"):
        context = stream.codec_context
        if context is None:
            problems[stream.index] = "no audio decoder"
        elif not context.sample_rate or not context.channels:
            problems[stream.index] = "unknown sample rate"
        else:
            context.thread_count = 1  # data loaders run one process a core
            return stream
    raise MediaError(path, next(iter(problems.values())))


def find_video(container: InputContainer, path: str | Path) -> VideoStream:
    """The pictures to read, chosen as by `find_audio`; cover art (an attached picture) is not video.

    Raises MediaError: "no video stream", "no video decoder", "unknown frame size", "picture too large".
    """
    limit = limits().max_pixels
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    problems: dict[int, str] = {}
    details: dict[int, str] = {}
    for stream in _preferred_first(streams, container.streams.best("video"), path, "video"):
        context = stream.codec_context
        if context is None:
            problems[stream.index] = "no video decoder"
            continue
        # FFmpeg's decoders leave out the size of a picture that they refuse.
        width, height = (context.width, context.height) if context.width else _untried_size(container, stream.index)
        if width * height > limit:
            problems[stream.index] = "picture too large"
            details[stream.index] = f"{width} x {height}, limit {limit} pixels; max_pixels raises it"
        elif not context.width or not context.height:
            problems[stream.index] = "unknown frame size"
        else:
            context.thread_count = 1
            if not context.is_open:
                context.options = context.options | {"max_pixels": str(limit)}  # pictures may grow later in the file
            return stream
    index = next(iter(problems))
    raise MediaError(path, problems[index], details.get(index, ""))


def _untried_size(container: InputContainer, index: int) -> tuple[int, int]:
    """(width, height) of a stream's pictures by the headers of file and codec, none decoded; zeros where unknown."""
    if not container.name.startswith("file:"):  # a pipe is read but once
        return 0, 0
    # Without any decoder the header's word stands. MPEG's streams have none; their decoders skip pictures when told to.
    for undecoded in ({"codec_whitelist": "none"}, {"skip_frame": "all"}):
        try:
            options = {"protocol_whitelist": "file"} | undecoded
            with av.open(container.name, options=options, metadata_errors="ignore") as again:
                context = again.streams[index].codec_context if index < len(again.streams) else None
                if isinstance(context, VideoCodecContext) and context.width and context.height:
                    return context.width, context.height
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            raise_if_machine(error, container.name)
    return 0, 0


def _preferred_first(streams: list[StreamT], best: Stream | None, path: str | Path, kind: str) -> list[StreamT]:
    if not streams:
        raise MediaError(path, f"no {kind} stream")
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)  # stable: rest in file order


def seconds(source: Stream | Frame | Packet, ticks: int | None) -> float | None:
    """A time of a stream or a frame in seconds, None for an unknown one."""
    base = source.time_base
    if ticks is None or base is None:
        return None
    return ticks * base.numerator / base.denominator  # a product of fractions would be ten times slower


def start_of(container: InputContainer) -> float:
    """Second 0 of a file on its own clock: its first stream's start, as for FFmpeg's -ss. Not 0 in broadcasts."""
    return (container.start_time or 0) / av.time_base


def frame_rate(container: InputContainer, stream: VideoStream) -> float | None:
    """Pictures a second, on average where they vary; None where nothing is known."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if average and guessed and container.format.name == "avi":  # which may count an empty chunk between two frames
        average = min(average, guessed)
    rate = average or guessed
    return float(rate) if rate else None


class Clocks:
    """Watches the packets of a file for clocks that start over, as where two broadcasts were joined.

    Attributes:
        restarted: One did.
    """

    def __init__(self, container: InputContainer) -> None:
        self.restarted = False
        self._placed = container.format.name in _BROADCAST
        self._cut = math.inf  # the place in the file from which on packets belong to something else
        self._places: dict[int, int] = {}
        self._floors: dict[int, float] = {}
        self._ended: set[int] = set()

    def ended(self, packet: Packet) -> bool:
        """Whether its stream's clock has started over: its time lies before that of an earlier one, beyond reordering.

        In a broadcast all clocks start over at one place. FFmpeg goes on counting there where a stream gives no time.
        """
        index = packet.stream_index
        if index in self._ended:
            return True
        if self._placed and packet.pos is not None:
            self._places[index] = packet.pos
        place = self._places.get(index, -1)
        time = seconds(packet, packet.dts)
        if time is not None and time < self._floors.get(index, -math.inf):
            self.restarted = True
            self._cut = min(self._cut, place if place >= 0 else math.inf)
        elif place < self._cut:
            if time is not None:
                self._floors[index] = max(self._floors.get(index, -math.inf), time - _RESTART)
            return False
        self._ended.add(index)
        return True

    def forget(self, packet: Packet) -> None:
        """Takes up a stream's clock anew from the next packet on."""
        self._floors.pop(packet.stream_index, None)
        self._ended.discard(packet.stream_index)
        self.restarted, self._cut = False, math.inf


def packets_of(
    container: InputContainer,
    *streams: AudioStream | VideoStream,
    sought: bool = False,
    clocks: Clocks | None = None,
) -> Iterator[Packet]:
    """Packets of each stream, the empty ones that end it included, up to where reading fails or its clock starts over.

    What follows a restart has the times of something else.

    Args:
        container, streams: The open file, and what is wanted of it.
        sought: The container has been told to seek, after which the first packet's time may be the target's instead of
            its own.
        clocks: Tells afterwards whether a clock did start over.
    """
    clocks = clocks or Clocks(container)
    wanted = {stream.index for stream in streams}
    watched: dict[int, Stream] = {stream.index: stream for stream in streams}
    if container.format.name in _BROADCAST and not sought:  # where clocks start over, nobody seeks
        chosen = (container.streams.best(kind) for kind in ("audio", "video"))
        watched |= {stream.index: stream for stream in chosen if stream is not None}
    held: Packet | None = None  # the first one after a seek, until the next one's time is known
    ended: set[int] = set()
    try:
        for packet in container.demux(*watched.values()):
            index = packet.stream.index  # that of the empty ones is not in `stream_index`
            if sought and packet.size and held is None and index in wanted:
                held, sought = packet, False
                clocks.ended(packet)
                continue
            if held is not None and (index == held.stream_index or not packet.size):
                if packet.size and clocks.ended(packet):
                    clocks.forget(packet)
                else:
                    yield held
                held = None
            if packet.size and clocks.ended(packet):
                ended.add(index)
                if wanted <= ended:
                    break
            elif index in wanted:
                yield packet
    except av.FFmpegError as error:  # the demuxer cannot go on: for every reader the file ends here
        raise_if_machine(error, container.name)
    if held is not None:
        yield held


def decoded(packet: Packet) -> list[Any]:
    """The frames that come out of a packet; none where it does not decode, so that what it held is missing."""
    try:
        return list(packet.decode())
    except (av.FFmpegError, ValueError) as error:
        raise_if_machine(error)
        return []


def decode_frames(container: InputContainer, stream: AudioStream | VideoStream) -> Iterator[Any]:
    """The stream's frames in order, see `packets_of`."""
    for packet in packets_of(container, stream):
        yield from decoded(packet)


def sound_from(start: float) -> str:
    """The comment in the header of an extracted sound file whose source has no sound before ``start`` seconds."""
    return f"sound from {start:.6f} s"


def begins_with_sound(container: InputContainer) -> float:
    """The second that a comment of `sound_from` names; 0 where there is none: before it, zeros fill the file."""
    told = re.fullmatch(r"sound from (\d+\.\d{6}) s", container.metadata.get("comment", ""))
    return float(told[1]) if told else 0.0


# How far outside the pictures an instant may lie (sound often runs a little longer) and still get the nearest frame.
_TOLERANCE = 0.5
# Containers round timestamps, to 1 ms at worst; a frame that starts this much after an instant is already on.
ROUNDING = 6e-4
# Frames are shown at most so many packets after the one that is shown before them (H.264's and HEVC's largest delay).
REORDER = 16


def frame_indices(starts: np.ndarray, wanted: np.ndarray, path: str | Path) -> np.ndarray:
    """Index of the frame on screen at each instant; ``starts`` (N,) ascending, ``wanted`` (T,), both in seconds.

    A frame stays until the next one starts, whatever the frame rate does; the last one stays for a typical interval.
    """
    interval = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    first, end, tolerance = starts[0], starts[-1] + interval, max(_TOLERANCE, interval)
    if wanted.min() < first - tolerance or wanted.max() > end + tolerance:
        span = f"asked {wanted.min():.2f} to {wanted.max():.2f} s, pictures {first:.2f} to {end:.2f} s"
        raise MediaError(path, "frame outside video", span)
    return np.clip(np.searchsorted(starts, wanted + ROUNDING, side="right") - 1, 0, len(starts) - 1)
