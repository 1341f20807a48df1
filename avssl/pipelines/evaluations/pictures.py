"""pictures: maps of the features, and which classes are taken for which."""

import logging

from avssl.evaluation.classification import classification_report
from avssl.evaluation.pictures import class_maps, confusion_matrix
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
    drawn = []
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
            confusion_matrix(confusion, names, path, title=f"Confusion{by}, {head}")
            drawn.append((path, f"Confusion matrix{by}, {head}; rows are the truth"))
        rows = some_labelled(truth, POINTS, seed)
        panels = [(name, place(features[rows], seed=seed)) for name, place in maps.items()]
        panels[0] = with_silhouette(panels[0][0], features[rows], truth[rows], seed), panels[0][1]
        path = bench.picture(f"map-{head}")
        class_maps(panels, truth[rows], names, path, title=f"Features by {head}")
        share = "" if len(rows) == (truth >= 0).sum() else f", {len(rows)} of {int((truth >= 0).sum())} clips"
        drawn.append((path, f"{' and '.join(maps)} of the features by {head}{share}"))
    return Finding(Section("Pictures", text, pictures=drawn))
