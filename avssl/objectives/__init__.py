"""Audio-visual objectives: a file for each idea, one interface, found by name.

Every module of this package is imported here, so that its ``register_objective`` takes effect: a new objective is one
new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from avssl.objectives.base import (
    Objective,
    Shapes,
    Step,
    create_objective,
    list_objectives,
    register_objective,
)
from avssl.objectives.terms import WeightedObjectives, create_objectives, projections_of

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Objective",
    "Shapes",
    "Step",
    "WeightedObjectives",
    "create_objective",
    "create_objectives",
    "list_objectives",
    "projections_of",
    "register_objective",
]
