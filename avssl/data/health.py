"""The health of a set: which clips are missing, broken, silent, still, short, or in two splits, and what it holds.

Clips that stand in two splits, by video, bytes or sound, make a test score too good.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avssl.data.file_stats import file_stats
from avssl.data.inspection import Inspections, same_sounds
from avssl.data.manifest import LABEL_PREFIX, SPLITS, Manifest
from avssl.data.media import Channel
from avssl.data.media.errors import raise_if_machine
from avssl.data.media.probe import CANCELS, CUT_OFF, RESTARTS
from avssl.data.scan import (
    END_TOLERANCE,
    EXAMPLES,
    FileFacts,
    cut_short,
    scan_report,
    span_seconds,
    without_common_time,
)
from avssl.data.spans import OUTSIDE
from avssl.progress import Meter, track

# A clip without any sample above this level is silent: dither lies at -90 dBFS, quiet recordings peak above -50.
SILENT_DBFS = -60.0
# A picture of which no pixel changes by more than this (of 255, see `Inspection.motion`) is still: re-encoded
# stills flicker by up to 2 (h264, vp8, measured), while a talking face (GRID) changes by 16 at the least.
STILL_CHANGE = 5.0
MISSING = "file not found"
# The names in manifests and reports on disk.
FINDINGS_COLUMN = FINDINGS_KEY = "findings"


@dataclass(frozen=True)
class Finding:
    """Something that can be wrong with a clip, as the report tells it."""

    name: str
    title: str
    meaning: str


def findings_of(short_seconds: float) -> list[Finding]:
    """What is looked for, in the order of the report."""
    return [
        Finding("missing", "missing", "there is no such file"),
        Finding("corrupt", "corrupt", "the file, or one of its streams, does not open or decode"),
        Finding("outside", "outside", "the segment starts after its file ends"),
        Finding("no_sound", "no sound", "the file has no audio stream"),
        Finding("no_pictures", "no pictures", "the file has no video stream"),
        Finding("silent", "silent", f"no sample above {SILENT_DBFS:g} dBFS"),
        Finding("cancel", "channels cancel", "their mean is silent, each alone is not: take one with data.channel"),
        Finding("still", "still picture", f"no pixel changes by more than {STILL_CHANGE:g} of 255"),
        Finding("short", "short", f"less than {short_seconds:g} s"),
        Finding("cut_short", "cut short", f"the segment reaches more than {END_TOLERANCE:g} s beyond its file"),
        Finding("partial", "used in part", "the rest of the file is cut off, or on a clock that starts over"),
        Finding("apart", "no common time", "sound and pictures never run at the same time"),
        Finding("duplicate", "in two splits", "the same video, bytes or sound is in another split, too"),
    ]


def drop_undecodable_streams(manifest: Manifest, inspections: Inspections) -> Manifest:
    """The manifest without the streams that did not decode; a clip that has no other gets the reason as its error."""
    flags = {name: manifest.table[name].fill_null(False).to_numpy().copy() for name in ("has_audio", "has_video")}
    flags["has_audio"] &= inspections.audio_error == ""
    flags["has_video"] &= inspections.video_error == ""
    whys = {
        f"{name}_error": np.where(
            found != "", found, np.asarray(manifest.column(f"{name}_error"), dtype=object)
        ).tolist()
        for name, found in (("audio", inspections.audio_error), ("video", inspections.video_error))
    }
    errors = np.asarray(manifest.column("error"), dtype=object)
    lost = (errors == "") & ~flags["has_audio"] & ~flags["has_video"]
    errors[lost] = np.where(
        inspections.audio_error[lost] != "", inspections.audio_error[lost], inspections.video_error[lost]
    )
    return manifest.with_columns({**flags, **whys, "error": errors.tolist()})


def health_report(
    manifest: Manifest,
    facts: FileFacts,
    inspections: Inspections | None = None,
    *,
    short_seconds: float = 1.0,
    channel: Channel = "mean",
    progress: bool = True,
) -> tuple[Manifest, dict[str, Any]]:
    """The state of every clip of a set.

    Args:
        manifest: scanned, and :func:`drop_undecodable_streams` applied where clips were inspected.
        facts: what the scan found out.
        inspections: what decoding the clips found out; None: what needs it is not known, rather than 0.
        short_seconds: a clip of which less than this is there is short.
        channel: what is heard of several channels; that they cancel is wrong with their mean alone.
        progress: as for :func:`avssl.data.scan.scan`.

    Returns:
        The manifest with the column "findings" (names joined by commas, "" for a healthy clip), and the report,
        JSON-able: the keys of :func:`avssl.data.scan.scan_report` and

        - ``findings``: name -> {"title", "meaning", "expected", "clips", "splits", "examples"}, of "corrupt" and
          "partial" also "reasons". ``clips`` is None where it was not looked at; ``expected`` is true of having no
          pictures in a set of which most have none;
        - ``healthy``: clips without a finding, expected ones apart; ``available``: clips whose file can be read;
        - ``duplicates``, ``splits``, ``class_counts`` {head: {split: {class: clips}}};
        - ``seconds``: a histogram of the lengths of the clips that can be read.
    """
    duplicates = find_duplicates(manifest, None if inspections is None else inspections.words, progress)
    reasons = _reasons(manifest, facts, inspections)
    fine = np.asarray(manifest.column("error"), dtype=object) == ""
    length = span_seconds(manifest)
    restarts, cut_off, cancel = (manifest.warned(text) for text in (RESTARTS, CUT_OFF, CANCELS))
    told = {"corrupt": reasons, "partial": np.where(restarts, RESTARTS, CUT_OFF)}
    broken = ~np.isin(reasons, ["", MISSING, OUTSIDE])
    found: dict[str, np.ndarray | None] = {
        "missing": reasons == MISSING,
        "corrupt": broken,
        "outside": reasons == OUTSIDE,
        "no_sound": fine & (facts.reason("audio_error") == "no audio stream"),
        "no_pictures": fine & (facts.reason("video_error") == "no video stream"),
        # NaN, not looked at, compares as false.
        "silent": None if inspections is None else (inspections.peak < SILENT_DBFS) & ~cancel,
        "cancel": None if inspections is None else cancel & (channel == "mean"),
        "still": None if inspections is None else inspections.motion <= STILL_CHANGE,
        "short": fine & (length > 0) & (length < short_seconds),
        "cut_short": fine & cut_short(manifest),
        "partial": fine & (restarts | cut_off),
        "apart": without_common_time(manifest),
        "duplicate": duplicates.rows(),
    }
    splits = np.asarray(manifest.column("split"), dtype=object)
    paths = np.asarray(manifest.column("path"), dtype=object)
    findings = {}
    for finding in findings_of(short_seconds):
        rows = found[finding.name]
        entry: dict[str, Any] = {"title": finding.title, "meaning": finding.meaning, "expected": False, "clips": None}
        if rows is not None:
            entry |= {
                "clips": int(rows.sum()),
                "splits": _counts(splits[rows]),
                "examples": paths[rows][:EXAMPLES].tolist(),
            }
            if finding.name in told:
                entry["reasons"] = _counts(told[finding.name][rows])
        findings[finding.name] = entry
    names = _joined({name: rows for name, rows in found.items() if rows is not None}, len(manifest))
    with_pictures = manifest.table["has_video"].fill_null(False).to_numpy() & fine
    findings["no_pictures"]["expected"] = bool(2 * with_pictures.sum() < fine.sum())
    healthy = {"", "no_pictures"} if findings["no_pictures"]["expected"] else {""}
    report = {
        **scan_report(manifest, channel),
        "splits": {split: int((splits == split).sum()) for split in SPLITS if (splits == split).any()},
        "available": int(fine.sum()),
        "healthy": sum(name in healthy for name in names),
        "looked": inspections is not None,
        FINDINGS_KEY: findings,
        "duplicates": duplicates_report(manifest, duplicates),
        "class_counts": class_counts(manifest),
        "seconds": _length_histogram(length[fine & (length > 0)]),
    }
    return manifest.with_columns({FINDINGS_COLUMN: names}), report


def class_counts(manifest: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """head -> split -> class -> clips; classes without a clip are there with 0. A clip may be of several classes."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for head, classes in manifest.heads.items():
        counts[head] = {}
        for split in sorted(set(manifest.column("split")), key=SPLITS.index):
            labels = manifest.select(split).table[LABEL_PREFIX + head]
            if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
                labels = pc.list_flatten(labels)
            histogram = np.bincount(labels.drop_null().to_numpy(), minlength=len(classes))
            counts[head][split] = dict(zip(classes, histogram.tolist(), strict=True))
    return counts


