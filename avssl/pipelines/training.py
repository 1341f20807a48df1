"""What is checked before a training begins, how its encoders are prepared, and its augmentation."""

import logging
from typing import Any

import torch
import torch._dynamo
from lightning_fabric import Fabric
from torch import nn

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import (
    AugmentConfig,
    FinetuneConfig,
    PretrainConfig,
    RuntimeConfig,
    to_dict,
)
from avssl.data.mixup import SetMixup
from avssl.data.shards.index import shard_numbers
from avssl.data.splits import Splits
from avssl.evaluation.embeddings import model_digest
from avssl.models.blocks import checkpoint_activations, encoder_blocks
from avssl.training.estimate import tell_long_run
from avssl.training.launch import check_alike
from avssl.training.optimizer import total_steps
from avssl.training.run import Run, by_dotted_name
from mast.fast.cuda.graphs import graph_training

logger = logging.getLogger(__name__)


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
