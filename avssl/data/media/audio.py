"""Sound of a span of a file as a mono waveform, sample-accurate, with nothing made up.

FFmpeg (through PyAV) decodes; the samples are put where their timestamps say, so that a late start, a gap or a lost
packet shows up as missing instead of shifting all that follows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from avssl.data.media.container import decoded, find_audio, open_media, packets_of, seconds, start_of
from avssl.data.media.errors import MediaError, check_size
from avssl.data.media.extents import may_seek, promised_span, span_of

# Decoders need a run-up after a seek: overlapping transforms, mp3's bit reservoir (up to 10 frames of 72 ms at 8 kHz).
_RUN_UP = 1.0
# Decoded beyond both ends of the span, so that the resampling filter sees real neighbours.
_MARGIN = 0.05
# A span that starts before this many seconds is decoded from the beginning, without a seek: the codec's run-up there is
# not found again by one.
BEGINNING = _RUN_UP + 2 * _MARGIN
# Containers whose sound can be taken up anywhere, though a seek may lead astray. Elsewhere (ADPCM) what comes out of a
# decoder may depend on all that went in.
_SKIPPABLE = {"mpeg", "mpegts", "ogg"}
# Containers in which the first frame's time may be that of another: a packet of an MPEG program stream carries the time
# of the first frame that begins in it, and some writers of Matroska count the delay of Opus twice. Frames by which it
# is judged; seconds between which they are off, neither rounded nor after a gap.
_MISPLACING = {"mpeg", "matroska,webm"}
_EARLY = 9
_ROUNDED, _MISPLACED = 0.003, 0.06
# Times jitter by less than this, in seconds: they are rounded (to 1 ms in Matroska), or off for a frame (Vorbis).
JITTER = 0.03
# A smaller gap or overlap is one that lasts, as after a jump between two recordings: so many frames tell.
_LASTING = 16
# How the channels of a file become one: their mean, or the one of this number, counted from 0.
Channel = Literal["mean"] | int
_DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64}
# PyAV counts one plane too many from 8 planar channels on (7.1), and reading that one is a segmentation fault.
_MAX_PLANES = 8
# Channels whose mean has less than this share of their energy (30 dB less) cancel.
_CANCELLED = 1e-3
# A codec fills its last block; the header knows where the sound ends within it.
PADDING = 0.15
# What may be missing inside the stream's own extent: the larger of these (codec delay and tails; header rounding).
MISSING_SECONDS = 0.1
MISSING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class AudioClip:
    """``waveform``: (S,) float32 mono in about [-1, 1]; ``valid``: share of it that the file gave, the rest is zero."""

    waveform: np.ndarray
    valid: float


@dataclass(frozen=True, slots=True)
class Sound:
    """What a file gives of a span, before it is judged.

    Attributes:
        waveform: (S,) float32, zeros where there is nothing.
        start, end: Seconds in the file between which it was read.
        intervals: (start, end) of the seconds that have samples, ascending.
        extent: Seconds between which the file promises sound or has it.
    """

    waveform: np.ndarray
    start: float
    end: float
    intervals: list[tuple[float, float]]
    extent: tuple[float, float]


def sound_of(
    container: InputContainer,
    stream: AudioStream,
    path: str | Path,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16000,
    channel: Channel = "mean",
) -> Sound:
    """``[start, start + duration)`` seconds of sound, however much of it is there; see `MediaFile.audio`.

    Args:
        container: The open file, of which nothing has been read yet where ``start`` is less than `BEGINNING`; it is
            left anywhere.
        stream: Its sound, from `find_audio`.
        path: The file.
        start, duration, sample_rate, channel: As for `MediaFile.audio`.

    Raises:
        MediaError: "non-finite audio"; "no such channel".
    """
    end = math.inf if duration is None else start + duration
    track: Track | None = None
    if start < BEGINNING:
        track = _decode(container, stream, path, start, end, sample_rate, channel)
    elif may_seek(container, stream, path):
        track = _decode(container, stream, path, start, end, sample_rate, channel, seek=True)
    if track is None:  # the seek landed beyond its target or gave no timestamps, or there can be none
        with open_media(path) as again:
            track = _decode(again, find_audio(again, path), path, start, end, sample_rate, channel)
    assert track is not None  # only a seek misses
    intervals = track.intervals(start, end)
    whole = duration is not None and len(intervals) == 1 and intervals[0][1] - intervals[0][0] > duration - 1e-6
    header = promised_span(container, stream)
    promised = (start, end) if whole else header or span_of(container, stream, path)
    if duration is None:
        end = max(sound_end(promised[1], track.end, header is not None), start + 1 / sample_rate)
        intervals = track.intervals(start, end)
    count = round((end - start if duration is None else duration) * sample_rate)
    check_size(4 * (max(0.0, min(end, track.end) - track.origin) * track.rate + count), path)
    waveform = track.resampled(start, count, sample_rate)
    if not np.isfinite(waveform).all():
        raise MediaError(path, "non-finite audio", f"{start:.2f} to {end:.2f} s")
    return Sound(waveform, start, end, intervals, (promised[0], max(promised[1], track.end)))


def sound_end(promised: float, decoded: float, by_header: bool) -> float:
    """When the sound of a file ends, which is when it should, by its header or packets, or when its last sample is.

    A header knows how much of the last block is padding; the times of packets are rounded.
    """
    if by_header and promised <= decoded < promised + PADDING:
        return promised
    return decoded if not by_header and abs(decoded - promised) < PADDING else max(promised, decoded)


def checked(sound: Sound, path: str | Path) -> AudioClip:
    """The sound as a clip, if enough of it is there.

    Raises:
        MediaError: "no audio in span"; "audio shorter than expected".
    """
    start, end, span = sound.start, sound.end, sound.end - sound.start
    covered = sum(last - first for first, last in sound.intervals)
    expected = max(0.0, min(end, sound.extent[1]) - max(start, sound.extent[0]))
    if covered <= 0:
        raise MediaError(path, "no audio in span", f"{start:.2f} to {end:.2f} s")
    if expected - covered > max(MISSING_SECONDS, MISSING_SHARE * span):
        raise MediaError(path, "audio shorter than expected", f"{covered:.2f} of {expected:.2f} s from {start:.2f} s")
    return AudioClip(sound.waveform, min(1.0, covered / span))


class Track:
    """Mono samples at one rate on the file's clock, from ``origin`` seconds on, and which of them are real."""

    def __init__(self, origin: float) -> None:
        self.origin = origin
        self.rate = 0
        self.pieces: list[tuple[int, np.ndarray]] = []  # (position in samples after origin, samples)
        self.cursor = 0  # end of the last piece
        self.begun = False
        self.size = 0  # bytes of all pieces

    @property
    def end(self) -> float:
        return self.origin + self.cursor / self.rate if self.rate else self.origin

    def add(self, time: float | None, samples: np.ndarray, rate: int) -> None:
        """Puts samples at a time, None for right behind the last ones."""
        if not self.rate:
            self.rate = rate
        elif rate != self.rate:  # a broadcast may switch; keep the first rate's clock
            samples = soxr.resample(samples, rate, self.rate)
        position = self.cursor
        if time is not None:
            position = round((time - self.origin) * self.rate)
        if position < self.cursor and self.begun:  # overlap: what came first stays
            samples = samples[self.cursor - position :]
            position = self.cursor
        self.begun = True
        self.cursor = position + len(samples)
        if len(samples) and self.cursor > 0:  # what lies before the origin only warmed up the decoder
            self.pieces.append((position, samples))
            self.size += samples.nbytes

    def intervals(self, start: float, end: float) -> list[tuple[float, float]]:
        """(start, end) in seconds of the stretches of ``[start, end)`` that have samples, ascending."""
        if not self.rate:
            return []
        first, last = ((bound - self.origin) * self.rate for bound in (start, end))
        merged: list[tuple[float, float]] = []  # in samples after the origin
        for position, samples in self.pieces:
            low, high = max(position, first), min(position + len(samples), last)
            if high <= low:
                continue
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return [(start + (low - first) / self.rate, start + (high - first) / self.rate) for low, high in merged]

    def resampled(self, start: float, count: int, sample_rate: int) -> np.ndarray:
        """``count`` samples at ``sample_rate`` from ``start`` on, (count,) float32."""
        if not self.rate:
            return np.zeros(count, dtype=np.float32)
        end = min(start + count / sample_rate, self.end)
        length = max(0, round((end - self.origin + _MARGIN) * self.rate))
        buffer = np.zeros(length, dtype=np.float32)
        for position, samples in self.pieces:
            source = samples[max(0, -position) : max(0, length - position)]
            target = max(position, 0)
            buffer[target : target + len(source)] = source
        if self.rate != sample_rate:
            buffer = soxr.resample(buffer, self.rate, sample_rate, quality="HQ")
        first = round((start - self.origin) * sample_rate)
        wanted = np.zeros(count, dtype=np.float32)
        given = buffer[first : first + count]
        wanted[: len(given)] = given
        return wanted


