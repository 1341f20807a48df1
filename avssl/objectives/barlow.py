"""Barlow Twins across modalities."""

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.modalities import global_joints


@register_objective("barlow")
class Barlow(Objective):
    """Barlow Twins between audio and video: their cross-correlation over the global batch becomes the identity.

    Zbontar et al. 2021, eq. 1 and 2. The embeddings of the whole batch are gathered, not the correlations of each
    process: those are taken with the means and deviations of a part of the batch, another loss.

    Its projection is the paper's: three layers, without a norm after the last. The paper's is 8192 wide, ours 2048.

    Args:
        lambda_param: Weight of the redundancy reduction, the squares off the diagonal.
    """

    projection = Projection(layers=3, width=2048, dim=2048, norm=False)

    def __init__(self, lambda_param: float = 5e-3) -> None:
        super().__init__()
        if lambda_param < 0:
            raise ValueError(f"barlow: lambda_param must be at least 0, got {lambda_param}")
        self.loss = BarlowTwinsLoss(lambda_param, gather_distributed=False)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the mean correlation of a dimension of the audio with the same one of the video.

        Raises:
            ValueError: for a global batch of one clip, which has no correlation.
        """
        audio, video = global_joints(step, self, "barlow")
        with torch.autocast(audio.device.type, enabled=False):
            loss = self.loss(audio, video)
            with torch.no_grad():
                centred = audio - audio.mean(dim=0), video - video.mean(dim=0)
                return loss, {"correlation": F.cosine_similarity(*centred, dim=0).mean()}
