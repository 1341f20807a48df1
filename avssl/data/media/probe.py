"""What is in a media file: streams, rates, durations, or a clear reason why nothing is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from avssl.data.media.errors import MediaError

Kind = Literal["audio", "video"]

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
def open_media(path: str | Path) -> Iterator[InputContainer]:
    """Open for reading; raises MediaError with a reason that tells a missing file from a broken one."""
    name = os.path.abspath(path)
    try:
        if not os.path.isfile(name):
            raise MediaError(path, "not a file" if os.path.exists(name) else "file not found")
        if os.path.getsize(name) == 0:
            raise MediaError(path, "empty file")
        # A playlist under a media file's name must not reach for the network, nor "a:b.mp4" for a protocol "a".
        options = {"protocol_whitelist": "file"}
        container = av.open(f"file:{name}", options=options, metadata_errors="ignore")
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


def find_stream(container: InputContainer, kind: Kind, path: str | Path) -> AudioStream | VideoStream:
    """FFmpeg's choice of stream if it can be decoded, else the first that can; raises MediaError with the reason.

    Cover art (an attached picture) is not video. A stream without a decoder, sample rate or frame size does not count.
    """
    streams = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(path, f"no {kind} stream")
    best = container.streams.best(kind)
    # A stable sort: the preferred stream first, the rest in file order.
    streams.sort(key=lambda stream: best is None or stream.index != best.index)
    problems = [stream_problem(stream) for stream in streams]
    if "" not in problems:
        raise MediaError(path, problems[0])
    return streams[problems.index("")]


def stream_problem(stream: AudioStream | VideoStream) -> str:
    """Why the header rules a stream out, "" if it does not."""
    context = stream.codec_context
    if context is None:
        return f"no {stream.type} decoder"
    if stream.type == "audio":
        return "" if context.sample_rate and context.channels else "unknown sample rate"
    return "" if context.width and context.height else "unknown frame size"


def seconds(stream: AudioStream | VideoStream, ticks: int | None) -> float | None:
    """A stream's time in seconds, None for an unknown one."""
    return None if ticks is None or stream.time_base is None else float(ticks * stream.time_base)


def start_of(container: InputContainer) -> float:
    """Second 0 of a file on its own clock: its first stream's start, as for FFmpeg's -ss. Not 0 in broadcasts."""
    return (container.start_time or 0) / av.time_base


def _read_header(container: InputContainer, path: str) -> tuple[MediaInfo, bool]:
    duration = container.duration / av.time_base if container.duration else None
    info = MediaInfo(path, duration=duration, container=container.format.name)
    bit_rate, durations = 0, []
    try:
        audio = find_stream(container, "audio", path)
        context = audio.codec_context
        info = replace(info, has_audio=True, sample_rate=context.sample_rate, channels=context.channels,
                       audio_duration=seconds(audio, audio.duration), audio_codec=context.name)  # fmt: skip
        bit_rate += audio.bit_rate or 0
        durations.append(info.audio_duration)
    except MediaError as error:
        info = replace(info, audio_error=error.reason)
    try:
        video = find_stream(container, "video", path)
        context = video.codec_context
        rate = video.average_rate or video.guessed_rate
        info = replace(info, has_video=True, fps=float(rate) if rate else None, width=context.width,
                       height=context.height, video_duration=seconds(video, video.duration),
                       video_codec=context.name)  # fmt: skip
        bit_rate += video.bit_rate or 0
        durations.append(info.video_duration)
    except MediaError as error:
        info = replace(info, video_error=error.reason)
    if duration is None:
        info = replace(info, duration=max((d for d in durations if d), default=None))
    promised = bit_rate / 8 * (info.duration or 0)
    suspicious = not info.duration or promised > _PROMISED_SIZE * container.size
    return _with_error(info), suspicious


def _with_error(info: MediaInfo) -> MediaInfo:
    """Sum up the streams' errors into the file's."""
    if info.has_audio or info.has_video:
        return replace(info, error="" if info.duration is None or info.duration > 0 else "zero length")
    if info.audio_error == "no audio stream":
        both = info.video_error == "no video stream"
        return replace(info, error="no audio or video stream" if both else info.video_error)
    return replace(info, error=info.audio_error)


def _verify(info: MediaInfo) -> MediaInfo:
    """Replace what the header says by what decoding and reading all packets show."""
    if info.has_audio and not _decodes(info.path, "audio"):
        info = replace(info, has_audio=False, sample_rate=None, channels=None, audio_duration=None,
                       audio_error="audio does not decode")  # fmt: skip
    if info.has_video and not _decodes(info.path, "video"):
        info = replace(info, has_video=False, fps=None, width=None, height=None, video_duration=None,
                       video_error="video does not decode")  # fmt: skip
    kinds: list[Kind] = [kind for kind in ("audio", "video") if getattr(info, f"has_{kind}")]
    if kinds:
        ends = _packet_ends(info.path, kinds)
        info = replace(info, duration=max(ends.values()), **{f"{kind}_duration": end for kind, end in ends.items()})
    return _with_error(info)


def _decodes(path: str, kind: Kind) -> bool:
    """Whether the stream's first packets give one frame."""
    with open_media(path) as container:
        stream = find_stream(container, kind, path)
        packets = container.demux(stream)
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


def _packet_ends(path: str, kinds: list[Kind]) -> dict[str, float]:
    """Seconds from the file's start to the end of each stream's last packet."""
    with open_media(path) as container:
        streams = {find_stream(container, kind, path).index: kind for kind in kinds}
        origin = start_of(container)
        ends = dict.fromkeys(kinds, 0.0)
        try:
            for packet in container.demux([container.streams[index] for index in streams]):
                if packet.pts is not None:
                    kind = streams[packet.stream_index]
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
                    ends[kind] = max(ends[kind], end)
        except av.FFmpegError:
            pass  # the file ends here as far as any reader is concerned
        return {str(kind): end for kind, end in ends.items()}
