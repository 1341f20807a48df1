"""Checkpoint files of a run: written atomically, loaded without executing code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes seconds to import, which who only reads a checkpoint need not wait for


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        fabric: Launched Fabric; every process calls every method.
        folder: Created where it is missing.
    """

    def __init__(self, fabric: Fabric, folder: Path) -> None:
        self.fabric, self.folder = fabric, folder
        if fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Writes ``state`` to ``name``: a reader sees the old file or the whole new one.

        Raises:
            OSError: when the folder cannot be written to or its disk is full; the old file is then intact.
        """
        path, partial = self.folder / name, self.folder / f".{name}.partial"
        try:
            self.fabric.save(partial, state)
            if self.fabric.is_global_zero:
                os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            if self.fabric.is_global_zero:
                partial.unlink(missing_ok=True)
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise OSError(
                f"cannot write checkpoint {path}: {reason}; free some space and run with --resume auto"
            ) from error
        self.fabric.barrier()
        return path

    def load(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Restores the objects in ``state`` from ``path`` and returns all other values of the file.

        Raises:
            ValueError: when the file is no checkpoint of this kind of run.
        """
        try:
            return self.fabric.load(path, state, strict=True, weights_only=True)
        except (KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path} does not fit this run ({_first_line(error)}); use --resume none to start over"
            ) from error

    def latest(self, resume: str) -> Path | None:
        """The file that ``--resume`` means: auto, none or a path."""
        if resume == "none":
            return None
        if resume == "auto":
            path = self.folder / "last.ckpt"
            return path if path.is_file() else None
        if not Path(resume).is_file():
            raise FileNotFoundError(f"resume: there is no file {resume}")
        return Path(resume)


def is_sharded(fabric: Fabric) -> bool:
    """Whether parameters are sharded over processes (FSDP2): optimizer states are then laid out differently."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All values of the checkpoint at ``path``, on the CPU.

    Raises:
        ValueError: when it is not one, or holds anything but tensors and plain values.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint of avssl: {_first_line(error)}") from error
    if not isinstance(state, dict) or "settings" not in state:
        raise ValueError(f"{path} is not a checkpoint of avssl: it has no settings")
    return state


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
