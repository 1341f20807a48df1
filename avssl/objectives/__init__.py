"""Audio-visual objectives: one small file each, one interface, found by name."""

from avssl.objectives.base import Objective, PairOutput, create_objective, list_objectives, register_objective
from avssl.objectives.infonce import InfoNCE

__all__ = ["InfoNCE", "Objective", "PairOutput", "create_objective", "list_objectives", "register_objective"]