def _decode(
    container: InputContainer,
    stream: AudioStream,
    path: str | Path,
    start: float,
    end: float,
    sample_rate: int,
    channel: Channel,
    seek: bool = False,
) -> Track | None:
    """The sound from somewhat before ``start`` until after ``end``; None where a seek missed."""
    rate = stream.codec_context.sample_rate
    # Begin on an instant that is a whole number of samples at both rates, so that any span of a file is cut from
    # the same resampling grid.
    grid = math.gcd(rate, sample_rate)
    track = Track(math.floor(max(0.0, start - _MARGIN) * grid) / grid)
    file_start, run_up = start_of(container), track.origin - _RUN_UP
    if seek:
        assert stream.time_base is not None
        try:
            container.seek(int((run_up + file_start) / stream.time_base), stream=stream)
        except av.FFmpegError:
            return None
    skips = seek or container.format.name in _SKIPPABLE
    packets = packets_of(container, stream, sought=seek)
    if skips:
        packets = dropwhile(lambda packet: _ends_before(packet, run_up + file_start), packets)
    for time, frame in placed_frames(container, packets):
        if seek and not track.begun and (time is None or time > track.origin):
            return None
        track.add(
            0.0 if time is None and not track.begun else time, mono_samples(frame, channel, path), frame.sample_rate
        )
        check_size(track.size, path)
        if track.end >= end + _MARGIN:
            break
    return track


