"""Says which classes are heard when, in files, in a file on standard input (-), or in raw samples (--stream -).

avssl predict --checkpoint runs/finetune-esc50-full-pretrained recording.wav video.mp4
arecord -f S16_LE -r 16000 | avssl predict --checkpoint RUN --stream --rate 16000 --sample-format s16le -
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from avssl.cli import CommandParser
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 1 where a file failed."""
    arguments = parse(argv)
    with Meter("starting"):
        from avssl.pipelines.predict import run_predict

    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        return 1 if run_predict(**vars(arguments)) else 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # the way to end a stream
        return 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser("predict", __doc__)
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
    return parser.parse_args(argv)
