"""Lists and checks any data once: writes its manifest (Parquet) and a health report (HTML, JSON).

It says what is missing, broken, silent, still, short or in two splits, the classes, and with --stats what the frontend
should normalize by.

avssl prepare --data grid --root data/grid --deep --stats
avssl pretrain --data runs/prepare-grid/grid.parquet

A killed run, started again with the same arguments, goes on where it was.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml

from avssl.cli import CommandParser
from avssl.config import PrepareOptions
from avssl.data.catalog import names
from avssl.progress import Meter

LOG_LEVEL = logging.WARNING  # what it did is told on standard output


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    default = {item.name: item.default for item in fields(PrepareOptions)}
    parser = CommandParser("prepare", __doc__)
    add = parser.add_argument
    add("--data", required=True, help=f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet")
    add("--root", help="folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME")
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
    arguments = parser.parse_args(argv)
    with Meter("starting"):
        from avssl.pipelines.prepare import prepare

    prepare(PrepareOptions(**vars(arguments)), tell=lambda line: sys.stdout.write(f"{line}\n"))
    return 0
