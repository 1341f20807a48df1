"""EPIC-KITCHENS-100's action recognition beyond overall accuracy: its metrics on subsets, and its challenge's file.

As in the challenge's published evaluation (github.com/epic-kitchens/C1-Action-Recognition, utils/metrics.py; Damen et
al., IJCV 2022, section 4.1), each is top-1 accuracy over segments, not a mean over classes: *unseen* over the segments
of participants who are not in the training set, for verb, noun and action; *tail verb* over the segments whose verb is
a tail class, *tail noun* likewise, *tail action* over those whose verb OR noun is one. Overall top-1 and top-5 of verb,
noun and action come from :func:`avssl.evaluation.classification.multi_head_metrics`.

The file's form is version 0.2 of the same repository (utils/challenge.py): one JSON object with the levels of
supervision (github.com/epic-kitchens/sls) and, by narration id, the scores of all verbs, of all nouns, and of the 100
best actions under ``"verb,noun"``. The server takes it as ``test.json`` in a zip file.
"""

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from avssl.data.catalog import list_data
from avssl.data.manifest import Manifest
from avssl.evaluation.arrays import Arrayish, FloatArray, IntArray, as_labels, as_matrix
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.classification import ranking
from avssl.evaluation.report import Section, Table
from avssl.evaluation.statistics import proportion_interval
from avssl.files import atomic_path
from avssl.progress import track

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

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


VERSION, CHALLENGE = "0.2", "action_recognition"
CLASSES = {"verb": 97, "noun": 300}
ACTIONS = 100
LEVELS = ("sls_pt", "sls_tl", "sls_td")
# All pairs of the 100 best verbs and nouns of this many segments at a time: 20 MB.
_BATCH = 256


