"""EPIC-KITCHENS-100's action recognition beyond overall accuracy: unseen participants and tail classes.

As in the challenge's published evaluation (github.com/epic-kitchens/C1-Action-Recognition, utils/metrics.py; Damen et
al., IJCV 2022, section 4.1), each is top-1 accuracy over segments, not a mean over classes: *unseen* over the segments
of participants who are not in the training set, for verb, noun and action; *tail verb* over the segments whose verb is
a tail class, *tail noun* likewise, *tail action* over those whose verb OR noun is one. Overall top-1 and top-5 of verb,
noun and action come from :func:`avssl.evaluation.classification.multi_head_metrics`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.data.manifest import Manifest
from avssl.evaluation.arrays import Arrayish, IntArray, as_labels, as_matrix
from avssl.evaluation.intervals import proportion_interval

logger = logging.getLogger(__name__)

HEADS = ("verb", "noun")
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Subsets:
    """Which of N segments a metric is on, (N,) bool each; None where the data set's authors' list was not there."""

    unseen: BoolArray | None = None
    tail_verb: BoolArray | None = None
    tail_noun: BoolArray | None = None

    @property
    def tail_action(self) -> BoolArray | None:
        """Segments whose verb or noun is a tail class."""
        if self.tail_verb is None or self.tail_noun is None:
            return None
        return self.tail_verb | self.tail_noun

    @property
    def known(self) -> bool:
        """Whether any list was there."""
        return any(member is not None for member in (self.unseen, self.tail_verb, self.tail_noun))

    @classmethod
    def of(cls, manifest: Manifest, index: IntArray) -> "Subsets":
        """The subsets of the rows ``index`` (N,) of a manifest, from its columns "unseen", "tail_verb", "tail_noun"."""

        def read(name: str) -> BoolArray | None:
            if name not in manifest.table.column_names:
                return None
            column = manifest.column(name)
            values = [column[row] for row in index]
            return None if None in values else np.array([value == "yes" for value in values], dtype=bool)

        return cls(read("unseen"), read("tail_verb"), read("tail_noun"))


def is_epic(heads: Mapping[str, Any]) -> bool:
    """Whether data or a classifier with these heads is EPIC-KITCHENS's: a verb and a noun head, and no other."""
    return set(heads) == set(HEADS)


def epic_metrics(
    scores: Mapping[str, Arrayish],
    labels: Mapping[str, Arrayish],
    manifest: Manifest,
    index: IntArray,
) -> dict[str, float]:
    """:func:`subset_metrics` of the rows ``index`` of a manifest; nothing where that is not EPIC-KITCHENS.

    Args:
        scores, labels: of those rows by head.
    """
    if not is_epic(scores):
        return {}
    subsets = Subsets.of(manifest, index)
    if not subsets.known:
        logger.warning("EPIC-Kitchens: no unseen and tail metrics: the official lists are not beside the annotations")
        return {}
    return subset_metrics(scores, labels, subsets)


def subset_metrics(
    scores: Mapping[str, Arrayish], labels: Mapping[str, Arrayish], subsets: Subsets
) -> dict[str, float]:
    """Top-1 on the unseen participants and on the tail classes.

    Args:
        scores: "verb" (N, V) and "noun" (N, M) logits or log-probabilities.
        labels: "verb" and "noun" (N,); a segment without both labels is left out.
        subsets: Of the same N segments.

    Returns:
        ``unseen/verb/top1``, ``.../top1_low``, ``.../top1_high``, ``.../count``; likewise ``unseen/noun``,
        ``unseen/action``, ``tail/verb``, ``tail/noun``, ``tail/action``. A subset that is unknown or has no segment is
        left out, and a warning says so.
    """
    right: dict[str, BoolArray] = {}
    labelled = np.array(True)
    for head in HEADS:
        matrix = as_matrix(scores[head], f"scores of {head}")
        truth = as_labels(labels[head], f"labels of {head}", *matrix.shape)
        right[head] = matrix.argmax(axis=1) == truth
        labelled = labelled & (truth >= 0)
    right["action"] = right["verb"] & right["noun"]  # the best pair is the best verb with the best noun
    members = {f"unseen/{task}": subsets.unseen for task in right}
    members |= {"tail/verb": subsets.tail_verb, "tail/noun": subsets.tail_noun, "tail/action": subsets.tail_action}
    metrics: dict[str, float] = {}
    left_out = []
    for name, member in members.items():
        hits = right[name.split("/")[1]][member & labelled] if member is not None else np.zeros(0, dtype=bool)
        if not len(hits):
            left_out.append(f"{name} ({'no such segment' if member is not None else 'list not found'})")
            continue
        low, high = proportion_interval(int(hits.sum()), len(hits))
        values = {"top1": float(hits.mean()), "top1_low": low, "top1_high": high, "count": float(len(hits))}
        metrics |= {f"{name}/{key}": value for key, value in values.items()}
    if left_out:
        logger.warning("EPIC-Kitchens: metrics left out: %s", ", ".join(left_out))
    return metrics
