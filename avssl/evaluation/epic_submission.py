"""The file that EPIC-KITCHENS-100's action recognition challenge takes, and a check of it before it is sent.

The form is version 0.2 of github.com/epic-kitchens/C1-Action-Recognition (utils/challenge.py): one JSON object with the
levels of supervision (github.com/epic-kitchens/sls) and, by narration id, the scores of all verbs, of all nouns, and of
the 100 best actions under ``"verb,noun"``. The server takes it as ``test.json`` in a zip file.
"""

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from scipy.special import softmax

from avssl.evaluation.arrays import Arrayish, FloatArray, as_matrix
from avssl.evaluation.classification import ranking
from avssl.files import atomic_path
from avssl.progress import track

logger = logging.getLogger(__name__)

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
