"""Training at a glance: the local metrics file drawn as small multiples."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.plots import FAINT, PALETTE, new_figure, save, styled

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
