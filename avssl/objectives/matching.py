"""Audio-video matching with hard negatives."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank, world_size
from torch import Tensor, nn

from avssl.models.fusion import BottleneckFusion
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import audio_grid, gather_constant, gather_with_gradient, unit

logger = logging.getLogger(__name__)


@register_objective("matching")
class Matching(Objective):
    """Audio-video matching: a fusion of both tells whether sound and picture are of one clip.

    As in AVT (Zhu 2024, arXiv 2401.04154), by ALBEF's image-text matching (Li et al. 2021, section 3.2), whose public
    code this follows: every clip gives its own pair, its sound with the video of another clip, and its video with the
    sound of another. The others are drawn from the global batch with the softmax of the contrastive similarity, so that
    those that are taken for the right one come often. The loss is the cross-entropy of two classes over all of these
    pairs. AVT fuses by bottleneck tokens: :class:`~avssl.models.fusion.BottleneckFusion` upon the grids of both
    encoders. Ours: clips of the same file are no negatives.

    Memory holds the grids of the whole batch, and fusions of three pairs for each clip of the process.

    The similarity is by this objective's projection, which no gradient reaches from here: share that of a contrastive
    term by ``projection: infonce``.

    Args:
        shapes: Sizes of the features.
        temperature: Of the softmax that negatives are drawn by.
        draw: Draw negatives; False takes the most similar.
        width, depth, heads, tokens: Of the fusion.
    """

    trains = ()

    def __init__(
        self,
        shapes: Shapes,
        temperature: float = 0.07,
        draw: bool = True,
        width: int = 256,
        depth: int = 2,
        heads: int = 4,
        tokens: int = 4,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"matching: temperature must be above 0, got {temperature}")
        self.temperature, self.draw = temperature, draw
        try:
            self.fusion = BottleneckFusion(
                shapes.audio, shapes.video, tokens=tokens, width=width, depth=depth, heads=heads
            )
        except ValueError as error:
            raise ValueError(str(error).replace("bottleneck.", "matching: ")) from error
        self.classifier = nn.Linear(width, 2)
        self._warned = False

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Matching":
        """See the class."""
        return cls(shapes, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the pairs of the global batch.

        The report has the accuracy over pairs that match and over those that do not, and how similar, by cosine, the
        negatives are.
        """
        self._warn()
        heard, seen = step.map_audio(audio_grid), step.map_video(_video_grid)
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        with torch.no_grad(), torch.autocast(heard.device.type, enabled=False):
            audio, video = unit(joint_audio), unit(joint_video)
            file = step.file.to(audio.device)
            other = file[:, None] != gather_constant(file)
            video_of, video_similarity = self.draw_negatives(audio @ gather_constant(video).T, other)
            audio_of, audio_similarity = self.draw_negatives(video @ gather_constant(audio).T, other)
            exists = other.any(dim=1)
            pairs = gather_constant((len(audio) + 2 * exists.sum())[None]).sum()  # of all processes
        own = rank() * len(audio) + torch.arange(len(audio), device=audio.device)
        all_heard, all_seen = gather_with_gradient(heard), gather_with_gradient(seen)
        sounds = torch.cat([own, own[exists], audio_of[exists]])
        videos = torch.cat([own, video_of[exists], own[exists]])
        logits = self.classifier(self.fusion(all_heard[sounds], all_seen[videos]))
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            truth = (sounds == videos).long()
            # Processes may have different numbers of pairs: their mean is to be that of all pairs.
            loss = F.cross_entropy(logits, truth, reduction="sum") * world_size() / pairs
        with torch.no_grad():
            right = (logits.argmax(dim=1) == truth).float()
            similar = torch.cat([video_similarity[exists], audio_similarity[exists]])
            report = {
                "positives_accuracy": right[truth == 1].mean(),
                "negatives_accuracy": right[truth == 0].mean().nan_to_num(),
                "negatives_similarity": similar.mean().nan_to_num(),
            }
        return loss, report

    def draw_negatives(self, similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """A column for each row of ``similarity`` (B, N), and its similarity; any where none is ``allowed``."""
        logits = (similarity / self.temperature).masked_fill(~allowed, -torch.inf)
        if self.draw:
            weights = torch.where(allowed.any(dim=1, keepdim=True), logits.softmax(dim=1), 1.0)
            columns = torch.multinomial(weights, 1)[:, 0]
        else:
            columns = logits.argmax(dim=1)
        return columns, similarity.gather(1, columns[:, None])[:, 0]

    def _warn(self) -> None:
        if not self._warned and (self.projected_by or "").startswith("matching") and rank() == 0:
            logger.warning(
                "matching: its negatives are chosen by a projection that nothing trains; give it that of a contrastive "
                "term, as in projection: infonce"
            )
        self._warned = True


def _video_grid(encoder: nn.Module, frames: Tensor) -> Tensor:
    return encoder.forward_grid(frames)  # type: ignore[operator]  # a VideoEncoder
