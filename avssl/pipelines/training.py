"""From a config to the engine that trains its task: optimizer, schedule and augmentation."""

import logging
from typing import Any

import torch
import torch._dynamo
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import (
    AugmentConfig,
    FinetuneConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    to_dict,
)
from avssl.data.failures import FailureMonitor
from avssl.data.mixup import SetMixup
from avssl.data.shards.index import shard_numbers
from avssl.evaluation.embeddings import model_digest
from avssl.models.blocks import checkpoint_activations, encoder_blocks
from avssl.pipelines.data import Splits
from avssl.training.engine import Engine, Schedule, Task
from avssl.training.estimate import tell_long_run
from avssl.training.launch import check_alike
from avssl.training.optimizer import make_optimizer, make_scheduler, scaled_lr
from avssl.training.run import Run, by_dotted_name
from mast.fast.cuda.graphs import graph_training

logger = logging.getLogger(__name__)


def build_engine(
    config: PretrainConfig | FinetuneConfig,
    fabric: Fabric,
    run: Run,
    task: Task,
    splits: Splits,
    *,
    monitor: str,
    settings: dict[str, Any],
) -> Engine:
    """The engine of ``task``, where the run's checkpoint left off if it has one.

    Args:
        config: Its ``optim``, ``log``, ``data.max_failures`` and ``seed`` are used.
        fabric: Launched Fabric.
        run: Folder, tracker and checkpoints of the run.
        task: What is trained.
        splits: Its training clips with the epochs give the number of steps.
        monitor: Validation metric, higher is better, that chooses the best checkpoint.
        settings: Plain values saved beside the weights, which rebuild the model.
    """
    optim, log = config.optim, config.log
    steps = total_steps(optim, len(splits.train), fabric.world_size)
    batch = optim.batch_size * optim.accumulate * fabric.world_size
    lr = scaled_lr(optim.lr, optim.lr_scaling, batch, optim.base_batch)
    if lr != optim.lr:
        logger.info("learning rate %g for %d clips a step (%g for %d)", lr, batch, optim.lr, optim.base_batch)

    def optimizer_of(module: Task) -> Optimizer:
        return make_optimizer(
            module,
            lr=lr,
            weight_decay=optim.weight_decay,
            betas=optim.betas,
            layer_decay=optim.layer_decay,
            fused=config.runtime.precision != "16-mixed",
        )

    def scheduler_of(optimizer: Optimizer) -> Any:
        return make_scheduler(optimizer, max_steps=steps, warmup=optim.warmup, lr=lr, min_lr=optim.min_lr)

    schedule = Schedule(
        max_steps=steps,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        log_every=log.every,
        validate_every=log.validate_every,
        checkpoint_every=log.checkpoint_every,
        keep_every=log.keep_every,
        monitor=monitor,
        patience=log.patience,
    )
    engine = Engine(
        fabric,
        task,
        optimizer_of,
        scheduler_of,
        schedule,
        run.tracker,
        run.store,
        FailureMonitor(config.data.max_failures),
        settings
        | {"global_batch": optim.batch_size * fabric.world_size, "manifest": splits.digest, "config": to_dict(config)},
        config.seed,
        optim.ema,
    )
    if run.checkpoint:
        engine.resume(run.checkpoint)
        if engine.progress.step != run.step:
            raise ValueError(
                f"resume: {run.checkpoint} was of step {run.step} and is of step {engine.progress.step} now: another "
                "run is writing it; wait for that, or copy the file"
            )
        check_alike(fabric, {f"of {run.checkpoint} the step": engine.progress.step})
    return engine


