"""Contrast of clips: InfoNCE and SigLIP between the modalities, NT-Xent within one, MoCo with a queue of keys."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.utils.dist import rank
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.objectives.banks import KeyQueue
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import (
    effective_negatives,
    gather_constant,
    gather_with_gradient,
    joint_of,
    parse_modality,
    unit,
)


def contrast(
    rows: Tensor, columns: Tensor, scale: Tensor, *, first: int = 0, chunk: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of InfoNCE (van den Oord et al. 2018, eq. 4): each row has to find its partner among all columns.

    Taken over ``chunk`` rows at a time, of which the backward pass computes the logits again where there are several:
    memory holds chunk x N logits, never those of all rows.

    Args:
        rows: (B, D) L2-normalized embeddings of one modality, of this process.
        columns: (N, D) those of the other modality, of all processes.
        scale: What the cosine similarities are multiplied with: one over the temperature.
        first: The partner of ``rows[i]`` is ``columns[first + i]``.
        chunk: Rows at a time.

    Returns:
        The mean loss over the B rows; the share of rows that find their partner; how many negatives count.
    """
    partners = torch.arange(first, first + len(rows), device=rows.device)

    def part(rows: Tensor, columns: Tensor, scale: Tensor, partners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scale * rows @ columns.T
        loss = F.cross_entropy(logits, partners, reduction="sum")
        with torch.no_grad():
            found = (logits.argmax(dim=1) == partners).sum()
            return loss, found, effective_negatives(logits, partners) * len(rows)

    if len(rows) <= chunk:
        sums = [part(rows, columns, scale, partners)]
    else:
        sums = [
            checkpoint(part, some, columns, scale, theirs, use_reentrant=False, preserve_rng_state=False)
            for some, theirs in zip(rows.split(chunk), partners.split(chunk), strict=True)
        ]
    loss, found, negatives = (torch.stack(values).sum(dim=0) / len(rows) for values in zip(*sums, strict=True))
    return loss, found, negatives


@register_objective("infonce")
class InfoNCE(Objective):
    """Cross-modal InfoNCE with a learnable temperature, over the global batch.

    Symmetric, as in CLIP (Radford et al. 2021), or more of one direction.

    Args:
        temperature: Initial temperature.
        min_temperature: The learned temperature is clamped from below to this (CLIP: 1/100).
        max_temperature: ... and from above to this.
        learn_temperature: Train the temperature, parameterised as the logarithm of its inverse.
        audio_weight: Weight of the audio-to-video direction; video-to-audio has 1 minus it. 0.5 is symmetric.
        chunk: Clips of this process that are compared with the global batch at a time.
    """

    retrieves = True

    def __init__(
        self,
        temperature: float = 0.07,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
        learn_temperature: bool = True,
        audio_weight: float = 0.5,
        chunk: int = 1024,
    ) -> None:
        super().__init__()
        if not 0 < min_temperature <= temperature <= max_temperature:
            raise ValueError(
                "infonce: needs 0 < min_temperature <= temperature <= max_temperature, "
                f"got {min_temperature}, {temperature}, {max_temperature}"
            )
        if not 0 <= audio_weight <= 1:
            raise ValueError(f"infonce: audio_weight must lie in [0, 1], got {audio_weight}")
        if chunk < 1:
            raise ValueError(f"infonce: chunk must be at least 1, got {chunk}")
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=learn_temperature)
        self.log_scale_range = (-math.log(max_temperature), -math.log(min_temperature))
        self.audio_weight = audio_weight
        self.chunk = chunk

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the local clips; the report has temperature, in-batch accuracy and how many negatives count."""
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        # Mixed precision would round similarities to about 3 digits: logits and softmax stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = unit(joint_audio), unit(joint_video)
            # Clamping the parameter in place keeps the gradient alive at the bound, which clamping the value would cut.
            with torch.no_grad():
                self.log_scale.clamp_(*self.log_scale_range)
            scale = self.log_scale.exp()
            all_audio, all_video = gather_with_gradient(audio), gather_with_gradient(video)
            first = rank() * len(audio)
            audio_loss, accuracy, for_audio = contrast(audio, all_video, scale, first=first, chunk=self.chunk)
            video_loss, _, for_video = contrast(video, all_audio, scale, first=first, chunk=self.chunk)
            loss = self.audio_weight * audio_loss + (1 - self.audio_weight) * video_loss
            report = {
                "temperature": 1 / scale.detach(),
                "accuracy": accuracy,
                "negatives": torch.tensor(float(len(all_video) - 1)),
                "effective_negatives": (for_audio + for_video) / 2,
            }
        return loss, report


def sigmoid_loss(
    audio: Tensor, video: Tensor, scale: Tensor, bias: Tensor, *, first: int = 0, chunk: int = 1024
) -> Tensor:
    """Sigmoid loss of all pairs (Zhai et al. 2023, eq. 1, with the signs of their algorithm 1).

    Every pair is a decision of its own: ``-log sigmoid(+-(scale * cosine + bias))``, plus for partners, minus for all
    others. So the sum can be taken over ``chunk`` videos at a time, and the backward pass computes the logits of a
    chunk again: memory holds B x chunk logits, never B x N.

    Args:
        audio: (B, D) L2-normalized audio embeddings of this process.
        video: (N, D) L2-normalized video embeddings of all processes.
        scale: What the cosine similarities are multiplied with: t in the paper.
        bias: What is added to them: b in the paper.
        first: The partner of ``audio[i]`` is ``video[first + i]``.
        chunk: Videos at a time.

    Returns:
        The sum over the N videos, averaged over the B audio rows.
    """
    partner = torch.arange(first, first + len(audio), device=audio.device)[:, None]

    def part(audio: Tensor, video: Tensor, scale: Tensor, bias: Tensor, begin: int) -> Tensor:
        logits = scale * audio @ video.T + bias
        columns = torch.arange(begin, begin + len(video), device=video.device)
        return -F.logsigmoid(torch.where(columns == partner, logits, -logits)).sum()

    total = audio.new_zeros(())
    for begin in range(0, len(video), chunk):
        columns = video[begin : begin + chunk]
        total = total + checkpoint(
            part, audio, columns, scale, bias, begin, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(audio)


@register_objective("siglip")
class SigLIP(Objective):
    """Pairwise sigmoid loss across modalities, chunked: memory does not grow with the square of the batch.

    Args:
        temperature: Initial value of the learned factor of the cosine similarities, as in the paper (t); its logarithm
            is trained.
        bias: Initial value of the learned bias. Far below zero, as nearly all pairs are negative.
        chunk: Videos of the global batch that the clips of a process are compared with at a time.
    """

    retrieves = True

    def __init__(self, temperature: float = 10.0, bias: float = -10.0, chunk: int = 1024) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"siglip: temperature must be above 0, got {temperature}")
        if chunk < 1:
            raise ValueError(f"siglip: chunk must be at least 1, got {chunk}")
        self.log_scale = nn.Parameter(torch.tensor([math.log(temperature)]))  # 1-d, as FSDP wants
        self.bias = nn.Parameter(torch.tensor([float(bias)]))
        self.chunk = chunk

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the local clips; the report has temperature, bias and the mean cosine similarity of partners."""
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        # Mixed precision would round similarities to about 3 digits: logits stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = unit(joint_audio), unit(joint_video)
            scale = self.log_scale.exp()
            loss = sigmoid_loss(
                audio, gather_with_gradient(video), scale, self.bias, first=rank() * len(audio), chunk=self.chunk
            )
            report = {
                "temperature": scale.detach(),
                "bias": self.bias.detach().clone(),
                "similarity": (audio * video).sum(dim=1).mean().detach(),
            }
        return loss, report


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


