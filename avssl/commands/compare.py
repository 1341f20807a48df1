"""Puts finished runs side by side in one table, and says which differences are more than chance.

avssl compare runs/finetune-esc50-full-random runs/finetune-esc50-full-pretrained --format markdown
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from avssl.cli import CommandParser
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = CommandParser("compare", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders with a result.json (finetune, evaluate)")
    add("--format", choices=("text", "markdown", "html"), default="text", help="default: text")
    add("--output", type=Path, help="file to write instead of printing")
    add("--metrics", nargs="+", metavar="NAME", help="metrics to show; default: all that the runs share")
    add("--force", action="store_true", help="compare runs of other data, splits or protocols all the same")
    arguments = parser.parse_args(argv)
    with Meter("starting"):
        from avssl.pipelines.compare import compare

    options = {name: getattr(arguments, name) for name in ("format", "output", "metrics", "force")}
    text = compare(arguments.runs, **options, bold=sys.stdout.isatty())
    if arguments.output is None:
        sys.stdout.write(text)
    return 0
