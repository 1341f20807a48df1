"""Pairwise sigmoid loss across modalities."""

import math

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.vectors import unit


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
