"""Classification metrics under their standard names, as fractions 0..1, with the uncertainty beside the headline."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_labels, as_matrix, one_vs_rest, to_numpy
from avssl.evaluation.base import EvaluationResult, Headline, register_evaluation
from avssl.evaluation.class_ranking import rank_classes
from avssl.evaluation.error_analysis import confusion_matrix
from avssl.evaluation.plots import drawn
from avssl.evaluation.report import Section, Table
from avssl.evaluation.statistics import proportion_interval

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

logger = logging.getLogger(__name__)

# Names of the number that a head is judged by, in prose: the first of them that it has.
HEADLINES = {"top1": "top-1", "mAP": "mAP"}


@dataclass(frozen=True)
class ClassificationReport:
    """Metrics of one head with one label a clip.

    Attributes:
        metrics: ``top1``, ``top1_low``, ``top1_high`` (Wilson's 95 % interval), ``top5`` (when there are more
            than 5 classes), ``mean_class_accuracy``; as VGGSound (Chen et al. 2020) and EPIC-Sounds (Huh et al. 2023)
            report them, one class against the rest: ``mAP``, ``mAP_low``, ``mAP_high``, ``mAUC``, ``d_prime`` (absent
            where mAUC is 1); and ``count``, the number of labelled rows.
        confusion: ``(C, C)`` int64 counts, rows the truth, columns the prediction.
        per_class: ``(C,)`` accuracy of each class, NaN for classes without a test row.
        support: ``(C,)`` int64 test rows of each class.
        ap: ``(C,)`` average precision of each class against the rest, NaN for classes without a test row.
    """

    metrics: dict[str, float]
    confusion: IntArray
    per_class: FloatArray
    support: IntArray
    ap: FloatArray


def ranking(scores: FloatArray, k: int) -> IntArray:
    """The k best classes of each row, best first ``(N, k)``; equal scores go to the lower class, as in argmax."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def mean_average_precision(scores: Arrayish, targets: Arrayish) -> float:
    """Macro average over classes of the area under each one-vs-rest precision-recall curve (AudioSet's mAP).

    Args:
        scores: ``(N, C)``; each column is ranked over the rows.
        targets: ``(N,)`` class indices, or ``(N, C)`` zeros and ones for several labels at once.

    Classes without a positive row have no average precision and are left out; NaN when none is left.
    """
    matrix, truth = as_matrix(scores, "scores"), to_numpy(targets)
    if truth.ndim == 1:
        labels = as_labels(truth, "targets", len(matrix), matrix.shape[1])
        truth = labels[:, None] == np.arange(matrix.shape[1])
    if truth.shape != matrix.shape:
        raise ValueError(f"targets: shape {truth.shape} does not match scores {matrix.shape}")
    return rank_classes(matrix, truth.astype(bool)).mean_ap


def classification_report(scores: Arrayish, labels: Arrayish, *, seed: int = 0) -> ClassificationReport:
    """All metrics of one head with one label a clip.

    Args:
        scores: ``(N, C)`` logits, log-probabilities or probabilities; higher is likelier.
        labels: ``(N,)`` integers, -1 for rows to leave out.
        seed: of the bootstrap of mAP's interval.

    Raises:
        ValueError: NaN or infinite scores, labels outside the classes, or not one labelled row.
    """
    matrix = as_matrix(scores, "scores")
    truth = as_labels(labels, "labels", *matrix.shape)
    matrix, truth = matrix[truth >= 0], truth[truth >= 0]
    if len(truth) == 0:
        raise ValueError("labels: every row is unlabelled (-1); choose a head or a split that has labels")
    classes = matrix.shape[1]
    best = ranking(matrix, min(5, classes))
    confusion = np.bincount(truth * classes + best[:, 0], minlength=classes**2).reshape(classes, classes)
    support = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        per_class = np.diag(confusion) / support
    hits = best[:, 0] == truth
    low, high = proportion_interval(int(hits.sum()), len(hits))
    metrics = {"top1": float(hits.mean()), "top1_low": low, "top1_high": high}
    if classes > 5:
        metrics["top5"] = float((best == truth[:, None]).any(axis=1).mean())
    metrics["mean_class_accuracy"] = float(np.nanmean(per_class))
    positive = truth[:, None] == np.arange(classes)
    ranked = rank_classes(one_vs_rest(matrix), positive, resamples=200, seed=seed)
    metrics |= ranked.metrics | {"count": float(len(truth))}
    return ClassificationReport(metrics, confusion.astype(np.int64), per_class, support.astype(np.int64), ranked.ap)


