"""The end of a training: evaluations of what it made and its curves, reported in the folder of its run."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from avssl.config import EvaluateConfig, FinetuneConfig, PretrainConfig, to_dict, to_yaml
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits
from avssl.evaluation.arrays import FloatArray, labelled
from avssl.evaluation.base import EvaluationResult, possible, report_evaluations, run_evaluations
from avssl.evaluation.context import EarlierFeatures, EvaluationContext
from avssl.evaluation.plots import FAINT, PALETTE, drawn, new_figure, save, styled
from avssl.evaluation.random_start import compare_with_random_start
from avssl.evaluation.report import Section
from avssl.loading import Loaded
from avssl.tracking import read_rows
from avssl.training.run import Run

# Evaluations whose details have a place of their own in the result of a training.
_DETAILS = {"accuracy": "classes", "clustering": "clustering"}


def evaluate_trained(
    config: FinetuneConfig | PretrainConfig,
    run: Run,
    model: Loaded,
    splits: Splits,
    split: Manifest | None,
    loaders: Loaders,
    evaluations: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, Any],
    before: EarlierFeatures | None = None,
    random: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a trained model; writes result.json, predictions, pictures and report.html, and tells the tracker.

    Args:
        config: of the training.
        run: its folder and tracker.
        model: what was trained, on its device.
        splits: the data of the training.
        split: of them, the rows to evaluate; None where there are none, which leaves the training alone to be reported.
        loaders: of the training.
        evaluations: names; those that the data cannot give are left out.
        title: of the report.
        facts: what else stands in result.json.
        before: features of ``split`` before the training, for a picture.
        random: folder of a run from random weights to set this one against; None for none.

    Returns:
        What result.json holds.
    """
    name = None if split is None else "test" if split is splits.test else "val"
    results: dict[str, EvaluationResult] = {}
    context: EvaluationContext | None = None
    if split is not None:
        evaluation = EvaluateConfig(
            str(run.folder),
            config.data,
            split=str(name),
            batch_size=config.optim.batch_size,
            runtime=config.runtime,
            output=run.folder,
            seed=config.seed,
        )
        context = EvaluationContext(
            config=evaluation,
            model=model,
            split=split,
            labels=splits.labels,
            protocol=splits.protocol,
            loaders=loaders,
            folder=run.folder,
            before=before,
            kmeans_seed=0,  # runs of other seeds are compared by clusters of the same start
        )
        results = run_evaluations(possible(evaluations, context), context)
        if random is not None:
            scores = context.scores()
            truth = {head: context.truth(head) for head in scores}
            results["random_start"] = compare_with_random_start(
                context.features.clip_ids, scores, truth, context.split, random
            )
    curves = _curves(run)
    result = report_evaluations(
        run.folder,
        {key: _without_details(key, found) for key, found in results.items()},
        title=title,
        facts={
            "split": name,
            "held_out": {name: rows.summary() for name, rows in splits.held_out.items()},
            "clip_protocol": splits.protocol.description("embeddings" if model.kind == "pair" else None),
            "pad": model.pad,
            "coverage": splits.coverage | {"evaluated": {} if context is None else context.coverage()},
            "manifest": splits.digest,
            "seed": config.seed,
            "config": to_dict(config),
            **{key: results[of].details for of, key in _DETAILS.items() if of in results},
            **facts,
        },
        config_yaml=to_yaml(config),
        summary={} if context is None else context.card(),
        sections=curves,
    )
    if context is not None:
        context.write_predictions(results)
    run.tracker.summary({f"test/{key}": value for key, value in result["metrics"].items()})
    sections = [*(found.section for found in results.values()), *curves]
    pictures = [Path(path) for section in sections for path, _ in section.pictures]
    run.tracker.log_pictures({path.stem: path for path in pictures})
    if context is not None and "accuracy" in results:
        _log_predictions(run, context)
    return result


def _without_details(name: str, found: EvaluationResult) -> EvaluationResult:
    if name == "clustering":  # of frozen and of trained features alike: no metric of the training
        return replace(found, details={}, metrics={})
    return replace(found, details={}) if name in _DETAILS else found


def _curves(run: Run) -> list[Section]:
    path, rows = run.picture("curves"), read_rows(run.tracker.metrics_path)
    if not rows:
        return []
    rows += read_rows(run.tracker.speed_path)
    return [Section("Training", pictures=drawn(path, "Training curves", loss_curves, rows, path))]


def _log_predictions(run: Run, context: EvaluationContext) -> None:
    """Shows predictions and confusion where the run is watched by loggers that take them."""
    for head, scores in context.scores().items():
        target, names = context.truth(head), context.labels[head]
        run.tracker.log_predictions(head, context.features.clip_ids, target, scores, names)
        known = labelled(target)
        if target.ndim == 1 and known.any():
            run.tracker.log_confusion(head, target[known], scores[known].argmax(1), names)


