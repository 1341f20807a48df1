"""Averages of weights: along a run (EMA), and of several checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avssl.checkpoint import read_checkpoint
from avssl.config.parts import REGULARIZATION
from avssl.files import atomic_path
from avssl.progress import track


class ExponentialAverage(AveragedModel):
    """A copy of a model that follows it: after each update it is d * average + (1 - d) * model.

    After n updates, d = min(decay, (1 + n) / (10 + n)): rising, as in TensorFlow's ExponentialMovingAverage, so that
    short runs forget their random start. Buffers, such as the statistics of a batch norm, are the model's own.

    The number of updates stays in the CPU's memory, whatever the weights do: torch's own update asks the device for it
    four times.

    Raises:
        ValueError: when ``decay`` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"optim.ema: must lie in [0, 1), got {decay}")
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follows ``model``, which has the parameters and buffers of the one that was copied."""
        average: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        updates = int(self.n_averaged)
        if updates == 0:
            torch._foreach_copy_(average, current)
        else:
            torch._foreach_lerp_(average, current, 1 - min(self.decay, (1 + updates) / (10 + updates)))
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
        self.n_averaged += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExponentialAverage":
        updates = self.n_averaged
        super()._apply(fn, recurse)
        self.n_averaged = updates
        return self


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """The checkpoint whose weights are the mean of those of ``paths`` (model soup, Wortsman et al. 2022).

    Everything else is the last one's. What is no floating-point number (counters) is the last one's, too.

    Raises:
        ValueError: when they are not checkpoints of one model.
    """
    if not paths:
        raise ValueError("checkpoints: there is none to average")
    result: dict[str, Any] = {}
    sums: dict[str, Tensor] = {}
    first: dict[str, Any] = {}
    for path in track(paths, "averaging", "checkpoint"):
        result = read_checkpoint(path)
        weights = result["average"] or result["task"]
        model = _model_settings(result["settings"])
        if sums and (sums.keys() != weights.keys() or any(sums[key].shape != weights[key].shape for key in sums)):
            raise ValueError(f"checkpoints: {path} is of another model than {paths[0]}")
        if sums and model != first:
            other = next(key for key in model | first if model.get(key) != first.get(key))
            raise ValueError(
                f"checkpoints: {path} has other {other} than {paths[0]}: of such models a mean is of no use"
            )
        first = model
        for key, value in weights.items():
            if value.is_floating_point():
                sums[key] = sums.get(key, 0) + value.double()
            else:
                sums[key] = value
    last = result["average"] or result["task"]
    mean = {
        key: (value / len(paths)).to(last[key].dtype) if value.is_floating_point() else value
        for key, value in sums.items()
    }
    return result | {"average" if result["average"] else "task": mean}


def _model_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What has to be equal for weights to mean the same, by dotted name: classes in their order, frontends, sizes."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "labels":
            flat[f"{prefix}{key}"] = list(value.items())
        elif isinstance(value, Mapping) and (prefix or key in ("pair", "classifier", "options", "frontend")):
            flat |= _model_settings(value, f"{prefix}{key}.")
        elif key not in REGULARIZATION and (prefix or key in ("kind", "model")):
            flat[f"{prefix}{key}"] = value
    return flat


def write_average(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes what :func:`average_checkpoints` made; the file appears whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
