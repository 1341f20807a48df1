"""Alignment of segments against loops over clips and times."""

import math

import pytest
import torch
from objective_steps import Grid, GridStep
from torch import Tensor

from avssl.objectives.fine_grained import Align
from avssl.objectives.functional import segment_means


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def reference(
    audio: list[list[Tensor]], video: list[list[Tensor]], times, files, length, t, weight, other_times
) -> Tensor:
    """``audio[i][k]`` and ``video[i][k]`` are segment k of clip i, which begins at ``times[i][k]``."""
    clips, count = range(len(audio)), range(len(audio[0]))
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns, share in ((audio, video, weight), (video, audio, 1 - weight)):
        for i in clips:
            for k in count:
                own = torch.exp(cosine(rows[i][k], columns[i][k]) / t)
                others = torch.zeros((), dtype=torch.float64)
                for j in clips:
                    for m in count:
                        overlap = abs(times[i][k] - times[j][m]) < length - 1e-9
                        if files[i] == files[j] and (overlap or not other_times):
                            continue
                        others = others + torch.exp(cosine(rows[i][k], columns[j][m]) / t)
                total = total + share * torch.log((own + others) / own)
    return total / (len(clips) * len(count))


@pytest.mark.parametrize(("weight", "other_times"), [(0.5, True), (0.0, True), (0.8, False)])
def test_value_and_gradients_match_loops(weight: float, other_times: bool) -> None:
    """Clips 0 and 1 are of one file and overlap by half, 2 is of another; 4 steps and 3 frames make 2 parts."""
    torch.manual_seed(0)
    grid = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(3, 3, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    index, start = torch.tensor([7, 7, 2]), torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    step = GridStep(Grid(grid), frames, index=index, start=start)
    objective = Align(segments=2, temperature=0.3, audio_weight=weight, other_times=other_times).double()
    loss, report = objective(step)
    heard = [[grid[i, :, 2 * k : 2 * k + 2].mean(dim=(0, 1)) for k in range(2)] for i in range(3)]
    edges = [(0, 1), (1, 3)]
    seen = [[frames[i, a:b].mean(dim=(0, 1, 2)) for a, b in edges] for i in range(3)]
    times = [[float(s) + 0.5 * k for k in range(2)] for s in start]
    wanted = reference(heard, seen, times, [7, 7, 2], 0.5, 0.3, weight, other_times)
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, [grid, frames], retain_graph=True) for value in (loss, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
    assert report["segments"] == 2


def test_perfect_alignment_is_found_and_the_loss_is_that_of_the_temperature() -> None:
    sounds = torch.eye(8).view(2, 4, 8)
    loss, report = Align(temperature=0.5)(GridStep(Grid(sounds[:, None]), sounds[:, :, None, None]))
    assert report["accuracy"] == 1 and report["segments"] == 4
    assert loss.item() == pytest.approx(math.log(1 + 7 * math.exp(-2)), rel=1e-5)


def test_parts_do_not_overlap() -> None:
    tokens = torch.arange(5.0).view(1, 5, 1)
    assert segment_means(tokens, 2).flatten().tolist() == [0.5, 3.0]
    assert segment_means(tokens, 5).flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_projection_of_several_parts_at_a_time_is_refused() -> None:
    class Binned(GridStep):
        def head(self, objective, modality, *, teacher=False):
            return torch.nn.Linear(40, 5)

    objective = Align()
    objective.projected_by = "infonce"
    with pytest.raises(ValueError, match=r"'infonce' takes 40 channels, a token has 5: .*set its time_bins to 1"):
        objective(Binned(Grid(torch.randn(2, 2, 4, 5)), torch.randn(2, 4, 2, 2, 5)))


def test_more_segments_than_steps_are_refused() -> None:
    grid = torch.randn(2, 2, 4, 5)
    with pytest.raises(
        ValueError, match="6 segments of a clip of which an encoder has 4 steps in time: take at most 4"
    ):
        Align(segments=6)(GridStep(Grid(grid), torch.randn(2, 8, 2, 2, 5)))
    for options in ({"segments": 0}, {"temperature": 0.0}, {"audio_weight": 1.5}):
        with pytest.raises(ValueError, match=f"align: {next(iter(options))}"):
            Align(**options)
