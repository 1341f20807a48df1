"""Caches any data once, as small frames and 16 kHz sound in WebDataset shards, which train many times faster.

avssl cache --data vggsound --data.root PATH --output caches/vggsound
avssl pretrain --data caches/vggsound
"""

import sys
from collections.abc import Sequence

from avssl.cli import check_data, join_list, parse, switch_on
from avssl.config.cache import CacheConfig
from avssl.progress import Meter


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    config = parse(CacheConfig, switch_on(join_list(argv, "--modalities"), "--verify"), "cache")
    check_data(config.data.name)
    with Meter("starting"):
        from avssl.pipelines.cache import cache

    try:
        cache(config)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0
