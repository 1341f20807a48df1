"""Says which classes are heard when, in files, in a media file on standard input (-), or in raw samples (--stream -).

python tools/predict.py --checkpoint runs/finetune-esc50-full-pretrained recording.wav video.mp4
arecord -f S16_LE -r 16000 | python tools/predict.py --checkpoint RUN --stream --rate 16000 --sample-format s16le -
"""

import argparse
import logging
import os
import sys
from pathlib import Path


def main() -> int:
    """Runs the command line; returns the exit status: 1 where a file failed."""
    arguments = parse()
    # Not at the top: --help need not wait for all this.
    from avssl.cli import USER_ERRORS
    from avssl.pipelines.predict import run_predict

    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        return 1 if run_predict(**vars(arguments)) else 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except USER_ERRORS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="audio or video files; - is standard input")
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="a fine-tuning run on audio, its exported classifier, or a .ckpt file",
    )
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
    add("--channels", type=int, default=1, help="of the raw samples, interleaved; they are averaged")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
