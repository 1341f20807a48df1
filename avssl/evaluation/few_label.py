"""How far do few labels go? The linear probe fitted on shares of the training rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.evaluation.arrays import IntArray
from avssl.evaluation.classification import mean_average_precision
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.probe import linear_probe, targets_of
from avssl.progress import track

SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class FewLabelPoint:
    """The probe at one share of the labels.

    Attributes:
        share: of the labelled training rows, 0 to 1.
        rows: training rows drawn; more than the share where every class needs its one row.
        values: top-1, or mAP of a multi-label head, on all test rows, one for each draw.
    """

    share: float
    rows: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the draws (of a sample, N - 1); NaN for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def draw_rows(labels: NDArray[np.int64] | NDArray[np.floating], share: float, seed: int) -> IntArray:
    """Labelled rows in ascending order: of each class the share, at least one.

    Rows with several labels belong to no single class: of those a plain random share is drawn, then one more for
    every class that it lacks.

    Args:
        labels: (N,) classes, -1 for rows to leave out; or (N, C) zeros and ones, a row of -1 to leave out.
        share: above 0, at most 1.

    Raises:
        ValueError: a share outside of that.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of labels: must be above 0 and at most 1, got {share}")
    rng = np.random.default_rng((seed, 17))
    if labels.ndim == 1:
        members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels[labels >= 0])]
        chosen = [rows[: max(1, round(share * len(rows)))] for rows in members]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    order = rng.permutation(np.flatnonzero((labels >= 0).all(axis=1)))
    taken = list(order[: max(1, round(share * len(order)))])
    have = labels[taken].max(axis=0, initial=0)
    for row in order[len(taken) :]:
        if (labels[row] > have).any():
            taken.append(row)
            have = np.maximum(have, labels[row])
    return np.sort(np.array(taken, np.int64))


def few_label_curve(
    train: Embeddings,
    test: Embeddings,
    head: str,
    num_classes: int,
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> list[FewLabelPoint]:
    """Top-1 (mAP of a multi-label head) of the linear probe at each share of the training labels.

    Draw d is the same rows for any features of the same training set, so that two encoders are set against each other
    on equal terms. All labels make but one draw.
    """
    labels, truth = train.labels[head], test.labels[head]
    points = []
    plan = [(share, seed * 1000 + draw) for share in sorted(shares) for draw in range(draws if share < 1 else 1)]
    values: dict[float, list[float]] = {share: [] for share in sorted(shares)}
    rows: dict[float, int] = {}
    for share, draw in track(plan, f"few labels, {head}", "probe", shown=progress):
        chosen = draw_rows(labels, share, draw)
        rows[share] = len(chosen)
        scores = linear_probe(train.select(chosen), test, head, num_classes, seed=seed).scores
        values[share].append(_quality(scores, truth, num_classes))
    for share, found in values.items():
        points.append(FewLabelPoint(share, rows[share], tuple(found)))
    return points


def _quality(scores: NDArray[np.floating], truth: NDArray[np.floating], num_classes: int) -> float:
    if truth.ndim == 1:
        known = np.asarray(truth >= 0)
        return float((scores[known].argmax(axis=1) == truth[known]).mean())
    known = np.asarray((truth >= 0).all(axis=1))
    return mean_average_precision(scores[known], targets_of(truth[known], num_classes))
