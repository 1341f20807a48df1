"""Objectives that take the audio, the video, or both: the option ``modality`` and what it names."""

from torch import Tensor

from avssl.objectives.base import Objective, Step
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
