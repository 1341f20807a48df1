"""The folder of a run: what it holds, and when it may be continued."""

import json
import logging
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric import Fabric
from torch import nn

from avssl.checkpoint import CheckpointStore, is_sharded, read_checkpoint
from avssl.config import DataConfig, WandbConfig, to_dict, to_yaml
from avssl.evaluation.files import atomic_path
from avssl.tracking import Tracker, check_tracking

logger = logging.getLogger(__name__)

# Settings that change how a run computes or is watched, not what it computes.
FREE_SETTINGS = (
    "runtime",
    "log",
    "wandb",
    "tensorboard",
    "resume",
    "output",
    "data.num_workers",
    "optim.batch_size",
    "optim.chunk",
    "collapse_rank",
)


class Run:
    """An open run folder.

    Args:
        config: Config of the run, written to ``config.yaml``.
        folder: Folder of the run.
        fabric: Launched Fabric.
        wandb: W&B settings.
        job_type: pretrain or finetune.

    Raises:
        ValueError: when the folder holds a run of other settings, or what shall watch the run cannot be had.
        OSError: when the folder cannot be written to.
    """

    def __init__(self, config: Any, folder: Path, fabric: Fabric, wandb: WandbConfig, job_type: str) -> None:
        self.folder, self.fabric, self.config = folder, fabric, config
        check_tracking(wandb.mode, config.tensorboard)
        if fabric.is_global_zero:
            self._prepare()
        fabric.barrier()
        self.store = CheckpointStore(fabric, folder / "checkpoints")
        self.checkpoint = self.store.latest(config.resume)
        run_id = self._continue(self.checkpoint) if self.checkpoint else None
        self.tracker = Tracker(
            folder,
            to_dict(config),
            **vars(wandb),
            job_type=job_type,
            tensorboard=config.tensorboard,
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
                check_same(self.folder, self.config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(to_yaml(self.config))
        except OSError as error:
            raise OSError(
                f"output: cannot write to {self.folder}: {error.strerror}; choose another --output"
            ) from error

    def _continue(self, checkpoint: Path) -> str | None:
        """The W&B id of the run; its batch and kind of strategy stay what they were, on however many processes."""
        state = read_checkpoint(checkpoint)
        if state["sharded"] != is_sharded(self.fabric):
            raise ValueError(
                f"{checkpoint} was written {'with' if state['sharded'] else 'without'} runtime.strategy fsdp"
            )
        before, world = state["settings"]["global_batch"], self.fabric.world_size
        if before != self.config.optim.batch_size * world:
            fix = f"give --optim.batch_size {before // world}" if before % world == 0 else "use a divisor of it"
            raise ValueError(
                f"{checkpoint} is of a run with {before} clips a batch, not {self.config.optim.batch_size} x {world} "
                f"processes: {fix}, or --resume none to start over (the old folder is kept)"
            )
        run_id: str | None = state["wandb_id"]
        return run_id

    def describe(self, models: Mapping[str, nn.Module], digest: str) -> None:
        """Has the tracker show the number of parameters of ``models``, by name, and the ``digest`` of the data."""
        counts = {name: sum(part.numel() for part in model.parameters()) for name, model in models.items()}
        self.tracker.summary({f"parameters/{name}": count for name, count in counts.items()} | {"data/digest": digest})

    def picture(self, name: str) -> Path:
        """Path of a picture of this run."""
        return self.folder / "pictures" / f"{name}.png"


def next_command(command: str, checkpoint: Path, data: DataConfig | None) -> str:
    """The command line that goes on from a run with the same data; None: with data that are still to be named."""
    words = ["avssl", command, "--checkpoint", str(checkpoint)]
    if data is None:
        return f"{shlex.join(words)} --data LABELLED_DATA"
    words += ["--data", data.name]
    words += [] if data.root is None else ["--data.root", str(data.root)]
    words += ["--data.options", json.dumps(data.options)] if data.options else []
    words += [] if data.clip_seconds is None else ["--data.clip_seconds", f"{data.clip_seconds:g}"]
    return shlex.join(words)


def tell_next(result: Mapping[str, Any]) -> None:
    """Logs the command lines that go on from a finished run."""
    if result.get("next"):
        logger.info("next: %s", "\n   or: ".join(result["next"]))


def check_same(folder: Path, config: Any) -> None:
    """Checks that the run in ``folder`` has the settings of ``config``, :data:`FREE_SETTINGS` apart.

    Raises:
        ValueError: it has others; the message names the first.
    """
    old, new = _flat(yaml.safe_load((folder / "config.yaml").read_text())), _flat(to_dict(config))
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_SETTINGS)
        if not free and old.get(key) != new.get(key):
            raise ValueError(
                f"{folder} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}: "
                "choose another --output, or give --resume none to start over (the old folder is kept)"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
