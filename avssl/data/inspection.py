"""A closer look at a clip than its file's header allows: is there sound, does the picture move, does it decode."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from avssl.data.journal import Journal, file_key
from avssl.data.manifest import Manifest
from avssl.data.media.audio import Channel
from avssl.data.media.errors import MediaError
from avssl.data.media.pool import available_cores, run_all
from avssl.data.shards.sample import open_source
from avssl.data.spans import ClipSpan, frame_times
from avssl.progress import Meter

# Sound below half of this rate is what models at 16 kHz hear.
SAMPLE_RATE = 16000
# Of longer clips, the first, middle and last seconds are listened to.
WHOLE_SECONDS, PART_SECONDS = 30.0, 10.0
FRAMES, FRAME_SIZE = 8, 32
# Shorter pictures are not called still.
MOTION_SECONDS = 0.5
_FLOOR_DB = -120.0


class ClipLocation(NamedTuple):
    """Where a clip is: the seconds (start, end) of the file ``path`` that each stream has of it, None without any.

    Each stream is looked at for itself: sound that begins late is no fault of the pictures.
    """

    path: str
    audio: tuple[float, float] | None
    video: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a clip holds.

    Attributes:
        peak: Largest absolute sample in dBFS (0 dB: full scale; -120 and below: digital silence); None without sound.
        motion: Largest change of the luminance of any pixel between 8 frames spread over the clip, scaled to 32 pixels
            on the short side, in units of 1/255; None without pictures, or with less than 0.5 s of them.
        words: (64,) uint32 fingerprint of the sound, see :func:`avssl.data.inspection.fingerprint`.
        audio_error, video_error: Why a stream did not decode in this clip; "" where it did.
    """

    peak: float | None = None
    motion: float | None = None
    words: np.ndarray | None = None
    audio_error: str = ""
    video_error: str = ""


@dataclass(frozen=True)
class Inspections:
    """What was found of N rows, in columns: NaN, zeros and "" where there was nothing to look at."""

    peak: np.ndarray
    motion: np.ndarray
    words: np.ndarray
    audio_error: np.ndarray
    video_error: np.ndarray


def inspect_clip(location: ClipLocation, channel: Channel = "mean") -> Inspection:
    """Decode a clip's sound and some of its frames; never raises for what the file holds."""
    peak = motion = words = None
    audio_error = video_error = ""
    if location.audio:
        try:
            parts = _parts(*location.audio)
            with open_source(location.path) as source:
                sounds = [source.audio(start, seconds, SAMPLE_RATE, channel).waveform for start, seconds in parts]
            loudest = max(float(np.abs(sound).max()) for sound in sounds)
            peak = max(_FLOOR_DB, 20 * float(np.log10(max(loudest, 1e-9))))
            words = fingerprint(sounds[0], SAMPLE_RATE)
        except MediaError as error:
            audio_error = error.reason
    if location.video:
        length = location.video[1] - location.video[0]
        try:
            with open_source(location.path) as source:
                frames = source.frames(frame_times(ClipSpan(location.video[0], length, length), FRAMES), FRAME_SIZE)
            luminance = frames.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
            motion = float(np.ptp(luminance, axis=0).max()) if length >= MOTION_SECONDS else None
        except MediaError as error:
            video_error = error.reason
    return Inspection(peak, motion, words, audio_error, video_error)


