"""Pretrains an audio-visual pair on raw video; with no arguments on the demo set."""

from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config import PretrainConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status, 130 where a signal ended the run."""
    config = parse(PretrainConfig, argv, "pretrain")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.pretrain import pretrain
        from avssl.training.run import tell_next

    result = pretrain(config)
    tell_next(result)
    return 0 if result.get("finished", True) else 130