# Title, axis label, and which keys of the metrics file belong to the panel. The first match takes the key.
PANELS = (
    ("Loss", "", r"loss"),
    ("Learning rate", "", r"(^|[/_.])(lr|learning_rate)([/_.]|$)"),
    ("Temperature", "", r"temperature"),
    ("Retrieval", "recall", r"(?<!chance/)R@\d+$"),  # chance never changes
    ("Accuracy", "share of clips", r"(^|[/_])(top\d|accuracy|mean_class_accuracy|mAP|hit\d*)$"),
    ("Gradient norm", "", r"grad(ient)?_norm"),
    ("Speed", "clips/s", r"(clips|samples)_per_s(ec|econd)?"),
)

# Only these are smoothed: a moving average would round the corners of a schedule.
NOISY = ("Loss", "Gradient norm", "Speed")


def smooth(values: FloatArray, window: int) -> FloatArray:
    """Centred moving average, narrower at both ends, so that nothing is shifted and no end is pulled to zero."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def collect(rows: Iterable[Mapping[str, Any]], step_key: str) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Key -> (steps, values), the finite numbers only, by step; a step logged twice (a resumed run) keeps the last."""
    series: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get(step_key)
        if step is None:
            continue
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key != step_key and number and math.isfinite(value):
                series.setdefault(key, {})[float(step)] = float(value)
    ordered = {key: sorted(values.items()) for key, values in series.items()}
    return {key: (np.array([s for s, _ in v]), np.array([x for _, x in v])) for key, v in ordered.items()}


def _order(key: str) -> tuple[bool, list[str | int]]:
    """Training before validation; numbers in names by their value: R@5 before R@10."""
    return not key.startswith("train"), [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]


def _draw(axes: Axes, series: dict[str, tuple[FloatArray, FloatArray]], keys: list[str], noisy: bool) -> None:
    for position, key in enumerate(keys):
        steps, values = series[key]
        colour = PALETTE[position % len(PALETTE)]
        window = len(values) // 30 if noisy else 0
        if len(values) == 1:
            axes.plot(steps, values, "o", color=colour, label=key)
        elif window >= 2:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values, window), color=colour, linewidth=1.8, label=key)
        else:
            marker = "o" if len(values) <= 30 else ""
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=key)


def loss_curves(
    rows: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "Training",
    step_key: str = "step",
    max_lines: int = 6,
) -> None:
    """Loss, learning rate, temperature, retrieval and accuracy over steps, one panel each, where they were logged.

    Long noisy series (loss, gradient norm, speed) are drawn faintly as they are, under a centred
    moving average over 1/30 of the run.

    Args:
        rows: parsed lines of ``metrics.jsonl``: mappings with ``step_key`` and any numbers, ``train/loss`` for example.
        path: picture to write.
        max_lines: lines in one panel; further keys are left out and their number is said.

    Raises:
        ValueError: no row has both a step and a number that a panel shows.
    """
    series = collect(rows, step_key)
    taken: set[str] = set()
    panels: list[tuple[str, str, list[str]]] = []
    for name, unit, pattern in PANELS:
        keys = [key for key in series if key not in taken and re.search(pattern, key)]
        taken.update(keys)
        if keys:
            panels.append((name, unit, sorted(keys, key=_order)))
    if not panels:
        known = ", ".join(series) or "none"
        raise ValueError(f"metrics: no row with {step_key!r} and a loss, lr, R@k or top1; keys with numbers: {known}")
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    lines = math.ceil(len(panels) / columns)
    with styled():
        figure = new_figure(4.3 * columns, 3.1 * lines + 0.4, title)
        for position, (name, unit, keys) in enumerate(panels):
            axes = figure.add_subplot(lines, columns, position + 1)
            _draw(axes, series, keys[:max_lines], noisy=name in NOISY)
            axes.set(title=name, xlabel="step", ylabel=unit)
            axes.grid(True)
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if name in ("Retrieval", "Accuracy"):
                axes.set_ylim(bottom=0)
            if len(keys) > 1:
                more = f"+ {len(keys) - max_lines} more" if len(keys) > max_lines else None
                # Under the panel, not over its curves.
                below = axes.transAxes + ScaledTranslation(0, -32 / 72, figure.dpi_scale_trans)
                axes.legend(
                    fontsize=7,
                    title=more,
                    title_fontsize=7,
                    ncols=2,
                    loc="upper left",
                    bbox_to_anchor=(0, 0),
                    bbox_transform=below,
                    borderaxespad=0,
                    columnspacing=1.0,
                    handlelength=1.5,
                )
            else:
                axes.set_title(keys[0], loc="right", color=FAINT, fontsize=7.5, fontweight="normal")
        save(figure, path)
