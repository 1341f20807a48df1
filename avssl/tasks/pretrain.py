"""Pretraining: an audio-visual pair under a weighted sum of objectives."""

import copy
from collections.abc import Sequence

from torch import Tensor

from avssl.data.batch import Batch
from avssl.evaluation.diagnostics import diagnose
from avssl.models.pair import AudioVisualPair
from avssl.objectives import Objective, WeightedObjectives
from avssl.objectives.momentum import follow
from avssl.tasks.base import Task
from avssl.tasks.step import Augmentation, PairStep


class PretrainTask(Task):
    """Augments a batch, embeds it, and applies the objectives.

    Where an objective needs it, a momentum teacher follows the pair: after each optimizer step its weights are
    ``m * teacher + (1 - m) * student``, with m on a cosine between two values, by default those of the
    objective's paper.

    Args:
        pair: The model.
        objectives: (name, objective, weight) of each term.
        augmentation: Batched augmentation.
        clip_seconds: Length of a clip.
        files: (N,) int64, the number of the media file of each row of the training split; None: each has its own.
        chunk: Clips encoded at a time, for batches beyond memory; None encodes all at once.
        teacher_momentum: Momentum of the teacher at the beginning; None is the objectives' own.
        diagnose_every: Steps between diagnostics of the embeddings in the report: as often as it is logged.
    """

    def __init__(
        self,
        pair: AudioVisualPair,
        objectives: Sequence[tuple[str, Objective, float]],
        augmentation: Augmentation,
        *,
        clip_seconds: float = 1.0,
        files: Tensor | None = None,
        chunk: int | None = None,
        teacher_momentum: float | None = None,
        diagnose_every: int = 1,
    ) -> None:
        super().__init__()
        if teacher_momentum is not None and not 0 <= teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum: must lie in [0, 1], got {teacher_momentum}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"optim.chunk: must be at least 1, got {chunk}")
        if diagnose_every < 1:
            raise ValueError(f"log.every: must be at least 1, got {diagnose_every}")
        for name, objective, _ in objectives:
            if objective.projected_by is not None and objective.projected_by not in pair.projections:
                raise ValueError(
                    f"objectives: {name} compares the projection {objective.projected_by}, which the pair has not; it "
                    f"has {', '.join(pair.projections)}"
                )
        self.pair = pair
        self.objectives = WeightedObjectives(objectives)
        # Modules, so that train() and eval() reach them.
        self.wave, self.spectrogram, self.video = augmentation.wave, augmentation.spectrogram, augmentation.video
        self.clip_seconds, self.chunk = clip_seconds, chunk
        self.files: Tensor | None
        self.register_buffer("files", files, persistent=False)
        self.teacher_momentum = self.objectives.teacher_momentum(teacher_momentum)
        self.diagnose_every, self.diagnosing = diagnose_every, diagnose_every == 1
        self.teacher: AudioVisualPair | None = None
        if self.objectives.need_teacher:
            self.teacher = copy.deepcopy(pair).requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by objective, whose sum is minimized, and scalars to log."""
        augmentation = Augmentation(self.wave, self.spectrogram, self.video)
        step = PairStep(self.pair, self.teacher, augmentation, batch, self.clip_seconds, self.chunk, self.files)
        losses, report = self.objectives(step)
        if self.diagnosing:
            report |= self._diagnose(step)
        return losses, report

    @property
    def model(self) -> AudioVisualPair:
        """What is evaluated and exported."""
        return self.pair

    def after_step(self, step: int, max_steps: int) -> None:
        """Moves the teacher and lets objectives move what they keep; called after each optimizer step."""
        if self.teacher is not None:
            follow(self.teacher.parameters(), self.pair.parameters(), step, max_steps, *self.teacher_momentum)
        self.objectives.after_step(step, max_steps)
        self.plan(step, max_steps)

    def plan(self, step: int, max_steps: int) -> None:
        """Settles whether the step after ``step`` is diagnosed; to be called when a run is resumed at ``step``."""
        self.diagnosing = (step + 1) % self.diagnose_every == 0 or step + 1 == max_steps

    def _diagnose(self, step: PairStep) -> dict[str, Tensor]:
        """Alignment, uniformity and effective ranks of this process's view 0, of the modalities that were asked for."""
        (audio, audio_features), (video, video_features) = step.known("audio"), step.known("video")
        report = diagnose(audio, video, audio_features, video_features)
        return {f"diagnostics/{name}": value for name, value in report.items()}
