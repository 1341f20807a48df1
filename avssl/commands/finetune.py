"""Trains a linear or a full head to classify audio, video or both; with no arguments on the demo set."""

from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config import FinetuneConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status, 130 where a signal ended the run."""
    config = parse(FinetuneConfig, argv, "finetune")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.finetune import finetune
        from avssl.training.run import tell_next

    result = finetune(config)
    tell_next(result)
    return 0 if result.get("finished", True) else 130
