"""What an evaluation is: a function from the context to a result, registered by name; and how results are reported."""

import importlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.evaluation.report import Section, write_report
from avssl.evaluation.result import provenance, write_result
from avssl.plugins import Registry
from avssl.progress import Meter

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Headline:
    """A number that stands at the top, under a name that says how it was made.

    Attributes:
        name: "event top-1, centre clip of 2 s", for example.
        metric: its key among the metrics.
        value: 0..1.
        low, high: 95 % interval; NaN where there is none.
        unit: how it is written: % or, for what is no share of anything, nothing.
        chance: what guessing gives; NaN where it is not told.
    """

    name: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    unit: str = "%"
    chance: float = math.nan

    def words(self) -> tuple[str, str]:
        """The value, and its interval and chance; the second is empty where there is neither."""
        value, low, high, chance = (
            f"{v:.1%}" if self.unit == "%" else f"{v:.3f}" for v in (self.value, self.low, self.high, self.chance)
        )
        beside = [f"{low} to {high}"] if math.isfinite(self.low) else []
        return value, "; ".join(beside + ([f"chance {chance}"] if math.isfinite(self.chance) else []))

    def __str__(self) -> str:
        value, beside = self.words()
        return f"{value} ({beside})" if beside else value


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        section: its part of the report.
        metrics: its numbers by name.
        headlines: those of them that stand at the top.
        details: JSON-able, kept in result.json under the evaluation's name; empty for none.
    """

    section: Section
    metrics: Mapping[str, float] = field(default_factory=dict)
    headlines: Sequence[Headline] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


Evaluate = Callable[["EvaluationContext"], EvaluationResult]


@dataclass(frozen=True)
class _Evaluation:
    function: Evaluate
    needs: tuple[str, ...]
    default_for: tuple[str, ...]


# The evaluations of this package, in the order of the report, and the modules that register them.
_BUILT_IN = {
    "accuracy": "classification",
    "unseen_tail": "epic",
    "submission": "epic",
    "retrieval": "retrieval",
    "localization": "localization",
    "probe": "probe",
    "knn": "knn",
    "few_label": "few_label",
    "clustering": "clustering",
    "pictures": "feature_maps",
    "error_analysis": "error_analysis",
    "robustness": "robustness",
}


def _import_built_in() -> None:
    for module in dict.fromkeys(_BUILT_IN.values()):
        importlib.import_module(f"avssl.evaluation.{module}")


EVALUATIONS = Registry[_Evaluation]("evaluations", "evaluation", load=_import_built_in)


def register_evaluation(
    name: str, *, needs: Iterable[str] = (), default_for: Iterable[str] = ()
) -> Callable[[Evaluate], Evaluate]:
    """Registers a function under ``name``.

    Args:
        name: as in ``--evaluations``.
        needs: what the evaluated model and the data must have, see :meth:`EvaluationContext.unmet`.
        default_for: kinds of model (pair, encoder, classifier) for which it is done by default.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Evaluate) -> Evaluate:
        EVALUATIONS.add(name, _Evaluation(function, tuple(needs), tuple(default_for)), function)
        return function

    return register


def available() -> dict[str, _Evaluation]:
    """All evaluations by name, in the order of the report: those of this package, then others as registered."""
    names = EVALUATIONS.names()
    ordered = [*_BUILT_IN, *(name for name in names if name not in _BUILT_IN)]
    return {name: EVALUATIONS.get(name) for name in ordered}


def choose(names: Sequence[str] | None, context: "EvaluationContext") -> list[str]:
    """The evaluations to do, in the order of the report.

    Args:
        names: as configured; None for all that are done by default and apply.
        context: of the evaluation.

    Raises:
        ValueError: no name, an unknown one, or an evaluation asked for that the checkpoint or the data cannot give.
    """
    known = available()
    if names is None:
        kind = context.model.kind
        return [name for name, item in known.items() if kind in item.default_for and not _obstacle(item, context)]
    if not names:
        raise ValueError(f"evaluations: the list is empty; give some of {', '.join(known)}")
    for name in names:
        if obstacle := _obstacle(EVALUATIONS.get(name), context):
            raise ValueError(f"evaluations: {name} is not possible here: {obstacle}")
    return [name for name in known if name in names]


def possible(names: Sequence[str], context: "EvaluationContext") -> list[str]:
    """Those of ``names`` whose needs are met, in the order of the report."""
    return [name for name, item in available().items() if name in names and not _obstacle(item, context)]


def run_evaluations(names: Sequence[str], context: "EvaluationContext") -> dict[str, EvaluationResult]:
    """Does the evaluations in turn."""
    known, results = available(), {}
    for number, name in enumerate(names, 1):
        logger.info("evaluation %d of %d: %s", number, len(names), name)
        with Meter(name):
            results[name] = known[name].function(context)
    return results


def _obstacle(item: _Evaluation, context: "EvaluationContext") -> str:
    return next((reason for need in item.needs if (reason := context.unmet(need))), "")


def metrics_of(results: Mapping[str, EvaluationResult]) -> dict[str, float]:
    """The metrics of all evaluations by name."""
    return {key: value for result in results.values() for key, value in result.metrics.items()}


def report_evaluations(
    folder: str | os.PathLike[str],
    results: Mapping[str, EvaluationResult],
    *,
    title: str,
    facts: Mapping[str, Any],
    config_yaml: str,
    summary: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
) -> dict[str, Any]:
    """Writes ``result.json`` and ``report.html``, and logs the headlines.

    Args:
        folder: where the files go.
        results: of the evaluations by name; may be empty.
        title: of the page.
        facts: what else stands in ``result.json``.
        config_yaml: the configuration, for the page.
        summary: cards of the page that stand before the headlines.
        sections: parts of the page behind those of the evaluations.

    Returns:
        What ``result.json`` holds: ``facts`` with the evaluations' names, metrics, headlines and details, and the
        provenance.
    """
    headlines = [headline for result in results.values() for headline in result.headlines]
    written = dict(facts) | {
        "evaluations": list(results),
        "headlines": headlines,
        "metrics": metrics_of(results),
        "details": {name: result.details for name, result in results.items() if result.details},
        "provenance": provenance(),
    }
    write_result(Path(folder) / "result.json", written)
    page = write_report(
        folder,
        title=title,
        summary=dict(summary or {}) | {headline.name: headline.words() for headline in headlines},
        sections=[*(result.section for result in results.values()), *sections],
        config_yaml=config_yaml,
        provenance=written["provenance"],
    )
    for headline in headlines:
        logger.info("%s: %s", headline.name, headline)
    logger.info("result: %s, report: %s", Path(folder) / "result.json", page)
    return written
