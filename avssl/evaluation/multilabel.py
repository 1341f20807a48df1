"""Metrics of a head whose clips have several labels: AudioSet's mAP, mAUC and d'."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, to_numpy
from avssl.evaluation.class_ranking import rank_classes


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
