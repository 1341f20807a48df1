"""Cross-modal InfoNCE."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.evaluation.diagnostics import effective_negatives
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.vectors import unit


def info_nce(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both directions of the InfoNCE loss (van den Oord et al. 2018, eq. 4; symmetric as in CLIP, Radford et al. 2021).

    Args:
        logits: (N, N) cosine similarities of the audio (rows) and the video (columns) of N clips over the temperature;
            the diagonal are the positives, all others are negatives.

    Returns:
        The audio-to-video and the video-to-audio loss, each the mean over N.
    """
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)


@register_objective("infonce")
class InfoNCE(Objective):
    """Cross-modal InfoNCE with a learnable temperature, over the global batch.

    Args:
        temperature: Initial temperature.
        min_temperature: The learned temperature is clamped from below to this (CLIP: 1/100).
        max_temperature: ... and from above to this.
        learn_temperature: Train the temperature, parameterised as the logarithm of its inverse.
        audio_weight: Weight of the audio-to-video direction; video-to-audio has 1 minus it. 0.5 is symmetric.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
        learn_temperature: bool = True,
        audio_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < min_temperature <= temperature <= max_temperature:
            raise ValueError(
                "infonce: needs 0 < min_temperature <= temperature <= max_temperature, "
                f"got {min_temperature}, {temperature}, {max_temperature}"
            )
        if not 0 <= audio_weight <= 1:
            raise ValueError(f"infonce: audio_weight must lie in [0, 1], got {audio_weight}")
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=learn_temperature)
        self.log_scale_range = (-math.log(max_temperature), -math.log(min_temperature))
        self.audio_weight = audio_weight

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch; the report has temperature, in-batch accuracy and how many negatives count."""
        joint_audio, joint_video = step.audio().joint, step.video().joint
        # Mixed precision would round similarities to about 3 digits: logits and softmax stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = gather_with_gradient(unit(joint_audio)), gather_with_gradient(unit(joint_video))
            # Clamping the parameter in place keeps the gradient alive at the bound, which clamping the value would cut.
            with torch.no_grad():
                self.log_scale.clamp_(*self.log_scale_range)
            scale = self.log_scale.exp()
            logits = scale * audio @ video.T
            audio_loss, video_loss = info_nce(logits)
            loss = self.audio_weight * audio_loss + (1 - self.audio_weight) * video_loss
            with torch.no_grad():
                target = torch.arange(len(logits), device=logits.device)
                report = {
                    "temperature": 1 / scale,
                    "accuracy": (logits.argmax(dim=1) == target).float().mean(),
                    "negatives": torch.tensor(float(len(logits) - 1)),
                    "effective_negatives": (effective_negatives(logits) + effective_negatives(logits.T)) / 2,
                }
        return loss, report
