"""Command lines of the commands: ``--config FILE``, dotted overrides, ``--data NAME``, one clear line on an error."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from avssl.config import PretrainConfig, given_options, resolve, to_yaml
from avssl.errors import SettingsError
from avssl.urls import hide_credentials

Config = TypeVar("Config")
_PRINT = "--print_config"
IMPORT_HELP = "A module or .py file that registers parts of its own; may be given several times."
_FLAGS = ("-h", "--help", _PRINT, "--list-objectives")


def parse(config_class: type[Config], argv: Sequence[str], command: str = "") -> Config:
    """:func:`read_settings` for a shell: what is wrong ends the process with status 2 and a clear line.

    Args:
        command: Name of the command, for its help.
    """
    try:
        return read_settings(config_class, argv, command)
    except SettingsError as error:
        told = hide_credentials(str(error))
        sys.stderr.write(f"error: {told}{see_help(told)} {f'avssl {command}'.strip()} --help\n")
        sys.exit(2)


def read_settings(config_class: type[Config], argv: Sequence[str], command: str = "") -> Config:
    """Reads ``config_class`` from ``argv``.

    Several ``--config`` files are merged, the later over the earlier, and options over both, wherever they stand.
    Without a file the recipe of the data is taken; see :func:`avssl.config.resolve`.

    Raises:
        SettingsError: an unknown key or a wrong value; the message is one line.
    """
    flags = [word for word in argv if word in _FLAGS]
    if flags and flags[0] != _PRINT:
        _help_parser(config_class, command).parse_args(flags[:1])
    files, given = given_options(config_class, [word for word in argv if word not in _FLAGS])
    config = resolve(config_class, given, files)
    if flags:
        sys.stdout.write(to_yaml(config))
        sys.exit(0)
    return config


def see_help(told: str) -> str:
    """How a line of error leads on to the help."""
    return " See" if told.endswith("?") else "; see"


def check_data(name: str | None) -> None:
    """Looks ``name`` up, so that a typo need not wait for the imports of training.

    Raises:
        DataError: there are no such data; the message names the nearest.
    """
    from avssl.data.catalog import find_entry  # with pyarrow, which parsing need not wait for

    if name is not None:
        find_entry(name)


def _help_parser(config_class: type, command: str) -> ArgumentParser:
    """What ``--help`` prints."""
    from avssl.data.catalog import names  # with pyarrow, which nothing but help needs here

    described = (config_class.__doc__ or "").split("\n")[0]
    known = f"Names that --data knows: {', '.join(names())}."
    parser = ArgumentParser(prog=f"avssl {command}".strip(), description=described, epilog=known)
    what = "YAML file of settings, or the name of a recipe in configs/, or none; of several, the later wins."
    parser.add_argument("--config", help=what)
    parser.add_argument("--import", dest="imports", metavar="PLUGIN", help=IMPORT_HELP)
    parser.add_argument(_PRINT, action="store_true", help="Print the resolved settings and exit.")
    parser.add_class_arguments(config_class)
    if config_class is PretrainConfig:
        parser.add_argument(
            "--list-objectives", action=_ListObjectives, help="Print the names of all objectives and exit."
        )
    return parser


class _ListObjectives(argparse.Action):
    """Prints one objective a line with what it does, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        from avssl.objectives import list_objectives  # with all that objectives need

        names = list_objectives()
        width = max(map(len, names))
        sys.stdout.write("".join(f"{name:{width}}  {what}\n" for name, what in names.items()))
        sys.exit(0)


def expand_shorthand(command: str, argv: Sequence[str]) -> list[str]:
    """``argv`` with what ``command`` takes in short written as the parser takes it."""
    if command == "crossval":
        return _of_crossval(argv)
    if command == "evaluate":
        return join_list(argv, "--evaluations")
    if command == "cache":
        return switch_on(join_list(argv, "--modalities"), "--verify")
    return list(argv)


def _of_crossval(argv: Sequence[str]) -> list[str]:
    """``argv`` as the parser takes it: ``--seeds 0 1 2`` becomes ``--seeds [0,1,2]``, ``--group-by`` ``--group_by``."""
    out: list[str] = []
    rest = ["--group_by" + argument[10:] if argument.startswith("--group-by") else argument for argument in argv]
    while rest:
        out.append(rest.pop(0))
        if out[-1] == "--seeds":
            values = []
            while rest and rest[0].lstrip("-").isdecimal():
                values.append(rest.pop(0))
            if values:
                out.append(f"[{','.join(values)}]")
    return out


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
