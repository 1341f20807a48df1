"""Writes a checkpoint whose weights are the mean of several checkpoints of one run."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.checkpoint import read_checkpoint
from avssl.files import atomic_path
from avssl.locks import hold
from avssl.models.settings import REGULARIZATION
from avssl.progress import track


def run(arguments: Namespace) -> int:
    """The command; returns the exit status."""
    with hold(arguments.output, "checkpoint"):
        write_average(average_checkpoints(arguments.checkpoints), arguments.output)
    sys.stdout.write(f"mean of {len(arguments.checkpoints)} checkpoints: {arguments.output}\n")
    return 0


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
