"""The configs of the command lines, made of parts. Their defaults hold for any data and model: sizes are in recipes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl.augment.settings import AugmentConfig
from avssl.bounds import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, SHARE_BELOW_1, Bound, bounded
from avssl.data.settings import DataConfig
from avssl.limits import LIMITS, MAX_CLIP_BYTES, MAX_PIXELS
from avssl.models.settings import AudioConfig, BottleneckConfig, VideoConfig
from avssl.plugins import ImportsConfig
from avssl.training.settings import LogConfig, OptimConfig, RuntimeConfig, WandbConfig
from avssl.urls import keep_back


@bounded(embedding_dim=COUNT, time_bins=COUNT, teacher_momentum=SHARE, collapse_rank=NOT_NEGATIVE, seed=SEED)
@dataclass
class PretrainConfig(ImportsConfig):
    """Contrastive audio-visual pretraining on raw video.

    Args:
        data: What to train on.
        audio: The audio encoder.
        video: The video encoder.
        embedding_dim: Width of the embeddings that the objectives compare, of those that state none of their own.
        time_bins: Equal parts of a clip that the audio projections tell apart. 1 compares plain means, which makes the
            best features; more of them find the right instance by its timing.
        objectives: The terms of the loss: the name of each, its weight (1 by default), its projection (settings over
            its own, for example {layers: 3, width: 2048, norm: false}, or the name of the term whose projection it
            shares) and options. --list-objectives prints the names.
        retrieval: Term whose projection embeds clips for retrieval; default: the first that contrasts audio with video,
            else the first whose projection is trained for both, else the first that has one.
        teacher_momentum: Momentum of the teacher that some objectives learn from; default: as published, 0.996 rising
            to 1 for distill, 0.999 throughout for moco. A teacher remembers some 1 / (1 - momentum) steps: a run of a
            few hundred needs less, such as 0.99, or it learns from a teacher that is nearly its random start.
        augment: Batched augmentation.
        optim: Optimizer and schedule.
        runtime: Devices and precision.
        log: Logging and checkpoints.
        collapse_rank: Effective rank of the joint embedding below which a run is warned of as collapsing, once its
            warm-up is over; a collapsed one has 1. 0 never warns.
        online_probe: Fit a linear probe on the audio features at each validation, where the data has labels.
        wandb: Weights & Biases.
        tensorboard: Write TensorBoard event files, too, into tensorboard/ of the run.
        loggers: Further loggers, the name of each and its options, for example [{name: mine, every: 10}]; they are
            registered as plug-ins are.
        checkpoint: Weights to start from, at step 0 of a schedule of its own: a run, an exported encoder or a .ckpt
            file; default: random ones. Encoders whose settings are not given are the checkpoint's. An export or a
            classifier of sound has an audio encoder alone; what is new is said.
        output: Folder of the run; default: runs/pretrain-NAME.
        resume: auto continues the run that the output folder holds, if any; none starts over and keeps the old folder
            under another name; a path continues that checkpoint, on the same data and schedule.
        seed: Seed of everything random.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(val_fraction=0.1))
    audio: AudioConfig = field(default_factory=AudioConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    embedding_dim: int = 128
    time_bins: int = 1
    objectives: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "infonce"}])
    retrieval: str | None = None
    teacher_momentum: float | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    collapse_rank: float = 1.5
    online_probe: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False
    loggers: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: str | None = None
    output: Path | None = None
    resume: str = "auto"
    seed: int = 0


