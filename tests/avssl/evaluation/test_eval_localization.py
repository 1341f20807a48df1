"""Localization numbers against EZ-VSL's evaluator, written down anew with loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import auc

from avssl.evaluation.localization import (
    HeatExample,
    best_iou,
    centre_map,
    consensus_iou,
    heat_maps,
    localization_metrics,
    points_inside,
    success_area,
    top_half,
)


def reference_iou(heat: np.ndarray, truth: np.ndarray) -> float:
    """Threshold at the value of rank half the pixels; hits over truth and false alarms."""
    threshold = sorted(heat.flatten())[int(heat.shape[0] * heat.shape[1] * 0.5)]
    hits = alarms = 0
    for value, true in zip(heat.flatten(), truth.flatten(), strict=True):
        if value >= threshold:
            hits, alarms = hits + int(true), alarms + int(not true)
    return hits / (truth.sum() + alarms)


def random_case(seed: int, side: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.zeros((side, side), bool)
    top, left = rng.integers(0, side - 2, 2)
    truth[top : top + rng.integers(1, side), left : left + rng.integers(1, side)] = True
    return rng.normal(size=(side, side)) + 2 * truth, truth


@pytest.mark.parametrize("side", [8, 9])
def test_iou_is_the_references(side: int) -> None:
    for seed in range(20):
        heat, truth = random_case(seed, side)
        assert consensus_iou(top_half(heat), truth) == pytest.approx(reference_iou(heat, truth), rel=1e-12)


def test_a_flat_map_takes_all() -> None:
    truth = np.zeros((4, 4), bool)
    truth[:1] = True
    assert consensus_iou(top_half(np.ones((4, 4))), truth) == 0.25


def test_the_numbers_are_the_references() -> None:
    ious = np.array([0.0, 0.05, 0.2, 0.5, 0.5, 0.73, 1.0])
    shares = [np.mean(ious >= round(0.05 * i, 2)) for i in range(21)]
    assert success_area(ious) == pytest.approx(auc([round(0.05 * i, 2) for i in range(21)], shares), rel=1e-12)
    found = localization_metrics(ious, np.array([True] * 3 + [False] * 4))
    assert found["cIoU@0.5"] == pytest.approx(4 / 7) and found["pointing"] == pytest.approx(3 / 7)
    assert found["cIoU"] == pytest.approx(ious.mean()) and found["AUC"] == success_area(ious)
    for name in ("cIoU@0.5", "AUC", "cIoU", "pointing"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_no_half_of_the_picture_beats_the_best() -> None:
    for seed in range(20):
        _, truth = random_case(seed)
        perfect = truth.astype(float) + 1e-3 * np.random.default_rng(seed).random(truth.shape)
        assert consensus_iou(top_half(perfect), truth) == pytest.approx(best_iou(truth))


def test_pointing_and_the_centre() -> None:
    truth = np.zeros((5, 5), bool)
    truth[2, 2] = True
    assert points_inside(centre_map(5), truth)
    assert not points_inside(-centre_map(5), truth)
    assert centre_map(5)[2, 2] > centre_map(5)[2, 3] > centre_map(5)[0, 0]


def test_an_empty_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of what is seen"):
        consensus_iou(np.ones((2, 2), bool), np.zeros((2, 2), bool))


def test_the_picture_takes_any_name(tmp_path) -> None:
    heat, truth = random_case(0)
    frame = np.full((7, 7, 3), 90, np.uint8)
    names = ["$x_{", "a^b$", "plain", "50 % \\alpha", "whole"]
    truths = [truth] * 4 + [np.ones_like(truth)]
    examples = [HeatExample(frame, heat, each, name, f"${name}$") for each, name in zip(truths, names, strict=True)]
    heat_maps(tmp_path / "heat.png", examples)
    assert (tmp_path / "heat.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="nothing to draw"):
        heat_maps(tmp_path / "none.png", [])
