"""pictures: maps of the features, and which classes are taken for which."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.classification import classification_report
from avssl.evaluation.pictures import class_maps, confusion_matrix, drawn
from avssl.evaluation.pictures.maps import UMAP_MISSING, has_umap, some_labelled, umap_map, with_silhouette
from avssl.evaluation.pictures.tsne import tsne_map
from avssl.evaluation.report import Section
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench

logger = logging.getLogger(__name__)

# More points than this make a t-SNE slow and its picture unreadable.
POINTS = 2000


@evaluation("pictures", needs=("classes",), quick_for=("pair", "encoder", "classifier"))
def pictures(bench: Bench) -> Finding:
    """t-SNE, UMAP and a confusion matrix for every head with one label a clip."""
    shown: list[tuple[Path, str]] = []
    text = "Distances in a map cannot be read off; the silhouette is of the classes in the features themselves."
    maps = {"t-SNE": tsne_map} | ({"UMAP": umap_map} if has_umap() else {})
    if "UMAP" not in maps:
        logger.info(UMAP_MISSING)
        text += f" {UMAP_MISSING}."
    scored = not bench.lacks("scores")
    seed, features = bench.config.seed, bench.features.features
    for head, names in bench.heads.items():
        truth = bench.truth(head)
        if truth.ndim != 1:
            continue
        if scored:
            path = bench.picture(f"confusion-{head}")
            confusion = classification_report(bench.scores()[head], truth).confusion
            by = "" if bench.subject.classifier is not None else " of the linear probe"
            caption, title = f"Confusion matrix{by}, {head}; rows are the truth", f"Confusion{by}, {head}"
            shown += drawn(path, caption, confusion_matrix, confusion, names, path, title=title)
        rows = some_labelled(truth, POINTS, seed)
        path = bench.picture(f"map-{head}")
        share = "" if len(rows) == (truth >= 0).sum() else f", {len(rows)} of {int((truth >= 0).sum())} clips"
        caption = f"{' and '.join(maps)} of the features by {head}{share}"
        shown += drawn(path, caption, _map, maps, features[rows], truth[rows], names, path, seed, f"Features by {head}")
    return Finding(Section("Pictures", text, pictures=shown))


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
