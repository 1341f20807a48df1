"""From what is given to a config: typed defaults, then the recipe, then the given values, in the shell as in Python."""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from avssl import plugins
from avssl.config.options import check_keys, typed
from avssl.config.runs import AugmentSheetConfig, CrossvalConfig, FinetuneConfig, PretrainConfig
from avssl.config.sources import (
    CONFIGS,
    NO_CHECKPOINT,
    Source,
    choose_recipe,
    drop_setting,
    find_recipe,
    get_setting,
    merge,
    nested,
    read_recipe,
)
from avssl.data.settings import DataConfig
from avssl.errors import SettingsError
from avssl.urls import hide_credentials

Config = TypeVar("Config")
logger = logging.getLogger(__name__)

# Recipes of a config, by their folder. A sheet of augmented clips looks at a part of pretraining's.
RECIPES: dict[type, str] = {
    PretrainConfig: "pretrain",
    FinetuneConfig: "finetune",
    CrossvalConfig: "finetune",
    AugmentSheetConfig: "pretrain",
}


def resolve(config_class: type[Config], given: Sequence[Source], files: Sequence[str] = ()) -> Config:
    """The config of typed defaults, the recipe and the given values; the log names a recipe that was not asked for.

    Args:
        config_class: One of the configs.
        given: What is given, the later over the earlier; ``data`` may be a name alone, and keys may be dotted.
        files: Recipes that are given (``--config``), the later over the earlier, all below ``given``; without one, the
            recipe of the data's name is taken where there is one, else the small one; none takes no recipe.

    Raises:
        SettingsError: an unknown or wrong setting, or a file that is none; one line that names it and the fix.
    """
    given = [nested(source) for source in given]
    _import_plugins(given)
    _find_plugins(config_class, given)
    sources = [*_recipes(config_class, given, files), *given]
    for source in sources:
        check_keys(config_class, source)
    finetunes = issubclass(config_class, FinetuneConfig)
    if finetunes and (run := _own_pretraining(sources)):
        sources.insert(len(sources) - len(given), Source(str(run), {"checkpoint": str(run)}))
        sources.append(Source("", {"checkpoint": "auto"}))
    values, left_out = merge(sources, takes_checkpoint=finetunes or config_class is PretrainConfig)
    for line in left_out:
        _say(line)
    return typed(config_class, values, sources)


def _recipes(config_class: type, given: Sequence[Source], files: Sequence[str]) -> list[Source]:
    """What the recipes say: those of ``files``, else the one that runs on the data."""
    command = RECIPES.get(config_class)
    recipes: list[Source] = []
    for name in files:
        if name != "none":
            recipes += read_recipe(find_recipe(command, name))
    if command and recipes and any(get_setting(source.values, "data.name") is not None for source in given):
        _tell_unused(command, _data_name(given), [Path(source.name) for source in recipes])
    if command and not files:
        file, line = choose_recipe(command, _data_name(given))
        _say(line)
        recipes += read_recipe(file)
    recipes = [nested(source) for source in recipes]
    _import_plugins(recipes)
    if config_class is AugmentSheetConfig:
        recipes = [_of_sheet(source) for source in recipes]
    return _with_clips_of(_data_name(given), recipes)


def _import_plugins(sources: Sequence[Source]) -> None:
    """Imports what sources name, before anything else of them is looked at: data may be a plug-in's."""
    for source in sources:
        names = source.values.get("imports")
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):  # else told as a setting
            try:
                plugins.load(names)
            except SettingsError as error:
                raise SettingsError(f"{source.name}: {error}" if source.name else str(error)) from error


def _find_plugins(config_class: type, given: Sequence[Source]) -> None:
    """Has the plug-ins found that the run recorded which is continued, or started from."""
    places = [get_setting(source.values, key) for source in given for key in ("checkpoint", "output")]
    if config_class in RECIPES:
        places.append(pretraining_folder(_data_name(given)))
    for place in places:
        if place not in NO_CHECKPOINT:
            plugins.want_of(Path(str(place)))


def _tell_unused(command: str, data: str, files: Sequence[Path]) -> None:
    """Says that given files stand in place of the recipe of the data that are named, unless they are of that."""
    own = CONFIGS / command / f"{data}.yaml"
    if own.is_file() and not any(file.resolve() == own.resolve() for file in files):
        _say(
            f"the given --config stands in place of configs/{command}/{data}.yaml, the recipe of {data}; "
            f"--config {data} before it takes both"
        )


def _with_clips_of(data: str, recipes: list[Source]) -> list[Source]:
    """``recipes``, without the length of a clip that those for any data state where ``data`` has one of its own."""
    stated = [
        source
        for source in recipes
        if Path(source.name).resolve().is_relative_to(CONFIGS.resolve())
        and get_setting(source.values, "data.clip_seconds") is not None
    ]
    if not stated or any(get_setting(source.values, "data.name") is not None for source in recipes):
        return recipes
    from avssl.data.catalog import find_entry  # which reads tables: only here does a config need to know of data
    from avssl.data.failures import DataError

    try:
        own = find_entry(data).clip_seconds
    except DataError:
        return recipes  # told when the data are opened
    if own is None:
        return recipes
    for source in stated:
        seconds = get_setting(source.values, "data.clip_seconds")
        drop_setting(source.values, "data.clip_seconds")
        if seconds != own:
            _say(f"clips of {own:g} s, as {data} has them: those of {seconds:g} s of the recipe left out")
    return recipes


def _say(line: str) -> None:
    """Logs ``line``, of several processes once."""
    if os.environ.get("RANK", "0") == "0":
        logger.info("%s", line)


def pretraining_folder(data: str) -> Path:
    """Where pretraining on ``data`` puts its run, and fine-tuning with checkpoint auto looks for it."""
    return Path("runs") / f"pretrain-{Path(hide_credentials(data)).stem}"


def demo_settings(config_class: type[Config]) -> Config:
    """The settings of a command on the demo: its recipe alone."""
    return resolve(config_class, [], [str(CONFIGS / RECIPES[config_class] / "demo.yaml")])


def _data_name(given: Sequence[Source]) -> str:
    names = [name for source in given if (name := get_setting(source.values, "data.name")) is not None]
    return str(names[-1]) if names else DataConfig().name


def _own_pretraining(sources: Sequence[Source]) -> Path | None:
    """The pretraining run that checkpoint auto, which none of ``sources`` overrides, will start from; its encoders win
    over those of a recipe."""
    checkpoints = [found for source in sources if (found := get_setting(source.values, "checkpoint")) is not None]
    run = pretraining_folder(_data_name(sources))
    return run if (checkpoints or ["auto"])[-1] == "auto" and (run / "audio_encoder").is_dir() else None


def _of_sheet(source: Source) -> Source:
    """What a sheet of augmented clips shows of a training run's recipe, or of the ``config.yaml`` of a run."""
    own = {item.name for item in fields(AugmentSheetConfig)}
    training = {item.name for kind in (PretrainConfig, FinetuneConfig) for item in fields(kind)} - own
    if not training & source.values.keys():
        return source
    dropped = training | {"output"}  # the run's folder is not the sheet's
    return Source(source.name, {key: value for key, value in source.values.items() if key not in dropped})
