"""The files of a classification run: result.json, pictures, report.html."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avssl.config import FinetuneConfig, to_dict, to_yaml
from avssl.data.splits import Splits
from avssl.evaluation.classification import (
    HEADLINES,
    ClassificationReport,
    MultilabelReport,
    head_reports,
    headline,
    multi_head_metrics,
)
from avssl.evaluation.clustering import cluster_metrics
from avssl.evaluation.curves import loss_curves
from avssl.evaluation.embeddings import Embeddings, coverage
from avssl.evaluation.epic import epic_metrics
from avssl.evaluation.error_analysis import confusion_matrix
from avssl.evaluation.feature_maps import tsne_before_after
from avssl.evaluation.plots import drawn
from avssl.evaluation.predictions import FILE as PREDICTIONS
from avssl.evaluation.predictions import write_predictions
from avssl.evaluation.report import Table, write_report
from avssl.evaluation.result import provenance, write_result
from avssl.tracking import read_rows
from avssl.training.run import Run, next_command

logger = logging.getLogger(__name__)

# More points than this make a t-SNE slow and its picture unreadable.
TSNE_POINTS = 2000
# What the table shows of each head, where a head has it, and how.
COLUMNS = {
    "top1": ("top-1", "{:.1%}"),
    "top5": ("top-5", "{:.1%}"),
    "mean_class_accuracy": ("mean class accuracy", "{:.1%}"),
    "mAP": ("mAP", "{:.1%}"),
    "mAUC": ("mAUC", "{:.1%}"),
    "d_prime": ("d'", "{:.2f}"),
}
Reports = Mapping[str, ClassificationReport | MultilabelReport]


@dataclass
class Outcome:
    """What a run is judged by.

    Attributes:
        scores: (N, classes) scores of the test rows by head.
        after: Features and labels of the same rows after training.
        before: Features of the same rows before it.
        expected: Rows of the test split, readable or not.
        start: What training started from: random or pretrained.
        weights: Which weights of a training are judged, see :func:`avssl.training.engine.Engine.choose_weights`.
        before_title: What the features in ``before`` come from.
        after_title: What the features in ``after`` come from.
    """

    scores: dict[str, np.ndarray]
    after: Embeddings
    before: Embeddings
    expected: int
    start: str
    weights: dict[str, Any]
    before_title: str = "Before fine-tuning"
    after_title: str = "After fine-tuning"


def report_classification(config: FinetuneConfig, run: Run, splits: Splits, outcome: Outcome) -> dict[str, Any]:
    """Computes all metrics, writes result.json, the pictures and report.html.

    Returns:
        The result, with ``next``: command lines that go on from the run.
    """
    labels = outcome.after.labels
    reports = head_reports(outcome.scores, labels, seed=config.seed)
    metrics = multi_head_metrics(outcome.scores, labels, seed=config.seed, reports=reports)
    if splits.labelled_test is not None:
        metrics |= epic_metrics(outcome.scores, labels, splits.labelled_test, outcome.after.index)
    covered = coverage(outcome.expected, len(outcome.after), outcome.after.failures)
    protocol = str(splits.protocol)
    result: dict[str, Any] = {
        "kind": f"finetune-{config.head}",
        "metrics": metrics,
        "classes": {head: _by_class(report, splits.labels[head]) for head, report in reports.items()},
        "clustering": feature_clusters(outcome.after, splits.labels),
        "split": "test" if splits.labelled_test is splits.test else "val",
        "held_out": {name: rows.told() for name, rows in splits.held_out.items()},
        "weights": outcome.weights,
        "clip_protocol": protocol,
        "pad": None if config.modality == "video" else config.audio.pad,
        "coverage": splits.coverage | {"evaluated": covered},
        "manifest": splits.digest,
        "seed": config.seed,
        "start": outcome.start,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(run.folder / "result.json", result)
    write_predictions(run.folder / PREDICTIONS, outcome.after.clip_ids, outcome.scores, labels, splits.labels)
    pictures = _draw(run, splits, outcome, reports)
    _track(run, splits, outcome, metrics, pictures)
    judged = splits.protocol.words()
    heads = [*reports, *(["action"] if "action/top1" in metrics else [])]
    shown = {head: headline(metrics, head) for head in heads}
    write_report(
        run.folder,
        title=f"{config.head.capitalize()} fine-tuning on {Path(config.data.name).stem}, {outcome.start} start",
        summary={
            f"{head} {HEADLINES[name]}, {judged}": f"{metrics[f'{head}/{name}']:.1%}" for head, name in shown.items()
        },
        tables=[_metrics_table(heads, metrics, protocol, covered)],
        pictures=pictures,
        config_yaml=to_yaml(config),
        provenance=result["provenance"],
    )
    for head, name in shown.items():
        values = [100 * metrics[f"{head}/{key}"] for key in (name, f"{name}_low", f"{name}_high")]
        clips = int(metrics[f"{head}/count"])
        told = f"{head}: {HEADLINES[name]}, {judged}:"
        logger.info("%s %.1f %% (95 %% interval %.1f to %.1f), %d items", told, *values, clips)
    logger.info("report: %s", run.folder / "report.html")
    steps = [next_command("evaluate", run.folder, config.data, result["split"])]
    if config.modality == "audio":
        steps.insert(0, shlex.join(["avssl", "predict", "--checkpoint", str(run.folder)]) + " FILE...")
    return result | {"next": steps}


def feature_clusters(features: Embeddings, labels: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Clustering metrics by head, where enough rows are labelled for them; a cluster is of one label a clip."""
    clusters = {}
    for head in labels:
        target = features.labels[head]
        if target.ndim == 1 and 2 <= len(np.unique(target[target >= 0])) < (target >= 0).sum():
            clusters[head] = cluster_metrics(features.features, target)
    return clusters


