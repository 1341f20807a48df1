"""Distillation from the momentum teacher."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.distill_losses import ByolLoss, ContrastiveLoss, DinoLoss, DistillLoss
from avssl.objectives.modalities import parse_modality
from avssl.objectives.vectors import precise, unit

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
            :class:`~avssl.objectives.distill_losses.ByolLoss` (hidden),
            :class:`~avssl.objectives.distill_losses.DinoLoss` (prototypes, temperature, teacher_temperature,
            center_momentum, momentum), or :class:`~avssl.objectives.distill_losses.ContrastiveLoss` (temperature).
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
