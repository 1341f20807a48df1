"""Which classes are taken for which."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import PercentFormatter

from avssl.evaluation.arrays import Arrayish, to_numpy
from avssl.evaluation.pictures.style import INK, check_names, new_figure, save, shorten, styled

ANNOTATED = 20  # with more classes than this the numbers do not fit into their cells
POINTS = 72  # in an inch


def confusion_matrix(
    matrix: Arrayish, class_names: Sequence[str], path: str | os.PathLike[str], *, title: str = "Confusion"
) -> None:
    """Heat map of the share of each true class (row) that was given each label (column).

    Numbers stand in the cells up to 20 classes. A class without a test row is grey, not white: nothing was measured.

    Args:
        matrix: ``(C, C)`` counts, rows the truth.
        class_names: C names.

    Raises:
        ValueError: not square, negative or NaN counts, or another number of names.
    """
    counts = to_numpy(matrix).astype(np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise ValueError(f"confusion matrix: expected (C, C) counts, got shape {counts.shape}")
    if not (counts >= 0).all():
        raise ValueError("confusion matrix: counts must not be negative or NaN")
    classes = len(counts)
    names = [shorten(name) for name in check_names(class_names, classes)]
    support = counts.sum(axis=1, keepdims=True)
    share = np.ma.masked_where(np.broadcast_to(support == 0, counts.shape), counts / np.where(support > 0, support, 1))
    accuracy = np.diag(counts).sum() / max(counts.sum(), 1)
    side = float(np.clip(0.42 * classes, 2.8, 11.5))
    font = float(np.clip(0.5 * POINTS * side / classes, 5, 9))
    margin = 0.6 * font * max(map(len, names)) / POINTS
    every = math.ceil(font * 1.1 / (POINTS * side / classes))  # hundreds of classes: as many names as have room
    heading = f"{title}: {accuracy:.1%} of {int(counts.sum())} clips right"
    with styled():
        figure = new_figure(side + margin + 1.7, side + margin + 0.8, heading)
        axes = figure.add_subplot()
        colours = colormaps["Blues"].with_extremes(bad="#E3E3E3")
        image = axes.imshow(share, cmap=colours, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_xticks(range(0, classes, every), names[::every], rotation=90 if classes > 8 else 35, fontsize=font)
        axes.set_yticks(range(0, classes, every), names[::every], fontsize=font)
        if classes <= 8:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_xticks(np.arange(-0.5, classes), minor=True)
        axes.set_yticks(np.arange(-0.5, classes), minor=True)
        axes.grid(True, which="minor", color="white" if classes <= ANNOTATED else "#F2F3F5", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if classes <= ANNOTATED:
            for row, column in zip(*np.nonzero(counts), strict=True):
                colour = "white" if share[row, column] > 0.55 else INK
                text = f"{100 * share[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=max(6.5, font - 1))
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=25, format=PercentFormatter(1))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        save(figure, path)