@bounded(label_smoothing=SHARE_BELOW_1, head_weights=POSITIVE, seed=SEED)
@dataclass
class FinetuneConfig(ImportsConfig):
    """Classification of audio, video or both, with a linear or a full head on the encoders.

    Args:
        data: What to train on.
        checkpoint: A pretraining run, an exported encoder or a .ckpt file; none starts from random weights; auto takes
            the pretraining run of the same data where there is one, and for the demo makes it first. Video needs a
            pretraining run or its .ckpt file.
        head: linear fits a linear probe on frozen features; full trains the head and the encoders.
        standardize: A full head from a checkpoint starts on features of mean 0 and deviation 1 over the training clips;
            false keeps those of the pretraining, which may be nearly alike for all clips. Not of a bottleneck fusion,
            which sees tokens, nor of a checkpoint's own head, which goes on for the same classes.
        compare_random: Train the same from random weights, too, in a folder beside this run's whose name ends in
            -random: result.json and the report then say what pretraining gains on the same test clips, and warn where
            it hurts.
        modality: What is classified: audio, video, or both.
        fusion: How both are fused: late puts their features side by side under the linear head; bottleneck exchanges
            tokens between them, and has layers to train: it needs head full.
        bottleneck: The bottleneck fusion.
        audio: The audio encoder; its model and frontend are the checkpoint's where one is given.
        video: The video encoder; the checkpoint's where one is given.
        augment: Batched augmentation of the full head's training.
        label_smoothing: Label smoothing of the cross-entropy, 0 to 1; also of the binary one of several labels a clip.
        head_weights: Weight of the loss of a head, for example {verb: 1.0, noun: 0.5}; 1 where none is given.
        objectives: Terms beside the cross-entropy of the full head, for example
            {name: imc, modality: audio, weight: 0.5}, or {name: avc} with both modalities.
        optim: Optimizer and schedule of the full head.
        runtime: Devices and precision.
        log: Logging and checkpoints.
        wandb: Weights & Biases.
        tensorboard: Write TensorBoard event files, too, into tensorboard/ of the run.
        loggers: Further loggers, the name of each and its options, for example [{name: mine, every: 10}]; they are
            registered as plug-ins are.
        output: Folder of the run; default: runs/finetune-NAME-HEAD-START, with the modality after HEAD where it is not
            audio.
        resume: auto continues the run that the output folder holds, if any; none starts over and keeps the old folder
            under another name; a path continues that checkpoint.
        seed: Seed of everything random.
    """

    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: str = "auto"
    head: Literal["linear", "full"] = "linear"
    standardize: bool = True
    compare_random: bool = False
    modality: Literal["audio", "video", "both"] = "audio"
    fusion: Literal["late", "bottleneck"] = "late"
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.1
    head_weights: dict[str, float] = field(default_factory=dict)
    objectives: list[dict[str, Any]] = field(default_factory=list)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False
    loggers: list[dict[str, Any]] = field(default_factory=list)
    output: Path | None = None
    resume: str = "auto"
    seed: int = 0


@bounded(folds=Bound(2), seeds=SEED)
@dataclass
class CrossvalConfig(FinetuneConfig):
    """Fine-tuning once per fold; every option of avssl finetune holds for each fold.

    Args:
        folds: official: the folds that the data set comes with. A number: as many random folds with equal shares of
            every class, drawn with the seed. OPTION=VALUES: a fold for each value of an option of the data set, for
            example fold=1..5 or held_out_speakers=[[george],[jackson]].
        group_by: Column or label head of the data whose values stay together: each value is the test split once, or,
            with a number of folds, the values are dealt out to that many folds.
        seeds: Seeds of the repetitions of all folds; default: seed alone.
    """

    folds: int | str = "official"
    group_by: str | None = None
    seeds: list[int] | None = None


