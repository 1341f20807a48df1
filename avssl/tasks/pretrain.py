"""Pretraining: an audio-visual pair under a weighted sum of objectives."""

import copy
from collections.abc import Sequence

from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from avssl.data.batch import Batch
from avssl.models.pair import AudioVisualPair
from avssl.objectives import Objective
from avssl.tasks.step import Augmentation, PairStep


class PretrainTask(nn.Module):
    """Augments a batch, embeds it, and applies the objectives.

    Where an objective needs it, a momentum teacher follows the pair: after each optimizer step its weights are
    ``m * teacher + (1 - m) * student``, with m rising from ``teacher_momentum`` to 1 on a cosine (BYOL, Grill et al.
    2020).

    Args:
        pair: The model.
        objectives: (name, objective, weight) of each term.
        augmentation: Batched augmentation.
        clip_seconds: Length of a clip.
        chunk: Clips encoded at a time, for batches beyond memory; None encodes all at once.
        teacher_momentum: Momentum of the teacher at the beginning.
    """

    def __init__(
        self,
        pair: AudioVisualPair,
        objectives: Sequence[tuple[str, Objective, float]],
        augmentation: Augmentation,
        *,
        clip_seconds: float = 1.0,
        chunk: int | None = None,
        teacher_momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if not 0 <= teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum: must lie in [0, 1], got {teacher_momentum}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"optim.chunk: must be at least 1, got {chunk}")
        self.pair = pair
        self.names = _unique([name for name, _, _ in objectives])
        self.objectives = nn.ModuleList(objective for _, objective, _ in objectives)
        self.weights = [weight for _, _, weight in objectives]
        # Modules, so that train() and eval() reach them.
        self.wave, self.spectrogram, self.video = augmentation.wave, augmentation.spectrogram, augmentation.video
        self.clip_seconds, self.chunk, self.teacher_momentum = clip_seconds, chunk, teacher_momentum
        self.teacher: AudioVisualPair | None = None
        if any(objective.needs_teacher for _, objective, _ in objectives):
            self.teacher = copy.deepcopy(pair).requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by objective, whose sum is minimized, and scalars to log."""
        augmentation = Augmentation(self.wave, self.spectrogram, self.video)
        step = PairStep(self.pair, self.teacher, augmentation, batch, self.clip_seconds, self.chunk)
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for name, objective, weight in zip(self.names, self.objectives, self.weights, strict=True):
            loss, details = objective(step)
            losses[name] = weight * loss
            report |= {f"{name}/{key}": value for key, value in details.items()}
        return losses, report

    def after_step(self, step: int, max_steps: int) -> None:
        """Moves the teacher and lets objectives move what they keep; called after each optimizer step."""
        if self.teacher is not None:
            momentum = cosine_schedule(min(step, max_steps) - 1, max_steps, self.teacher_momentum, 1.0)
            update_momentum(self.pair, self.teacher, m=momentum)
        for objective in self.objectives:
            objective.after_step(step, max_steps)  # type: ignore[operator]  # ModuleList forgets the type


def _unique(names: list[str]) -> list[str]:
    """Numbers repeated names, so that two terms of one kind log two curves."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]
