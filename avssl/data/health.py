"""The health of a set: which clips are missing, broken, silent, still, short, or in two splits, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avssl.data.health_duplicates import find_twins, twins_report
from avssl.data.health_look import Looks
from avssl.data.manifest import LABEL_PREFIX, SPLITS, Manifest
from avssl.data.media import Channel
from avssl.data.media.probe import CANCELS, CUT_OFF, RESTARTS
from avssl.data.sampling import OUTSIDE
from avssl.data.scan import FileFacts
from avssl.data.scan_report import END_TOLERANCE, EXAMPLES, apart, cut_short, scan_report, span_seconds

# A clip without any sample above this level is silent: dither lies at -90 dBFS, quiet recordings peak above -50.
SILENT_DBFS = -60.0
# A picture of which no pixel changes by more than this (of 255, see `health_look.Look.motion`) is still: re-encoded
# stills flicker by up to 2 (h264, vp8, measured), while a talking face (GRID) changes by 16 at the least.
STILL_CHANGE = 5.0
MISSING = "file not found"
ILLS_COLUMN = "ills"


@dataclass(frozen=True)
class Ill:
    """A way for a clip to be ill, as the report tells it."""

    name: str
    title: str
    meaning: str


def ills_of(short_seconds: float) -> list[Ill]:
    """What is looked for, in the order of the report."""
    return [
        Ill("missing", "missing", "there is no such file"),
        Ill("corrupt", "corrupt", "the file, or one of its streams, does not open or decode"),
        Ill("outside", "outside", "the segment starts after its file ends"),
        Ill("no_sound", "no sound", "the file has no audio stream"),
        Ill("no_pictures", "no pictures", "the file has no video stream"),
        Ill("silent", "silent", f"no sample above {SILENT_DBFS:g} dBFS"),
        Ill("cancel", "channels cancel", "their mean is silent, each alone is not: take one with data.channel"),
        Ill("still", "still picture", f"no pixel changes by more than {STILL_CHANGE:g} of 255"),
        Ill("short", "short", f"less than {short_seconds:g} s"),
        Ill("cut_short", "cut short", f"the segment reaches more than {END_TOLERANCE:g} s beyond its file"),
        Ill("partial", "used in part", "the rest of the file is cut off, or on a clock that starts over"),
        Ill("apart", "no common time", "sound and pictures never run at the same time"),
        Ill("duplicate", "in two splits", "the same video, bytes or sound is in another split, too"),
    ]


def apply_looks(manifest: Manifest, looks: Looks) -> Manifest:
    """The manifest without the streams that did not decode; a clip that has no other gets the reason as its error."""
    flags = {name: manifest.table[name].fill_null(False).to_numpy().copy() for name in ("has_audio", "has_video")}
    flags["has_audio"] &= looks.audio_error == ""
    flags["has_video"] &= looks.video_error == ""
    whys = {
        f"{name}_error": np.where(
            found != "", found, np.asarray(manifest.column(f"{name}_error"), dtype=object)
        ).tolist()
        for name, found in (("audio", looks.audio_error), ("video", looks.video_error))
    }
    errors = np.asarray(manifest.column("error"), dtype=object)
    lost = (errors == "") & ~flags["has_audio"] & ~flags["has_video"]
    errors[lost] = np.where(looks.audio_error[lost] != "", looks.audio_error[lost], looks.video_error[lost])
    return manifest.with_columns({**flags, **whys, "error": errors.tolist()})


def health_report(
    manifest: Manifest,
    facts: FileFacts,
    looks: Looks | None = None,
    *,
    short_seconds: float = 1.0,
    channel: Channel = "mean",
    progress: bool = True,
) -> tuple[Manifest, dict[str, Any]]:
    """The state of every clip of a set.

    Args:
        manifest: scanned, and :func:`apply_looks` applied where there are looks.
        facts: what the scan found out.
        looks: what the closer look found out; None: what needs it is not known, rather than 0.
        short_seconds: a clip of which less than this is there is short.
        channel: what is heard of several channels; that they cancel is an ill of their mean alone.
        progress: as for :func:`avssl.data.scan.scan`.

    Returns:
        The manifest with the column "ills" (names joined by commas, "" for a healthy clip), and the report, JSON-able:
        the keys of :func:`avssl.data.scan_report.scan_report` and

        - ``ills``: name -> {"title", "meaning", "expected", "clips", "splits", "examples"}, of "corrupt" and
          "partial" also "reasons". ``clips`` is None where it was not looked at; ``expected`` is true of having no
          pictures in a set of which most have none;
        - ``healthy``: clips without an ill, expected ones apart; ``available``: clips whose file can be read;
        - ``duplicates``, ``splits``, ``class_counts`` {head: {split: {class: clips}}};
        - ``seconds``: a histogram of the lengths of the clips that can be read.
    """
    twins = find_twins(manifest, None if looks is None else looks.words, progress)
    reasons = _reasons(manifest, facts, looks)
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
        "silent": None if looks is None else (looks.peak < SILENT_DBFS) & ~cancel,
        "cancel": None if looks is None else cancel & (channel == "mean"),
        "still": None if looks is None else looks.motion <= STILL_CHANGE,
        "short": fine & (length > 0) & (length < short_seconds),
        "cut_short": fine & cut_short(manifest),
        "partial": fine & (restarts | cut_off),
        "apart": apart(manifest),
        "duplicate": twins.rows(),
    }
    splits = np.asarray(manifest.column("split"), dtype=object)
    paths = np.asarray(manifest.column("path"), dtype=object)
    ills = {}
    for ill in ills_of(short_seconds):
        rows = found[ill.name]
        entry: dict[str, Any] = {"title": ill.title, "meaning": ill.meaning, "expected": False, "clips": None}
        if rows is not None:
            entry |= {
                "clips": int(rows.sum()),
                "splits": _counts(splits[rows]),
                "examples": paths[rows][:EXAMPLES].tolist(),
            }
            if ill.name in told:
                entry["reasons"] = _counts(told[ill.name][rows])
        ills[ill.name] = entry
    names = _joined({name: rows for name, rows in found.items() if rows is not None}, len(manifest))
    with_pictures = manifest.table["has_video"].fill_null(False).to_numpy() & fine
    ills["no_pictures"]["expected"] = bool(2 * with_pictures.sum() < fine.sum())
    healthy = {"", "no_pictures"} if ills["no_pictures"]["expected"] else {""}
    report = {
        **scan_report(manifest, channel),
        "splits": {split: int((splits == split).sum()) for split in SPLITS if (splits == split).any()},
        "available": int(fine.sum()),
        "healthy": sum(name in healthy for name in names),
        "looked": looks is not None,
        "ills": ills,
        "duplicates": twins_report(manifest, twins),
        "class_counts": class_counts(manifest),
        "seconds": _length_histogram(length[fine & (length > 0)]),
    }
    return manifest.with_columns({ILLS_COLUMN: names}), report


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


def _reasons(manifest: Manifest, facts: FileFacts, looks: Looks | None) -> np.ndarray:
    """(N,) object: why a clip, or one of the streams that its file has, cannot be read; "" where all can."""
    reasons = np.asarray(manifest.column("error"), dtype=object)
    told = [facts.reason("audio_error"), facts.reason("video_error")]
    told += [] if looks is None else [looks.audio_error, looks.video_error]
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
