"""Checkpoint files of a run: written atomically, loaded without executing code."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes seconds to import, which who only reads a checkpoint need not wait for


LAST, BEST = "last.ckpt", "best.ckpt"


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        fabric: Launched Fabric; every process calls every method.
        folder: Created with the first checkpoint where it is missing.
    """

    def __init__(self, fabric: Fabric, folder: Path) -> None:
        self.fabric, self.folder = fabric, folder

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Writes ``state`` to ``name``: a reader sees the old file or the whole new one.

        Raises:
            OSError: when the folder cannot be written to or its disk is full; the old file is then intact.
        """
        path, partial = self.folder / name, self.folder / f".{name}.partial"
        try:
            if self.fabric.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
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
            path = self.folder / LAST
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other pickles
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler fails on other bytes with any of Python's errors
        raise ValueError(f"{path} is not a checkpoint of avssl: {_first_line(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ValueError(f"{path} is not a checkpoint of avssl: it has no settings")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Building a model from the settings and weights of ``path``; what they lack is told in one line.

    Raises:
        ValueError: they do not fit each other or this version.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else _first_line(error)
        raise ValueError(f"checkpoint: settings and weights of {path} do not fit a model: {what}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
