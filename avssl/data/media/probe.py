"""What is in a media file: streams, rates, durations, or a clear reason why nothing is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.frame import Frame
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from avssl.data.media.errors import MediaError

StreamT = TypeVar("StreamT", AudioStream, VideoStream)

# A header that promises this much more than the file could hold belongs to a file that was cut off.
_PROMISED_SIZE = 1.25
# A stream whose first packets do not decode is given this many before it is called undecodable.
_TRIAL_PACKETS = 200


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Facts from a file's header (checked by decoding when ``deep``). Times in seconds, rates in Hz, sizes in pixels.

    A stream that is absent or cannot be decoded leaves its fields None and says why in ``audio_error`` /
    ``video_error``; ``error`` is set only if neither sound nor pictures can be had. "" means fine.
    """

    path: str
    duration: float | None = None
    has_audio: bool = False
    has_video: bool = False
    sample_rate: int | None = None
    channels: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    audio_duration: float | None = None
    video_duration: float | None = None
    audio_codec: str | None = None
    video_codec: str | None = None
    container: str | None = None
    error: str = ""
    audio_error: str = ""
    video_error: str = ""

    @property
    def common_duration(self) -> float | None:
        """Seconds for which all of the file's usable streams run: what clips can be cut from."""
        known = [d for d in (self.duration, self.audio_duration, self.video_duration) if d]
        return min(known, default=None)


def probe(path: str | Path, *, deep: bool | None = None) -> MediaInfo:
    """Describe a file; never raises for what the file holds.

    Args:
        path: the file.
        deep: True decodes the start of each stream and reads all packets, so that undecodable streams and cut-off
            files are found out; False trusts the header; None goes deep only where the header is suspicious (no or
            zero duration, or more seconds promised than the file has bytes for).

    Error reasons: "file not found", "not a file", "empty file", "unreadable file", "not a media file", "still image",
    "zero length", and of one stream "no audio stream", "no decoder", "unknown sample rate", "does not decode" and
    so on for video.
    """
    try:
        with open_media(path) as container:
            info, suspicious = _read_header(container, str(path))
        if deep or (deep is None and suspicious):
            info = _verify(info)
    except MediaError as error:
        return MediaInfo(str(path), error=error.reason, audio_error=error.reason, video_error=error.reason)
    return info


@contextmanager
def open_media(path: str | Path, *, quick: bool = False) -> Iterator[InputContainer]:
    """Open for reading; raises MediaError with a reason that tells a missing file from a broken one.

    ``quick`` decodes no picture to find out what the header leaves open: ten times faster for large pictures.
    """
    name = os.path.abspath(path)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(path, "not a file")
        if status.st_size == 0:
            raise MediaError(path, "empty file")
        # A playlist under a media file's name must not reach for the network, nor "a:b.mp4" for a protocol "a".
        options = {"protocol_whitelist": "file"} | ({"skip_frame": "all"} if quick else {})
        container = av.open(f"file:{name}", options=options, metadata_errors="ignore")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(path, "file not found") from error
    except PermissionError as error:
        raise MediaError(path, "unreadable file", error.strerror or "") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = str(getattr(error, "strerror", "") or error)
        raise MediaError(path, "not a media file", detail) from error
    with container:
        if container.format.name == "tty":  # FFmpeg renders any text file as a picture of a terminal
            raise MediaError(path, "not a media file", "text")
        if container.format.name.startswith("image2") or container.format.name.endswith("_pipe"):
            raise MediaError(path, "still image", container.format.name)
        yield container


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

    Raises MediaError: "no video stream", "no video decoder", "unknown frame size".
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    problems = {}
    for stream in _preferred_first(streams, container.streams.best("video"), path, "video"):
        context = stream.codec_context
        if context is None:
            problems[stream.index] = "no video decoder"
        elif not context.width or not context.height:
            problems[stream.index] = "unknown frame size"
        else:
            context.thread_count = 1
            return stream
    raise MediaError(path, next(iter(problems.values())))


def _preferred_first(streams: list[StreamT], best: Stream | None, path: str | Path, kind: str) -> list[StreamT]:
    if not streams:
        raise MediaError(path, f"no {kind} stream")
    return sorted(streams, key=lambda stream: best is None or stream.index != best.index)  # stable: rest in file order


def seconds(source: Stream | Frame, ticks: int | None) -> float | None:
    """A time of a stream or a frame in seconds, None for an unknown one."""
    base = source.time_base
    if ticks is None or base is None:
        return None
    return ticks * base.numerator / base.denominator  # a product of fractions would be ten times slower


