"""Cross-validates fine-tuning: once per fold and seed, with the mean, deviation and intervals of every metric.

avssl crossval --data esc50 --folds fold=1..5
avssl crossval --data fsdd --group-by speaker --head full
"""

import sys
from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config import CrossvalConfig, crossval_arguments
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 1 where a fold failed, 130 where a signal ended the run."""
    config = parse(CrossvalConfig, crossval_arguments(argv), "crossval")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.crossval import crossval
        from avssl.pipelines.demo import text_table

    result = crossval(config)
    if not result["finished"]:
        return 130
    for table in result.get("tables", []):
        sys.stdout.write(f"\n{text_table(table)}\n{table.note}".rstrip() + "\n")
    return 1 if result["failed"] else 0
