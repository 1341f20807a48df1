"""What each head of a classifier is trained by: cross-entropy, or binary cross-entropy for clips of several labels."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class HeadLoss:
    """The loss of each head, by its labels: (B,) int64 classes, or (B, C) zeros and ones; -1 where unlabelled.

    Both kinds share one formula for the targets: with smoothing ``s``, ``(1 - s) t + s / C``, of which the sum over the
    classes stays 1 where a clip has one label (Szegedy et al. 2016).

    - One label: cross-entropy of the softmax.
    - Several labels: binary cross-entropy of the sigmoid, the mean over the classes.

    A head's loss is the mean over its labelled clips, times the weight of the head.

    Args:
        labels: Class names of each head.
        label_smoothing: ``s``, at least 0 and below 1.
        weights: Weight of the loss of a head, above 0; 1 where none is given.

    Raises:
        ValueError: an unknown head, or a weight or a smoothing out of its range.
    """

    def __init__(
        self,
        labels: Mapping[str, list[str]],
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: must be at least 0 and below 1, got {label_smoothing}")
        for head, weight in (weights or {}).items():
            if head not in labels:
                raise ValueError(f"head_weights: no head {head!r}; the heads that are trained: {', '.join(labels)}")
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"head_weights: {head}: must be above 0, got {weight}; data.heads tells which heads to train"
                )
        self.label_smoothing = label_smoothing
        self.weights = {head: 1.0 for head in labels} | dict(weights or {})

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        mixed: Mapping[str, Tensor] | None = None,
        share: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by head, and ``HEAD/train_top1`` of the heads with one label.

        Args:
            logits: head -> (B, C).
            labels: head -> labels of the clips.
            mixed: head -> labels of the clips that mixup blended these with.
            share: (B,) each clip's own share of its blend; None without mixup.
        """
        losses, report = {}, {}
        for head, scores in logits.items():
            target = labels[head]
            loss, counted = self._by_clip(scores, target)
            if mixed is not None and share is not None:
                # A blend of a labelled and an unlabelled clip counts by the share whose label is known.
                other, other_counted = self._by_clip(scores, mixed[head])
                loss = share * loss + (1 - share) * other
                counted = share * counted + (1 - share) * other_counted
            losses[head] = self.weights[head] * loss.sum() / counted.sum().clamp_min(1)
            if target.ndim == 1:
                right = (scores.detach().argmax(1) == target)[target >= 0]
                report[f"{head}/train_top1"] = right.float().mean().nan_to_num()
        return losses, report

    def _by_clip(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,), 0 where unlabelled, and (B,) float, 1 where labelled."""
        logits, smoothing = logits.float(), self.label_smoothing
        if target.ndim == 1:
            loss = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=smoothing, reduction="none")
            return loss, (target >= 0).float()
        labelled = (target >= 0).all(dim=1)
        wanted = (1 - smoothing) * target.clamp_min(0) + smoothing / target.shape[1]
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        return torch.where(labelled, loss, 0), labelled.float()
