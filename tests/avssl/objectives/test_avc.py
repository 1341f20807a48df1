"""Supervised contrast across modalities against NumPy and InfoNCE."""

import numpy as np
import pytest
import torch
from objective_steps import FixedStep

from avssl.objectives.contrastive import InfoNCE
from avssl.objectives.supervised import AudioVideoContrast

MIXED = torch.tensor([0, 1, 0, -1, 2, 0, -1, 1])


def numpy_avc(audio: np.ndarray, video: np.ndarray, labels: list[int], temperature: float) -> float:
    """Eq. 2 of Khosla et al., anchor by anchor."""
    audio = audio / np.linalg.norm(audio, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    directions = []
    for anchors, candidates in ((audio, video), (video, audio)):
        losses = []
        for i, anchor in enumerate(anchors):
            similarity = np.exp(candidates @ anchor / temperature)
            alike = [j for j in range(len(labels)) if labels[j] == labels[i]] if labels[i] >= 0 else [i]
            losses.append(-np.mean([np.log(similarity[p] / similarity.sum()) for p in alike]))
        directions.append(np.mean(losses))
    return float(np.mean(directions))


def pair(size: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(size, width, dtype=torch.float64), torch.randn(size, width, dtype=torch.float64)


@pytest.mark.parametrize("labels", [MIXED, torch.zeros(8, dtype=torch.long), torch.arange(8)])
def test_value_matches_numpy(labels: torch.Tensor) -> None:
    audio, video = pair(8)
    loss, report = AudioVideoContrast(temperature=0.3)(FixedStep(audio, video, labels={"event": labels}))
    assert loss.item() == pytest.approx(numpy_avc(audio.numpy(), video.numpy(), labels.tolist(), 0.3), rel=1e-9)
    assert report["labelled"].item() == pytest.approx((labels >= 0).double().mean().item())


def test_gradient_by_finite_differences() -> None:
    audio, video = (rows.requires_grad_() for rows in pair(8, 3))
    objective = AudioVideoContrast(temperature=0.5)
    assert torch.autograd.gradcheck(lambda a, v: objective(FixedStep(a, v, labels={"e": MIXED}))[0], (audio, video))


def test_without_labels_it_is_infonce() -> None:
    audio, video = (rows.requires_grad_() for rows in pair(6))
    unlabelled = FixedStep(audio, video, labels={"event": torch.full((6,), -1)})
    loss, report = AudioVideoContrast(temperature=0.2)(unlabelled)
    reference, _ = InfoNCE(temperature=0.2).double()(FixedStep(audio, video))
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    mine, theirs = torch.autograd.grad(loss, (audio, video)), torch.autograd.grad(reference, (audio, video))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)
    assert report["labelled"].item() == 0
    assert report["positives"].item() == 1


def test_report_counts_labels_and_positives() -> None:
    _, report = AudioVideoContrast()(FixedStep(*pair(8), labels={"event": MIXED}))
    assert report["labelled"].item() == pytest.approx(6 / 8)
    assert report["positives"].item() == pytest.approx((3 * 3 + 2 * 2 + 1 + 2) / 8)


def test_the_head_is_the_only_one_or_has_to_be_named() -> None:
    audio, video = pair(8)
    heads = {"verb": MIXED, "noun": torch.arange(8)}
    named, _ = AudioVideoContrast(head="noun")(FixedStep(audio, video, labels=heads))
    only, _ = AudioVideoContrast()(FixedStep(audio, video, labels={"noun": heads["noun"]}))
    assert named.item() == only.item()
    with pytest.raises(ValueError, match=r"avc: head must name .* heads of the data: verb, noun"):
        AudioVideoContrast()(FixedStep(audio, video, labels=heads))
    with pytest.raises(ValueError, match=r"avc: head must name .* heads of the data: none"):
        AudioVideoContrast()(FixedStep(audio, video))
    with pytest.raises(ValueError, match="avc: no head 'nuon'; heads of the data: verb, noun"):
        AudioVideoContrast(head="nuon")(FixedStep(audio, video, labels=heads))
    with pytest.raises(ValueError, match="avc: temperature must be above 0, got 0"):
        AudioVideoContrast(temperature=0)


def test_logits_are_fp32_under_autocast() -> None:
    step = FixedStep(*(rows.float() for rows in pair(8)), labels={"event": MIXED})
    exact, _ = AudioVideoContrast()(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = AudioVideoContrast()(step)
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()
