"""One case of every objective for the tests that hold for all: several processes, gradient caching, exact resume.

The options make it deterministic: no random negatives or masks, whose draws are of one process.
"""

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "infonce": {},
}
