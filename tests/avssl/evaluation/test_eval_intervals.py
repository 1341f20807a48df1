"""Intervals against scipy's bootstrap, brute-force jackknife and theory."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import avssl  # noqa: F401
from avssl.evaluation.intervals import bootstrap_means, bootstrap_medians, contingency, jackknife_clusters


@pytest.mark.parametrize(("statistic", "function"), [(np.mean, bootstrap_means), (np.median, bootstrap_medians)])
def test_bootstrap_agrees_with_scipy(statistic, function):
    values = np.random.default_rng(0).random(150)
    theirs = scipy_bootstrap((values,), statistic, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert function(values, resamples=4000) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_mean_of_hits_has_the_binomial_width():
    hits = np.arange(400) < 100
    low, high = bootstrap_means(hits)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.08)


def test_many_rows_are_drawn_in_parts_and_few_have_an_answer():
    low, high = bootstrap_means(np.random.default_rng(0).random(60_000), resamples=150)
    assert 0.49 < low < high < 0.51
    assert bootstrap_means(np.ones(3)) == (1.0, 1.0)
    assert np.isnan(bootstrap_means(np.empty(0))).all()


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
