"""One number under many conditions, as bars beside the line of the undamaged one."""

import os
from collections.abc import Mapping

from matplotlib.ticker import PercentFormatter

from avssl.evaluation.pictures.style import INK, PALETTE, new_figure, save, styled


def condition_bars(
    values: Mapping[str, tuple[float, float, float]],
    groups: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
    reference: float,
) -> None:
    """A bar for each condition, coloured by its group, with its interval as a whisker.

    Args:
        values: condition -> (value 0..1, low, high), drawn from top to bottom; NaN bounds draw no whisker.
        groups: condition -> group.
        reference: value without damage, a dashed line.

    Raises:
        ValueError: nothing to draw, or a condition without a group.
    """
    if not values:
        raise ValueError("values: nothing to draw")
    missing = [name for name in values if name not in groups]
    if missing:
        raise ValueError(f"groups: none for {', '.join(missing)}")
    order = list(dict.fromkeys(groups[name] for name in values))
    with styled():
        figure = new_figure(7.4, 1.2 + 0.27 * len(values), title)
        axes = figure.add_subplot()
        for row, (name, (value, low, high)) in enumerate(values.items()):
            axes.barh(row, value, 0.72, color=PALETTE[order.index(groups[name]) % len(PALETTE)], alpha=0.85)
            end = value
            if low == low and high == high:  # not NaN
                axes.hlines(row, low, high, color=INK, linewidth=1)
                end = max(value, high)
            axes.annotate(f"{100 * value:.1f}", (end, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.axvline(reference, color=INK, linestyle="--", linewidth=1, label=f"undamaged {reference:.1%}")
        axes.set_yticks(range(len(values)), list(values), fontsize=8.5)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel)
        axes.set_xlim(0, max(1.12 * max(high if high == high else value for value, _, high in values.values()), 0.05))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower right", fontsize=8.5)
        save(figure, path)
