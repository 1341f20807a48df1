"""Tokens of both encoders, their means over equal parts of a clip, and the contrast of such parts."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor, nn

from avssl.objectives.base import Objective, Step
from avssl.objectives.gathering import gather_constant, gather_with_gradient


def audio_grid(encoder: nn.Module, spectrogram: Tensor) -> Tensor:
    """Tokens (b, F', T', A); for :meth:`Step.map_audio`."""
    return encoder.forward_grid(spectrogram)  # type: ignore[operator]  # a SpectrogramModel


def project_tokens(step: Step, objective: Objective, modality: str, tokens: Tensor) -> Tensor:
    """``tokens`` (B, ..., C) by the head of an objective's projection, (B, ..., D).

    Raises:
        ValueError: that projection is for several parts of a clip at a time.
    """
    head = step.head(objective, modality)
    inputs = next((part.in_features for part in head.modules() if isinstance(part, nn.Linear)), tokens.shape[-1])
    if inputs != tokens.shape[-1]:
        raise ValueError(
            f"objectives: the projection {objective.projected_by!r} takes {inputs} channels, a token has "
            f"{tokens.shape[-1]}: it tells several parts of a clip apart (time_bins), which tokens cannot share; leave "
            "projection out, or set its time_bins to 1"
        )
    return head(tokens)


def segment_means(tokens: Tensor, count: int) -> Tensor:
    """Means (B, count, C) of ``tokens`` (B, T, C) over ``count`` parts of time that do not overlap.

    Part k is the steps from floor(k T / count) up to floor((k + 1) T / count).

    Raises:
        ValueError: there are fewer steps than parts.
    """
    steps = tokens.shape[1]
    if steps < count:
        raise ValueError(
            f"{count} segments of a clip of which an encoder has {steps} steps in time: take at most {steps} "
            "(align: segments, segments: count), or longer clips, or more frames"
        )
    edges = [part * steps // count for part in range(count + 1)]
    return torch.stack([tokens[:, first:last].mean(dim=1) for first, last in pairwise(edges)], dim=1)


def segment_contrast(
    rows: Tensor, columns: Tensor, step: Step, temperature: float, other_times: bool = True
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each segment with the other view, or modality, of itself, among all segments of the global batch.

    Segments of one file that overlap in time are no negatives of each other.

    Args:
        rows: (B, K, D) L2-normalized embeddings of this process's segments.
        columns: (B, K, D) of what they are to find.
        step: Says where in which file the clips lie.
        temperature: What cosine similarities are divided by.
        other_times: Whether other times of the same file are negatives.

    Returns:
        (B, K) loss of each segment, and whether it found its own.
    """
    clips, count = rows.shape[:2]
    length = step.seconds / count
    middle = torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5
    time = (step.start.to(rows.device, torch.float64)[:, None] + middle * length).flatten()
    file = step.file.to(rows.device).repeat_interleave(count)
    every, times, files = gather_with_gradient(columns.flatten(0, 1)), gather_constant(time), gather_constant(file)
    target = rank() * clips * count + torch.arange(clips * count, device=rows.device)
    same = file[:, None] == files
    if other_times:  # starts are sums of floats: segments that touch may seem to overlap by a rounding error
        same &= (time[:, None] - times).abs() < length * (1 - 1e-6)
    same[torch.arange(len(target), device=rows.device), target] = False
    logits = (rows.flatten(0, 1) @ every.T / temperature).masked_fill(same, -torch.inf)
    loss = F.cross_entropy(logits, target, reduction="none")
    return loss.view(clips, count), (logits.detach().argmax(dim=1) == target).view(clips, count)
