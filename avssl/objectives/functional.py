"""Functions and small modules that several objectives share: gathering, precision, noise contrast, labels, tokens."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from lightly.utils.dist import gather, rank, world_size
from torch import Tensor, nn

from avssl.objectives.base import Objective, Step


def precise(rows: Tensor) -> Tensor:
    """``rows`` in float32 or better: half precision leaves a similarity about 3 digits."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def unit(rows: Tensor) -> Tensor:
    """(N, D) with L2-normalized rows, in float32 or better."""
    return F.normalize(precise(rows), dim=-1)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """(B, ...) of every process -> (B * processes, ...), through which gradients flow back to their process.

    A loss of the gathered batch, the same on every process, then has the gradients of one process with that batch once
    they are averaged over the processes, as DDP does.
    """
    return torch.cat(gather(rows)) if world_size() > 1 else rows


@torch.no_grad()
def gather_constant(rows: Tensor) -> Tensor:
    """(B, ...) of every process -> (B * processes, ...), detached: for queues, banks, labels and indices."""
    if world_size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch.distributed.all_gather(parts, rows)
    return torch.cat(parts)


_MODALITIES = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}


@torch.no_grad()
def effective_negatives(logits: Tensor, partners: Tensor | None = None) -> Tensor:
    """How many negatives a contrastive softmax listens to: the perplexity of its weights on them, averaged over rows.

    Among the negatives of row i, negative j has the share exp(logit_ij) / sum over k != i of exp(logit_ik) of the
    gradient: the relative penalty of Wang & Liu 2021, "Understanding the Behaviour of Contrastive Loss". The perplexity
    is exp of its entropy: N - 1 where all negatives weigh the same, 1 where the hardest has all the weight, as at a low
    temperature.

    Args:
        logits: (B, N) similarities over temperature. N = 1 has no negatives, 0.
        partners: (B,) column of each row's positive; without them the positives are the diagonal of (N, N).
    """
    if logits.ndim != 2 or (partners is None and len(logits) != logits.shape[1]):
        raise ValueError(f"effective_negatives: needs (N, N) logits, got {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        return logits.new_zeros(())
    if partners is None:
        partners = torch.arange(len(logits), device=logits.device)
    weights = logits.scatter(1, partners[:, None], -math.inf).softmax(dim=1)
    return (-torch.special.xlogy(weights, weights).sum(dim=1)).exp().mean()


def parse_modality(objective: str, modality: str) -> tuple[str, ...]:
    """The modalities that the option ``modality`` of ``objective`` asks for.

    Raises:
        ValueError: when it is none of audio, video and both.
    """
    if modality not in _MODALITIES:
        raise ValueError(f"{objective}: modality must be one of {', '.join(_MODALITIES)}, got {modality!r}")
    return _MODALITIES[modality]


def joint_of(step: Step, objective: Objective, modality: str, view: int = 0) -> Tensor:
    """Embeddings (B, D) of "audio" or "video" by the projection of ``objective``, in float32 or better."""
    return precise(step.project(objective, modality, view))


def global_joints(step: Step, objective: Objective, name: str) -> tuple[Tensor, Tensor]:
    """:func:`joint_of` audio and of video, (N, D) of all processes, with gradient.

    Raises:
        ValueError: for a global batch of one clip, over which the objective ``name`` has no statistics.
    """
    audio, video = (gather_with_gradient(joint_of(step, objective, modality)) for modality in ("audio", "video"))
    if len(audio) < 2:
        raise ValueError(f"{name}: needs a global batch of at least 2 clips, got {len(audio)}")
    return audio, video


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
