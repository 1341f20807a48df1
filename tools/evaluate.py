"""Evaluates a checkpoint on any data: retrieval and linear probe, or classification."""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config import EvaluateConfig
    from avssl.pipelines.evaluate import evaluate

    return 0 if run(evaluate, EvaluateConfig).get("finished", True) else 130


if __name__ == "__main__":
    sys.exit(main())
