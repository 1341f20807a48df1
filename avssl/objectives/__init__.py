"""Audio-visual objectives: one small file each, one interface, found by name.

Every module of this package is imported here, so that its ``register_objective`` takes effect: a new objective is one
new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from avssl.objectives.base import (
    Embedding,
    Objective,
    Shapes,
    Step,
    create_objective,
    list_objectives,
    register_objective,
)
from avssl.objectives.weighted import WeightedObjectives

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Embedding",
    "Objective",
    "Shapes",
    "Step",
    "WeightedObjectives",
    "create_objective",
    "list_objectives",
    "register_objective",
]
