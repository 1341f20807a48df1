"""Heat maps over frames: where a model takes a sound to come from, and where it does."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.pictures.style import bare, new_figure, save, shorten, styled

COLUMNS = 4


@dataclass(frozen=True)
class HeatExample:
    """One clip of the picture.

    Attributes:
        frame: (H, W, 3) uint8.
        heat: (S, S) over the same square, of any scale.
        truth: (S, S) where the source is.
        title: name of the clip.
        caption: a line under it.
    """

    frame: NDArray[np.uint8]
    heat: FloatArray
    truth: NDArray[np.bool_]
    title: str
    caption: str = ""


def heat_maps(
    path: str | os.PathLike[str], examples: Sequence[HeatExample], *, title: str = "Where the sound is found"
) -> None:
    """The frames under their heat maps; a white line surrounds the truth.

    Raises:
        ValueError: no example.
    """
    if not examples:
        raise ValueError("examples: nothing to draw")
    rows = -(-len(examples) // COLUMNS)
    with styled():
        figure = new_figure(2.1 * COLUMNS, 2.5 * rows + 0.5, title)
        grid = figure.add_gridspec(rows, COLUMNS)
        for number, example in enumerate(examples):
            axes = figure.add_subplot(grid[number // COLUMNS, number % COLUMNS])
            side = len(example.heat)
            square = (0.0, float(side), float(side), 0.0)
            axes.imshow(example.frame, extent=square, interpolation="nearest")
            axes.imshow(example.heat, extent=square, cmap="inferno", alpha=0.55)
            if not example.truth.all():  # a line needs an outside
                centres = np.arange(side) + 0.5
                axes.contour(centres, centres, example.truth, levels=[0.5], colors="white", linewidths=1.5)
            bare(axes)
            axes.set_title(shorten(example.title), fontsize=8)
            axes.set_xlabel(shorten(example.caption, 34), fontsize=7.5)
        save(figure, path)
