"""What a logger is, the registry of them, and two of them: the metrics files of a run, and TensorBoard."""

import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avssl.files import atomic_path
from avssl.plugins import Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is made for.

    Attributes:
        folder: Its folder.
        config: Its resolved config, as plain values.
        resumed: It goes on with an earlier one, of which :meth:`Logger.rewind` then names the step.
        job_type: pretrain or finetune.
        run_id: W&B id of the run that is continued.
    """

    folder: Path
    config: dict[str, Any]
    resumed: bool = False
    job_type: str | None = None
    run_id: str | None = None


class Logger:
    """Where the numbers and pictures of a run go. Every method does nothing here: override those that are of use.

    Only the first process of a run has loggers. One of a plug-in that raises is warned of once, and the run goes on.
    """

    def log(self, row: Mapping[str, float], step: int) -> None:
        """A row of metrics."""

    def log_speed(self, row: Mapping[str, float], step: int) -> None:
        """A row of throughput; by default as any other."""
        self.log(row, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values of the run, numbers and texts."""

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""

    def log_confusion(self, head: str, target: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> None:
        """True and predicted class indices (N,) of the labelled clips, for a confusion matrix."""

    def log_predictions(
        self, head: str, clip_ids: Sequence[str], target: np.ndarray, scores: np.ndarray, class_names: list[str]
    ) -> None:
        """Scores (N, C) of N clips, and their true classes: (N,), -1 for unlabelled, or (N, C) zeros and ones."""

    def log_clips(self, name: str, waveforms: np.ndarray, frames: np.ndarray, sample_rate: int, ids: list[str]) -> None:
        """Sample clips: ``waveforms`` (B, S) in -1..1, ``frames`` (B, 3, T, H, W) uint8."""

    def alert(self, title: str, text: str) -> None:
        """A warning about the run."""

    def rewind(self, step: int, without: str | None = None) -> None:
        """A resumed run writes again what comes after ``step``, and rows of it whose metrics begin with ``without``."""

    def sync(self) -> None:
        """A checkpoint is about to be written, which must not outlive the metrics of its steps."""

    def finish(self, exit_code: int = 0) -> None:
        """The run ends."""


LOGGERS = Registry[Callable[..., Logger]]("loggers", "logger")


def register_logger(name: str) -> Callable[[Any], Any]:
    """Makes a class or function available to ``loggers: [{name: ...}]``.

    It is called with a :class:`LoggedRun` and the options of the config, keyword arguments, and gives a
    :class:`Logger`.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: Any) -> Any:
        LOGGERS.add(name, factory, factory)
        return factory

    return register


def read_loggers(settings: Sequence[Mapping[str, Any]], switched_on: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The options of each logger of ``loggers: [{name: ..., option: ...}]``, by its name.

    Args:
        settings: As the config has them.
        switched_on: Names of those that settings of their own switch on.

    Raises:
        ValueError: one has no name or an unknown one, is named twice, or has an option that it does not take.
    """
    found: dict[str, dict[str, Any]] = {}
    for each in settings:
        options = dict(each)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"loggers: {dict(each)} has no name; write for example {{name: tensorboard}}")
        factory = LOGGERS.get(name)
        if name in found or name in switched_on:
            raise ValueError(f"loggers: {name} is there twice, or switched on already: leave it out")
        try:
            inspect.signature(factory).bind(None, **options)
        except TypeError as error:
            raise ValueError(f"loggers: {name}: {error}") from error
        found[name] = options
    return found


@register_logger("metrics")
class MetricsFiles(Logger):
    """``metrics.jsonl`` (one row a step, value for value reproducible) and ``speed.jsonl``, which every run has."""

    def __init__(self, run: LoggedRun) -> None:
        self.metrics_path, self.speed_path = run.folder / "metrics.jsonl", run.folder / "speed.jsonl"
        if not run.resumed:
            for path in self._paths:
                path.write_text("")

    @property
    def _paths(self) -> tuple[Path, Path]:
        return self.metrics_path, self.speed_path

    def log(self, row: Mapping[str, float], step: int) -> None:
        _append(self.metrics_path, row, step)

    def log_speed(self, row: Mapping[str, float], step: int) -> None:
        _append(self.speed_path, row, step)

    def sync(self) -> None:
        for path in self._paths:
            with path.open("ab") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int, without: str | None = None) -> None:
        """Drops the rows that are written again; rows that a crash or a disk damaged go too."""
        for path in self._paths:
            if not path.is_file():
                logger.warning("%s is missing: its rows up to step %d are lost", path, step)
            rows = [
                row for row in read_rows(path) if row["step"] < step or (row["step"] == step and not _has(row, without))
            ]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _append(path: Path, row: Mapping[str, float], step: int) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step} | dict(row)) + "\n")


def is_constant(name: str) -> bool:
    """Whether the metric follows from the data alone: chance, and numbers of clips and classes."""
    parts = name.split("/")
    return "chance" in parts or parts[-1] in ("count", "classes")


def changing(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without what :func:`is_constant`."""
    return {name: value for name, value in row.items() if not is_constant(name)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file. Lines that a crash cut short or a disk damaged are left out, with a warning."""
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        if not line:
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        logger.warning("%s: %d damaged lines left out: %s", path, len(damaged), shown)
    return rows


def _has(row: Mapping[str, Any], prefix: str | None) -> bool:
    return prefix is not None and any(name.startswith(prefix) for name in row)


FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Raises ValueError where the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "tensorboard: the package is missing: pip install 'avssl[tensorboard]' or pip install tensorboard"
        ) from error


@register_logger("tensorboard")
class TensorBoard(Logger):
    """Scalars, pictures and the config's text in ``tensorboard`` inside the run's folder.

    Those of a resumed run are kept, up to the step that :meth:`rewind` names.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._folder = run.folder / FOLDER
        self._step = 0
        self._writer: Any = None
        if not run.resumed:
            shutil.rmtree(self._folder, ignore_errors=True)
            text = json.dumps(run.config, indent=2, default=str)
            self._open().add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def rewind(self, step: int, without: str | None = None) -> None:
        """Has TensorBoard drop what a resumed run writes again: the events after ``step``."""
        self._open(purge=step + 1)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """A row of metrics."""
        self._step = step
        for name, value in changing(row).items():
            self._open().add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values: numbers as scalars of the last step, others as text."""
        for name, value in changing(values).items():
            if isinstance(value, int | float):
                self._open().add_scalar(name, value, self._step)
            else:
                self._open().add_text(name, str(value), self._step)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""
        for name, path in pictures.items():
            with Image.open(path) as picture:
                self._open().add_image(name, np.asarray(picture.convert("RGB")), self._step, dataformats="HWC")

    def finish(self, exit_code: int = 0) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        return self._writer
