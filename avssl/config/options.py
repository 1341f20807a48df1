"""Settings by name and type: options of a command line, names that there are not, values of a wrong type."""

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
from avssl.augment.settings import MixupConfig, former_mixup
from avssl.bounds import check_bounds
from avssl.config.sources import Added, Source, get_setting, nested, overlay
from avssl.errors import SettingsError

Config = TypeVar("Config")


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
            values = overlay(values, {"imports": Added(plugins.imports_in([option, *rest]))})
            continue
        _check_path(config_class, name)
        if _kind_of(config_class, name) is not None:
            values = overlay(values, _group(config_class, name, rest))
            continue
        stand_ins = [other for other in required if other != name]
        try:
            hint = _hint_of(config_class, name.removesuffix("+"))
            given = ["null" if _means_null(hint, word) else word for word in rest]
            words = [f"{option}={word}" for word in given] or [option]  # a value may begin with -, as -1e-3 does
            one = parser.parse_args([*(f"--{other}=x" for other in stand_ins), *words], defaults=False).as_dict()
        except ArgumentError as error:
            raise SettingsError(_told(error, config_class)) from error
        for other in stand_ins:
            one.pop(other)
        if name.endswith("+"):
            one = nested(Source("", {name[:-1]: Added(get_setting(one, name[:-1]))})).values
        values = overlay(values, one)
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


def typed(config_class: type[Config], values: dict[str, Any], sources: Sequence[Source]) -> Config:
    parser = _parser(config_class)
    values = _with_defaults(_with_nulls(config_class, values), parser.get_defaults().as_dict())
    try:
        config = config_class(**parser.instantiate(parser.parse_object(values)).as_dict())
        check_bounds(config)
    except (ArgumentError, SettingsError) as error:
        told = _told(error, config_class)
        key = told.split(":")[0]
        place = next((source.name for source in reversed(sources) if get_setting(source.values, key) is not None), "")
        raise SettingsError(told if place in ("", "command line") else f"{place}: {told}") from error
    return config


def _means_null(hint: Any, value: Any) -> bool:
    """Whether "none" stands for no value: of a setting that may be without one and is not a text."""
    inner = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else ()
    texts = any(part in (str, Path) or "none" in get_args(part) for part in inner)
    return value == "none" and NoneType in inner and not texts


def _with_nulls(config_class: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``values`` with None for every "none" that means it."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and _kind_of(config_class, f"{prefix}{key}") is not None:
            value = _with_nulls(config_class, value, f"{prefix}{key}.")
        out[key] = None if _means_null(_hint_of(config_class, f"{prefix}{key}"), value) else value
    return out


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the defaults of lists that are only added to."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _with_defaults(value, default)
        out[key] = [*(default or []), *value] if isinstance(value, Added) else value
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
    group = nested(Source("", {name: dict(values)})).values
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
