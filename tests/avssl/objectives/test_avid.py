"""AVID against NumPy, over steps in which the banks move."""

import copy

import numpy as np
import pytest
import torch
from nce_reference import mean_exponential, moved, numpy_nce
from objective_steps import SHAPES, FixedStep

from avssl.objectives import create_objective
from avssl.objectives.avid import AVID


def test_values_gradients_and_banks_of_three_steps_match_numpy() -> None:
    generator = np.random.default_rng(0)
    objective = AVID(dim=5, clips=7, negatives=50, temperature=0.3, bank_momentum=0.6).double()
    audio_bank, video_bank = objective.audio_bank.entries.numpy().copy(), objective.video_bank.entries.numpy().copy()
    partition = None
    for index in ([0, 3, 6], [3, 3, 1], [5, 0, 5]):
        audio, video = generator.normal(size=(2, 3, 5))
        own, others = [[i] for i in index], [[row for row in range(7) if row != i] for i in index]
        if partition is None:  # the first batch sets the constant
            means = [mean_exponential(audio, video_bank, others, 0.3), mean_exponential(video, audio_bank, others, 0.3)]
            partition = np.mean(means)
        to_video, audio_gradient = numpy_nce(audio, video_bank, own, others, 0.3, partition)
        to_audio, video_gradient = numpy_nce(video, audio_bank, own, others, 0.3, partition)
        tensors = [torch.tensor(rows, requires_grad=True) for rows in (audio, video)]
        loss, report = objective(FixedStep(*tensors, index=torch.tensor(index)))
        loss.backward()
        assert loss.item() == pytest.approx((to_video + to_audio) / 2, rel=1e-9)
        assert report["partition"].item() == pytest.approx(partition, rel=1e-9)
        np.testing.assert_allclose(tensors[0].grad, audio_gradient / 2, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(tensors[1].grad, video_gradient / 2, rtol=1e-8, atol=1e-12)
        audio_bank, video_bank = moved(audio_bank, index, audio, 0.6), moved(video_bank, index, video, 0.6)
        np.testing.assert_allclose(objective.audio_bank.entries, audio_bank, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(objective.video_bank.entries, video_bank, rtol=1e-9, atol=1e-12)


def test_drawn_negatives_follow_the_global_seed_and_match_numpy() -> None:
    torch.manual_seed(0)
    index = torch.tensor([1, 17, 39, 8])
    audio, video = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    start = AVID(dim=6, clips=40, negatives=9, temperature=0.5).double()
    losses = []
    for seed in (1, 1, 2):
        objective = copy.deepcopy(start)
        torch.manual_seed(seed)
        losses.append(objective(FixedStep(audio, video, index=index))[0].item())
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(2)
    ranks = torch.randint(39, (4, 9))
    drawn = (ranks + (ranks >= index[:, None])).tolist()
    partition = np.mean(
        [
            mean_exponential(audio.numpy(), start.video_bank.entries.numpy(), drawn, 0.5),
            mean_exponential(video.numpy(), start.audio_bank.entries.numpy(), drawn, 0.5),
        ]
    )
    own = index[:, None].tolist()
    to_video, _ = numpy_nce(audio.numpy(), start.video_bank.entries.numpy(), own, drawn, 0.5, partition)
    to_audio, _ = numpy_nce(video.numpy(), start.audio_bank.entries.numpy(), own, drawn, 0.5, partition)
    assert losses[2] == pytest.approx((to_video + to_audio) / 2, rel=1e-9)


def test_only_training_moves_banks_and_constant() -> None:
    torch.manual_seed(0)
    objective = AVID(dim=6, clips=5).eval()
    step = FixedStep(torch.randn(3, 6), torch.randn(3, 6))
    before = copy.deepcopy(objective.state_dict())
    expected = objective(step)[0]
    for name, value in objective.state_dict().items():
        assert value.equal(before[name])
    assert objective.train()(step)[0].item() == expected.item()
    for name, value in objective.state_dict().items():
        assert not value.equal(before[name])


def test_extreme_scores_stay_finite() -> None:
    objective = AVID(dim=2, clips=3, temperature=1e-3)
    audio = torch.eye(2).requires_grad_()
    loss, _ = objective(FixedStep(audio, -torch.eye(2)))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(audio.grad).all()


def test_scores_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    step = FixedStep(torch.randn(4, 6), torch.randn(4, 6))
    exact, _ = AVID(dim=6, clips=4)(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = AVID(dim=6, clips=4)(step)
    assert mixed.dtype == torch.float32 and mixed.item() == exact.item()


def test_pairs_that_agree_with_their_rows_lose_less_than_shuffled_ones() -> None:
    objective = AVID(dim=8, clips=8, bank_momentum=0.0)
    rows = torch.eye(8)
    objective(FixedStep(rows, rows))
    objective.eval()
    aligned, report = objective(FixedStep(rows, rows))
    shuffled, _ = objective(FixedStep(rows, rows.roll(1, dims=0)))
    assert aligned < shuffled
    assert report["positive_similarity"].item() == pytest.approx(1) and report["negative_similarity"].item() == 0


def test_errors_name_option_and_range() -> None:
    for options, message in (
        ({"negatives": 0}, "avid: negatives must be at least 1, got 0"),
        ({"temperature": 0.0}, "avid: temperature must be above 0"),
        ({"bank_momentum": 1.0}, r"avid: bank_momentum must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            create_objective("avid", SHAPES, **options)
    with pytest.raises(ValueError, match="avid: needs at least 2 training clips, got 1"):
        AVID(dim=4, clips=1)
    objective = create_objective("avid", SHAPES)
    rows = torch.randn(2, SHAPES.joint)
    with pytest.raises(ValueError, match=r"avid: step.index must be rows of the training split, in \[0, 15\], got 16"):
        objective(FixedStep(rows, rows, index=torch.tensor([0, 16])))
