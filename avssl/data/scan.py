"""Looking at every file of a manifest once, before a run stumbles over the bad ones, and what was found: as JSON and as
lines for a log.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from avssl.data.journal import Journal, file_key
from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import FILE_COLUMNS
from avssl.data.media.audio import Channel, channels_cancel
from avssl.data.media.errors import MediaError
from avssl.data.media.pool import available_cores, probe_all
from avssl.data.media.probe import CANCELS, CUT_OFF, RESTARTS, MediaInfo, probe
from avssl.data.shards.store import ADDRESS_END, is_address
from avssl.data.spans import NO_CHANNEL, NO_COMMON_TIME
from avssl.limits import limits
from avssl.progress import Meter, track

logger = logging.getLogger(__name__)

# Part of the name of every scan that is kept: raise it when a scan finds out more, or otherwise, than it used to.
SCAN_VERSION = 5
_SPANS = ("duration", "audio_start", "audio_end", "video_start", "video_end")
_NUMBERS = (*_SPANS, "sample_rate", "channels", "fps", "width", "height", *FILE_COLUMNS)
_FLAGS = ("has_audio", "has_video")
_REASONS = ("error", "warning", "audio_error", "video_error")
_TOLD = [item.name for item in fields(MediaInfo) if item.name != "path"]
# A scan that is not deep decodes the first seconds of so many files, since opposite channels tend to be of a whole set.
_LISTENED, _LISTENED_SECONDS = 32, 5.0
# What the state of the process decides rather than the file is found out anew by a scan that continues.
_PASSING = {"decoder hung", "decoder crashed", "unreadable file"}


@dataclass(frozen=True)
class FileFacts:
    """What a scan found out about F files, and which of them each of N rows is of.

    Columns rather than objects: a million files take 80 MB.

    Attributes:
        rows: (N,) int64, the file of each row of the manifest.
        numbers: name -> (F,) float64, NaN where unknown; seconds, Hz, frames per second, pixels, bytes, microseconds.
            ``duration`` is the largest end of a file's streams.
        flags: "has_audio", "has_video" -> (F,) bool.
        reasons: "error", "warning", "audio_error", "video_error" -> (F,) int32, indices into ``vocabulary``.
        vocabulary: reasons, "" first: nothing wrong.
    """

    rows: np.ndarray
    numbers: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    reasons: dict[str, np.ndarray]
    vocabulary: list[str]

    def reason(self, name: str) -> np.ndarray:
        """(N,) object: the reason of each row."""
        return np.asarray(self.vocabulary, dtype=object)[self.reasons[name][self.rows]]


def scan(
    manifest: Manifest,
    workers: int | None = None,
    progress: bool = True,
    deep: bool | None = None,
    journal: str | Path | None = None,
) -> Manifest:
    """Probe each file once and fill the manifest's columns; a file that cannot be used gets its reason in ``error``.

    ``duration`` becomes the end of the file, ``audio_start`` to ``video_end`` those of its streams. A segment that
    starts after its file ends gets the error "segment outside file"; `Manifest.reasons` tells which are outside of a
    stream that is needed. One that only ends after it stays, and is counted by `scan_report`.

    Args:
        manifest: the clips; several may share a file.
        workers: processes (a crash or a hang costs one file); None = one per available core, 0 = none, in this process.
        progress: show files/s and the time left.
        deep: as for `avssl.data.media.probe`: True decodes a bit of each stream, None only if its header is suspicious.
            Whether channels cancel is found out of every file with True, else of 32 that are spread over all.
        journal: file that keeps results as they come, so that a killed scan continues; removed when the scan is done.

    Returns:
        A manifest of the same clips in the same order.
    """
    with Journal(journal, scan_rules(deep)) as kept:
        result = fill(manifest, scan_files(manifest, workers, progress, deep, kept))
        kept.remove()
    for line in report_lines(scan_report(result)):
        logger.info("%s", line)
    return result


def scan_rules(deep: bool | None) -> str:
    """What decides a scan's findings beside the files, as the version of its journal."""
    return f"scan {SCAN_VERSION} deep={deep} pixels={limits().max_pixels}"


