"""Lists and checks any data once: writes its manifest (Parquet) and a health report (HTML, JSON).

It says what is missing, broken, silent, still, short or in two splits, the classes, and with --stats what the frontend
should normalize by.

avssl prepare --data grid --root data/grid --deep --stats
avssl pretrain --data runs/prepare-grid/grid.parquet

A killed run, started again with the same arguments, goes on where it was.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avssl.bounds import check_bounds
from avssl.config import PrepareOptions
from avssl.data.catalog import find_entry, is_manifest, keep_scan, list_data, scan_cache
from avssl.data.datasets.layout import noting_left_out
from avssl.data.failures import DataError
from avssl.data.health import drop_undecodable_streams, health_report
from avssl.data.inspection import inspect_clips
from avssl.data.journal import Journal
from avssl.data.manifest import Manifest
from avssl.data.media.audio import check_channel
from avssl.data.scan import EXAMPLES, FileFacts, fill, report_lines, scan_files, scan_rules
from avssl.data.shards.index import is_cache
from avssl.data.stats import MelStats, logmel_stats
from avssl.data.strata import learnable_heads
from avssl.errors import SettingsError
from avssl.evaluation.report import page_template, show
from avssl.evaluation.result import provenance, write_result
from avssl.files import atomic_path, remove_leftovers
from avssl.limits import set_limits
from avssl.locks import hold

# Raised when a journal of an older version would not tell what this one does.
_JOURNAL_VERSION = 3


def run(arguments: Namespace) -> int:
    """The command; returns the exit status."""
    prepare(PrepareOptions(**vars(arguments)), tell=lambda line: sys.stdout.write(f"{line}\n"))
    return 0


def prepare(options: PrepareOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """Lists, scans, inspections, saves and reports; a killed run, called again, goes on where it was.

    Args:
        options: What to prepare.
        tell: Is given every line for the user.

    Returns:
        The report, as it is written to the JSON file.

    Raises:
        DataError: wrong options, or nothing that can be used (manifest and reports are written all the same).
    """
    name = Path(options.data).resolve().stem
    output = options.output or Path("runs") / f"prepare-{name}" / f"{name}.parquet"
    if output.suffix != ".parquet":
        raise DataError(f"--output {output}: a manifest's name ends in .parquet")
    check_channel(options.channel)
    try:
        check_bounds(options)
    except SettingsError as error:
        option, _, told = str(error).partition(":")
        raise DataError(f"--{option.replace('_', '-')}:{told}") from error
    set_limits(options)
    if not isinstance(options.options, dict):
        raise DataError(f"--options {options.options}: must be a mapping such as '{{fold: 2}}'")
    if is_cache(options.data):
        raise DataError(
            f"--data {options.data}: a cache was looked at when it was made; avssl cache --verify checks it"
        )
    try:
        with noting_left_out() as left_out:
            listed, key = list_data(options.data, options.root, options.options)
    except DataError as error:
        raise DataError(str(error).replace("--data.root", "--root")) from error  # as the option is called here
    entry = find_entry(options.data)
    clip_seconds = entry.seconds(options.clip_seconds, "--clip-seconds")
    cached = None if options.deep or is_manifest(options.data) else scan_cache(listed, key, None, options.progress)
    journal = output.with_name(f".{output.name}.scan")
    with (
        hold(output, "manifest"),
        Journal(journal, f"prepare {_JOURNAL_VERSION} {scan_rules(options.deep)}") as kept,
    ):
        remove_leftovers(output.parent, [output.with_suffix(suffix).name for suffix in (".parquet", ".json", ".html")])
        facts = scan_files(listed, options.workers, options.progress, True if options.deep else None, kept)
        scanned = fill(listed, facts)
        if cached is not None:  # what a run that names the data itself would find out once more
            keep_scan(scanned, key, cached)
        manifest, report = _examined(scanned, facts, options, clip_seconds, kept)
        stats = _stats(manifest, options, clip_seconds) if options.stats and report["usable"]["audio"] else None
        stated = entry.clip_seconds if options.clip_seconds is None else options.clip_seconds
        settings = entry.stated | {"clip_seconds": stated}
        if stated != entry.clip_seconds:
            settings["protocol"] = ""
        manifest.save(output, settings)
        report = {
            "data": options.data,
            "root": str(manifest.root),
            "options": options.options,
            "digest": manifest.digest,
            "classes": {head: len(classes) for head, classes in manifest.heads.items()},
            **report,
            "not_listed": {
                what: {"files": len(names), "examples": names[:EXAMPLES]} for what, names in left_out.items()
            },
            **({} if stats is None else {"stats": stats.to_json()}),
            "provenance": provenance(),
        }
        write_result(output.with_suffix(".json"), report)
        page = write_health_page(output.with_suffix(".html"), f"Health of {options.data}", _for_page(report))
        kept.remove()
    for key in ("splits", "classes"):
        tell(f"{key}: " + (", ".join(f"{name or '(none)'} {count}" for name, count in report[key].items()) or "none"))
    for what, entry_out in report["not_listed"].items():
        tell(f"{entry_out['files']} left out of the listing, {what}: {', '.join(entry_out['examples'])}")
    for line in (*report_lines(report), *health_lines(report)):
        tell(line)
    if stats is not None:
        tell(f"log-mel over {stats.clips} training clips ({stats.failed} failed): {stats.options}")
    if not any(report["usable"].values()):
        raise DataError(f"{options.data}: none of {len(manifest)} clips can be used; see {page} for the reasons")
    tell(f"wrote {output}, digest {manifest.digest}, and {page}")
    named = ["--data", str(output)]
    named += ["--data.options", "{allow_absolute: true}"] if manifest.allow_absolute else []
    if report["usable"]["both"]:
        tell(f"next: {shlex.join(['avssl', 'pretrain', *named])}")
    elif learnable_heads(manifest):
        tell(f"next: {shlex.join(['avssl', 'finetune', *named, '--checkpoint', 'none'])}")
    return report


def health_lines(report: dict[str, Any]) -> list[str]:
    """Lengths and findings of a health report as lines for a log; what was not looked at is said."""
    lines, unknown = [], []
    seconds = report["seconds"]
    if seconds["median"] is not None:
        lines.append("seconds a clip: median {median:.2f}, {shortest:.2f} to {longest:.2f}".format(**seconds))
    for name, finding in report["findings"].items():
        if finding["clips"] is None:
            unknown.append(finding["title"])
        elif finding["clips"] and not finding["expected"] and name not in ("missing", "outside"):  # told as errors
            which = [f"{reason} x {count}" for reason, count in finding.get("reasons", {}).items()]
            which = which or finding["examples"]
            lines.append(f"{finding['clips']} clips {finding['title']} ({finding['meaning']}): {', '.join(which)}")
    if not report["looked"]:
        unknown += [] if report["findings"]["duplicate"]["clips"] is None else ["same bytes or sound in two splits"]
        lines.append(f"not looked at without --deep: {', '.join(unknown)}")
    return lines


def _examined(
    manifest: Manifest, facts: FileFacts, options: PrepareOptions, clip_seconds: float, journal: Journal
) -> tuple[Manifest, dict[str, Any]]:
    inspections = None
    if options.deep:
        inspections = inspect_clips(manifest, options.workers, options.progress, journal, options.channel)
        manifest = drop_undecodable_streams(manifest, inspections)
    return health_report(
        manifest, facts, inspections, channel=options.channel, short_seconds=clip_seconds / 2, progress=options.progress
    )


def _stats(manifest: Manifest, options: PrepareOptions, clip_seconds: float) -> MelStats:
    """Over the split that is trained on: "train" and "pretrain", or all rows of a set without splits."""
    splits = np.asarray(manifest.column("split"), dtype=object)
    chosen = np.isin(splits, ["train", "pretrain"])
    if not chosen.any():
        chosen = splits == ""
    if not chosen.any():
        raise DataError(f"{options.data}: no training split to take statistics of; it has {sorted(set(splits))}")
    return logmel_stats(
        manifest.select(mask=chosen),
        clip_seconds,
        sample_rate=options.sample_rate,
        num_mels=options.num_mels,
        channel=options.channel,
        clips=options.clips,
        seed=options.seed,
        workers=options.workers,
        progress=options.progress,
    )


def _for_page(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its origin as name and value."""
    origin = {key: str(report[key]) for key in ("data", "root", "options", "digest")}
    made = report["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    kept = {key: made[key] for key in ("date", "revision", "python", "platform")}
    return report | {"provenance": origin | kept | {"versions": versions}}


_MODES = {
    True: "Every clip was decoded.",
    False: "Headers only: what needs decoding was not looked at; prepare with --deep to know.",
}


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its label, and its parts as (split or "", count, share of the longest bar in percent)."""

    label: str
    parts: list[tuple[str, int, float]]

    @property
    def total(self) -> int:
        """Clips of all parts."""
        return sum(count for _, count, _ in self.parts)


@dataclass(frozen=True)
class Chart:
    """Horizontal bars under a title; ``splits`` names the colours where bars have parts."""

    title: str
    bars: list[Bar]
    splits: list[str]
    note: str = ""


def write_health_page(path: str | os.PathLike[str], title: str, report: Mapping[str, Any]) -> Path:
    """Writes the page.

    Args:
        path: the HTML file.
        title: heading.
        report: of :func:`avssl.data.health.health_report`, with "not_listed" {what: {"files", "examples"}},
            "provenance" {name: value}, and "stats" of :meth:`avssl.data.stats.MelStats.to_json` where there are any.
    """
    text = page_template("health.html").render(
        title=title,
        cards=_cards(report),
        mode=_MODES[bool(report["looked"])],
        findings=[_finding_row(finding, report["clips"]) for finding in report["findings"].values()],
        errors=report["errors"],
        not_listed=report["not_listed"],
        duplicates=report["duplicates"],
        classes=[_classes(head, splits) for head, splits in report["class_counts"].items()],
        facts=_facts(report),
        seconds=_lengths(report["seconds"]),
        stats=report.get("stats"),
        provenance=report["provenance"],
    )
    target = Path(path)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def _percent(count: int, of: int) -> str:
    share = 100 * count / of if of else 0.0
    if count in (0, of):
        return f"{share:.0f} %"
    return f"{min(max(share, 0.1), 99.9):.1f} %"


def _cards(report: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """(name, value, remark)."""
    clips, usable, hours = report["clips"], report["usable"], report["usable_hours"]
    remarks = {need: f"{_percent(count, clips)}, {hours[need]:.2f} h" for need, count in usable.items()}
    if report["overlap"]["clips"]:
        remarks["both"] += f"; {show(report['overlap']['clips'])} overlap in part"
    return [
        ("clips", clips, f"in {show(report['files'])} files"),
        ("can be read", _percent(report["available"], clips), f"{show(report['available'])} clips"),
        ("healthy", _percent(report["healthy"], clips), f"{show(report['healthy'])} clips"),
        ("hours", f"{report['hours']:.2f}" if report["hours"] < 1000 else f"{report['hours']:.0f}", "that can be read"),
        ("with sound", usable["audio"], remarks["audio"]),
        ("with pictures", usable["video"], remarks["video"]),
        ("with both at a time", usable["both"], remarks["both"]),
    ]


def _finding_row(finding: Mapping[str, Any], clips: int) -> dict[str, Any]:
    """A row of the table: ``share`` in percent, None where it was not looked at."""
    if finding["clips"] is None:
        return {**finding, "share": None, "percent": "", "where": "", "examples": [], "reasons": ""}
    splits = finding["splits"]
    where = ", ".join(f"{split or '(none)'} {count}" for split, count in splits.items()) if len(splits) > 1 else ""
    return {
        **finding,
        "share": 100 * finding["clips"] / clips if clips else 0.0,
        "percent": _percent(finding["clips"], clips) if finding["clips"] else "",
        "where": where,
        "reasons": ", ".join(f"{reason} {count}" for reason, count in finding.get("reasons", {}).items()),
    }


def _classes(head: str, splits: Mapping[str, Mapping[str, int]]) -> Chart:
    """Clips of each class by split, in the order of the classes, scaled to the most frequent class."""
    names = list(next(iter(splits.values()), {}))
    totals = {name: sum(counts[name] for counts in splits.values()) for name in names}
    largest = max(totals.values(), default=0) or 1
    bars = [
        Bar(name, [(split, counts[name], 100 * counts[name] / largest) for split, counts in splits.items()])
        for name in names
    ]
    empty = sum(total == 0 for total in totals.values())
    smallest = min(totals.values(), default=0)
    note = f"{len(names)} classes, {show(smallest)} to {show(max(totals.values(), default=0))} clips each"
    return Chart(f"Classes of {head}", bars, list(splits), note + (f"; {empty} without any" if empty else ""))


def _facts(report: Mapping[str, Any]) -> list[Chart]:
    """What the streams are like, the most frequent first."""
    charts = []
    titles = {
        "splits": "Splits",
        "sample_rates": "Sample rates (Hz)",
        "channels": "Channels",
        "fps": "Frames per second",
        "sizes": "Frame sizes",
    }
    for key, title in titles.items():
        counts = report[key]
        largest = max(counts.values(), default=0) or 1
        bars = [Bar(str(name) or "(none)", [("", count, 100 * count / largest)]) for name, count in counts.items()]
        if bars:
            charts.append(Chart(title, bars, []))
    return charts


def _lengths(histogram: Mapping[str, Any]) -> dict[str, Any] | None:
    """The histogram as columns in a box of 100 x 100: ``columns`` (x, y, width, height, words)."""
    if not histogram["counts"]:
        return None
    edges, counts = histogram["edges"], histogram["counts"]
    width = 100 / len(counts)
    columns = [
        (k * width, 100 - 100 * count / max(counts), 0.9 * width, 100 * count / max(counts),
         f"{edges[k]:.2f} to {edges[k + 1]:.2f} s: {count} clips")
        for k, count in enumerate(counts)
    ]  # fmt: skip
    note = ", ".join(f"{name} {histogram[name]:.2f} s" for name in ("shortest", "median", "longest"))
    note += "; the outer columns hold what is shorter or longer still"
    return {"columns": columns, "low": f"{edges[0]:.2f} s", "high": f"{edges[-1]:.2f} s", "note": note}
