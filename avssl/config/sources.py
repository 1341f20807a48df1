"""Where settings come from, recipes (the YAML files of configs/) and what is given, and how several become one.

The later wins over the earlier; what belonged to something else is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from avssl.errors import SettingsError
from avssl.models.settings import REGULARIZATION

# Recipes of runs: files in a wheel, in a clone a link to its folder configs.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# What runs where there is no recipe of the data's name.
FALLBACK = "small"


@dataclass(frozen=True)
class Source:
    """Settings that were given in one place.

    Attributes:
        name: Of the place, for messages: a file, or "command line".
        values: Nested as the config is.
    """

    name: str
    values: dict[str, Any]


def list_recipes(command: str) -> dict[str, str]:
    """The recipes of ``command`` (pretrain or finetune) by name, and for what each is: its first sentence."""
    recipes = {}
    for file in sorted((CONFIGS / command).glob("*.yaml")):
        comment = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# "):
                break
            comment.append(line.removeprefix("# "))
        recipes[file.stem] = " ".join(comment).split(". ")[0].split(": ")[0].rstrip(".:")
    return recipes


def choose_recipe(command: str, data: str) -> tuple[Path, str]:
    """The recipe that runs on ``data`` where no ``--config`` is given, and a line that says so and names the others."""
    recipes = list_recipes(command)
    name = data if data in recipes else FALLBACK
    file = CONFIGS / command / f"{name}.yaml"
    shown = f"configs/{command}/{name}.yaml"
    if name == data:
        return file, f"recipe of {data}: {shown}; what is given beside it wins, --config takes another"
    budgets = [other for other in ("base", "large") if other in recipes]
    others = "; ".join(f"--config {other}: {recipes[other]}" for other in budgets)
    rest = ", ".join(other for other in recipes if other not in (name, *budgets))
    line = f"{data} has no recipe of its own: {shown} runs ({recipes[name]})"
    return file, f"{line}; others: {others}; {rest}" if others else f"{line}; others: {rest}"


def find_recipe(command: str | None, given: str) -> Path:
    """The file that ``--config`` names: a path, or the name of a recipe of ``command``, as a path in configs/ or bare.

    Raises:
        SettingsError: there is none; the message names the nearest.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    places = [CONFIGS / given.removeprefix("configs/")]
    places += [CONFIGS / command / f"{given}.yaml"] if command else []
    for place in places:
        if place.is_file():
            return place
    names = list(list_recipes(command)) if command else []
    near = get_close_matches(path.stem, names, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; recipes: {', '.join(names)}" if names else ""
    raise SettingsError(f"--config {given}: there is no such file{hint}")


def read_recipe(file: Path) -> list[Source]:
    """The settings of a YAML file, after those of the file beside it that its key ``base`` names, if any.

    Raises:
        SettingsError: it is no YAML, or not settings by name; the message has file and line.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = get_loader("yaml")(text)  # as options are read: 1e-3 is a number
        _check_once(file, yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: is no text in UTF-8") from error
    except yaml.YAMLError as error:
        raise SettingsError(_yaml_error(file, error)) from error
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{file}: must hold settings by name, for example 'optim: {{lr: 0.001}}'")
    base = values.pop("base", None)
    if base is None:
        return [Source(str(file), values)]
    other = file.parent / str(base)
    if not other.is_file() or other.resolve() == file.resolve():
        raise SettingsError(f"{file}: base: there is no file {base} beside it")
    return [*read_recipe(other), Source(str(file), values)]


def _check_once(file: Path, node: yaml.Node | None) -> None:
    """Raises SettingsError for a key that a mapping in ``file`` has twice, of which YAML drops the first."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise SettingsError(f"{file}, line {key.start_mark.line + 1}: {name}: is given twice; give it once")
            seen.add(name)
            _check_once(file, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_once(file, item)


def _yaml_error(file: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{file}{where}: not YAML: {what}"


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
NO_CHECKPOINT = (None, "none", "auto")


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
            before, now = get_setting(merged, name), get_setting(source.values, name)
            if before is not None and now is not None and before != now:
                gone = [key for key in owned if drop_setting(merged, key)]
                if gone:
                    lines.append(f"{name} is {now}: {', '.join(gone)} given for {before} left out")
        checkpoint = get_setting(source.values, "checkpoint")
        if takes_checkpoint and checkpoint not in NO_CHECKPOINT and get_setting(merged, "checkpoint") != checkpoint:
            kept = {
                key: value
                for key, value in (get_setting(merged, "audio.options") or {}).items()
                if key in REGULARIZATION
            }
            pad = get_setting(merged, "audio.pad")
            gone = [key for key in _groups_of(str(checkpoint)) if drop_setting(merged, key)]
            if kept or pad is not None:
                merged["audio"] = ({"options": kept} if kept else {}) | ({} if pad is None else {"pad": pad})
            if gone:
                lines.append(f"the encoders are those of {checkpoint}: {', '.join(gone)} of the recipe left out")
        merged = overlay(merged, source.values)
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


def nested(source: Source) -> Source:
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
        out = overlay(out, group)
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


class Added(list[Any]):
    """Items that are added to the list of the sources before: ``--objectives+ '{name: sync}'``."""


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the settings of ``over``, group by group."""
    out = dict(under)
    for key, value in over.items():
        before = out.get(key)
        if isinstance(value, Added) and isinstance(before, list):
            value = type(before)([*before, *value])
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        out[key] = overlay(before, value) if both else value  # type: ignore[arg-type]
    return out


def get_setting(values: Mapping[str, Any], key: str) -> Any:
    """The setting of a dotted name; None where it is not given."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def drop_setting(values: dict[str, Any], key: str) -> bool:
    """Takes ``key`` out of ``values``; whether it was there."""
    first, _, rest = key.partition(".")
    if first not in values:
        return False
    if not rest:
        return bool(values.pop(first))
    inner = dict(values[first]) if isinstance(values[first], Mapping) else {}
    was_there = drop_setting(inner, rest)
    values[first] = inner
    return was_there
