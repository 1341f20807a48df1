"""Recipes: the YAML files of configs/pretrain and configs/finetune, where they are, how one is read and chosen."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from avssl.errors import SettingsError

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
