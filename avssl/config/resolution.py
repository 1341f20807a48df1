"""From what is given to a config: typed defaults, then the recipe, then the given values, in the shell as in Python."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader

from avssl import plugins
from avssl.config.bounds import check_bounds
from avssl.config.crossval import CrossvalConfig
from avssl.config.parts import REGULARIZATION, DataConfig, MixupConfig, former_mixup
from avssl.config.recipes import CONFIGS, Source, choose_recipe, find_recipe, read_recipe
from avssl.config.runs import AugmentSheetConfig, FinetuneConfig, PretrainConfig
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
# What belongs to the thing that a setting names: where a later source names another one, it goes.
BELONGS = {
    "audio.model": ("audio.options", "audio.num_mels"),
    "video.model": ("video.options", "video.pretrained", "video.crop_size", "data.num_frames", "data.frame_size"),
    "augment.mixup.kind": ("augment.mixup.probability", "augment.mixup.alpha"),
    "data.name": (
        "data.root", "data.options", "data.clip_seconds", "data.eval_clips", "data.eval_average",
        "data.heads", "data.split", "head_weights",
    ),
}  # fmt: skip
# A checkpoint brings its encoders with all their sizes.
_OF_CHECKPOINT = ("audio", "video", "data.num_frames", "data.frame_size")
_NO_CHECKPOINT = (None, "none", "auto")


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
    given = [_nested(source) for source in given]
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
    return _typed(config_class, values, sources)


def _recipes(config_class: type, given: Sequence[Source], files: Sequence[str]) -> list[Source]:
    """What the recipes say: those of ``files``, else the one that runs on the data."""
    command = RECIPES.get(config_class)
    recipes: list[Source] = []
    for name in files:
        if name != "none":
            recipes += read_recipe(find_recipe(command, name))
    if command and recipes and any(_get(source.values, "data.name") is not None for source in given):
        _tell_unused(command, _data_name(given), [Path(source.name) for source in recipes])
    if command and not files:
        file, line = choose_recipe(command, _data_name(given))
        _say(line)
        recipes += read_recipe(file)
    recipes = [_nested(source) for source in recipes]
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
    places = [_get(source.values, key) for source in given for key in ("checkpoint", "output")]
    if config_class in RECIPES:
        places.append(pretraining_folder(_data_name(given)))
    for place in places:
        if place not in _NO_CHECKPOINT:
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
        and _get(source.values, "data.clip_seconds") is not None
    ]
    if not stated or any(_get(source.values, "data.name") is not None for source in recipes):
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
        seconds = _get(source.values, "data.clip_seconds")
        _drop(source.values, "data.clip_seconds")
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


def merge(sources: Sequence[Source], takes_checkpoint: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The values of all sources in one, and a line on each that was left out.

    Of ``options`` and all other groups, given keys replace, others stay. But where a source names another model (or
    other data) than the sources before it, what those gave for the former one is left out, see :data:`BELONGS`. With
    ``takes_checkpoint`` a checkpoint counts as the name of its encoders.
    """
    merged: dict[str, Any] = {}
    lines: list[str] = []
    for source in sources:
        for name, owned in BELONGS.items():
            before, now = _get(merged, name), _get(source.values, name)
            if before is not None and now is not None and before != now:
                gone = [key for key in owned if _drop(merged, key)]
                if gone:
                    lines.append(f"{name} is {now}: {', '.join(gone)} given for {before} left out")
        checkpoint = _get(source.values, "checkpoint")
        if takes_checkpoint and checkpoint not in _NO_CHECKPOINT and _get(merged, "checkpoint") != checkpoint:
            kept = {key: value for key, value in (_get(merged, "audio.options") or {}).items() if key in REGULARIZATION}
            pad = _get(merged, "audio.pad")
            gone = [key for key in _groups_of(str(checkpoint)) if _drop(merged, key)]
            if kept or pad is not None:
                merged["audio"] = ({"options": kept} if kept else {}) | ({} if pad is None else {"pad": pad})
            if gone:
                lines.append(f"the encoders are those of {checkpoint}: {', '.join(gone)} of the recipe left out")
        merged = _merged(merged, source.values)
    return merged, lines


def _groups_of(checkpoint: str) -> tuple[str, ...]:
    """The settings that a checkpoint brings: of a pretraining run both encoders', else the audio encoder's alone."""
    from avssl.checkpoint import run_settings  # which imports torch

    path = Path(checkpoint)
    run = path.parent.parent if path.suffix == ".ckpt" else path
    if settings := run_settings(run):
        pretrained = "embedding_dim" in settings
    else:
        pretrained = path.suffix == ".ckpt" or not path.is_dir()  # a file by itself: nearly always a pair's
    return _OF_CHECKPOINT if pretrained else ("audio",)


