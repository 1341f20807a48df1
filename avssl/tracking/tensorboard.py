"""TensorBoard's event files beside the metrics of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Raises ValueError where the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "tensorboard: the package is missing: pip install 'avssl[tensorboard]' or pip install tensorboard"
        ) from error


class TensorBoard:
    """Scalars, pictures and the config's text in ``folder/tensorboard``.

    Args:
        folder: Folder of the run.
        config: Resolved config.
        resumed: Keep the events that the folder holds, up to the step that :meth:`rewind` names.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, resumed: bool = False) -> None:
        self._folder = folder / FOLDER
        self._step = 0
        self._writer: Any = None
        if not resumed:
            shutil.rmtree(self._folder, ignore_errors=True)
            text = json.dumps(config, indent=2, default=str)
            self._open().add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def rewind(self, step: int) -> None:
        """Has TensorBoard drop what a resumed run writes again: the events after ``step``."""
        self._open(purge=step + 1)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """A row of metrics."""
        self._step = step
        for name, value in row.items():
            self._open().add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values: numbers as scalars of the last step, others as text."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._open().add_scalar(name, value, self._step)
            else:
                self._open().add_text(name, str(value), self._step)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """PNG files, by name."""
        for name, path in pictures.items():
            with Image.open(path) as picture:
                self._open().add_image(name, np.asarray(picture.convert("RGB")), self._step, dataformats="HWC")

    def finish(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        return self._writer
