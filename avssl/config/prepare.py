"""What to prepare: the options of the listing and checking of data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl.limits import MAX_CLIP_BYTES, MAX_PIXELS


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare.

    Args:
        data: See :func:`avssl.data.catalog.find_entry`.
        root: Folder of the media; None: the data YAML's, else ``$AVSSL_DATA/NAME``.
        options: Options of the data set.
        output: The manifest (.parquet), beside which its summary and page are written (.json, .html); None:
            runs/prepare-NAME/NAME.parquet.
        workers: Processes that read files; None: one per core.
        deep: Decode every clip, which finds silence, stills, duplicates and streams that break off.
        stats: Take the statistics of the log-mel spectrogram over the training split.
        channel: What is heard of several channels: "mean", or the number of one, from 0 on.
        clips, seed, sample_rate, num_mels, clip_seconds: See :func:`avssl.data.stats.logmel_stats`; ``clip_seconds``
            None: the data's own, half of which also is what is called a short clip.
        max_pixels, max_clip_bytes: See :class:`avssl.config.DataConfig`.
        progress: Show progress.
    """

    data: str
    output: Path | None = None
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    workers: int | None = None
    deep: bool = False
    stats: bool = False
    clips: int = 10_000
    seed: int = 0
    sample_rate: int = 16000
    num_mels: int = 128
    channel: int | Literal["mean"] = "mean"
    clip_seconds: float | None = None
    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_CLIP_BYTES
    progress: bool = True
