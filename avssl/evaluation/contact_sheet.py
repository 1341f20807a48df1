"""Contact sheet of clips: frames, waveform and spectrogram of each clip as it is and as augmentation makes it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle

from avssl.evaluation.arrays import Arrayish, FloatArray, to_numpy
from avssl.evaluation.plots import FAINT, PALETTE, WRONG, new_figure, save, shorten, styled

_SHOWN_FRAMES = 4
_COLUMNS = 300  # of a waveform's outline
_WIDTH = 3.1  # of a view, in inches
_WAVE_HEIGHT, _MEL_HEIGHT = 0.42, 1.05


@dataclass(frozen=True)
class View:
    """One version of a clip.

    Attributes:
        title: "as it is", "view 1" ...
        waveform: ``(S,)``, full scale at 1.
        spectrogram: log-mel ``(F, T)``, low frequencies first.
        frames: ``(T, H, W, 3)`` uint8; None without video.
        caption: lines under the view.
        crop: share of the frames' side, in their middle, to outline; None for no outline.
    """

    title: str
    waveform: Arrayish
    spectrogram: Arrayish
    frames: Arrayish | None = None
    caption: str = ""
    crop: float | None = None


def contact_sheet(
    path: str | os.PathLike[str],
    clips: Sequence[tuple[str, Sequence[View]]],
    *,
    seconds: float,
    title: str = "Augmentation",
    notes: Sequence[str] = (),
) -> None:
    """One row for each clip, one column for each view of it.

    Waveforms of a clip share their scale, and so do its spectrograms: what is louder looks louder. Samples beyond full
    scale, which a 16-bit file clips, are drawn in orange.

    Args:
        clips: Name and views of each clip; all have the same number of views.
        seconds: Length of the clips.
        notes: Lines under the title.

    Raises:
        ValueError: no clip, or clips of different numbers of views.
    """
    columns = {len(views) for _, views in clips}
    if len(columns) != 1 or columns == {0}:
        raise ValueError(f"clips: need at least one, all with the same number of views; got {sorted(columns)} views")
    width = _WIDTH * columns.pop()
    frames_height = 0.0 if clips[0][1][0].frames is None else _WIDTH / _SHOWN_FRAMES
    lines = max(1 + view.caption.count("\n") for _, views in clips for view in views)
    height = frames_height + _WAVE_HEIGHT + _MEL_HEIGHT + 0.75 + 0.13 * lines
    head = 0.5 + 0.19 * len(notes)
    with styled():
        figure = new_figure(width, head + height * len(clips))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.05, hspace=0.0, wspace=0.0)
        parts = figure.subfigures(1 + len(clips), 1, squeeze=False, height_ratios=[head] + [height] * len(clips))
        top, *rows = parts[:, 0]
        top.text(0.012, 1 - 0.1 / head, title, fontsize=13, fontweight="bold", va="top")
        top.text(0.012, 1 - 0.4 / head, "\n".join(notes), fontsize=8.5, color=FAINT, va="top", linespacing=1.5)
        for row, (name, views) in zip(rows, clips, strict=True):
            _draw_clip(row, name, views, seconds, frames_height)
        save(figure, path)


def _draw_clip(figure: SubFigure, name: str, views: Sequence[View], seconds: float, frames_height: float) -> None:
    waveforms = [to_numpy(view.waveform).astype(np.float64) for view in views]
    mels = [to_numpy(view.spectrogram) for view in views]
    loudest = max(1e-3, *(float(np.abs(waveform).max()) for waveform in waveforms))
    low, high = np.percentile(np.concatenate([mel.ravel() for mel in mels]), (1, 99.8))
    heights = [frames_height] * (frames_height > 0) + [_WAVE_HEIGHT, _MEL_HEIGHT]
    grid = figure.add_gridspec(len(heights), len(views), height_ratios=heights)
    for column, view in enumerate(views):
        axes = [figure.add_subplot(grid[row, column]) for row in range(len(heights))]
        if view.frames is not None:
            _draw_frames(axes[0], to_numpy(view.frames), view.crop)
        _draw_waveform(axes[-2], waveforms[column], seconds, loudest)
        axes[-1].imshow(
            mels[column],
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation="nearest",
            vmin=low,
            vmax=high,
            extent=(0, seconds, 0, len(mels[column])),
        )
        axes[-1].set_yticks([])
        axes[-1].tick_params(axis="x", labelsize=7, length=2)
        axes[-1].set_xlabel(view.caption, fontsize=7.5)
        axes[-1].xaxis.set_major_formatter("{x:g} s")
        if column == 0:
            axes[-1].set_ylabel("mel band", fontsize=7.5)
        axes[0].set_title(shorten(f"{name}, {view.title}" if column == 0 else view.title, 44), fontsize=9)


def _draw_frames(axes: Axes, frames: np.ndarray, crop: float | None) -> None:
    chosen = frames[np.linspace(0, len(frames) - 1, min(_SHOWN_FRAMES, len(frames))).round().astype(int)]
    for place, frame in enumerate(chosen):
        axes.imshow(frame, extent=(place, place + 0.97, 0, 0.97), interpolation="antialiased")
        if crop is not None and crop < 1:
            side, corner = 0.97 * crop, 0.485 * (1 - crop)
            for colour, gap in (("black", 0), ("white", 3)):  # seen on dark and on bright frames
                outline = Rectangle((place + corner, corner), side, side, fill=False, edgecolor=colour, linewidth=0.9)
                outline.set_linestyle((0, (3, gap)))
                axes.add_patch(outline)
    axes.set(xlim=(0, _SHOWN_FRAMES - 0.03), ylim=(0, 0.97), anchor="W")
    axes.set_axis_off()


def _draw_waveform(axes: Axes, waveform: FloatArray, seconds: float, loudest: float) -> None:
    parts = np.array_split(waveform, min(_COLUMNS, len(waveform)))
    high, low = (np.array([function(part) for part in parts]) for function in (np.max, np.min))
    time = (np.arange(len(parts)) + 0.5) * seconds / len(parts)
    axes.fill_between(time, low, high, color=PALETTE[0], linewidth=0.4)
    if max(high.max(), -low.min()) > 1:
        axes.fill_between(time, 1, high, where=high > 1, color=WRONG, linewidth=0.8)
        axes.fill_between(time, low, -1, where=low < -1, color=WRONG, linewidth=0.8)
    axes.set(xlim=(0, seconds), ylim=(-1.05 * loudest, 1.05 * loudest))
    axes.set_axis_off()
