"""Lists and checks any data once: writes its manifest (Parquet) and a health report (HTML, JSON): what is missing,
broken, silent, still, short or in two splits, the classes, and with --stats what the frontend should normalize by.

python tools/prepare.py --data grid --root data/grid --deep --stats
python tools/pretrain.py --data grid.parquet

A killed run, started again with the same arguments, goes on where it was.
"""

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path

import yaml

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.config import AudioConfig
from avssl.data.catalog import names
from avssl.data.failures import DataError
from avssl.pipelines.prepare import PrepareOptions, prepare


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    audio = AudioConfig()
    default = {item.name: item.default for item in fields(PrepareOptions)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help=f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet")
    add("--root", help="folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME")
    add("--options", type=yaml.safe_load, default={}, help="options of the data set: '{fold: 2}'")
    add("--output", type=Path, help="the manifest, default NAME.parquet; the report becomes NAME.html and NAME.json")
    add("--workers", type=int, help="processes that read files; default: one per core")
    add("--deep", action="store_true", help="decode every clip: finds silence, stills, duplicates, broken streams")
    add("--clip-seconds", type=float, help="length of a clip; a clip of less than half of it is short; "
        "default: the data YAML's")  # fmt: skip
    add("--stats", action="store_true", help="mean and deviation of the log-mel over the training split")
    add("--clips", type=int, default=default["clips"], help="--stats: so many clips at most")
    add("--seed", type=int, default=default["seed"], help="--stats: seed of the choice of clips")
    add("--sample-rate", type=int, default=audio.sample_rate, help="--stats: of the frontend, in Hz")
    add("--num-mels", type=int, default=audio.num_mels, help="--stats: of the frontend")
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        arguments.output = Path(f"{Path(arguments.data).stem}.parquet")
    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        prepare(PrepareOptions(**vars(arguments)), tell=print)
    except (DataError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