def given_options(config_class: type, argv: Sequence[str]) -> tuple[list[str], list[Source]]:
    """The files of ``--config``, and the options as sources of one name, in their order.

    Raises:
        SettingsError: an option that there is not, or a value of the wrong type.
    """
    parser = _parser(config_class)
    required = [item.name for item in fields(config_class) if item.default is item.default_factory is MISSING]
    files: list[str] = []
    values: dict[str, Any] = {}
    for option, rest in _options(argv):
        name = option.removeprefix("--")
        if name == "config":
            files += rest
            continue
        if name == "import":
            values = _merged(values, {"imports": _Added(plugins.given_in([option, *rest]))})
            continue
        _check_path(config_class, name)
        if _kind_of(config_class, name) is not None:
            values = _merged(values, _group(config_class, name, rest))
            continue
        stand_ins = [other for other in required if other != name]
        try:
            words = [f"{option}={word}" for word in rest] or [option]  # a value may begin with -, as -1e-3 does
            one = parser.parse_args([*(f"--{other}=x" for other in stand_ins), *words], defaults=False).as_dict()
        except ArgumentError as error:
            raise SettingsError(_told(error, config_class)) from error
        for other in stand_ins:
            one.pop(other)
        if name.endswith("+"):
            one = _nested(Source("", {name[:-1]: _Added(_get(one, name[:-1]))})).values
        values = _merged(values, one)
    return files, [Source("command line", values)] if values else []


def check_keys(config_class: type, source: Source) -> None:
    """Raises SettingsError for a key that ``config_class`` has not, with the nearest one that it has."""

    def walk(values: Mapping[str, Any], kind: type, prefix: str) -> None:
        known = _members(kind)
        for key, value in values.items():
            if key not in known:
                _unknown(config_class, f"{prefix}{key}", source.name)
            inner = known[key]
            if inner is MixupConfig and not isinstance(value, Mapping | MixupConfig):
                raise SettingsError((f"{source.name}: " if source.name else "") + former_mixup(value))
            if inner is not None and isinstance(value, Mapping):
                walk(value, inner, f"{prefix}{key}.")

    walk(source.values, config_class, "")


def _typed(config_class: type[Config], values: dict[str, Any], sources: Sequence[Source]) -> Config:
    parser = _parser(config_class)
    values = _with_defaults(values, parser.get_defaults().as_dict())
    try:
        config = config_class(**parser.instantiate(parser.parse_object(values)).as_dict())
        check_bounds(config)
    except (ArgumentError, SettingsError) as error:
        told = _told(error, config_class)
        key = told.split(":")[0]
        place = next((source.name for source in reversed(sources) if _get(source.values, key) is not None), "")
        raise SettingsError(told if place in ("", "command line") else f"{place}: {told}") from error
    return config


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the defaults of lists that are only added to."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _with_defaults(value, default)
        out[key] = [*(default or []), *value] if isinstance(value, _Added) else value
    return out


def _parser(config_class: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    return parser


def _group(config_class: type, name: str, words: Sequence[str]) -> dict[str, Any]:
    """What an option says of a group of settings: ``--optim '{lr: 1e-3}'``."""
    text = " ".join(words)
    try:
        values = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        if _kind_of(config_class, name) is MixupConfig:
            raise SettingsError(former_mixup(values))
        raise SettingsError(
            f"{name}: must be settings by name, as --{name}.NAME VALUE or '{{NAME: VALUE}}', got {text}"
        )
    group = _nested(Source("", {name: dict(values)})).values
    check_keys(config_class, Source("", group))
    return group


def _told(error: Exception, config_class: type) -> str:
    """A parser's message as one line that begins with the setting and says what that may be."""
    text = " ".join(str(error).split())
    if wrong := _WRONG_TYPE.fullmatch(text):
        key, value = wrong.groups()
        if hint := _hint_of(config_class, key):
            return f"{key}: must be {_words(hint)}, got {value or 'nothing'}"
    return text


# What jsonargparse says of a value of a wrong type.
_WRONG_TYPE = re.compile(r'(?:Parser key ")?([\w.]+)"?: (?:Expected|Does not validate).*?(?:Got|Given) value: ?(.*)')


def _words(hint: Any) -> str:
    """A type in words: "a number or none"."""
    parts = list(_alternatives(hint))
    return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _alternatives(hint: Any) -> Iterator[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType) or origin is Union:
        for part in sorted(inner, key=lambda part: get_origin(part) is list):  # whose words are the longest
            yield from _alternatives(part)
    elif origin is Literal:
        yield from map(str, inner)
    elif origin is list:
        yield f"a list, each item {_words(inner[0])}"
    elif origin is tuple:
        yield f"a list of {len(inner)}, each {_words(inner[0])}"
    elif origin is dict:
        yield "a mapping such as '{NAME: VALUE}'"
    else:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "none"}
        yield names.get(hint, "a path" if hint is Path else str(hint))


