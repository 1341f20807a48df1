"""Writes a checkpoint whose weights are the mean of several checkpoints of one run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from avssl.cli import CommandParser
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = CommandParser("average", __doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files of one run, for example step-*.ckpt")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write; any --checkpoint takes it")
    arguments = parser.parse_args(argv)
    with Meter("starting"):
        from avssl.averaging import average_checkpoints, write_average
        from avssl.locks import hold

    with hold(arguments.output, "checkpoint"):
        write_average(average_checkpoints(arguments.checkpoints), arguments.output)
    sys.stdout.write(f"mean of {len(arguments.checkpoints)} checkpoints: {arguments.output}\n")
    return 0
