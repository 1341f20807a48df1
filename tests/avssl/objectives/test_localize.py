"""Multiple-instance contrast against EZ-VSL's loss, written down with loops."""

import pytest
import torch
from objective_steps import Grid, GridStep

from avssl.objectives.fine_grained import Localize


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_value_and_gradients_match_loops(weight: float) -> None:
    torch.manual_seed(0)
    grid = torch.randn(4, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(4, 2, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    loss, report = Localize(temperature=0.2, audio_weight=weight).double()(GridStep(Grid(grid), frames))
    audio, places = grid.mean(dim=(1, 2)), frames.mean(dim=1).flatten(1, 2)
    scores = torch.empty(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            cosines = [(audio[i] @ p) / (audio[i].norm() * p.norm()) for p in places[j]]
            scores[i, j] = torch.stack(cosines).max() / 0.2
    ways = [sum(torch.logsumexp(each[i], 0) - each[i, i] for i in range(4)) / 4 for each in (scores, scores.T)]
    wanted = weight * ways[0] + (1 - weight) * ways[1]
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, [grid, frames], retain_graph=True) for value in (loss, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
    assert report["peak"] > 0


def test_only_the_place_of_the_source_learns() -> None:
    sounds = torch.eye(3)
    places = torch.zeros(3, 1, 2, 2, 3)
    places[..., :] = torch.tensor([-1.0, -1.0, -1.0])
    places[:, 0, 0, 1] = sounds + 0.1
    places.requires_grad_()
    loss, report = Localize(temperature=0.5)(GridStep(Grid(sounds[:, None, None]), places))
    loss.backward()
    assert report["accuracy"] == 1
    moved = places.grad.abs().sum(dim=-1)[:, 0] > 0
    assert moved[:, 0, 1].all() and moved.sum() == 3


def test_bad_options_are_refused() -> None:
    for options in ({"temperature": 0.0}, {"audio_weight": -0.1}):
        with pytest.raises(ValueError, match=f"localize: {next(iter(options))}"):
            Localize(**options)
