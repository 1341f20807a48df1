"""The sound of a file or a pipe from beginning to end, block by block, in memory that does not grow with its length."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer

from avssl.data.media.audio import (
    JITTER,
    MISSING_SECONDS,
    MISSING_SHARE,
    PADDING,
    Channel,
    check_channel,
    mono_samples,
    placed_frames,
    sound_end,
)
from avssl.data.media.container import Clocks, begins_with_sound, find_audio, open_media, packets_of
from avssl.data.media.errors import MediaError, raise_if_machine
from avssl.data.media.extents import promised_span, span_of
from avssl.data.media.probe import RESTARTS, probe
from avssl.limits import limits

logger = logging.getLogger(__name__)

# Raw samples by the names that FFmpeg gives them; arecord's S16_LE is s16le here.
RAW_FORMATS = {
    "u8": "u1",
    "s16le": "<i2",
    "s16be": ">i2",
    "s32le": "<i4",
    "s32be": ">i4",
    "f32le": "<f4",
    "f32be": ">f4",
}
# Bytes taken from a raw stream at a time, at most; whatever has arrived is taken without waiting for more.
_READ = 1 << 16
# Zeros that fill a gap are made in pieces of this many samples.
_ZEROS = 1 << 16
# Bytes of a pipe in which no sound comes, after which it is given up: it may be endless, and some of FFmpeg's demuxers
# keep all that they search through. Ten seconds of pictures at 100 Mbit/s are as much.
SOUNDLESS = 1 << 27
# A timestamp that jumps ahead by more seconds than this is a broken one, not a pause.
_LONGEST_GAP = 600.0


def stream_audio(
    source: str | Path | BinaryIO,
    sample_rate: int,
    name: str = "",
    channel: Channel = "mean",
    covered: list[tuple[float, float]] | None = None,
    warnings: list[str] | None = None,
) -> Iterator[np.ndarray]:
    """The sound as blocks (S,) float32, mono at ``sample_rate``; put together they are what `read_audio` gives.

    Second 0 is the start of the file's earliest stream; where there is no sound yet, or a gap, there are zeros.

    Args:
        source: a media file, or an open one that is read from its beginning to its end and need not seek.
        sample_rate: Hz of the blocks.
        name: what an open file is called in errors.
        channel: "mean" of the channels, or the number of the one to take, counted from 0.
        covered: is filled with the (start, end) of the seconds that have sound, ascending, always as far as the blocks
            that were given reach.
        warnings: is filled, once the last block is given, with what `MediaInfo.warning` tells of a file of which only a
            part was given; of an open one, with "timestamps start over" where they do.

    Raises:
        MediaError: no media, no usable audio stream, nothing decodes, "no such channel", "non-finite audio", "broken
            timestamps", or, at the end, "audio shorter than expected" or, of a pipe, "no more sound": the blocks until
            then are good.
        ValueError: a channel that no file can have.
    """
    check_channel(channel)
    name = name or str(source)
    pipe: _Pipe | None = None
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            container = stack.enter_context(open_media(source))
        else:
            pipe = None if _may_seek(source) else _Pipe(source)
            container = stack.enter_context(_open_pipe(pipe or source, name))
        stream = find_audio(container, name)
        promised, by_header = promised_span(container, stream), True
        if promised is None:
            promised, by_header = (0.0, 0.0), False
            if isinstance(source, str | Path):
                promised = span_of(container, stream, source)
        rate = stream.codec_context.sample_rate
        covered = [] if covered is None else covered
        clocks = Clocks(container)
        pieces = _laid_out(container, stream, name, promised, by_header, channel, covered, clocks)
        yield from _resampled(pieces if pipe is None else pipe.watched(pieces), rate, sample_rate, name)
        if pipe is not None and pipe.given_up:
            raise MediaError(name, "no more sound", f"none in {SOUNDLESS >> 20} MiB of a pipe; name a file by its path")
    if warnings is not None:
        told = probe(source, deep=False).warning if isinstance(source, str | Path) else ""
        warnings += told.split("; ") if told else [RESTARTS] if clocks.restarted else []


def stream_raw(
    file: BinaryIO,
    rate: int,
    sample_rate: int,
    *,
    sample_format: str = "s16le",
    channels: int = 1,
    channel: Channel = "mean",
    name: str = "stdin",
) -> Iterator[np.ndarray]:
    """Raw samples, such as a sound card gives, as blocks (S,) float32, mono at ``sample_rate``, as soon as they come.

    Args:
        file: bytes without any header, cut anywhere.
        rate: Hz of the samples.
        sample_rate: Hz of the blocks.
        sample_format: one of `RAW_FORMATS`.
        channels: interleaved.
        channel: "mean" of them, or the number of the one to take, counted from 0.

    Raises:
        ValueError: an unknown format, a rate or number of channels below 1, or a channel that is not among them.
        MediaError: "non-finite audio"; "no audio" where the stream holds not one sample.
    """
    if sample_format not in RAW_FORMATS:
        raise ValueError(f"sample-format: must be one of {', '.join(RAW_FORMATS)}, got {sample_format!r}")
    if rate < 1 or channels < 1:
        raise ValueError(f"need a rate and a number of channels of at least 1, got {rate} and {channels}")
    check_channel(channel)
    if channel != "mean" and channel >= channels:
        raise ValueError(f"channel: {channel} is not among {channels}, counted from 0")
    dtype = np.dtype(RAW_FORMATS[sample_format])
    yield from _resampled(_raw_samples(file, dtype, channels, channel, name), rate, sample_rate, name)


class _Pipe:
    """An open file that cannot seek, which ends where it has no sound in `SOUNDLESS` bytes.

    Attributes:
        given_up: It did so.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.name = getattr(file, "name", "<none>")
        self.given_up = False
        self._file, self._since = file, 0

    def read(self, size: int) -> bytes:
        self.given_up |= self._since >= SOUNDLESS
        data = b"" if self.given_up else self._file.read(size)
        self._since += len(data)
        return data

    def watched(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same pieces of its sound, each of which it is told of."""
        for piece in pieces:
            self._since = 0
            yield piece


def _may_seek(file: BinaryIO) -> bool:
    return hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable())


def _open_pipe(file: BinaryIO | _Pipe, name: str) -> InputContainer:
    try:
        # A playlist in a pipe must not reach for files or the network.
        options = {"protocol_whitelist": "data", "max_pixels": str(limits().max_pixels)}
        return av.open(file, "r", options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise_if_machine(error)
        detail = "an mp4 can be read from a pipe only if it was written with -movflags faststart"
        raise MediaError(name, "not a media file", detail) from error


def _laid_out(
    container: InputContainer,
    stream: AudioStream,
    name: str,
    promised: tuple[float, float],
    by_header: bool,
    channel: Channel,
    intervals: list[tuple[float, float]],
    clocks: Clocks,
) -> Iterator[np.ndarray]:
    """The stream's samples at its first rate from second 0 on, without a gap, up to where they are promised to end."""
    first, last = promised
    rate = clock = given = 0  # `clock`: end of the last piece; `given`: samples yielded
    covered = 0  # samples that the file gave, not counting gaps
    held: list[np.ndarray] = []  # beyond the declared end: a codec's padding unless much more follows
    begun, filled = False, begins_with_sound(container)
    for time, frame in placed_frames(container, packets_of(container, stream, clocks=clocks)):
        samples = mono_samples(frame, channel, name)
        rate = rate or frame.sample_rate
        if frame.sample_rate != rate:
            samples = soxr.resample(samples, frame.sample_rate, rate)
        position = clock if time is None else round(time * rate)
        if begun and position < clock:  # overlap: what came first stays
            samples, position = samples[clock - position :], clock
        if not begun and last <= first:  # of a pipe nothing is known before
            first = position / rate
        begun, clock = True, position + len(samples)
        samples = samples[max(0, -position) :]
        if not len(samples):
            continue
        covered += len(samples)
        if clock / rate > filled:
            _extend(intervals, max(position / rate, filled), clock / rate)
        gap = max(0, position) - given - sum(map(len, held))
        if gap > _LONGEST_GAP * rate:
            raise MediaError(name, "broken timestamps", f"a gap of {gap / rate:.0f} s")
        pieces = [np.zeros(min(_ZEROS, gap - k), dtype=np.float32) for k in range(0, gap, _ZEROS)]
        for piece in [*pieces, samples]:
            held.append(piece)
            if not by_header or not last * rate < given + sum(map(len, held)) < (last + PADDING) * rate:
                yield from held
                given += sum(map(len, held))
                held = []
    if not begun:
        raise MediaError(name, "audio does not decode")
    end = round(sound_end(last, clock / rate, by_header) * rate)
    if held and end > given:
        yield np.concatenate(held)[: end - given]
        given = min(end, given + sum(map(len, held)))
    expected = max(last, clock / rate) - max(0.0, first)
    if expected - covered / rate > max(MISSING_SECONDS, MISSING_SHARE * expected):
        raise MediaError(name, "audio shorter than expected", f"{covered / rate:.2f} of {expected:.2f} s")
    if end > given:
        yield np.zeros(end - given, dtype=np.float32)


def _extend(intervals: list[tuple[float, float]], start: float, end: float) -> None:
    """Adds the seconds that a piece of sound covers, at or after the end of the last ones."""
    if intervals and start <= intervals[-1][1] + JITTER:
        intervals[-1] = (intervals[-1][0], max(end, intervals[-1][1]))
    else:
        intervals.append((start, end))


def _raw_samples(file: BinaryIO, dtype: np.dtype, channels: int, channel: Channel, name: str) -> Iterator[np.ndarray]:
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    size, rest, empty = dtype.itemsize * channels, b"", True
    while data := read(_READ):
        data = rest + data
        whole = len(data) // size * size
        rest = data[whole:]
        if whole:
            empty = False
            samples = np.frombuffer(data[:whole], dtype).reshape(-1, channels)
            yield _to_mono(samples if channel == "mean" else samples[:, channel : channel + 1])
    if rest:
        logger.warning("%s: ends within a sample (%d of %d bytes): is its format right?", name, len(rest), size)
    if empty:
        raise MediaError(name, "no audio", "the stream is empty")


def _to_mono(samples: np.ndarray) -> np.ndarray:
    """(S, channels) of any format -> (S,) float32 in [-1, 1)."""
    mono = samples.astype(np.float32).mean(axis=1)
    if samples.dtype.kind == "f":
        return mono
    if samples.dtype.kind == "u":
        mono -= 128
    return mono / np.float32(1 << (8 * samples.dtype.itemsize - 1))


def _resampled(pieces: Iterable[np.ndarray], rate: int, sample_rate: int, name: str) -> Iterator[np.ndarray]:
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz, got {sample_rate}")
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    total = given = 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise MediaError(name, "non-finite audio", f"near {total / rate:.2f} s")
        total += len(piece)
        block = piece if rate == sample_rate else resampler.resample_chunk(piece)
        given += len(block)
        if len(block):
            yield block
    if rate != sample_rate:
        block = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        yield block[: max(0, math.ceil(total * sample_rate / rate) - given)]
