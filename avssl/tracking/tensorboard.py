"""TensorBoard's event files beside the metrics of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avssl.tracking.loggers import LoggedRun, Logger, changing, register_logger

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
