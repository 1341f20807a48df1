"""Evaluates a checkpoint on any data; all that its kind allows, or what is named.

avssl evaluate --checkpoint runs/pretrain-videos --data esc50 --data.root PATH --evaluations probe knn
"""

from collections.abc import Sequence

from avssl.cli import check_data, join_list, parse
from avssl.config import EvaluateConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status, 130 where a signal ended the run."""
    config = parse(EvaluateConfig, join_list(argv, "--evaluations"), "evaluate")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.evaluate import evaluate

    return 0 if evaluate(config).get("finished", True) else 130
