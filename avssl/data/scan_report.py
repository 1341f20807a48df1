"""What a scanned manifest holds, counted: as JSON and as lines for a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from avssl.data.manifest import Manifest

EXAMPLES = 3
# A segment may end this many seconds after its file without being called cut short (rounded annotations).
END_TOLERANCE = 0.1


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
    duration = table["duration"].fill_null(0.0).to_numpy()
    seconds, end = clip_seconds(manifest)
    paths = manifest.column("path")
    errors = {
        reason: {"clips": count, "examples": [paths[i] for i in np.flatnonzero(reasons == reason)[:EXAMPLES]]}
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
        "cut_short": int((fine & (duration > 0) & (end > duration + END_TOLERANCE)).sum()),
        "sample_rates": histogram(manifest.column("sample_rate")),
        "channels": histogram(manifest.column("channels")),
        "fps": histogram([None if fps is None else round(fps, 2) for fps in manifest.column("fps")]),
        "sizes": histogram(sizes),
    }


def clip_seconds(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, (N,) seconds that are there (0 where unknown), and (N,) the second in the file at which it ends."""
    table = manifest.table
    start = table["start"].fill_null(0.0).to_numpy()
    duration = table["duration"].fill_null(0.0).to_numpy()
    end = np.where(table["end"].is_null().to_numpy(), duration, table["end"].fill_null(0.0).to_numpy())
    return np.clip(np.minimum(end, duration) - start, 0.0, None), end


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


def histogram(values: Sequence[Any], limit: int = 10) -> dict[str, int]:
    """Counts of the most common values (as strings, for JSON), the rest summed under "other"."""
    counts = Counter(str(value) for value in values if value is not None)
    histogram = dict(counts.most_common(limit))
    rest = sum(counts.values()) - sum(histogram.values())
    return histogram | ({"other": rest} if rest else {})
