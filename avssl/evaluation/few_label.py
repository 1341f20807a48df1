"""How far do few labels go? The linear probe fitted on shares of the training rows, beside random weights."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullLocator, PercentFormatter
from numpy.typing import NDArray

from avssl.evaluation.arrays import IntArray
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.classification import mean_average_precision
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.plots import FAINT, PALETTE, drawn, new_figure, save, styled
from avssl.evaluation.probe import linear_probe, targets_of
from avssl.evaluation.report import Section, Table
from avssl.progress import track

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class FewLabelPoint:
    """The probe at one share of the labels.

    Attributes:
        share: of the labelled training rows, 0 to 1.
        rows: training rows drawn; more than the share where every class needs its one row.
        values: top-1, or mAP of a multi-label head, on all test rows, one for each draw.
    """

    share: float
    rows: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the draws (of a sample, N - 1); NaN for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def draw_rows(labels: NDArray[np.int64] | NDArray[np.floating], share: float, seed: int) -> IntArray:
    """Labelled rows in ascending order: of each class the share, at least one.

    Rows with several labels belong to no single class: of those a plain random share is drawn, then one more for
    every class that it lacks.

    Args:
        labels: (N,) classes, -1 for rows to leave out; or (N, C) zeros and ones, a row of -1 to leave out.
        share: above 0, at most 1.

    Raises:
        ValueError: a share outside of that.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of labels: must be above 0 and at most 1, got {share}")
    rng = np.random.default_rng((seed, 17))
    if labels.ndim == 1:
        members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels[labels >= 0])]
        chosen = [rows[: max(1, round(share * len(rows)))] for rows in members]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    order = rng.permutation(np.flatnonzero((labels >= 0).all(axis=1)))
    taken = list(order[: max(1, round(share * len(order)))])
    have = labels[taken].max(axis=0, initial=0)
    for row in order[len(taken) :]:
        if (labels[row] > have).any():
            taken.append(row)
            have = np.maximum(have, labels[row])
    return np.sort(np.array(taken, np.int64))


def few_label_curve(
    train: Embeddings,
    test: Embeddings,
    head: str,
    num_classes: int,
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> list[FewLabelPoint]:
    """Top-1 (mAP of a multi-label head) of the linear probe at each share of the training labels.

    Draw d is the same rows for any features of the same training set, so that two encoders are set against each other
    on equal terms. All labels make but one draw.
    """
    labels, truth = train.labels[head], test.labels[head]
    points = []
    plan = [(share, seed * 1000 + draw) for share in sorted(shares) for draw in range(draws if share < 1 else 1)]
    values: dict[float, list[float]] = {share: [] for share in sorted(shares)}
    rows: dict[float, int] = {}
    for share, draw in track(plan, f"few labels, {head}", "probe", shown=progress):
        chosen = draw_rows(labels, share, draw)
        rows[share] = len(chosen)
        scores = linear_probe(train.select(chosen), test, head, num_classes, seed=seed).scores
        values[share].append(_quality(scores, truth, num_classes))
    for share, found in values.items():
        points.append(FewLabelPoint(share, rows[share], tuple(found)))
    return points


def _quality(scores: NDArray[np.floating], truth: NDArray[np.floating], num_classes: int) -> float:
    if truth.ndim == 1:
        known = np.asarray(truth >= 0)
        return float((scores[known].argmax(axis=1) == truth[known]).mean())
    known = np.asarray((truth >= 0).all(axis=1))
    return mean_average_precision(scores[known], targets_of(truth[known], num_classes))


def share_curves(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
    ylabel: str,
    chance: float | None = None,
) -> None:
    """Lines over a logarithmic axis of shares, with one standard deviation shaded round each.

    Args:
        curves: name -> (share above 0 and at most 1, mean 0..1, deviation or NaN), the pale one (random weights) first
            where there are two.
        chance: dashed line.

    Raises:
        ValueError: no curve, or an empty one.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves: nothing to draw")
    colours = chain([FAINT] if len(curves) > 1 else [], cycle(PALETTE))  # no end: no curve is left out
    with styled():
        figure = new_figure(6.4, 4.0, title)
        axes = figure.add_subplot()
        for (name, points), colour in zip(curves.items(), colours, strict=False):
            share, mean, deviation = np.array(points).T
            deviation = np.nan_to_num(deviation)
            axes.fill_between(share, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
            axes.plot(share, mean, "o-", color=colour, markersize=4.5, linewidth=1.8, label=name)
            below = colour == FAINT
            for x, y in zip(share, mean, strict=True):
                offset = (0, -13 if below else 6)
                axes.annotate(f"{100 * y:.1f}", (x, y), offset, textcoords="offset points", ha="center", fontsize=8)
        if chance is not None:
            axes.axhline(chance, color=FAINT, linestyle="--", linewidth=1, label=f"chance {chance:.1%}")
        shares = sorted({point[0] for points in curves.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:.3g} %" for share in (100 * np.array(shares))])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="share of the training labels", ylabel=ylabel)
        top = max(mean + np.nan_to_num(deviation) for points in curves.values() for _, mean, deviation in points)
        axes.set_ylim(0, max(1.15 * top, 0.05))
        axes.margins(x=0.06)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, axis="y")
        figure.legend(loc="outside lower center", ncols=min(4, len(curves) + 1), fontsize=8.5)
        save(figure, path)


TEXT = (
    "The linear probe on shares of the training labels, drawn class by class with at least one of each. Random weights "
    "are of the same architecture and get the same draws. Mean and standard deviation over the draws."
)


@register_evaluation("few_label", needs=("labels", "training"))
def few_label(context: "EvaluationContext") -> EvaluationResult:
    """Curves of every head.

    Raises:
        ValueError: fewer than one draw.
    """
    draws, seed = context.config.few_label_draws, context.config.seed
    if draws < 1:
        raise ValueError(f"few_label_draws: must be at least 1, got {draws}")
    sources = {"checkpoint": (context.training_features, context.features)}
    random = context.random_features()
    if random is not None:
        sources = {"random weights": random} | sources
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    pictures: list[tuple[Path, str]] = []
    details: dict[str, Any] = {}
    for head, names in context.heads.items():
        curves = {
            name: few_label_curve(*both, head, len(names), draws=draws, seed=seed) for name, both in sources.items()
        }
        unit = "top-1" if context.truth(head).ndim == 1 else "mAP"
        for name, points in curves.items():
            metrics |= _metrics(f"few_label/{head}", "random_" if name != "checkpoint" else "", unit, points)
        details[head] = {name: [vars(point) for point in points] for name, points in curves.items()}
        note = f"{unit}, {context.clips}; {draws} draws of each share, one of all labels."
        columns = ["labels", "training clips", *curves]
        tables.append(Table(f"Few labels, {head}", columns, _rows(list(curves.values())), note))
        path = context.picture(f"few-label-{head}")
        lines = {name: [(p.share, p.mean, p.std) for p in points] for name, points in curves.items()}
        caption = f"{unit} of {head} by share of the labels; shaded: one standard deviation"
        options = {"title": f"{head}: labels against {unit}", "ylabel": f"{unit}, {context.clips}"}
        pictures += drawn(path, caption, share_curves, lines, path, **options)
    return EvaluationResult(Section("Few labels", TEXT, tables, pictures), metrics, (), details)


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