@bounded(knn_k=COUNT, few_label_draws=COUNT, worst_classes=COUNT, sls=Bound(0, 5), batch_size=COUNT, seed=SEED)
@dataclass
class EvaluateConfig(ImportsConfig):
    """Evaluation of a pretrained pair, an audio encoder or a fine-tuned classifier.

    Args:
        checkpoint: A run folder, an exported encoder or a .ckpt file.
        data: What to evaluate on; default: the data of the checkpoint's run. Number and size of frames that are not
            given are those of that run, and so are, of a classifier on the data that it was fine-tuned on, the options
            and the clips' length and number.
        split: Split to evaluate; probe, knn and few_label are fitted on the training split.
        evaluations: What to do, of accuracy, retrieval, probe, knn, few_label, clustering, pictures, error_analysis,
            robustness, and for EPIC-Kitchens unseen_tail and, on its unlabelled test split, submission; default: all
            quick ones that apply, which leaves out few_label and robustness.
        knn_k: Neighbours that vote; default: chosen among 1, 5, 10, 20 and 50 by leaving one training clip out.
        few_label_draws: Random draws of each share of the training labels.
        worst_classes: Classes to look at in error_analysis.
        sls: Levels of supervision that the submission states, 0 to 5, of pretraining (3: self-supervised on public
            data, 4: also on EPIC-Kitchens), of labels and of training data (github.com/epic-kitchens/sls).
        cache: Keep embeddings under $AVSSL_CACHE/embeddings, and use those that are there; false embeds anew.
        batch_size: Clips per batch.
        runtime: Devices and precision.
        output: Folder of the result; default: evaluate-NAME inside the checkpoint's run.
        seed: Seed of everything random.
    """

    checkpoint: str
    data: DataConfig = field(default_factory=lambda: DataConfig(name=""))
    split: str = "test"
    evaluations: list[str] | None = None
    knn_k: int | None = None
    few_label_draws: int = 3
    worst_classes: int = 6
    sls: list[int] = field(default_factory=lambda: [3, 3, 3])
    cache: bool = True
    batch_size: int = 32
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    output: Path | None = None
    seed: int = 0


@bounded(clips=COUNT, views=COUNT, seed=SEED)
@dataclass
class AugmentSheetConfig(ImportsConfig):
    """A contact sheet of augmented clips, to look at and to listen to.

    Args:
        data: Where the clips come from: the split that pretraining trains on.
        audio: The frontend; its encoder is not used.
        video: The size of the frames' crop; its encoder is not used.
        augment: Batched augmentation.
        clips: Clips to show, which also are the batch that mix and mixup draw from.
        views: Augmented views of each clip.
        output: Folder of the sheet; default: runs/augment-NAME.
        seed: Seed of the choice of clips and of the augmentation.
    """

    data: DataConfig = field(default_factory=lambda: PretrainConfig().data)
    audio: AudioConfig = field(default_factory=AudioConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    clips: int = 4
    views: int = 3
    output: Path | None = None
    seed: int = 0


def _demo_of(config_class: type[Any]) -> Any:
    from avssl.config.resolution import demo_settings  # which resolves these classes

    return demo_settings(config_class)


@bounded(seed=SEED)
@dataclass
class DemoConfig(ImportsConfig):
    """The whole way on the demo set: pretraining, then four ways to a classifier, and a table of them.

    Args:
        output: Folder of the runs and of the summary.
        data: What to train on.
        pretrain: Settings of pretraining.
        finetune: Optimizer of the two full fine-tunings.
        augment: Augmentation of the two full fine-tunings.
        runtime: Devices and precision. One CPU thread trains: operators this small gain nothing from a second one,
            which decodes instead.
        wandb: Weights & Biases.
        tensorboard: Write TensorBoard event files, too, into tensorboard/ of each run.
        loggers: Further loggers of each run, as in pretraining.
        seed: Seed of everything random.
    """

    output: Path = Path("runs/demo")
    data: DataConfig = field(default_factory=lambda: _demo_of(FinetuneConfig).data)
    pretrain: OptimConfig = field(default_factory=lambda: _demo_of(PretrainConfig).optim)
    finetune: OptimConfig = field(default_factory=lambda: _demo_of(FinetuneConfig).optim)
    augment: AugmentConfig = field(default_factory=lambda: _demo_of(FinetuneConfig).augment)
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(threads=1))
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False
    loggers: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0


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
