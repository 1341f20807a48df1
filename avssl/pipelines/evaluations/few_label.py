"""few_label: how far a few labels go, beside the same architecture with random weights."""

from pathlib import Path
from typing import Any

from avssl.evaluation.few_label import FewLabelPoint, few_label_curve
from avssl.evaluation.pictures import drawn, share_curves
from avssl.evaluation.report import Section, Table
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench

TEXT = (
    "The linear probe on shares of the training labels, drawn class by class with at least one of each. Random weights "
    "are of the same architecture and get the same draws. Mean and standard deviation over the draws."
)


@evaluation("few_label", needs=("labels", "training"))
def few_label(bench: Bench) -> Finding:
    """Curves of every head.

    Raises:
        ValueError: fewer than one draw.
    """
    draws, seed = bench.config.few_label_draws, bench.config.seed
    if draws < 1:
        raise ValueError(f"few_label_draws: must be at least 1, got {draws}")
    sources = {"checkpoint": (bench.training_features, bench.features)}
    twin = bench.twin_features()
    if twin is not None:
        sources = {"random weights": twin} | sources
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    pictures: list[tuple[Path, str]] = []
    details: dict[str, Any] = {}
    for head, names in bench.heads.items():
        curves = {
            name: few_label_curve(*both, head, len(names), draws=draws, seed=seed) for name, both in sources.items()
        }
        unit = "top-1" if bench.truth(head).ndim == 1 else "mAP"
        for name, points in curves.items():
            metrics |= _metrics(f"few_label/{head}", "random_" if name != "checkpoint" else "", unit, points)
        details[head] = {name: [vars(point) for point in points] for name, points in curves.items()}
        note = f"{unit}, {bench.clips}; {draws} draws of each share, one of all labels."
        columns = ["labels", "training clips", *curves]
        tables.append(Table(f"Few labels, {head}", columns, _rows(list(curves.values())), note))
        path = bench.picture(f"few-label-{head}")
        lines = {name: [(p.share, p.mean, p.std) for p in points] for name, points in curves.items()}
        caption = f"{unit} of {head} by share of the labels; shaded: one standard deviation"
        look = {"title": f"{head}: labels against {unit}", "ylabel": f"{unit}, {bench.clips}"}
        pictures += drawn(path, caption, share_curves, lines, path, **look)
    return Finding(Section("Few labels", TEXT, tables, pictures), metrics, (), details)


def _metrics(prefix: str, start: str, unit: str, points: list[FewLabelPoint]) -> dict[str, float]:
    name = "top1" if unit == "top-1" else unit
    return {
        f"{prefix}/{point.share:.0%}/{start}{key}": value
        for point in points
        for key, value in ((name, point.mean), (f"{name}_std", point.std))
    }


def _rows(curves: list[list[FewLabelPoint]]) -> list[list[object]]:
    return [
        [f"{points[0].share:.0%}", points[0].rows, *(_spread(point) for point in points)]
        for points in zip(*curves, strict=True)
    ]


def _spread(point: FewLabelPoint) -> str:
    return f"{point.mean:.1%}" + (f" ± {100 * point.std:.1f}" if point.std == point.std else "")
