"""The main job, end to end, on the demo set: pretrain, linear probe, fine-tune, retrieval, and a table of it all."""

import sys
from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config import DemoConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status, 130 where a signal ended the run."""
    config = parse(DemoConfig, argv, "demo")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.demo import demo, text_table

    result = demo(config)
    if not result["finished"]:
        return 130
    for table in result["tables"]:
        sys.stdout.write(f"\n{text_table(table)}\n")
    sys.stdout.write(f"\nreport: {result['report']}\n")
    return 0
