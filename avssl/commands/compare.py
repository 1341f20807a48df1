"""Puts finished runs side by side in one table, and says which differences are more than chance.

avssl compare runs/finetune-esc50-full-random runs/finetune-esc50-full-pretrained --format markdown
"""

import itertools
import json
import logging
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avssl.evaluation.report import is_share, page_template, show
from avssl.evaluation.result import FILE, Predictions, read_predictions, read_result
from avssl.evaluation.statistics import Difference, holm, is_significant, labelled_rows, mcnemar, paired_map, unpaired
from avssl.files import atomic_path
from avssl.locks import hold
from avssl.progress import Meter

logger = logging.getLogger(__name__)

# What must be the same for numbers to mean the same.
CONDITIONS = {"manifest": "data", "split": "split", "clip_protocol": "clip protocol"}
# Options that say where and how fast, not what.
_UNIMPORTANT = (
    "output",
    "resume",
    "wandb",
    "tensorboard",
    "loggers",
    "imports",
    "log",
    "cache",
    "batch_size",
    "evaluations",
    "data.num_workers",
    "data.root",
    "runtime.threads",
)
_LOWER_IS_BETTER = ("median_rank", "davies_bouldin", "loss")
_COUNTS = ("count", "classes")
FORMATS = ("text", "markdown", "html")
_BOLD, _PLAIN = "\033[1m", "\033[0m"
# A table that turns does so beyond this width of text in characters, and these columns of HTML.
_WIDTH, _COLUMNS = 120, 8


def run(arguments: Namespace) -> int:
    """The command; returns the exit status."""
    options = {name: getattr(arguments, name) for name in ("format", "output", "metrics", "force")}
    text = compare(arguments.runs, **options, bold=sys.stdout.isatty())
    if arguments.output is None:
        sys.stdout.write(text)
    return 0


