"""The folder of a run: what it holds, when it may be continued, and the device it runs on."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from avssl.checkpoint import CheckpointStore, read_checkpoint
from avssl.config import RuntimeConfig, WandbConfig, to_dict, to_yaml
from avssl.evaluation.files import atomic_path
from avssl.models.blocks import shard
from avssl.tracking import Tracker

logger = logging.getLogger(__name__)

# Settings that change how a run computes or is watched, not what it computes.
FREE_SETTINGS = ("runtime", "log", "wandb", "resume", "output", "data.num_workers")


def launch(runtime: RuntimeConfig, seed: int) -> Fabric:
    """Starts Fabric on the devices of ``runtime`` and seeds every process alike.

    Raises:
        ValueError: when this machine has no such device.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision(runtime.matmul)
    try:
        fabric = Fabric(
            accelerator=runtime.accelerator,
            devices=runtime.devices,
            num_nodes=runtime.num_nodes,
            strategy=_strategy(runtime),
            precision=runtime.precision,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"runtime: {error}") from error
    if fabric.world_size > 1 or "LOCAL_RANK" in os.environ:
        fabric.launch()
    seed_everything(seed, verbose=False)
    return fabric


def _strategy(runtime: RuntimeConfig) -> Strategy | str:
    several = runtime.devices not in (1, "1") or runtime.num_nodes > 1
    if runtime.strategy == "fsdp":
        return ModelParallelStrategy(
            parallelize_fn=shard,
            data_parallel_size=_device_count(runtime) * runtime.num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any number of processes can resume from
        )
    if runtime.strategy == "ddp" or several:
        # Banks and queues are equal on all processes already: sending them before each step would cost far more than
        # the gradients. Some objectives leave a projection or a whole encoder without a gradient.
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=True)
    return "auto"


def _device_count(runtime: RuntimeConfig) -> int:
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if runtime.devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() or 1
    return int(runtime.devices)


class Run:
    """An open run folder.

    Args:
        config: Config of the run, written to ``config.yaml``.
        folder: Folder of the run.
        fabric: Launched Fabric.
        wandb: W&B settings.
        job_type: pretrain or finetune.

    Raises:
        ValueError: when the folder holds a run of other settings.
        OSError: when the folder cannot be written to.
    """

    def __init__(self, config: Any, folder: Path, fabric: Fabric, wandb: WandbConfig, job_type: str) -> None:
        self.folder, self.fabric, self.config = folder, fabric, config
        if fabric.is_global_zero:
            self._prepare()
        fabric.barrier()
        self.store = CheckpointStore(fabric, folder / "checkpoints")
        self.checkpoint = self.store.latest(config.resume)
        run_id = read_checkpoint(self.checkpoint)["wandb_id"] if self.checkpoint else None
        self.tracker = Tracker(
            folder,
            to_dict(config),
            mode=wandb.mode,
            project=wandb.project,
            entity=wandb.entity,
            name=wandb.name,
            tags=wandb.tags,
            job_type=job_type,
            run_id=run_id,
            resumed=self.checkpoint is not None,
            enabled=fabric.is_global_zero,
        )

    def _prepare(self) -> None:
        path = self.folder / "config.yaml"
        if path.is_file():
            if self.config.resume == "none":
                backup = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
                self.folder.rename(backup)
                logger.info("kept the earlier run as %s", backup)
            else:
                self._check_same(yaml.safe_load(path.read_text()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(to_yaml(self.config))
        except OSError as error:
            raise OSError(
                f"output: cannot write to {self.folder}: {error.strerror}; choose another --output"
            ) from error

    def _check_same(self, before: dict[str, Any]) -> None:
        old, new = _flat(before), _flat(to_dict(self.config))
        for key in sorted(old.keys() | new.keys()):
            free = any(key == name or key.startswith(f"{name}.") for name in FREE_SETTINGS)
            if not free and old.get(key) != new.get(key):
                raise ValueError(
                    f"{self.folder} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}: "
                    "choose another --output, or give --resume none to start over (the old folder is kept)"
                )

    def picture(self, name: str) -> Path:
        """Path of a picture of this run."""
        return self.folder / "pictures" / f"{name}.png"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
