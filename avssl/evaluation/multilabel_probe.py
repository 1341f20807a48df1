"""One-vs-rest logistic regression of many classes at once: what a linear probe is where a clip has several labels."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold

from avssl.evaluation.arrays import FloatArray


def fit_logistic(
    features: FloatArray,
    targets: FloatArray,
    c: float,
    *,
    max_iter: int = 500,
    tol: float = 1e-4,
    start: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Minimizes ``|W|^2 / 2 + c * sum of the binary cross-entropies`` by L-BFGS; biases are not penalized.

    The classes do not share a term, so the minimum is that of one ``LogisticRegression(C=c)`` for each class; doing
    them together is one matrix product instead of a loop over hundreds of classes.

    Args:
        features: (N, D), standardized.
        targets: (N, C) zeros and ones.
        c: inverse strength of the penalty.
        start: weights and biases to start from.

    Returns:
        Weights (C, D) and biases (C,), float64.
    """
    rows, width = features.shape
    classes = targets.shape[1]
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    scale = 1.0 / (c * rows)  # the mean over rows instead of the sum: gradients of a size that does not depend on N

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        weight, bias = flat[: classes * width].reshape(classes, width), flat[classes * width :]
        logits = features @ weight.T + bias
        value = (np.logaddexp(0, logits) - targets * logits).sum() / rows + scale * (weight**2).sum() / 2
        slope = (expit(logits) - targets) / rows
        return float(value), np.concatenate([(slope.T @ features + scale * weight).ravel(), slope.sum(axis=0)])

    first = np.zeros(classes * (width + 1)) if start is None else np.concatenate([start[0].ravel(), start[1]])
    options = {"maxiter": max_iter, "gtol": tol / 10, "ftol": 1e-10}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
    return found[: classes * width].reshape(classes, width), found[classes * width :]


def choose_penalty(
    features: FloatArray,
    targets: FloatArray,
    cs: Sequence[float],
    *,
    folds: int = 5,
    max_iter: int = 500,
    seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """The C of the best mean average precision on rows held out, and that of every C.

    Scores are ranked within a fold, and the folds' mean counts. With one C, or fewer rows than two for each fold, the
    middle C is taken and the second value is empty.
    """
    cs = sorted(cs)
    folds = min(folds, len(features) // 2)
    if len(cs) < 2 or folds < 2:
        return cs[len(cs) // 2], {}
    quality: dict[float, list[float]] = {c: [] for c in cs}
    for train, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        ranked = targets[held_out].any(axis=0)
        if not ranked.any():
            continue
        start = None
        for c in cs:
            start = fit_logistic(features[train], targets[train], c, max_iter=max_iter, tol=1e-3, start=start)
            scores = features[held_out] @ start[0].T + start[1]
            quality[c].append(average_precision_score(targets[held_out][:, ranked], scores[:, ranked], average="macro"))
    mean = {c: float(np.mean(values)) for c, values in quality.items() if values}
    return (max(mean, key=mean.__getitem__), mean) if mean else (cs[len(cs) // 2], {})
