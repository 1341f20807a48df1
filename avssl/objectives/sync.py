"""Audio-visual temporal synchronization within a video."""

import logging

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.functional import gather_constant, gather_with_gradient, unit

logger = logging.getLogger(__name__)


@register_objective("sync")
class Sync(Objective):
    """Tells a clip from other times of the same video: hard negatives of AVTS (Korbar et al. 2018).

    For clip i with audio a_i and video v_i, N_i are the clips of its file whose span shares at most ``max_overlap`` of
    its length with that of i. The loss is InfoNCE over them (instead of AVTS's margin loss, eq. 1),
    ``-log exp(a_i v_i / t) / (exp(a_i v_i / t) + sum over j in N_i of exp(a_i v_j / t))``, and the same with audio and
    video swapped; it is the mean over both directions and all clips of the global batch whose N_i is not empty. A batch
    without any has loss 0.

    It tells nothing about different videos: add ``infonce`` for that.

    Args:
        temperature: What cosine similarities are divided by.
        max_overlap: Largest share of a clip that a negative may share with it; 0 takes disjoint spans only.
    """

    def __init__(self, temperature: float = 0.1, max_overlap: float = 0.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"sync: temperature must be above 0, got {temperature}")
        if not 0 <= max_overlap < 1:
            raise ValueError(f"sync: max_overlap must lie in [0, 1), got {max_overlap}")
        self.temperature, self.max_overlap = temperature, max_overlap
        self._warned = False

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch.

        The report has the share of clips that have negatives, how many these have, and how often their own clip is
        nearest among them (mean of both directions).
        """
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = gather_with_gradient(unit(joint_audio)), gather_with_gradient(unit(joint_video))
            file = gather_constant(step.file.to(audio.device))
            start = gather_constant(step.start.to(audio.device))
            negative = self._negatives(file, start, step.seconds)
            own = torch.eye(len(audio), dtype=torch.bool, device=audio.device)
            logits = (audio @ video.T / self.temperature).masked_fill(~(negative | own), -torch.inf)
            target = torch.arange(len(audio), device=audio.device)
            # A clip without negatives adds exactly 0: its softmax has one entry.
            losses = [F.cross_entropy(rows, target, reduction="sum") for rows in (logits, logits.T)]
            contrasted = negative.any(dim=1)
            count = contrasted.sum()
            loss = (losses[0] + losses[1]) / (2 * count.clamp_min(1))
        if not self._warned and not count:
            self._warned = True
            if rank() == 0:
                logger.warning(
                    "sync: no clip of this batch has another time of its video to be told from; "
                    "set data.train_clips to at least 2 (in videos long enough for spans that differ)"
                )
        with torch.no_grad():
            nearest = [(rows.argmax(dim=1) == target) & contrasted for rows in (logits, logits.T)]
            report = {
                "clips": contrasted.float().mean(),
                "negatives": negative.sum() / count.clamp_min(1),
                "accuracy": (nearest[0].sum() + nearest[1].sum()) / (2 * count.clamp_min(1)),
            }
        return loss, report

    def _negatives(self, file: Tensor, start: Tensor, seconds: float) -> Tensor:
        """(N, N) bool, symmetric: the clips of ``file`` (N,) and ``start`` (N,) in s that may be contrasted."""
        overlap = (1 - (start[:, None] - start).abs() / seconds).clamp_min(0)
        # Starts are sums of floats: spans that touch may seem to overlap by a rounding error.
        return (file[:, None] == file) & (overlap <= self.max_overlap + 1e-6)