def choose_weights(engine: Engine, config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Puts the weights that ``log.use`` asks for into the model, and says which, for result.json.

    Returns:
        ``use`` (best or last), their ``step``, and of the best the ``metric`` that chose them with its ``value``.
    """
    progress = engine.progress
    if config.log.use == "best" and engine.use_best():
        metric = f"val/{engine.schedule.monitor}"
        logger.info("using the weights of step %d of %d, the best by %s", progress.best_step, progress.step, metric)
        return {"use": "best", "step": progress.best_step, "metric": metric, "value": progress.best}
    return {"use": "last", "step": progress.step}


def check_training(
    config: PretrainConfig | FinetuneConfig, fabric: Fabric, run: Run, task: nn.Module, splits: Splits
) -> None:
    """Refuses, before anything is written, batches that cannot be made or trained with, another run's progress, and
    processes that differ in settings, data or weights; and says how long a long run will take where there is no GPU.

    Raises:
        ValueError: naming the setting, or the process.
        DataError: the data cannot be sampled as ``data.sampling`` says.
    """
    clips = len(splits.train)
    steps = total_steps(config.optim, clips, fabric.world_size)
    if fabric.world_size > 1:
        check_alike(fabric, _same_everywhere(config, task, splits))
    run.check_data(splits, steps)
    if fabric.device.type == "cpu" and fabric.is_global_zero:
        seen = steps * config.optim.batch_size * config.optim.accumulate * config.data.train_clips
        tell_long_run(config, seen, splits.protocol.seconds)
    if config.data.sampling == "shards":
        shard_numbers(splits.train)
    if fabric.world_size > 1 and fabric.device.type == "cuda":  # batch norms then see the clips of all processes
        return
    norms = [name for name, layer in task.named_modules() if isinstance(layer, nn.BatchNorm1d)]
    size = min(config.optim.batch_size, max(1, clips // fabric.world_size)) * config.data.train_clips
    if norms and size < 2:
        few = "" if config.optim.batch_size < 2 else f" (the training split has {clips})"
        raise ValueError(
            f"optim.batch_size: 1 clip at a time{few}, of which the batch norm in {norms[0]} has no statistics: at "
            "least 2 are needed"
        )


# Settings that may be others in each process: where things are, and how many there are to do the work.
_OWN_SETTINGS = (
    "output",
    "wandb",
    "tensorboard",
    "loggers",
    "imports",
    "data.root",
    "data.num_workers",
    "data.clip_timeout",
    "runtime.threads",
)


def _same_everywhere(config: PretrainConfig | FinetuneConfig, task: nn.Module, splits: Splits) -> dict[str, Any]:
    """What has to be the same in all processes of a run: of other clips they would train on a mixture."""
    own = {f"{name}." for name in _OWN_SETTINGS}
    settings = {
        key: value
        for key, value in by_dotted_name(to_dict(config), config).items()
        if not f"{key}.".startswith(tuple(own))
    }
    return {f"the setting {key}": value for key, value in settings.items()} | {
        "torch": torch.__version__,
        "data of the digest": splits.digest,
        "training clips": len(splits.train),
        "training clips of the digest": splits.train.digest,
        "media files of together so many bytes": sum(filter(None, splits.train.column("file_bytes"))),
        "first weights of the digest": model_digest(task, settings={}),
    }


def prepare_encoders(runtime: RuntimeConfig, fabric: Fabric, *encoders: nn.Module) -> None:
    """Activation checkpointing, compilation and CUDA graphs of ``encoders``, in place, as ``runtime`` asks for them."""
    on_gpu = fabric.device.type == "cuda"
    for encoder in encoders:
        if runtime.compile and on_gpu:  # compiled code compares no kernels with the plain code: it is done before
            mast.accelerate(encoder.to(fabric.device), runtime.backend)
        if runtime.checkpoint_activations:
            checkpoint_activations(encoder)
        if runtime.compile:
            # Block by block: equal ones share their code. Sizes differ between stages, and each deserves its own code.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            for block in encoder_blocks(encoder):
                block.compile(dynamic=False)
        if runtime.graphs == "auto" and on_gpu and fabric.world_size == 1:
            graph_training(encoder)
    if runtime.graphs == "auto" and on_gpu and fabric.world_size > 1:
        logger.info("runtime.graphs: several processes train without CUDA graphs")


def total_steps(optim: OptimConfig, clips: int, world_size: int) -> int:
    """Optimizer steps of a run: ``max_steps``, or as many as ``epochs`` passes take."""
    if optim.max_steps is not None:
        return optim.max_steps
    per_epoch = max(1, clips // (optim.batch_size * world_size * optim.accumulate))
    return max(1, round(optim.epochs * per_epoch))


def wave_augment(config: AugmentConfig) -> WaveAugment:
    """Waveform augmentation of ``config``."""
    return WaveAugment(
        config.gain_db, config.time_shift, config.noise_db, config.noise_color, config.mix, config.mix_db
    )


def set_mixup(config: AugmentConfig) -> SetMixup | None:
    """Mixup of clips while they are read; None where ``config`` asks for none or for another kind."""
    return SetMixup(*config.mixup.numbers()) if config.mixup.kind == "waveform" else None


def batch_mixup(config: AugmentConfig) -> tuple[float, float]:
    """Alpha and probability of mixup within the batch; alpha 0 where ``config`` asks for none or for another kind."""
    probability, alpha = config.mixup.numbers()
    return (alpha, probability) if config.mixup.kind == "batch" else (0.0, 1.0)


def spectrogram_augment(config: AugmentConfig) -> SpectrogramAugment:
    """Spectrogram augmentation of ``config``."""
    return SpectrogramAugment(
        config.spec_warp, config.time_mask, config.freq_mask, config.masks, config.patch_drop, config.patch_size
    )


def video_augment(config: AugmentConfig, crop_size: int) -> VideoAugment:
    """Frame augmentation of ``config``, to squares of ``crop_size`` pixels."""
    return VideoAugment(
        crop_size,
        config.crop_scale,
        config.flip,
        config.color,
        config.gray,
        config.crop_ratio,
        config.hue,
        config.blur,
        config.blur_sigma,
    )
