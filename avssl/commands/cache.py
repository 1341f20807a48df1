"""Caches any data once, as small frames and 16 kHz sound in WebDataset shards, which train many times faster.

avssl cache --data vggsound --data.root PATH --output caches/vggsound
avssl pretrain --data caches/vggsound
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from avssl.bounds import check_bounds
from avssl.config import CacheConfig
from avssl.data.catalog import find_entry, open_data
from avssl.data.failures import DataError
from avssl.data.shards.encode import Settings
from avssl.data.shards.index import is_cache, verify
from avssl.data.shards.write import write_cache
from avssl.limits import set_limits

logger = logging.getLogger(__name__)


def run(config: CacheConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended it."""
    try:
        cache(config)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0


def cache(config: CacheConfig) -> dict[str, Any]:
    """Makes or continues the cache of ``config``; with ``verify``, checks it.

    Returns:
        ``{"samples", "rows", "kept", "shards", "bytes", "seconds", "failures", "reasons", "unusable"}``, or, of a
        check, ``{"wrong": [...]}``.

    Raises:
        DataError: the data or the output cannot be used, nothing could be cached, or a check found something wrong.
    """
    if config.verify:
        return _verify(config.output)
    settings = Settings(
        config.short_side,
        config.fps,
        config.quality,
        config.sample_rate,
        tuple(dict.fromkeys(config.modalities)),
        config.channel,
    )
    check_bounds(config)
    name, source = config.data.name, config.data
    if is_cache(name):
        raise DataError(f"data: {name} is a cache already; copy the folder, or make one of the originals")
    entry = find_entry(name)
    set_limits(source)
    manifest = open_data(name, source.root, source.options, workers=config.workers)
    began = time.monotonic()
    report = write_cache(
        manifest,
        config.output,
        settings,
        entry=entry.stated,
        name=name,
        samples_per_shard=config.samples_per_shard,
        workers=config.workers,
    )
    seconds = time.monotonic() - began
    if report.kept:
        logger.info("%d of %d shards were there already", report.kept, report.shards)
    logger.info(
        "%s: %d samples of %d rows in %d shards, %.1f MB, %.0f s",
        *(config.output, report.samples, report.rows, report.shards, report.bytes / 1e6, seconds),
    )
    for reason, count in report.unusable.most_common():
        logger.warning("%d rows are not in it: %s (found by the scan)", count, reason)
    for reason, count in report.reasons.most_common():
        first = next(path for path, why in report.failures.items() if why.startswith(reason))
        logger.warning("%d files are not, or not whole, in it: %s; the first: %s", count, reason, first)
    return vars(report) | {"seconds": seconds, "reasons": report.reasons}


def _verify(location: str) -> dict[str, Any]:
    wrong = verify(location)
    if wrong:
        for line in wrong:
            logger.error("%s", line)
        raise DataError(
            f"{location}: {len(wrong)} shards are not what was written, the first: {wrong[0]}; delete these "
            "tars and run the command that made the cache: it makes them again"
        )
    logger.info("%s: every byte is as it was written", location)
    return {"wrong": wrong}
