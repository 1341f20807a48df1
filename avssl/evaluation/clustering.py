"""Do the classes form clusters, without a single label used in training?"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
    silhouette_score,
    v_measure_score,
)

from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_labels, as_matrix, to_numpy, unit_rows
from avssl.evaluation.base import EvaluationResult, Headline, register_evaluation
from avssl.evaluation.report import Section, Table
from avssl.evaluation.statistics import Z95

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext


def cluster_metrics(
    features: Arrayish, labels: Arrayish, *, normalize: bool = True, seed: int = 0, sample_size: int = 10_000
) -> dict[str, float]:
    """Two views of the same question.

    ``NMI``, ``ARI`` and ``V-measure`` compare k-means (as many clusters as classes present, ten starts) with the
    labels: higher is better, 1 is perfect, ARI of chance is 0. ``silhouette`` (-1..1, higher is better),
    ``davies_bouldin`` (lower is better) and ``calinski_harabasz`` (higher is better) take the labels as the clusters
    and measure how compact and how far apart they lie.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``, -1 for rows to leave out.
        normalize: scale rows to length 1 first, so that distances follow cosine similarity.
        sample_size: the silhouette needs all pairwise distances; larger sets are sampled, seeded.

    Returns:
        The six numbers, ``NMI_low``, ``NMI_high``, ``ARI_low``, ``ARI_high`` (95 %, for these clusters; see
        :func:`jackknife_clusters`), ``classes`` and ``count``. The last three of the six are
        NaN when classes are fewer than 2 or as many as rows.
    """
    matrix: FloatArray = as_matrix(features, "features").astype(np.float64)
    truth = as_labels(labels, "labels", len(matrix))
    matrix, truth = matrix[truth >= 0], truth[truth >= 0]
    if len(truth) == 0:
        raise ValueError("labels: every row is unlabelled (-1)")
    if normalize:
        matrix = unit_rows(matrix)
    classes = len(np.unique(truth))
    # Fewer distinct points than clusters (a collapsed encoder) cannot be split further.
    clusters = min(classes, len(np.unique(matrix, axis=0)))
    found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(matrix)
    metrics = {
        "NMI": float(normalized_mutual_info_score(truth, found)),
        "ARI": float(adjusted_rand_score(truth, found)),
        "V-measure": float(v_measure_score(truth, found)),
    }
    for name, (low, high) in jackknife_clusters(contingency(truth, found)).items():
        metrics |= {f"{name}_low": low, f"{name}_high": high}
    metrics["silhouette"] = silhouette(matrix, truth, seed=seed, sample_size=sample_size)
    separable = 2 <= classes < len(truth)
    metrics["davies_bouldin"] = float(davies_bouldin_score(matrix, truth)) if separable else float("nan")
    metrics["calinski_harabasz"] = float(calinski_harabasz_score(matrix, truth)) if separable else float("nan")
    return metrics | {"classes": float(classes), "count": float(len(truth))}


def silhouette(features: Arrayish, labels: Arrayish, *, seed: int = 0, sample_size: int = 10_000) -> float:
    """Mean silhouette (Rousseeuw 1987) of the labels taken as clusters; NaN when it is not defined."""
    matrix = as_matrix(features, "features")
    truth = as_labels(labels, "labels", len(matrix))
    matrix, truth = matrix[truth >= 0], truth[truth >= 0]
    if len(truth) > sample_size:
        chosen = np.random.default_rng(seed).choice(len(truth), sample_size, replace=False)
        matrix, truth = matrix[chosen], truth[chosen]
    if not 2 <= len(np.unique(truth)) < len(truth):
        return float("nan")
    return float(silhouette_score(matrix, truth))


def contingency(truth: Arrayish, found: Arrayish) -> FloatArray:
    """(classes, clusters) counts of two labellings of the same rows, without empty rows or columns."""
    _, a = np.unique(to_numpy(truth), return_inverse=True)
    _, b = np.unique(to_numpy(found), return_inverse=True)
    shape = int(a.max(initial=-1)) + 1, int(b.max(initial=-1)) + 1
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def jackknife_clusters(table: FloatArray) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``NMI`` and ``ARI`` between two fixed labellings, by leaving out one row at a time.

    Drawing rows with replacement repeats rows, which always agree with themselves, and so lifts both numbers; the
    delete-one jackknife does not (Efron and Stein 1981). All rows of one cell of the table are alike, so one value for
    each cell is enough. The interval is the value of all rows, give or take 1.96 standard errors.

    Args:
        table: (classes, clusters) counts; see :func:`contingency`. Fewer than 3 rows give NaN.
    """
    rows = table.sum()
    if rows < 3:
        return {"NMI": (float("nan"),) * 2, "ARI": (float("nan"),) * 2}
    i, j = np.nonzero(table)
    counts = table[i, j]
    intervals = {}
    for name, function, lowest in (("NMI", _nmi_without, 0.0), ("ARI", _ari_without, -1.0)):
        whole, left = function(table, None), function(table, (i, j))
        mean = (counts * left).sum() / rows
        error = np.sqrt((rows - 1) / rows * (counts * (left - mean) ** 2).sum())
        low, high = np.clip((whole - Z95 * error, whole + Z95 * error), lowest, 1.0)
        intervals[name] = float(low), float(high)
    return intervals


