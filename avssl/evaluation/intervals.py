"""95 % intervals: Wilson's of shares, the bootstrap over clips, and of metrics over repeated runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, to_numpy

# Draws at a time: resamples x rows int64 stay below about 32 MB.
_CHUNK = 4_000_000
# Two-sided 95 % of a normal distribution.
Z95 = 1.959964


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
    tests = (stats.binomtest(hits, count) for hits in (fewest, most))
    low, high = (test.proportion_ci(confidence_level=confidence, method="wilson") for test in tests)
    return float(low.low), float(high.high)


def bootstrap_medians(
    values: Arrayish, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a median (Efron 1979): rows are drawn with replacement.

    Args:
        values: (N,) a number for each row. No rows give NaN.
    """
    rows = to_numpy(values).astype(np.float64)
    return bootstrap(lambda drawn: np.median(rows[drawn], axis=-1), len(rows), confidence, resamples, seed)


def bootstrap(
    statistic: Callable[[IntArray], FloatArray],
    rows: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic, by SciPy.

    Args:
        statistic: drawn rows (R, N) -> (R,) values.
        rows: N.
    """
    if rows == 0:
        return float("nan"), float("nan")
    if rows == 1:
        return (float(statistic(np.zeros((1, 1), np.int64))[0]),) * 2
    found = stats.bootstrap(
        (np.arange(rows),),
        lambda drawn, axis: statistic(drawn),
        n_resamples=resamples,
        batch=max(1, _CHUNK // rows),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Spread:
    """A metric over runs.

    Attributes:
        mean: Mean over runs.
        std: Standard deviation of the runs (n - 1); NaN of a single one.
        low, high: 95 % interval of the mean by Student's t over the runs. Folds share training rows, so it is rather
            too narrow (Bengio & Grandvalet 2004); NaN of a single run, and of runs that are all equal, which would
            have no width.
        runs: Number of runs with a finite value.
        repeat_std: Standard deviation (n - 1) of the means of the repetitions; NaN of fewer than two.
    """

    mean: float
    std: float
    low: float
    high: float
    runs: int
    repeat_std: float


def spread(values: Sequence[float], repeats: Sequence[int]) -> Spread:
    """The spread of a metric.

    Args:
        values: (R,) one value a run; those that are not finite do not count.
        repeats: (R,) the repetition (the seed) of each run.
    """
    kept = [(value, repeat) for value, repeat in zip(values, repeats, strict=True) if math.isfinite(value)]
    if not kept:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    array = np.array([value for value, _ in kept], dtype=np.float64)
    mean, std, low, high = float(array.mean()), math.nan, math.nan, math.nan
    if len(array) > 1:
        std = float(array.std(ddof=1))
        reach = float(stats.t.ppf(0.975, len(array) - 1)) * std / math.sqrt(len(array))
        low, high = (mean - reach, mean + reach) if reach > 0 else (math.nan, math.nan)
    means = [np.mean([v for v, r in kept if r == repeat]) for repeat in dict.fromkeys(r for _, r in kept)]
    repeat_std = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    return Spread(mean, std, low, high, len(array), repeat_std)


def pooled_rate(rates: Sequence[float], counts: Sequence[float], repeats: Sequence[int]) -> tuple[float, float, float]:
    """The share of right rows over all test rows together, and its 95 % interval (Wilson's).

    Repetitions test the same rows again and tell nothing new of other rows: the interval is that of one repetition's
    number of rows.

    Args:
        rates: (R,) share of right rows of each run.
        counts: (R,) its test rows.
        repeats: (R,) its repetition.
    """
    rows, total = np.array(counts, dtype=np.float64), float(np.sum(counts))
    if not total:
        return math.nan, math.nan, math.nan
    rate = float(np.dot(rates, rows) / total)
    once = round(total / len(set(repeats)))
    return rate, *proportion_interval(rate * once, once)


def spreads(metrics: Sequence[Mapping[str, float]], repeats: Sequence[int]) -> dict[str, Spread]:
    """The spread of every metric that some run has; intervals and counts of single runs are left out."""
    names = dict.fromkeys(name for run in metrics for name in run)
    return {
        name: spread([run.get(name, math.nan) for run in metrics], repeats)
        for name in names
        if not name.endswith(("_low", "_high", "/count"))
    }
