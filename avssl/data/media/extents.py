"""From when to when each stream of a file runs.

Where the header lists every packet (MP4, MOV) it is believed, and the last pictures are looked at, since it lists them
in the order of decoding. Where it only sums up (Matroska, WebM, FLAC, PCM), the last seconds are looked at. Elsewhere
FFmpeg may have guessed from a bit rate, and all packets are read, undecoded.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from avssl.data.media.container import (
    REORDER,
    Clocks,
    decoded,
    file_identity,
    find_audio,
    find_video,
    open_media,
    seconds,
    start_of,
)
from avssl.data.media.errors import MediaError, raise_if_machine

Usable = AudioStream | VideoStream

# Containers whose header tells time, size and place of every packet.
LISTED = {"mov,mp4,m4a,3gp,3g2,mj2"}
# Containers in which a seek is exact, so that the last packets can be looked at without the rest.
_SUMMED = {"matroska,webm", "flac"}
# Containers of sound whose samples have all the same size in PCM, and only then.
_UNCOMPRESSED = {"wav", "w64", "aiff", "au", "caf"}
# Further containers that store times, or of which FFmpeg indexes every packet on the way to a seek's target.
_SEEKABLE = {"ogg", "mpegts", "flv", "asf", "avi", "nut", "mxf", "mp3", "aac", "ac3", "eac3"}
# Bytes in which Ogg's first and last pages, of 64 KiB at most, are found.
_OGG_PAGES = 1 << 17
# How long before the end that the header tells the last packets are looked for, in seconds.
_TAIL = 1.0
# A header's time that differs from the packets' by less than this is the better one: it knows of priming, padding and
# of pictures that an edit hides. The same for pictures of which only the order of decoding is known.
_AGREEMENT, _REORDERED = 0.25, 1.0


@dataclass(frozen=True, slots=True)
class Extents:
    """``spans``: (start, end) of each stream by its index, in seconds on the file's clock; a stream without one packet
    that has a time is absent. ``restarted``: the clock of a stream starts over, and what follows does not count.
    """

    spans: dict[int, tuple[float, float]]
    restarted: bool = False


def extents_of(container: InputContainer, path: str | Path, *, thorough: bool = False) -> Extents:
    """The extents of the file's usable streams.

    Args:
        container: The open file, of which nothing has been read; it is left anywhere.
        path: The file.
        thorough: Reads all packets in any case.

    Raises:
        MediaError: the file has vanished.
    """
    streams = _usable_streams(container, path)
    quick: dict[int, tuple[float, float]] | None = None
    fresh = True
    if container.format.name in LISTED:
        quick, fresh = _listed(container, streams), False
    elif container.format.name in _SUMMED or all(_is_pcm(container, stream) for stream in streams):
        quick, fresh = _from_tail(container, streams), False
    if quick is not None and not thorough:
        return Extents(quick)
    counted = _counted(container, path) if fresh else packet_extents(path, file_identity(path))
    if quick is None:
        return counted
    spans = {index: _agreed(quick[index], span) for index, span in counted.spans.items()}
    return Extents(spans, counted.restarted)


def _agreed(header: tuple[float, float], packets: tuple[float, float]) -> tuple[float, float]:
    """What a header says of a stream, or, where that is wrong, what the packets do."""
    first, last = (h if abs(h - p) < _AGREEMENT else p for h, p in zip(header, packets, strict=True))
    return first, last


def _usable_streams(container: InputContainer, path: str | Path) -> list[Usable]:
    """The sound and the pictures that are read, where there are any."""
    streams: list[Usable] = []
    for find in (find_audio, find_video):
        try:
            streams.append(find(container, path))
        except MediaError:
            continue
    return streams


def span_of(container: InputContainer, stream: Usable, path: str | Path) -> tuple[float, float]:
    """(start, end) between which a stream of an open file should be, the file being whole or cut off.

    The container is left as it is. (x, x) where nothing is known.
    """
    span = promised_span(container, stream)
    if span is None:
        with open_media(path) as again:
            span = extents_of(again, path).spans.get(stream.index)
    return span or (0.0, 0.0)


def promised_span(container: InputContainer, stream: Usable) -> tuple[float, float] | None:
    """What the header says of one stream; None where it says nothing, or FFmpeg may have guessed."""
    name = container.format.name
    counted = stream.frames if name in LISTED else _is_pcm(container, stream) or name == "flac"  # fragments are not
    length = seconds(stream, stream.duration)
    if not counted or not length:
        return None
    begin = max(0.0, (seconds(stream, stream.start_time) or 0.0) - start_of(container))
    return begin, begin + length


def may_seek(container: InputContainer, stream: Usable, path: str | Path) -> bool:
    """Whether a seek lands where the packets then say they are.

    It does where the container stores times, or where all samples are of one size. A byte rate, which headers of
    ADPCM have wrong, leads elsewhere; MPEG program streams are off by a frame; of two files joined, the second would be
    found.
    """
    name = container.format.name
    if name in LISTED | _SUMMED or _is_pcm(container, stream):
        return True
    return name in _SEEKABLE and not packet_extents(path, file_identity(path)).restarted


def repeats(container: InputContainer, stream: Usable) -> bool:
    """Whether a seek in an open file leads to the same sound whatever was read before.

    Elsewhere the demuxer's index, its guess of the next packet's time or the decoder's noise come from earlier reads.
    """
    return container.format.name in LISTED | {"flac"} or _is_pcm(container, stream)


def _listed_span(container: InputContainer, stream: Usable) -> tuple[float, float] | None:
    """What the header says of a stream of which it lists all packets, if these are all there; else None."""
    entries = stream.index_entries
    if container.format.name not in LISTED or not len(entries):
        return None
    last, span = entries[len(entries) - 1], promised_span(container, stream)
    if span is None or last.pos + last.size > container.size:
        return None
    if len(entries) > 1:  # an edit list may be counted wrongly
        end = seconds(stream, 2 * last.timestamp - entries[len(entries) - 2].timestamp) or 0.0
        tolerance = _AGREEMENT if stream.type == "audio" else _REORDERED
        if abs(end - start_of(container) - span[1]) > tolerance:
            return None
    return span


def _is_pcm(container: InputContainer, stream: Usable) -> bool:
    """Whether all samples of a file are of one size, one after the other."""
    return container.format.name in _UNCOMPRESSED and stream.codec_context.name.startswith("pcm_")


def promised_end(container: InputContainer) -> float | None:
    """When the file ends as its header has it, which FFmpeg has not guessed; None where it promises nothing."""
    if container.format.name not in LISTED | _SUMMED | _UNCOMPRESSED or not container.duration:
        return None
    if container.format.name in LISTED and (container.start_time or 0) < 0:
        return None  # of fragments; FFmpeg counts twice what an edit list cuts off
    return container.duration / av.time_base


def _listed(container: InputContainer, streams: list[Usable]) -> dict[int, tuple[float, float]] | None:
    """By the header and the last pictures; None where these do not tell of every stream."""
    spans: dict[int, tuple[float, float]] = {}
    for stream in streams:
        span = _listed_span(container, stream)
        end = _last_shown(container, stream) if span and isinstance(stream, VideoStream) else span and span[1]
        if span is None or end is None:
            return None
        spans[stream.index] = _agreed(span, (span[0], end))
    return spans


def _last_shown(container: InputContainer, stream: VideoStream) -> float | None:
    """When the pictures end by the last packets in the order of decoding; None where the seek to them fails."""
    entries = stream.index_entries
    track = _Track(stream, start_of(container), Clocks(container))
    try:
        container.seek(entries[max(0, len(entries) - 1 - REORDER)].timestamp, stream=stream, any_frame=True)
        for packet in container.demux(stream):
            if packet.size:
                track.add(packet)
    except av.FFmpegError as error:
        raise_if_machine(error, container.name)
        return None
    span = track.span()
    return span[1] if span else None


def _from_tail(container: InputContainer, streams: list[Usable]) -> dict[int, tuple[float, float]] | None:
    """By the first and the last packets; None where a stream has none among the last ones, or the seek fails."""
    if not container.duration or not streams:
        return None
    origin = start_of(container)
    clocks = Clocks(container)
    tracks = {stream.index: _Track(stream, origin, clocks) for stream in streams}
    try:
        for packet in container.demux(*streams):
            if packet.size:
                tracks[packet.stream_index].add(packet)
            if all(track.begun for track in tracks.values()):
                break
        heads = {index: track.span() for index, track in tracks.items()}
        clocks = Clocks(container)
        tracks = {stream.index: _Track(stream, origin, clocks) for stream in streams}
        container.seek(max(0, (container.start_time or 0) + container.duration - int(_TAIL * av.time_base)))
        for packet in container.demux(*streams):
            if packet.size:
                tracks[packet.stream_index].add(packet)
    except av.FFmpegError as error:
        raise_if_machine(error, container.name)
        return None
    spans = {}
    for index, track in tracks.items():
        head, tail = heads[index], track.span()
        if head is None or tail is None or clocks.restarted:
            return None
        spans[index] = (head[0], tail[1])
    return spans


@lru_cache(maxsize=4096)
def packet_extents(path: str | Path, identity: tuple[int, int]) -> Extents:
    """By all packets; kept, since a run reads many spans of a file."""
    with open_media(path) as container:
        return _counted(container, path)


def _counted(container: InputContainer, path: str | Path) -> Extents:
    """By all packets of a container of which nothing has been read."""
    streams = _usable_streams(container, path)
    clocks = Clocks(container)
    tracks = {stream.index: _Track(stream, start_of(container), clocks) for stream in streams}
    try:
        for packet in container.demux(*streams) if streams else ():  # of no stream in particular it gives all
            if packet.size:  # the empty ones at the end do not tell their stream
                tracks[packet.stream_index].add(packet)
    except av.FFmpegError as error:  # the file ends here as far as any reader is concerned
        raise_if_machine(error, container.name)
    spans = {index: span for index, track in tracks.items() if (span := track.span()) is not None}
    chained = container.format.name == "ogg" and _is_chained(path)
    return Extents(spans, chained or clocks.restarted)


def _is_chained(path: str | Path) -> bool:
    """Whether an Ogg file ends with pages of a stream that does not begin with it (RFC 3533): files were joined."""
    with open(path, "rb") as file:
        head = file.read(_OGG_PAGES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _OGG_PAGES))
        tail = file.read()
    begun, place = set(), 0
    while head[place : place + 4] == b"OggS" and head[place + 5 : place + 6] and head[place + 5] & 2:
        begun.add(head[place + 14 : place + 18])
        segments = head[place + 26] if len(head) > place + 26 else 0
        place += 27 + segments + sum(head[place + 27 : place + 27 + segments])
    last = tail.rfind(b"OggS")
    return bool(begun) and last >= 0 and len(tail) >= last + 18 and tail[last + 14 : last + 18] not in begun


class _Track:
    """First and last time of the packets of one stream."""

    def __init__(self, stream: Usable, origin: float, clocks: Clocks) -> None:
        self.stream, self.origin, self._clocks = stream, origin, clocks
        self._tick = seconds(stream, 1) or 1.0  # once, as fractions are slow
        self._sound = isinstance(stream, AudioStream)
        self._skipped = -math.inf  # until when a decoder throws the sound away
        self._packets = 0
        self._stamp: int | None = None
        self._key: float | None = None
        self._first, self._last, self._end = math.inf, -math.inf, -math.inf

    @property
    def begun(self) -> bool:
        return self._key is not None

    def add(self, packet: Packet) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.is_discard:  # an edit list hides it, yet the pictures that follow may refer to it
            if self._key is None and packet.is_keyframe and stamp is not None:
                self._key = stamp * self._tick
            return
        if self._clocks.ended(packet):
            return
        if stamp is None or (stamp == self._stamp and self._sound):  # none, or one that does not move on
            time = self.origin if self._packets == 0 else self._end
        else:
            time, self._stamp = stamp * self._tick, stamp
        end = time + ((packet.duration or 0) * self._tick or self._decoded_length(packet))
        if isinstance(self.stream, AudioStream) and packet.has_sidedata("skip_samples"):
            skipped = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
            self._skipped = time + skipped / self.stream.codec_context.sample_rate
        if end <= self._skipped:  # what an edit list cuts off, or a codec needs to get going
            return
        self._packets += 1
        if self._key is None and packet.is_keyframe:
            self._key = time
        if time < self._first:
            self._first = time
        if time > self._last:
            self._last = time
        if end > self._end:
            self._end = end

    def _decoded_length(self, packet: Packet) -> float:
        """Seconds of sound that come out of a packet, for one that does not say how long it lasts."""
        return sum(frame.samples / frame.sample_rate for frame in decoded(packet)) if self._sound else 0.0

    def span(self) -> tuple[float, float] | None:
        """(start, end) on the file's clock; None where there was no packet."""
        if not self._packets:
            return None
        end = self._end
        if end <= self._last and not self._sound:  # the last picture stays as long as the others do
            rate = self.stream.average_rate or self.stream.guessed_rate
            typical = (self._last - self._first) / (self._packets - 1) if self._packets > 1 else 0.0
            end = self._last + (typical or (1 / float(rate) if rate else 0.0))
        # Pictures before the first keyframe have lost the ones that they refer to.
        first = self._first if self._key is None else max(self._first, self._key)
        return max(0.0, first - self.origin), end - self.origin