@dataclass
class RunResult:
    """A finished run: its name, its ``result.json``, and the predictions beside it where there are any."""

    name: str
    result: dict[str, Any]
    predictions: Predictions | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One cell; ``bold`` marks the best of a column, or what counts."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class CellTable:
    """A table: every row has as many cells as there are columns.

    One that ``turns`` has its rows as columns where text or a page would be too narrow for it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    turns: bool = False

    def turned(self) -> "CellTable":
        """The same with rows and columns exchanged."""
        columns = [self.columns[0], *(row[0].text for row in self.rows)]
        rows = [[Cell(name), *(row[number] for row in self.rows)] for number, name in enumerate(self.columns) if number]
        return CellTable(self.title, columns, rows)


def compare(
    paths: Sequence[Path],
    *,
    format: str = "text",
    output: Path | None = None,
    metrics: Sequence[str] | None = None,
    force: bool = False,
    bold: bool = False,
) -> str:
    """The comparison as text, Markdown or HTML, which is also written to ``output`` where one is given.

    Args:
        paths: Run folders, or result.json files.
        metrics: Names of the metrics to show; default: all that the runs share.
        force: Compare runs of different data, splits or protocols all the same; their differences are noted.
        bold: Mark the best by a terminal's bold instead of an asterisk (text).

    Raises:
        FileNotFoundError: a run has no result.
        ValueError: runs that cannot be compared, a metric that they do not share, fewer than two runs; or a result that
            is not as it was written.
        HeldError: another process writes to ``output``.
    """
    if len(paths) < 2:
        raise ValueError("runs: give at least two to compare")
    with nullcontext() if output is None else hold(output, "comparison"):
        return _compare(paths, format, output, metrics, force, bold)


def _compare(
    paths: Sequence[Path], format: str, output: Path | None, metrics: Sequence[str] | None, force: bool, bold: bool
) -> str:
    runs = read_runs(paths)
    notes = check_conditions(runs, force)
    names = shared_metrics(runs, metrics)
    with Meter("paired tests"):
        tables = [_metric_table(runs, names), _difference_table(runs, names, notes)]
    text = render(format, tables, notes, bold=bold and output is None)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
        logger.info("wrote %s", output)
    return text


def read_runs(paths: Sequence[Path]) -> list[RunResult]:
    """The results of ``paths``, named by their folders, or by whole paths where two folders have one name."""
    runs = []
    folders = [path.parent if path.name == "result.json" else path for path in paths]
    if len(set(map(Path.resolve, folders))) < len(folders):
        raise ValueError("runs: one is given twice")
    short = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, short, strict=True):
        file = folder / "result.json"
        if not file.is_file():
            raise FileNotFoundError(f"runs: {folder} has no result.json; is the run finished?")
        result = read_result(file)
        if not isinstance(result.get("metrics"), dict):
            raise ValueError(f"runs: {file} holds no metrics; compare runs of avssl finetune and avssl evaluate")
        found = read_predictions(folder / FILE) if (folder / FILE).is_file() else None
        values = {key: float(value) for key, value in result["metrics"].items() if isinstance(value, int | float)}
        runs.append(RunResult(name if short.count(name) == 1 else str(folder), result, found, values))
    return runs


def check_conditions(runs: Sequence[RunResult], force: bool) -> list[str]:
    """Notes on what else than the runs differs.

    Raises:
        ValueError: the data, the split or the protocol do, and ``force`` was not given.
    """
    notes = []
    for key, title in CONDITIONS.items():
        found = {run.name: _split(run) if key == "split" else run.result.get(key) for run in runs}
        if len(set(map(str, found.values()))) > 1:
            told = ", ".join(f"{name}: {value}" for name, value in found.items())
            if not force:
                raise ValueError(f"runs: they differ in {title} ({told}): their numbers mean different things; "
                                 "give --force to compare them all the same")  # fmt: skip
            notes.append(f"Compared by force although the {title} differs ({told}).")
    counts = {run.name: (run.result.get("coverage") or {}).get("evaluated", {}).get("evaluated") for run in runs}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        notes.append(f"Not all were evaluated on as many clips ({told}).")
    return notes


def _split(run: RunResult) -> str:
    """The split that a run was judged on, and how it was drawn where the data has none of that name."""
    name = str(run.result.get("split", "test"))
    drawn = (run.result.get("held_out") or {}).get(name)
    return name if drawn is None else "{} held out: {clips} of {of} clips, seed {seed}".format(name, **drawn)


def shared_metrics(runs: Sequence[RunResult], wanted: Sequence[str] | None) -> list[str]:
    """Names of metrics that all runs have, in the order of the first, without bounds, deviations, counts and chance."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    shown = [name for name in shared if _is_metric(name, shared)]
    if wanted:
        unknown = [name for name in wanted if name not in shared]
        if unknown:
            raise ValueError(f"metrics: not in all runs: {', '.join(unknown)}; shared: {', '.join(shown) or 'none'}")
        return list(wanted)
    if not shown:
        kinds = ", ".join(f"{run.name}: {run.result.get('kind')}" for run in runs)
        raise ValueError(f"runs: they share no metric ({kinds})")
    return shown


def _is_metric(name: str, known: Sequence[str]) -> bool:
    side = name.endswith(("_low", "_high", "_std")) and name.rsplit("_", 1)[0] in known
    return not side and not name.startswith("chance/") and name.split("/")[-1] not in _COUNTS


def differing_options(runs: Sequence[RunResult]) -> dict[str, list[str]]:
    """Dotted options that are not the same in all runs, with the value of each run; a dash where it has none."""
    configs = [_flat(run.result.get("config") or {}) for run in runs]
    options = {}
    for name in dict.fromkeys(key for config in configs for key in config):
        if any(name == other or name.startswith(f"{other}.") for other in _UNIMPORTANT):
            continue
        values = [config.get(name, "\N{EN DASH}") for config in configs]
        if len({json.dumps(value, default=str) for value in values}) > 1:
            options[name] = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return options


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _metric_table(runs: Sequence[RunResult], names: Sequence[str]) -> CellTable:
    options = differing_options(runs)
    rows = [[Cell(run.name), *(Cell(values[i]) for values in options.values())] for i, run in enumerate(runs)]
    for name in names:
        values = [run.metrics[name] for run in runs]
        finite = [value for value in values if math.isfinite(value)]
        best = (min if _last(name) in _LOWER_IS_BETTER else max)(finite, default=None)
        for row, run, value in zip(rows, runs, values, strict=True):
            row.append(Cell(_with_interval(run, name), bold=value == best))
    return CellTable("Metrics", ["run", *options, *names], rows, turns=True)


