"""Maps of the clips' features in the plane, classes told by colour and marker and named in a legend."""

import importlib.util
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from avssl.evaluation.arrays import Arrayish, FloatArray, as_labels, as_matrix, unit_rows
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.clustering import silhouette
from avssl.evaluation.plots import bare, check_names, class_style, drawn, new_figure, save, shorten, styled
from avssl.evaluation.report import Section

if TYPE_CHECKING:
    from avssl.evaluation.context import EarlierFeatures, EvaluationContext

logger = logging.getLogger(__name__)

# More points than this make a t-SNE slow and its picture unreadable.
POINTS = 2000
UMAP_MISSING = "UMAP needs umap-learn: pip install 'avssl[umap]' or pip install umap-learn"


def has_umap() -> bool:
    """Whether umap-learn is installed; importing it takes long, so that is left until it is used."""
    return importlib.util.find_spec("umap") is not None


def umap_map(features: Arrayish, *, neighbors: int = 15, seed: int = 0) -> FloatArray:
    """Plane coordinates ``(N, 2)`` by UMAP (McInnes et al. 2018) with cosine distance, seeded.

    Neighbours are kept below the number of rows; fewer than 5 rows are drawn as t-SNE's are.

    Raises:
        ImportError: umap-learn is not installed; the message says how to.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError(UMAP_MISSING) from error
    matrix = unit_rows(as_matrix(features, "features").astype(np.float32))
    if len(matrix) < 5 or matrix.std(axis=0).max() < 1e-6:
        return tsne_map(matrix, seed=seed)
    model = UMAP(n_neighbors=min(neighbors, len(matrix) - 1), metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(matrix), dtype=np.float64)


def class_maps(
    panels: Sequence[tuple[str, FloatArray]],
    labels: Arrayish,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Panels side by side with one legend; all show the same clips.

    Args:
        panels: title and coordinates ``(N, 2)`` of each.
        labels: ``(N,)`` classes; -1 for rows that no panel shows.
        class_names: names; labels index them.

    Raises:
        ValueError: no labelled row, or panels of other lengths than the labels.
    """
    from matplotlib.lines import Line2D

    names = check_names(class_names, len(class_names))
    truth = as_labels(labels, "labels", len(panels[0][1]), len(class_names))
    present = np.unique(truth[truth >= 0])
    if not len(present):
        raise ValueError("labels: every row is unlabelled (-1)")
    legend_columns = math.ceil(len(present) / 25)
    size = float(np.clip(12000 / len(truth), 10, 36))
    with styled():
        figure = new_figure(5.1 * len(panels) + 1.7 * legend_columns, 5.4, title)
        for position, (name, place) in enumerate(panels, 1):
            if place.shape != (len(truth), 2):
                raise ValueError(f"panel {name!r}: coordinates {place.shape} for {len(truth)} labels")
            axes = figure.add_subplot(1, len(panels), position)
            for number, label in enumerate(present):
                colour, marker = class_style(number)
                x, y = place[truth == label].T
                axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.8, linewidths=0.3, edgecolors="white")
            axes.set_title(name)
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
    rows = some_labelled(truth, max_points, seed)
    if len(rows) < (truth >= 0).sum():
        title += f", {len(rows)} of {int((truth >= 0).sum())} clips"
    panels = [
        (with_silhouette(name, features[rows], truth[rows], seed), tsne_map(features[rows], seed=seed))
        for features, name in ((left, titles[0]), (right, titles[1]))
    ]
    class_maps(panels, truth[rows], class_names, path, title=title)


def some_labelled(labels: NDArray[Any], most: int, seed: int) -> np.ndarray:
    """Labelled rows in ascending order, at most so many, drawn with ``seed``.

    Raises:
        ValueError: there is none.
    """
    rows = np.flatnonzero(labels >= 0)
    if len(rows) == 0:
        raise ValueError("labels: every row is unlabelled (-1)")
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def with_silhouette(name: str, features: FloatArray, labels: Arrayish, seed: int = 0) -> str:
    """``name`` with the silhouette of the classes in the full space, where it is defined."""
    score = silhouette(unit_rows(features.astype(np.float64)), labels, seed=seed)
    return f"{name}, silhouette {score:+.2f}" if np.isfinite(score) else name


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


@register_evaluation("pictures", needs=("single_label",), default_for=("pair", "encoder", "classifier"))
def pictures(context: "EvaluationContext") -> EvaluationResult:
    """t-SNE and UMAP of the features for every head with one label a clip; of a run that trained, before and after."""
    shown: list[tuple[Path, str]] = []
    text = "Distances in a map cannot be read off; the silhouette is of the classes in the features themselves."
    maps = {"t-SNE": tsne_map} | ({"UMAP": umap_map} if has_umap() else {})
    if "UMAP" not in maps and context.before is None:
        logger.info(UMAP_MISSING)
        text += f" {UMAP_MISSING}."
    seed, features = context.config.seed, context.features.features
    for head, names in context.heads.items():
        truth = context.truth(head)
        if truth.ndim != 1:
            continue
        if context.before is not None:
            shown += _before_and_after(context, context.before, head)
            continue
        rows = some_labelled(truth, POINTS, seed)
        path = context.picture(f"map-{head}")
        share = "" if len(rows) == (truth >= 0).sum() else f", {len(rows)} of {int((truth >= 0).sum())} clips"
        caption = f"{' and '.join(maps)} of the features by {head}{share}"
        shown += drawn(path, caption, _map, maps, features[rows], truth[rows], names, path, seed, f"Features by {head}")
    return EvaluationResult(Section("Pictures", text, pictures=shown))


def _before_and_after(context: "EvaluationContext", before: "EarlierFeatures", head: str) -> list[tuple[Path, str]]:
    truth = context.truth(head)
    rows = np.flatnonzero(truth >= 0)[:POINTS]
    if len(rows) < 5:
        return []
    path, titles = context.picture(f"tsne-{head}"), (before.title, before.title_after)
    caption = f"t-SNE of the features by {head}: {' and '.join(titles).lower()}"
    points = before.features.features[rows], context.features.features[rows], truth[rows], context.heads[head]
    return drawn(path, caption, tsne_before_after, *points, path, titles=titles, title=f"t-SNE by {head}")


def _map(
    maps: Mapping[str, Callable[..., FloatArray]],
    features: FloatArray,
    truth: np.ndarray,
    names: list[str],
    path: Path,
    seed: int,
    title: str,
) -> None:
    """The features (N, D) of N labelled clips on every map, side by side."""
    panels = [(name, place(features, seed=seed)) for name, place in maps.items()]
    panels[0] = with_silhouette(panels[0][0], features, truth, seed), panels[0][1]
    class_maps(panels, truth, names, path, title=title)
