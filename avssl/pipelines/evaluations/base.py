"""What an evaluation is: a function from the bench to a finding, registered by name."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avssl.data.datasets import nearest
from avssl.evaluation.report import Section
from avssl.pipelines.evaluations.bench import Bench
from avssl.progress import Meter

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
    """

    name: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    unit: str = "%"

    def words(self) -> tuple[str, str]:
        """The value, and its interval; the second is empty where there is none."""
        value, low, high = (f"{v:.1%}" if self.unit == "%" else f"{v:.3f}" for v in (self.value, self.low, self.high))
        return value, f"{low} to {high}" if math.isfinite(self.low) else ""

    def __str__(self) -> str:
        value, interval = self.words()
        return f"{value} ({interval})" if interval else value


@dataclass(frozen=True)
class Finding:
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


@dataclass(frozen=True)
class _Evaluation:
    function: Callable[[Bench], Finding]
    needs: tuple[str, ...]
    quick_for: tuple[str, ...]


_REGISTRY: dict[str, _Evaluation] = {}


def evaluation(
    name: str, *, needs: Iterable[str] = (), quick_for: Iterable[str] = ()
) -> Callable[[Callable[[Bench], Finding]], Callable[[Bench], Finding]]:
    """Registers a function under ``name``.

    Args:
        name: as in ``--evaluations``.
        needs: what :meth:`Bench.lacks` must not lack: pair, classifier, labels, classes, training, scores, hearing.
        quick_for: kinds of checkpoint (pair, encoder, classifier) for which it is done by default.
    """

    def register(function: Callable[[Bench], Finding]) -> Callable[[Bench], Finding]:
        _REGISTRY[name] = _Evaluation(function, tuple(needs), tuple(quick_for))
        return function

    return register


def choose(names: Sequence[str] | None, bench: Bench) -> list[str]:
    """The evaluations to do, in the order of the report.

    Args:
        names: as configured; None for all quick ones that apply.

    Raises:
        ValueError: no name, an unknown one, or an evaluation asked for that the checkpoint or the data cannot give.
    """
    if names is None:
        kind = bench.subject.kind
        return [name for name, item in _REGISTRY.items() if kind in item.quick_for and not _obstacle(item, bench)]
    if not names:
        raise ValueError(f"evaluations: the list is empty; give some of {', '.join(_REGISTRY)}")
    for name in names:
        if name not in _REGISTRY:
            raise ValueError(
                f"evaluations: no {name!r}{nearest(name, list(_REGISTRY))}; there are {', '.join(_REGISTRY)}"
            )
        if obstacle := _obstacle(_REGISTRY[name], bench):
            raise ValueError(f"evaluations: {name} is not possible here: {obstacle}")
    return [name for name in _REGISTRY if name in names]


def run_all(names: Sequence[str], bench: Bench) -> dict[str, Finding]:
    """Does the evaluations in turn."""
    findings = {}
    for number, name in enumerate(names, 1):
        logger.info("evaluation %d of %d: %s", number, len(names), name)
        with Meter(name):
            findings[name] = _REGISTRY[name].function(bench)
    return findings


def _obstacle(item: _Evaluation, bench: Bench) -> str:
    return next((reason for need in item.needs if (reason := bench.lacks(need))), "")
