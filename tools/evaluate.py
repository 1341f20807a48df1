"""Evaluates a checkpoint on any data; all that its kind allows, or what is named.

python tools/evaluate.py --checkpoint runs/pretrain-videos --data esc50 --data.root PATH --evaluations probe knn
"""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import join_list, run
    from avssl.config import EvaluateConfig
    from avssl.pipelines.evaluate import evaluate

    arguments = join_list(sys.argv[1:], "--evaluations")
    return 0 if run(evaluate, EvaluateConfig, arguments).get("finished", True) else 130


if __name__ == "__main__":
    sys.exit(main())
