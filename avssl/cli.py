"""Command lines of the commands: ``--config FILE``, dotted overrides, ``--data NAME``, one clear line on an error."""

import sys
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from avssl.config import PretrainConfig
from avssl.errors import SettingsError

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """:func:`read_settings` for a shell: what is wrong ends the process with status 2 and a clear line."""
    try:
        return read_settings(config_class, sys.argv[1:] if argv is None else argv)
    except SettingsError as error:
        sys.stderr.write(f"error: {error}; see --help\n")
        sys.exit(2)


def read_settings(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Reads ``config_class`` from ``argv``.

    Several ``--config`` files are merged, the later over the earlier, and options over both.

    Raises:
        SettingsError: an unknown key or a wrong value; the message is one line.
    """
    description = (config_class.__doc__ or "").split("\n")[0]
    parser = ArgumentParser(description=description, exit_on_error=False)
    what = "YAML file of settings that differ from the defaults; of several, the later wins."
    parser.add_argument("--config", action="config", help=what)
    parser.add_class_arguments(config_class)
    if config_class is PretrainConfig:
        parser.add_argument(
            "--list-objectives", action=_ListObjectives, help="Print the names of all objectives and exit."
        )
    try:
        arguments = parser.parse_args(_configs_first(_data_names(argv)))
    except ArgumentError as error:
        raise SettingsError(" ".join(str(error).split())) from error
    values = parser.instantiate_classes(arguments).as_dict()
    values.pop("config", None)
    return config_class(**values)


class _ListObjectives(Action):
    """Prints one objective a line with what it does, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        from avssl.objectives import list_objectives  # with all that objectives need

        names = list_objectives()
        width = max(map(len, names))
        sys.stdout.write("".join(f"{name:{width}}  {what}\n" for name, what in names.items()))
        sys.exit(0)


def join_list(argv: Sequence[str], option: str) -> list[str]:
    """``argv`` with ``option a b`` and ``option a,b`` written as the parser takes a list: ``option [a,b]``."""
    out: list[str] = []
    rest = list(argv)
    while rest:
        out.append(rest.pop(0))
        if out[-1] == option and rest and not rest[0].startswith(("-", "[")):
            words = []
            while rest and not rest[0].startswith("-"):
                words += [word for word in rest.pop(0).split(",") if word]
            out.append(f"[{','.join(words)}]")
    return out


def switch_on(argv: Sequence[str], option: str) -> list[str]:
    """``argv`` with a bare ``option`` written as the parser takes a truth: ``option true``."""
    out: list[str] = []
    for place, argument in enumerate(argv):
        out.append(argument)
        if argument == option and (place + 1 == len(argv) or argv[place + 1].startswith("-")):
            out.append("true")
    return out


def _configs_first(argv: Sequence[str]) -> list[str]:
    """Config files before the options, in their order: an option wins over them wherever it stands."""
    files: list[str] = []
    options: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--config" and rest:
            files += [argument, rest.pop(0)]
        else:
            (files if argument.startswith("--config=") else options).append(argument)
    return files + options


def _data_names(argv: Sequence[str]) -> list[str]:
    """``--data NAME`` is short for ``--data.name NAME``."""
    out = []
    for argument in argv:
        if argument == "--data" or argument.startswith("--data="):
            argument = "--data.name" + argument.removeprefix("--data")
        out.append(argument)
    return out
