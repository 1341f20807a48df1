"""The parts of a config: data, models, augmentation, objectives, optimizer, devices, logging."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avssl import plugins
from avssl.limits import MAX_CLIP_BYTES, MAX_PIXELS
from avssl.urls import keep_back

# Options of a model that its weights do not depend on: a recipe's hold for the model of a checkpoint, too.
REGULARIZATION = ("drop_path", "mask_padding")


@dataclass(kw_only=True)
class ImportsConfig:
    """What every command takes beside its own settings.

    Args:
        imports: Plug-ins to import first, modules or .py files, which register objectives, data sets, encoders,
            evaluations or loggers; --import NAME adds one. A run records all of its process, by which it is found
            again.
    """

    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.imports = plugins.load(self.imports)


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


@dataclass
class AudioConfig:
    """The audio encoder and its frontend. What is not given is the checkpoint's where one is given.

    Args:
        model: A name that ``python -m mast`` prints: mast_base ... mast_nano, ast_base; or timm/NAME, a backbone of
            timm, or hf/PATH, a folder of transformers' AST; or one of a plug-in; default: mast_pico.
        options: Keyword arguments of the model, for example {drop_path: 0.1}, over those that its name stands for.
        sample_rate: Rate that audio is resampled to, in Hz; default: 16000.
        num_mels: Mel bins of the log-mel spectrogram; default: the model's own number.
        mean: Mean of the log-mel over the data, subtracted; default: the frontend's own.
        std: Standard deviation of the log-mel over the data; default: the frontend's own.
        divide_by: What the log-mel less its mean is divided by: 2*std, as AST, or std, as CAV-MAE; default: 2*std.
        frame_shift_ms: Time from one frame to the next, in milliseconds; default: 10.
        fixed_frames: Frames that every spectrogram gets, as AST's 1024 for 10 s: filled up with 0 before the
            normalization, or cut; default: the clip's own.
        pad: What stands behind a sound that is shorter than a clip: wave (the spectrum of silence), zero (0 before the
            normalization, as AST and CAV-MAE), edge (its last frame, as Auditory SlowFast), repeat (the sound again);
            default: wave. Beside a checkpoint it may be another than that of its training.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sample_rate: int | None = None
    num_mels: int | None = None
    mean: float | None = None
    std: float | None = None
    divide_by: Literal["2*std", "std"] | None = None
    frame_shift_ms: float | None = None
    fixed_frames: int | None = None
    pad: Literal["wave", "zero", "edge", "repeat"] | None = None