def _last(name: str) -> str:
    return name.split("/")[-1]


def _value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(name) and math.isfinite(value) else show(value)


def _with_interval(run: RunResult, name: str) -> str:
    text, bounds = _value(name, run.metrics[name]), _bounds(run, name)
    if bounds is None:
        return text
    low, high = (_value(name, bound).removesuffix(" %") for bound in bounds)
    return f"{text} ({low} to {high})"


def _bounds(run: RunResult, name: str) -> tuple[float, float] | None:
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    return None if low is None or high is None or not math.isfinite(low + high) else (low, high)


def _difference_table(runs: Sequence[RunResult], names: Sequence[str], notes: list[str]) -> CellTable:
    """All pairs of runs on all metrics that can be tested."""
    columns = ["runs", "metric", "difference", "95 % interval", "p", "p, Holm", "significant", "test"]
    rows: list[list[Cell]] = []
    pairs = list(itertools.combinations(runs, 2))
    without = [run.name for run in runs if run.predictions is None]
    if without:
        notes.append(f"Compared by unpaired intervals, for want of {FILE}: {', '.join(without)}.")
    paired = {(one.name, two.name): _common(one, two, notes) for one, two in pairs}
    for name in names:
        found = [(one, two, _difference(one, two, name, paired[one.name, two.name])) for one, two in pairs]
        tested = [(one, two, difference) for one, two, difference in found if difference is not None]
        adjusted = holm([difference.p for _, _, difference in tested])
        for (one, two, difference), p in zip(tested, adjusted, strict=True):
            sure = is_significant(p)
            low, high = (_signed(name, bound) for bound in (difference.low, difference.high))
            low = low.removesuffix(" points")
            texts = [f"{one.name} \N{MINUS SIGN} {two.name}", name, _signed(name, difference.value), f"{low} to {high}"]
            texts += [f"{difference.p:.3g}", f"{p:.3g}", "yes" if sure else "no", difference.test]
            rows.append(
                [Cell(text, bold=sure and column == "significant") for column, text in zip(columns, texts, strict=True)]
            )
    if not rows:
        notes.append("No metric has an interval or predictions: nothing can be said on significance.")
    return CellTable("Differences", columns, rows)


def _signed(name: str, value: float) -> str:
    return f"{100 * value:+.1f} points" if is_share(name) else f"{value:+.4g}"


