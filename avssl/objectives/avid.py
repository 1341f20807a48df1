"""Instance discrimination with memory banks: AVID, and CMA, which finds further positives."""

import logging
from typing import Any, ClassVar

import torch
from lightly.utils.dist import rank
from torch import Tensor

from avssl.objectives.banks import MemoryBank, check_rows, draw_rows
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import NCE, gather_constant, unit


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


logger = logging.getLogger(__name__)


def agreeing_rows(
    audio: Tensor, video: Tensor, count: int, visited: Tensor | None = None, cells: int = 2**24
) -> Tensor:
    """The rows that each row agrees with most, by ear and by eye (Morgado et al. 2021, eq. 5 and 6).

    The agreement of two rows is the smaller of their audio and their video similarity.

    Args:
        audio: (N, D) L2-normalized audio embeddings.
        video: (N, D) L2-normalized video embeddings.
        count: Rows P that are wanted, below the number of visited ones.
        visited: (N,) bool, the rows whose embeddings are of a clip; None is all of them.
        cells: Agreements held in memory at a time; at least those of one row are.

    Returns:
        (N, P) rows, the best first, never the row itself and visited ones only; -1 for a row that was not visited.
    """
    size = len(audio)
    rows = torch.arange(size, device=audio.device) if visited is None else visited.nonzero()[:, 0]
    found = torch.full((size, count), -1, device=audio.device)
    audio, video = audio[rows], video[rows]
    for first in range(0, len(rows), max(1, cells // len(rows))):
        chunk = torch.arange(first, min(first + max(1, cells // len(rows)), len(rows)), device=audio.device)
        agreement = torch.minimum(audio[chunk] @ audio.T, video[chunk] @ video.T)
        agreement[torch.arange(len(chunk), device=audio.device), chunk] = -torch.inf
        found[rows[chunk]] = rows[agreement.topk(count, dim=1).indices]
    return found


@register_objective("cma")
class CMA(AVID):
    """AVID whose clips also attract, within each modality, the clips that look and sound like them.

    Morgado, Vasconcelos and Misra 2021, section 3.3. It is AVID alone for ``warmup`` epochs, and until a share of
    ``coverage`` of the rows was visited: a row that was not has a random vector in the banks. Then, and every
    ``refresh`` epochs from then on, the visited rows with the highest agreement in both banks become the positives P_i
    of row i. The loss is ``L_cross + agreement_weight * L_within``: AVID's cross-modal loss, and the noise-contrastive
    loss of audio to audio and of video to video, averaged over P_i. Rows in P_i are negatives in neither. A row that
    was visited after the last search has no positives before the next one.

    An epoch is as many clips as there are rows; of several clips of a row in one batch one counts. The paper trains
    AVID for 40 epochs and CMA for 40 more, each of 5 clips of every video, and searches anew every 10.

    Args:
        dim: Width of its projection.
        clips: Rows of the training split.
        positives: Rows in P_i.
        warmup: Epochs of AVID alone, in which the banks become meaningful.
        refresh: Epochs between searches for positives.
        coverage: Share of the rows that are to be visited before the first search.
        agreement_weight: Weight of the within-modal loss; the paper's lambda.
        negatives: See :class:`AVID`.
        num_negatives_within: Rows that are negatives of the within-modal loss, drawn likewise; at most ``negatives``.
        temperature: See :class:`AVID`.
        bank_momentum: See :class:`AVID`.

    Attributes:
        positives: (clips, P) rows; -1 where there are none.
        visited: (clips,) whether a row has an embedding of a clip in the banks.
        taken: Clips taken in so far, of all processes.
        searched: Clips that were taken in at the last search; -1 before the first.
    """

    name: ClassVar[str] = "cma"
    positives: Tensor
    visited: Tensor
    taken: Tensor
    searched: Tensor

    def __init__(
        self,
        dim: int,
        clips: int,
        positives: int = 32,
        warmup: float = 40,
        refresh: float = 10,
        coverage: float = 0.9,
        agreement_weight: float = 1.0,
        negatives: int = 1024,
        num_negatives_within: int = 64,
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
    ) -> None:
        super().__init__(dim, clips, negatives, temperature, bank_momentum)
        if not 1 <= positives <= clips - 2:
            raise ValueError(
                f"cma: positives must lie in [1, {clips - 2}], which leaves a negative among {clips} training clips, "
                f"got {positives}"
            )
        for name, epochs in (("warmup", warmup), ("refresh", refresh)):
            if not epochs > 0:
                raise ValueError(f"cma: {name} must be above 0 epochs, got {epochs}")
        if not 0 < coverage <= 1:
            raise ValueError(f"cma: coverage must lie in (0, 1], got {coverage}")
        if not agreement_weight >= 0:
            raise ValueError(f"cma: agreement_weight must be at least 0, got {agreement_weight}")
        if num_negatives_within < 1:
            raise ValueError(f"cma: num_negatives_within must be at least 1, got {num_negatives_within}")
        self.warmup, self.refresh, self.coverage = warmup, refresh, coverage
        self.agreement_weight, self.num_negatives_within = agreement_weight, num_negatives_within
        self.register_buffer("positives", torch.full((clips, positives), -1))
        self.register_buffer("visited", torch.zeros(clips, dtype=torch.bool))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.register_buffer("searched", torch.tensor(-1))

    @property
    def found(self) -> bool:
        """Whether positives were searched for already."""
        return bool(self.searched >= 0)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`AVID.forward`; the report also has the share of visited rows."""
        loss, report = super().forward(step)
        if self.training:
            rows = gather_constant(step.index).unique()
            self.visited[rows] = True
            self.taken += len(rows)
        return loss, report | {"visited": self.visited.float().mean()}

    def excluded(self, index: Tensor) -> Tensor:
        """See :meth:`AVID.excluded`; positives are no negatives."""
        own = super().excluded(index)
        if not self.found:
            return own
        positives = self.positives[index]
        # All clips have as many negatives: in place of positives, the next rows are left out of the draw.
        others = (own + 1 + torch.arange(positives.shape[1], device=index.device)) % self.clips
        return torch.cat([own, torch.where(positives >= 0, positives, others)], dim=1)

    def contrast(
        self, audio: Tensor, video: Tensor, index: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`AVID.contrast`; the report also has the within-modal loss, once there is one."""
        loss, report = super().contrast(audio, video, index, negatives)
        if not self.found:
            return loss, report
        agreeing, some = self.positives[index], negatives
        if (
            negatives.shape[1] > self.num_negatives_within
        ):  # drawn: of all rows, in their order, the first are no sample
            some = draw_rows(self.excluded(index), self.clips, self.num_negatives_within)
        # Mean over the clips of this process, where one without positives adds 0: over all processes it is the same.
        has = (agreeing[:, 0] >= 0).nonzero()[:, 0]
        losses = []
        for queries, bank in ((audio, self.audio_bank), (video, self.video_bank)):
            similar, different = self.scores(queries, bank, agreeing.clamp_min(0)), self.scores(queries, bank, some)
            partition = self.nce.partition(different)
            share = len(has) / len(index)
            losses.append(
                share * self.nce.loss(similar[has], different[has], partition) if share else 0 * similar.sum()
            )
        within = torch.stack(losses).mean()
        return loss + self.agreement_weight * within, report | {"agreement_loss": within.detach()}

    def after_step(self, step: int, max_steps: int) -> None:
        """Searches for positives when it is time to; warns of a run that is over before."""
        taken = int(self.taken)
        if self.found:
            due = taken - int(self.searched) >= self.refresh * self.clips
        else:
            due = taken >= self.warmup * self.clips and int(self.visited.sum()) >= self.coverage * self.clips
        if due and int(self.visited.sum()) > self.positives.shape[1]:
            # The banks are equal on all processes, and so is what each finds.
            count = self.positives.shape[1]
            self.positives.copy_(agreeing_rows(self.audio_bank.entries, self.video_bank.entries, count, self.visited))
            self.searched.fill_(taken)
        if step == max_steps and not self.found and rank() == 0:
            logger.warning(
                "cma: was AVID alone: no positives were searched for in %.3g epochs that visited %.0f %% of the rows; "
                "lower warmup (%g epochs) or coverage (%g)",
                *(taken / self.clips, 100 * self.visited.float().mean().item(), self.warmup, self.coverage),
            )