def inspect_clips(
    manifest: Manifest, workers: int | None, progress: bool, journal: Journal, channel: Channel = "mean"
) -> Inspections:
    """Inspection at every clip of a scanned manifest that has no error; arguments as for :func:`avssl.data.scan.scan`.

    ``channel``: what is heard of several channels, "mean" or the number of one.
    """
    count = len(manifest)
    found_of = Inspections(
        np.full(count, np.nan),
        np.full(count, np.nan),
        np.zeros((count, WORDS), dtype=np.uint32),
        np.full(count, "", dtype=object),
        np.full(count, "", dtype=object),
    )
    rows: dict[ClipLocation, list[int]] = {}
    for row, location in _locations(manifest):
        known = journal.take(_key(location, channel)) if len(journal) else None
        if known is None:
            rows.setdefault(location, []).append(row)
        else:
            _store(found_of, row, _from_json(known))
    with Meter("looking at clips", total=len(rows), unit="clip", shown=progress) as meter:
        workers = available_cores() if workers is None else workers
        for location, found in run_all(
            partial(inspect_clip, channel=channel), rows, _failed, workers=workers, timeout=120.0, chunk=8
        ):
            for row in rows[location]:
                _store(found_of, row, found)
            meter.update()
            if journal.path is not None and "decoder " not in found.audio_error:
                journal.add(_key(location, channel), _to_json(found))
    return found_of


def _failed(location: ClipLocation, reason: str) -> Inspection:
    return Inspection(audio_error=reason, video_error=reason)


def _parts(low: float, high: float) -> list[tuple[float, float]]:
    """(start, seconds) to listen to."""
    length = high - low
    if length <= WHOLE_SECONDS:
        return [(low, length)]
    return [(low + share * (length - PART_SECONDS), PART_SECONDS) for share in (0.0, 0.5, 1.0)]


def _locations(manifest: Manifest) -> Iterator[tuple[int, ClipLocation]]:
    """The clips that can be looked at: without an error, of known length."""

    def spans(name: str) -> list[tuple[float, float] | None]:
        there = manifest.table[f"has_{name}"].fill_null(False).to_pylist()
        pairs = zip(there, *(bounds.tolist() for bounds in manifest.spans([name])), strict=True)
        return [(low, high) if present and high > low else None for present, low, high in pairs]

    columns = zip(manifest.table["path"], spans("audio"), spans("video"), manifest.table["error"], strict=True)
    for row, (path, audio, video, error) in enumerate(columns):
        if not error.as_py() and (audio or video):
            yield row, ClipLocation(str(Path(manifest.root) / path.as_py()), audio, video)


def _store(found_of: Inspections, row: int, found: Inspection) -> None:
    found_of.peak[row] = np.nan if found.peak is None else found.peak
    found_of.motion[row] = np.nan if found.motion is None else found.motion
    if found.words is not None:
        found_of.words[row] = found.words
    found_of.audio_error[row] = sys.intern(found.audio_error)
    found_of.video_error[row] = sys.intern(found.video_error)


def _key(location: ClipLocation, channel: Channel) -> str | None:
    return file_key("look", location.path, location.audio, location.video, channel)


def _to_json(found: Inspection) -> list[Any]:
    words = None if found.words is None else base64.b64encode(found.words.astype("<u4").tobytes()).decode()
    return [found.peak, found.motion, words, found.audio_error, found.video_error]


def _from_json(told: list[Any]) -> Inspection:
    peak, motion, words, audio_error, video_error = told
    if words is not None:
        words = np.frombuffer(base64.b64decode(words), dtype="<u4")
    return Inspection(peak, motion, words, audio_error, video_error)


# 33 bands from 300 to 2000 Hz and frames of 0.37 s, as in the paper. Their hop of 11.6 ms serves to find short excerpts
# at any place; here both sounds begin together, and a word every 0.1 s of the first 6.5 s will do.
WORDS = 64
_BANDS, _LOW_HZ, _HIGH_HZ = 33, 300.0, 2000.0
_FRAME_SECONDS, _HOP_SECONDS = 0.37, 0.1
# Frames without a sample above -60 dBFS say nothing; a fingerprint of fewer words than this could match by chance.
_LOUD, _FEWEST_WORDS = 1e-3, 8
# Largest share of different bits. The paper allows 0.35 within three seconds; between unlike recordings of ESC-10 and
# GRID the smallest measured share is 0.38, and between copies as mp3, aac, opus or at 8 kHz the largest is 0.18.
DIFFERENT_BITS = 0.25
# A word that this many sounds have in the same place tells nothing.
_COMMON = 64
_BATCH = 100_000
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)