@dataclass(frozen=True)
class MultilabelReport:
    """Metrics of one head.

    Attributes:
        metrics: ``mAP``, ``mAP_low``, ``mAP_high`` (95 % interval), ``mAUC``, ``d_prime`` (absent where mAUC is 1), and
            ``count``, the number of labelled rows.
        ap: (C,) average precision of each class, NaN for classes without a positive row.
        auc: (C,) area under the ROC curve of each class, NaN for classes without positive or without negative rows.
        support: (C,) int64 positive rows of each class.
    """

    metrics: dict[str, float]
    ap: FloatArray
    auc: FloatArray
    support: IntArray


def multilabel_report(scores: Arrayish, labels: Arrayish, *, resamples: int = 200, seed: int = 0) -> MultilabelReport:
    """All metrics of one head.

    Args:
        scores: (N, C) logits or probabilities; each class ranks the rows.
        labels: (N, C) zeros and ones, rows of -1 to leave out.
        resamples: Draws of the bootstrap; see :func:`rank_classes`.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: NaN or infinite scores, labels of another shape or value, not one labelled row or positive label.
    """
    matrix = as_matrix(scores, "scores")
    targets, known = as_targets(labels, "labels", *matrix.shape)
    if not known.any():
        raise ValueError("labels: every row is unlabelled (-1); choose a head or a split that has labels")
    truth = targets[known] > 0
    if not truth.any():
        raise ValueError("labels: not one row has a class; nothing can be ranked")
    ranking = rank_classes(matrix[known], truth, resamples=resamples, seed=seed)
    metrics = ranking.metrics | {"count": float(known.sum())}
    return MultilabelReport(metrics, ranking.ap, ranking.auc, truth.sum(axis=0).astype(np.int64))


