"""Intervals against published ones, scipy's bootstrap, brute-force jackknife and theory."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import avssl  # noqa: F401
from avssl.evaluation.clustering import contingency, jackknife_clusters
from avssl.evaluation.intervals import bootstrap_medians, proportion_interval


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
