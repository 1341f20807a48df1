"""What is checked, and told, before a training begins: batches, steps, its time on a CPU, that all processes agree."""

import logging
import time
from typing import Any

import torch
import torch._dynamo
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mast
from avssl.config import (
    FinetuneConfig,
    PretrainConfig,
    to_dict,
)
from avssl.data.shards.index import shard_numbers
from avssl.data.splits import Splits
from avssl.evaluation.embeddings import model_digest
from avssl.models.video import create_video_encoder
from avssl.training.initialization import frontend_options
from avssl.training.launch import check_alike
from avssl.training.optimizer import total_steps
from avssl.training.run import Run, by_dotted_name

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
        warn_of_long_run(config, seen, splits.protocol.seconds)
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


# Share of the speed of large matrix products that the encoders reach, and a step in units of its forward pass.
_EFFICIENCY, _STEP = 0.5, 3.0
# Told are runs of more than an hour; clips of more multiply-accumulates than small.yaml's are for GPUs.
_LONG, _LARGE = 3600.0, 5e9
# So few clips take any encoder less than that; they are not worth the second that the count takes.
_FEW = 500


def warn_of_long_run(config: PretrainConfig | FinetuneConfig, clips: int, seconds: float) -> float:
    """Warns of training that would take longer than an hour on this CPU.

    Args:
        config: A complete config of a run on a CPU.
        clips: Clips that training sees, all epochs together, on this process.
        seconds: Length of a clip.

    Returns:
        The estimate in seconds; 0 for a few clips.
    """
    if clips < _FEW:
        return 0.0
    macs = macs_of_clip(config, seconds)
    estimate = clips * _STEP * macs / (_EFFICIENCY * macs_per_second())
    if estimate > _LONG:
        large = macs > _LARGE and isinstance(config, PretrainConfig)
        logger.warning(
            "no GPU is used: on this CPU training takes about %s (an estimate, of %.1f G multiply-accumulates a clip "
            "and %d clips over all epochs); %s",
            _told(estimate), macs / 1e9, clips,
            "these settings are for GPUs, --config small is for a CPU" if large else "a GPU, a smaller audio.model or "
            "video.model, fewer optim.epochs or a data.train_fraction take less",
        )  # fmt: skip
    return estimate


def macs_of_clip(config: PretrainConfig | FinetuneConfig, seconds: float) -> float:
    """Multiply-accumulates of the forward pass of a clip of ``seconds`` through the encoders that ``config`` trains."""
    modality = config.modality if isinstance(config, FinetuneConfig) else "both"
    audio, video = config.audio, config.video
    frontend = mast.LogMel(**frontend_options(audio))
    frames = max(1, frontend.num_frames(round(seconds * frontend.sample_rate)))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if modality != "video":
            assert audio.model is not None
            encoder = mast.create_model(audio.model, **audio.options).eval()
            encoder.forward_features(torch.empty(1, 1, frontend.num_mels, frames))
        if modality != "audio":
            assert video.model is not None and video.crop_size is not None and config.data.num_frames is not None
            number, side = config.data.num_frames, video.crop_size
            seen = create_video_encoder(video.model, num_frames=number, frame_size=side, **video.options).eval()
            seen(torch.empty(1, 3, number, side, side))
    return counter.get_total_flops() / 2


def macs_per_second(repeats: int = 5) -> float:
    """Multiply-accumulates a second of this CPU, measured on products of 768 x 768 matrices in float32."""
    left = torch.ones(768, 768)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - began)
    return 768**3 / min(times)  # the others were interrupted


def _told(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
