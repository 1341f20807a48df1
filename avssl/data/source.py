"""What a manifest's path stands for, opened for reading: a media file, or a sample of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avssl.data.media import AudioClip, Channel, MediaFile
from avssl.data.shards.layout import is_address
from avssl.data.shards.sample import CachedSample


def open_source(path: str | Path) -> MediaFile | CachedSample:
    """Opens the file, or the sample, of a row; both have ``audio`` and ``frames`` and are context managers."""
    return CachedSample(path) if is_address(str(path)) else MediaFile(path)


def read_audio(
    path: str | Path,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16000,
    channel: Channel = "mean",
) -> AudioClip:
    """``audio`` of a source that is opened for it; see :meth:`avssl.data.media.MediaFile.audio`."""
    with open_source(path) as source:
        return source.audio(start, duration, sample_rate, channel)


def read_frames(path: str | Path, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
    """``frames`` of a source that is opened for it; see :meth:`avssl.data.media.MediaFile.frames`."""
    with open_source(path) as source:
        return source.frames(times, size)
