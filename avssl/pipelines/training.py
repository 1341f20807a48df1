"""From a config to the engine that trains its task: optimizer, schedule and augmentation."""

from typing import Any

from lightning_fabric import Fabric
from torch import nn

from avssl.augment import SpectrogramAugment, WaveAugment
from avssl.config import AugmentConfig, FinetuneConfig, OptimConfig, PretrainConfig
from avssl.data.failures import FailureMonitor
from avssl.engine import Engine, Schedule, make_optimizer, make_scheduler
from avssl.pipelines.run import Run


def build_engine(
    config: PretrainConfig | FinetuneConfig,
    fabric: Fabric,
    run: Run,
    task: nn.Module,
    clips: int,
    *,
    monitor: str,
    settings: dict[str, Any],
) -> Engine:
    """The engine of ``task``, where the run's checkpoint left off if it has one.

    Args:
        config: Its ``optim``, ``log``, ``data.max_failures`` and ``seed`` are used.
        fabric: Launched Fabric.
        run: Folder, tracker and checkpoints of the run.
        task: Module to train.
        clips: Training clips, which with the epochs give the number of steps.
        monitor: Validation metric, higher is better, that chooses the best checkpoint.
        settings: Plain values saved beside the weights, which rebuild the model.
    """
    optim, log = config.optim, config.log
    steps = total_steps(optim, clips, fabric.world_size)
    optimizer = make_optimizer(task, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas)
    scheduler = make_scheduler(optimizer, max_steps=steps, warmup=optim.warmup, lr=optim.lr, min_lr=optim.min_lr)
    schedule = Schedule(
        max_steps=steps,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        log_every=log.every,
        validate_every=log.validate_every,
        checkpoint_every=log.checkpoint_every,
        keep_every=log.keep_every,
        monitor=monitor,
    )
    failures = FailureMonitor(config.data.max_failures)
    engine = Engine(
        fabric, task, optimizer, scheduler, schedule, run.tracker, run.store, failures, settings, config.seed
    )
    if run.checkpoint:
        engine.resume(run.checkpoint)
    return engine


def total_steps(optim: OptimConfig, clips: int, world_size: int) -> int:
    """Optimizer steps of a run: ``max_steps``, or as many as ``epochs`` passes take."""
    if optim.max_steps is not None:
        return optim.max_steps
    per_epoch = max(1, clips // (optim.batch_size * world_size * optim.accumulate))
    return max(1, round(optim.epochs * per_epoch))


def wave_augment(config: AugmentConfig) -> WaveAugment:
    """Waveform augmentation of ``config``."""
    return WaveAugment(config.gain_db, config.time_shift, config.noise_db)


def spectrogram_augment(config: AugmentConfig) -> SpectrogramAugment:
    """Spectrogram augmentation of ``config``."""
    return SpectrogramAugment(config.spec_warp, config.time_mask, config.freq_mask, config.masks)