def as_targets(values: Arrayish, name: str, rows: int, classes: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Targets (rows, classes) and which rows are labelled (rows,) bool.

    Raises:
        ValueError: another shape, other values than 0, 1 and -1, or a row that is -1 in a part of its classes only.
    """
    targets = to_numpy(values)
    if targets.shape != (rows, classes):
        raise ValueError(f"{name}: shape {tuple(targets.shape)} does not match scores {(rows, classes)}")
    unknown = targets == -1
    if not (unknown | (targets == 0) | (targets == 1)).all():
        raise ValueError(f"{name}: must be 0 and 1, or -1 in all of an unlabelled row")
    if (unknown.any(axis=1) != unknown.all(axis=1)).any():
        row = int((unknown.any(axis=1) & ~unknown.all(axis=1)).argmax())
        raise ValueError(f"{name}: row {row} is -1 in a part of its classes; a row is labelled as a whole")
    return targets, ~unknown.any(axis=1)


def action_metrics(
    verb_scores: Arrayish, noun_scores: Arrayish, verb_labels: Arrayish, noun_labels: Arrayish
) -> dict[str, float]:
    """EPIC-KITCHENS-100's *action*: verb and noun both right (Damen et al. 2022).

    ``top5`` ranks all verb-noun pairs by the product of their probabilities. The five best pairs use only the five
    best verbs and nouns, so 25 pairs are enough.

    Args:
        verb_scores, noun_scores: ``(N, V)`` and ``(N, M)`` logits or log-probabilities.
        verb_labels, noun_labels: ``(N,)``; rows where either is -1 are left out.

    Returns:
        ``top1``, ``top1_low``, ``top1_high``, ``top5``, ``count``.
    """
    verbs, nouns = as_matrix(verb_scores, "verb_scores"), as_matrix(noun_scores, "noun_scores")
    if len(verbs) != len(nouns):
        raise ValueError(f"verb_scores has {len(verbs)} rows, noun_scores {len(nouns)}")
    verb = as_labels(verb_labels, "verb_labels", *verbs.shape)
    noun = as_labels(noun_labels, "noun_labels", *nouns.shape)
    keep = (verb >= 0) & (noun >= 0)
    if not keep.any():
        raise ValueError("verb_labels, noun_labels: no row has both labels")
    verbs, nouns, verb, noun = verbs[keep], nouns[keep], verb[keep], noun[keep]
    best_verbs, best_nouns = ranking(verbs, min(5, verbs.shape[1])), ranking(nouns, min(5, nouns.shape[1]))
    verb_log = np.take_along_axis(log_softmax(verbs.astype(np.float64), axis=1), best_verbs, axis=1)
    noun_log = np.take_along_axis(log_softmax(nouns.astype(np.float64), axis=1), best_nouns, axis=1)
    joint = (verb_log[:, :, None] + noun_log[:, None, :]).reshape(len(verb), -1)
    right = (best_verbs == verb[:, None])[:, :, None] & (best_nouns == noun[:, None])[:, None, :]
    best = ranking(joint, min(5, joint.shape[1]))
    hits = np.take_along_axis(right.reshape(len(verb), -1), best, axis=1)
    low, high = proportion_interval(int(hits[:, 0].sum()), len(hits))
    metrics = {"top1": float(hits[:, 0].mean()), "top1_low": low, "top1_high": high}
    return metrics | {"top5": float(hits.any(axis=1).mean()), "count": float(len(verb))}


def headline(metrics: Mapping[str, float], head: str) -> str:
    """Name of the metric that ``head`` is judged by: top1, or mAP where a clip has several labels.

    Raises:
        ValueError: the head has neither.
    """
    for name in HEADLINES:
        if f"{head}/{name}" in metrics:
            return name
    raise ValueError(f"no metrics of head {head!r}; there are: {', '.join(metrics) or 'none'}")


def head_reports(
    scores: Mapping[str, Arrayish], labels: Mapping[str, Arrayish], *, seed: int = 0
) -> dict[str, ClassificationReport | MultilabelReport]:
    """The report of each head. A head of which not one row is labelled has none, which is logged.

    Args:
        scores: head -> ``(N, C)``.
        labels: head -> ``(N,)`` classes, or ``(N, C)`` zeros and ones where a clip has several labels; -1 where
            unlabelled. The kind of the labels decides which report it is.
        seed: of the bootstraps.

    Raises:
        ValueError: a head has scores but no labels, no head has a labelled row, or what the report of its kind refuses.
    """
    missing = [head for head in scores if head not in labels]
    if missing:
        raise ValueError(f"heads without labels: {', '.join(missing)}; labelled heads: {', '.join(labels) or 'none'}")
    unlabelled = [head for head in scores if (to_numpy(labels[head]) < 0).all()]
    if len(unlabelled) == len(scores):
        raise ValueError("labels: every row is unlabelled (-1); choose a head or a split that has labels")
    if unlabelled:
        logger.warning("no metrics of %s: none of the rows is labelled", ", ".join(unlabelled))
    reports: dict[str, ClassificationReport | MultilabelReport] = {}
    for head in (head for head in scores if head not in unlabelled):
        report = multilabel_report if to_numpy(labels[head]).ndim == 2 else classification_report
        reports[head] = report(scores[head], labels[head], seed=seed)
    return reports


def multi_head_metrics(
    scores: Mapping[str, Arrayish],
    labels: Mapping[str, Arrayish],
    *,
    seed: int = 0,
    reports: Mapping[str, ClassificationReport | MultilabelReport] | None = None,
) -> dict[str, float]:
    """Metrics of several heads, named ``head/metric``; ``action/...`` is added where heads verb and noun both are.

    Args:
        scores, labels, seed: See :func:`head_reports`.
        reports: What that gave for them, where it is known already.
    """
    found = head_reports(scores, labels, seed=seed) if reports is None else reports
    metrics = {f"{head}/{name}": value for head, report in found.items() for name, value in report.metrics.items()}
    if {"verb/top1", "noun/top1"} <= metrics.keys():
        action = action_metrics(scores["verb"], scores["noun"], labels["verb"], labels["noun"])
        metrics |= {f"action/{name}": value for name, value in action.items()}
    return metrics


# What the table shows of each head, where a head has it, and how.
_COLUMNS = {
    "top1": ("top-1", "{:.1%}"),
    "top5": ("top-5", "{:.1%}"),
    "mean_class_accuracy": ("mean class accuracy", "{:.1%}"),
    "mAP": ("mAP", "{:.1%}"),
    "mAUC": ("mAUC", "{:.1%}"),
    "d_prime": ("d'", "{:.2f}"),
}


def head_metrics(context: "EvaluationContext", scores: Mapping[str, FloatArray]) -> dict[str, float]:
    """``HEAD/METRIC`` of the evaluated rows."""
    return multi_head_metrics(scores, {head: context.truth(head) for head in scores}, seed=context.config.seed)


def classification_result(
    context: "EvaluationContext",
    scores: Mapping[str, FloatArray],
    *,
    title: str,
    text: str,
    prefix: str = "",
    by: str = "",
    confusion: bool = False,
) -> EvaluationResult:
    """Metrics of some scores of the evaluated rows, with intervals, and headlines that name the protocol.

    Args:
        context: of the evaluation.
        scores: head -> (N, classes).
        title, text: of the section.
        prefix: before every metric's key, with its slash.
        by: what classified, for the headline: "linear probe".
        confusion: draw the confusion matrix of every head with one label a clip.

    Returns:
        With the numbers of each class, by head, as details.
    """
    reports = head_reports(scores, {head: context.truth(head) for head in scores}, seed=context.config.seed)
    metrics = multi_head_metrics(scores, context.features.labels, reports=reports)
    heads = [*scores, *(["action"] if "action/top1" in metrics else [])]
    columns = {key: column for key, column in _COLUMNS.items() if any(f"{head}/{key}" in metrics for head in heads)}
    rows, headlines = [], []
    clips = context.clips if by else context.scored_clips
    for head in heads:
        name = headline(metrics, head)
        key = f"{head}/{name}"
        low, high = (metrics.get(f"{key}_{side}", float("nan")) for side in ("low", "high"))
        what = f"{head} {HEADLINES[name]}" + (f" by {by}" if by else "")
        headlines.append(Headline(f"{what}, {clips}", prefix + key, metrics[key], low, high))
        values = [(metrics.get(f"{head}/{key}"), form) for key, (_, form) in columns.items()]
        shown = [None if value is None else form.format(value) for value, form in values]
        interval = f"{low:.1%} to {high:.1%}" if np.isfinite(low) else None
        rows.append([head, *shown, interval, int(metrics[f"{head}/count"])])
    first = HEADLINES[headline(metrics, heads[0])]
    table = Table(
        title,
        ["head", *(name for name, _ in columns.values()), f"95 % interval of {first}", "clips"],
        rows,
        f"Scores: {clips}. Intervals: Wilson's of top-1, bootstrap over clips of mAP.",
    )
    pictures = _confusion_pictures(context, reports, by) if confusion else []
    details = {head: _by_class(report, context.labels[head]) for head, report in reports.items()}
    metrics = {prefix + key: value for key, value in metrics.items()}
    return EvaluationResult(Section(title, text, [table], pictures), metrics, headlines, details)


def _by_class(report: ClassificationReport | MultilabelReport, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Numbers of each class for result.json; those that do not exist become null there."""
    if isinstance(report, MultilabelReport):
        columns = {"clips": report.support, "AP": report.ap, "AUC": report.auc}
    else:
        columns = {"clips": report.support, "accuracy": report.per_class, "AP": report.ap}
    return {name: {key: values[k].item() for key, values in columns.items()} for k, name in enumerate(names)}


def _confusion_pictures(
    context: "EvaluationContext", reports: Mapping[str, ClassificationReport | MultilabelReport], by: str
) -> list[tuple[Path, str]]:
    pictures: list[tuple[Path, str]] = []
    for head, report in reports.items():
        if isinstance(report, ClassificationReport):
            path, of = context.picture(f"confusion-{head}"), f" of the {by}" if by else ""
            caption, title = f"Confusion matrix{of}, {head}; rows are the truth", f"Confusion{of}, {head}"
            names = context.labels[head]
            pictures += drawn(path, caption, confusion_matrix, report.confusion, names, path, title=title)
    return pictures


@register_evaluation("accuracy", needs=("classifier", "labels"), default_for=("classifier",))
def accuracy(context: "EvaluationContext") -> EvaluationResult:
    """Top-1 and the rest of every head of a classifier."""
    text = f"The classifier's own heads on split {context.config.split!r}."
    if context.protocol.eval_clips > 1:
        what = context.protocol.average
        text += f" Of each file, the {what} of {context.protocol.eval_clips} clips, evenly spread, are averaged."
    if "video" in context.model.modalities:
        text += " Frames are seen in their centre crop only: clips are spread in time, not in space."
    return classification_result(context, context.scores(), title="Classification", text=text, confusion=True)
