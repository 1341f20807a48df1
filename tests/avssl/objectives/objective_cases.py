"""One case of every objective for the tests that hold for all: several processes, gradient caching, exact resume.

The options make it deterministic: no random negatives or masks, whose draws are of one process.
"""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "infonce": {},
    "distill": {"loss": "dino", "between": "both", "symmetric": True, "prototypes": 8, "momentum": 0.9},
    "masked": {"modality": "both", "share": 1.0, "cube": [2, 8, 8], "hidden": 8},
    "sync": {},
    "siglip": {"chunk": 3},
    "ntxent": {},
    "barlow": {},
    "vicreg": {},
    "avc": {},
    "imc": {},
    "moco": {"queue": 12},
    "avid": {"negatives": 15},
    "cma": {"negatives": 15, "positives": 3, "warmup": 0.25, "refresh": 0.25, "coverage": 0.25},
    "matching": {"draw": False, "width": 8, "heads": 2},
    "segments": {"share": 1.0, "count": 1},
    "align": {},
    "localize": {},
    "xdc": {"clusters": 3, "every": 1},
}
