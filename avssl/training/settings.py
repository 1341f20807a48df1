"""What training can be told: optimizer, devices, logging and checkpoints; the command line reads it without torch."""

from dataclasses import dataclass, field
from typing import Literal

from avssl.bounds import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_0, SHARE_BELOW_1, Bound, bounded


@bounded(
    batch_size=COUNT,
    chunk=COUNT,
    accumulate=COUNT,
    epochs=POSITIVE,
    max_steps=COUNT,
    lr=POSITIVE,
    base_batch=COUNT,
    min_lr=NOT_NEGATIVE,
    warmup=SHARE,
    weight_decay=NOT_NEGATIVE,
    betas=SHARE_BELOW_1,
    clip_grad=NOT_NEGATIVE,
    layer_decay=SHARE_ABOVE_0,
    ema=SHARE_BELOW_1,
)
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


@bounded(devices=Bound(-1), num_nodes=COUNT, threads=COUNT)
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
        graphs: auto: on a GPU, in one process, training steps are CUDA graphs wherever they fit, which saves the
            processor launching thousands of kernels a step; they are compared with the plain code first, and keep
            their memory. Other shapes than the first, optim.chunk and evaluation go without. off: never.
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


@bounded(
    every=COUNT,
    validate_every=NOT_NEGATIVE,
    checkpoint_every=NOT_NEGATIVE,
    keep_every=NOT_NEGATIVE,
    patience=NOT_NEGATIVE,
)
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
