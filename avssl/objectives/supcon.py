"""Supervised contrastive loss, and the labels of the global batch that it takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.objectives.base import Step
from avssl.objectives.gathering import gather_constant


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
