"""The files of a classification run: result.json, pictures, report.html."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avssl.config import FinetuneConfig, to_dict, to_yaml
from avssl.evaluation.classification import classification_report, multi_head_metrics
from avssl.evaluation.clustering import cluster_metrics
from avssl.evaluation.embeddings import Embeddings, coverage
from avssl.evaluation.pictures import confusion_matrix, loss_curves, tsne_before_after
from avssl.evaluation.report import Table, write_report
from avssl.evaluation.result import provenance, write_result
from avssl.pipelines.data import Splits
from avssl.pipelines.run import Run
from avssl.tracking import read_rows

logger = logging.getLogger(__name__)

# More points than this make a t-SNE slow and its picture unreadable.
TSNE_POINTS = 2000


@dataclass
class Outcome:
    """What a run is judged by.

    Attributes:
        scores: (N, classes) scores of the test rows by head.
        after: Features and labels of the same rows after training.
        before: Features of the same rows before it.
        expected: Rows of the test split, readable or not.
        start: What training started from: random or pretrained.
        before_title: What the features in ``before`` come from.
        after_title: What the features in ``after`` come from.
    """

    scores: dict[str, np.ndarray]
    after: Embeddings
    before: Embeddings
    expected: int
    start: str
    before_title: str = "Before fine-tuning"
    after_title: str = "After fine-tuning"


def report_classification(config: FinetuneConfig, run: Run, splits: Splits, outcome: Outcome) -> dict[str, Any]:
    """Computes all metrics, writes result.json, the pictures and report.html, and returns the result."""
    labels = outcome.after.labels
    metrics = multi_head_metrics(outcome.scores, labels, seed=config.seed)
    covered = coverage(outcome.expected, len(outcome.after), outcome.after.failures)
    protocol = str(splits.protocol)
    result: dict[str, Any] = {
        "kind": f"finetune-{config.head}",
        "metrics": metrics,
        "clustering": feature_clusters(outcome.after, splits.labels),
        "clip_protocol": protocol,
        "coverage": splits.coverage | {"evaluated": covered},
        "manifest": splits.digest,
        "seed": config.seed,
        "start": outcome.start,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(run.folder / "result.json", result)
    pictures = _draw(run, splits, outcome)
    _track(run, splits, outcome, metrics, pictures)
    heads = [*outcome.scores, *(["action"] if "action/top1" in metrics else [])]
    write_report(
        run.folder,
        title=f"{config.head.capitalize()} fine-tuning on {Path(config.data.name).stem}, {outcome.start} start",
        summary={f"{head} top-1": f"{metrics[f'{head}/top1']:.1%}" for head in heads},
        tables=[_metrics_table(heads, metrics, protocol, covered)],
        pictures=pictures,
        config_yaml=to_yaml(config),
        provenance=result["provenance"],
    )
    for head in heads:
        low, high = metrics[f"{head}/top1_low"], metrics[f"{head}/top1_high"]
        logger.info(
            "%s: top-1 %.1f %% (95 %% interval %.1f to %.1f)", head, *_percent(metrics[f"{head}/top1"], low, high)
        )
    logger.info("report: %s", run.folder / "report.html")
    return result


def feature_clusters(features: Embeddings, labels: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Clustering metrics by head, where enough rows are labelled for them."""
    clusters = {}
    for head in labels:
        target = features.labels[head]
        if 2 <= len(np.unique(target[target >= 0])) < (target >= 0).sum():
            clusters[head] = cluster_metrics(features.features, target)
    return clusters


def _percent(*values: float) -> list[float]:
    return [100 * value for value in values]


def _metrics_table(heads: list[str], metrics: dict[str, float], protocol: str, covered: dict[str, Any]) -> Table:
    rows = []
    for head in heads:
        interval = f"{metrics[f'{head}/top1_low']:.1%} to {metrics[f'{head}/top1_high']:.1%}"
        optional = [metrics.get(f"{head}/{name}") for name in ("top5", "mean_class_accuracy", "mAP")]
        shown = ["" if value is None else f"{value:.1%}" for value in optional]
        rows.append([head, f"{metrics[f'{head}/top1']:.1%}", interval, *shown, str(int(metrics[f"{head}/count"]))])
    note = f"{protocol}; {covered['evaluated']} of {covered['expected']} test clips evaluated"
    columns = ["head", "top-1", "95 % interval", "top-5", "mean class accuracy", "mAP", "clips"]
    return Table("Classification", columns, rows, note)


def _draw(run: Run, splits: Splits, outcome: Outcome) -> list[tuple[Path, str]]:
    pictures = []
    rows = read_rows(run.tracker.metrics_path)
    if rows:
        loss_curves(rows + read_rows(run.tracker.speed_path), run.picture("curves"))
        pictures.append((run.picture("curves"), "Training curves"))
    for head, names in splits.labels.items():
        target = outcome.after.labels[head]
        confusion = classification_report(outcome.scores[head], target).confusion
        path = run.picture(f"confusion-{head}")
        confusion_matrix(confusion, names, path, title=f"Confusion, {head}")
        pictures.append((path, f"Confusion matrix of {head}, rows are the truth"))
        labelled = np.flatnonzero(target >= 0)[:TSNE_POINTS]
        if outcome.before is not outcome.after and len(labelled) >= 5:
            path = run.picture(f"tsne-{head}")
            before, after = outcome.before.features[labelled], outcome.after.features[labelled]
            titles = (outcome.before_title, outcome.after_title)
            tsne_before_after(before, after, target[labelled], names, path, titles=titles, title=f"t-SNE by {head}")
            pictures.append((path, f"t-SNE of the audio features by {head}: {' and '.join(titles).lower()}"))
    return pictures


def _track(
    run: Run, splits: Splits, outcome: Outcome, metrics: dict[str, float], pictures: list[tuple[Path, str]]
) -> None:
    run.tracker.summary({f"test/{key}": value for key, value in metrics.items()})
    run.tracker.log_pictures({path.stem: path for path, _ in pictures})
    for head, names in splits.labels.items():
        target = outcome.after.labels[head]
        labelled = target >= 0
        run.tracker.log_confusion(head, target[labelled], outcome.scores[head][labelled].argmax(1), names)
