"""Objectives that take the audio, the video, or both: the option ``modality`` and what it names."""

import torch
from torch import Tensor

from avssl.objectives.base import Step

_MODALITIES = {"audio": ("audio",), "video": ("video",), "both": ("audio", "video")}


def parse_modality(objective: str, modality: str) -> tuple[str, ...]:
    """The modalities that the option ``modality`` of ``objective`` asks for.

    Raises:
        ValueError: when it is none of audio, video and both.
    """
    if modality not in _MODALITIES:
        raise ValueError(f"{objective}: modality must be one of {', '.join(_MODALITIES)}, got {modality!r}")
    return _MODALITIES[modality]


def joint_of(step: Step, modality: str, view: int = 0) -> Tensor:
    """The joint embeddings (B, D) of "audio" or "video", in float32 or better; the other one is not computed."""
    rows = (step.audio(view) if modality == "audio" else step.video(view)).joint
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
