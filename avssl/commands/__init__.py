"""The command ``avssl``: one module for each of its commands, from its settings to its result.

Settings are parsed before what a command needs is imported: help and a typo are answered without torch. A
command raises its errors, and :func:`main` tells those that a user can cause and mend in one line.
"""

import ast
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from avssl import plugins
from avssl.errors import LostProcessError, NonFiniteError, SettingsError
from avssl.progress import Meter, lines_above_bars
from avssl.urls import hide_credentials

# Commands whose settings :func:`avssl.cli.parse` reads, by the name of their class in :mod:`avssl.config`; options of
# the others are in :mod:`avssl.arguments`.
SETTINGS = {
    "pretrain": "PretrainConfig",
    "finetune": "FinetuneConfig",
    "crossval": "CrossvalConfig",
    "embed": "EmbedConfig",
    "export": "ExportConfig",
    "cache": "CacheConfig",
    "demo": "DemoConfig",
    "augment": "AugmentSheetConfig",
    "evaluate": "EvaluateConfig",
}
COMMANDS = (
    "demo",
    "prepare",
    "advise",
    "cache",
    "extract-audio",
    "pretrain",
    "finetune",
    "crossval",
    "evaluate",
    "compare",
    "predict",
    "embed",
    "export",
    "average",
    "augment",
)
# What these did is told on standard output: of the log only warnings are shown.
QUIET = ("prepare", "extract-audio")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that ``argv`` begins with; default: the arguments of the process.

    Returns:
        The exit status: 0; 1 after an error, told in one line; 2 for settings that cannot be parsed; 130 where a signal
        ended the work.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if name == "--version":
        from avssl import __version__

        sys.stdout.write(f"{__version__}\n")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1, cutoff=0.5)
        told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        return _fail(f"no command {name!r}; {told} See avssl --help", 2)
    try:
        plugins.load(plugins.imports_in(rest))
    except SettingsError as error:
        return _fail(str(error), 2)
    level = logging.WARNING if name in QUIET else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname).1s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("httpx", "matplotlib", "lightning.fabric", "libav"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("avssl.progress").setLevel(logging.INFO)  # of commands that tell nothing else on stderr, too
    try:
        with lines_above_bars():
            status: int = (run_with_settings if name in SETTINGS else run_with_arguments)(name, rest)
        return status
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except Exception as error:
        # An import that failed names its module; without one it is our word on an optional package, with its command.
        optional = isinstance(error, ImportError) and error.name is None
        # Anything else is a defect and shows its traceback, here, where nothing can print it with a URL's password.
        if os.environ.get("AVSSL_DEBUG") or not (optional or isinstance(error, _user_errors())):
            sys.stderr.write(hide_credentials(traceback.format_exc()))
            return 1
        return _fail(one_line(error), 1)


def run_with_settings(name: str, argv: Sequence[str]) -> int:
    """Reads the settings of a command, then imports and runs it; returns the exit status."""
    from avssl.cli import check_data, expand_shorthand, parse  # with the parsers, which the list of commands needs not

    config: Any = parse(getattr(import_module("avssl.config"), SETTINGS[name]), expand_shorthand(name, argv), name)
    check_data(config.data.name)
    with Meter("starting"):
        command = import_module(f"avssl.commands.{name}")
    status: int = command.run(config)
    return status


def run_with_arguments(name: str, argv: Sequence[str]) -> int:
    """Reads the options of a command without a config, then imports and runs it; returns the exit status."""
    from avssl.arguments import parse_arguments

    arguments = parse_arguments(name, _docstring(name), argv)
    with Meter("starting"):
        command = import_module(f"avssl.commands.{name.replace('-', '_')}")
    status: int = command.run(arguments)
    return status


class _Formatter(logging.Formatter):
    """Hides the credentials of URLs, also of those in other packages' messages."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_credentials(super().format(record))


def _help() -> str:
    lines = ["usage: avssl COMMAND [OPTIONS]    avssl COMMAND --help lists its options", ""]
    for name in COMMANDS:
        summary = _docstring(name).split("\n")[0]
        lines.append(f"  {name:13}  {summary}")
    return "\n".join(lines) + "\n"


def _docstring(name: str) -> str:
    """What the module of a command says of it, without importing it."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _user_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend, told in one line without a traceback; anything else is a defect."""
    from avssl.data.failures import DataError  # with the reader of media, which a parser need not wait for
    from avssl.data.media import MediaError

    return OSError, ValueError, KeyError, DataError, MediaError, NonFiniteError, LostProcessError


def _fail(told: str, status: int) -> int:
    sys.stderr.write(f"error: {hide_credentials(told)}\n")
    return status


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.strerror:
        where = os.path.dirname(os.path.abspath(error.filename)) if error.filename else "a folder that is written to"
        return f"no space left in {where}: free some and run the same command again"
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 2]"
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror
    if isinstance(error, KeyError):
        return " ".join(str(error.args[0]).split()) if error.args else "missing key"
    return " ".join(str(error).split()) or type(error).__name__
