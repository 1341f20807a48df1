"""How well each class ranks the rows: average precision and area under the ROC curve, with an interval of mAP.

One sort of each class serves all of it. Per class the numbers are scikit-learn's ``average_precision_score`` and
``roc_auc_score``: rows of equal score share a threshold.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import norm

from avssl.evaluation.arrays import FloatArray, IntArray
from avssl.evaluation.statistics import Z95


@dataclass(frozen=True)
class ClassRanking:
    """One-vs-rest ranking of N rows by C classes.

    Attributes:
        ap: (C,) average precision; NaN for classes without a positive row.
        auc: (C,) area under the ROC curve; NaN for classes without a positive or without a negative row.
        low, high: 95 % interval of ``mean_ap``; NaN when it was not asked for.
    """

    ap: FloatArray
    auc: FloatArray
    low: float = float("nan")
    high: float = float("nan")

    @property
    def mean_ap(self) -> float:
        """mAP, the mean over the classes that have a positive row; NaN when none has."""
        return _mean(self.ap)

    @property
    def mean_auc(self) -> float:
        """mAUC, the mean over the classes that have positive and negative rows; NaN when none has."""
        return _mean(self.auc)

    @property
    def d_prime(self) -> float:
        """sqrt(2) times the inverse of the normal distribution function at mAUC (Gemmeke et al. 2017, AudioSet)."""
        return float(np.sqrt(2) * norm.ppf(self.mean_auc))

    @property
    def metrics(self) -> dict[str, float]:
        """mAP, with its interval where there is one, mAUC and d_prime. What is not a finite number is left out: d' at
        an mAUC of 1."""
        values = {"mAP": self.mean_ap, "mAP_low": self.low, "mAP_high": self.high}
        values |= {"mAUC": self.mean_auc, "d_prime": self.d_prime}
        return {name: value for name, value in values.items() if np.isfinite(value)}


def rank_classes(scores: FloatArray, truth: NDArray[np.bool_], *, resamples: int = 0, seed: int = 0) -> ClassRanking:
    """Ranks the rows by every class.

    The interval of mAP is mAP give or take 1.96 standard deviations of its bootstrap over rows (Efron 1979). Its
    percentiles would lie too high: a row that is drawn twice ranks beside itself, which lifts every average precision.
    A standard deviation needs few draws (200 give it to 5 %), and all draws of a class are one sparse product that
    counts, for each of its positive rows, the drawn rows above it: for 20 000 rows and 527 classes with their intervals
    about as long as scikit-learn takes for the average precisions alone.

    Args:
        scores: (N, C), finite.
        truth: (N, C), whether the row has the class.
        resamples: Draws of the bootstrap; 0 leaves the interval out.
        seed: Seed of the draws.
    """
    rows, classes = truth.shape
    ap, auc = np.full(classes, np.nan), np.full(classes, np.nan)
    total, counted = np.zeros(resamples), np.zeros(resamples)
    drawn = _drawn(rows, resamples, seed)
    for k in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, k], kind="stable")
        hits, ends = truth[order, k], _threshold_ends(scores[order, k])
        found, above = np.diff(np.cumsum(hits)[ends], prepend=0), np.diff(ends, prepend=-1)
        precise = np.cumsum(found) / (ends + 1)
        ap[k] = (found * precise).sum() / found.sum()
        negatives = above - found
        if negatives.any():
            below = negatives.sum() - np.cumsum(negatives)
            auc[k] = (found * (below + negatives / 2)).sum() / (found.sum() * negatives.sum())
        if resamples:
            drawn_ap = _drawn_precision(order, hits, ends[found > 0], found[found > 0], drawn)
            total += np.nan_to_num(drawn_ap)
            counted += np.isfinite(drawn_ap)
    ranking = ClassRanking(ap, auc)
    means = total[counted > 0] / counted[counted > 0]
    if len(means) < 2:
        return ranking
    spread = Z95 * means.std(ddof=1)
    low, high = np.clip((ranking.mean_ap - spread, ranking.mean_ap + spread), 0, 1)
    return ClassRanking(ap, auc, float(low), float(high))


def _threshold_ends(descending: FloatArray) -> IntArray:
    """Position of the last row of each run of equal scores."""
    return np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)


def _drawn(rows: int, resamples: int, seed: int) -> FloatArray:
    """(N, R) how often each row is drawn, N draws in all."""
    rng = np.random.default_rng(seed)
    counts = np.empty((rows, resamples), np.float32)
    for draw in range(resamples):
        counts[:, draw] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
    return counts


def _drawn_precision(
    order: IntArray, hits: NDArray[np.bool_], ends: IntArray, found: IntArray, drawn: FloatArray
) -> FloatArray:
    """Average precision (R,) of one class in every draw; NaN where no positive row was drawn.

    Args:
        order: (N,) rows by falling score.
        hits: (N,) whether each of them is positive.
        ends: (K,) positions at which a threshold with positive rows ends.
        found: (K,) positive rows of these thresholds.
        drawn: (N, R) how often each row was drawn.
    """
    above = np.cumsum(_segment_sums(order[: ends[-1] + 1], np.diff(ends, prepend=-1), drawn), axis=0)
    gained = _segment_sums(order[hits], found, drawn)
    precise = np.cumsum(gained, axis=0) / np.maximum(above, 1)
    with np.errstate(invalid="ignore"):
        return (gained * precise).sum(axis=0) / gained.sum(axis=0)


def _segment_sums(rows: IntArray, lengths: IntArray, values: FloatArray) -> FloatArray:
    """Sums (K, R) of ``values`` (N, R) over consecutive parts of ``rows``, ``lengths`` (K,) of them each."""
    starts = np.append(0, np.cumsum(lengths))
    chosen = csr_matrix((np.ones(len(rows), values.dtype), rows, starts), shape=(len(lengths), len(values)))
    return (chosen @ values).astype(np.float64)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
