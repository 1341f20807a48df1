"""The config of the offline cache."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl.config.parts import ImportsConfig
from avssl.limits import MAX_PIXELS, MAX_SAMPLE_BYTES
from avssl.urls import keep_back


@dataclass
class SourceConfig:
    """What to cache.

    Args:
        name: A known name (demo, grid, vggsound ...), a data YAML, a manifest (.parquet), a .csv, or a folder
            of media.
        root: Folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME.
        options: Options of the dataset, for example {lists: full}.
        max_pixels: Width times height of the largest picture that is decoded; a file with larger ones counts as without
            pictures.
        max_clip_bytes: Bytes that the decoded sound or pictures of a sample may take, after which it counts as failed.
    """

    name: str = "demo"
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_SAMPLE_BYTES

    def __post_init__(self) -> None:
        self.name, self.options = keep_back(self.name), keep_back(self.options)


@dataclass
class CacheConfig(ImportsConfig):
    """Caches a data set once, as small frames and 16 kHz sound in WebDataset shards, which train 20 times faster.

    A killed run, started again with the same arguments, goes on where it was. The other tools read it by
    ``--data OUTPUT``.

    Args:
        output: Folder of the cache, or a URL that fsspec writes to (s3://bucket/name, gs:// ...).
        data: What to cache.
        short_side: Pixels of the frames' short side, at least the data.frame_size of the runs to come.
        fps: Frames kept a second at most; default: all, so that clips have the frames that they have of the originals.
        quality: Of the JPEG frames, 1 to 95.
        sample_rate: Of the sound, in Hz.
        modalities: What is kept: audio, video, or both.
        channel: What is kept of several channels: the mean of all, or the number of one, from 0 on; runs on the cache
            take the same by data.channel.
        samples_per_shard: Samples of a shard; a clip, or each span of a file that is one, is a sample.
        workers: Processes; default: one for each core; 0 works in this one.
        verify: Check every byte of a finished cache against its checksums, and write nothing.
    """

    output: str
    data: SourceConfig = field(default_factory=SourceConfig)
    short_side: int = 128
    fps: float | None = None
    quality: int = 90
    sample_rate: int = 16000
    modalities: list[Literal["audio", "video"]] = field(default_factory=lambda: ["audio", "video"])
    channel: int | Literal["mean"] = "mean"
    samples_per_shard: int = 128
    workers: int | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output = keep_back(self.output)
