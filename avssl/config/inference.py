"""The configs of the tools that embed media with a trained checkpoint, and that export one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl.bounds import COUNT, NOT_NEGATIVE, POSITIVE, bounded
from avssl.limits import LIMITS, MAX_CLIP_BYTES, MAX_PIXELS
from avssl.plugins import ImportsConfig
from avssl.training.settings import RuntimeConfig
from avssl.urls import keep_back


@bounded(
    clip_seconds=POSITIVE,
    num_frames=COUNT,
    frame_size=COUNT,
    channel=NOT_NEGATIVE,
    num_workers=NOT_NEGATIVE,
    clip_timeout=POSITIVE,
    **LIMITS,
)
@dataclass
class EmbedDataConfig:
    """What to embed, and how it is decoded.

    Args:
        name: A folder of media, a known name, a data YAML, a manifest (.parquet), or a .csv; default:
            the data of the checkpoint's run.
        root: Folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME.
        options: Options of the dataset, for example {fold: 1}.
        split: Split to embed; default: all rows.
        clip_seconds: Length of a window in seconds; default: that of the checkpoint's training.
        num_frames: Video frames per window; default: those of the checkpoint's training.
        frame_size: Side of the square frames that are decoded, in pixels; default: that of the checkpoint's training.
        channel: What is heard of several channels: the mean, or the number of one, from 0 on; default: that of the
            checkpoint's training.
        num_workers: Decoding processes; 0 decodes in the main process.
        clip_timeout: Seconds that a decoding process may take for a window, after which it is replaced and the window
            counts as unreadable.
        max_pixels: Width times height of the largest picture that is decoded; a file with larger ones counts as without
            pictures.
        max_clip_bytes: Bytes that the decoded sound or pictures of a window may take, after which it counts as
            unreadable.
    """

    name: str = ""
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    clip_seconds: float | None = None
    num_frames: int | None = None
    frame_size: int | None = None
    channel: int | Literal["mean"] | None = None
    num_workers: int = 1
    clip_timeout: float = 60.0
    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_CLIP_BYTES

    def __post_init__(self) -> None:
        self.name, self.options = keep_back(self.name), keep_back(self.options)


@bounded(num_windows=COUNT, hop=POSITIVE, batch_size=COUNT, part_size=COUNT)
@dataclass
class EmbedConfig(ImportsConfig):
    """Embeddings of any media by a trained checkpoint, one for each window, as a Parquet or .npz file.

    Args:
        checkpoint: A run folder, an exported encoder or a .ckpt file. A pretrained pair gives audio_embedding and
            video_embedding (by its projection for retrieval; compare by cosine), audio_features and video_features (of
            the encoders). An audio encoder gives audio_features; a classifier the features of the encoders that it has,
            and, of both together, fused_features: what its head sees.
        output: The file to write, .parquet or .npz; a summary in JSON is written beside it.
        data: What to embed.
        modalities: What is embedded; auto is all that the checkpoint takes, and only a pair leaves a choice. A clip
            without one of them is left out and listed.
        windows: center takes one window from the middle of each clip, uniform takes num_windows evenly spread ones, all
            takes one every hop seconds.
        num_windows: Windows of a clip with uniform.
        hop: Seconds from window to window with all; default: one after the other.
        batch_size: Windows per batch.
        part_size: Windows after which the work so far is kept on disk; a stopped run continues from there.
        runtime: Device and precision.
    """

    checkpoint: str
    output: Path
    data: EmbedDataConfig = field(default_factory=EmbedDataConfig)
    modalities: Literal["auto", "audio", "video", "both"] = "auto"
    windows: Literal["center", "uniform", "all"] = "center"
    num_windows: int = 4
    hop: float | None = None
    batch_size: int = 32
    part_size: int = 4096
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@bounded(clip_seconds=POSITIVE, channel=NOT_NEGATIVE, max_clips=COUNT, num_workers=NOT_NEGATIVE, **LIMITS)
@dataclass
class ExportDataConfig:
    """Real clips that the written file is compared on.

    Args:
        name: A folder of media, a known name, a data YAML, a manifest (.parquet), or a .csv; default: none,
            and the file is compared on noise alone.
        root: Folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME.
        options: Options of the dataset, for example {fold: 1}; default, on the data that the checkpoint was trained on:
            those of its training.
        clip_seconds: Length of a clip in seconds; default: that of the checkpoint's training.
        channel: What is heard of several channels: the mean, or the number of one; default: that of the training.
        max_clips: Clips at most, of the test split (without one: val, train), spread evenly over it.
        num_workers: Decoding processes; 0 decodes in the main process.
        max_pixels: Width times height of the largest picture that is decoded; a file with larger ones counts as without
            pictures.
        max_clip_bytes: Bytes that the decoded sound or pictures of a clip may take, after which it counts as
            unreadable.
    """

    name: str | None = None
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    clip_seconds: float | None = None
    channel: int | Literal["mean"] | None = None
    max_clips: int = 1000
    num_workers: int = 1
    max_pixels: int = MAX_PIXELS
    max_clip_bytes: int = MAX_CLIP_BYTES

    def __post_init__(self) -> None:
        self.name, self.options = keep_back(self.name), keep_back(self.options)


@bounded(tolerance=NOT_NEGATIVE, batch_size=COUNT, threads=NOT_NEGATIVE)
@dataclass
class ExportConfig(ImportsConfig):
    """A trained audio encoder or classifier as one file for other runtimes, compared with the model before it is kept.

    Args:
        checkpoint: A run folder, an exported encoder or a .ckpt file. A classifier of audio gives logits and features,
            an encoder, also the one of a pretrained pair, features.
        output: The file to write: .onnx, or .pt2 for torch.export. A summary in JSON is written beside it.
        input: What the file takes: a waveform, or a spectrogram that the frontend has made.
        quantize: int8 keeps the weights of the linear layers in 8 bits (.onnx only), and tells what that costs.
        data: Clips to compare on; labelled ones show the accuracy of both.
        tolerance: Largest difference from the model, in logits and features, with which a float32 file is kept.
        batch_size: Clips that are compared together.
        threads: Of onnxruntime and torch while comparing; 0 leaves them the choice.
    """

    checkpoint: str
    output: Path
    input: Literal["waveform", "spectrogram"] = "waveform"
    quantize: Literal["none", "int8"] = "none"
    data: ExportDataConfig = field(default_factory=ExportDataConfig)
    tolerance: float = 1e-4
    batch_size: int = 16
    threads: int = 0
