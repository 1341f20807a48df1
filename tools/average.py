"""Writes a checkpoint whose weights are the mean of several checkpoints of one run."""

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files of one run, for example step-*.ckpt")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write; any --checkpoint takes it")
    args = parser.parse_args()

    from avssl.averaging import average_checkpoints, write_average

    try:
        write_average(average_checkpoints(args.checkpoints), args.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"mean of {len(args.checkpoints)} checkpoints: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
