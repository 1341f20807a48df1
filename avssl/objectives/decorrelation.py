"""Losses without negatives, on the statistics of a batch: Barlow Twins and VICReg."""

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor

from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.functional import global_joints


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


@register_objective("vicreg")
class VICReg(Objective):
    """VICReg between audio and video: partners agree, every dimension varies, no two dimensions correlate.

    Bardes et al. 2022, eq. 6, over the global batch, with the scales of the authors' code: the squared distance is the
    mean over dimensions (eq. 5: their sum), the variance term the mean of the two modalities (eq. 6: their sum).

    Its projection is the paper's expander: three layers, without a norm after the last. The paper's is 8192 wide, ours
    2048. Where it shares a projection that ends in a batch norm, variances are the squares of that norm's scales: the
    variance term then keeps those from shrinking, and has no gradient for the layers before.

    Args:
        lambda_param: Weight of the invariance: squared distances between partners.
        mu_param: Weight of the variance: how far standard deviations are below 1.
        nu_param: Weight of the covariance: squares off the diagonal of the covariance matrix.
    """

    projection = Projection(layers=3, width=2048, dim=2048, norm=False)

    def __init__(self, lambda_param: float = 25.0, mu_param: float = 25.0, nu_param: float = 1.0) -> None:
        super().__init__()
        for name, weight in (("lambda_param", lambda_param), ("mu_param", mu_param), ("nu_param", nu_param)):
            if weight < 0:
                raise ValueError(f"vicreg: {name} must be at least 0, got {weight}")
        self.loss = VICRegLoss(lambda_param, mu_param, nu_param, gather_distributed=False)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the invariance term and each modality's mean standard deviation, 0 when collapsed.

        Raises:
            ValueError: for a global batch of one clip, which has no variance.
        """
        # The invariance term needs no gathering, but gathered it has the same gradient, and all terms one batch.
        audio, video = global_joints(step, self, "vicreg")
        with torch.autocast(audio.device.type, enabled=False):
            loss = self.loss(audio, video)
            with torch.no_grad():
                return loss, {
                    "invariance": F.mse_loss(audio, video),
                    "audio_std": audio.std(dim=0).mean(),
                    "video_std": video.std(dim=0).mean(),
                }
