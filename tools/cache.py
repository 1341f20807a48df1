"""Caches any data once, as small frames and 16 kHz sound in WebDataset shards, which train many times faster.

python tools/cache.py --data vggsound --data.root PATH --output caches/vggsound
python tools/pretrain.py --data caches/vggsound
"""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: the processes that make samples import this file, too, and must not wait for all this.
    from avssl.cli import join_list, run, switch_on
    from avssl.config.cache import CacheConfig
    from avssl.pipelines.cache import cache

    try:
        run(cache, CacheConfig, switch_on(join_list(sys.argv[1:], "--modalities"), "--verify"))
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
