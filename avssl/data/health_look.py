"""A closer look at a clip than its file's header allows: is there sound, does the picture move, does it decode."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avssl.data.health_fingerprint import WORDS, fingerprint
from avssl.data.journal import Journal, file_key
from avssl.data.manifest import Manifest
from avssl.data.media.audio import Channel
from avssl.data.media.errors import MediaError
from avssl.data.media.pool import available_cores, run_all
from avssl.data.sampling import ClipSpan, frame_times
from avssl.data.source import read_audio, read_frames
from avssl.progress import Meter

# Sound below half of this rate is what models at 16 kHz hear.
SAMPLE_RATE = 16000
# Of longer clips, the first, middle and last seconds are listened to.
WHOLE_SECONDS, PART_SECONDS = 30.0, 10.0
FRAMES, FRAME_SIZE = 8, 32
# Shorter pictures are not called still.
MOTION_SECONDS = 0.5
_FLOOR_DB = -120.0


class ClipSpot(NamedTuple):
    """Where a clip is: the seconds (start, end) of the file ``path`` that each stream has of it, None without any.

    Each stream is looked at for itself: sound that begins late is no fault of the pictures.
    """

    path: str
    audio: tuple[float, float] | None
    video: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Look:
    """What a clip holds.

    Attributes:
        peak: Largest absolute sample in dBFS (0 dB: full scale; -120 and below: digital silence); None without sound.
        motion: Largest change of the luminance of any pixel between 8 frames spread over the clip, scaled to 32 pixels
            on the short side, in units of 1/255; None without pictures, or with less than 0.5 s of them.
        words: (64,) uint32 fingerprint of the sound, see :func:`avssl.data.health_fingerprint.fingerprint`.
        audio_error, video_error: Why a stream did not decode in this clip; "" where it did.
    """

    peak: float | None = None
    motion: float | None = None
    words: np.ndarray | None = None
    audio_error: str = ""
    video_error: str = ""


@dataclass(frozen=True)
class Looks:
    """The looks at N rows, in columns: NaN, zeros and "" where there was nothing to look at."""

    peak: np.ndarray
    motion: np.ndarray
    words: np.ndarray
    audio_error: np.ndarray
    video_error: np.ndarray


def look(spot: ClipSpot, channel: Channel = "mean") -> Look:
    """Decode a clip's sound and some of its frames; never raises for what the file holds."""
    peak = motion = words = None
    audio_error = video_error = ""
    if spot.audio:
        try:
            parts = _parts(*spot.audio)
            sounds = [read_audio(spot.path, start, seconds, SAMPLE_RATE, channel).waveform for start, seconds in parts]
            loudest = max(float(np.abs(sound).max()) for sound in sounds)
            peak = max(_FLOOR_DB, 20 * float(np.log10(max(loudest, 1e-9))))
            words = fingerprint(sounds[0], SAMPLE_RATE)
        except MediaError as error:
            audio_error = error.reason
    if spot.video:
        length = spot.video[1] - spot.video[0]
        try:
            frames = read_frames(spot.path, frame_times(ClipSpan(spot.video[0], length, length), FRAMES), FRAME_SIZE)
            luminance = frames.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
            motion = float(np.ptp(luminance, axis=0).max()) if length >= MOTION_SECONDS else None
        except MediaError as error:
            video_error = error.reason
    return Look(peak, motion, words, audio_error, video_error)


def look_all(
    manifest: Manifest, workers: int | None, progress: bool, journal: Journal, channel: Channel = "mean"
) -> Looks:
    """Look at every clip of a scanned manifest that has no error; arguments as for :func:`avssl.data.scan.scan`.

    ``channel``: what is heard of several channels, "mean" or the number of one.
    """
    count = len(manifest)
    looks = Looks(
        np.full(count, np.nan),
        np.full(count, np.nan),
        np.zeros((count, WORDS), dtype=np.uint32),
        np.full(count, "", dtype=object),
        np.full(count, "", dtype=object),
    )
    rows: dict[ClipSpot, list[int]] = {}
    for row, spot in _spots(manifest):
        known = journal.take(_key(spot, channel)) if len(journal) else None
        if known is None:
            rows.setdefault(spot, []).append(row)
        else:
            _keep(looks, row, _untold(known))
    with Meter("looking at clips", total=len(rows), unit="clip", shown=progress) as meter:
        workers = available_cores() if workers is None else workers
        for spot, found in run_all(
            partial(look, channel=channel), rows, _failed, workers=workers, timeout=120.0, chunk=8
        ):
            for row in rows[spot]:
                _keep(looks, row, found)
            meter.update()
            if journal.path is not None and "decoder " not in found.audio_error:
                journal.add(_key(spot, channel), _told(found))
    return looks


def _failed(spot: ClipSpot, reason: str) -> Look:
    return Look(audio_error=reason, video_error=reason)


def _parts(low: float, high: float) -> list[tuple[float, float]]:
    """(start, seconds) to listen to."""
    length = high - low
    if length <= WHOLE_SECONDS:
        return [(low, length)]
    return [(low + share * (length - PART_SECONDS), PART_SECONDS) for share in (0.0, 0.5, 1.0)]


def _spots(manifest: Manifest) -> Iterator[tuple[int, ClipSpot]]:
    """The clips that can be looked at: without an error, of known length."""

    def spans(name: str) -> list[tuple[float, float] | None]:
        there = manifest.table[f"has_{name}"].fill_null(False).to_pylist()
        pairs = zip(there, *(bounds.tolist() for bounds in manifest.spans([name])), strict=True)
        return [(low, high) if present and high > low else None for present, low, high in pairs]

    columns = zip(manifest.table["path"], spans("audio"), spans("video"), manifest.table["error"], strict=True)
    for row, (path, audio, video, error) in enumerate(columns):
        if not error.as_py() and (audio or video):
            yield row, ClipSpot(str(Path(manifest.root) / path.as_py()), audio, video)


def _keep(looks: Looks, row: int, found: Look) -> None:
    looks.peak[row] = np.nan if found.peak is None else found.peak
    looks.motion[row] = np.nan if found.motion is None else found.motion
    if found.words is not None:
        looks.words[row] = found.words
    looks.audio_error[row] = sys.intern(found.audio_error)
    looks.video_error[row] = sys.intern(found.video_error)


def _key(spot: ClipSpot, channel: Channel) -> str | None:
    return file_key("look", spot.path, spot.audio, spot.video, channel)


def _told(found: Look) -> list[Any]:
    words = None if found.words is None else base64.b64encode(found.words.astype("<u4").tobytes()).decode()
    return [found.peak, found.motion, words, found.audio_error, found.video_error]


def _untold(told: list[Any]) -> Look:
    peak, motion, words, audio_error, video_error = told
    if words is not None:
        words = np.frombuffer(base64.b64decode(words), dtype="<u4")
    return Look(peak, motion, words, audio_error, video_error)