def _sums(
    table: FloatArray, cells: tuple[IntArray, IntArray] | None, term: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Sums of ``term`` over cells, rows and columns, and the number of rows, each without one row of every cell."""
    a, b, n = table.sum(axis=1), table.sum(axis=0), table.sum()
    totals = [term(part).sum() for part in (table, a, b)]
    if cells is None:
        return np.asarray(totals[0]), np.asarray(totals[1]), np.asarray(totals[2]), np.asarray(n)
    i, j = cells
    inner, rows, columns = (
        total + term(part - 1) - term(part) for total, part in zip(totals, (table[i, j], a[i], b[j]), strict=True)
    )
    return inner, rows, columns, np.full(len(i), n - 1)


def _nmi_without(table: FloatArray, cells: tuple[IntArray, IntArray] | None) -> FloatArray:
    """Mutual information over the mean of both entropies (scikit-learn's default, which also is the V-measure)."""
    inner, rows, columns, n = _sums(table, cells, lambda x: x * np.log(np.maximum(x, 1)))
    entropies = 2 * n * np.log(n) - rows - columns
    mutual = inner - rows - columns + n * np.log(n)
    return np.where(entropies > 1e-9, 2 * mutual / np.maximum(entropies, 1e-9), 1.0)


def _ari_without(table: FloatArray, cells: tuple[IntArray, IntArray] | None) -> FloatArray:
    """Adjusted Rand index (Hubert and Arabie 1985)."""
    inner, rows, columns, n = _sums(table, cells, lambda x: x * (x - 1) / 2)
    pairs = n * (n - 1) / 2
    chance, most = rows * columns / np.maximum(pairs, 1), (rows + columns) / 2
    same = np.abs(most - chance) < 1e-12
    return np.where(same, 1.0, (inner - chance) / np.where(same, 1.0, most - chance))


_COLUMNS = ("NMI", "ARI", "V-measure", "silhouette", "davies_bouldin", "calinski_harabasz")
TEXT = (
    "NMI, ARI and V-measure compare k-means clusters of the features with the classes: 1 is perfect. Silhouette "
    "(higher is better), Davies-Bouldin (lower) and Calinski-Harabasz (higher) take the classes as clusters."
)


@register_evaluation("clustering", needs=("single_label",), default_for=("pair", "encoder", "classifier"))
def clustering(context: "EvaluationContext") -> EvaluationResult:
    """The six numbers for every head with one label a clip; several labels a clip make no partition."""
    metrics: dict[str, float] = {}
    headlines, rows, details = [], [], {}
    seed = context.config.seed if context.kmeans_seed is None else context.kmeans_seed
    for head in context.heads:
        truth = context.truth(head)
        if truth.ndim != 1 or not 2 <= len(np.unique(truth[truth >= 0])) < (truth >= 0).sum():
            continue
        found = cluster_metrics(context.features.features, truth, seed=seed)
        details[head] = found
        metrics |= {f"{head}/{name}": value for name, value in found.items() if name not in ("count", "classes")}
        name = f"{head} NMI of k-means, {context.clips}"
        headlines.append(Headline(name, f"{head}/NMI", found["NMI"], found["NMI_low"], found["NMI_high"], ""))
        spans = [
            f"{found[name]:.3f} ({found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f})" for name in ("NMI", "ARI")
        ]
        rows.append([head, *spans, *(found[name] for name in _COLUMNS[2:]), int(found["count"])])
    names = [name.replace("_", "-").title() if "_" in name else name for name in _COLUMNS]
    note = "In brackets 95 % for these clusters: jackknife over the clips."
    tables = [Table("Clusters", ["head", *names, "clips"], rows, note)] if rows else []
    text = TEXT if rows else "No head has two classes with more clips than classes: there is nothing to cluster."
    return EvaluationResult(Section("Clusters", text, tables), metrics, headlines, details)
