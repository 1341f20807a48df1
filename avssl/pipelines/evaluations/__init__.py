"""The evaluations by name, one file each; a new one is a function in a new file, imported here."""

# Each registers itself, in the order of the report.
# isort: off
from avssl.pipelines.evaluations import accuracy  # noqa: F401
from avssl.pipelines.evaluations import epic  # noqa: F401
from avssl.pipelines.evaluations import retrieval  # noqa: F401
from avssl.pipelines.evaluations import localization  # noqa: F401
from avssl.pipelines.evaluations import probe  # noqa: F401
from avssl.pipelines.evaluations import knn  # noqa: F401
from avssl.pipelines.evaluations import few_label  # noqa: F401
from avssl.pipelines.evaluations import clustering  # noqa: F401
from avssl.pipelines.evaluations import pictures  # noqa: F401
from avssl.pipelines.evaluations import worst  # noqa: F401
from avssl.pipelines.evaluations import robustness  # noqa: F401

# isort: on
from avssl.pipelines.evaluations.base import Finding, Headline, choose, run_all
from avssl.pipelines.evaluations.bench import Bench
from avssl.pipelines.evaluations.subject import Subject, open_subject

__all__ = ["Bench", "Finding", "Headline", "Subject", "choose", "open_subject", "run_all"]
