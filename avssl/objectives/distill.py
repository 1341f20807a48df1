"""Distillation from the momentum teacher."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.center import Center
from lightly.utils.dist import rank
from torch import Tensor, nn

from avssl.objectives.banks import follow
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import gather_constant, parse_modality, precise, unit


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


_LOSSES: dict[str, type[DistillLoss]] = {"byol": ByolLoss, "dino": DinoLoss, "contrastive": ContrastiveLoss}
_OTHER = {"audio": "video", "video": "audio"}


@register_objective("distill")
class Distill(Objective):
    """The student predicts the momentum teacher: of the other modality, or of another view (BYOL, DINO, InfoNCE).

    Across modalities the student of view 0 predicts the teacher of view 0; within one, the student of view 1 predicts
    the teacher of view 0. ``symmetric`` adds the same with the views swapped. The loss is the mean over all of these.

    ``{loss: contrastive, between: within, modality: audio, symmetric: true, patch_drop: 0.1}`` is SS-MAST (Ghosh et al.
    2022, arXiv 2211.01515; the rate is the default of its authors' code): the student sees what patch-drop leaves, the
    teacher all of it.

    The teacher's momentum is that of BYOL and DINO, 0.996 rising to 1; the config's ``teacher_momentum`` sets another,
    which runs of a few hundred steps need.

    Args:
        shapes: Sizes of the embeddings.
        loss: byol, dino or contrastive; further options are those of
            :class:`~avssl.objectives.distill.ByolLoss` (hidden),
            :class:`~avssl.objectives.distill.DinoLoss` (prototypes, temperature, teacher_temperature,
            center_momentum, momentum), or :class:`~avssl.objectives.distill.ContrastiveLoss` (temperature).
        between: What the teacher sees of the clip: cross, the other modality; within, the same; or both in turn.
        modality: Which student learns: audio, video or both.
        symmetric: Swap the views, too: twice the encoding.
        patch_drop: Share of the spectrogram's units that are blanked for the student.
    """

    needs_teacher = True

    def __init__(
        self,
        shapes: Shapes,
        loss: str = "byol",
        between: str = "cross",
        modality: str = "both",
        symmetric: bool = False,
        patch_drop: float = 0.0,
        **loss_options: Any,
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"distill: loss must be byol, dino or contrastive, got {loss!r}")
        if between not in ("cross", "within", "both"):
            raise ValueError(f"distill: between must be cross, within or both, got {between!r}")
        students = parse_modality("distill", modality)
        if not 0 <= patch_drop < 1:
            raise ValueError(f"distill: patch_drop must lie in [0, 1), got {patch_drop}")
        if patch_drop and modality == "video":
            raise ValueError(f"distill: patch_drop is for the audio student; modality video has none, got {patch_drop}")
        self.patch_drop, self.symmetric = patch_drop, symmetric
        self.directions: list[tuple[str, str]] = []
        if between != "within":
            self.directions += [(source, _OTHER[source]) for source in students]
        if between != "cross":
            self.directions += [(source, source) for source in students]
        self.loss = _LOSSES[loss](shapes.joint, self.directions, **loss_options)

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "Distill":
        """See the class."""
        return cls(shapes, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the directions and views.

        The report has each direction's loss, and each modality's spread of the teacher's embeddings on the unit sphere:
        1 for evenly spread ones, 0 for collapsed ones.
        """
        losses: dict[str, list[Tensor]] = defaultdict(list)
        teachers: dict[tuple[str, int], Tensor] = {}
        for source, target in self.directions:
            for view in (0, 1) if self.symmetric else (0,):
                teacher = teachers[target, view] = precise(step.project(self, target, view, teacher=True))
                seen, dropped = 1 - view if source == target else view, self.patch_drop if source == "audio" else 0.0
                student = precise(step.project(self, source, seen, patch_drop=dropped))
                with torch.autocast(student.device.type, enabled=False):
                    losses[f"{source}_to_{target}"].append(self.loss(student, teacher, source, target))
        by_modality = {
            target: torch.cat([rows for (modality, _), rows in teachers.items() if modality == target])
            for target in sorted({target for _, target in self.directions})
        }
        with torch.autocast(student.device.type, enabled=False), torch.no_grad():
            if self.training:
                self.loss.observe(by_modality)
            report = {name: torch.stack(parts).mean().detach() for name, parts in losses.items()}
            report |= {f"{target}_spread": spread(rows) for target, rows in by_modality.items()}
        return torch.stack([loss for parts in losses.values() for loss in parts]).mean(), report

    def after_step(self, step: int, max_steps: int) -> None:
        """Lets the loss move what it keeps."""
        self.loss.after_step(step, max_steps)


def spread(rows: Tensor) -> Tensor:
    """Standard deviation of L2-normalized ``rows`` (N, D) by dimension, relative to that on the whole sphere."""
    return unit(rows).std(dim=0, correction=0).mean() * rows.shape[1] ** 0.5
