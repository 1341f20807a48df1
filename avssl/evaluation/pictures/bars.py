"""A table of results as bars: random start against pretrained start, protocol by protocol."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter

from avssl.evaluation.pictures.style import FAINT, INK, PALETTE, new_figure, save, styled


def head_to_head(
    table: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    *,
    title: str = "Random against pretrained start",
    ylabel: str = "top-1 accuracy",
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    chance: float | None = None,
    order: Sequence[str] | None = None,
) -> None:
    """Grouped bars with their values on top.

    Args:
        table: protocol -> start -> value 0..1, ``{"linear probe": {"random": 0.31, "pretrained": 0.72}, ...}``. A start
            that a protocol lacks, or a NaN, leaves its place empty.
        intervals: the same keys -> (low, high), drawn as whiskers.
        chance: dashed line.
        order: order of the starts; default that of their first appearance.

    Raises:
        ValueError: an empty table.
    """
    starts = list(order or dict.fromkeys(start for row in table.values() for start in row))
    if not table or not starts:
        raise ValueError("table: nothing to draw")
    width = 0.8 / len(starts)
    with styled():
        figure = new_figure(max(4.8, 1.6 + len(table) * (0.5 + 0.55 * len(starts))), 4.0, title)
        axes = figure.add_subplot()
        tallest = 0.0
        for number, start in enumerate(starts):
            # A pale first bar (the random start) and strong ones after it: what was gained stands out.
            colour = "#AEB6C1" if number == 0 and len(starts) > 1 else PALETTE[(number - 1) % len(PALETTE)]
            label: str | None = start
            for group, (protocol, row) in enumerate(table.items()):
                value = row.get(start, float("nan"))
                if not np.isfinite(value):
                    continue
                place = group + (number - (len(starts) - 1) / 2) * width
                axes.bar(place, value, width * 0.92, color=colour, label=label)
                label, top = None, value
                low_high = (intervals or {}).get(protocol, {}).get(start)
                if low_high is not None:
                    low, high = low_high
                    axes.vlines(place, low, high, color=INK, linewidth=1.2)
                    top = max(value, high)
                tallest = max(tallest, top)
                text = f"{100 * value:.1f}"
                axes.annotate(text, (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
        if chance is not None:
            axes.axhline(chance, color=FAINT, linestyle="--", linewidth=1, zorder=3, label=f"chance {chance:.1%}")
        axes.set_xticks(range(len(table)), list(table))
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(table) - 0.4)
        axes.set(ylabel=ylabel, ylim=(0, max(tallest * 1.12, 0.05)))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, axis="y")
        handles, labels = axes.get_legend_handles_labels()
        entries = sorted(zip(handles, labels, strict=True), key=lambda entry: entry[1].startswith("chance "))
        handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(starts) + 1), fontsize=9)
        save(figure, path)
