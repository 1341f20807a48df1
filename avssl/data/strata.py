"""Strata and groups: what a share, a hold-out or a fold of the data has of every class, and what stays on one side.

A stratum is the rows that are alike in their label, a group those that must not be divided, such as the clips of one
recording.

Labels are pairs (row, class), as `Manifest.label_pairs` gives them: of two million clips with 527 classes, the table of
zeros and ones would take many gigabytes.
"""

import logging
from collections.abc import Collection

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import CACHE_SOURCE

logger = logging.getLogger(__name__)

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
# Columns, with or without "_id", whose equal values belong together, and what they are then of; finest first.
GROUP_COLUMNS = {
    "path": "file",
    CACHE_SOURCE: "file",
    "source": "file",
    "recording": "recording",
    "video": "video",
    "youtube": "video",
    "speaker": "speaker",
}


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


def row_groups(manifest: Manifest, least: int = 2, ignore: Collection[str] = ()) -> tuple[NDArray[np.int64], list[str]]:
    """What must not be divided: rows of one file, and of one value in a column of :data:`GROUP_COLUMNS`.

    A column that would leave a single group is not kept together, which is logged.

    Args:
        manifest: The rows, N.
        ignore: Columns that may be divided, such as those that say what is to be learned.

    Returns:
        The group of every row, (N,) from 0 on in the order of the rows; and what rows share: file, recording, video or
        speaker.
    """
    count = len(manifest)
    groups = np.arange(count)
    shared: dict[str, None] = {}
    named = {name.strip().casefold().removesuffix("_id"): name for name in manifest.table.column_names}
    for column, what in GROUP_COLUMNS.items():
        name = named.get(column)
        if name is None or {name, column} & set(ignore):
            continue
        values = manifest.table[name].combine_chunks().dictionary_encode()
        codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        known = np.flatnonzero(codes >= 0)
        known = known[~pc.equal(values.dictionary, "").to_numpy(zero_copy_only=False)[codes[known]]]
        if len(np.unique(codes[known])) == len(known):
            continue  # no two rows share a value
        # Groups are nodes, and so are the values: rows join the two.
        size = count + len(values.dictionary)
        edges = coo_array((np.ones(len(known)), (groups[known], count + codes[known])), shape=(size, size))
        _, joined = connected_components(edges, directed=False)
        _, first, joined = np.unique(joined[groups], return_index=True, return_inverse=True)
        if len(first) < 2:
            logger.warning("data: all clips share their %s, or what they share joins them: it is divided", what)
            continue
        groups = np.argsort(np.argsort(first))[joined]
        shared[what] = None
    return groups, list(shared)


def learnable_heads(rows: Manifest) -> list[str]:
    """Heads of which ``rows`` have two classes or more, or, with several labels a clip, a class to be there or not."""
    return [
        head
        for head in rows.heads
        if len(np.unique(rows.label_pairs(head)[1])) > 1 or (head in rows.multilabel and rows.labelled(head).any())
    ]


def held_out(
    groups: NDArray[np.int64], pairs: Pairs, fraction: float, seed: int, *, every_class: bool = False
) -> NDArray[np.bool_]:
    """Mask (N,) of the rows of a hold-out: whole groups, with about the same share of every stratum.

    At least one group is held out and one is left, and no class that is held out is lost to the rest.

    Args:
        groups: The group of every row, (N,); see :func:`row_groups`.
        pairs: As in :func:`strata`.
        fraction: Share of the rows, above 0 and below 1.
        seed: Seed of the draw.
        every_class: Hold out at least one group of every class that has two.

    Raises:
        ValueError: all rows are one group, or every class is.
    """
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ValueError("there is only one clip, or all clips are of one recording")
    # (group, class), once each
    members, kinds = np.unique(np.stack([groups[pairs[0]], pairs[1]]), axis=1) if len(pairs[0]) else pairs
    order = np.random.default_rng((seed, 7)).permutation(len(sizes))
    order = order[np.argsort(strata(len(sizes), (members, kinds))[order], kind="stable")]
    chosen = np.zeros(len(sizes), dtype=bool)
    due, taken = 0.0, 0
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        due += fraction * size
        if taken + size / 2 <= due:  # as near to the share as whole groups are, stratum after stratum
            chosen[group] = True
            taken += size
    if not chosen.any():
        chosen[order[0]] = True
    place = np.empty(len(sizes), dtype=np.int64)
    place[order] = np.arange(len(sizes))
    drawn = np.argsort(place[members], kind="stable")
    by_class = _divided(members[drawn], kinds[drawn])
    for having in by_class if every_class else ():
        if len(having) > 1 and not chosen[having].any():
            chosen[having[0]] = True
    for having in by_class:  # a class that only the hold-out has could not be learned
        if chosen[having].all():
            chosen[having[-1]] = False
    if not chosen.any():
        raise ValueError("every class has only one clip, or clips of one recording")
    return chosen[groups]


def _divided(values: NDArray[np.int64], groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """``values`` (L,) of each group, by rising group, each in their order."""
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(values[order], bounds) if len(values) else []
