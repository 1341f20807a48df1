"""Supervised contrast between audio and video."""

import torch
from torch import Tensor

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.supcon import global_labels, same_class, supervised_contrastive
from avssl.objectives.vectors import unit


@register_objective("avc")
class AudioVideoContrast(Objective):
    """Supervised contrast between audio and video (AVC of MMT): all clips of a class are positives.

    Zhu 2024 (arXiv 2401.04023), as the supervised contrastive loss of Khosla et al. 2020, eq. 2, with audio anchors
    among the videos of the global batch and the other way; the mean of both. An unlabelled clip has its own partner as
    its only positive: with no labels at all this is InfoNCE.

    Args:
        head: Head whose labels are used; None takes the only one.
        temperature: What the cosine similarities are divided by.
    """

    retrieves = True

    def __init__(self, head: str | None = None, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"avc: temperature must be above 0, got {temperature}")
        self.head, self.temperature = head, temperature

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the share of labelled clips and the mean number of positives of an anchor."""
        labels = global_labels(step, self.head, "avc")
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = gather_with_gradient(unit(joint_audio)), gather_with_gradient(unit(joint_video))
            logits = audio @ video.T / self.temperature
            positive = same_class(labels) | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            # Being of one class is symmetric: the positives of the videos are the transpose, which is the same.
            loss = (supervised_contrastive(logits, positive) + supervised_contrastive(logits.T, positive)) / 2
        return loss, {
            "labelled": (labels >= 0).float().mean(),
            "positives": positive.float().sum(dim=1).mean(),
        }
