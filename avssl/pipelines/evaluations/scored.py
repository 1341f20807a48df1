"""The finding of any classifier: a table with intervals, metrics, and headlines that name the protocol."""

from collections.abc import Mapping

import numpy as np

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.report import Section, Table
from avssl.pipelines.evaluations.base import Finding, Headline
from avssl.pipelines.evaluations.bench import Bench, labelled

# The number that a head is known by, the first that it has, and its name in prose.
QUALITIES = {"top1": "top-1", "mAP": "mAP"}
_COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "mAP": "mAP",
    "mAUC": "mAUC",
}


def quality(metrics: Mapping[str, float], head: str) -> str:
    """Key of the number that a head is known by: top1, or mAP of a multi-label head."""
    return next(name for name in QUALITIES if f"{head}/{name}" in metrics)


def head_metrics(bench: Bench, scores: Mapping[str, FloatArray]) -> dict[str, float]:
    """``HEAD/METRIC`` of the evaluated rows."""
    return multi_head_metrics(scores, {head: bench.truth(head) for head in scores}, seed=bench.config.seed)


def judge(
    bench: Bench, scores: Mapping[str, FloatArray], *, title: str, text: str, prefix: str = "", by: str = ""
) -> Finding:
    """Metrics of some scores of the evaluated rows.

    Args:
        scores: head -> (N, classes).
        title, text: of the section.
        prefix: before every metric's key, with its slash.
        by: what classified, for the headline: "linear probe".
    """
    metrics = head_metrics(bench, scores)
    heads = [*scores, *(["action"] if "action/top1" in metrics else [])]
    columns = [name for name in _COLUMNS if any(f"{head}/{name}" in metrics for head in heads)]
    rows, headlines = [], []
    clips = bench.clips if by else bench.scored_clips
    for head in heads:
        name = quality(metrics, head)
        key = f"{head}/{name}"
        low, high = (metrics.get(f"{key}_{side}", float("nan")) for side in ("low", "high"))
        what = f"{head} {QUALITIES[name]}" + (f" by {by}" if by else "")
        headlines.append(Headline(f"{what}, {clips}", prefix + key, metrics[key], low, high))
        shown = [f"{metrics[f'{head}/{name}']:.1%}" if f"{head}/{name}" in metrics else None for name in columns]
        interval = f"{low:.1%} to {high:.1%}" if np.isfinite(low) else None
        count = metrics.get(f"{head}/count", float(labelled(bench.truth(head)).sum()) if head in scores else 0)
        rows.append([head, *shown, interval, int(count)])
    first = QUALITIES[quality(metrics, heads[0])]
    table = Table(
        title,
        ["head", *(_COLUMNS[name] for name in columns), f"95 % interval of {first}", "clips"],
        rows,
        f"Scores: {clips}. Intervals: Wilson's of top-1, bootstrap over clips of mAP.",
    )
    return Finding(Section(title, text, [table]), {prefix + k: v for k, v in metrics.items()}, headlines)
