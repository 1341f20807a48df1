"""Extracts the sound of the videos of any data, once, for training on sound alone: small files that decode fast.

avssl extract-audio --data epic-kitchens --root EPIC --output EPIC/audio
avssl finetune --data epic-kitchens --data.root EPIC --data.options '{prefer_audio_files: true}'
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from avssl.cli import CommandParser
from avssl.data.catalog import list_data, names
from avssl.data.extraction import SUMMARY, extract_all
from avssl.data.media.write import CODECS
from avssl.data.scan import warning_words

LOG_LEVEL = logging.WARNING  # what it did is told on standard output


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status: 1 where no sound is there at the end."""
    parser = CommandParser("extract-audio", __doc__)
    add = parser.add_argument
    add("--data", required=True, help=f"{', '.join(names())}, a data YAML, a folder, a .csv or .parquet")
    add("--root", help="folder of the media; default: the data YAML's, else $AVSSL_DATA/NAME")
    add("--options", type=yaml.safe_load, default={}, help="options of the data set: '{trial: true}'")
    where = "folder of the sound files, laid out as the videos are; may be --root"
    add("--output", type=Path, required=True, help=where)
    add("--workers", type=int, help="processes; default: one for each core")
    add("--format", choices=list(CODECS), default="flac", help="mono, 16 bits; default: %(default)s")
    add("--sample-rate", type=int, help="Hz; default: that of each source (EPIC-Kitchens: 24000)")
    what = "what is kept of several channels: mean, or the number of one, from 0 on; default: %(default)s"
    add("--channel", type=yaml.safe_load, default="mean", help=what)
    arguments = parser.parse_args(argv)
    manifest, _ = list_data(arguments.data, arguments.root, arguments.options)
    summary = extract_all(
        manifest,
        arguments.output,
        format=arguments.format,
        sample_rate=arguments.sample_rate,
        channel=arguments.channel,
        workers=arguments.workers,
        progress=True,
    )
    lines = [
        f"{summary.files} files: {summary.extracted} extracted ({summary.hours:.2f} h of sound), "
        f"{summary.there} there already, {len(summary.failures)} failed"
    ]
    lines += [f"  {count} x {reason}" for reason, count in summary.reasons.most_common()]
    if summary.late:
        lines.append(f"  {len(summary.late)} begin with silence, where the video has no sound yet: in the summary")
    for warning, count in Counter(summary.warnings.values()).most_common():
        lines.append(f"  {count} in part: {warning_words(warning)}: in the summary")
    sys.stdout.write("\n".join([*lines, f"summary: {arguments.output / SUMMARY}\n"]))
    return 0 if summary.extracted + summary.there else 1
