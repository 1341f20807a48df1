"""Alignment of audio segments with the frames of their own time."""

import torch
from torch import Tensor, nn

from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.tokens import audio_grid, project_tokens, segment_contrast, segment_means
from avssl.objectives.vectors import unit


@register_objective("align")
class Align(Objective):
    """Audio segments against the frames of their own time, as CAV-MAE Sync does (Araujo et al. 2025, arXiv 2505.01237).

    A clip is divided into K equal parts. Each part's audio, the mean of its tokens over frequency and time, and its
    frames, the mean of their tokens over place and time, are projected, and InfoNCE compares them across the segments
    of all clips of the global batch. From the paper: segments that are compared with the frame of their time, and the
    temperature. Ours: all segments of a clip are compared, so that its other times are negatives, too (there, a clip
    gives one frame with its 4 s of sound); means of tokens take the place of global tokens; inputs are whole, not
    masked; a hierarchical encoder hears beyond a segment's edges.

    Args:
        segments: Parts K of a clip; None: as many as the coarser of both encoders has steps in time.
        temperature: What cosine similarities are divided by.
        audio_weight: Weight of audio segments that look for their frames; frames that look for their sound have 1 minus
            it. 0.5 is symmetric.
        other_times: Whether other times of the same file are negatives.
    """

    projection = Projection(time_bins=1)
    retrieves = True

    def __init__(
        self,
        segments: int | None = None,
        temperature: float = 0.05,
        audio_weight: float = 0.5,
        other_times: bool = True,
    ) -> None:
        super().__init__()
        if segments is not None and segments < 1:
            raise ValueError(f"align: segments must be at least 1, got {segments}")
        if not temperature > 0:
            raise ValueError(f"align: temperature must be above 0, got {temperature}")
        if not 0 <= audio_weight <= 1:
            raise ValueError(f"align: audio_weight must lie in [0, 1], got {audio_weight}")
        self.segments, self.temperature = segments, temperature
        self.audio_weight, self.other_times = audio_weight, other_times

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the segments of the local clips; the report has how often a segment finds its own, and K."""
        heard, seen = step.map_audio(_audio_by_time), step.map_video(_video_by_time)
        count = self.segments or min(heard.shape[1], seen.shape[1])
        heard = project_tokens(step, self, "audio", segment_means(heard, count))
        seen = project_tokens(step, self, "video", segment_means(seen, count))
        with torch.autocast(heard.device.type, enabled=False):
            heard, seen = unit(heard), unit(seen)
            by_audio, audio_found = segment_contrast(heard, seen, step, self.temperature, self.other_times)
            by_video, video_found = segment_contrast(seen, heard, step, self.temperature, self.other_times)
            loss = self.audio_weight * by_audio.mean() + (1 - self.audio_weight) * by_video.mean()
            accuracy = (audio_found.float().mean() + video_found.float().mean()) / 2
        return loss, {"accuracy": accuracy, "segments": torch.tensor(float(count))}


def _audio_by_time(encoder: nn.Module, spectrogram: Tensor) -> Tensor:
    return audio_grid(encoder, spectrogram).mean(dim=1)


def _video_by_time(encoder: nn.Module, frames: Tensor) -> Tensor:
    grid = encoder.forward_grid(frames, space=False)  # type: ignore[operator]  # a VideoEncoder
    return grid[:, :, 0, 0]
