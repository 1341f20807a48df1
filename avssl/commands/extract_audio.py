"""Extracts the sound of the videos of any data, once, for training on sound alone: small files that decode fast.

avssl extract-audio --data epic-kitchens --root EPIC --output EPIC/audio
avssl finetune --data epic-kitchens --data.root EPIC --data.options '{prefer_audio_files: true}'
"""

import sys
from argparse import Namespace
from collections import Counter

from avssl.data.catalog import list_data
from avssl.data.extraction import SUMMARY, extract_all
from avssl.data.scan import warning_words


def run(arguments: Namespace) -> int:
    """The command; returns the exit status: 1 where no sound is there at the end."""
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
