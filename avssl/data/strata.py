"""Strata: rows that are alike in their label, so that a share or a fold of the data has all kinds in it."""

import numpy as np
from numpy.typing import NDArray

from avssl.data.manifest import Manifest


def strata(labels: NDArray[np.number]) -> NDArray[np.int64]:
    """The stratum of each row, (N,), -1 for unlabelled ones.

    A row with one label belongs to its class; a row with several to the rarest of them, because a draw by the common
    ones would lose the rare ones.

    Args:
        labels: (N,) class indices with -1 for unlabelled rows, or (N, C) multi-hot, rows of -1 where unlabelled.
    """
    if labels.ndim == 1:
        return labels.astype(np.int64)
    positive = labels > 0
    counts = np.where(positive, positive.sum(axis=0), np.iinfo(np.int64).max)
    return np.where(positive.any(axis=1), counts.argmin(axis=1), -1).astype(np.int64)


def stratified_share(labels: NDArray[np.number], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of a random share of the rows, the same share of every stratum, with at least one row of every class.

    Shares of one seed are nested: a row that is in the share of 5 % is in that of 10 %, too.

    Args:
        labels: As in :func:`strata`.
        fraction: Share of the rows, above 0 and up to 1.
        seed: Seed of the draw.

    Raises:
        ValueError: the fraction lies outside of that.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.train_fraction must lie above 0 and be at most 1, got {fraction}")
    groups = strata(labels)
    order = np.random.default_rng((seed, 11)).permutation(len(groups))
    chosen = np.zeros(len(groups), dtype=bool)
    members = {group: order[groups[order] == group] for group in np.unique(groups)}
    chosen[[rows[0] for rows in members.values()]] = True
    if labels.ndim == 2:  # a class that is nobody's rarest has no stratum of its own
        for column in np.flatnonzero((labels > 0).any(axis=0)):
            with_class = order[labels[order, column] > 0]
            if not chosen[with_class].any():
                chosen[with_class[0]] = True
    for rows in members.values():
        chosen[rows[: round(fraction * len(rows))]] = True
    return chosen


def training_share(train: Manifest, head: str | None, fraction: float, seed: int) -> Manifest:
    """``fraction`` of the rows of ``train``, stratified by ``head``; without a head all rows are alike."""
    labels = np.full(len(train), -1) if head is None else train.labels(head)
    return train.select(mask=stratified_share(labels, fraction, seed))
