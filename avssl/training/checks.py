"""What is checked, and told, before a training begins: batches, steps, and that all processes do the same."""

import logging
from typing import Any

import torch
import torch._dynamo
from lightning_fabric import Fabric
from torch import nn

from avssl.config import (
    FinetuneConfig,
    PretrainConfig,
    to_dict,
)
from avssl.data.shards.index import shard_numbers
from avssl.data.splits import Splits
from avssl.evaluation.embeddings import model_digest
from avssl.training.estimate import tell_long_run
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
