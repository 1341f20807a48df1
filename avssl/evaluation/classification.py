"""Classification metrics under their standard names, as fractions 0..1, with the uncertainty beside the headline."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_labels, as_matrix, to_numpy
from avssl.evaluation.class_ranking import rank_classes
from avssl.evaluation.intervals import proportion_interval
from avssl.evaluation.multilabel import MultilabelReport, multilabel_report

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


def one_vs_rest(scores: FloatArray) -> FloatArray:
    """Logits ``(N, C)`` as log-probabilities, by which classes rank rows: a softmax changes the order of the rows.

    Probabilities are left as they are.
    """
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    return log_softmax(scores.astype(np.float64), axis=1)


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
