"""Masked modelling of spectrograms and frames."""

from typing import Any

import torch
from torch import Tensor

from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.masked_audio import AudioReconstruction
from avssl.objectives.masked_video import VideoReconstruction
from avssl.objectives.modalities import parse_modality


@register_objective("masked")
class Masked(Objective):
    """Masked modelling: predicts hidden parts of the spectrogram, of the frames, or of both.

    The input is masked before the encoder, which keeps its full grid (SimMIM, Xie et al. 2022), since a hierarchical
    encoder cannot leave tokens out. With ``infonce`` as a second term it is the objective of CAV-MAE (Gong et al.
    2023); masked inputs are encoded apart, so the contrast sees whole ones.

    Args:
        shapes: Sizes of the features, and of a unit of the spectrogram.
        modality: What is masked and predicted: audio, video, or both, whose losses are added. Two terms of one modality
            each can have shares and weights of their own.
        share: Share of the units, or cubes, that is masked in each clip.
        normalize: Normalize the target of each unit or cube.
        cube, hidden: For video: see :class:`~avssl.objectives.masked_video.VideoReconstruction`.
    """

    projection = None

    def __init__(
        self, shapes: Shapes, modality: str = "audio", share: float = 0.6, normalize: bool = True, **video_options: Any
    ) -> None:
        super().__init__()
        modalities = parse_modality("masked", modality)
        if not 0 < share <= 1:
            raise ValueError(f"masked: share must lie in (0, 1], got {share}")
        self.audio = self.video = None
        if "audio" in modalities:
            self.audio = AudioReconstruction(shapes.audio, shapes.audio_stride, share, normalize)
        if "video" in modalities:
            self.video = VideoReconstruction(shapes.video, share, normalize, **video_options)
        elif video_options:
            raise ValueError(f"masked: modality audio has no option {', '.join(video_options)}")

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Masked":
        """See the class."""
        return cls(shapes, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the clips.

        The report has, by modality, the loss, the loss of always predicting the mean of a clip's masked targets (about
        1 where these are normalized), and the share that is masked.
        """
        parts = {}
        if self.audio is not None:
            parts["audio"] = step.map_audio(self.audio).mean(dim=0)
        if self.video is not None:
            parts["video"] = step.map_video(self.video).mean(dim=0)
        report = {
            f"{modality}_{name}": value
            for modality, part in parts.items()
            for name, value in zip(("loss", "loss_of_mean", "share"), part.detach(), strict=True)
        }
        return torch.stack([part[0] for part in parts.values()]).sum(), report
