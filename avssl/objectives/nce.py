"""Noise-contrastive estimation over the entries of a memory bank."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.objectives.gathering import gather_constant


class NCE(nn.Module):
    """Noise-contrastive estimation of instance discrimination (Wu et al. 2018, eq. 5-8; Morgado et al. 2021, eq. 2-4).

    With scores s = cosine similarity / temperature, the model is P(row | query) = exp(s) / (N Z) over the N rows of a
    bank, the noise is uniform, 1 / N, and there are K noise samples for one positive. The posterior that a row is not
    noise is then P(D = 1) = exp(s) / (exp(s) + K Z) = sigmoid(s - log(K Z)).

    Attributes:
        log_partition: log Z, where Z is the mean of exp(s) over the negatives of the first training batch, of all
            processes; a constant from then on. -inf before.
    """

    log_partition: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_partition", torch.tensor(-torch.inf))

    @torch.no_grad()
    def partition(self, scores: Tensor) -> Tensor:
        """log Z; estimated from the negative ``scores``, of any shape, if it was not yet."""
        if torch.isfinite(self.log_partition):
            return self.log_partition
        local = scores.flatten().logsumexp(dim=0) - math.log(scores.numel())
        everywhere = gather_constant(local[None])
        estimate = everywhere.logsumexp(dim=0) - math.log(len(everywhere))
        if self.training:
            self.log_partition.copy_(estimate)
        return estimate

    @staticmethod
    def loss(positive: Tensor, negative: Tensor, log_partition: Tensor) -> Tensor:
        """Mean over B of ``-mean_P log P(D = 1) - sum_K log P(D = 0)``.

        Args:
            positive: (B, P) scores of each query's positives.
            negative: (B, K) scores of its noise samples.
            log_partition: log Z.
        """
        offset = log_partition + math.log(negative.shape[1])
        of_positives = F.logsigmoid(positive - offset).mean(dim=1)
        of_negatives = F.logsigmoid(offset - negative).sum(dim=1)
        return -(of_positives + of_negatives).mean()
