"""One look for every picture. Figures are built without pyplot: no global state, no display needed.

matplotlib is imported with the first picture: who needs the numbers alone does not wait for it.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.errors import is_of_machine
from avssl.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's palette, told apart with every common kind of colour blindness; yellow is last, it is weak on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
RIGHT, WRONG = PALETTE[2], PALETTE[1]
INK, FAINT = "#222222", "#8A8F98"
DPI = 150

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#B5BAC2",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E8EB",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names of classes, clips and files are not formulas
}


def new_figure(width: float, height: float, title: str = "") -> "Figure":
    """White figure of that many inches, laid out so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08), facecolor="white"
    )
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def styled() -> AbstractContextManager[None]:
    """Context in which axes are made: ``with styled(): ...``; matplotlib's settings are as before afterwards."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes the picture; it appears whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def drawn(path: Path, caption: str, draw: Callable[..., None], *args: Any, **options: Any) -> list[tuple[Path, str]]:
    """Draws a picture of a run by ``draw(*args, **options)``, which writes it to ``path``.

    Returns:
        ``[(path, caption)]``; nothing where it failed, which is a warning: a picture never costs a run its results.

    Raises:
        OSError, MemoryError: the disk is full, or another error of the machine; the same command goes on.
    """
    try:
        path.unlink(missing_ok=True)  # an earlier one would be taken for this run's
        draw(*args, **options)
    except Exception as error:  # whatever it is, the numbers of the run are right without it
        if is_of_machine(error):  # but a full disk is no picture's fault
            raise
        logger.warning("picture %s is left out, it cannot be drawn: %s: %s", path, type(error).__name__, error)
        return []
    return [(path, caption)]


def class_style(position: int) -> tuple[str, str]:
    """Colour and marker of a class: 8 colours with one marker, then the same colours with the next: 64 in all."""
    return PALETTE[position % len(PALETTE)], MARKERS[position // len(PALETTE) % len(MARKERS)]


def bare(axes: "Axes") -> None:
    """No ticks and no frame, for images and maps whose axes mean nothing."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def shorten(name: str, length: int = 22) -> str:
    """A name that fits, cut at its end with an ellipsis."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def check_names(class_names: Sequence[str], classes: int) -> list[str]:
    """The names as a list; ValueError when their number is not that of the classes."""
    if len(class_names) != classes:
        raise ValueError(f"class_names: {len(class_names)} names for {classes} classes")
    return [str(name) for name in class_names]


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
    from matplotlib.ticker import PercentFormatter

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
