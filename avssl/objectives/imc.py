"""Supervised contrast within a modality."""

import torch
from torch import Tensor

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.modalities import joint_of, parse_modality
from avssl.objectives.supcon import global_labels, same_class, supervised_contrastive
from avssl.objectives.vectors import unit


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
