"""Objectives that take the audio, the video, or both: the option ``modality`` and what it names."""

from torch import Tensor

from avssl.objectives.base import Step
from avssl.objectives.gathering import gather_with_gradient
from avssl.objectives.vectors import precise

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
    return precise((step.audio(view) if modality == "audio" else step.video(view)).joint)


def global_joints(step: Step, objective: str) -> tuple[Tensor, Tensor]:
    """Joint embeddings (N, D) of audio and of video of all processes, with gradient, in float32 or better.

    Raises:
        ValueError: for a global batch of one clip, over which ``objective`` has no statistics.
    """
    audio, video = (gather_with_gradient(joint_of(step, modality)) for modality in ("audio", "video"))
    if len(audio) < 2:
        raise ValueError(f"{objective}: needs a global batch of at least 2 clips, got {len(audio)}")
    return audio, video