def _by_class(report: ClassificationReport | MultilabelReport, names: list[str]) -> dict[str, dict[str, Any]]:
    """Numbers of each class for result.json; those that do not exist become null there."""
    if isinstance(report, MultilabelReport):
        columns = {"clips": report.support, "AP": report.ap, "AUC": report.auc}
    else:
        columns = {"clips": report.support, "accuracy": report.per_class, "AP": report.ap}
    return {name: {key: values[k].item() for key, values in columns.items()} for k, name in enumerate(names)}


def _metrics_table(heads: list[str], metrics: dict[str, float], protocol: str, covered: dict[str, Any]) -> Table:
    columns = {key: column for key, column in COLUMNS.items() if any(f"{head}/{key}" in metrics for head in heads)}
    rows = []
    for head in heads:
        values = [(metrics.get(f"{head}/{key}"), form) for key, (_, form) in columns.items()]
        name = headline(metrics, head)
        low, high = metrics[f"{head}/{name}_low"], metrics[f"{head}/{name}_high"]
        interval = f"{HEADLINES[name]} {low:.1%} to {high:.1%}"
        numbers = ["" if value is None else form.format(value) for value, form in values]
        rows.append([head, *numbers, interval, str(int(metrics[f"{head}/count"]))])
    note = f"{protocol}; {covered['evaluated']} of {covered['expected']} test clips evaluated"
    header = ["head", *(title for title, _ in columns.values()), "95 % interval", "clips"]
    return Table("Classification", header, rows, note)


def _draw(run: Run, splits: Splits, outcome: Outcome, reports: Reports) -> list[tuple[Path, str]]:
    """Training curves; and by head a confusion matrix and t-SNE, which are of heads with one label a clip."""
    pictures: list[tuple[Path, str]] = []
    rows = read_rows(run.tracker.metrics_path)
    if rows:
        path, rows = run.picture("curves"), rows + read_rows(run.tracker.speed_path)
        pictures += drawn(path, "Training curves", loss_curves, rows, path)
    for head, report in reports.items():
        if isinstance(report, MultilabelReport):
            continue
        names, target = splits.labels[head], outcome.after.labels[head]
        path = run.picture(f"confusion-{head}")
        caption, title = f"Confusion matrix of {head}, rows are the truth", f"Confusion, {head}"
        pictures += drawn(path, caption, confusion_matrix, report.confusion, names, path, title=title)
        labelled = np.flatnonzero(target >= 0)[:TSNE_POINTS]
        if outcome.before is not outcome.after and len(labelled) >= 5:
            path = run.picture(f"tsne-{head}")
            before, after = outcome.before.features[labelled], outcome.after.features[labelled]
            titles = (outcome.before_title, outcome.after_title)
            caption = f"t-SNE of the features by {head}: {' and '.join(titles).lower()}"
            points, options = (before, after, target[labelled], names, path), {"title": f"t-SNE by {head}"}
            pictures += drawn(path, caption, tsne_before_after, *points, titles=titles, **options)
    return pictures


def _track(
    run: Run, splits: Splits, outcome: Outcome, metrics: dict[str, float], pictures: list[tuple[Path, str]]
) -> None:
    run.tracker.summary({f"test/{key}": value for key, value in metrics.items()})
    run.tracker.log_pictures({path.stem: path for path, _ in pictures})
    for head, names in splits.labels.items():
        target, scores = outcome.after.labels[head], outcome.scores[head]
        run.tracker.log_predictions(head, outcome.after.clip_ids, target, scores, names)
        labelled = target >= 0
        if target.ndim == 1 and labelled.any():
            run.tracker.log_confusion(head, target[labelled], scores[labelled].argmax(1), names)