def start_of(container: InputContainer) -> float:
    """Second 0 of a file on its own clock: its first stream's start, as for FFmpeg's -ss. Not 0 in broadcasts."""
    return (container.start_time or 0) / av.time_base


def _read_header(container: InputContainer, path: str) -> tuple[MediaInfo, bool]:
    """The header's facts, and whether they are suspicious."""
    facts: dict[str, Any] = {}
    bit_rate = 0
    try:
        audio = find_audio(container, path)
        sound = audio.codec_context
        facts.update(has_audio=True, sample_rate=sound.sample_rate, channels=sound.channels,
                     audio_duration=seconds(audio, audio.duration), audio_codec=sound.name)  # fmt: skip
        bit_rate += audio.bit_rate or 0
    except MediaError as error:
        facts["audio_error"] = error.reason
    try:
        video = find_video(container, path)
        pictures, rate = video.codec_context, video.average_rate or video.guessed_rate
        facts.update(has_video=True, fps=float(rate) if rate else None, width=pictures.width, height=pictures.height,
                     video_duration=seconds(video, video.duration), video_codec=pictures.name)  # fmt: skip
        bit_rate += video.bit_rate or 0
    except MediaError as error:
        facts["video_error"] = error.reason
    if container.duration:
        duration: float | None = container.duration / av.time_base
    else:
        duration = max(facts.get("audio_duration") or 0.0, facts.get("video_duration") or 0.0) or None
    info = MediaInfo(path, duration=duration, container=container.format.name, **facts)
    # Ogg's duration is read from its last page, and its bit rate is only a wish.
    cut_off = info.container != "ogg" and bit_rate / 8 * (duration or 0.0) > _PROMISED_SIZE * container.size
    return _with_error(info), cut_off or not duration


def _with_error(info: MediaInfo) -> MediaInfo:
    """Sum up the streams' errors into the file's."""
    if info.has_audio or info.has_video:
        return replace(info, error="zero length") if info.duration == 0 else info
    problems = [e for e in (info.audio_error, info.video_error) if not e.startswith("no ") or not e.endswith(" stream")]
    return replace(info, error=problems[0] if problems else "no audio or video stream")


def _verify(info: MediaInfo) -> MediaInfo:
    """Replace what the header says by what decoding and reading all packets show."""
    if info.has_audio and not _decodes(info.path, find_audio):
        info = replace(info, has_audio=False, sample_rate=None, channels=None, audio_duration=None,
                       audio_error="audio does not decode")  # fmt: skip
    if info.has_video and not _decodes(info.path, find_video):
        info = replace(info, has_video=False, fps=None, width=None, height=None, video_duration=None,
                       video_error="video does not decode")  # fmt: skip
    if not (info.has_audio or info.has_video):
        return _with_error(info)
    with open_media(info.path) as container:
        ends = {}
        if info.has_audio:
            ends[find_audio(container, info.path).index] = 0.0
        if info.has_video:
            ends[find_video(container, info.path).index] = 0.0
        indices = list(ends)
        ends = _packet_ends(container, ends)
    info = replace(
        info,
        duration=max(ends.values()),
        audio_duration=ends[indices[0]] if info.has_audio else None,
        video_duration=ends[indices[-1]] if info.has_video else None,
    )
    return _with_error(info)


def _decodes(path: str, find: Callable[[InputContainer, str], AudioStream | VideoStream]) -> bool:
    """Whether the stream's first packets give one frame."""
    with open_media(path) as container:
        packets = container.demux(find(container, path))
        for _ in range(_TRIAL_PACKETS):
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return False
            try:
                if packet.decode():
                    return True
            except (av.FFmpegError, ValueError):
                continue
    return False


def _packet_ends(container: InputContainer, ends: dict[int, float]) -> dict[int, float]:
    """Seconds from the file's start to the end of the last packet of each stream (by index)."""
    origin, ends = start_of(container), dict(ends)
    try:
        for packet in container.demux([container.streams[index] for index in ends]):
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
                ends[packet.stream_index] = max(ends[packet.stream_index], end)
    except av.FFmpegError:
        pass  # the file ends here as far as any reader is concerned
    return ends


def decode_frames(container: InputContainer, stream: AudioStream | VideoStream) -> Iterator[Any]:
    """The stream's frames in order; a packet that does not decode is left out, its samples or pictures are missing."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except (av.FFmpegError, ValueError):
                continue
    except av.FFmpegError:
        return  # the demuxer cannot go on: for every reader the file ends here
