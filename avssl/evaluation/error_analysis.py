"""Which classes go wrong, and which are taken for which."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from avssl.evaluation.arrays import Arrayish, FloatArray, labelled, to_numpy
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.plots import INK, check_names, new_figure, save, shorten, styled
from avssl.evaluation.report import Section, Sound, Table

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

CLIPS = 3  # of each class
TEXT = (
    "The classes that go wrong most, and of each the clips that it goes wrong by the most, to listen to: a wrong label "
    "is often heard at once."
)


@register_evaluation("error_analysis", needs=("labels", "scores"), default_for=("classifier",))
def error_analysis(context: "EvaluationContext") -> EvaluationResult:
    """A table of the worst classes of every head, and playable clips.

    Raises:
        ValueError: ``worst_classes`` is below 1.
    """
    if context.config.worst_classes < 1:
        raise ValueError(f"worst_classes: must be at least 1, got {context.config.worst_classes}")
    tables, wanted = [], []
    for head, names in context.heads.items():
        truth = context.truth(head)
        known = np.flatnonzero(labelled(truth))
        find = _wrong_of_one if truth.ndim == 1 else _missed_of_several
        rows, clips = find(context.scores()[head][known], truth[known], names, context.config.worst_classes)
        unit = "accuracy" if truth.ndim == 1 else "average precision"
        note = f"{unit} of {context.scored_clips}; the {len(rows)} worst of {len(names)} classes"
        tables.append(Table(f"Worst classes of {head}", ["class", unit, "clips", "taken most often for"], rows, note))
        wanted += [(int(known[row]), title, caption) for row, title, caption in clips]
    return EvaluationResult(Section("Worst classes", TEXT, tables, sounds=_sounds(context, wanted)))


_Clips = list[tuple[int, str, str]]  # row, title, caption


def _wrong_of_one(
    scores: FloatArray, truth: NDArray[Any], names: list[str], most: int
) -> tuple[list[list[object]], _Clips]:
    """Table rows, and (row, title, caption) of the clips, of a head with one label a clip."""
    share, found = softmax(scores.astype(np.float64), axis=1), scores.argmax(axis=1)
    right = {int(label): float((found[truth == label] == label).mean()) for label in np.unique(truth)}
    rows: list[list[object]] = []
    clips: _Clips = []
    for label in sorted(right, key=lambda label: (right[label], label))[:most]:
        members = np.flatnonzero(truth == label)
        wrong = members[found[members] != label]
        counts = np.bincount(found[wrong], minlength=len(names))
        taken = f"{names[int(counts.argmax())]} ({int(counts.max())})" if len(wrong) else None
        rows.append([names[label], f"{right[label]:.1%}", len(members), taken])
        for row in wrong[np.argsort(share[wrong, label], kind="stable")][:CLIPS]:
            heard = f"taken for {names[found[row]]} ({share[row, found[row]]:.0%}; the truth {share[row, label]:.0%})"
            clips.append((int(row), names[label], heard))
    return rows, clips


def _missed_of_several(
    scores: FloatArray, truth: NDArray[Any], names: list[str], most: int
) -> tuple[list[list[object]], _Clips]:
    """The same of a multi-label head: clips that have the class and score it lowest."""
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero((truth > 0).any(axis=0))
    precision = {int(c): float(average_precision_score(truth[:, c] > 0, scores[:, c])) for c in present}
    rows: list[list[object]] = []
    clips: _Clips = []
    for label in sorted(precision, key=lambda label: (precision[label], label))[:most]:
        members = np.flatnonzero(truth[:, label] > 0)
        others = np.where(truth[members] > 0, -np.inf, scores[members]).argmax(axis=1)
        counts = np.bincount(others, minlength=len(names))
        taken = f"{names[int(counts.argmax())]} ({int(counts.max())})"
        rows.append([names[label], f"{precision[label]:.1%}", len(members), taken])
        for row in members[np.argsort(scores[members, label], kind="stable")][:CLIPS]:
            own = ", ".join(names[c] for c in np.flatnonzero(truth[row] > 0))
            best = int(scores[row].argmax())
            heard = f"labelled {own}; {names[label]} got {expit(scores[row, label]):.0%}, the highest is {names[best]}"
            clips.append((int(row), names[label], heard))
    return rows, clips


def _sounds(context: "EvaluationContext", wanted: _Clips) -> list[Sound]:
    """The sound of the clips that were judged, in the middle of some rows, decoded now; silent ones are left out."""
    index = context.features.index
    audible = context.split.select(mask=np.isin(np.arange(len(context.split)), [index[row] for row, _, _ in wanted]))
    audible = audible.usable(audio=True, channel=context.config.data.channel)[0]
    if not len(audible):
        return []
    protocol = replace(context.protocol, eval_clips=1)
    # With the pictures, where they were judged: a clip lies where all of its streams run.
    modalities = tuple(dict.fromkeys((*context.loaders.modalities, "audio")))
    loaders = replace(context.loaders, modalities=modalities, protocol=protocol)
    waves: dict[str, FloatArray] = {}
    for batch in loaders.evaluate(audible):
        if batch.audio is not None:
            waves |= dict(zip(batch.clip_ids, batch.audio.numpy(), strict=True))
    rate, ids = context.model.sample_rate, context.features.clip_ids
    return [
        Sound(waves[ids[row]], rate, f"{title}: {ids[row]}", caption)
        for row, title, caption in wanted
        if ids[row] in waves
    ]


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
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

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
