"""Command lines of the commands whose options are no config: prepare, advise, extract-audio, compare, predict, average.

Those of the others are of :mod:`avssl.cli`. Nothing here imports what a command needs: help and a typo are answered
without torch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from avssl import plugins
from avssl.cli import IMPORT_HELP, see_help
from avssl.config import PrepareOptions
from avssl.data.catalog import names
from avssl.data.media.write import CODECS


def parse_arguments(command: str, description: str | None, argv: Sequence[str]) -> argparse.Namespace:
    """Reads the options of ``command``; what is wrong ends the process with status 2 and a clear line.

    Args:
        command: One of `OPTIONS`.
        description: For its help.
        argv: What stands behind its name.
    """
    parser = CommandParser(command, description)
    OPTIONS[command](parser)
    return parser.parse_args(argv)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command; what is wrong is one line here, too, and status 2.

    Args:
        command: Its name.
        description: Its module's docstring.
    """

    def __init__(self, command: str, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"avssl {command}", description=description, formatter_class=formatter, allow_abbrev=False)
        self.add_argument("--import", action=_Imported, metavar="PLUGIN", help=IMPORT_HELP)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an option that there is not comes before others that are missing."""
        for word in args or ():
            option = word.split("=")[0]
            if option.startswith("--") and len(option) > 2 and option not in self._option_string_actions:
                near = get_close_matches(option, self._option_string_actions, 1)
                self.error(f"no option {option}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with ``message``."""
        self.exit(2, f"error: {message}{see_help(message)} {self.prog} --help\n")


class _Imported(argparse.Action):
    """Imports a plug-in; the parsed options do not hold it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        plugins.load([values])


class _AtLeastZero(argparse.Action):
    """A number that must not be negative."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values < 0:
            parser.error(f"{option_string} must be at least 0, got {values}")
        setattr(namespace, self.dest, values)


_LISTED = f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet"
_ROOT = "folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME"


def _prepare(parser: CommandParser) -> None:
    default = {item.name: item.default for item in fields(PrepareOptions)}
    add = parser.add_argument
    add("--data", required=True, help=_LISTED)
    add("--root", help=_ROOT)
    add("--options", type=yaml.safe_load, default={}, help="options of the data set: '{fold: 2}'")
    add("--output", type=Path, help="the manifest, with the report (.html, .json) beside it; "
        "default: runs/prepare-NAME/NAME.parquet")  # fmt: skip
    add("--workers", type=int, help="processes that read files; default: one per core")
    add("--deep", action="store_true", help="decode every clip: finds silence, stills, duplicates, broken streams")
    what = "what is heard of several channels: mean, or the number of one, from 0 on"
    add("--channel", type=yaml.safe_load, default=default["channel"], help=what)
    add("--clip-seconds", type=float, help="length of a clip; a clip of less than half of it is short; "
        "default: the data YAML's")  # fmt: skip
    add("--max-pixels", type=int, default=default["max_pixels"], help="width times height of the largest picture "
        "that is decoded; default: %(default)s")  # fmt: skip
    add("--max-clip-bytes", type=int, default=default["max_clip_bytes"], help="bytes that the decoded sound or "
        "pictures of a clip may take; default: %(default)s")  # fmt: skip
    add("--stats", action="store_true", help="mean and deviation of the log-mel over the training split")
    add("--clips", type=int, default=default["clips"], help="--stats: so many clips at most")
    add("--seed", type=int, default=default["seed"], help="--stats: seed of the choice of clips")
    add("--sample-rate", type=int, default=default["sample_rate"], help="--stats: of the frontend, in Hz")
    add("--num-mels", type=int, default=default["num_mels"], help="--stats: of the frontend")


def _advise(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--data", required=True, help="videos to pretrain on: a folder, a list, a data YAML, the name of a known set")
    add("--root", help=_ROOT.replace("the media", "their media"))
    add("--options", type=yaml.safe_load, default={}, help="options of the data set: '{fold: 2}'")
    add("--labelled", help="labelled data for the trial; default: --data, where it has labels")
    add("--labelled-root", help="folder of their media")
    add("--labelled-options", type=yaml.safe_load, default={}, help="options of that data set")
    add("--steps", type=int, default=150, action=_AtLeastZero, help="optimizer steps of each part of the trial; 0 "
        "tries nothing; default: %(default)s")  # fmt: skip
    add("--settings", type=yaml.safe_load, default={}, metavar="YAML", help="settings of the trial's pretraining over "
        "its recipe: '{audio.model: mast_nano}'")  # fmt: skip
    add("--output", type=Path, help="folder of the trial and of advice.json; default: runs/advise-NAME")


def _extract_audio(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--data", required=True, help=_LISTED)
    add("--root", help=_ROOT)
    add("--options", type=yaml.safe_load, default={}, help="options of the data set: '{trial: true}'")
    where = "folder of the sound files, laid out as the videos are; may be --root"
    add("--output", type=Path, required=True, help=where)
    add("--workers", type=int, help="processes; default: one for each core")
    add("--format", choices=list(CODECS), default="flac", help="mono, 16 bits; default: %(default)s")
    add("--sample-rate", type=int, help="Hz; default: that of each source (EPIC-Kitchens: 24000)")
    what = "what is kept of several channels: mean, or the number of one, from 0 on; default: %(default)s"
    add("--channel", type=yaml.safe_load, default="mean", help=what)


def _compare(parser: CommandParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders with a result.json (finetune, evaluate)")
    add("--format", choices=("text", "markdown", "html"), default="text", help="default: text")
    add("--output", type=Path, help="file to write instead of printing")
    add("--metrics", nargs="+", metavar="NAME", help="metrics to show; default: all that the runs share")
    add("--force", action="store_true", help="compare runs of other data, splits or protocols all the same")


def _predict(parser: CommandParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="audio or video files; - is standard input")
    what = "a fine-tuning run on audio, its exported classifier, or a .ckpt file"
    add("--checkpoint", type=Path, required=True, help=what)
    add("--window", type=float, help="seconds of a window; default: the clip length that the model was trained with")
    add("--hop", type=float, help="seconds from window to window; default: one after the other")
    add("--top", type=int, default=3, help="classes named for each head, best first")
    add("--format", choices=("text", "json", "csv"), default="text", help="json: one object a line for each window")
    add("--no-merge", dest="merge", action="store_false", help="text: a line for every window, equal neighbours too")
    add("--batch-size", type=int, default=16, help="windows judged together")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--stream", action="store_true", help="raw samples on standard input, judged as each window completes")
    add("--rate", type=int, default=16000, help="of the raw samples, Hz")
    add("--sample-format", default="s16le", help="of the raw samples: u8, s16le, s16be, s32le, s32be, f32le, f32be")
    what = "what is heard of several channels: mean, or the number of one, from 0 on; default: as in training"
    add("--channel", type=yaml.safe_load, help=what)
    add("--channels", type=int, default=1, help="of the raw samples, interleaved; --channel chooses one")


def _average(parser: CommandParser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files of one run, for example step-*.ckpt")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write; any --checkpoint takes it")


OPTIONS = {
    "prepare": _prepare,
    "advise": _advise,
    "extract-audio": _extract_audio,
    "compare": _compare,
    "predict": _predict,
    "average": _average,
}
