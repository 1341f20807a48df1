"""Barlow Twins across modalities against NumPy."""

import numpy as np
import pytest
import torch
from objective_steps import FixedStep

from avssl.objectives.decorrelation import Barlow


def numpy_correlation(audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    size = audio.shape[1]
    return np.corrcoef(audio.T, video.T)[:size, size:]


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_value_matches_numpy(weight: float) -> None:
    torch.manual_seed(0)
    # Wide, so that the 1e-5 by which batch norm enlarges variances does not show.
    audio, video = (1000 * torch.randn(9, 4, dtype=torch.float64) + 50 for _ in range(2))
    loss, report = Barlow(lambda_param=weight)(FixedStep(audio, video))
    correlation = numpy_correlation(audio.numpy(), video.numpy())
    diagonal = np.diag(correlation)
    off = (correlation**2).sum() - (diagonal**2).sum()
    assert loss.item() == pytest.approx(((1 - diagonal) ** 2).sum() + weight * off, rel=1e-8)
    assert report["correlation"].item() == pytest.approx(diagonal.mean(), rel=1e-8)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    audio, video = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective = Barlow(lambda_param=0.1)
    assert torch.autograd.gradcheck(lambda a, v: objective(FixedStep(a, v))[0], (audio, video))


def test_uncorrelated_dimensions_that_agree_are_the_optimum() -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    loss, report = Barlow(lambda_param=1.0)(FixedStep(signs, 3 * signs + 2))
    assert loss.item() == pytest.approx(0.0, abs=1e-8)
    assert report["correlation"].item() == pytest.approx(1.0, rel=1e-5)


def test_correlation_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 16), torch.randn(8, 16)
    exact, _ = Barlow()(FixedStep(audio, video))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = Barlow()(FixedStep(audio, video))
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()
    assert Barlow()(FixedStep(audio.bfloat16(), video.bfloat16()))[0].dtype == torch.float32


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="barlow: lambda_param must be at least 0, got -1"):
        Barlow(lambda_param=-1)
    with pytest.raises(ValueError, match="barlow: needs a global batch of at least 2 clips, got 1"):
        Barlow()(FixedStep(torch.ones(1, 4), torch.ones(1, 4)))
