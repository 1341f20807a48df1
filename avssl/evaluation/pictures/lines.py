"""Quality against the share of the labels that were used."""

import os
from collections.abc import Mapping, Sequence
from itertools import chain, cycle

import numpy as np
from matplotlib.ticker import NullLocator, PercentFormatter

from avssl.evaluation.pictures.style import FAINT, PALETTE, new_figure, save, styled


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
