"""Tests between runs against scipy, scikit-learn and published examples; predictions there and back."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest, norm, ttest_1samp
from sklearn.metrics import average_precision_score

from avssl.evaluation.result import read_predictions, write_predictions
from avssl.evaluation.statistics import holm, mcnemar, over_draws, paired_map, unpaired


def answers(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.repeat([1, 1, 0, 0], [both, first, second, none])
    two = np.repeat([1, 0, 1, 0], [both, first, second, none])
    return one, two


@pytest.mark.parametrize("counts", [(50, 12, 3, 20), (0, 1, 0, 0), (10, 8, 8, 10), (5, 0, 30, 2)])
def test_mcnemar_is_a_binomial_test_of_the_discordant(counts) -> None:
    found = mcnemar(*answers(*counts))
    _, better, worse, _ = counts
    assert found.p == pytest.approx(binomtest(better, better + worse, 0.5).pvalue)
    assert found.value == pytest.approx((better - worse) / sum(counts))
    assert found.low <= found.value <= found.high and f"{better} right here only, {worse}" in found.test


def test_mcnemar_interval_against_published_ones_and_equal_runs() -> None:
    # Agresti, Categorical Data Analysis, table 11.1: approval 944 and 880 of 1600, discordant 150 and 86 (Wald's).
    found = mcnemar(*answers(794, 150, 86, 570))
    assert (found.low, found.high) == pytest.approx((0.022, 0.059), abs=0.001)
    # Fagerland, Lydersen and Laake 2014, table V: Newcombe's square-and-add interval of (1, 1; 7, 12).
    found = mcnemar(*answers(1, 1, 7, 12))
    assert (found.low, found.high) == pytest.approx((-0.507, -0.026), abs=5e-4)
    same = mcnemar([1, 0, 1], [1, 0, 1])
    assert (same.value, same.p) == (0.0, 1.0)
    perfect = mcnemar(np.ones(6), np.ones(6))
    assert perfect.low == -perfect.high < -0.3
    with pytest.raises(ValueError, match="same questions"):
        mcnemar([1, 0], [1, 0, 1])


def macro(scores: np.ndarray, positive: np.ndarray) -> float:
    present = positive.any(axis=0)
    return average_precision_score(positive[:, present], scores[:, present], average="macro")


@pytest.mark.parametrize("multilabel", [False, True])
def test_paired_map_against_scikit_learn(multilabel: bool) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 60)
    positive = rng.random((60, 4)) < 0.3 if multilabel else truth[:, None] == np.arange(4)
    positive[:, 3] = False  # a class that no row has
    one = np.round(positive + rng.normal(0, 0.6, (60, 4)), 1)  # rounded: many ties
    two = np.round(positive + rng.normal(0, 1.5, (60, 4)), 1)
    if not multilabel:
        keep = truth < 3
        one, two, positive, truth = one[keep], two[keep], positive[keep], truth[keep]
    raw = one, two
    if not multilabel:
        one, two = log_softmax(one, axis=1), log_softmax(two, axis=1)
    found = paired_map(*raw, positive.astype(np.float32) if multilabel else truth)
    assert found.value == pytest.approx(macro(one, positive) - macro(two, positive))
    draws = [rng.integers(0, len(one), len(one)) for _ in range(200)]
    differences = [macro(one[rows], positive[rows]) - macro(two[rows], positive[rows]) for rows in draws]
    spread = norm.ppf(0.975) * np.std(differences)
    assert (found.low, found.high) == pytest.approx((found.value - spread, found.value + spread), abs=0.03)
    assert found.p < 0.05 and paired_map(one, one, positive.astype(np.float32)).p == 1.0


def wilson(hits: int, count: int) -> tuple[float, float, float]:
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return hits / count, interval.low, interval.high


def test_unpaired_intervals_against_newcombe() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80 by method 10 is 0.0524 to 0.3339; 9/10 - 3/10 is 0.1705 to 0.8090.
    found = unpaired(wilson(56, 70), wilson(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert found.p < 0.05
    found = unpaired(wilson(9, 10), wilson(3, 10))
    assert (found.low, found.high) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    even = unpaired((0.5, 0.4, 0.6), (0.5, 0.4, 0.6))
    assert even.p == 1.0 and even.low == pytest.approx(-np.hypot(0.1, 0.1))
    known = unpaired((1.0, 1 - norm.ppf(0.975), 1 + norm.ppf(0.975)), (0.0, 0.0, 0.0))
    assert known.p == pytest.approx(2 * norm.sf(1.0))


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_predictions_there_and_back(tmp_path) -> None:
    rng = np.random.default_rng(0)
    scores = {"one": rng.normal(0, 3, (5, 4)).astype("f4"), "many": rng.normal(0, 3, (5, 3)).astype("f4")}
    many = np.float32([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0], [1, 1, 1]])
    truth = {"one": np.array([0, -1, 3, 1, 2]), "many": many}
    names = {"one": list("abcd"), "many": list("xyz")}
    write_predictions(tmp_path / "p.parquet", list("vwxyz"), scores, truth, names)
    back = read_predictions(tmp_path / "p.parquet")
    assert back.clip_ids == list("vwxyz") and back.classes == names
    for head, values in scores.items():
        np.testing.assert_allclose(back.scores[head], values, rtol=1e-3)
        np.testing.assert_array_equal(back.predicted[head], values.argmax(axis=1))
        np.testing.assert_array_equal(back.truth[head], truth[head])
    write_predictions(tmp_path / "q.parquet", list("vwxyz"), scores)
    assert read_predictions(tmp_path / "q.parquet").truth == {}


def test_predictions_that_cannot_be(tmp_path) -> None:
    with pytest.raises(ValueError, match="3 scores"):
        write_predictions(tmp_path / "p.parquet", ["a", "b"], {"x": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="NaN"):
        write_predictions(tmp_path / "p.parquet", ["a"], {"x": np.full((1, 2), np.nan)})
    assert not list(tmp_path.iterdir())
    (tmp_path / "p.parquet").write_text("no table")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_predictions(tmp_path / "p.parquet")
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "none.parquet")


def test_over_draws_finds_a_difference_that_is_not_there_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(0)
    false, missed = 0, 0
    for _ in range(200):
        places = rng.normal(0, 0.15, 20)  # groups differ, and so do draws
        drawn = []
        for effect in rng.normal(0, 0.05, 3):
            chance = 0.5 + (np.repeat(places, 10) + effect) / 2
            drawn.append((rng.random(200) < chance).astype(int) - (rng.random(200) < 1 - chance))
        found = over_draws(drawn, [[k // 10 for k in range(200)]] * 3)
        false += found.p < 0.05
        missed += not found.low <= 0 <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert false == missed <= 16  # 5 % are 10


def test_one_draw_on_clips_of_one_group_has_the_width_of_its_clips() -> None:
    answers = np.repeat([1.0, 0.0, -1.0], [30, 60, 10])
    found, expected = over_draws([answers], [["george"] * 100]), ttest_1samp(answers, 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95)) and found.low < 0.1 < found.high
    assert found.p == pytest.approx(expected.pvalue) and "taken as independent" in found.test


def test_over_draws_of_equal_answers_has_a_width_and_no_clip_is_an_error() -> None:
    same = over_draws([np.zeros(50), np.zeros(50)], [range(50), range(50)])
    assert (same.value, same.p) == (0, 1) and same.low < 0 < same.high
    sure = over_draws([np.ones(50)], [range(50)])
    assert sure.value == 1 and 0.95 < sure.low < 1 and sure.p < 1e-6
    with pytest.raises(ValueError, match="needs one draw or more"):
        over_draws([[]], [[]])
    with pytest.raises(ValueError, match="group for every clip"):
        over_draws([[1, 0]], [["a"]])
