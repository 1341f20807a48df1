"""Audio-visual objectives: one small file each, one interface, found by name."""

from avssl.objectives.base import (
    Embedding,
    Objective,
    Shapes,
    Step,
    create_objective,
    list_objectives,
    register_objective,
)
from avssl.objectives.infonce import InfoNCE

__all__ = [
    "Embedding",
    "InfoNCE",
    "Objective",
    "Shapes",
    "Step",
    "create_objective",
    "list_objectives",
    "register_objective",
]