@dataclass
class VideoConfig:
    """The video encoder. What is not given is the checkpoint's where one is given.

    Args:
        model: tiny, tiny_motion, mvit_v2_s, r2plus1d_18, swin3d_t or s3d, or one of a plug-in; default: tiny.
        options: Keyword arguments of the encoder: mvit_v2_s takes {scaled_positions: true}, which divides the scores of
            its relative positions by sqrt(dim), as MViTv2's equation 4 is printed; default: as its authors' code.
        pretrained: Start from torchvision's Kinetics-400 weights (downloads them on first use).
        crop_size: Side of the square frames that the encoder sees, in pixels; default: the encoder's own size.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    crop_size: int | None = None


@dataclass
class BottleneckConfig:
    """Fusion through bottleneck tokens (MBT): transformer layers upon the tokens of both encoders.

    Args:
        tokens: Bottleneck tokens, the only way between the modalities.
        width: Channels of the layers.
        depth: Layers of each modality.
        start: First layer that sees the bottleneck; the ones before it see their own modality only.
        heads: Attention heads.
        dropout: Dropout within the layers.
    """

    tokens: int = 4
    width: int = 256
    depth: int = 3
    start: int = 0
    heads: int = 4
    dropout: float = 0.0


@dataclass
class OptimConfig:
    """Optimizer and schedule: AdamW, linear warm-up, cosine decay.

    Args:
        batch_size: Clips per step and process, accumulation apart.
        chunk: Clips encoded at a time in pretraining; none encodes the batch at once. With it, the contrast still spans
            the whole batch and its gradients are the same, at the memory of a chunk and about 4/3 of the time.
        accumulate: Batches whose gradients are summed before a step; each batch is contrasted on its own.
        epochs: Passes over the training split.
        max_steps: Optimizer steps; overrides epochs.
        lr: Peak learning rate.
        lr_scaling: How lr grows with the clips of a step over all processes: linear or sqrt from base_batch, or none.
        base_batch: Clips of a step that lr is meant for.
        min_lr: Learning rate at the end.
        warmup: Warm-up, as a share of all steps.
        weight_decay: Weight decay of matrices; biases, norms, relative positions and temperatures have none.
        betas: AdamW's betas.
        clip_grad: Largest gradient norm; 0 turns clipping off.
        layer_decay: Factor of the learning rate from each layer of the audio encoder to the one below it; 1 for none.
        ema: Decay of an exponential moving average of the weights, which is then evaluated and exported; none for none.
    """

    batch_size: int = 32
    chunk: int | None = None
    accumulate: int = 1
    epochs: float = 16
    max_steps: int | None = None
    lr: float = 5e-4
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    base_batch: int = 256
    min_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_grad: float = 1.0
    layer_decay: float = 1.0
    ema: float | None = None


@dataclass
class RuntimeConfig:
    """Where and how the run computes (Lightning Fabric's terms).

    Args:
        accelerator: cpu, cuda, mps or auto.
        devices: Number of devices of this machine, or auto. ``torchrun`` sets it itself.
        num_nodes: Number of machines.
        strategy: auto (ddp for several processes), ddp, or fsdp (FSDP2: shards parameters and optimizer state).
        precision: 32-true, bf16-mixed (slow on a CPU without AVX512 or AMX), or 16-mixed (fp16 with a gradient scaler;
            GPU only, a CPU uses bf16).
        matmul: Precision of float32 products on a GPU: highest, high (TF32) or medium.
        backend: What computes the blocks of MAST and AST (``mast.accelerate``): auto (the fastest that equals their
            plain code on the device), reference (the plain code), cpu or cuda (the kernels of this device alone).
        compile: Compile the encoders with torch.compile.
        graphs: auto: on a GPU, in one process, an encoder's training passes are CUDA graphs wherever they fit, which
            saves the processor launching thousands of kernels a step; they are compared with the plain passes first,
            and keep their memory. Other shapes than the first, optim.chunk and evaluation go without. off: never.
        checkpoint_activations: Keep only the input of each encoder block and compute the rest again when needed.
        threads: CPU threads of the process that trains; default: torch's own. In evaluation and embedding the default
            leaves a core for each process that decodes.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    matmul: Literal["highest", "high", "medium"] = "high"
    backend: Literal["auto", "reference", "cpu", "cuda"] = "auto"
    compile: bool = False
    graphs: Literal["auto", "off"] = "off"
    checkpoint_activations: bool = False
    threads: int | None = None


@dataclass
class LogConfig:
    """What is logged and saved, and how often.

    Args:
        every: Steps between rows of metrics.jsonl.
        validate_every: Steps between validations; 0 validates at the end only.
        checkpoint_every: Steps between saves of last.ckpt; 0 saves at the end and on a signal only. The one before
            stays as previous.ckpt.
        keep_every: Steps between checkpoints that are kept (step-N.ckpt); 0 keeps none.
        patience: Validations without improvement after which the run ends; 0 never ends early.
        use: Weights that are evaluated and exported: best (best.ckpt, of the validation with the highest score, the
            latest of equal ones, where there is a validation split), or last.
    """

    every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 100
    keep_every: int = 0
    patience: int = 0
    use: Literal["best", "last"] = "best"


@dataclass
class WandbConfig:
    """Weights & Biases. What is not given is taken from its environment variables (WANDB_MODE, WANDB_PROJECT, ...).

    Args:
        mode: online, offline or disabled; default: online with a login and a server that answers, else offline.
        project: Project that the run belongs to; default: avssl.
        entity: User or team; default: the login's own.
        name: Name of the run; default: the output folder's name.
        group: Group that the run belongs to; default: none, and for a cross-validation its folder's name.
        notes: Notes on the run, shown beside it.
        tags: Tags of the run.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
