"""Strata: rows that are alike in their label, so that a share or a fold of the data has all kinds in it.

Labels are pairs (row, class), as `Manifest.label_pairs` gives them: of two million clips with 527 classes, the table of
zeros and ones would take many gigabytes.
"""

import numpy as np
from numpy.typing import NDArray

from avssl.data.manifest import Manifest

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def strata(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """The stratum of each of ``count`` rows, (N,): the rarest of its classes, -1 where it has none.

    The rarest, because a draw by the common ones would lose the rare ones. Of classes that are equally rare it is the
    first.

    Args:
        count: Number of rows, N.
        pairs: The row and the class of every label, both (L,).
    """
    rows, classes = pairs
    groups = np.full(count, -1, dtype=np.int64)
    sizes = np.bincount(classes)
    order = np.lexsort((-classes, -sizes[classes]))  # the rarest last, and of these the first class
    groups[rows[order]] = classes[order]  # of several labels of a row the last one stays
    return groups


def stratified_share(count: int, pairs: Pairs, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of a random share of the rows, the same share of every stratum, with at least one row of every class.

    Shares of one seed are nested: a row that is in the share of 5 % is in that of 10 %, too.

    Args:
        count, pairs: As in :func:`strata`.
        fraction: Share of the rows, above 0 and up to 1.
        seed: Seed of the draw.

    Raises:
        ValueError: the fraction lies outside of that.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.train_fraction must lie above 0 and be at most 1, got {fraction}")
    order = np.random.default_rng((seed, 11)).permutation(count)
    members = _divided(order, strata(count, pairs)[order])
    chosen = np.zeros(count, dtype=bool)
    chosen[[rows[0] for rows in members]] = True
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    rows, classes = pairs
    drawn = np.argsort(place[rows], kind="stable")
    for with_class in _divided(rows[drawn], classes[drawn]):  # a class that is nobody's rarest has no stratum
        if not chosen[with_class].any():
            chosen[with_class[0]] = True
    for group in members:
        chosen[group[: round(fraction * len(group))]] = True
    return chosen


def training_share(train: Manifest, head: str | None, fraction: float, seed: int) -> Manifest:
    """``fraction`` of the rows of ``train``, stratified by ``head``; without a head all rows are alike."""
    none = np.zeros(0, dtype=np.int64)
    pairs = (none, none) if head is None else train.label_pairs(head)
    return train.select(mask=stratified_share(len(train), pairs, fraction, seed))


def _divided(values: NDArray[np.int64], groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """``values`` (L,) of each group, by rising group, each in their order."""
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(values[order], bounds) if len(values) else []
