"""Numbers of an embedding space against their formulas, and the warning of one that collapses."""

import math

import numpy as np
import pytest
import torch

from avssl.evaluation.diagnostics import (
    MAX_ROWS,
    CollapseMonitor,
    alignment,
    diagnose,
    effective_rank,
    mean_cosine,
    uniformity,
)


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def numpy_unit(matrix: torch.Tensor) -> np.ndarray:
    array = matrix.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_alignment_matches_numpy_and_known_pairs() -> None:
    audio, video = rows(9, 5), rows(9, 5, seed=1)
    distance = np.linalg.norm(numpy_unit(audio) - numpy_unit(video), axis=1)
    assert alignment(audio, video).item() == pytest.approx((distance**2).mean(), rel=1e-5)
    assert alignment(audio, 3 * audio).item() == pytest.approx(0, abs=1e-10)  # directions are compared
    assert alignment(audio, -audio).item() == pytest.approx(4, rel=1e-6)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="needs pairs"):
        alignment(audio, video[:4])


def test_uniformity_matches_numpy_and_known_spreads() -> None:
    some = rows(9, 5)
    points = numpy_unit(some)
    potentials = [
        math.exp(-2 * np.linalg.norm(points[i] - points[j]) ** 2) for i in range(9) for j in range(9) if i != j
    ]
    assert uniformity(some).item() == pytest.approx(math.log(np.mean(potentials)), rel=1e-5)
    assert uniformity(torch.eye(6)).item() == pytest.approx(-4, rel=1e-6)  # all at distance sqrt 2
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-8, rel=1e-6)
    assert uniformity(torch.ones(6, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.ones(1, 3)).item() == 0


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (6, 6)])
def test_effective_rank_matches_numpy(shape: tuple[int, int]) -> None:
    matrix = rows(*shape)
    singular = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    assert effective_rank(matrix).item() == pytest.approx(expected, rel=1e-5)
    assert effective_rank(matrix.T).item() == pytest.approx(expected, rel=1e-5)


def test_effective_rank_of_known_matrices() -> None:
    orthonormal = torch.linalg.qr(rows(20, 5)).Q.T
    assert effective_rank(orthonormal).item() == pytest.approx(5, rel=1e-5)
    # Not centred, and exact to the last digits although it goes through squares: one direction is rank 1.
    assert effective_rank(torch.ones(32, 64)).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(rows(32, 1) @ rows(1, 64)).item() == pytest.approx(1, abs=1e-3)
    # Nearly one vector: its noise has full rank, but hardly any weight.
    assert effective_rank(1 + 1e-4 * rows(32, 64)).item() < 1.1
    assert effective_rank(torch.zeros(4, 3)).item() == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])).item())
    assert effective_rank(rows(8, 4).bfloat16()).dtype == torch.float32


def test_report_has_what_was_given() -> None:
    audio, video, features = rows(8, 4), rows(8, 4, seed=1), rows(8, 6) * 100
    report = diagnose(audio, video, features)
    assert report.keys() == {
        "alignment", "audio_uniformity", "audio_rank", "video_uniformity", "video_rank", "audio_feature_rank",
        "audio_feature_cosine",
    }  # fmt: skip
    assert report["audio_rank"] == effective_rank(torch.nn.functional.normalize(audio))
    assert report["audio_feature_rank"] == effective_rank(features)
    assert report["audio_feature_cosine"] == mean_cosine(features)
    assert diagnose(video=video).keys() == {"video_uniformity", "video_rank"}
    assert diagnose() == {}


def test_report_keeps_no_gradient_and_bounds_its_work() -> None:
    many = torch.zeros(4 * MAX_ROWS, 2)
    many[::4] = torch.tensor([1.0, 0.0])  # the rows taken
    many[1::4] = torch.tensor([0.0, 1.0])
    report = diagnose(many.requires_grad_(), many)
    assert not any(value.requires_grad for value in report.values())
    assert report["audio_rank"].item() == pytest.approx(1, abs=1e-4)


def told(monitor: CollapseMonitor, ranks: list[float], name: str = "audio", first: int = 1) -> list[int]:
    """Steps at which the monitor said something."""
    rows = [{f"train/diagnostics/{name}_rank": rank} for rank in ranks]
    return [step for step, row in enumerate(rows, start=first) if monitor.see(row, step)]


def test_tells_once_when_the_average_falls_below_the_bound() -> None:
    # Averages of three: 2.0, 1.73, 1.4, ...
    assert told(CollapseMonitor(1.5, window=3), [3.0, 2.0, 1.0, 2.2, 1.0, 1.0, 1.0, 1.0]) == [5]
    message = CollapseMonitor(1.5, window=1).see({"train/diagnostics/video_rank": 1.25}, 70)
    assert message is not None
    assert "step 70" in message and "video_rank was 1.25" in message and "collapse_rank 1.5" in message


def test_keeps_quiet_during_warm_up_above_the_bound_and_when_turned_off() -> None:
    assert told(CollapseMonitor(1.5, after=10, window=2), [1.0] * 11) == []
    assert told(CollapseMonitor(1.5, after=10, window=2), [1.0] * 12) == [12]
    assert told(CollapseMonitor(1.5, window=2), [1.5] * 9) == []
    assert told(CollapseMonitor(0, window=2), [0.0] * 9) == []


def test_counts_modalities_apart_and_leaves_out_what_it_cannot_judge() -> None:
    monitor = CollapseMonitor(1.5, window=2)
    assert told(monitor, [1.0], "audio") == told(monitor, [1.0], "video") == []
    assert told(monitor, [math.nan, math.nan], "audio", first=2) == []
    assert monitor.see({"train/loss": 1.0, "val/diagnostics/audio_rank": 1.0}, 4) is None
    assert told(monitor, [1.0], "audio", first=5) == [5]


def test_bad_bound_is_named() -> None:
    for bound in (-1.0, math.nan):
        with pytest.raises(ValueError, match="collapse_rank: must be at least 0"):
            CollapseMonitor(bound)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    matrix = rows(7, 5)
    unit = matrix / matrix.norm(dim=1, keepdim=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(matrix).item() == pytest.approx(sum(pairs) / 42, abs=1e-5)
    assert mean_cosine(matrix + 100).item() > 0.99, "what all have in common outweighs what tells them apart"
    assert mean_cosine(torch.eye(6)).item() == pytest.approx(0, abs=1e-6)
    assert mean_cosine(matrix[:1]).item() == 1
