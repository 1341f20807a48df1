"""What data can be told: which they are, how they are divided, decoded, prepared and cached.

The command line reads it without torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl.bounds import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, SHARE_ABOVE_0, SHARE_BELOW_1, Bound, bounded
from avssl.limits import LIMITS, MAX_CLIP_BYTES, MAX_PIXELS, MAX_SAMPLE_BYTES
from avssl.plugins import ImportsConfig
from avssl.urls import keep_back


@bounded(
    clip_seconds=POSITIVE,
    num_frames=COUNT,
    frame_size=COUNT,
    channel=NOT_NEGATIVE,
    eval_clips=COUNT,
    train_clips=COUNT,
    val_fraction=SHARE_BELOW_1,
    test_fraction=SHARE_BELOW_1,
    train_fraction=SHARE_ABOVE_0,
    shard_buffer=COUNT,
    num_workers=NOT_NEGATIVE,
    max_failures=SHARE,
    clip_timeout=POSITIVE,
    **LIMITS,
)
@dataclass
class DataConfig:
    """What to train and evaluate on.

    Args:
        name: A known name (demo, esc50, vggsound, epic-kitchens ...), a data YAML, a manifest (.parquet),
            a .csv, a folder of media, or a cache (a folder or a URL that avssl cache wrote).
        root: Folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME.
        options: Options of the dataset, for example {fold: 1} or {held_out_speakers: [lucas]}.
        clip_seconds: Length of a clip in seconds; default: as the data state it.
        num_frames: Video frames per clip, spread evenly over it; default: the video encoder's own number.
        frame_size: Side of the square frames that are decoded, in pixels, before the augmentation's crop; default: 8/7
            of the crop.
        channel: What is heard of a recording of several channels: the mean of all, or the number of one, from 0 on.
            Where channels are each other's opposite, their mean is silence: prepare.py --deep counts such clips.
        eval_clips: Clips per item in evaluation: 1 takes the centre, N takes N uniform ones and averages; default: as
            the data state it.
        eval_average: What of a classifier is averaged over several clips: probabilities (softmax, or sigmoid of several
            labels a clip) or logits; default: as the data state it.
        train_clips: Random clips of each item in a training batch; with several, objectives can tell times of one
            video apart (sync).
        heads: Label heads to train on; default: the head that the data state, or all of theirs where none is.
        val_fraction: Share of the training split held out for validation where the data has no split of that name;
            clips of one file, recording, video or speaker stay on one side.
        test_fraction: The same for the test of a classifier, with every class in it, where the data has neither a split
            test nor val, and the same clips for every seed; 0 asks for one of these splits.
        train_fraction: Share of the training split to train on: the same of every class of the first head, at least one
            clip of each, drawn with the seed. Validation and test are not affected.
        sampling: Order of the training clips: shuffle takes each once an epoch; balanced draws as many with
            replacement, by the sum of 1 / (clips of the class) over the labels of a clip; shards takes each once, and a
            few shards of a cache at a time, for places that are slow to jump about in.
        shard_buffer: Shards at a time where sampling is shards.
        num_workers: Decoding processes; 0 decodes in the training process.
        clip_timeout: Seconds that a decoding process may take for a clip, after which it is replaced and the clip
            counts as failed; without decoding processes there is no limit.
        max_pixels: Width times height of the largest picture that is decoded; a file with larger ones counts as without
            pictures.
        max_clip_bytes: Bytes that the decoded sound or pictures of a clip may take, after which it counts as failed.
        max_failures: Share of unreadable clips above which training aborts, naming the first cause.
    """

    name: str = "demo"
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    clip_seconds: float | None = None
    num_frames: int | None = None
    frame_size: int | None = None
    channel: int | Literal["mean"] = "mean"
    eval_clips: int | None = None
    eval_average: Literal["probabilities", "logits"] | None = None
    train_clips: int = 1
    heads: list[str] | None = None
    val_fraction: float = 0.0
    test_fraction: float = 0.2
    train_fraction: float = 1.0
    sampling: Literal["shuffle", "balanced", "shards"] = "shuffle"
    shard_buffer: int = 8
    num_workers: int = 1
    clip_timeout: float = 60.0
    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_CLIP_BYTES
    max_failures: float = 0.2

    def __post_init__(self) -> None:
        self.name, self.options = keep_back(self.name), keep_back(self.options)


@bounded(
    workers=NOT_NEGATIVE,
    clips=COUNT,
    seed=SEED,
    sample_rate=COUNT,
    num_mels=COUNT,
    channel=NOT_NEGATIVE,
    clip_seconds=POSITIVE,
    **LIMITS,
)
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


@bounded(**LIMITS)
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


@bounded(
    short_side=COUNT,
    fps=POSITIVE,
    quality=Bound(1, 95),
    sample_rate=COUNT,
    channel=NOT_NEGATIVE,
    samples_per_shard=COUNT,
    workers=NOT_NEGATIVE,
)
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
