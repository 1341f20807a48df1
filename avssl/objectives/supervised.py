"""Supervised contrast: clips of one class are positives, between the modalities (AVC) or within one (IMC)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.functional import gather_constant, gather_with_gradient, joint_of, parse_modality, unit


def supervised_contrastive(logits: Tensor, positive: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out), as the mean over anchors.

    Args:
        logits: (N, M) similarity of anchor i and candidate j over the temperature. Finite; what is to be no candidate
            has the least number of its type.
        positive: (N, M) bool, whether candidate j is a positive of anchor i. Rows without any are no anchors.

    Returns:
        Over the anchors, the mean of the mean over its positives of ``-log softmax(logits)``. Without an anchor, a
        zero with zero gradients.
    """
    log_share = F.log_softmax(logits, dim=1)
    count = positive.sum(dim=1)
    by_anchor = -torch.where(positive, log_share, 0).sum(dim=1) / count.clamp(min=1)
    return by_anchor.sum() / (count > 0).sum().clamp(min=1)


def global_labels(step: Step, head: str | None, objective: str) -> Tensor:
    """Labels (N,) int64 of the global batch under ``head``, -1 where unlabelled; None takes the only head.

    Raises:
        ValueError: when there is no such head, when None is given and there is not exactly one, or when its clips have
            several labels.
    """
    heads = ", ".join(step.labels) or "none"
    if head is None:
        if len(step.labels) != 1:
            raise ValueError(f"{objective}: head must name the labels to use; heads of the data: {heads}")
        (head,) = step.labels
    if head not in step.labels:
        raise ValueError(f"{objective}: no head {head!r}; heads of the data: {heads}")
    if step.labels[head].ndim != 1:
        raise ValueError(f"{objective}: clips have several labels under head {head!r}, and are of no one class")
    return gather_constant(step.labels[head])


def same_class(labels: Tensor) -> Tensor:
    """(N,) classes, -1 where unlabelled -> (N, N) bool: clips i and j are labelled, and alike; i = j too."""
    return (labels[:, None] == labels[None]) & (labels >= 0)[:, None]


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


@register_objective("imc")
class IntraModalContrast(Objective):
    """Supervised contrast within a modality (IMC of MMT): other clips of the class are positives.

    Zhu 2024 (arXiv 2401.04023), as the supervised contrastive loss of Khosla et al. 2020, eq. 2, over the global
    batch. A clip that is unlabelled, or the only one of its class, is no anchor and a negative of all others. A batch
    without any anchor has a loss of zero.

    Args:
        modality: ``audio``, ``video``, or ``both``: the mean of the two losses. ``audio`` touches no video.
        head: Head whose labels are used; None takes the only one.
        temperature: What the cosine similarities are divided by.
    """

    def __init__(self, modality: str = "both", head: str | None = None, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"imc: temperature must be above 0, got {temperature}")
        self.modalities = parse_modality("imc", modality)
        self.head, self.temperature = head, temperature

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the loss of each modality and the shares of labelled clips and of anchors."""
        labels = global_labels(step, self.head, "imc")
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = same_class(labels) & ~itself
        losses: list[Tensor] = []
        report = {
            "labelled": (labels >= 0).float().mean(),
            "anchors": positive.any(dim=1).float().mean(),
        }
        for modality in self.modalities:
            joint = joint_of(step, self, modality)
            with torch.autocast(joint.device.type, enabled=False):
                rows = gather_with_gradient(unit(joint))
                logits = rows @ rows.T / self.temperature
                # Finite, as with infinity a batch of one clip, which then has no candidates, would turn into NaN.
                logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
                losses.append(supervised_contrastive(logits, positive))
                report[f"{modality}_loss"] = losses[-1].detach()
        return torch.stack(losses).mean(), report
