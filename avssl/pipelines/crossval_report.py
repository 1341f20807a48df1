"""The files of a cross-validation: result.json, a picture, report.html."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avssl.config import CrossvalConfig, to_dict, to_yaml
from avssl.evaluation.classification import HEADLINES
from avssl.evaluation.intervals import Spread, pooled_rate, spreads
from avssl.evaluation.plots import drawn, head_to_head
from avssl.evaluation.report import Table, is_share, write_report
from avssl.evaluation.result import provenance, write_result

logger = logging.getLogger(__name__)

# Metrics that are a share of the test rows: only these can be pooled over folds without the rows themselves.
RATES = ("top1", "top5")


def report_crossval(
    config: CrossvalConfig, folder: Path, runs: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Aggregates ``runs``, writes the files into ``folder``, and returns the result.

    Args:
        config: The cross-validation's config.
        folder: Where the files go.
        runs: ``fold``, ``seed``, ``folder`` and ``result`` of every finished run.
        failed: ``fold``, ``seed`` and ``error`` of the others.
    """
    # A saved result has null where the run had NaN.
    metrics = [_numbers(run["result"]["metrics"]) for run in runs]
    repeats = [run["seed"] for run in runs]
    over = spreads(metrics, repeats)
    pooled = pool(metrics, repeats)
    clusters = [
        _numbers({f"{head}/{name}": value for head, values in run["result"].get("clustering", {}).items()
                  for name, value in values.items() if name not in ("classes", "count")})
        for run in runs
    ]  # fmt: skip
    over_clusters = spreads(clusters, repeats)
    means = {name: value.mean for name, value in over.items()}
    for name, (_, low, high) in pooled.items():
        means |= {f"{name}_low": low, f"{name}_high": high}
    result: dict[str, Any] = {
        "kind": f"crossval-{config.head}",
        "metrics": means,
        "spread": {name: asdict(value) for name, value in over.items()},
        "pooled": {name: dict(zip(("rate", "low", "high"), values, strict=True)) for name, values in pooled.items()},
        "clustering": {name: asdict(value) for name, value in over_clusters.items()},
        "runs": [_summary(run) for run in runs],
        "manifest": _together(runs, "manifest"),
        "clip_protocol": _together(runs, "clip_protocol"),
        "failed": list(failed),
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(folder / "result.json", result)
    headlines = headline_names(over)
    note = f"{len(runs)} runs: {len({run['fold'] for run in runs})} folds, seeds {sorted(set(repeats))}"
    if failed:
        note += f"; {len(failed)} more failed and do not count"
    tables = [_metrics_table("Over the runs", over, pooled, note), _runs_table(runs, metrics, headlines, failed)]
    if over_clusters:
        tables.append(_metrics_table("Clusters of the test features", over_clusters, {}, ""))
    picture = folder / "pictures" / "folds.png"
    options = {"title": "By fold, mean over seeds", "ylabel": "score"}
    folds = _by_fold(runs, metrics, headlines)
    pictures = drawn(picture, "Headline metrics by fold", head_to_head, folds, picture, **options)
    summary: dict[str, Any] = {_spoken(name): _plus_minus(over[name]) for name in headlines}
    write_report(
        folder,
        title=f"Cross-validation of {config.head} fine-tuning on {Path(config.data.name).stem}",
        summary=summary | ({"failed": len(failed)} if failed else {}),
        tables=tables,
        pictures=pictures,
        config_yaml=to_yaml(config),
        provenance=result["provenance"],
    )
    for name in headlines:
        logger.info("%s: %s over %d runs", _spoken(name), _plus_minus(over[name]), over[name].runs)
    logger.info("report: %s", folder / "report.html")
    return result | {"tables": tables}


def pool(metrics: Sequence[Mapping[str, float]], repeats: Sequence[int]) -> dict[str, tuple[float, float, float]]:
    """Rate and 95 % interval over all test rows of every metric in :data:`RATES`, by its full name ``head/metric``."""
    pooled = {}
    for name in dict.fromkeys(name for run in metrics for name in run if name.rpartition("/")[2] in RATES):
        count = f"{name.rpartition('/')[0]}/count"
        having = [(run[name], run[count], repeat) for run, repeat in zip(metrics, repeats, strict=True) if name in run]
        rates, counts, seeds = zip(*having, strict=True)
        pooled[name] = pooled_rate(rates, counts, seeds)
    return pooled


def headline_names(names: Mapping[str, Any]) -> list[str]:
    """The metric that each head is judged by: top-1, or mAP for a head with several labels a clip."""
    heads = dict.fromkeys(name.rpartition("/")[0] for name in names)
    chosen = ((f"{head}/top1", f"{head}/mAP") for head in heads)
    return [top1 if top1 in names else mean_ap for top1, mean_ap in chosen if top1 in names or mean_ap in names]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: math.nan if value is None else float(value)
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    result = run["result"]
    kept = {name: result.get(name) for name in ("metrics", "clustering", "clip_protocol", "coverage", "manifest")}
    return {name: run[name] for name in ("fold", "seed", "folder")} | kept


def _by_fold(
    runs: Sequence[dict[str, Any]], metrics: Sequence[Mapping[str, float]], headlines: Sequence[str]
) -> dict[str, dict[str, float]]:
    bars: dict[str, dict[str, float]] = {}
    for fold in dict.fromkeys(run["fold"] for run in runs):
        mine = [values for run, values in zip(runs, metrics, strict=True) if run["fold"] == fold]
        over = spreads(mine, list(range(len(mine))))
        bars[fold] = {_spoken(name): over[name].mean for name in headlines if name in over}
    return bars


def _metrics_table(
    title: str, over: Mapping[str, Spread], pooled: Mapping[str, tuple[float, float, float]], note: str
) -> Table:
    columns = ["metric", "mean", "deviation", "95 % interval of the mean", "pooled (95 % interval)", "runs"]
    rows: list[list[Any]] = []
    for name, value in over.items():
        form, low, high = ".4f", value.low, value.high
        if is_share(name):  # Student's t knows no bounds
            form, low, high = ".1%", max(low, 0.0), min(high, 1.0)
        deviation = f"{value.std:{form}}" if math.isfinite(value.std) else None
        interval = f"{low:{form}} to {high:{form}}" if math.isfinite(value.low) else None
        together = "{:.1%} ({:.1%} to {:.1%})".format(*pooled[name]) if name in pooled else None
        rows.append([name, f"{value.mean:{form}}", deviation, interval, together, value.runs])
    if not pooled:
        columns, rows = columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
    return Table(title, columns, rows, note)


def _runs_table(
    runs: Sequence[dict[str, Any]],
    metrics: Sequence[Mapping[str, float]],
    headlines: Sequence[str],
    failed: Sequence[dict[str, Any]],
) -> Table:
    rows: list[list[Any]] = []
    for run, values in zip(runs, metrics, strict=True):
        scores = [f"{values[name]:.1%}" if name in values else "" for name in headlines]
        rows.append([run["fold"], run["seed"], *scores, run["folder"]])
    for run in failed:
        rows.append([run["fold"], run["seed"], *([""] * len(headlines)), f"failed: {run['error']}"])
    return Table("Runs", ["fold", "seed", *map(_spoken, headlines), "folder"], rows)


def _spoken(name: str) -> str:
    """ "sound top-1" for "sound/top1"."""
    head, _, metric = name.rpartition("/")
    return f"{head} {HEADLINES[metric]}"


def _together(runs: Sequence[dict[str, Any]], key: str) -> str:
    """What the results of the runs say under ``key``, each once: what another cross-validation is compared by."""
    return ", ".join(sorted({str(run["result"].get(key)) for run in runs}))


def _plus_minus(value: Spread) -> str:
    return f"{value.mean:.1%}" + (f" \N{PLUS-MINUS SIGN} {100 * value.std:.1f}" if math.isfinite(value.std) else "")
