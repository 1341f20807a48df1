"""Checks of what comes in: metrics take plain arrays or tensors and refuse the ones that cannot mean anything."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
Arrayish = ArrayLike | torch.Tensor


def to_numpy(values: Arrayish) -> NDArray[Any]:
    """Array or tensor (any device, any dtype, bfloat16 too) -> NumPy array, without a graph."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    return np.asarray(values)


def as_matrix(values: Arrayish, name: str) -> FloatArray:
    """Finite float matrix ``(N, D)`` with at least one row and one column.

    Raises:
        ValueError: it has another shape, is empty, or holds NaN or infinity (the first such row is named).
    """
    matrix = to_numpy(values)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name}: expected a non-empty (N, D) matrix, got shape {tuple(matrix.shape)}")
    if not np.issubdtype(matrix.dtype, np.floating):
        matrix = matrix.astype(np.float64)
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(bad)} rows hold NaN or infinity, first row {int(bad.argmax())}; "
            "the model that made them has diverged or was fed broken input"
        )
    return matrix


def as_labels(values: Arrayish, name: str, rows: int, num_classes: int | None = None) -> IntArray:
    """Integer labels ``(rows,)``; -1 means unlabelled.

    Raises:
        ValueError: another length, not integers, below -1, or not below ``num_classes``.
    """
    labels = to_numpy(values)
    if labels.shape != (rows,):
        raise ValueError(f"{name}: expected {rows} labels, one for each row, got shape {tuple(labels.shape)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: expected integer labels, got {labels.dtype}")
    if labels.min(initial=0) < -1:
        raise ValueError(f"{name}: label {int(labels.min())} is below -1, the mark of an unlabelled row")
    if num_classes is not None and labels.max(initial=-1) >= num_classes:
        raise ValueError(f"{name}: label {int(labels.max())} does not fit into {num_classes} classes")
    return labels.astype(np.int64)


def unit_rows(matrix: FloatArray) -> FloatArray:
    """Rows divided by their Euclidean length; a row of zeros stays zero."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(length > 0, length, 1.0)


def labelled(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) whether a row has a label, of a head with one label a clip (N,) or with several (N, C)."""
    return np.asarray(labels >= 0 if labels.ndim == 1 else (labels >= 0).all(axis=1))


def one_vs_rest(scores: FloatArray) -> FloatArray:
    """Logits ``(N, C)`` as log-probabilities, by which classes rank rows: a softmax changes the order of the rows.

    Probabilities are left as they are.
    """
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    return log_softmax(scores.astype(np.float64), axis=1)
