"""The terms of a loss as a config states them: names, weights, options, projections, and their weighted sum."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from avssl.models.projection import Projection
from avssl.objectives.base import OBJECTIVES, Objective, Shapes, Step, create_objective
from avssl.objectives.functional import parse_modality

# Of a pair that no objective projects: its embeddings are those of a random map.
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        name: Name of the objective.
        label: The name that it logs under: numbered where several terms have the name.
        weight: Its weight.
        options: Keyword arguments of the objective.
        owner: Label of the term whose projection it compares: its own, or another's; None without any.
        projection: That projection; None without any.
    """

    name: str
    label: str
    weight: float
    options: dict[str, Any]
    owner: str | None
    projection: Projection | None


def numbered(names: Sequence[str]) -> list[str]:
    """``names``, of which repeated ones are numbered: infonce_1, infonce_2."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def read_terms(terms: Sequence[Mapping[str, Any]], embedding_dim: int) -> list[Term]:
    """The terms ``{name: ..., weight: ..., projection: ..., and the options of the objective}``.

    ``projection`` is a mapping of settings of :class:`Projection`, over those that the objective names itself, or the
    label of another term, whose projection is then shared.

    Args:
        terms: As the config has them.
        embedding_dim: Width of the projections that have none of their own.

    Raises:
        ValueError: a term without a name, a weight that is no number, an unknown objective, or a projection that
            cannot be made or shared.
    """
    for term in terms:
        if not isinstance(term.get("name"), str):
            raise ValueError(f"objectives: {dict(term)} has no name; write for example {{name: infonce, weight: 1.0}}")
    found: dict[str, Term] = {}
    for label, term in zip(numbered([term["name"] for term in terms]), terms, strict=True):
        options = dict(term)
        name, weight, given = options.pop("name"), options.pop("weight", 1.0), options.pop("projection", None)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"objectives: {name}: weight must be a number, got {weight!r}")
        own = OBJECTIVES.get(name).projection
        if own is None and given is not None:
            raise ValueError(f"objectives: {label}: has no projection to set; leave projection out")
        if own is None or isinstance(given, str):
            found[label] = Term(name, label, float(weight), options, given, None)
            continue
        found[label] = Term(name, label, float(weight), options, label, _settled(label, own, given, embedding_dim))
    for label, mine in found.items():
        if mine.owner is None or mine.projection is not None:
            continue
        other = found.get(mine.owner)
        if other is None or other.owner != other.label or other.projection is None:
            owners = [each.label for each in found.values() if each.projection and each.owner == each.label]
            raise ValueError(
                f"objectives: {label}: projection {mine.owner!r} is of no other term; those with their own: "
                f"{', '.join(owners) or 'none'}"
            )
        found[label] = replace(mine, projection=other.projection)
    return list(found.values())


def _settled(label: str, own: Projection, given: Any, embedding_dim: int) -> Projection:
    if not isinstance(given, Mapping | None):
        raise ValueError(f"objectives: {label}: projection must be settings or the name of a term, got {given!r}")
    known = [field.name for field in fields(Projection)]
    for key in given or {}:
        if key not in known:
            raise ValueError(f"objectives: {label}: projection has no {key!r}; it has {', '.join(known)}")
    try:
        projection = replace(own, **dict(given or {}))
    except ValueError as error:
        raise ValueError(f"objectives: {label}: {error}") from error
    return projection if projection.dim else replace(projection, dim=embedding_dim)


def own_projections(terms: Sequence[Term]) -> dict[str, Projection]:
    """The projections of ``terms`` by the label of the term that each belongs to."""
    return {term.label: term.projection for term in terms if term.projection and term.owner == term.label}


def trained_projections(terms: Sequence[Term]) -> list[str]:
    """The projections of which both heads, of audio and of video, get a gradient from ``terms``."""
    heads: dict[str, set[str]] = {}
    for term in terms:
        if term.owner is not None and term.weight:
            trains = set(OBJECTIVES.get(term.name).trains)
            if "modality" in term.options:
                trains &= set(parse_modality(term.name, term.options["modality"]))
            heads.setdefault(term.owner, set()).update(trains)
    return [owner for owner, trained in heads.items() if trained == {"audio", "video"}]


def retrieval_projection(terms: Sequence[Term], wanted: str | None = None) -> str:
    """The projection whose embeddings are compared in retrieval: the one of the term ``wanted``, else of the first
    that contrasts audio with video, else the first that is trained for both, else the first of all; ``UNTRAINED`` where
    there is none.

    Raises:
        ValueError: ``wanted`` is no term with a projection.
    """
    projected = {term.label: term for term in terms if term.owner is not None}
    if wanted is not None:
        if wanted not in projected:
            raise ValueError(
                f"retrieval: no objective {wanted!r} with a projection; there are {', '.join(projected) or 'none'}"
            )
        return str(projected[wanted].owner)
    trained = trained_projections(terms)
    contrasting = [term for term in projected.values() if OBJECTIVES.get(term.name).retrieves and term.weight]
    owners = [str(term.owner) for term in contrasting] + trained + [str(term.owner) for term in projected.values()]
    return next(iter(owners), UNTRAINED)


def create_objectives(terms: Sequence[Mapping[str, Any]], shapes: Shapes) -> list[tuple[str, Objective, float]]:
    """(name, objective, weight) of each term; see :func:`read_terms`.

    Args:
        terms: As the config has them.
        shapes: Sizes; ``joint`` is the width of projections that have none of their own.

    Raises:
        ValueError: see :func:`read_terms`; or an unknown option.
    """
    objectives = []
    for term in read_terms(terms, shapes.joint):
        joint = shapes.joint if term.projection is None else int(term.projection.dim or 0)
        objective = create_objective(term.name, replace(shapes, joint=joint), **term.options)
        objective.projected_by, objective.projection = term.owner, term.projection
        objectives.append((term.name, objective, term.weight))
    return objectives


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
