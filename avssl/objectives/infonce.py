"""Cross-modal InfoNCE."""

import math

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.evaluation.diagnostics import effective_negatives
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.vectors import unit


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
