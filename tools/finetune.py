"""Trains a linear or a full head to classify audio, video or both; with no arguments on the demo set."""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config import FinetuneConfig
    from avssl.pipelines.finetune import finetune

    return 0 if run(finetune, FinetuneConfig).get("finished", True) else 130


if __name__ == "__main__":
    sys.exit(main())
