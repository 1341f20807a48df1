"""Nearest neighbours in frozen features: a classifier with nothing to train, and hardly anything to tune."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avssl.evaluation.arrays import FloatArray, as_matrix, unit_rows
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.classification import classification_result
from avssl.evaluation.embeddings import Embeddings
from avssl.evaluation.probe import labelled_rows, targets_of

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

logger = logging.getLogger(__name__)

TEMPERATURE = 0.07
# More training rows than these are not all asked when k is chosen; the order of the ks has settled by then.
MAX_QUERIES = 2000


def knn_scores(
    train: Embeddings,
    test: Embeddings,
    head: str,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> FloatArray:
    """Weighted nearest neighbours by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

    Each of the k nearest training rows votes for its class, or for each of its labels, with weight
    ``exp(similarity / temperature)``. With fewer training rows than k, all of them vote.

    Returns:
        ``(N, C)`` float32 shares of the vote; of a single-label head rows sum to 1.
    """
    features, labels = labelled_rows(train, head, num_classes, "train")
    gallery, queries = unit_rows(features), unit_rows(as_matrix(test.features, "test features").astype(np.float64))
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"train features have {gallery.shape[1]} columns, test features {queries.shape[1]}")
    targets = targets_of(labels, num_classes)
    (scores,) = _votes(queries, gallery, targets, [k], temperature, chunk)
    return scores.astype(np.float32)


def choose_k(
    train: Embeddings,
    head: str,
    num_classes: int,
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> int:
    """The k by which training rows find their own labels best when each is left out; the smallest of equals.

    Judged by accuracy, of a multi-label head by the share of a row's own labels among as many of its best-voted ones.
    """
    features, labels = labelled_rows(train, head, num_classes, "train")
    gallery, targets = unit_rows(features), targets_of(labels, num_classes)
    ks = sorted({k for k in ks if k < len(gallery)})
    if not ks:
        return 1
    queries = np.arange(len(gallery))
    if len(queries) > MAX_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(queries, MAX_QUERIES, replace=False))
    quality = []
    wanted = targets[queries] > 0
    for scores in _votes(gallery[queries], gallery, targets, ks, temperature, 1024, leave_out=queries):
        place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        among_best = wanted & (place < wanted.sum(axis=1, keepdims=True))
        quality.append(float((among_best.sum(axis=1) / np.maximum(wanted.sum(axis=1), 1)).mean()))
    best = ks[int(np.argmax(quality))]
    logger.info("knn %s: k=%d of %s by leaving one out", head, best, ks)
    return best


def _votes(
    queries: FloatArray,
    gallery: FloatArray,
    targets: FloatArray,
    ks: Sequence[int],
    temperature: float,
    chunk: int,
    leave_out: np.ndarray | None = None,
) -> list[FloatArray]:
    """Shares of the vote (Q, C) for each k, in ascending order; ``leave_out`` is the gallery row of each query."""
    most = min(max(ks), len(gallery) - (leave_out is not None))
    results: list[FloatArray] = [np.zeros((len(queries), targets.shape[1])) for _ in ks]
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T
        rows = np.arange(len(similarity))
        if leave_out is not None:
            similarity[rows, leave_out[start : start + chunk]] = -np.inf
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        nearest, near = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(near, order, axis=1)
        weight = np.exp((near - 1) / temperature)
        for k, scores in zip(ks, results, strict=True):
            share = weight[:, :k] / weight[:, :k].sum(axis=1, keepdims=True)
            for column in range(share.shape[1]):  # k rows of targets at once would be k times the memory
                scores[start : start + len(rows)] += share[:, column : column + 1] * targets[nearest[:, column]]
    return results


@register_evaluation("knn", needs=("labels", "training"), default_for=("pair", "encoder"))
def knn(context: "EvaluationContext") -> EvaluationResult:
    """The k-NN classifier of every head.

    Raises:
        ValueError: ``knn_k`` is below 1.
    """
    given = context.config.knn_k
    if given is not None and given < 1:
        raise ValueError(f"knn_k: must be at least 1, got {given}")
    ks, scores = {}, {}
    for head, names in context.heads.items():
        train = context.training_features
        ks[head] = given or choose_k(train, head, len(names), seed=context.config.seed)
        scores[head] = knn_scores(train, context.features, head, len(names), k=ks[head])
    chosen = ", ".join(f"k = {k} for {head}" for head, k in ks.items())
    how = "given" if given else "chosen by leaving one training clip out"
    text = (
        f"The nearest training clips by cosine similarity vote with weight exp(similarity / {TEMPERATURE:g}); "
        f"{chosen}, {how}. Nothing is trained here."
    )
    found = classification_result(context, scores, title="Nearest neighbours", text=text, prefix="knn/", by="k-NN")
    return EvaluationResult(found.section, found.metrics, found.headlines, {"k": ks})
