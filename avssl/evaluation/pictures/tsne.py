"""Plane coordinates of clips by t-SNE."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from avssl.evaluation.arrays import Arrayish, FloatArray, as_matrix, unit_rows


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