def scan_files(
    manifest: Manifest, workers: int | None, progress: bool, deep: bool | None, journal: Journal
) -> FileFacts:
    """The facts of every file of the manifest; arguments as for :func:`scan`."""
    paths = manifest.table["path"].combine_chunks().dictionary_encode()
    names = paths.dictionary.to_pylist()
    # In order, each once: not as Path, to which a.wav and ./a.wav are one file while they are two names here. An
    # absolute and a relative name may be one file. Samples of a cache are known already.
    files: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if not is_address(name):
            files.setdefault(os.path.join(manifest.root, name), []).append(index)
    facts = FileFacts(
        np.asarray(paths.indices, dtype=np.int64),
        {name: np.full(len(names), np.nan) for name in _NUMBERS},
        {name: np.zeros(len(names), dtype=bool) for name in _FLAGS},
        {name: np.zeros(len(names), dtype=np.int32) for name in _REASONS},
        [""],
    )
    codes = {"": 0}

    def keep(info: MediaInfo) -> None:
        indices = files[info.path]
        for name, column in facts.numbers.items():
            value = getattr(info, name)
            column[indices] = np.nan if value is None else value
        for name, flag in facts.flags.items():
            flag[indices] = getattr(info, name)
        for name, reason in facts.reasons.items():
            text = getattr(info, name)
            if text not in codes:
                codes[text] = len(codes)
                facts.vocabulary.append(text)
            reason[indices] = codes[text]

    places = np.linspace(0, len(files) - 1, min(_LISTENED, len(files))).round().astype(int).tolist()
    listed = list(files)
    listened = frozenset(listed[place] for place in places)
    todo = []
    for path in track(files, "continuing", "file", shown=progress and len(journal) > 0):
        known = journal.take(file_key("probe", path)) if len(journal) else None
        if known is None:
            todo.append(path)
        else:
            keep(MediaInfo(path, **known[0]))
    with Meter("scan", total=len(files), initial=len(files) - len(todo), unit="file", shown=progress) as meter:
        workers = available_cores() if workers is None else workers
        for info in probe_all(todo, workers=workers, function=partial(_probed, deep=deep, listened=listened)):
            keep(info)
            meter.update()
            if journal.path is not None and info.error not in _PASSING:
                journal.add(file_key("probe", info.path), [_told(info)])
    return facts


def fill(manifest: Manifest, facts: FileFacts) -> Manifest:
    """The manifest with what a scan found out; samples of a cache stay as they are."""
    columns: dict[str, Any] = {name: values[facts.rows] for name, values in (facts.numbers | facts.flags).items()}
    columns |= {name: facts.reason(name).tolist() for name in _REASONS}
    cached = np.flatnonzero(pc.match_substring_regex(manifest.table["path"], ADDRESS_END).to_numpy()).tolist()
    for name in columns if cached else ():
        columns[name], known = list(columns[name]), manifest.column(name)
        for row in cached:
            columns[name][row] = known[row]
    scanned = manifest.with_columns(columns)
    errors = [reason or outside for reason, outside in zip(columns["error"], scanned.reasons(), strict=True)]
    return scanned.with_columns({"error": errors})


def _probed(path: str, *, deep: bool | None, listened: frozenset[str]) -> MediaInfo:
    """`probe`, which also listens to a file among ``listened``."""
    info = probe(path, deep=deep)
    if path in listened and (info.channels or 0) > 1 and CANCELS not in info.warning:
        with suppress(MediaError):  # a deep scan tells what does not decode
            if channels_cancel(path, info.audio_start or 0.0, _LISTENED_SECONDS):
                return replace(info, warning="; ".join(filter(None, (info.warning, CANCELS))))
    return info


def _told(info: MediaInfo) -> dict[str, Any]:
    """The fields that say something, without the path, which is the key."""
    told = {name: getattr(info, name) for name in _TOLD}  # dataclasses.asdict copies deeply, for half a probe's time
    return {name: value for name, value in told.items() if value not in (None, "")}


EXAMPLES = 3
# A segment may reach this many seconds beyond a stream without being called cut short (rounded annotations).
END_TOLERANCE = 0.1
# Of a clip: what may be missing without a word, since files end where a codec's packets do.
SHORTFALL = 0.05
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

    And of the clips that have sound and pictures, each {"clips", "examples"}: ```apart``` (never at the same time) and
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
        "apart": _entry(without_common_time(manifest), manifest),
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


def shortfall(manifest: Manifest, modalities: Collection[str], clip_seconds: float) -> np.ndarray:
    """(N,) share, 0 to 1, of a clip of ``clip_seconds`` that its row does not have; 0 where its length is unknown.

    Less than `SHORTFALL` counts as none.
    """
    low, high = manifest.spans(modalities)
    missing = 1 - np.nan_to_num(np.clip(high - low, 0.0, clip_seconds), nan=clip_seconds) / clip_seconds
    return np.where(missing < SHORTFALL, 0.0, missing)


def shortfall_words(manifest: Manifest, modalities: Collection[str], clip_seconds: float) -> str:
    """How many clips are shorter than ``clip_seconds``, and what stands in for the rest; "" where none is."""
    missing = shortfall(manifest, modalities, clip_seconds)
    if not (short := int((missing > 0).sum())):
        return ""
    share, median = missing[missing > 0].mean(), float(np.median(span_seconds(manifest, modalities)))
    heard = f"{share:.0%} of their sound is padding (audio.pad), " if "audio" in modalities else ""
    seen = "their frames are of what is there, " if "video" in modalities else ""
    return (
        f"{short} of {len(manifest)} clips are shorter than data.clip_seconds, {clip_seconds:g} s: {heard}{seen}"
        f"half of all clips have {median:.3g} s or less"
    )


def without_common_time(manifest: Manifest) -> np.ndarray:
    """(N,) bool: the clip has sound and pictures, but never at the same time."""
    return np.asarray(manifest.reasons(audio=True, video=True), dtype=object) == NO_COMMON_TIME


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
