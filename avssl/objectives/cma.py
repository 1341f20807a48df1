"""Audio-visual instance discrimination with cross-modal agreement."""

from typing import ClassVar

import torch
from torch import Tensor

from avssl.objectives.avid import AVID
from avssl.objectives.base import register_objective


def agreeing_rows(audio: Tensor, video: Tensor, count: int, cells: int = 2**24) -> Tensor:
    """The rows that each row agrees with most, by ear and by eye (Morgado et al. 2021, eq. 5 and 6).

    The agreement of two rows is the smaller of their audio and their video similarity.

    Args:
        audio: (N, D) L2-normalized audio embeddings.
        video: (N, D) L2-normalized video embeddings.
        count: Rows P that are wanted, below N.
        cells: Agreements held in memory at a time; at least those of one row are.

    Returns:
        (N, P) rows, the best first, never the row itself.
    """
    size = len(audio)
    found = []
    for first in range(0, size, max(1, cells // size)):
        chunk = torch.arange(first, min(first + max(1, cells // size), size), device=audio.device)
        agreement = torch.minimum(audio[chunk] @ audio.T, video[chunk] @ video.T)
        agreement[torch.arange(len(chunk), device=audio.device), chunk] = -torch.inf
        found.append(agreement.topk(count, dim=1).indices)
    return torch.cat(found)


@register_objective("cma")
class CMA(AVID):
    """AVID whose clips also attract, within each modality, the clips that look and sound like them.

    Morgado, Vasconcelos and Misra 2021, section 3.3. After ``warmup`` optimizer steps and every ``refresh`` steps from
    then on, the rows with the highest agreement in both banks become the positives P_i of row i. The loss is then
    ``L_cross + agreement_weight * L_within``: AVID's cross-modal loss, and the noise-contrastive loss of audio to audio
    and of video to video, averaged over P_i. Rows in P_i are negatives in neither.

    Args:
        dim: Width of its projection.
        clips: Rows of the training split.
        positives: Rows in P_i.
        warmup: Optimizer steps of AVID alone, in which the banks become meaningful.
        refresh: Optimizer steps between searches for positives.
        agreement_weight: Weight of the within-modal loss; the paper's lambda.
        negatives: See :class:`AVID`.
        temperature: See :class:`AVID`.
        bank_momentum: See :class:`AVID`.

    Attributes:
        positives: (clips, P) rows; -1 before the first search.
    """

    name: ClassVar[str] = "cma"
    positives: Tensor

    def __init__(
        self,
        dim: int,
        clips: int,
        positives: int = 32,
        warmup: int = 1000,
        refresh: int = 1000,
        agreement_weight: float = 1.0,
        negatives: int = 1024,
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
    ) -> None:
        super().__init__(dim, clips, negatives, temperature, bank_momentum)
        if not 1 <= positives <= clips - 2:
            raise ValueError(
                f"cma: positives must lie in [1, {clips - 2}], which leaves a negative among {clips} training clips, "
                f"got {positives}"
            )
        if warmup < 1:
            raise ValueError(f"cma: warmup must be at least 1, got {warmup}")
        if refresh < 1:
            raise ValueError(f"cma: refresh must be at least 1, got {refresh}")
        if not agreement_weight >= 0:
            raise ValueError(f"cma: agreement_weight must be at least 0, got {agreement_weight}")
        self.warmup, self.refresh, self.agreement_weight = warmup, refresh, agreement_weight
        self.register_buffer("positives", torch.full((clips, positives), -1))

    @property
    def found(self) -> bool:
        """Whether positives were searched for already."""
        return bool(self.positives[0, 0] >= 0)

    def excluded(self, index: Tensor) -> Tensor:
        """See :meth:`AVID.excluded`; positives are no negatives."""
        own = super().excluded(index)
        return torch.cat([own, self.positives[index]], dim=1) if self.found else own

    def contrast(
        self, audio: Tensor, video: Tensor, index: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`AVID.contrast`; the report also has the within-modal loss, once there is one."""
        loss, report = super().contrast(audio, video, index, negatives)
        if not self.found:
            return loss, report
        agreeing = self.positives[index]
        losses = []
        for queries, bank in ((audio, self.audio_bank), (video, self.video_bank)):
            similar, different = self.scores(queries, bank, agreeing), self.scores(queries, bank, negatives)
            losses.append(self.nce.loss(similar, different, self.nce.partition(different)))
        within = torch.stack(losses).mean()
        return loss + self.agreement_weight * within, report | {"agreement_loss": within.detach()}

    def after_step(self, step: int, max_steps: int) -> None:
        """Searches for positives when it is time to."""
        if step >= self.warmup and (step - self.warmup) % self.refresh == 0:
            # The banks are equal on all processes, and so is what each finds.
            self.positives.copy_(
                agreeing_rows(self.audio_bank.entries, self.video_bank.entries, self.positives.shape[1])
            )
