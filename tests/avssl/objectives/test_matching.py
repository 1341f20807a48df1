"""Audio-video matching against ALBEF's image-text matching, pair by pair."""

import logging

import pytest
import torch
from objective_steps import Grid, GridStep
from torch import Tensor

from avssl.objectives import Shapes
from avssl.objectives.matching import Matching

SMALL = Shapes(joint=5, audio=5, video=5, clips=8)
FILES = torch.tensor([0, 0, 1, 2])


def setting(index: Tensor = FILES, **options) -> tuple[Matching, GridStep, Tensor, Tensor]:
    torch.manual_seed(0)
    size = len(index)
    grid = torch.randn(size, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(size, 2, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    objective = Matching(SMALL, width=8, heads=2, **options).double()
    return objective, GridStep(Grid(grid), frames, index=index), grid, frames


def test_value_and_gradients_match_pairs_one_by_one() -> None:
    objective, step, grid, frames = setting(draw=False)
    loss, report = objective(step)
    audio, video = grid.mean(dim=(1, 2)), frames.mean(dim=(1, 2, 3))
    similarity = torch.nn.functional.cosine_similarity(audio[:, None], video[None], dim=2)
    pairs = [(i, i) for i in range(4)]
    for i in range(4):
        others = [j for j in range(4) if FILES[j] != FILES[i]]
        pairs.append((i, max(others, key=lambda j: similarity[i, j].item())))
        pairs.append((max(others, key=lambda j: similarity[j, i].item()), i))
    losses, right = [], []
    for i, j in pairs:
        (logits,) = objective.classifier(objective.fusion(grid[i : i + 1], frames[j : j + 1]))
        losses.append(torch.logsumexp(logits, 0) - logits[int(i == j)])
        right.append(float(logits.argmax() == int(i == j)))
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    inputs = [grid, frames, *objective.parameters()]
    gradients = [torch.autograd.grad(value, inputs, retain_graph=True) for value in (loss, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-11)
    assert report["positives_accuracy"].item() == pytest.approx(sum(right[:4]) / 4)
    assert report["negatives_accuracy"].item() == pytest.approx(sum(right[4:]) / 8)


def test_negatives_are_drawn_by_the_softmax_of_the_similarity() -> None:
    objective = Matching(SMALL, temperature=0.5, width=8, heads=2)
    similarity = torch.tensor([[0.9, 0.5, 0.1, -0.4]]).expand(20000, -1)
    allowed = torch.tensor([[False, True, True, True]]).expand(20000, -1)
    torch.manual_seed(0)
    columns, values = objective.draw_negatives(similarity, allowed)
    shares = torch.bincount(columns, minlength=4) / 20000
    wanted = torch.softmax(torch.tensor([0.5, 0.1, -0.4]) / 0.5, dim=0)  # ALBEF: its own weight is set to 0
    torch.testing.assert_close(shares[1:], wanted, atol=0.015, rtol=0)
    assert shares[0] == 0
    torch.testing.assert_close(values, similarity[0, columns])


@pytest.mark.parametrize("draw", [True, False])
def test_clips_of_one_file_are_no_negatives(draw: bool) -> None:
    objective, step, grid, frames = setting(index=torch.arange(3), draw=draw)
    step.file = torch.zeros(3, dtype=torch.int64)  # of which there are three rows
    loss, report = objective(step)
    logits = objective.classifier(objective.fusion(grid, frames))
    torch.testing.assert_close(loss, (torch.logsumexp(logits, 1) - logits[:, 1]).mean())
    assert report["negatives_accuracy"] == 0 and report["negatives_similarity"] == 0


def test_a_projection_that_nothing_trains_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    objective, step, *_ = setting()
    objective.projected_by = "matching"
    with caplog.at_level(logging.WARNING):
        objective(step), objective(step)
    assert len(caplog.records) == 1 and "projection: infonce" in caplog.text
    caplog.clear()
    objective, step, *_ = setting()
    objective.projected_by = "infonce"
    objective(step)
    assert not caplog.records


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="matching: temperature"):
        Matching(SMALL, temperature=0)
    with pytest.raises(ValueError, match="matching: width: 8 must be a positive multiple of matching: heads, 3"):
        Matching(SMALL, width=8, heads=3)
