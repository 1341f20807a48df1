"""Retrieval against brute force, and collapse at chance."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from avssl.evaluation.retrieval import nearest, retrieval_intervals, retrieval_metrics


def brute_force(queries, gallery, k):
    """Recall and median rank by sorting, for inputs without ties."""
    ranks = []
    for i, query in enumerate(queries):
        cosine = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in gallery]
        ranks.append(sorted(cosine, reverse=True).index(cosine[i]) + 1)
    return np.mean([rank <= k for rank in ranks]), np.median(ranks)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_equals_brute_force(chunk):
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(40, 8))
    video = audio + 1.2 * rng.normal(size=(40, 8))
    metrics = retrieval_metrics(audio, video, chunk=chunk)
    for name, queries, gallery in (("audio_to_video", audio, video), ("video_to_audio", video, audio)):
        for k in (1, 5, 10):
            recall, median = brute_force(queries, gallery, k)
            assert metrics[f"{name}/R@{k}"] == pytest.approx(recall)
            assert metrics[f"{name}/median_rank"] == median
    assert metrics["audio_to_video/R@1"] != metrics["video_to_audio/R@1"]


def test_constant_embeddings_score_exactly_chance():
    constant = np.tile(np.random.default_rng(0).normal(size=16).astype(np.float32), (37, 1))
    for video in (constant, -constant, np.random.default_rng(1).normal(size=(37, 16))):
        metrics = retrieval_metrics(constant, video)
        for k in (1, 5, 10):
            assert metrics[f"audio_to_video/R@{k}"] == pytest.approx(metrics[f"chance/R@{k}"], abs=1e-9)
    metrics = retrieval_metrics(constant, constant)
    assert metrics["video_to_audio/median_rank"] == metrics["chance/median_rank"] == 19


def test_ties_share_the_place():
    audio = np.array([[1.0, 0], [1, 0], [0, 1]])
    metrics = retrieval_metrics(audio, audio, ks=(1, 2))
    assert metrics["audio_to_video/R@1"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert metrics["audio_to_video/R@2"] == 1.0


def test_zero_vectors_do_not_win():
    metrics = retrieval_metrics(np.zeros((4, 3)), np.zeros((4, 3)), ks=(1,))
    assert metrics["audio_to_video/R@1"] == pytest.approx(0.25)


def test_perfect_and_single():
    assert retrieval_metrics(torch.eye(6), 3 * torch.eye(6))["video_to_audio/R@1"] == 1
    single = retrieval_metrics(np.ones((1, 3)), np.ones((1, 3)))
    assert single["audio_to_video/R@1"] == single["chance/R@10"] == single["chance/median_rank"] == 1


def test_broken_input_is_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        retrieval_metrics(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="video: 1 of 2 rows hold NaN"):
        retrieval_metrics(np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]))
    with pytest.raises(ValueError, match="ranks start at 1"):
        retrieval_metrics(np.ones((2, 3)), np.ones((2, 3)), ks=(0,))


def test_nearest_orders_by_cosine():
    gallery = np.array([[0.0, 1], [10, 1], [0.1, 0]])
    rows, similarity = nearest(np.array([[1.0, 0]]), gallery, k=5, chunk=1)
    assert rows.tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(similarity[0], [1, 10 / 101**0.5, 0], atol=1e-12)


def test_intervals_are_wilsons_of_the_queries_and_hold_the_number():
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(120, 8))
    video = audio + 1.2 * rng.normal(size=(120, 8))
    metrics, bounds = retrieval_metrics(audio, video), retrieval_intervals(audio, video, ks=(1, 5))
    assert bounds == retrieval_intervals(audio, video, ks=(1, 5))
    cosine = (audio / np.linalg.norm(audio, axis=1)[:, None]) @ (video / np.linalg.norm(video, axis=1)[:, None]).T
    hits = cosine.argmax(axis=1) == np.arange(120)
    wilson = binomtest(int(hits.sum()), 120).proportion_ci(method="wilson")
    low, high = (bounds[f"audio_to_video/R@1_{side}"] for side in ("low", "high"))
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    for name in ("audio_to_video/R@5", "video_to_audio/R@1", "video_to_audio/median_rank"):
        assert bounds[f"{name}_low"] <= metrics[name] <= bounds[f"{name}_high"]


def test_perfect_retrieval_among_few_is_not_certain():
    bounds = retrieval_intervals(np.eye(6), np.eye(6), ks=(1,))
    assert bounds["audio_to_video/R@1_low"] == pytest.approx(0.6097, abs=5e-5)
    assert bounds["audio_to_video/R@1_high"] == 1.0
