"""Do the classes form clusters, without a single label used in training?"""

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

from avssl.evaluation.arrays import Arrayish, FloatArray, as_labels, as_matrix, unit_rows
from avssl.evaluation.intervals import contingency, jackknife_clusters


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
        :func:`avssl.evaluation.intervals.jackknife_clusters`), ``classes`` and ``count``. The last three of the six are
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
