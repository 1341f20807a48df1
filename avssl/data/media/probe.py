"""What is in a media file: streams, rates, from when to when they run, or a clear reason why nothing is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from avssl.data.media.audio import MISSING_SECONDS, MISSING_SHARE, channels_cancel
from avssl.data.media.container import begins_with_sound, decoded, find_audio, find_video, frame_rate, open_media
from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.data.media.extents import extents_of, promised_end
from avssl.data.media.orientation import upright_size

# A header that promises this much more than the file could hold belongs to a file that was cut off.
_PROMISED_SIZE = 1.25
# A stream whose first packets do not decode is given this many before it is called undecodable.
_TRIAL_PACKETS = 200
# What `MediaInfo.warning` says of a file whose clock starts over, of one that ends long before its header says, and of
# one whose channels have the mean silence.
RESTARTS, CUT_OFF, CANCELS = "timestamps start over", "file cut off", "channels cancel"


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Facts of a file (checked by decoding when ``deep``). Times in seconds, rates in Hz, sizes in pixels, upright.

    Times are on the file's clock, on which second 0 is the start of its earliest stream, as for the readers. A stream
    that is absent or cannot be decoded leaves its fields None and says why in ``audio_error`` / ``video_error``;
    ``error`` is set only if neither sound nor pictures can be had. "" means fine. ``warning`` tells, of a file
    that can be used, why only a part of it is: "timestamps start over", as where two broadcasts were joined, or "file
    cut off"; and, when ``deep``, "channels cancel": their mean is silence. Both are joined by "; ".
    ``file_bytes`` and ``file_modified`` (microseconds since 1970) tell whether another file has taken its place since.
    """

    path: str
    has_audio: bool = False
    has_video: bool = False
    sample_rate: int | None = None
    channels: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    audio_start: float | None = None
    audio_end: float | None = None
    video_start: float | None = None
    video_end: float | None = None
    audio_codec: str | None = None
    video_codec: str | None = None
    container: str | None = None
    error: str = ""
    audio_error: str = ""
    video_error: str = ""
    warning: str = ""
    file_bytes: int | None = None
    file_modified: int | None = None

    @property
    def duration(self) -> float | None:
        """Length of the file: the end of the usable stream that runs longest; None where there is none."""
        return max((end for end in (self.audio_end, self.video_end) if end is not None), default=None)


def probe(path: str | Path, *, deep: bool | None = None) -> MediaInfo:
    """Describe a file; never raises for what the file holds.

    The times are the same however deep one looks: they are taken from the header where it lists every packet, else
    from the packets.

    Args:
        path: the file.
        deep: True also decodes the start of each stream and reads all packets, so that undecodable streams are found
            out; False does not; None goes deep only where the header is suspicious (no duration, or more seconds
            promised than the file has bytes for).

    Error reasons: "file not found", "not a file", "empty file", "unreadable file", "not a media file", "still image",
    "zero length", and of one stream "no audio stream", "no decoder", "unknown sample rate", "does not decode" and
    so on for video.
    """
    identity: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # of which opening the file tells
        found = os.stat(path)
        identity = {"file_bytes": found.st_size, "file_modified": found.st_mtime_ns // 1000}
    try:
        with open_media(path) as container:
            info, suspicious = _read_header(container, str(path), bool(deep))
        if deep or (deep is None and suspicious):
            info = _verified(info)
    except MediaError as error:
        why = error.reason
        return MediaInfo(str(path), error=why, audio_error=why, video_error=why, **identity)
    return replace(_with_error(info), **identity)


def _read_header(container: InputContainer, path: str, thorough: bool) -> tuple[MediaInfo, bool]:
    """What is there, from when to when, and whether the header is suspicious."""
    facts: dict[str, Any] = {}
    bit_rate = 0
    audio = video = None
    try:
        audio = find_audio(container, path)
        sound = audio.codec_context
        facts.update(has_audio=True, sample_rate=sound.sample_rate, channels=sound.channels, audio_codec=sound.name)
        bit_rate += audio.bit_rate or 0
    except MediaError as error:
        facts["audio_error"] = error.reason
    try:
        video = find_video(container, path)
        pictures = video.codec_context
        width, height = upright_size(path, container.format.name, (pictures.width, pictures.height))
        facts.update(has_video=True, fps=frame_rate(container, video), width=width, height=height,
                     video_codec=pictures.name)  # fmt: skip
        bit_rate += video.bit_rate or 0
    except MediaError as error:
        facts["video_error"] = error.reason
    # Ogg's bit rate is only a wish.
    promised = 0.0 if container.format.name == "ogg" else bit_rate / 8 * (container.duration or 0) / av.time_base
    suspicious = not container.duration or promised > _PROMISED_SIZE * container.size
    extents = extents_of(container, path, thorough=thorough)
    for kind, stream in (("audio", audio), ("video", video)):
        span = None if stream is None else extents.spans.get(stream.index)
        if span is not None:
            facts[f"{kind}_start"], facts[f"{kind}_end"] = span
    length = promised_end(container) or 0.0
    ends = [end for _, end in extents.spans.values()]
    if "audio_start" in facts:
        facts["audio_start"] = max(facts["audio_start"], begins_with_sound(container))
    if extents.restarted:
        facts["warning"] = RESTARTS
    elif ends and length - max(ends) > max(MISSING_SECONDS, MISSING_SHARE * length):
        facts["warning"] = CUT_OFF
    return MediaInfo(path, container=container.format.name, **facts), suspicious


def _with_error(info: MediaInfo) -> MediaInfo:
    """Sum up the streams' errors into the file's."""
    if info.has_audio and not (info.audio_end or 0.0) > (info.audio_start or 0.0):
        info = _without(info, "audio", "zero length")
    if info.has_video and not (info.video_end or 0.0) > (info.video_start or 0.0):
        info = _without(info, "video", "zero length")
    if info.has_audio or info.has_video:
        return info
    problems = [e for e in (info.audio_error, info.video_error) if not e.startswith("no ") or not e.endswith(" stream")]
    return replace(info, error=problems[0] if problems else "no audio or video stream")


def _verified(info: MediaInfo) -> MediaInfo:
    """Without the streams that do not decode, and warning of channels that cancel."""
    if info.has_audio and not _decodes(info.path, find_audio):
        info = _without(info, "audio", "audio does not decode")
    if info.has_video and not _decodes(info.path, find_video):
        info = _without(info, "video", "video does not decode")
    if info.has_audio and (info.channels or 0) > 1 and channels_cancel(info.path):
        info = replace(info, warning="; ".join(filter(None, (info.warning, CANCELS))))
    return info


def _without(info: MediaInfo, kind: str, error: str) -> MediaInfo:
    """The same without a stream that cannot be used."""
    gone: dict[str, Any] = dict.fromkeys((f"{kind}_start", f"{kind}_end"))
    gone |= {"sample_rate": None, "channels": None} if kind == "audio" else {"fps": None, "width": None, "height": None}
    gone |= {f"has_{kind}": False, f"{kind}_error": error}
    return replace(info, **gone)


def _decodes(path: str, find: Callable[[InputContainer, str], AudioStream | VideoStream]) -> bool:
    """Whether the stream's first packets give one frame."""
    with open_media(path) as container:
        packets = container.demux(find(container, path))
        for _ in range(_TRIAL_PACKETS):
            try:
                packet = next(packets)
            except StopIteration:
                return False
            except av.FFmpegError as error:
                raise_if_machine(error, path)
                return False
            if decoded(packet):
                return True
    return False
