"""How sure a number is: 95 % intervals of shares, medians and repeated runs, and tests of two runs against each other.

Tests are paired where both judged the same clips, and go by the intervals where they did not.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import binomtest, norm, t

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_matrix, one_vs_rest, to_numpy

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


# Resamples times rows times classes of a paired bootstrap stay near this: half a minute at most on one core.
_WORK = 2e9
_FEWEST, _MOST = 200, 2000
_LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """How much higher a metric of one run is than the other's.

    Attributes:
        value: first minus second.
        low, high: 95 % interval of it.
        p: two-sided p-value.
        test: how it was found, in words.
    """

    value: float
    low: float
    high: float
    p: float
    test: str


def mcnemar(first: Arrayish, second: Arrayish) -> Difference:
    """Exact McNemar test (1947) of two shares of right answers on the same rows.

    Of the rows on which only one of both is right, each is right on half if neither is better: a binomial test. The
    interval is Newcombe's for a paired difference (1998b, method 10) upon Wilson's of both shares: Wald's would have no
    width where both are right on all rows.

    Args:
        first, second: (N,) whether each was right.
    """
    one, two = to_numpy(first).astype(bool), to_numpy(second).astype(bool)
    if one.shape != two.shape or one.ndim != 1 or not one.size:
        raise ValueError(f"mcnemar: needs two rows of answers to the same questions, got {one.shape} and {two.shape}")
    better, worse = int((one & ~two).sum()), int((two & ~one).sum())
    p = float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0
    count = len(one)
    value = (better - worse) / count
    low, high = _paired_bounds(int((one & two).sum()), better, worse, int((~one & ~two).sum()))
    test = f"paired, exact McNemar: of {count} clips {better} right here only, {worse} there only"
    return Difference(value, low, high, p, test)


def _paired_bounds(both: int, first: int, second: int, none: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares on the same rows, by the rows right on both, on one, on none."""
    count = both + first + second + none
    p, q = (both + first) / count, (both + second) / count
    (p_low, p_high), (q_low, q_high) = (proportion_interval(both + only, count) for only in (first, second))
    # Newcombe's phi: the correlation of both, its numerator corrected for continuity where it is positive.
    product = both * none - first * second
    numerator = max(product - count / 2, 0) if product > 0 else product
    sides = (both + first) * (second + none) * (both + second) * (first + none)
    phi = numerator / math.sqrt(sides) if sides else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def paired_map(first: Arrayish, second: Arrayish, truth: Arrayish, *, seed: int = 0) -> Difference:
    """Paired bootstrap (Efron and Tibshirani 1993) of the difference of two mAPs on the same rows.

    Every resample draws the same rows for both. The interval is the difference give or take 1.96 standard deviations of
    the resampled ones, and the p-value that of a normal distribution: percentiles would lie off, since rows drawn twice
    lift an average precision. 2000 resamples, fewer (200 at least) where rows times classes are many.

    Args:
        first, second: (N, C) logits or probabilities; those of single labels rank rows by their softmax.
        truth: (N,) classes, or (N, C) zeros and ones; no row may be unlabelled.
    """
    one, two, target = as_matrix(first, "first"), as_matrix(second, "second"), to_numpy(truth)
    if one.shape != two.shape or len(target) != len(one):
        raise ValueError(f"paired_map: shapes {one.shape}, {two.shape} and {target.shape} do not match")
    positive = target > 0
    if target.ndim == 1:
        positive = target[:, None] == np.arange(one.shape[1])
        one, two = one_vs_rest(one), one_vs_rest(two)
    resamples = int(np.clip(_WORK / one.size, _FEWEST, _MOST))
    rng, rows = np.random.default_rng(seed), len(one)
    once = np.ones((1, rows))
    value = float(_weighted_map(one, positive, once)[0] - _weighted_map(two, positive, once)[0])
    drawn = []
    size = max(1, _CHUNK // rows)
    for start in range(0, resamples, size):
        weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=min(size, resamples - start)).astype(np.float64)
        drawn.append(_weighted_map(one, positive, weights) - _weighted_map(two, positive, weights))
    differences = np.concatenate(drawn)
    spread = float(np.std(differences[np.isfinite(differences)]))
    half = norm.ppf(0.975) * spread
    p = float(2 * norm.sf(abs(value) / spread)) if spread > 0 else float(value == 0)
    test = f"paired bootstrap of {rows} clips, {resamples} resamples"
    return Difference(value, value - float(half), value + float(half), p, test)


