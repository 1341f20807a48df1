"""The health report of a set as one page that needs nothing beside it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from avssl.evaluation.report import TEMPLATES, show
from avssl.files import atomic_path

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
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["show"] = show
    text = environment.get_template("health.html").render(
        title=title,
        cards=_cards(report),
        mode=_MODES[bool(report["looked"])],
        ills=[_ill(ill, report["clips"]) for ill in report["ills"].values()],
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


def _ill(ill: Mapping[str, Any], clips: int) -> dict[str, Any]:
    """A row of the table: ``share`` in percent, None where it was not looked at."""
    if ill["clips"] is None:
        return {**ill, "share": None, "percent": "", "where": "", "examples": [], "reasons": ""}
    splits = ill["splits"]
    where = ", ".join(f"{split or '(none)'} {count}" for split, count in splits.items()) if len(splits) > 1 else ""
    return {
        **ill,
        "share": 100 * ill["clips"] / clips if clips else 0.0,
        "percent": _percent(ill["clips"], clips) if ill["clips"] else "",
        "where": where,
        "reasons": ", ".join(f"{reason} {count}" for reason, count in ill.get("reasons", {}).items()),
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