def best_actions(verb_scores: Arrayish, noun_scores: Arrayish, k: int = ACTIONS) -> tuple[np.ndarray, FloatArray]:
    """The k pairs of a verb and a noun with the largest product of probabilities, best first.

    The k best pairs use only the k best verbs and nouns.

    Args:
        verb_scores, noun_scores: (N, V) and (N, M) logits or log-probabilities.

    Returns:
        (N, k, 2) classes of verb and noun, and (N, k) products.
    """
    verbs = softmax(as_matrix(verb_scores, "verb scores").astype(np.float64), axis=1)
    nouns = softmax(as_matrix(noun_scores, "noun scores").astype(np.float64), axis=1)
    best_verbs, best_nouns = ranking(verbs, k), ranking(nouns, k)
    joint = (
        np.take_along_axis(verbs, best_verbs, axis=1)[:, :, None]
        * np.take_along_axis(nouns, best_nouns, axis=1)[:, None, :]
    ).reshape(len(verbs), -1)
    best = ranking(joint, k)
    pairs = [
        np.take_along_axis(best_verbs, best // best_nouns.shape[1], axis=1),
        np.take_along_axis(best_nouns, best % best_nouns.shape[1], axis=1),
    ]
    return np.stack(pairs, axis=2), np.take_along_axis(joint, best, axis=1)


def write_submission(
    path: Path, clip_ids: Sequence[str], scores: Mapping[str, Arrayish], sls: Sequence[int] = (3, 3, 3)
) -> Path:
    """Writes ``path`` (.json), and beside it a .zip that the server takes; both appear whole or not at all.

    Args:
        path: Of the JSON file.
        clip_ids: N narration ids.
        scores: "verb" (N, 97) and "noun" (N, 300) logits, in float32's precision.
        sls: Levels of supervision, 0 to 5, of pretraining, training labels and training data. The default says
            self-supervised pretraining on public data, labels with start and end, the training split; pretraining on
            EPIC-KITCHENS, too, is level 4.

    Returns:
        The zip file's path.

    Raises:
        ValueError: Scores of other shapes or not finite, repeated ids, or a level out of range.
    """
    if len(sls) != len(LEVELS) or any(level not in range(6) for level in sls):
        raise ValueError(f"sls: must be three levels of 0 to 5 (pretraining, labels, data), got {list(sls)}")
    levels = dict(zip(LEVELS, sls, strict=True))
    if len(set(clip_ids)) != len(clip_ids):
        raise ValueError("clip_ids: a narration id repeats; a segment is scored once")
    matrices = {head: as_matrix(scores[head], f"{head} scores") for head in CLASSES}
    for head, matrix in matrices.items():
        if matrix.shape != (len(clip_ids), CLASSES[head]):
            raise ValueError(f"{head} scores: shape {matrix.shape}, must be {(len(clip_ids), CLASSES[head])}")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        header = json.dumps({"version": VERSION, "challenge": CHALLENGE, **levels})
        file.write(header[:-1] + ', "results": {')
        entries = track(_entries(clip_ids, matrices), "submission", "segment", total=len(clip_ids))
        for number, (clip_id, entry) in enumerate(entries):
            file.write(f"{',' if number else ''}\n{json.dumps(clip_id)}: {entry}")
        file.write("\n}}\n")
    packed = path.with_suffix(".zip")
    with atomic_path(packed) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        archive.write(path, "test.json")
    logger.info("submission: %s, with supervision levels %s", packed, levels)
    return packed


def validate_submission(submission: Mapping[str, Any], clip_ids: Collection[str] | None = None) -> None:
    """Checks what the challenge's server checks.

    Args:
        submission: The parsed JSON.
        clip_ids: Narration ids that must be there, and no others: the whole test set.

    Raises:
        ValueError: The first thing that the server would refuse.
    """
    for key, value in {"version": VERSION, "challenge": CHALLENGE}.items():
        if submission.get(key) != value:
            raise ValueError(f"submission: {key} must be {value!r}, got {submission.get(key)!r}")
    for key in LEVELS:
        if submission.get(key) not in range(6):
            raise ValueError(f"submission: {key} must be 0 to 5, got {submission.get(key)!r}")
    results = submission.get("results")
    if not isinstance(results, Mapping) or not results:
        raise ValueError("submission: 'results' must hold an entry for every segment")
    if clip_ids is not None:
        missing, unexpected = sorted(set(clip_ids) - set(results)), sorted(set(results) - set(clip_ids))
        if missing or unexpected:
            raise ValueError(
                f"submission: {len(missing)} segments are missing {missing[:3]}, {len(unexpected)} are not of the test "
                f"set {unexpected[:3]}"
            )
    for clip_id, entry in results.items():
        for head, count in CLASSES.items():
            if set(entry.get(head, ())) != {str(k) for k in range(count)}:
                raise ValueError(f"submission: {clip_id}: {head} must have the scores of classes 0 to {count - 1}")
        count = len(entry.get("action", ()))
        if count != ACTIONS:
            raise ValueError(f"submission: {clip_id}: action must have {ACTIONS} scores, has {count}")
        for pair in entry["action"]:
            classes = pair.split(",")
            if len(classes) != len(CLASSES) or not all(
                name.isdecimal() and int(name) < count for name, count in zip(classes, CLASSES.values(), strict=True)
            ):
                raise ValueError(f"submission: {clip_id}: action {pair!r} is not 'VERB,NOUN'")
        for task in (*CLASSES, "action"):
            for name, score in entry[task].items():
                if not isinstance(score, int | float) or not math.isfinite(score):
                    raise ValueError(f"submission: {clip_id}: {task} {name}: {score!r} is not a finite number")


def _entries(clip_ids: Sequence[str], scores: Mapping[str, FloatArray]) -> Iterator[tuple[str, str]]:
    """Narration ids and their JSON objects, one at a time: together they are some 150 MB of text."""
    for start in range(0, len(clip_ids), _BATCH):
        part = {head: matrix[start : start + _BATCH] for head, matrix in scores.items()}
        pairs, products = best_actions(part["verb"], part["noun"])
        for row, clip_id in enumerate(clip_ids[start : start + _BATCH]):
            entry = {head: _object((str(k) for k in range(CLASSES[head])), part[head][row]) for head in CLASSES}
            entry["action"] = _object((f"{verb},{noun}" for verb, noun in pairs[row].tolist()), products[row])
            yield clip_id, "{" + ", ".join(f'"{task}": {text}' for task, text in entry.items()) + "}"


def _object(names: Iterator[str], values: FloatArray) -> str:
    # Nine digits give every float32 back; Python's own floats would be twice as long.
    return "{" + ",".join(f'"{name}":{value:.9g}' for name, value in zip(names, values.tolist(), strict=True)) + "}"


TEXT = (
    "As in the challenge's evaluation: top-1 over the segments of participants who are not in the training set, and "
    "over those whose class is in the official list of tail classes (for an action, its verb or its noun)."
)


@register_evaluation("unseen_tail", needs=("classifier", "epic", "labels"), default_for=("classifier",))
def unseen_tail(context: "EvaluationContext") -> EvaluationResult:
    """Top-1 of verb, noun and action on unseen participants and on tail classes."""
    scores = context.scores()
    labels = {head: context.truth(head) for head in scores}
    metrics = epic_metrics(scores, labels, context.split, context.features.index)
    rows = []
    for name in [key.removesuffix("/top1") for key in metrics if key.endswith("/top1")]:
        top1, low, high = (f"{metrics[f'{name}/{key}']:.1%}" for key in ("top1", "top1_low", "top1_high"))
        rows.append([name.replace("/", " "), top1, f"{low} to {high}", int(metrics[f"{name}/count"])])
    title, note = "Unseen participants and tail classes", f"Scores: {context.scored_clips}. Intervals: Wilson's."
    if not rows:
        return EvaluationResult(Section(title, f"{TEXT} The official lists were not found beside the annotations."))
    table = Table(title, ["segments", "top-1", "95 % interval", "count"], rows, note)
    return EvaluationResult(Section(title, TEXT, [table]), metrics)


@register_evaluation("submission", needs=("classifier", "epic", "unlabelled"), default_for=("classifier",))
def submission(context: "EvaluationContext") -> EvaluationResult:
    """submission.json and submission.zip beside result.json, for a split without labels."""
    outputs, scores = context.embedded["outputs"], context.all_scores()
    file = context.folder / "submission.json"
    packed = write_submission(file, outputs.clip_ids, scores, context.config.sls)
    data = context.config.data
    # All that is listed: the evaluated split lacks what the scan found broken.
    listed, _ = list_data(data.name, data.root, data.options)
    missing = len(listed.select(split=context.config.split)) - len(outputs)
    text = f"{packed.name} holds the scores of {len(outputs)} segments ({context.scored_clips})."
    if missing:
        text += f" {missing} segments could not be read and are missing: the challenge's server refuses such a file."
        logger.warning("submission: %d segments are missing; the challenge's server will refuse the file", missing)
    return EvaluationResult(
        Section("Submission to the challenge", text), details={"segments": len(outputs), "missing": missing}
    )
