"""Extracts the sound of the videos of any data, once, for training on sound alone: small files that decode fast.

avssl extract-audio --data epic-kitchens --root EPIC --output EPIC/audio
avssl finetune --data epic-kitchens --data.root EPIC --data.options '{prefer_audio_files: true}'
"""

import json
import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avssl.data.catalog import list_data
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.media.audio import MISSING_SECONDS, Channel, check_channel
from avssl.data.media.pool import available_cores, run_all
from avssl.data.media.write import CODECS, Extraction, extract_audio
from avssl.data.scan import warning_words
from avssl.data.shards.store import is_address
from avssl.errors import printable
from avssl.files import DamagedError, atomic_path, remove_leftovers, seal, unseal
from avssl.locks import hold
from avssl.progress import Meter

logger = logging.getLogger(__name__)

SUMMARY = "extract_audio.json"
# Seconds for one file, beyond which its decoder is taken to hang: hours of video from a slow disk take less.
TIMEOUT = 3600.0


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


@dataclass
class Summary:
    """What became of the files of a data set.

    Attributes:
        settings: Format, sample rate (null: each source's own) and channel, which all files in a folder share.
        files: Distinct source files.
        extracted: Of this run.
        there: Found complete from an earlier run, or sources that are such sound files themselves.
        hours: Of sound extracted in this run.
        failures: Source -> reason.
        late: Source -> seconds of silence with which its sound file begins, where sound begins after the pictures.
        warnings: Source -> why its sound file holds a part of its sound only, such as "timestamps start over".
    """

    settings: dict[str, Any]
    files: int
    extracted: int = 0
    there: int = 0
    hours: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        """Failures by reason, without what is particular to a file."""
        return Counter(reason.split(" (")[0] for reason in self.failures.values())


def extract_all(
    manifest: Manifest,
    output: Path,
    *,
    format: str = "flac",
    sample_rate: int | None = None,
    channel: Channel = "mean",
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Extracts the sound of every file of a manifest into ``output``, each at its path below the manifest's root.

    ``P01/videos/P01_01.MP4`` becomes ``P01/videos/P01_01.flac``, so that a data set whose root is ``output`` finds it
    as it finds the video; EPIC-Kitchens looks in the folder ``audio`` of its root, too. A file that is there is
    complete and is kept: the same command continues a stopped run. ``extract_audio.json`` holds the summary.

    Args:
        manifest: Need not be scanned.
        output: May be the manifest's root: the sound then lies beside the videos.
        format: "flac" or "wav".
        sample_rate: Hz; None keeps each source's own.
        channel: "mean" of a source's channels, or the number of the one to take, from 0 on.
        workers: Processes; None is one for each available core, 0 works in this process.
        progress: Show the rate and the time left.

    Raises:
        DataError: A path outside of the root, or ``output`` holds an extraction with other settings.
        HeldError: Another process extracts into ``output``.
        OSError: A full disk and the like; the same command continues.
        ValueError: An unknown format, a sample rate below 1, or no channel.
    """
    if format not in CODECS:
        raise ValueError(f"format: must be {' or '.join(CODECS)}, got {format!r}")
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample-rate: must be at least 1 Hz, got {sample_rate}")
    check_channel(channel)
    sources = sorted(set(manifest.column("path")))
    if any(map(is_address, sources)):
        raise DataError("the samples of a cache are small files of sound already; extract that of the originals")
    summary = Summary({"format": format, "sample_rate": sample_rate, "channel": channel}, len(sources))
    with hold(output / SUMMARY, "extraction"):
        _extract(manifest.root, sources, output, summary, workers, progress)
    return summary


def _extract(
    root: Path, sources: list[str], output: Path, summary: Summary, workers: int | None, progress: bool
) -> None:
    """Does what is not there yet, and tells the summary of it."""
    _check_settings(output / SUMMARY, summary.settings)
    jobs = _plan(root, sources, output, summary)
    _write(output / SUMMARY, summary)
    remove_leftovers(output, [SUMMARY])
    names: dict[Path, set[str]] = {}
    for target in (Path(job.target) for job in jobs):
        names.setdefault(target.parent, set()).add(target.name)
    for folder, wanted in names.items():
        remove_leftovers(folder, wanted)
    sizes = {job.path: _size(job.path) for job in jobs}
    workers = available_cores() if workers is None else workers
    results = run_all(extract_audio, jobs, _failed, workers=workers, timeout=TIMEOUT, chunk=1)
    # In bytes, not files: a video of an hour and one of a minute would mislead the time left.
    with Meter("extracting sound", total=sum(sizes.values()), unit="B", shown=progress) as meter:
        for job, done in results:
            meter.update(sizes[job.path])
            if done.error:
                summary.failures[job.path] = done.error + (f" ({done.detail})" if done.detail else "")
                meter.note(f"{len(summary.failures)} failed")
            else:
                summary.extracted += 1
                if done.silence > MISSING_SECONDS:
                    summary.late[job.path] = round(done.silence, 3)
                if done.warning:
                    summary.warnings[job.path] = done.warning
                    told = f"{warning_words(done.warning)} ({done.seconds:.2f} s)"
                    logger.warning("%s: %s", printable(job.path), told)
                summary.hours += done.seconds / 3600
    _write(output / SUMMARY, summary)


def _plan(root: Path, sources: list[str], output: Path, summary: Summary) -> list[Extraction]:
    """What remains to be done; what cannot be is counted in the summary."""
    jobs: list[Extraction] = []
    owners: dict[Path, str] = {}
    for source in sources:
        if os.path.isabs(source):
            if not Path(source).is_relative_to(root):
                raise DataError(f"{source} is not under {root}: extract the sound of each data set on its own")
            source = str(Path(source).relative_to(root))
        path, target = root / source, (output / source).with_suffix(f".{summary.settings['format']}")
        if target.is_file() and path.is_file() and os.path.samefile(path, target):
            summary.there += 1
        elif target in owners:
            summary.failures[str(path)] = f"same name as another file ({owners[target]})"
        else:
            owners[target] = source
            if target.is_file():
                summary.there += 1
            else:
                rate, channel = summary.settings["sample_rate"], summary.settings["channel"]
                jobs.append(Extraction(str(path), str(target), rate, channel))
    return jobs


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    if not file.is_file():
        return
    try:
        earlier = unseal(file.read_bytes(), file, "move it away or choose another --output")["settings"]
    except DamagedError as error:
        raise DataError(str(error)) from error
    except KeyError as error:
        raise DataError(f"{file}: not the summary of an extraction; move it away or choose another --output") from error
    if {"channel": "mean"} | earlier != settings:
        raise DataError(f"{file}: was extracted with {earlier}, not with {settings}; choose another --output")


def _write(file: Path, summary: Summary) -> None:
    values = vars(summary) | {"reasons": dict(summary.reasons.most_common())}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(seal(values), indent=2) + "\n", encoding="utf-8")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # the reader will say what is wrong


def _failed(job: Extraction, reason: str) -> Extraction:
    return replace(job, error=reason)
