"""Multiple-instance contrast of a sound with the places of a picture."""

import torch
import torch.nn.functional as F
from lightly.utils.dist import rank
from torch import Tensor, nn

from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Step, register_objective
from avssl.objectives.functional import gather_with_gradient, project_tokens, unit


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
