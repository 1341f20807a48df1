"""How far a student's embeddings are from a momentum teacher's: BYOL, DINO, and InfoNCE."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from lightly.models.modules.center import Center
from lightly.utils.dist import rank
from torch import Tensor, nn

from avssl.objectives.gathering import gather_constant
from avssl.objectives.momentum import follow
from avssl.objectives.vectors import unit


class DistillLoss(nn.Module, ABC):
    """Loss of student rows against teacher rows, each the mean over the rows of this process."""

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, source: str, target: str) -> Tensor:
        """Scalar.

        Args:
            student: (B, D) embeddings of the modality ``source``, float32 or better.
            teacher: (B, D) embeddings of the modality ``target``, without gradient, of the same clips.
            source: audio or video.
            target: audio or video.
        """

    def observe(self, teacher: Mapping[str, Tensor]) -> None:
        """Called in training once a step, behind the losses, with all teacher rows (N, D) of each modality."""

    def after_step(self, step: int, max_steps: int) -> None:
        """See :meth:`avssl.objectives.Objective.after_step`."""


class ByolLoss(DistillLoss):
    """BYOL (Grill et al. 2020, eq. 2): ``2 - 2 cos(predictor(student), teacher)``.

    Each direction has a predictor, with layer norm for batch norm: it needs no statistics of other processes.

    Args:
        width: Size D of the embeddings.
        directions: (source, target) modalities that will be asked for.
        hidden: Width of the predictors' hidden layer.
    """

    def __init__(self, width: int, directions: Sequence[tuple[str, str]], hidden: int = 512) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"distill: hidden must be at least 1, got {hidden}")
        self.predictors = nn.ModuleDict(
            {
                f"{source}_to_{target}": nn.Sequential(
                    nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width)
                )
                for source, target in directions
            }
        )

    def forward(self, student: Tensor, teacher: Tensor, source: str, target: str) -> Tensor:
        """See :meth:`DistillLoss.forward`."""
        predicted = self.predictors[f"{source}_to_{target}"](student)
        return (2 - 2 * F.cosine_similarity(predicted, teacher)).mean()


class DinoLoss(DistillLoss):
    """DINO (Caron et al. 2021, eq. 1 and 4): cross-entropy between soft assignments to prototypes.

    Logits are cosine similarities to prototypes, as behind the weight-normalized last layer of DINO's head. The teacher
    has a moving average of the prototypes; its logits are centred, by a moving average for each modality, and
    sharpened. (lightly's DINOLoss pairs all views but equal ones, which does not fit pairs of modalities.)

    Args:
        width: Size D of the embeddings.
        directions: (source, target) modalities that will be asked for.
        prototypes: Their number K.
        temperature: Of the student.
        teacher_temperature: Of the teacher; below the student's sharpens.
        center_momentum: Momentum of the centres.
        momentum: Momentum of the teacher's prototypes at the beginning; it rises to 1 on a cosine.
    """

    def __init__(
        self,
        width: int,
        directions: Sequence[tuple[str, str]],
        prototypes: int = 4096,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        if prototypes < 2:
            raise ValueError(f"distill: prototypes must be at least 2, got {prototypes}")
        for name, value in {"temperature": temperature, "teacher_temperature": teacher_temperature}.items():
            if not value > 0:
                raise ValueError(f"distill: {name} must be above 0, got {value}")
        for name, value in {"center_momentum": center_momentum, "momentum": momentum}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"distill: {name} must lie in [0, 1], got {value}")
        self.temperature, self.teacher_temperature, self.momentum = temperature, teacher_temperature, momentum
        self.prototypes = nn.Parameter(unit(torch.randn(prototypes, width)))
        self.teacher_prototypes = nn.Parameter(self.prototypes.detach().clone(), requires_grad=False)
        targets = sorted({target for _, target in directions})
        self.centers = nn.ModuleDict({target: Center((1, prototypes), momentum=center_momentum) for target in targets})

    def no_weight_decay(self) -> set[str]:
        """Only the direction of a prototype counts."""
        return {"prototypes"}

    def forward(self, student: Tensor, teacher: Tensor, source: str, target: str) -> Tensor:
        """See :meth:`DistillLoss.forward`."""
        center: Tensor = self.centers[target].value  # type: ignore[assignment]  # a lightly Center
        wanted = ((self._teacher_logits(teacher) - center) / self.teacher_temperature).softmax(dim=1)
        return F.cross_entropy(unit(student) @ unit(self.prototypes).T / self.temperature, wanted)

    @torch.no_grad()
    def observe(self, teacher: Mapping[str, Tensor]) -> None:
        """Moves the centres to the mean logits of all processes."""
        for target, rows in teacher.items():
            self.centers[target].update(self._teacher_logits(rows))  # type: ignore[operator]  # a lightly Center

    def after_step(self, step: int, max_steps: int) -> None:
        """Moves the teacher's prototypes."""
        follow([self.teacher_prototypes], [self.prototypes], step, max_steps, self.momentum)

    def _teacher_logits(self, teacher: Tensor) -> Tensor:
        return unit(teacher) @ unit(self.teacher_prototypes).T


class ContrastiveLoss(DistillLoss):
    """InfoNCE (van den Oord et al. 2018, eq. 4) of student rows against the teacher's rows of all processes.

    Args:
        width: Size D of the embeddings.
        directions: (source, target) modalities that will be asked for.
        temperature: What cosine similarities are divided by.
    """

    def __init__(self, width: int, directions: Sequence[tuple[str, str]], temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"distill: temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, source: str, target: str) -> Tensor:
        """See :meth:`DistillLoss.forward`."""
        keys = gather_constant(unit(teacher))
        own = torch.arange(len(student), device=student.device) + rank() * len(student)
        return F.cross_entropy(unit(student) @ keys.T / self.temperature, own)
