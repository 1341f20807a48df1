"""What a scanned manifest holds, counted: as JSON and as lines for a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from avssl.data.manifest import Manifest
from avssl.data.media.audio import Channel
from avssl.data.media.probe import CANCELS, CUT_OFF, RESTARTS
from avssl.data.sampling import APART, NO_CHANNEL

EXAMPLES = 3
# A segment may reach this many seconds beyond a stream without being called cut short (rounded annotations).
END_TOLERANCE = 0.1
# Sound and pictures of a whole recording rarely begin and end together; what differs by less is not told.
OVERLAP_TOLERANCE = 0.5
NEEDS = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}
# What a warning means for the clips.
_EFFECTS = {
    RESTARTS: ", used up to there",
    CUT_OFF: ", used up to there",
    CANCELS: ", so that their mean is silence: take one with data.channel; prepare --deep listens to every file",
}
_NAMES = {"audio": "sound", "video": "pictures", "both": "both"}


def scan_report(manifest: Manifest, channel: Channel = "mean") -> dict[str, Any]:
    """What a scanned manifest holds, JSON-able; ``channel`` is what is heard of several channels.

    Keys: ``clips``, ``files``, ``hours`` of clips without an error, ``errors`` {reason: {"clips", "examples"}},
    ``stream_errors`` and ``warnings`` likewise (which stream of a usable file is not, and why), and counts by value of
    ``sample_rates``, ``channels``, ``fps`` and ``sizes`` ("180x144"). By what is needed, "audio", "video" or "both":

    - ``usable``: clips;
    - ``usable_hours``: what they can be cut from;
    - ``cut_short``: segments that reach beyond the streams.

    And of the clips that have sound and pictures, each {"clips", "examples"}: ``apart`` (never at the same time) and
    ``overlap`` (at the same time in part only).
    """
    reasons = np.asarray(manifest.column("error"), dtype=object)
    fine = reasons == ""
    usable = {
        need: np.asarray(manifest.reasons("audio" in m, "video" in m, channel=channel)) == ""
        for need, m in NEEDS.items()
    }
    seconds = {need: span_seconds(manifest, m) for need, m in NEEDS.items()}
    paths = manifest.column("path")

    broken = np.full(len(manifest), "", dtype=object)
    for name in NEEDS["both"]:
        whys = np.asarray(manifest.column(f"{name}_error"), dtype=object)
        broken = np.where(fine & ~np.isin(whys, ["", f"no {name} stream"]), whys, broken)
    heard = np.asarray(manifest.reasons(audio=True, channel=channel), dtype=object)
    broken = np.where(heard == NO_CHANNEL, NO_CHANNEL, broken)

    def counted(rows: np.ndarray) -> dict[str, Any]:
        return {"clips": int(rows.sum()), "examples": [paths[i] for i in np.flatnonzero(rows)[:EXAMPLES]]}

    shapes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    sizes = [f"{w}x{h}" if w and h else None for w, h in shapes]
    return {
        "clips": len(manifest),
        "files": len(set(paths)),
        "usable": {need: int(rows.sum()) for need, rows in usable.items()},
        "usable_hours": {need: float(seconds[need][rows].sum() / 3600) for need, rows in usable.items()},
        "hours": float(span_seconds(manifest)[fine].sum() / 3600),
        "errors": {text: counted(reasons == text) for text, _ in Counter(reasons[~fine].tolist()).most_common()},
        "stream_errors": {text: counted(broken == text) for text in dict.fromkeys(broken[broken != ""].tolist())},
        "warnings": {text: counted(manifest.warned(text) & fine) for text in manifest.select(mask=fine).warnings},
        "cut_short": {need: int((cut_short(manifest, NEEDS[need]) & rows).sum()) for need, rows in usable.items()},
        "apart": _entry(apart(manifest), manifest),
        "overlap": _entry(
            usable["both"] & (np.maximum(seconds["audio"], seconds["video"]) > seconds["both"] + OVERLAP_TOLERANCE),
            manifest,
        ),
        "sample_rates": histogram(manifest.column("sample_rate")),
        "channels": histogram(manifest.column("channels")),
        "fps": histogram([None if fps is None else round(fps, 2) for fps in manifest.column("fps")]),
        "sizes": histogram(sizes),
    }


def span_seconds(manifest: Manifest, modalities: Collection[str] = ()) -> np.ndarray:
    """(N,) seconds of `Manifest.spans`, 0 where they are unknown."""
    low, high = manifest.spans(modalities)
    return np.nan_to_num(np.clip(high - low, 0.0, None))


def cut_short(manifest: Manifest, modalities: Collection[str] = ()) -> np.ndarray:
    """(N,) bool: the clip is a segment that reaches beyond its file, or beyond a stream of ``modalities``."""
    low, high = manifest.spans(modalities)
    start, end = (manifest.table[name].fill_null(np.nan).to_numpy() for name in ("start", "end"))
    return (high > low) & ((end > high + END_TOLERANCE) | (start < low - END_TOLERANCE))


def apart(manifest: Manifest) -> np.ndarray:
    """(N,) bool: the clip has sound and pictures, but never at the same time."""
    return np.asarray(manifest.reasons(audio=True, video=True), dtype=object) == APART


def _entry(rows: np.ndarray, manifest: Manifest) -> dict[str, Any]:
    chosen = np.flatnonzero(rows)
    (sound, sound_end), (pictures, pictures_end) = (manifest.spans(NEEDS[need]) for need in ("audio", "video"))
    paths = manifest.table["path"]
    examples = [
        f"{paths[i].as_py()}: sound {sound[i]:.2f} to {sound_end[i]:.2f} s, "
        f"pictures {pictures[i]:.2f} to {pictures_end[i]:.2f} s"
        for i in chosen[:EXAMPLES].tolist()
    ]
    return {"clips": len(chosen), "examples": examples}


def report_lines(report: dict[str, Any]) -> list[str]:
    """A `scan_report` as lines for a log."""
    usable = report["usable"]
    lines = [
        f"{report['clips']} clips in {report['files']} files, {report['hours']:.2f} h; usable: {usable['audio']} with "
        f"sound, {usable['video']} with pictures, {usable['both']} with both"
    ]
    for kind in ("errors", "stream_errors", "warnings"):
        for reason, entry in report[kind].items():
            words = f"{reason}, only the other stream is used" if kind == "stream_errors" else warning_words(reason)
            more = ", ..." if entry["clips"] > len(entry["examples"]) else ""
            lines.append(f"{entry['clips']} clips: {words}: {', '.join(entry['examples'])}{more}")
    hours = report["usable_hours"]
    for key, meaning in (
        ("apart", "sound and pictures never at the same time, of no use where both are needed"),
        ("overlap", f"sound and pictures overlap only in part, {hours['both']:.2f} h in all have both"),
    ):
        if report[key]["clips"]:
            lines.append(f"{report[key]['clips']} clips: {meaning}: {'; '.join(report[key]['examples'])}")
    if any(report["cut_short"].values()):
        told = ", ".join(f"{name} {report['cut_short'][need]}" for need, name in _NAMES.items())
        lines.append(f"segments that reach beyond what is there, their clips will be shorter: {told}")
    for name, title in (("sample_rates", "sample rates (Hz)"), ("fps", "frames per second"), ("sizes", "frame sizes")):
        if report[name]:
            lines.append(f"{title}: " + ", ".join(f"{value} x {count}" for value, count in report[name].items()))
    return lines


def warning_words(reason: str) -> str:
    """A warning of the scan, and what it means for the clips."""
    return reason + _EFFECTS.get(reason, "")


def histogram(values: Sequence[Any], limit: int = 10) -> dict[str, int]:
    """Counts of the most common values (as strings, for JSON), the rest summed under "other"."""
    counts = Counter(str(value) for value in values if value is not None)
    histogram = dict(counts.most_common(limit))
    rest = sum(counts.values()) - sum(histogram.values())
    return histogram | ({"other": rest} if rest else {})
