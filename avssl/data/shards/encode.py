"""A span of a media file -> the bytes of a cached sample."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from avssl.data.file_stats import unchanged
from avssl.data.media import Channel, MediaError, MediaFile
from avssl.data.media.audio import check_channel
from avssl.data.media.container import ROUNDING
from avssl.data.media.errors import raise_if_machine
from avssl.data.shards.store import WAV_HEADER, crc, header_of, pack
from avssl.files import atomic_path

# Frames are decoded so many seconds at a time: an hour of them would not fit into memory.
WINDOW = 20.0
# More than any camera of these data sets takes; grids of instants as fine as that still fit into memory.
_MOST_FPS = 1000
# Seconds of sound that share a checksum; a clip reads whole blocks.
_BLOCK = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """How samples are made; all samples of a cache share them.

    Args:
        short_side: Pixels of the frames' short side; smaller originals keep their size.
        fps: Frames kept per second at most; None keeps all.
        quality: Of the JPEGs, 1 to 95.
        sample_rate: Hz of the sound.
        modalities: What is kept, of "audio" and "video".
        channel: Of the sound: "mean" of all, or the number of one.

    Raises:
        ValueError: one of them makes no sense.
    """

    short_side: int = 128
    fps: float | None = None
    quality: int = 90
    sample_rate: int = 16000
    modalities: tuple[str, ...] = ("audio", "video")
    channel: Channel = "mean"

    def __post_init__(self) -> None:
        for name in ("short_side", "sample_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps <= _MOST_FPS:
            raise ValueError(f"fps: must be above 0 and at most {_MOST_FPS}, got {self.fps:g}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality: must be 1 to 95, got {self.quality}")
        check_channel(self.channel)
        if not self.modalities or not set(self.modalities) <= {"audio", "video"}:
            raise ValueError(f"modalities: must be audio, video or both, got {list(self.modalities)}")


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to make.

    Attributes:
        path: The media file.
        part: Where the sample's bytes go; beside it, with the suffix .error, goes why there are none.
        key: Its name in the shard.
        start, end: Seconds of the file.
        audio, video: Between which of them each stream runs; None where the file has none.
        about: What its JSON says besides: "source" and "clips".
        settings: How.
        file_bytes, file_modified: Of the file at the scan, see :func:`avssl.data.file_stats.unchanged`.
    """

    path: str
    part: str
    key: str
    start: float
    end: float
    audio: tuple[float, float] | None
    video: tuple[float, float] | None
    about: dict[str, Any]
    settings: Settings
    file_bytes: int | None = None
    file_modified: int | None = None


@dataclass(frozen=True, slots=True)
class EncodingResult:
    """What became of a job.

    Attributes:
        key: Of the sample.
        size, header, crc: See :class:`avssl.data.shards.store.Address`; 0 where there is no sample.
        errors: "audio", "video" -> why it is not there, for what the file should have.
        facts: Columns of the manifest that the cache changes: has_audio, has_video, sample_rate, width ...
    """

    key: str
    size: int = 0
    header: int = 0
    crc: int = 0
    errors: dict[str, str] | None = None
    facts: dict[str, Any] | None = None

    @property
    def reason(self) -> str:
        """Why there is no sample, in a phrase fit for counting; "" where there is one."""
        return "" if self.size else next(iter((self.errors or {}).values()), "nothing to read").split(" (")[0]


def write_sample(job: Job) -> EncodingResult:
    """Writes the sample, whole or not at all, or why there is none; a finished one is kept. Never raises MediaError.

    Of a file that changed since the scan nothing is written.
    """
    part = Path(job.part)
    if part.is_file():
        return describe(job.key, part.read_bytes())
    failed = part.with_suffix(".error")
    if failed.is_file():
        return EncodingResult(job.key, errors=json.loads(failed.read_text(encoding="utf-8")))
    try:
        with unchanged(job.path, job.file_bytes, job.file_modified):
            data, errors = encode(job)
    except MediaError as error:
        return EncodingResult(job.key, errors={"audio" if job.audio else "video": f"{error.reason} ({error.detail})"})
    with atomic_path(part if data else failed) as temporary:
        temporary.write_bytes(data or json.dumps(errors).encode())
    return describe(job.key, data) if data else EncodingResult(job.key, errors=errors)


def describe(key: str, part: bytes) -> EncodingResult:
    """What `write_sample` says of a sample's bytes."""
    header = header_of(part)
    about = json.loads(header)
    sound, frames = about.get("sound"), about.get("frames")
    facts: dict[str, Any] = {"has_audio": sound is not None, "has_video": frames is not None}
    facts |= {} if sound is None else {"sample_rate": sound["sample_rate"], "channels": 1}
    if frames is not None:
        facts |= {"width": frames["size"][0], "height": frames["size"][1]}
        low, high = frames["span"]
        facts["fps"] = len(frames["starts"]) / (high - low)
    return EncodingResult(key, len(part), len(header), crc(header), about["errors"], facts)