def contrast_logits(queries: Tensor, keys: Tensor, queue: KeyQueue, temperature: float) -> Tensor:
    """Cosine similarities over the temperature; (B, N + Q), -inf at slots of the queue that are still empty.

    Args:
        queries: (B, D) L2-normalized.
        keys: (N, D) L2-normalized keys of the global batch, the positives among them.
        queue: Past keys, Q slots.
        temperature: That similarities are divided by.
    """
    past = (queries @ queue.keys.to(queries.dtype).T).masked_fill(queue.empty_slots, -torch.inf)
    return torch.cat([queries @ keys.T, past], dim=1) / temperature


@register_objective("moco")
class MoCo(Objective):
    """Momentum contrast across modalities: the teacher's keys of the other modality, against a queue of past ones.

    He et al. 2020, eq. 1, in both directions: the query is the student's embedding of one modality, the positive key
    the teacher's embedding of the other modality of the same clip. Negatives are the keys in the queue of that other
    modality and, so that the first steps with their empty queues have some, the keys of the other clips of the global
    batch. The loss is the mean of both directions; keys enter the queues after it was computed. The teacher's momentum
    is the paper's 0.999; the config's ``teacher_momentum`` sets another, which runs of under a few thousand steps need.

    Args:
        dim: Width of its projection.
        queue: Keys kept per modality.
        temperature: Of the softmax.
    """

    needs_teacher = True
    teacher_momentum = (0.999, 0.999)
    retrieves = True

    def __init__(self, dim: int, queue: int = 4096, temperature: float = 0.07) -> None:
        super().__init__()
        if queue < 1:
            raise ValueError(f"moco: queue must be at least 1, got {queue}")
        if not temperature > 0:
            raise ValueError(f"moco: temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.audio_queue, self.video_queue = KeyQueue(queue, dim), KeyQueue(queue, dim)

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "MoCo":
        """Queues are as wide as the projection."""
        return cls(shapes.joint, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of this process' clips; the report has the accuracy among all keys and the filled slots."""
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        teacher_audio, teacher_video = (step.project(self, modality, teacher=True) for modality in ("audio", "video"))
        # Mixed precision would round similarities to about 3 digits: logits and softmax stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio_keys, video_keys = gather_constant(unit(teacher_audio)), gather_constant(unit(teacher_video))
            to_video = contrast_logits(unit(joint_audio), video_keys, self.video_queue, self.temperature)
            to_audio = contrast_logits(unit(joint_video), audio_keys, self.audio_queue, self.temperature)
            size = len(joint_audio)
            own = torch.arange(size, device=joint_audio.device) + rank() * size  # keys are in the order of the ranks
            loss = (F.cross_entropy(to_video, own) + F.cross_entropy(to_audio, own)) / 2
        if self.training:
            self.audio_queue.enqueue(audio_keys)
            self.video_queue.enqueue(video_keys)
        with torch.no_grad():
            right = (to_video.argmax(dim=1) == own).float() + (to_audio.argmax(dim=1) == own).float()
        return loss, {"accuracy": right.mean() / 2, "queue_filled": self.audio_queue.filled.float()}
