"""Draws what augmentation does to clips, and writes them to listen to; with no arguments on the demo set."""

from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config import AugmentSheetConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    config = parse(AugmentSheetConfig, argv, "augment")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.augment import augment_sheet

    augment_sheet(config)
    return 0