def _reasons(manifest: Manifest, facts: FileFacts, inspections: Inspections | None) -> np.ndarray:
    """(N,) object: why a clip, or one of the streams that its file has, cannot be read; "" where all can."""
    reasons = np.asarray(manifest.column("error"), dtype=object)
    told = [facts.reason("audio_error"), facts.reason("video_error")]
    told += [] if inspections is None else [inspections.audio_error, inspections.video_error]
    for stream in told:
        worth = (reasons == "") & ~np.isin(stream, ["", "no audio stream", "no video stream"])
        reasons[worth] = stream[worth]
    return reasons


def _joined(found: dict[str, np.ndarray], count: int) -> list[str]:
    names = np.full(count, "", dtype=object)
    for name, rows in found.items():
        names[rows] = [f"{other},{name}" if other else name for other in names[rows]]
    return names.tolist()


def _counts(values: np.ndarray) -> dict[str, int]:
    """value -> count, the most common first."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(names[k]): int(counts[k]) for k in np.argsort(-counts, kind="stable")}


def _length_histogram(seconds: np.ndarray, bins: int = 24) -> dict[str, Any]:
    """{"edges" (bins + 1, seconds), "counts", "median", "shortest", "longest"}; of no clip: empty.

    Bins reach from the 1st to the 99th percentile, the outer ones holding the rest: a few very long files would squeeze
    all others into one bin.
    """
    if not len(seconds):
        return {"edges": [], "counts": [], "median": None, "shortest": None, "longest": None}
    low, high = np.quantile(seconds, [0.01, 0.99])
    edges = np.linspace(low, max(high, low + 0.1), bins + 1)
    counts, _ = np.histogram(np.clip(seconds, edges[0], edges[-1]), edges)
    return {
        "edges": edges.round(3).tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(seconds)),
        "shortest": float(seconds.min()),
        "longest": float(seconds.max()),
    }


logger = logging.getLogger(__name__)

YOUTUBE_COLUMN = "youtube_id"


@dataclass(frozen=True)
class Duplicates:
    """(N,) int64: rows of different splits with the same number >= 0 are the same; -1 where a row has no duplicate.

    None: not looked at.
    """

    youtube: np.ndarray | None
    bytes: np.ndarray | None
    sound: np.ndarray | None

    def named(self) -> dict[str, np.ndarray | None]:
        """By the name that the report uses."""
        return {"same_youtube_id": self.youtube, "same_bytes": self.bytes, "same_sound": self.sound}

    def rows(self) -> np.ndarray | None:
        """(N,) bool: has a duplicate of any kind; None if none was looked at."""
        looked = [groups >= 0 for groups in self.named().values() if groups is not None]
        return np.logical_or.reduce(looked) if looked else None


def find_duplicates(manifest: Manifest, words: np.ndarray | None, progress: bool = True) -> Duplicates:
    """Inspection for clips of one split that are in another one, too.

    Args:
        manifest: the clips; a column "youtube_id" says which video a clip is cut from.
        words: (N, 64) fingerprints of their sounds; None compares neither bytes nor sounds, which need reading.
        progress: as for :func:`avssl.data.scan.scan`.
    """
    names = sorted(set(manifest.column("split")))
    splits = np.asarray([names.index(split) for split in manifest.column("split")], dtype=np.int64)
    youtube = None
    if YOUTUBE_COLUMN in manifest.table.column_names:
        youtube = _across(manifest.column(YOUTUBE_COLUMN), splits)
    if words is None:
        return Duplicates(youtube, None, None)
    same_bytes = _same_bytes(manifest, splits, progress)
    with Meter("comparing sounds", shown=progress):
        return Duplicates(youtube, same_bytes, same_sounds(words, splits))


def duplicates_report(manifest: Manifest, duplicates: Duplicates) -> dict[str, Any]:
    """JSON-able: kind -> {"clips", "groups", "examples": [[[split, path], ...], ...]}, or None: not looked at."""
    report: dict[str, Any] = {}
    for name, groups in duplicates.named().items():
        if groups is None:
            report[name] = None
            continue
        numbers, counts = np.unique(groups[groups >= 0], return_counts=True)
        examples = []
        for number in numbers[:EXAMPLES]:
            members = [manifest.table.slice(int(row), 1) for row in np.flatnonzero(groups == number)[:4]]
            examples.append([[member["split"][0].as_py(), member["path"][0].as_py()] for member in members])
        report[name] = {"clips": int(counts.sum()), "groups": len(numbers), "examples": examples}
    return report


def _across(keys: Iterable[Hashable | None], splits: np.ndarray) -> np.ndarray:
    """(N,) int64 group numbers of rows of different splits with equal keys; None is equal to nothing."""
    rows_of: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            rows_of[key].append(row)
    groups = np.full(len(splits), -1, dtype=np.int64)
    for number, rows in enumerate(rows_of.values()):
        if len(rows) > 1 and len(set(splits[rows].tolist())) > 1:
            groups[rows] = number
    return groups


def _same_bytes(manifest: Manifest, splits: np.ndarray, progress: bool) -> np.ndarray:
    """Groups of rows with the same span of the same bytes; only files of equal size in different splits are read."""
    paths = manifest.column("path")
    files = list(dict.fromkeys(paths))
    # None for what is not there, and for an empty file, which is like every other one.
    sizes = {
        path: None if stat is None else stat[0] or None
        for path, stat in zip(files, file_stats(manifest.root, files, progress), strict=True)
    }
    suspects = _across([sizes[path] for path in paths], splits) >= 0
    todo = dict.fromkeys(path for path, suspect in zip(paths, suspects, strict=True) if suspect)
    digests = {path: _digest(manifest, path) for path in track(todo, "comparing", "file", shown=progress)}
    keys = []
    for path, start, end in zip(paths, manifest.column("start"), manifest.column("end"), strict=True):
        digest = digests.get(path)
        keys.append(None if digest is None else (digest, start, end))
    return _across(keys, splits)


def _digest(manifest: Manifest, path: str) -> bytes | None:
    try:
        with open(manifest.root / path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise_if_machine(error, manifest.root / path)
        logger.warning("%s: not compared with other files: %s", path, error.strerror)
        return None