def _ends_before(packet: Packet, time: float) -> bool:
    """Whether a packet's sound is over at a time of its stream: a decoder need not see it to get going until then."""
    begin = seconds(packet, packet.dts if packet.pts is None else packet.pts)
    return packet.size > 0 and begin is not None and begin + (seconds(packet, packet.duration) or 0.0) < time


def placed_frames(container: InputContainer, packets: Iterator[Packet]) -> Iterator[tuple[float | None, AudioFrame]]:
    """Decoded sound with the time where it is to be put, None for right behind the sound before it.

    A time counts where it is off by more than `JITTER`, or by more than `_ROUNDED` for as long as `_LASTING` frames
    tell: what comes after a gap has then its own time, wherever in the file reading began.
    """
    frames = _timed_frames(container, packets)
    ahead: deque[tuple[float | None, AudioFrame]] = deque()
    end: float | None = None  # of the sound so far
    while ahead or (following := next(frames, None)):
        time, frame = ahead.popleft() if ahead else following  # type: ignore[misc]  # None ends the loop
        length = frame.samples / frame.sample_rate
        if end is not None and time is not None:
            off = time - end
            if _ROUNDED < abs(off) <= JITTER:
                ahead.extend(islice(frames, _LASTING - len(ahead)))
                off = _lasting(off, end + length, ahead)
            time = end + off if abs(off) > _ROUNDED else None
        end = (end or 0.0) + length if time is None else max(time + length, time if end is None else end)
        yield time, frame


def _lasting(off: float, end: float, ahead: Iterable[tuple[float | None, AudioFrame]]) -> float:
    """By how many seconds a frame is later than the end of the one before, as far as those that follow say so, too.

    Args:
        off: By its own time.
        end: Where it ends if it is not.
        ahead: The frames that follow. If none has a time, nothing is known: 0.
    """
    offs = []
    for time, frame in ahead:
        if time is not None:
            offs.append(time - end)
        end += frame.samples / frame.sample_rate
    if not offs or not all(off * other > 0 for other in offs):
        return 0.0
    return min(off, *offs, key=abs)


def _timed_frames(container: InputContainer, packets: Iterator[Packet]) -> Iterator[tuple[float | None, AudioFrame]]:
    """Decoded sound with its time on the file's clock, None where it has none or one that does not move on."""
    origin = start_of(container)
    frames = (frame for packet in packets for frame in decoded(packet))
    early = list(islice(frames, _EARLY)) if container.format.name in _MISPLACING else []
    shifts = _misplaced(early)
    tick: float | None = None
    last: int | None = None
    for k, frame in enumerate(chain(early, frames)):
        if tick is None:  # once, as fractions are slow
            tick = seconds(frame, 1)
        known = frame.pts is not None and frame.pts != last and tick is not None
        last = frame.pts
        yield frame.pts * tick - origin + (shifts[k] if k < len(early) else 0.0) if known else None, frame


