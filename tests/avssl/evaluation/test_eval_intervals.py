"""Intervals against SciPy and by their coverage; metrics over repeated runs."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import avssl  # noqa: F401
from avssl.evaluation.clustering import contingency, jackknife_clusters
from avssl.evaluation.statistics import bootstrap_medians, pooled_rate, proportion_interval, spread, spreads


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).random(150)
    theirs = scipy_bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert bootstrap_medians(values, resamples=4000) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_proportions_have_wilsons_interval():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert proportion_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert proportion_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_all_right_of_few_is_not_certain():
    low, high = proportion_interval(6, 6)
    assert (low, high) == (pytest.approx(0.6097, abs=5e-5), 1.0)
    assert np.isnan(proportion_interval(0, 0)).all()


def test_an_expected_number_has_the_interval_of_both_whole_ones_beside_it():
    between = proportion_interval(10.5, 40)
    assert between == (proportion_interval(10, 40)[0], proportion_interval(11, 40)[1])
    assert proportion_interval(sum([0.1] * 30), 30) == proportion_interval(3, 30)


def test_many_rows_are_drawn_in_parts_and_few_have_an_answer():
    low, high = bootstrap_medians(np.random.default_rng(0).random(60_000), resamples=150)
    assert 0.49 < low < high < 0.51
    assert bootstrap_medians(np.ones(3)) == (1.0, 1.0)
    assert np.isnan(bootstrap_medians(np.empty(0))).all()


@pytest.mark.parametrize(("name", "score"), [("NMI", normalized_mutual_info_score), ("ARI", adjusted_rand_score)])
def test_jackknife_equals_leaving_out_one_row_at_a_time(name, score):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 60)
    found = np.where(rng.random(60) < 0.6, truth, rng.integers(0, 4, 60))
    left = np.array([score(np.delete(truth, row), np.delete(found, row)) for row in range(60)])
    error = np.sqrt(59 / 60 * ((left - left.mean()) ** 2).sum())
    expected = score(truth, found) - 1.959964 * error, score(truth, found) + 1.959964 * error
    assert jackknife_clusters(contingency(truth, found))[name] == pytest.approx(expected, abs=1e-9)


def test_perfect_and_hopeless_clusters():
    labels = np.arange(40) % 4
    assert jackknife_clusters(contingency(labels, labels)) == {"NMI": (1.0, 1.0), "ARI": (1.0, 1.0)}
    assert jackknife_clusters(contingency(np.zeros(9), np.zeros(9)))["NMI"] == (1.0, 1.0)
    assert np.isnan(jackknife_clusters(contingency([0, 1], [0, 1]))["ARI"]).all()


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
