"""Audio-visual instance discrimination."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.gathering import gather_constant
from avssl.objectives.memory_bank import MemoryBank, check_rows, draw_rows
from avssl.objectives.nce import NCE
from avssl.objectives.vectors import unit


@register_objective("avid")
class AVID(Objective):
    """Cross-modal instance discrimination against memory banks of all training clips, by noise-contrastive estimation.

    Morgado, Vasconcelos and Misra 2021, section 3.2 (Cross-AVID): the audio of a clip has to tell the video of its own
    row in the bank from those of random other rows, and the reverse; the loss is the mean of both directions. Banks
    take in the batch of all processes after the loss was computed; see :class:`MemoryBank` and :class:`NCE`.

    Args:
        dim: Width of its projection.
        clips: Rows of the training split.
        negatives: Rows K drawn for each clip, uniformly and with replacement; where there are no more other rows than
            that, all of them are taken, and nothing is random.
        temperature: That cosine similarities are divided by.
        bank_momentum: Share of the old entry that an update of the banks keeps.
    """

    name: ClassVar[str] = "avid"
    retrieves = True

    def __init__(
        self, dim: int, clips: int, negatives: int = 1024, temperature: float = 0.07, bank_momentum: float = 0.5
    ) -> None:
        super().__init__()
        if clips < 2:
            raise ValueError(f"{self.name}: needs at least 2 training clips, got {clips}")
        if negatives < 1:
            raise ValueError(f"{self.name}: negatives must be at least 1, got {negatives}")
        if not temperature > 0:
            raise ValueError(f"{self.name}: temperature must be above 0, got {temperature}")
        if not 0 <= bank_momentum < 1:
            raise ValueError(f"{self.name}: bank_momentum must lie in [0, 1), got {bank_momentum}")
        self.clips, self.negatives, self.temperature = clips, negatives, temperature
        self.audio_bank = MemoryBank(clips, dim, bank_momentum, seed=0)
        self.video_bank = MemoryBank(clips, dim, bank_momentum, seed=1)
        self.nce = NCE()

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "AVID":
        """Banks have a row per training clip, as wide as the projection."""
        return cls(shapes.joint, shapes.clips, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of this process' clips; the report has the mean similarities and the constant Z.

        Raises:
            ValueError: when ``step.index`` is not below the number of training clips.
        """
        check_rows(step.index, self.clips, self.name)
        joint_audio, joint_video = (step.project(self, modality) for modality in ("audio", "video"))
        # Mixed precision would round similarities to about 3 digits: scores and losses stay in fp32 or better.
        with torch.autocast(joint_audio.device.type, enabled=False):
            audio, video = unit(joint_audio), unit(joint_video)
            negatives = draw_rows(self.excluded(step.index), self.clips, self.negatives)
            loss, report = self.contrast(audio, video, step.index, negatives)
        if self.training:
            rows = gather_constant(step.index)
            self.audio_bank.update(rows, gather_constant(audio))
            self.video_bank.update(rows, gather_constant(video))
        return loss, report

    def excluded(self, index: Tensor) -> Tensor:
        """(B, E) rows that are no negatives of the clips of rows ``index`` (B,)."""
        return index[:, None]

    def contrast(
        self, audio: Tensor, video: Tensor, index: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report.

        Args:
            audio: (B, D) L2-normalized.
            video: (B, D) L2-normalized.
            index: (B,) rows of the clips.
            negatives: (B, K) rows of their negatives.
        """
        own = index[:, None]
        to_video, not_video = self.scores(audio, self.video_bank, own), self.scores(audio, self.video_bank, negatives)
        to_audio, not_audio = self.scores(video, self.audio_bank, own), self.scores(video, self.audio_bank, negatives)
        log_partition = self.nce.partition(torch.stack([not_video, not_audio]))
        audio_loss = self.nce.loss(to_video, not_video, log_partition)
        video_loss = self.nce.loss(to_audio, not_audio, log_partition)
        with torch.no_grad():
            report = {
                "positive_similarity": self.temperature * (to_video.mean() + to_audio.mean()) / 2,
                "negative_similarity": self.temperature * (not_video.mean() + not_audio.mean()) / 2,
                "partition": log_partition.exp(),
            }
        return (audio_loss + video_loss) / 2, report

    def scores(self, queries: Tensor, bank: MemoryBank, rows: Tensor) -> Tensor:
        """(B, K) similarities of ``queries`` (B, D) and the bank's ``rows`` (B, K), over the temperature."""
        return torch.einsum("bd,bkd->bk", queries, bank.entries[rows].to(queries.dtype)) / self.temperature
