"""Recipes of training runs, for tools that look at a part of them only."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml

from avssl.config import AugmentSheetConfig, FinetuneConfig, PretrainConfig


def recipe_arguments(argv: Sequence[str]) -> list[str]:
    """``argv`` with every ``--config`` file of a training run cut down to what a sheet shows of it.

    So the recipe of a pretraining or fine-tuning, or the ``config.yaml`` of a run, can be looked at as it is: its data,
    audio, video, augment and seed are taken, and what a sheet has no use for (optim, log, output ...) is left out.
    """
    out = list(argv)
    for i, argument in enumerate(out):
        if argument == "--config" and i + 1 < len(out):
            out[i + 1] = _cut_recipe(out[i + 1])
        elif argument.startswith("--config="):
            out[i] = "--config=" + _cut_recipe(argument.removeprefix("--config="))
    return out


def _cut_recipe(file: str) -> str:
    own = {field.name for field in fields(AugmentSheetConfig)}
    training = {field.name for kind in (PretrainConfig, FinetuneConfig) for field in fields(kind)} - own
    try:
        values = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError):
        return file  # the parser says what is wrong with it
    if not isinstance(values, dict) or not training & values.keys():
        return file
    dropped = training | {"output"}  # the run's folder is not the sheet's
    return yaml.safe_dump({key: value for key, value in values.items() if key not in dropped})
