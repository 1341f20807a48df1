"""Two maps of the same clips: features of a random encoder and of the pretrained one."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from avssl.evaluation.arrays import Arrayish, FloatArray, as_labels, as_matrix, unit_rows
from avssl.evaluation.clustering import silhouette
from avssl.evaluation.pictures.style import bare, check_names, class_style, new_figure, save, shorten, styled


def tsne_map(features: Arrayish, *, perplexity: float = 30.0, seed: int = 0) -> FloatArray:
    """Plane coordinates ``(N, 2)`` by t-SNE (van der Maaten and Hinton 2008) on rows of length 1.

    Starts from PCA, seeded. Perplexity is kept under a third of the rows; fewer than 5 rows, or rows that are all
    the same, are drawn by PCA or at one point.
    """
    matrix = unit_rows(as_matrix(features, "features").astype(np.float64))
    rows, spread = len(matrix), matrix.std(axis=0).max()
    if spread < 1e-9:
        return np.zeros((rows, 2))
    if rows < 5 or matrix.shape[1] < 2:
        flat = PCA(min(2, *matrix.shape)).fit_transform(matrix)
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    perplexity = max(1.0, min(perplexity, (rows - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(matrix)


def tsne_before_after(
    before: Arrayish,
    after: Arrayish,
    labels: Arrayish,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    titles: tuple[str, str] = ("Before pretraining", "After pretraining"),
    title: str = "t-SNE of frozen features",
    max_points: int = 3000,
    seed: int = 0,
) -> None:
    """Two panels with one legend. Each title gives the silhouette of the classes in the features themselves (cosine
    geometry, full dimension), because distances in a t-SNE map cannot be read off.

    Args:
        before, after: ``(N, D)`` and ``(N, E)`` features of the same rows.
        labels: ``(N,)``, -1 for rows to leave out.
        class_names: names; labels index them.
        max_points: larger sets are sampled, seeded, and the title says so.
    """
    left, right = as_matrix(before, "before"), as_matrix(after, "after")
    if len(left) != len(right):
        raise ValueError(f"before has {len(left)} rows, after {len(right)}: they must be the same clips")
    truth = as_labels(labels, "labels", len(left), len(class_names))
    names = check_names(class_names, len(class_names))
    rows = np.flatnonzero(truth >= 0)
    if len(rows) == 0:
        raise ValueError("labels: every row is unlabelled (-1)")
    if len(rows) > max_points:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_points, replace=False))
        title += f", {max_points} of {int((truth >= 0).sum())} clips"
    truth = truth[rows]
    present = np.unique(truth)
    legend_columns = math.ceil(len(present) / 25)
    with styled():
        figure = new_figure(10.2 + 1.7 * legend_columns, 5.4, title)
        for position, (features, name) in enumerate(((left[rows], titles[0]), (right[rows], titles[1]))):
            axes = figure.add_subplot(1, 2, position + 1)
            place = tsne_map(features, seed=seed)
            for number, label in enumerate(present):
                colour, marker = class_style(number)
                x, y = place[truth == label].T
                size = float(np.clip(12000 / len(truth), 10, 36))
                axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.8, linewidths=0.3, edgecolors="white")
            score = silhouette(unit_rows(features.astype(np.float64)), truth, seed=seed)
            axes.set_title(f"{name}, silhouette {score:+.2f}" if np.isfinite(score) else name)
            bare(axes)
            axes.patch.set_facecolor("#F7F8FA")
            axes.margins(0.06)
        handles = [
            Line2D([], [], linestyle="", color=class_style(number)[0], marker=class_style(number)[1], markersize=6,
                   label=shorten(names[label]))
            for number, label in enumerate(present)
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside right center", ncols=legend_columns, fontsize=8, handletextpad=0.2)
        save(figure, path)
