"""Retrieval to look at: a sound, and the frames that the model finds for it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avssl.evaluation.arrays import Arrayish, to_numpy
from avssl.evaluation.pictures.style import FAINT, RIGHT, WRONG, new_figure, save, shorten, styled


@dataclass(frozen=True)
class RetrievalExample:
    """One row of the picture.

    Attributes:
        spectrogram: query's log-mel ``(F, T)``, low frequencies first.
        frames: best match first, each ``(H, W, 3)`` uint8.
        right: for each frame, whether it belongs to the query.
        title: name of the query.
        captions: a line under each frame (class and similarity, say); empty for none.
        rank: place of the right clip among all; None when not known.
    """

    spectrogram: Arrayish
    frames: Sequence[Arrayish]
    right: Sequence[bool]
    title: str = ""
    captions: Sequence[str] = ()
    rank: int | None = None


def _frame(values: Arrayish, row: int) -> np.ndarray:
    frame = to_numpy(values)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"queries[{row}].frames: expected (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    return frame


def retrieval_examples(
    path: str | os.PathLike[str],
    queries: Sequence[RetrievalExample],
    *,
    columns: int = 5,
    title: str = "Audio to video: query sound and the frames found for it",
) -> None:
    """One row for each query: its spectrogram, then its best ``columns`` frames, the right one framed in green with a
    tick, wrong ones in orange with a cross (shape tells them apart where colour does not).

    Raises:
        ValueError: no query, frames of another shape or type, or flags that do not match the frames.
    """
    if not queries:
        raise ValueError("queries: nothing to draw")
    columns = max(1, min(columns, max(len(query.frames) for query in queries)))
    with styled():
        figure = new_figure(max(6.5, 2.5 + 1.65 * columns), 1.95 * len(queries) + 0.6, title)
        grid = figure.add_gridspec(len(queries), columns + 1, width_ratios=[1.5] + [1] * columns)
        for row, query in enumerate(queries):
            if len(query.right) != len(query.frames):
                raise ValueError(f"queries[{row}]: {len(query.right)} flags for {len(query.frames)} frames")
            axes = figure.add_subplot(grid[row, 0])
            spectrogram = to_numpy(query.spectrogram)
            if spectrogram.ndim != 2:
                raise ValueError(f"queries[{row}].spectrogram: expected (F, T), got shape {spectrogram.shape}")
            axes.imshow(spectrogram, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(shorten(query.title, 26), fontsize=9)
            axes.set_xlabel("time" if query.rank is None else f"right clip at rank {query.rank}", fontsize=7.5)
            axes.set_ylabel("mel band", fontsize=7.5)
            for column in range(min(columns, len(query.frames))):
                axes = figure.add_subplot(grid[row, column + 1])
                axes.imshow(_frame(query.frames[column], row), interpolation="antialiased")
                axes.set(xticks=[], yticks=[])
                colour = RIGHT if query.right[column] else WRONG
                for spine in axes.spines.values():
                    spine.set(visible=True, color=colour, linewidth=3)
                mark = "✓" if query.right[column] else "✗"
                axes.set_title(f"{column + 1} {mark}", color=colour, fontsize=9, loc="center")
                if column < len(query.captions):
                    axes.set_xlabel(shorten(query.captions[column], 24), fontsize=7.5, color=FAINT)
        save(figure, path)
