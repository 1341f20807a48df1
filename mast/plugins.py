"""Plug-ins: modules, files and installed packages that register parts of their own when they are imported."""

import importlib
import importlib.util
import inspect
import logging
import sys
import sysconfig
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

ENTRY_POINTS = "avssl.plugins"  # the group that an installed package names its module in


class PluginError(ValueError):
    """A plug-in that cannot be imported; the message is one line that names it."""


def import_plugin(name: str) -> ModuleType:
    """Imports a plug-in, and so runs its decorators; a second time does nothing.

    Args:
        name: A module, looked for where Python does and then in the working folder; or the path of a ``.py`` file or of
            a package's folder. Its folder is added to ``sys.path``, so that other processes can import it, too.

    Raises:
        PluginError: there is none, or it needs a module that is missing. What its own code raises is not caught.
    """
    path = plugin_path(name)
    if path is None:
        if importlib.util.find_spec(name.split(".")[0]) is None:
            _look_in(Path.cwd())
        return _import(name, name)
    if not (path.is_file() or (path / "__init__.py").is_file()):
        raise PluginError(f"plug-in {name}: there is no such file, nor a package's folder")
    _look_in(path.parent)
    module = _import(path.stem, name)
    found = Path(module.__file__).resolve() if module.__file__ else None
    if found not in (path, path / "__init__.py"):
        raise PluginError(f"plug-in {name}: Python has another module {path.stem}, {found}: rename the file")
    return module


def plugin_path(name: str) -> Path | None:
    """Where a plug-in is that is named by its place; None for the name of a module."""
    is_path = name.endswith(".py") or "/" in name or "\\" in name
    return Path(name).expanduser().resolve() if is_path else None


def plugin_names_of(module: str) -> list[str]:
    """What :func:`import_plugin` takes in turn to find the imported ``module`` again, from any folder.

    It is the name where the module is installed. Else it is the path of its file, or of its package's folder, and of a
    module inside a package then its name.
    """
    package = sys.modules[module.split(".")[0]]
    file = inspect.getsourcefile(package) if getattr(package, "__file__", None) else None
    if file is None:
        return [module]
    path = Path(file).resolve()
    installed = (Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib"))
    if any(path.is_relative_to(folder) for folder in installed):
        return [module]
    place = str(path.parent if path.name == "__init__.py" else path)
    return [place, module] if "." in module else [place]


@cache
def import_installed() -> None:
    """Imports the plug-ins of installed packages, once; one that fails is warned of, and the others are imported."""
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # others' code, which is to stop nobody who does not need it
            logger.warning("the installed plug-in %s (%s) cannot be imported: %r", point.name, point.value, error)


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise PluginError(
                f"plug-in {name}: there is no module {missing}: install it, or give the path of its file"
            ) from error
        raise PluginError(f"plug-in {name}: it needs the module {missing}, which is not installed") from error
