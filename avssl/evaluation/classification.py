"""Classification metrics under their standard names, as fractions 0..1, with the uncertainty beside the headline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_labels, as_matrix, to_numpy


@dataclass(frozen=True)
class ClassificationReport:
    """Metrics of one head.

    Attributes:
        metrics: ``top1``, ``top1_low``, ``top1_high`` (95 % interval), ``top5`` (when there are more than 5 classes),
            ``mean_class_accuracy``, ``mAP``, and ``count``, the number of labelled rows.
        confusion: ``(C, C)`` int64 counts, rows the truth, columns the prediction.
        per_class: ``(C,)`` accuracy of each class, NaN for classes without a test row.
        support: ``(C,)`` int64 test rows of each class.
    """

    metrics: dict[str, float]
    confusion: IntArray
    per_class: FloatArray
    support: IntArray


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
    present = truth.any(axis=0)
    if not present.any():
        return float("nan")
    return float(average_precision_score(truth[:, present].astype(int), matrix[:, present], average="macro"))


def bootstrap_interval(
    correct: Arrayish, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean of zeros and ones (Efron 1979).

    Rows drawn with replacement hold a binomial number of correct ones, so this samples that number directly.
    All right or all wrong gives an interval of no width: with few rows it understates the doubt there.
    """
    hits = to_numpy(correct).astype(bool)
    if hits.size == 0:
        return float("nan"), float("nan")
    means = np.random.default_rng(seed).binomial(hits.size, hits.mean(), size=resamples) / hits.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def classification_report(scores: Arrayish, labels: Arrayish, *, seed: int = 0) -> ClassificationReport:
    """All metrics of one head.

    Args:
        scores: ``(N, C)`` logits, log-probabilities or probabilities; higher is likelier.
        labels: ``(N,)`` integers, -1 for rows to leave out.
        seed: of the bootstrap.

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
    low, high = bootstrap_interval(hits, seed=seed)
    metrics = {"top1": float(hits.mean()), "top1_low": low, "top1_high": high}
    if classes > 5:
        metrics["top5"] = float((best == truth[:, None]).any(axis=1).mean())
    metrics["mean_class_accuracy"] = float(np.nanmean(per_class))
    metrics["mAP"] = mean_average_precision(matrix, truth)
    metrics["count"] = float(len(truth))
    return ClassificationReport(metrics, confusion.astype(np.int64), per_class, support.astype(np.int64))


def action_metrics(
    verb_scores: Arrayish, noun_scores: Arrayish, verb_labels: Arrayish, noun_labels: Arrayish, *, seed: int = 0
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
    low, high = bootstrap_interval(hits[:, 0], seed=seed)
    metrics = {"top1": float(hits[:, 0].mean()), "top1_low": low, "top1_high": high}
    return metrics | {"top5": float(hits.any(axis=1).mean()), "count": float(len(verb))}


def multi_head_metrics(
    scores: Mapping[str, Arrayish], labels: Mapping[str, Arrayish], *, seed: int = 0
) -> dict[str, float]:
    """Metrics of several heads, named ``head/metric``; ``action/...`` is added where heads verb and noun both are.

    Raises:
        ValueError: a head has scores but no labels.
    """
    missing = [head for head in scores if head not in labels]
    if missing:
        raise ValueError(f"heads without labels: {', '.join(missing)}; labelled heads: {', '.join(labels) or 'none'}")
    metrics: dict[str, float] = {}
    for head in scores:
        report = classification_report(scores[head], labels[head], seed=seed)
        metrics |= {f"{head}/{name}": value for name, value in report.metrics.items()}
    if "verb" in scores and "noun" in scores:
        action = action_metrics(scores["verb"], scores["noun"], labels["verb"], labels["noun"], seed=seed)
        metrics |= {f"action/{name}": value for name, value in action.items()}
    return metrics