def _options(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its value; of ``--name=value`` too, and ``--data`` means ``--data.name``."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise SettingsError(f"{word!r}: no option; options begin with -- and take one value, lists as '[a, b]'")
        option, equals, value = word.partition("=")
        words = [value] if equals else [rest.pop(0)] if rest and not rest[0].startswith("--") else []
        names_data = option == "--data" and not "".join(words).lstrip().startswith("{")
        yield "--data.name" if names_data else option, words


def _nested(source: Source) -> Source:
    """``source`` with dotted keys as groups, and data that is a name alone as that of ``data``.

    Raises:
        SettingsError: two spellings of one setting give it different values, of which neither is the later one.
    """
    out: dict[str, Any] = {}
    for key, value in source.values.items():
        if key == "data" and isinstance(value, str | Path):
            value = {"name": str(value)}
        for part in reversed(str(key).split(".")[1:]):
            value = {part: value}
        group = {str(key).split(".")[0]: value}
        if clash := _clash(out, group):
            name, before, now = clash
            place = f"{source.name}: " if source.name else ""
            raise SettingsError(f"{place}{name}: is given twice, as {before!r} and as {now!r}; give one of them")
        out = _merged(out, group)
    return Source(source.name, out)


def _clash(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that both have with different values, and these."""
    for key in (key for key in one if key in other):
        before, now = one[key], other[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            if clash := _clash(before, now, f"{prefix}{key}."):
                return clash
        elif before != now:
            return f"{prefix}{key}", before, now
    return None


class _Added(list[Any]):
    """Items that are added to the list of the sources before: ``--objectives+ '{name: sync}'``."""


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        before = out.get(key)
        if isinstance(value, _Added) and isinstance(before, list):
            value = type(before)([*before, *value])
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        out[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return out


def _get(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _drop(values: dict[str, Any], key: str) -> bool:
    """Takes ``key`` out of ``values``; whether it was there."""
    first, _, rest = key.partition(".")
    if first not in values:
        return False
    if not rest:
        return bool(values.pop(first))
    inner = dict(values[first]) if isinstance(values[first], Mapping) else {}
    was_there = _drop(inner, rest)
    values[first] = inner
    return was_there


def _data_name(given: Sequence[Source]) -> str:
    names = [name for source in given if (name := _get(source.values, "data.name")) is not None]
    return str(names[-1]) if names else DataConfig().name


def _own_pretraining(sources: Sequence[Source]) -> Path | None:
    """The pretraining run that checkpoint auto, which none of ``sources`` overrides, will start from; its encoders win
    over those of a recipe."""
    checkpoints = [found for source in sources if (found := _get(source.values, "checkpoint")) is not None]
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


def _members(kind: type) -> dict[str, type | None]:
    """The settings of a config class; the class of each that is a group of settings itself."""
    hints = get_type_hints(kind)
    return {
        item.name: next((t for t in (hints[item.name], *get_args(hints[item.name])) if is_dataclass(t)), None)  # type: ignore[misc]
        for item in fields(kind)
    }


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    for name, inner in _members(kind).items():
        yield f"{prefix}{name}"
        if inner is not None:
            yield from _paths(inner, f"{prefix}{name}.")


def _check_path(config_class: type, path: str) -> None:
    kind: type | None = config_class
    parts = path.removesuffix("+").split(".")
    for count, part in enumerate(parts, start=1):
        members = _members(kind) if kind is not None else None
        if members is None:
            return  # a key of a dict, such as options, whose keys are the model's
        if part not in members:
            _unknown(config_class, ".".join(parts[:count]))
        kind = members[part]


def _hint_of(config_class: type, path: str) -> Any:
    """The type of a setting; None where there is none of that name, as of a key of a dict."""
    *groups, last = path.split(".")
    kind = _kind_of(config_class, ".".join(groups)) if groups else config_class
    return None if kind is None else get_type_hints(kind).get(last)


def _kind_of(config_class: type, path: str) -> type | None:
    """The class of the group of settings that ``path`` names; None where it is none."""
    kind: type | None = config_class
    for part in path.split("."):
        kind = None if kind is None else _members(kind).get(part)
    return kind


def _unknown(config_class: type, path: str, place: str = "") -> None:
    paths = list(_paths(config_class))
    last = path.rpartition(".")[2]
    near = [other for other in paths if other.rpartition(".")[2] == last]
    near = near or get_close_matches(path, paths, n=1, cutoff=0.75)
    group = path.rpartition(".")[0]
    siblings = [other for other in paths if other.rpartition(".")[0] == group]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"there are {', '.join(siblings or list(_members(config_class)))}"
    )
    before = f"{place}: " if place else ""
    option = path if place else f"--{path}"
    raise SettingsError(f"{before}{option}: no such setting; {hint}")
