"""Mean, deviation and intervals over runs, against SciPy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from avssl.evaluation.intervals import pooled_rate, spread, spreads


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.05, 7).tolist()
    found = spread(values, [0] * 7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.mean == pytest.approx(np.mean(values)) and found.std == pytest.approx(np.std(values, ddof=1))
    assert found.runs == 7 and math.isnan(found.repeat_std)


def test_repetitions_have_a_deviation_of_their_own() -> None:
    found = spread([0.1, 0.3, 0.3, 0.5, 0.2, 0.4], [0, 0, 1, 1, 2, 2])
    assert found.repeat_std == pytest.approx(np.std([0.2, 0.4, 0.3], ddof=1))


def test_one_run_and_none() -> None:
    one = spread([0.5], [0])
    assert one.mean == 0.5 and one.runs == 1 and all(map(math.isnan, (one.std, one.low, one.high, one.repeat_std)))
    equal = spread([1.0, 1.0], [0, 0])
    assert equal.std == 0.0 and math.isnan(equal.low) and math.isnan(equal.high), "not 100 % to 100 %"
    none = spread([math.nan, math.inf], [0, 1])
    assert none.runs == 0 and math.isnan(none.mean)
    assert spread([math.nan, 0.2, 0.4], [0, 0, 0]).mean == pytest.approx(0.3)


def test_pooling_weighs_by_rows_and_its_interval_is_wilsons() -> None:
    rate, low, high = pooled_rate([0.5, 1.0], [100, 300], [0, 0])
    assert rate == pytest.approx(350 / 400)
    wilson = stats.binomtest(350, 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert pooled_rate([1.0, 1.0], [3, 3], [0, 0])[1] < 0.7


def test_a_repetition_does_not_narrow_the_interval() -> None:
    once = pooled_rate([0.5, 0.7], [50, 50], [0, 0])
    twice = pooled_rate([0.5, 0.7, 0.5, 0.7], [50] * 4, [0, 0, 1, 1])
    assert twice == pytest.approx(once)
    assert all(map(math.isnan, pooled_rate([0.0], [0], [0])))


def test_intervals_and_counts_of_single_runs_are_left_out() -> None:
    runs = [{"a/top1": 0.5, "a/top1_low": 0.4, "a/top1_high": 0.6, "a/count": 10}, {"a/top1": 0.7, "a/mAP": 0.2}]
    found = spreads(runs, [0, 0])
    assert set(found) == {"a/top1", "a/mAP"} and found["a/mAP"].runs == 1 and found["a/top1"].runs == 2
