"""Embeds any media with a trained checkpoint: one row for each window, as Parquet or .npz.

avssl embed --checkpoint runs/pretrain-videos --data /path/to/media --output features.parquet
"""

import sys
from collections.abc import Sequence

from avssl.cli import check_data, parse
from avssl.config.inference import EmbedConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    config = parse(EmbedConfig, argv, "embed")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.embed import embed_media

    try:
        embed_media(config)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0
