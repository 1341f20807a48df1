"""95 % intervals: Wilson's of shares, else the bootstrap over clips, and the jackknife where that would be biased."""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, to_numpy

# Draws at a time: resamples x rows int64 stay below about 32 MB.
_CHUNK = 4_000_000
# Two-sided 95 % of a normal distribution.
_Z = 1.959964


def proportion_interval(successes: float, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of rows. It has a width where all or none are right, too.

    Args:
        successes: Rows that are right. An expected number, which ties leave between two whole ones, has the interval
            that holds those of both.
        count: All rows. No rows give NaN.
    """
    if count == 0:
        return float("nan"), float("nan")
    fewest, most = math.floor(successes + 1e-6), math.ceil(successes - 1e-6)
    low, high = (
        binomtest(hits, count).proportion_ci(confidence_level=confidence, method="wilson") for hits in (fewest, most)
    )
    return float(low.low), float(high.high)


def bootstrap_medians(
    values: Arrayish, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a median (Efron 1979): rows are drawn with replacement.

    Args:
        values: (N,) a number for each row. No rows give NaN.
    """
    rows = to_numpy(values).astype(np.float64)
    return bootstrap(lambda drawn: np.median(rows[drawn], axis=1), len(rows), confidence, resamples, seed)


def bootstrap(
    statistic: Callable[[IntArray], FloatArray],
    rows: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic.

    Args:
        statistic: drawn rows (R, N) -> (R,) values.
        rows: N.
    """
    if rows == 0:
        return float("nan"), float("nan")
    rng, size = np.random.default_rng(seed), max(1, _CHUNK // rows)
    parts = [
        statistic(rng.integers(rows, size=(min(size, resamples - start), rows))) for start in range(0, resamples, size)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(parts), (tail, 1 - tail))
    return float(low), float(high)


def contingency(truth: Arrayish, found: Arrayish) -> FloatArray:
    """(classes, clusters) counts of two labellings of the same rows, without empty rows or columns."""
    _, a = np.unique(to_numpy(truth), return_inverse=True)
    _, b = np.unique(to_numpy(found), return_inverse=True)
    shape = int(a.max(initial=-1)) + 1, int(b.max(initial=-1)) + 1
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def jackknife_clusters(table: FloatArray) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``NMI`` and ``ARI`` between two fixed labellings, by leaving out one row at a time.

    Drawing rows with replacement repeats rows, which always agree with themselves, and so lifts both numbers; the
    delete-one jackknife does not (Efron and Stein 1981). All rows of one cell of the table are alike, so one value for
    each cell is enough. The interval is the value of all rows, give or take 1.96 standard errors.

    Args:
        table: (classes, clusters) counts; see :func:`contingency`. Fewer than 3 rows give NaN.
    """
    rows = table.sum()
    if rows < 3:
        return {"NMI": (float("nan"),) * 2, "ARI": (float("nan"),) * 2}
    i, j = np.nonzero(table)
    counts = table[i, j]
    intervals = {}
    for name, function, lowest in (("NMI", _nmi_without, 0.0), ("ARI", _ari_without, -1.0)):
        whole, left = function(table, None), function(table, (i, j))
        mean = (counts * left).sum() / rows
        error = np.sqrt((rows - 1) / rows * (counts * (left - mean) ** 2).sum())
        low, high = np.clip((whole - _Z * error, whole + _Z * error), lowest, 1.0)
        intervals[name] = float(low), float(high)
    return intervals


def _sums(
    table: FloatArray, cells: tuple[IntArray, IntArray] | None, term: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Sums of ``term`` over cells, rows and columns, and the number of rows, each without one row of every cell."""
    a, b, n = table.sum(axis=1), table.sum(axis=0), table.sum()
    totals = [term(part).sum() for part in (table, a, b)]
    if cells is None:
        return np.asarray(totals[0]), np.asarray(totals[1]), np.asarray(totals[2]), np.asarray(n)
    i, j = cells
    inner, rows, columns = (
        total + term(part - 1) - term(part) for total, part in zip(totals, (table[i, j], a[i], b[j]), strict=True)
    )
    return inner, rows, columns, np.full(len(i), n - 1)


def _nmi_without(table: FloatArray, cells: tuple[IntArray, IntArray] | None) -> FloatArray:
    """Mutual information over the mean of both entropies (scikit-learn's default, which also is the V-measure)."""
    inner, rows, columns, n = _sums(table, cells, lambda x: x * np.log(np.maximum(x, 1)))
    entropies = 2 * n * np.log(n) - rows - columns
    mutual = inner - rows - columns + n * np.log(n)
    return np.where(entropies > 1e-9, 2 * mutual / np.maximum(entropies, 1e-9), 1.0)


def _ari_without(table: FloatArray, cells: tuple[IntArray, IntArray] | None) -> FloatArray:
    """Adjusted Rand index (Hubert and Arabie 1985)."""
    inner, rows, columns, n = _sums(table, cells, lambda x: x * (x - 1) / 2)
    pairs = n * (n - 1) / 2
    chance, most = rows * columns / np.maximum(pairs, 1), (rows + columns) / 2
    same = np.abs(most - chance) < 1e-12
    return np.where(same, 1.0, (inner - chance) / np.where(same, 1.0, most - chance))
