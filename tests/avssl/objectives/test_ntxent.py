"""NT-Xent within a modality against NumPy."""

import numpy as np
import pytest
import torch
from objective_steps import FixedStep

from avssl.objectives.contrastive import NTXent


def numpy_nt_xent(one: np.ndarray, other: np.ndarray, temperature: float) -> float:
    """Eq. 1 of SimCLR over the 2N views, view by view."""
    views = np.concatenate([one, other])
    views = views / np.linalg.norm(views, axis=1, keepdims=True)
    count = len(one)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        similarity = np.exp(views @ views[i] / temperature)
        losses.append(-np.log(similarity[partner] / (similarity.sum() - similarity[i])))
    return float(np.mean(losses))


def views(seed: int, size: int = 6, width: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("modality", ["audio", "video", "both"])
def test_value_matches_numpy(modality: str) -> None:
    audio, video = views(0), views(1)
    expected = {
        "audio": numpy_nt_xent(audio[0].numpy(), audio[1].numpy(), 0.3),
        "video": numpy_nt_xent(video[0].numpy(), video[1].numpy(), 0.3),
    }
    asked = ["audio", "video"] if modality == "both" else [modality]
    # What is not asked for is not there.
    step = FixedStep(audio if "audio" in asked else [audio[0]], video if "video" in asked else [video[0]])
    loss, report = NTXent(modality=modality, temperature=0.3)(step)
    assert loss.item() == pytest.approx(np.mean([expected[name] for name in asked]), rel=1e-9)
    assert set(report) == {f"{name}_{what}" for name in asked for what in ("loss", "similarity")}
    for name in asked:
        assert report[f"{name}_loss"].item() == pytest.approx(expected[name], rel=1e-9)
        one, other = {"audio": audio, "video": video}[name]
        cosine = torch.nn.functional.cosine_similarity(one, other).mean().item()
        assert report[f"{name}_similarity"].item() == pytest.approx(cosine, rel=1e-9)


def test_gradient_by_finite_differences() -> None:
    inputs = [tensor.requires_grad_() for tensor in views(0, 3, 3) + views(1, 3, 3)]
    objective = NTXent(temperature=0.5)

    def loss(a0: torch.Tensor, a1: torch.Tensor, v0: torch.Tensor, v1: torch.Tensor) -> torch.Tensor:
        return objective(FixedStep([a0, a1], [v0, v1]))[0]

    assert torch.autograd.gradcheck(loss, inputs)


def test_logits_are_fp32_under_autocast() -> None:
    audio = [view.float() for view in views(0)]
    exact, _ = NTXent("audio")(FixedStep(audio, audio))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = NTXent("audio")(FixedStep(audio, audio))
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()
    half = [view.bfloat16() for view in audio]
    assert NTXent("audio")(FixedStep(half, half))[0].dtype == torch.float32


def test_collapsed_views_give_the_loss_of_chance() -> None:
    constant = torch.ones(7, 4)
    loss, _ = NTXent()(FixedStep(constant, constant))
    assert loss.item() == pytest.approx(np.log(13), rel=1e-5)


def test_errors_name_the_option() -> None:
    with pytest.raises(ValueError, match="ntxent: modality must be one of audio, video, both, got 'sound'"):
        NTXent(modality="sound")
    with pytest.raises(ValueError, match="ntxent: temperature must be above 0"):
        NTXent(temperature=-0.1)