def _common(one: RunResult, two: RunResult, notes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of both runs' predictions of the clips that both have; None where they cannot be paired."""
    if one.predictions is None or two.predictions is None:
        return None
    places = {clip_id: row for row, clip_id in enumerate(two.predictions.clip_ids)}
    rows = [row for row, clip_id in enumerate(one.predictions.clip_ids) if clip_id in places]
    others = [places[one.predictions.clip_ids[row]] for row in rows]
    largest = max(len(one.predictions.clip_ids), len(places))
    if not rows:
        notes.append(f"{one.name} and {two.name} are compared unpaired: they have no clip in common.")
        return None
    if len(rows) < largest:
        notes.append(f"{one.name} and {two.name} are paired on the {len(rows)} of {largest} clips that both have.")
    return np.asarray(rows), np.asarray(others)


def _difference(
    one: RunResult, two: RunResult, name: str, paired: tuple[np.ndarray, np.ndarray] | None
) -> Difference | None:
    """The test that fits a metric; None where there is none."""
    head, _, metric = name.rpartition("/")
    if paired is not None and one.predictions is not None and two.predictions is not None:
        difference = _paired(one.predictions, two.predictions, head, metric, paired)
        if difference is not None:
            return difference
    bounds = _bounds(one, name), _bounds(two, name)
    if bounds[0] is None or bounds[1] is None:
        return None
    return unpaired((one.metrics[name], *bounds[0]), (two.metrics[name], *bounds[1]))


def _paired(
    one: Predictions, two: Predictions, head: str, metric: str, rows: tuple[np.ndarray, np.ndarray]
) -> Difference | None:
    if metric == "top1" and head.split("/")[-1] == "action":
        return _paired_action(one, two, head.removesuffix("action"), rows)
    if head not in one.truth or head not in two.truth:
        return None
    truth = one.truth[head][rows[0]]
    if not np.array_equal(truth, two.truth[head][rows[1]]):
        raise ValueError(f"runs: their clips have the same names but other labels of {head!r}")
    keep = labelled_rows(truth)
    if not len(keep):
        return None
    if metric == "top1" and truth.ndim == 1:
        return mcnemar(_right(one, head, rows[0])[keep], _right(two, head, rows[1])[keep])
    if metric == "mAP":
        scores = one.scores[head][rows[0]][keep], two.scores[head][rows[1]][keep]
        return paired_map(*scores, truth[keep])
    return None


def _paired_action(
    one: Predictions, two: Predictions, prefix: str, rows: tuple[np.ndarray, np.ndarray]
) -> Difference | None:
    """EPIC-KITCHENS' action, verb and noun both right, of the clips that have both labels."""
    heads = [f"{prefix}verb", f"{prefix}noun"]
    if not all(head in run.truth for head in heads for run in (one, two)):
        return None
    keep = np.flatnonzero(np.all([one.truth[head][rows[0]] >= 0 for head in heads], axis=0))
    if not len(keep):
        return None
    right = [
        np.all([_right(run, head, index[keep]) for head in heads], axis=0)
        for run, index in zip((one, two), rows, strict=True)
    ]
    return mcnemar(*right)


def _right(run: Predictions, head: str, rows: np.ndarray) -> np.ndarray:
    return run.predicted[head][rows] == run.truth[head][rows]


def render(format: str, tables: Sequence[CellTable], notes: Sequence[str], *, bold: bool = False) -> str:
    """The tables that have rows, and the notes, in a format of `FORMATS`.

    Args:
        bold: In text, mark by a terminal's bold; otherwise by an asterisk.

    Raises:
        ValueError: another format.
    """
    tables = [table for table in tables if table.rows]
    if format == "text":
        blocks = [_text(table, bold) for table in tables] + ["\n".join(notes)]
    elif format == "markdown":
        blocks = [_markdown(table) for table in tables] + ["\n".join(f"- {note}" for note in notes)]
    elif format == "html":
        tables = [table.turned() if table.turns and len(table.columns) > _COLUMNS else table for table in tables]
        return page_template("compare.html").render(tables=tables, notes=notes)
    else:
        raise ValueError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _text(table: CellTable, bold: bool) -> str:
    marked = [[cell.text + (" *" if cell.bold and not bold else "") for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *marked, strict=True)]
    lines = [table.title, "  ".join(f"{name:{width}}" for name, width in zip(table.columns, widths, strict=True))]
    if table.turns and len(lines[1]) > _WIDTH:
        return _text(table.turned(), bold)
    lines.append("  ".join("-" * width for width in widths))
    for row, texts in zip(table.rows, marked, strict=True):
        padded = [f"{text:{width}}" for text, width in zip(texts, widths, strict=True)]
        if bold:
            padded = [f"{_BOLD}{text}{_PLAIN}" if cell.bold else text for cell, text in zip(row, padded, strict=True)]
        lines.append("  ".join(padded))
    return "\n".join(line.rstrip() for line in lines)


def _markdown(table: CellTable) -> str:
    def line(texts: Sequence[str]) -> str:
        escaped = (text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for text in texts)
        return f"| {' | '.join(escaped)} |"

    lines = [f"### {table.title}", "", line(table.columns), line(["---"] * len(table.columns))]
    return "\n".join(
        lines + [line([f"**{cell.text}**" if cell.bold else cell.text for cell in row]) for row in table.rows]
    )
