"""Extracts the sound of the videos of any data, once, for training on sound alone: small files that decode fast.

python tools/extract_audio.py --data epic-kitchens --root EPIC --output EPIC/audio
python tools/finetune.py --data epic-kitchens --data.root EPIC --data.options '{prefer_audio_files: true}'
"""

import argparse
import logging
import sys
from pathlib import Path

import yaml

import avssl  # noqa: F401  (first: repairs CPU-only torch beside CUDA-linked torchvision/torchaudio)
from avssl.data.catalog import list_data, names
from avssl.data.extraction import SUMMARY, extract_all
from avssl.data.failures import DataError
from avssl.data.media.extract import CODECS


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--data", required=True, help=f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet"
    )
    parser.add_argument("--root", help="folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME")
    parser.add_argument("--options", type=yaml.safe_load, default={}, help="options of the data set: '{trial: true}'")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the sound files, laid out as the videos are; may be --root",
    )
    parser.add_argument("--workers", type=int, help="processes; default: one for each core")
    parser.add_argument("--format", choices=list(CODECS), default="flac", help="mono, 16 bits; default: %(default)s")
    parser.add_argument("--sample-rate", type=int, help="Hz; default: that of each source (EPIC-Kitchens: 24000)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        manifest, _ = list_data(arguments.data, arguments.root, arguments.options)
        summary = extract_all(
            manifest,
            arguments.output,
            format=arguments.format,
            sample_rate=arguments.sample_rate,
            workers=arguments.workers,
            progress=True,
        )
    except (DataError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{summary.files} files: {summary.extracted} extracted ({summary.hours:.2f} h of sound), "
          f"{summary.there} there already, {len(summary.failures)} failed")  # fmt: skip
    for reason, count in summary.reasons.most_common():
        print(f"  {count} x {reason}")
    print(f"summary: {arguments.output / SUMMARY}")
    return 0 if summary.extracted + summary.there else 1


if __name__ == "__main__":
    sys.exit(main())
