"""Embeds any media with a trained checkpoint: one row for each window, as Parquet or .npz.

python tools/embed.py --checkpoint runs/pretrain-videos --data /path/to/media --output features.parquet
"""

import sys


def main() -> int:
    """Runs the command line; returns the exit status."""
    # Not at the top: decoding workers import this file, too, and must not wait for all this.
    from avssl.cli import run
    from avssl.config.inference import EmbedConfig
    from avssl.pipelines.embed import embed_media

    try:
        run(embed_media, EmbedConfig)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
