"""NT-Xent within a modality."""

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.modalities import joint_of, parse_modality


@register_objective("ntxent")
class NTXent(Objective):
    """NT-Xent between two augmented views of the same modality, over the global batch.

    SimCLR (Chen et al. 2020, eq. 1): a view is to find the other view of its clip among all other views of the batch.

    Args:
        modality: ``audio``, ``video``, or ``both``: the mean of the two losses.
        temperature: What the cosine similarities are divided by.
    """

    def __init__(self, modality: str = "both", temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"ntxent: temperature must be above 0, got {temperature}")
        self.modalities = parse_modality("ntxent", modality)
        # Gathering by itself, it takes the mean over local rows against the views of all processes.
        self.loss = NTXentLoss(temperature, gather_distributed=torch.distributed.is_available())

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the loss of each modality and the mean cosine similarity of its two views."""
        losses: list[Tensor] = []
        report: dict[str, Tensor] = {}
        for modality in self.modalities:
            one, other = (joint_of(step, self, modality, view) for view in (0, 1))
            with torch.autocast(one.device.type, enabled=False):
                losses.append(self.loss(one, other))
                report[f"{modality}_loss"] = losses[-1].detach()
                report[f"{modality}_similarity"] = F.cosine_similarity(one, other).mean().detach()
        return torch.stack(losses).mean(), report