def _misplaced(frames: list[AudioFrame]) -> list[float]:
    """Seconds by which each of the first frames is later than it says, judged by what most of them say; mostly 0."""
    nothing = [0.0] * len(frames)
    places, length = [], 0.0  # of the first frame, by the time of each one
    for frame in frames:
        time = seconds(frame, frame.pts)
        if time is not None:
            places.append(time - length)
        length += frame.samples / frame.sample_rate
    if len(places) < _EARLY:
        return nothing
    right = sorted(places)[len(places) // 2]
    shifts = [right - place if abs(right - place) > _ROUNDED else 0.0 for place in places]
    few = sum(shift != 0 for shift in shifts) <= len(shifts) // 3
    return shifts if few and max(map(abs, shifts)) < _MISPLACED else nothing


def mono_samples(frame: AudioFrame, channel: Channel = "mean", path: str | Path = "") -> np.ndarray:
    """(S,) float32: integers scaled to [-1, 1), and the channels' mean or one of them.

    Raises:
        MediaError: "no such channel" in the sound of ``path``.
    """
    planes = _planes(frame)
    if channel != "mean":
        if channel >= len(planes):
            raise MediaError(path, "no such channel", f"channel {channel} of {len(planes)}, counted from 0")
        planes = planes[channel : channel + 1]
    elif len(planes) > 2:
        full_range = [i for i, known in enumerate(frame.layout.channels) if not known.name.startswith("LFE")]
        planes = [planes[i] for i in full_range] or planes
    mono = planes[0].astype(np.float32)
    for plane in planes[1:]:
        mono += plane
    dtype = planes[0].dtype
    if dtype == np.uint8:
        mono -= 128 * len(planes)
    scale = len(planes) * (1 if np.issubdtype(dtype, np.floating) else 1 << (8 * dtype.itemsize - 1))
    return mono if scale == 1 else mono / np.float32(scale)


def _planes(frame: AudioFrame) -> list[np.ndarray]:
    """The samples of each channel, (S,) of the file's type."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= _MAX_PLANES:
        frame = av.AudioResampler(format="flt", layout=frame.layout.name).resample(frame)[0]
    dtype = _DTYPES[frame.format.packed.name]
    # Several times faster than frame.to_ndarray(), which stacks copies; there are dozens of frames a second.
    if frame.format.is_planar:
        return [np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes]  # type: ignore[call-overload]
    together = np.frombuffer(frame.planes[0], dtype, frame.samples * channels)  # type: ignore[call-overload]
    return [together[channel::channels] for channel in range(channels)]


def check_channel(channel: Channel) -> None:
    """Refuses, with a ValueError, what is neither "mean" nor the number of a channel."""
    if channel != "mean" and (not isinstance(channel, int) or isinstance(channel, bool) or channel < 0):
        raise ValueError(f"channel: must be 'mean' or the number of a channel, counted from 0; got {channel!r}")


def channels_cancel(path: str | Path, start: float = 0.0, duration: float = 30.0) -> bool:
    """Whether the channels of a file cancel when they are averaged, as those of a stereo with one phase inverted do.

    Such a file sounds to a person and is silence to a model: take one channel of it.

    Args:
        path: The file.
        start, duration: Seconds that are listened to, as far as there are any.

    Raises:
        MediaError: no usable sound.
    """
    total = mean = 0.0
    with open_media(path) as container:
        stream, origin = find_audio(container, path), start_of(container)
        if stream.codec_context.channels < 2:
            return False
        for packet in packets_of(container, stream):
            time = (seconds(packet, packet.pts) or 0.0) - origin
            if packet.size and time < start:
                continue
            if time > start + duration:
                break
            for frame in decoded(packet):
                channels = [mono_samples(frame, k, path) for k in range(frame.layout.nb_channels)]
                total += sum(float(np.square(samples).sum()) for samples in channels) / len(channels)
                mean += float(np.square(mono_samples(frame)).sum())
    return total > 0 and mean < _CANCELLED * total
