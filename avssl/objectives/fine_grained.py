"""Contrast finer than videos: of parts of a clip in time (Align, Segments) or space (Localize), and of times (Sync)."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor, nn

from avssl.augment.audio import random_units
from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import (
    audio_grid,
    gather_constant,
    gather_with_gradient,
    project_tokens,
    segment_contrast,
    segment_means,
    unit,
)

logger = logging.getLogger(__name__)


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


@register_objective("localize")
class Localize(Objective):
    """Multiple-instance contrast: a sound has to find its video by the place that fits it best.

    EZ-VSL (Mo and Morgado 2022, arXiv 2203.09324): the similarity of audio i and video j is the largest one over the
    places p of the video's grid, ``s_ij = max over p of cos(a_i, v_jp)``, and InfoNCE over the global batch takes
    ``s_ij`` over the temperature both ways. The loss is the mean of the two ways, theirs the sum. Ours: a place of a
    clip, which keeps its course in time, where EZ-VSL has one frame; a batch norm behind the linear projections, since
    our encoders begin at random and theirs at ImageNet's weights.

    ``evaluate --evaluations localization`` measures what is learned. Memory holds clips of the process x clips of the
    batch x places similarities.

    Args:
        temperature: What cosine similarities are divided by.
        audio_weight: Weight of sounds that look for their video; videos that look for their sound have 1 minus it.
    """

    projection = Projection(layers=1)
    retrieves = True

    def __init__(self, temperature: float = 0.03, audio_weight: float = 0.5) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"localize: temperature must be above 0, got {temperature}")
        if not 0 <= audio_weight <= 1:
            raise ValueError(f"localize: audio_weight must lie in [0, 1], got {audio_weight}")
        self.temperature, self.audio_weight = temperature, audio_weight

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the local clips.

        The report has how often a sound finds its video, and by how much the best place of a clip's own video is more
        similar to its sound than the mean of the places.
        """
        audio = step.project(self, "audio")
        places = project_tokens(step, self, "video", step.map_video(_by_place))
        with torch.autocast(audio.device.type, enabled=False):
            audio, places = unit(audio), unit(places)
            all_audio, all_places = gather_with_gradient(audio), gather_with_gradient(places)
            own = rank() * len(audio) + torch.arange(len(audio), device=audio.device)
            heard = torch.einsum("bd,npd->bnp", audio, all_places).amax(dim=2)
            seen = torch.einsum("bpd,nd->bnp", places, all_audio).amax(dim=2)
            by_audio = F.cross_entropy(heard / self.temperature, own)
            by_video = F.cross_entropy(seen / self.temperature, own)
            with torch.no_grad():
                maps = torch.einsum("bd,bpd->bp", audio, places)
                report = {
                    "accuracy": (heard.argmax(dim=1) == own).float().mean(),
                    "peak": (maps.amax(dim=1) - maps.mean(dim=1)).mean(),
                }
        return self.audio_weight * by_audio + (1 - self.audio_weight) * by_video, report


def _by_place(encoder: nn.Module, frames: Tensor) -> Tensor:
    """Tokens (b, P, V) of the places."""
    return encoder.forward_grid(frames, time=False).flatten(1, 3)  # type: ignore[operator]  # a VideoEncoder


@register_objective("sync")
class Sync(Objective):
    """Tells a clip from other times of the same video: hard negatives of AVTS (Korbar et al. 2018).

    For clip i with audio a_i and video v_i, N_i are the clips of its file whose span shares at most ``max_overlap`` of
    its length with that of i. The loss is InfoNCE over them (instead of AVTS's margin loss, eq. 1),
    ``-log exp(a_i v_i / t) / (exp(a_i v_i / t) + sum over j in N_i of exp(a_i v_j / t))``, and the same with audio and
    video swapped; it is the mean over both directions and all clips of the global batch whose N_i is not empty. A batch
    without any has loss 0.

    It tells nothing about different videos: add ``infonce`` for that.

    Args:
        temperature: What cosine similarities are divided by.
        max_overlap: Largest share of a clip that a negative may share with it; 0 takes disjoint spans only.
    """

    def __init__(self, temperature: float = 0.1, max_overlap: float = 0.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"sync: temperature must be above 0, got {temperature}")
        if not 0 <= max_overlap < 1:
            raise ValueError(f"sync: max_overlap must lie in [0, 1), got {max_overlap}")
        self.temperature, self.max_overlap = temperature, max_overlap
        self._warned = False

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch.

        The report has the share of clips that have negatives, how many these have, and how often their own clip is
        nearest among them (mean of both directions).
        """
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = gather_with_gradient(unit(joint_audio)), gather_with_gradient(unit(joint_video))
            file = gather_constant(step.file.to(audio.device))
            start = gather_constant(step.start.to(audio.device))
            negative = self._negatives(file, start, step.seconds)
            own = torch.eye(len(audio), dtype=torch.bool, device=audio.device)
            logits = (audio @ video.T / self.temperature).masked_fill(~(negative | own), -torch.inf)
            target = torch.arange(len(audio), device=audio.device)
            # A clip without negatives adds exactly 0: its softmax has one entry.
            losses = [F.cross_entropy(rows, target, reduction="sum") for rows in (logits, logits.T)]
            contrasted = negative.any(dim=1)
            count = contrasted.sum()
            loss = (losses[0] + losses[1]) / (2 * count.clamp_min(1))
        if not self._warned and not count:
            self._warned = True
            if rank() == 0:
                logger.warning(
                    "sync: no clip of this batch has another time of its video to be told from; "
                    "set data.train_clips to at least 2 (in videos long enough for spans that differ)"
                )
        with torch.no_grad():
            nearest = [(rows.argmax(dim=1) == target) & contrasted for rows in (logits, logits.T)]
            report = {
                "clips": contrasted.float().mean(),
                "negatives": negative.sum() / count.clamp_min(1),
                "accuracy": (nearest[0].sum() + nearest[1].sum()) / (2 * count.clamp_min(1)),
            }
        return loss, report

    def _negatives(self, file: Tensor, start: Tensor, seconds: float) -> Tensor:
        """(N, N) bool, symmetric: the clips of ``file`` (N,) and ``start`` (N,) in s that may be contrasted."""
        overlap = (1 - (start[:, None] - start).abs() / seconds).clamp_min(0)
        # Starts are sums of floats: spans that touch may seem to overlap by a rounding error.
        return (file[:, None] == file) & (overlap <= self.max_overlap + 1e-6)