def _weighted_map(scores: FloatArray, positive: NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """mAP (R,) of rows that count ``weights`` (R, N) times; equal scores share a threshold, as in scikit-learn."""
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for k in np.flatnonzero(positive.any(axis=0)):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked = scores[order, k]
        ends = np.searchsorted(-ranked, -ranked, side="right") - 1  # the last row of each one's threshold
        hits = np.flatnonzero(positive[order, k])
        weight = weights[:, order[hits]]
        seen = np.cumsum(weights[:, order], axis=1)[:, ends[hits]]
        # Positives up to a threshold's end: those hits that come no later than it.
        right = np.cumsum(weight, axis=1)[:, np.searchsorted(hits, ends[hits], side="right") - 1]
        found = weight.sum(axis=1)
        precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
        total += np.divide((weight * precision).sum(axis=1), found, out=np.zeros_like(found), where=found > 0)
        classes += found > 0
    return np.divide(total, classes, out=np.full_like(total, np.nan), where=classes > 0)


def over_draws(differences: Sequence[Arrayish], groups: Sequence[Sequence[Hashable]]) -> Difference:
    """How much better one way is than another over several draws (seeds, folds) of training, paired clip by clip.

    The variance of the mean is that between the draws plus that between the groups of clips, whose clips are not
    independent, as those of one speaker. The second counts again what the noise of the clips adds to the first: the
    interval is rather too wide. Student's t with the degrees of freedom of Welch and Satterthwaite. It is taken to be
    no narrower than half a clip, since it would have no width where both are right on the same clips throughout. One
    draw on clips of one group says nothing of other groups: its clips are then taken as independent, as ``test`` says.

    Args:
        differences: of each draw (N,): 1 where only the first is right, -1 where only the second is, else 0.
        groups: of each draw N names of what the clips are of; a name is the same in all draws. Clips that have none
            are groups of their own.

    Raises:
        ValueError: no draw, no clip, or other numbers of names than of clips.
    """
    drawn = [to_numpy(each).astype(np.float64) for each in differences]
    if not drawn or any(not len(each) or len(each) != len(names) for each, names in zip(drawn, groups, strict=True)):
        raise ValueError("over_draws: needs one draw or more, each with clips and a group for every clip")
    whole = np.concatenate(drawn)
    _, members = np.unique([repr(name) for names in groups for name in names], return_inverse=True)
    value, count = float(whole.mean()), members.max() + 1
    told = f"paired over {len(drawn)} draws, {count} groups of {len(whole)} clips, Student's t"
    if len(drawn) == count == 1:
        members, count = np.arange(len(whole)), len(whole)
        told = f"paired over {count} clips of one group, taken as independent, Student's t"
    parts: list[tuple[float, int]] = []  # variance of the mean, degrees of freedom
    if len(drawn) > 1:
        parts.append((float(np.var([each.mean() for each in drawn], ddof=1)) / len(drawn), len(drawn) - 1))
    if count > 1:
        excess = np.bincount(members, whole - value)
        parts.append((float((excess**2).sum()) / len(whole) ** 2 * count / (count - 1), count - 1))
    variance = sum(part for part, _ in parts)
    least = (0.5 / len(whole)) ** 2
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance > 0 else float(len(whole))
    error = math.sqrt(max(variance, least))
    reach = float(t.ppf(0.975, freedom)) * error
    p = float(2 * t.sf(abs(value) / error, freedom))
    return Difference(value, value - reach, value + reach, p, told)


def unpaired(first: tuple[float, float, float], second: tuple[float, float, float]) -> Difference:
    """The difference of two numbers of which only the value and the 95 % interval are known.

    The distances to the bounds add up as squares: Newcombe's method for proportions (1998, method 10), which holds for
    any two independent intervals (Zou and Donner 2008). On the same clips it is too cautious.

    Args:
        first, second: (value, low, high).
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    value = a - b
    low = value - float(np.hypot(a - a_low, b_high - b))
    high = value + float(np.hypot(a_high - a, b - b_low))
    toward_zero = (value - low if value > 0 else high - value) / norm.ppf(0.975)
    p = float(2 * norm.sf(abs(value) / toward_zero)) if toward_zero > 0 else float(value == 0)
    return Difference(value, low, high, p, "unpaired intervals")


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several tests so that all hold together (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def is_significant(p: float) -> bool:
    """At the 5 % level."""
    return p < _LEVEL


def labelled_rows(truth: NDArray[Any]) -> IntArray:
    """Rows of labels (N,) or (N, C) that are not unlabelled."""
    return np.flatnonzero(truth >= 0 if truth.ndim == 1 else (truth >= 0).all(axis=1))
