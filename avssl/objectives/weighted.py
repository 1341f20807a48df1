"""The weighted sum of objectives that a task minimizes."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from avssl.models.projection import Projection
from avssl.objectives.base import Objective, Step
from avssl.objectives.terms import numbered


def projections_of(terms: Sequence[tuple[str, Objective, float]]) -> dict[str, Projection]:
    """The projections that the objectives of ``terms`` compare, by name."""
    return {
        objective.projected_by: objective.projection
        for _, objective, _ in terms
        if objective.projected_by is not None and objective.projection is not None
    }


class WeightedObjectives(nn.ModuleList):
    """Objectives with their names and weights. Repeated names are numbered, so that each logs a curve of its own.

    Args:
        terms: (name, objective, weight) of each.
    """

    def __init__(self, terms: Sequence[tuple[str, Objective, float]]) -> None:
        super().__init__(objective for _, objective, _ in terms)
        self.names = numbered([name for name, _, _ in terms])
        self.weights = [weight for _, _, weight in terms]

    def __iter__(self) -> Iterator[Objective]:  # type: ignore[override]  # ModuleList forgets the type
        return super().__iter__()  # type: ignore[return-value]

    @property
    def need_teacher(self) -> bool:
        """Whether one of them learns from a momentum teacher."""
        return bool(self._taught())

    def teacher_momentum(self, given: float | None) -> tuple[float, float]:
        """Momentum of the teacher at the first step and at the last: ``given``, else the objectives' own, at first.

        Raises:
            ValueError: nothing is given, and their own differ.
        """
        own = {objective.teacher_momentum: name for name, objective in self._taught()}
        if given is not None:
            rises = any(last == 1.0 for _, last in own)
            return given, 1.0 if rises else given
        if len(own) > 1:
            told = ", ".join(f"{name} {first:g} to {last:g}" for (first, last), name in own.items())
            raise ValueError(
                f"teacher_momentum: the objectives' own differ ({told}), and there is one teacher; give it"
            )
        return next(iter(own), (1.0, 1.0))

    def _taught(self) -> list[tuple[str, Objective]]:
        return [(name, objective) for name, objective in zip(self.names, self, strict=True) if objective.needs_teacher]

    def forward(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by name, and what all report."""
        losses: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for name, objective, weight in zip(self.names, self, self.weights, strict=True):
            loss, details = objective(step)
            losses[name] = weight * loss
            report |= {f"{name}/{key}": value for key, value in details.items()}
        return losses, report

    def after_step(self, step: int, max_steps: int) -> None:
        """Tells all that an optimizer step was taken."""
        for objective in self:
            objective.after_step(step, max_steps)
