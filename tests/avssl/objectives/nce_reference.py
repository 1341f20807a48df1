"""Noise-contrastive instance discrimination in NumPy, written from the probabilities rather than from logits."""

import numpy as np


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numpy_nce(
    queries: np.ndarray, bank: np.ndarray, positives: list, negatives: list, temperature: float, partition: float
) -> tuple[float, np.ndarray]:
    """Loss and gradient with respect to ``queries`` before normalization.

    The model P(row) = exp(s) / (N Z), the noise 1 / N, K noise samples: P(D = 1) = P / (P + K / N).
    """
    clips, size = len(bank), len(queries)
    loss, gradient = 0.0, np.zeros_like(queries)
    for i, raw in enumerate(queries):
        query = raw / np.linalg.norm(raw)
        noise = len(negatives[i]) / clips
        for row in positives[i]:
            model = np.exp(query @ bank[row] / temperature) / (clips * partition)
            posterior = model / (model + noise)
            loss -= np.log(posterior) / len(positives[i])
            gradient[i] -= (1 - posterior) * bank[row] / temperature / len(positives[i])
        for row in negatives[i]:
            model = np.exp(query @ bank[row] / temperature) / (clips * partition)
            posterior = model / (model + noise)
            loss -= np.log(1 - posterior)
            gradient[i] += posterior * bank[row] / temperature
        gradient[i] = (gradient[i] - gradient[i] @ query * query) / np.linalg.norm(raw)
    return loss / size, gradient / size


def mean_exponential(queries: np.ndarray, bank: np.ndarray, negatives: list, temperature: float) -> float:
    """Mean of exp(score) over all negatives of all ``queries``."""
    scores = [unit_rows(queries)[i] @ bank[row] / temperature for i, rows in enumerate(negatives) for row in rows]
    return float(np.exp(scores).mean())


def moved(bank: np.ndarray, index: list, embeddings: np.ndarray, momentum: float) -> np.ndarray:
    """The bank after a batch."""
    bank = bank.copy()
    for row in set(index):
        mean = unit_rows(embeddings)[[i for i, other in enumerate(index) if other == row]].mean(axis=0)
        entry = momentum * bank[row] + (1 - momentum) * mean
        bank[row] = entry / np.linalg.norm(entry)
    return bank
