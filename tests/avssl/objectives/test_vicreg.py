"""VICReg across modalities against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from objective_steps import FixedStep

from avssl.objectives.decorrelation import VICReg

EPSILON = 1e-4  # of the paper, under the square root


def numpy_terms(audio: np.ndarray, video: np.ndarray) -> tuple[float, float, float]:
    invariance = ((audio - video) ** 2).mean()
    variance = covariance = 0.0
    for rows in (audio, video):
        variance += np.maximum(0, 1 - np.sqrt(rows.var(axis=0, ddof=1) + EPSILON)).mean() / 2
        matrix = np.cov(rows.T)
        covariance += (matrix**2).sum() / len(matrix) - (np.diag(matrix) ** 2).sum() / len(matrix)
    return invariance, variance, covariance


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_value_matches_numpy(weights: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    # Standard deviations on both sides of the hinge at 1.
    width = torch.tensor([0.2, 0.5, 1.5, 3.0], dtype=torch.float64)
    audio, video = (width * torch.randn(9, 4, dtype=torch.float64) + 2 for _ in range(2))
    loss, report = VICReg(*weights)(FixedStep(audio, video))
    terms = numpy_terms(audio.numpy(), video.numpy())
    assert all(term > 0 for term in terms)
    assert loss.item() == pytest.approx(np.dot(weights, terms), rel=1e-9)
    assert report["invariance"].item() == pytest.approx(terms[0], rel=1e-9)
    assert report["audio_std"].item() == pytest.approx(audio.numpy().std(axis=0, ddof=1).mean(), rel=1e-9)
    assert report["video_std"].item() == pytest.approx(video.numpy().std(axis=0, ddof=1).mean(), rel=1e-9)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    audio, video = ((0.5 * torch.randn(5, 3, dtype=torch.float64)).requires_grad_() for _ in range(2))
    objective = VICReg(2.0, 3.0, 1.5)
    assert torch.autograd.gradcheck(lambda a, v: objective(FixedStep(a, v))[0], (audio, video))


def test_collapse_costs_the_whole_variance_term() -> None:
    constant = torch.ones(6, 4)
    loss, report = VICReg(mu_param=10.0)(FixedStep(constant, constant))
    assert loss.item() == pytest.approx(10.0 * (1 - EPSILON**0.5), rel=1e-6)
    assert report["audio_std"].item() == 0


def variance_gradients(norm: bool, scale: float) -> dict[str, float]:
    """Largest gradient of the variance term by parameter, on features that are nearly the same for all clips."""
    torch.manual_seed(0)
    features = torch.randn(1, 24) + 0.01 * torch.randn(16, 24)
    head = replace(VICReg.projection, width=32, dim=16, norm=norm).build(24)
    with torch.no_grad():
        head.layers[-1].weight.mul_(scale)
    VICReg(0.0, 1.0, 0.0)(FixedStep(head(features), head(features)))[0].backward()
    return {name: parameter.grad.abs().max().item() for name, parameter in head.named_parameters()}


def test_the_variance_term_reaches_every_layer_through_the_projection_it_names() -> None:
    assert not VICReg.projection.norm
    assert min(variance_gradients(norm=False, scale=0.1).values()) > 1e-4


def test_upon_a_final_norm_the_variance_term_reaches_the_scales_of_that_norm_alone() -> None:
    """The variance is the square of the scale, whatever the layers before do; at 1 there is nothing to raise."""
    assert max(variance_gradients(norm=True, scale=1.0).values()) < 1e-6
    found = variance_gradients(norm=True, scale=0.5)
    scales = found.pop("layers.7.weight")
    assert scales > 1e-2 and max(found.values()) < 1e-3 * scales


def test_statistics_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 16), torch.randn(8, 16)
    exact, _ = VICReg()(FixedStep(audio, video))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = VICReg()(FixedStep(audio, video))
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()
    assert VICReg()(FixedStep(audio.bfloat16(), video.bfloat16()))[0].dtype == torch.float32


def test_errors_name_the_fix() -> None:
    for option in ("lambda_param", "mu_param", "nu_param"):
        with pytest.raises(ValueError, match=f"vicreg: {option} must be at least 0, got -1"):
            VICReg(**{option: -1})
    with pytest.raises(ValueError, match="vicreg: needs a global batch of at least 2 clips, got 1"):
        VICReg()(FixedStep(torch.ones(1, 4), torch.ones(1, 4)))
