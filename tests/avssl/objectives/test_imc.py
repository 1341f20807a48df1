"""Supervised contrast within a modality against NumPy."""

import numpy as np
import pytest
import torch
from objective_steps import FixedStep

from avssl.objectives.supervised import IntraModalContrast

MIXED = torch.tensor([0, 1, 0, -1, 2, 0, -1, 1])


def numpy_supcon(rows: np.ndarray, labels: list[int], temperature: float) -> float:
    """Eq. 2 of Khosla et al., anchor by anchor, over those that have a positive."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        alike = [j for j in others if labels[j] == labels[i] and labels[i] >= 0]
        if alike:
            total = sum(np.exp(rows[i] @ rows[j] / temperature) for j in others)
            losses.append(-np.mean([np.log(np.exp(rows[i] @ rows[p] / temperature) / total) for p in alike]))
    return float(np.mean(losses))


def pair(size: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(size, width, dtype=torch.float64), torch.randn(size, width, dtype=torch.float64)


class OneModality(FixedStep):
    """A step of fine-tuning: the other modality is not there."""

    def __init__(self, modality: str, rows: torch.Tensor, labels: dict[str, torch.Tensor]) -> None:
        super().__init__(rows, rows, labels=labels)
        self.modality = modality

    def _get(self, teacher, modality, view):
        assert modality == self.modality and view == 0 and not teacher
        return super()._get(teacher, modality, view)


@pytest.mark.parametrize("labels", [MIXED, torch.zeros(8, dtype=torch.long)])
def test_value_matches_numpy(labels: torch.Tensor) -> None:
    audio, video = pair(8)
    parts = {name: numpy_supcon(x.numpy(), labels.tolist(), 0.3) for name, x in (("audio", audio), ("video", video))}
    loss, report = IntraModalContrast(temperature=0.3)(FixedStep(audio, video, labels={"event": labels}))
    assert loss.item() == pytest.approx(np.mean(list(parts.values())), rel=1e-9)
    for modality, rows in (("audio", audio), ("video", video)):
        assert report[f"{modality}_loss"].item() == pytest.approx(parts[modality], rel=1e-9)
        step = OneModality(modality, rows, {"event": labels})
        one, details = IntraModalContrast(modality=modality, temperature=0.3)(step)
        assert one.item() == pytest.approx(parts[modality], rel=1e-9)
        assert set(details) == {"labelled", "anchors", f"{modality}_loss"}


def test_gradient_by_finite_differences() -> None:
    inputs = tuple(rows.requires_grad_() for rows in pair(8, 3))
    objective = IntraModalContrast(temperature=0.5)
    assert torch.autograd.gradcheck(lambda a, v: objective(FixedStep(a, v, labels={"e": MIXED}))[0], inputs)


def test_unlabelled_clips_are_negatives_only() -> None:
    audio, _ = pair(8)
    labels = MIXED.clone()
    with_negatives, report = IntraModalContrast("audio")(OneModality("audio", audio, {"event": labels}))
    assert report["labelled"].item() == pytest.approx(6 / 8)
    assert report["anchors"].item() == pytest.approx(5 / 8)  # the one clip of class 2 has no other to match
    known = labels >= 0
    without, _ = IntraModalContrast("audio")(OneModality("audio", audio[known], {"event": labels[known]}))
    assert with_negatives.item() > without.item()


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 1, 2], [-1, 0, 1], [0]])
def test_a_batch_without_anchors_has_zero_loss_and_zero_gradients(labels: list[int]) -> None:
    audio, video = (rows.requires_grad_() for rows in pair(len(labels)))
    loss, report = IntraModalContrast()(FixedStep(audio, video, labels={"event": torch.tensor(labels)}))
    assert loss.item() == 0
    assert report["anchors"].item() == 0
    loss.backward()
    for rows in (audio, video):
        torch.testing.assert_close(rows.grad, torch.zeros_like(rows), rtol=0, atol=0)


def test_errors_name_the_option() -> None:
    step = FixedStep(*pair(8), labels={"verb": MIXED, "noun": MIXED})
    with pytest.raises(ValueError, match=r"imc: head must name .* heads of the data: verb, noun"):
        IntraModalContrast()(step)
    with pytest.raises(ValueError, match="imc: no head 'event'; heads of the data: verb, noun"):
        IntraModalContrast(head="event")(step)
    with pytest.raises(ValueError, match="imc: modality must be one of audio, video, both, got 'text'"):
        IntraModalContrast(modality="text")
    with pytest.raises(ValueError, match="imc: temperature must be above 0"):
        IntraModalContrast(temperature=0.0)


def test_logits_are_fp32_under_autocast() -> None:
    step = FixedStep(*(rows.float() for rows in pair(8)), labels={"event": MIXED})
    exact, _ = IntraModalContrast()(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = IntraModalContrast()(step)
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()
