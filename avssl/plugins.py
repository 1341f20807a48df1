"""Parts by name, and the plug-ins that bring more of them.

Objectives, data sets, video encoders, evaluations and loggers are each kept in a :class:`Registry`; audio encoders in
that of ``mast``. A name that nobody has registered is looked for in the plug-ins that are known: those of ``--import``
and the setting ``imports``, those that the run behind a checkpoint recorded, and those of installed packages.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from avssl.errors import SettingsError

Part = TypeVar("Part")

# Plug-ins that are imported once an unknown name is asked for, and who named each; mast, and so torch, is imported only
# where there is one.
wanted: dict[str, str] = {}
_given: list[str] = []
registering_modules: list[str] = []  # modules from outside of the packages that have registered something
_OWN = ("avssl", "mast", "__main__")


@dataclass(kw_only=True)
class ImportsConfig:
    """What every command takes beside its own settings.

    Args:
        imports: Plug-ins to import first, modules or .py files, which register objectives, data sets, encoders,
            evaluations or loggers; --import NAME adds one. A run records all of its process, by which it is found
            again.
    """

    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.imports = load(self.imports)


class Registry(Generic[Part]):
    """Parts of one kind by name, in the order of their registration.

    Args:
        setting: What names a part, for messages: "objectives", "data.name".
        kind: What a part is, for messages: "objective", "data set".
        error: What an unknown name raises.
        load: Imports the parts that come with the package; called before the first look-up.

    Attributes:
        parts: What is registered so far, by name; `get` and `names` import what else there is.
    """

    def __init__(
        self,
        setting: str,
        kind: str,
        *,
        error: type[Exception] = ValueError,
        load: Callable[[], None] | None = None,
    ) -> None:
        self.setting, self.kind, self._error, self._load = setting, kind, error, load
        self.parts: dict[str, Part] = {}

    def add(self, name: str, part: Part, author: Any) -> None:
        """Makes ``part`` known; ``author`` is the function or class that its decorator stands on.

        Raises:
            ValueError: the name is taken.
        """
        if not _is_own(author):
            self._complete()  # the package's own parts are there first
        if name in self.parts:
            raise ValueError(f"{self.setting}: {self.kind} {name!r} is registered already")
        self.parts[name] = part
        note_author(author)

    def get(self, name: str) -> Part:
        """The part of that name.

        Raises:
            ValueError: there is none; the message gives the nearest, and the plug-ins that could not be imported. It is
                of the registry's own class.
        """
        self._complete()
        if name not in self.parts:
            failed = import_wanted()
            if name not in self.parts:
                why = "".join(f"; {line}" for line in failed)
                raise self._error(f"{self.setting}: no {self.kind} {name!r}{_hint(name, self.names())}{why}")
        return self.parts[name]

    def names(self) -> list[str]:
        """All names, those of plug-ins too, in the order of their registration."""
        self._complete()
        import_wanted()
        return list(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _complete(self) -> None:
        if self._load is not None:
            load, self._load = self._load, None
            load()


def _hint(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown ``word``: the nearest known one, and all."""
    names = list(known)
    near = get_close_matches(word, names, n=1)
    return (f" (did you mean {near[0]!r}?)" if near else "") + f"; there are {', '.join(names) or 'none'}"


def load(names: Iterable[str]) -> list[str]:
    """Imports plug-ins now: those that the user names. Returns them as :func:`recorded` does.

    Raises:
        SettingsError: one cannot be imported, in a line that names it.
    """
    places: list[str] = []
    for name in names:
        from mast.plugins import PluginError, import_plugin, plugin_names_of  # with torch, which a plug-in needs anyway

        try:
            module = import_plugin(name)
        except PluginError as error:
            raise SettingsError(f"--import: {error}") from error
        places += plugin_names_of(module.__name__)
    _given.extend(place for place in dict.fromkeys(places) if place not in _given)
    return places


def want(names: Iterable[str], place: str) -> None:
    """Has plug-ins imported once a name is asked for that is not registered.

    Args:
        names: As :func:`load` takes them.
        place: Where they are named, for messages: a run's ``config.yaml``.
    """
    for name in names:
        if name not in _given:
            wanted.setdefault(name, place)


def want_of(checkpoint: Path) -> None:
    """:func:`want` what the ``config.yaml`` names of the run that ``checkpoint`` is or lies in, where there is one."""
    for folder in (checkpoint, *checkpoint.parents[:2]):
        file = folder / "config.yaml"
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # told by whoever reads the run's settings
            continue
        if isinstance(values, dict):
            want(values.get("imports") or (), str(file))
            return


def import_wanted() -> list[str]:
    """Imports the plug-ins that are known and not yet imported; returns a line on each that cannot be."""
    failed = []
    for name, place in list(wanted.items()):
        from mast.plugins import PluginError, import_plugin

        try:
            import_plugin(name)
        except PluginError as error:
            failed.append(f"{error} (named by {place}): if it has moved, give its place with --import")
    if _has_installed():
        from mast.plugins import import_installed

        import_installed()
    return failed


@cache
def _has_installed() -> bool:
    return bool(entry_points(group="avssl.plugins"))


def recorded() -> list[str]:
    """The plug-ins that this process has imported, as a run's ``config.yaml`` names them: files by their full path.

    They are those given, and every other module that has registered something, however it was imported.
    """
    found = [*_given]
    if "mast.registry" in sys.modules:
        from mast.plugins import plugin_names_of
        from mast.registry import authors

        names = [name for name in [*registering_modules, *authors()] if name in sys.modules]
        found += [place for name in names for place in plugin_names_of(name)]
    return list(dict.fromkeys(found))


def known() -> list[str]:
    """All plug-ins that a process which works for this one may need: :func:`recorded`, and those not yet imported."""
    return list(dict.fromkeys([*recorded(), *wanted]))


def note_author(author: Any) -> None:
    """Keeps the module that registers ``author``, a function or class, unless it is of avssl or mast."""
    if not _is_own(author) and author.__module__ not in registering_modules:
        registering_modules.append(author.__module__)


def _is_own(author: Any) -> bool:
    return (getattr(author, "__module__", None) or "__main__").split(".")[0] in _OWN


def imports_in(argv: Iterable[str]) -> list[str]:
    """The values of the options ``--import`` of a command line."""
    words = iter(argv)
    found = []
    for word in words:
        if word == "--import":
            found.append(next(words, ""))
        elif word.startswith("--import="):
            found.append(word.removeprefix("--import="))
    if "" in found:
        raise SettingsError("--import: give a module or a .py file")
    return found
