"""Class-balanced sampling: how likely each row is to be drawn, so that rare classes come as often as common ones."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avssl.data.failures import DataError
from avssl.data.manifest import Manifest

logger = logging.getLogger(__name__)


def balanced_shares(manifest: Manifest, heads: Sequence[str]) -> NDArray[np.float64]:
    """Probability (N,) of each row to be drawn, of sum 1.

    A row weighs the sum over its labels of 1 / rows of that class (AST: Gong et al. 2021). With one label a clip that
    draws every class equally often. Several heads have equal parts in the sum. A row without any label is never drawn.

    Raises:
        DataError: not one row has a label under ``heads``.
    """
    weights = np.zeros(len(manifest))
    for head in heads:
        rows, classes = manifest.label_pairs(head)
        if len(rows):
            counts = np.bincount(classes)
            by_label = 1 / (counts[classes] * np.count_nonzero(counts))
            weights += np.bincount(rows, by_label, minlength=len(manifest))
    if not weights.any():
        named = ", ".join(heads) or "none"
        raise DataError(f"data.sampling balanced needs labels: no training clip has one (heads: {named}); use shuffle")
    never = int((weights == 0).sum())
    if never:
        logger.warning("balanced sampling never draws %d of %d training clips: they have no label", never, len(weights))
    return weights / weights.sum()
