"""Contrast of parts of a clip in time: between the modalities (Align), and of two views of the sound (Segments)."""

from typing import Any

import torch
from torch import Tensor, nn

from avssl.augment.spectrogram import random_units
from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import audio_grid, project_tokens, segment_contrast, segment_means, unit


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


@register_objective("segments")
class Segments(Objective):
    """Masked audio segments: what is hidden for a while is to be told from all other segments.

    After AVT (Zhu 2024, arXiv 2401.04154), whose masked audio segment loss is to learn "semantic audio activities". No
    code of it is public, and this formula is ours: of K equal parts of a clip a share is hidden, all frequencies at
    once. The tokens at a hidden part, which have only the rest of the clip to tell it by, have to find those that the
    same encoder has of that part when it hears the whole, among all parts of all clips of the global batch, by InfoNCE.
    Both are projected by the one audio head, and both get gradients.

    Args:
        shapes: Sizes of the features, and of a token in the spectrogram.
        count: Parts K of a clip; at most the audio encoder's steps in time.
        share: Share of them that is hidden in each clip.
        temperature: What cosine similarities are divided by.
        other_times: Whether other times of the same file are negatives.
    """

    projection = Projection(time_bins=1)
    trains = ("audio",)

    def __init__(
        self,
        shapes: Shapes,
        count: int = 4,
        share: float = 0.5,
        temperature: float = 0.1,
        other_times: bool = True,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"segments: count must be at least 1, got {count}")
        if not 0 < share <= 1 or not round(share * count):
            raise ValueError(f"segments: share must lie in (0, 1] and hide at least one of {count} parts, got {share}")
        if not temperature > 0:
            raise ValueError(f"segments: temperature must be above 0, got {temperature}")
        self.count, self.share, self.temperature, self.other_times = count, share, temperature, other_times
        self.stride = shapes.audio_stride
        # Stands for the hidden parts, in front of the encoder. Not constant: layer norms would enlarge its gradient.
        self.pattern = nn.Parameter(torch.empty(shapes.audio_stride).normal_(std=0.02))

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Segments":
        """See the class."""
        return cls(shapes, **options)

    def no_weight_decay(self) -> set[str]:
        """The pattern is an input, not a weight."""
        return {"pattern"}

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the hidden parts of the local clips; the report has how often one is found, and their share."""
        both = step.map_audio(self._encode)  # (B, K, 2 A + 1)
        width = (both.shape[2] - 1) // 2
        guessed, heard, hidden = both.split([width, width, 1], dim=2)
        guessed, heard = project_tokens(step, self, "audio", torch.cat([guessed, heard])).chunk(2)
        with torch.autocast(heard.device.type, enabled=False):
            loss, found = segment_contrast(unit(guessed), unit(heard), step, self.temperature, self.other_times)
            weight = hidden[..., 0].detach().to(loss.dtype)
            report = {"accuracy": (found * weight).sum() / weight.sum(), "share": weight.mean()}
            return (loss * weight).sum() / weight.sum(), report

    def _encode(self, encoder: nn.Module, spectrogram: Tensor) -> Tensor:
        """Means of the tokens of each part (b, K, A) with parts hidden and without, and which were, (b, K, 2 A + 1)."""
        heard = audio_grid(encoder, spectrogram).mean(dim=1)
        steps = heard.shape[1]
        whole = segment_means(heard, self.count)
        hidden = random_units(whole.new_empty(len(whole), 1, self.count), self.share, (1, 1))[:, 0]
        guessed = segment_means(audio_grid(encoder, self._hide(spectrogram, hidden, steps)).mean(dim=1), self.count)
        return torch.cat([guessed, whole, hidden[..., None].to(whole.dtype)], dim=2)

    def _hide(self, spectrogram: Tensor, hidden: Tensor, steps: int) -> Tensor:
        """The pattern in place of the parts (b, K) that are hidden, of an encoder with so many steps in time."""
        mels, frames = spectrogram.shape[-2:]
        step_of_frame = (torch.arange(frames, device=spectrogram.device) // self.stride[1]).clamp_max(steps - 1)
        edges = torch.tensor([part * steps // self.count for part in range(1, self.count)], device=spectrogram.device)
        part_of_frame = torch.bucketize(step_of_frame, edges, right=True)
        pattern = self.pattern.repeat(-(-mels // self.stride[0]), -(-frames // self.stride[1]))[:mels, :frames]
        return torch.where(hidden[:, part_of_frame][:, None, None], pattern, spectrogram)
