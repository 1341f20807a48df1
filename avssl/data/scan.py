"""Looking at every file of a manifest once, before a run stumbles over the bad ones."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from avssl.data.manifest import Manifest
from avssl.data.media.pool import probe_all
from avssl.data.media.probe import MediaInfo, probe

logger = logging.getLogger(__name__)

_FROM_PROBE = ("has_audio", "has_video", "sample_rate", "channels", "fps", "width", "height", "error")
_EXAMPLES = 3
# A segment may end this many seconds after its file without being called cut short (rounded annotations).
_END_TOLERANCE = 0.1


def scan(
    manifest: Manifest, workers: int | None = None, progress: bool | None = None, deep: bool | None = None
) -> Manifest:
    """Probe each file once and fill the manifest's columns; a file that cannot be used gets its reason in ``error``.

    ``duration`` becomes the seconds for which all of a file's streams run. A segment that starts after its file ends
    gets the error "segment outside file"; one that only ends after it stays, and is counted by `scan_report`.

    Args:
        manifest: the clips; several may share a file.
        workers: processes (a crash or a hang costs one file); None = one per available core, 0 = none, in this process.
        progress: show files/s and time left; None = where stderr is a terminal. Scans under 2 s show nothing.
        deep: as for `avssl.data.media.probe`: True decodes a bit of each stream, None only if its header is suspicious.

    Returns:
        A manifest of the same clips in the same order.
    """
    paths = manifest.column("path")
    files = {path: str(manifest.root / path) for path in paths}  # in order, each once
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    show = sys.stderr.isatty() if progress is None else progress
    infos: dict[str, MediaInfo] = {}
    found = probe_all(files.values(), workers=workers, function=partial(probe, deep=deep))
    for info in tqdm(found, "scan", len(files), unit="file", delay=2.0, disable=not show):
        infos[info.path] = info
    result = _filled(manifest, [infos[files[path]] for path in paths])
    for line in report_lines(scan_report(result)):
        logger.info("%s", line)
    return result


def _filled(manifest: Manifest, infos: Sequence[MediaInfo]) -> Manifest:
    columns: dict[str, list[Any]] = {name: [getattr(info, name) for info in infos] for name in _FROM_PROBE}
    columns["duration"] = [info.common_duration for info in infos]
    for i, start in enumerate(manifest.column("start")):
        duration = columns["duration"][i]
        if not columns["error"][i] and start is not None and duration is not None and start >= duration:
            columns["error"][i] = "segment outside file"
    return manifest.with_columns(columns)


def scan_report(manifest: Manifest) -> dict[str, Any]:
    """What a scanned manifest holds, JSON-able.

    Keys: ``clips``, ``files``, ``usable`` {"audio", "video", "both"} in clips, ``hours`` of clips without an error,
    ``errors`` {reason: {"clips", "examples"}}, ``cut_short`` (segments that end after their file), and counts by
    value of ``sample_rates``, ``channels``, ``fps`` and ``sizes`` ("180x144").
    """
    table = manifest.table
    reasons = np.asarray(manifest.column("error"), dtype=object)
    fine = reasons == ""
    audio = table["has_audio"].fill_null(False).to_numpy() & fine
    video = table["has_video"].fill_null(False).to_numpy() & fine
    start = table["start"].fill_null(0.0).to_numpy()
    duration = table["duration"].fill_null(0.0).to_numpy()
    end = np.where(table["end"].is_null().to_numpy(), duration, table["end"].fill_null(0.0).to_numpy())
    seconds = np.clip(np.minimum(end, duration) - start, 0.0, None)
    paths = manifest.column("path")
    errors = {
        reason: {"clips": count, "examples": [paths[i] for i in np.flatnonzero(reasons == reason)[:_EXAMPLES]]}
        for reason, count in Counter(reasons[~fine].tolist()).most_common()
    }
    shapes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    sizes = [f"{w}x{h}" if w and h else None for w, h in shapes]
    return {
        "clips": len(manifest),
        "files": len(set(paths)),
        "usable": {"audio": int(audio.sum()), "video": int(video.sum()), "both": int((audio & video).sum())},
        "hours": float(seconds[fine].sum() / 3600),
        "errors": errors,
        "cut_short": int((fine & (duration > 0) & (end > duration + _END_TOLERANCE)).sum()),
        "sample_rates": _histogram(manifest.column("sample_rate")),
        "channels": _histogram(manifest.column("channels")),
        "fps": _histogram([None if fps is None else round(fps, 2) for fps in manifest.column("fps")]),
        "sizes": _histogram(sizes),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """A `scan_report` as lines for a log."""
    usable = report["usable"]
    lines = [
        f"{report['clips']} clips in {report['files']} files, {report['hours']:.2f} h; usable: {usable['audio']} with "
        f"sound, {usable['video']} with pictures, {usable['both']} with both"
    ]
    for reason, entry in report["errors"].items():
        more = ", ..." if entry["clips"] > len(entry["examples"]) else ""
        lines.append(f"{entry['clips']} clips: {reason}: {', '.join(entry['examples'])}{more}")
    if report["cut_short"]:
        lines.append(f"{report['cut_short']} segments end after their file does; their clips will be shorter")
    for name, title in (("sample_rates", "sample rates (Hz)"), ("fps", "frames per second"), ("sizes", "frame sizes")):
        if report[name]:
            lines.append(f"{title}: " + ", ".join(f"{value} x {count}" for value, count in report[name].items()))
    return lines


def _histogram(values: Sequence[Any], limit: int = 10) -> dict[str, int]:
    """Counts of the most common values (as strings, for JSON), the rest summed under "other"."""
    counts = Counter(str(value) for value in values if value is not None)
    histogram = dict(counts.most_common(limit))
    rest = sum(counts.values()) - sum(histogram.values())
    return histogram | ({"other": rest} if rest else {})
