"""Puts finished runs side by side in one table, and says which differences are more than chance.

python tools/compare.py runs/finetune-esc50-full-random runs/finetune-esc50-full-pretrained --format markdown
"""

import argparse
import logging
import sys
from pathlib import Path


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders with a result.json (finetune, evaluate)")
    add("--format", choices=("text", "markdown", "html"), default="text", help="default: text")
    add("--output", type=Path, help="file to write instead of printing")
    add("--metrics", nargs="+", metavar="NAME", help="metrics to show; default: all that the runs share")
    add("--force", action="store_true", help="compare runs of other data, splits or protocols all the same")
    arguments = parser.parse_args()

    from avssl.pipelines.compare import compare

    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.INFO, stream=sys.stderr)
    options = {name: getattr(arguments, name) for name in ("format", "output", "metrics", "force")}
    try:
        text = compare(arguments.runs, **options, bold=sys.stdout.isatty())
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if arguments.output is None:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