def encode(job: Job) -> tuple[bytes, dict[str, str]]:
    """The sample's bytes, b"" where neither sound nor pictures can be had, and why what is missing is.

    Its JSON holds ``source`` (the file, relative to the data's root), ``start`` and ``end`` (seconds in it), ``clips``
    (id, split and labels of the rows), ``errors``, and

    - ``frames``: ``size`` and ``original`` (width, height), upright; the ``span`` (seconds in the file) that they are
      of, and of every frame its ``starts`` (seconds in the file), ``bytes`` and ``crc``;
    - ``sound``: ``sample_rate``, ``channel``, the ``start`` (seconds in the file) of its first sample, ``samples``, the
      value of full ``scale``, the ``intervals`` that have sound and the ``extent`` that should (seconds in the file),
      and the ``crc`` of every ``block`` samples.
    """
    about: dict[str, Any] = {**job.about, "start": job.start, "end": job.end, "errors": {}}
    members: dict[str, bytes] = {}
    with MediaFile(job.path) as file:
        for name, span, read in (("audio", job.audio, _sound), ("video", job.video, _frames)):
            if span and name in job.settings.modalities:
                try:
                    read(job, span, file, about, members)
                except (MediaError, av.FFmpegError) as error:
                    raise_if_machine(error, job.path)
                    reason = error.reason if isinstance(error, MediaError) else "does not decode"
                    detail = error.detail if isinstance(error, MediaError) else str(error)
                    about["errors"][name] = reason + (f" ({detail})" if detail else "")
    if not members:
        return b"", about["errors"]
    header = json.dumps(about, separators=(",", ":")).encode()
    ordered = {"json": header} | {extension: members[extension] for extension in sorted(members)}
    return pack(job.key, ordered), about["errors"]


def _sound(
    job: Job, span: tuple[float, float], file: MediaFile, about: dict[str, Any], members: dict[str, bytes]
) -> None:
    rate, (low, high) = job.settings.sample_rate, span
    sound = file.sound(low, high - low, rate, job.settings.channel)
    if not sound.intervals:
        raise MediaError(job.path, "no audio in span", f"{low:.2f} to {high:.2f} s")
    # Lossy codecs overshoot full scale; what is louder is stored softer rather than clipped.
    scale = max(1.0, float(np.abs(sound.waveform).max()))
    integers = np.clip(np.rint(sound.waveform * (32768.0 / scale)), -32768, 32767).astype("<i2").tobytes()
    block = _BLOCK * rate
    about["sound"] = {
        "sample_rate": rate,
        "channel": job.settings.channel,
        "start": low,
        "samples": len(integers) // 2,
        "scale": scale,
        "intervals": sound.intervals,
        "extent": sound.extent,
        "block": block,
        "crc": [crc(integers[k : k + 2 * block]) for k in range(0, len(integers), 2 * block)],
    }
    members["wav"] = _wav_header(len(integers), rate) + integers


def _wav_header(size: int, rate: int) -> bytes:
    header = (
        b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    )
    header += b"data" + struct.pack("<I", size)
    assert len(header) == WAV_HEADER
    return header


def _frames(
    job: Job, span: tuple[float, float], file: MediaFile, about: dict[str, Any], members: dict[str, bytes]
) -> None:
    settings = job.settings
    original = file.frame_size()
    side = min(settings.short_side, *original)
    starts: list[float] = []
    images: list[bytes] = []
    size = original
    for times in _windows(span, settings.fps, file):
        for start, frame in zip(times.tolist(), file.frames(np.maximum(times, 0.0), side), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=settings.quality)
            starts.append(start)
            images.append(buffer.getvalue())
            size = (frame.shape[1], frame.shape[0])
    about["frames"] = {
        "size": size,
        "original": original,
        "span": span,
        "starts": [round(start, 6) for start in starts],
        "bytes": [len(image) for image in images],
        "crc": [crc(image) for image in images],
    }
    members["mjpeg"] = b"".join(images)


def _windows(span: tuple[float, float], fps: float | None, file: MediaFile) -> Iterator[np.ndarray]:
    """Start of every frame to keep: those on screen at any time of the span, or at every 1 / fps seconds of it."""
    last = -np.inf
    start, end = span
    low = start
    while low < end:
        high = min(low + WINDOW, end)
        starts = file.frame_starts(low, high)
        kept = starts
        if fps is not None:
            count = int(np.ceil((high - start) * fps))
            grid = start + np.arange(int(np.ceil((low - start) * fps)), count) / fps
            shown = np.searchsorted(starts, grid + ROUNDING, side="right") - 1
            kept = starts[np.unique(np.maximum(shown, 0))]
        kept = kept[kept > last]  # the one on screen at the border was kept with the window before
        if len(kept):
            last = kept[-1]
            yield kept
        low = high