def fingerprint(waveform: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """(64,) uint32, one word for every 0.1 s, 0 where it is silent or over; None with less than 0.8 s of sound.

    Args:
        waveform: (S,) float32.
        sample_rate: Hz, at least 4000.
    """
    size, hop = round(_FRAME_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    count = min(WORDS + 1, 1 + (len(waveform) - size) // hop)
    if count < _FEWEST_WORDS + 1:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[: count * hop : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2
    energies = np.add.reduceat(power, _edges(size, sample_rate), axis=1)[:, :_BANDS]  # (count, 33)
    between_bands = -np.diff(energies, axis=1)
    bits = np.diff(between_bands, axis=0) > 0  # (count - 1, 32)
    words = (bits.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
    loud = np.abs(frames).max(axis=1) >= _LOUD
    words = np.where(loud[1:] & loud[:-1], np.maximum(words, 1), 0)
    if np.count_nonzero(words) < _FEWEST_WORDS:
        return None
    result = np.zeros(WORDS, dtype=np.uint32)
    result[: len(words)] = words
    return result


@cache
def _edges(size: int, sample_rate: int) -> np.ndarray:
    """Bins of a transform of ``size`` at which the bands begin, and where the last one ends."""
    hz = np.geomspace(_LOW_HZ, _HIGH_HZ, _BANDS + 1)
    return np.round(hz * size / sample_rate).astype(int)


def same_sounds(words: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Group sounds of different splits that are the same.

    Args:
        words: (N, 64) uint32 fingerprints, all 0 where there is none.
        splits: (N,) int64.

    Returns:
        (N,) int64: sounds with the same number are the same, -1 for those that are like no other.
    """
    count = len(words)
    pairs = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *_candidates(words, splits)]))
    left, right = pairs // max(count, 1), pairs % max(count, 1)
    same = np.zeros(len(pairs), dtype=bool)
    for first in range(0, len(pairs), _BATCH):
        part = slice(first, first + _BATCH)
        same[part] = different_bits(words[left[part]], words[right[part]]) <= DIFFERENT_BITS
    left, right = left[same], right[same]
    _, numbers = connected_components(coo_array((np.ones(len(left)), (left, right)), shape=(count, count)), False)
    groups = np.full(count, -1, dtype=np.int64)
    found = np.union1d(left, right)
    groups[found] = numbers[found]
    return groups


def different_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of the bits that differ between fingerprints (P, 64) and (P, 64), over the words that either has: (P,)."""
    either = (one != 0) | (other != 0)
    both = (one != 0) & (other != 0)
    counts = _ONES[np.ascontiguousarray(one ^ other).view(np.uint8)].reshape(*one.shape, 4).sum(axis=2, dtype=np.int64)
    different = np.where(both, counts, 32 * either).sum(axis=1)
    return different / np.maximum(1, 32 * either.sum(axis=1))


def _candidates(words: np.ndarray, splits: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (as left * N + right, left < right) of different splits that have a word in common in the same place."""
    for place in range(words.shape[1]):
        rows = np.flatnonzero(words[:, place])
        order = rows[np.argsort(words[rows, place], kind="stable")]
        values = words[order, place]
        bounds = np.flatnonzero(np.diff(values)) + 1
        sizes = np.diff(np.concatenate([[0], bounds, [len(values)]]))
        starts = np.cumsum(sizes) - sizes
        for step in range(1, _COMMON):  # rows `step` apart in a run of equal words
            runs = (sizes > step) & (sizes <= _COMMON)
            if not runs.any():
                break
            first = np.concatenate([np.arange(s, s + n - step) for s, n in zip(starts[runs], sizes[runs], strict=True)])
            left, right = order[first], order[first + step]
            across = splits[left] != splits[right]
            low, high = np.minimum(left, right)[across], np.maximum(left, right)[across]
            yield low.astype(np.int64) * len(words) + high
