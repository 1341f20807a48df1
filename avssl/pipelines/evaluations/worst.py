"""worst: the classes that go wrong most, with clips of them to listen to."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import average_precision_score

from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.report import Section, Sound, Table
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench, labelled

CLIPS = 3  # of each class
TEXT = (
    "The classes that go wrong most, and of each the clips that it goes wrong by the most, to listen to: a wrong label "
    "is often heard at once."
)


@evaluation("worst", needs=("labels", "scores"), quick_for=("classifier",))
def worst(bench: Bench) -> Finding:
    """A table of the worst classes of every head, and playable clips.

    Raises:
        ValueError: ``worst_classes`` is below 1.
    """
    if bench.config.worst_classes < 1:
        raise ValueError(f"worst_classes: must be at least 1, got {bench.config.worst_classes}")
    tables, wanted = [], []
    for head, names in bench.heads.items():
        truth = bench.truth(head)
        known = np.flatnonzero(labelled(truth))
        find = _wrong_of_one if truth.ndim == 1 else _missed_of_several
        rows, clips = find(bench.scores()[head][known], truth[known], names, bench.config.worst_classes)
        unit = "accuracy" if truth.ndim == 1 else "average precision"
        note = f"{unit} of {bench.scored_clips}; the {len(rows)} worst of {len(names)} classes"
        tables.append(Table(f"Worst classes of {head}", ["class", unit, "clips", "taken most often for"], rows, note))
        wanted += [(int(known[row]), title, caption) for row, title, caption in clips]
    return Finding(Section("Worst classes", TEXT, tables, sounds=_sounds(bench, wanted)))


_Clips = list[tuple[int, str, str]]


def _wrong_of_one(
    scores: FloatArray, truth: NDArray[Any], names: list[str], most: int
) -> tuple[list[list[object]], _Clips]:
    """Table rows, and (row, title, caption) of the clips, of a head with one label a clip."""
    share, found = softmax(scores.astype(np.float64), axis=1), scores.argmax(axis=1)
    right = {int(label): float((found[truth == label] == label).mean()) for label in np.unique(truth)}
    rows: list[list[object]] = []
    clips: _Clips = []
    for label in sorted(right, key=lambda label: (right[label], label))[:most]:
        members = np.flatnonzero(truth == label)
        wrong = members[found[members] != label]
        counts = np.bincount(found[wrong], minlength=len(names))
        taken = f"{names[int(counts.argmax())]} ({int(counts.max())})" if len(wrong) else None
        rows.append([names[label], f"{right[label]:.1%}", len(members), taken])
        for row in wrong[np.argsort(share[wrong, label], kind="stable")][:CLIPS]:
            heard = f"taken for {names[found[row]]} ({share[row, found[row]]:.0%}; the truth {share[row, label]:.0%})"
            clips.append((int(row), names[label], heard))
    return rows, clips


def _missed_of_several(
    scores: FloatArray, truth: NDArray[Any], names: list[str], most: int
) -> tuple[list[list[object]], _Clips]:
    """The same of a multi-label head: clips that have the class and score it lowest."""
    present = np.flatnonzero((truth > 0).any(axis=0))
    precision = {int(c): float(average_precision_score(truth[:, c] > 0, scores[:, c])) for c in present}
    rows: list[list[object]] = []
    clips: _Clips = []
    for label in sorted(precision, key=lambda label: (precision[label], label))[:most]:
        members = np.flatnonzero(truth[:, label] > 0)
        others = np.where(truth[members] > 0, -np.inf, scores[members]).argmax(axis=1)
        counts = np.bincount(others, minlength=len(names))
        taken = f"{names[int(counts.argmax())]} ({int(counts.max())})"
        rows.append([names[label], f"{precision[label]:.1%}", len(members), taken])
        for row in members[np.argsort(scores[members, label], kind="stable")][:CLIPS]:
            own = ", ".join(names[c] for c in np.flatnonzero(truth[row] > 0))
            best = int(scores[row].argmax())
            heard = f"labelled {own}; {names[label]} got {expit(scores[row, label]):.0%}, the highest is {names[best]}"
            clips.append((int(row), names[label], heard))
    return rows, clips


def _sounds(bench: Bench, wanted: _Clips) -> list[Sound]:
    """The sound of the clips that were judged, in the middle of some rows, decoded now; silent ones are left out."""
    index = bench.features.index
    audible = bench.split.select(mask=np.isin(np.arange(len(bench.split)), [index[row] for row, _, _ in wanted]))
    audible = audible.usable(audio=True, channel=bench.config.data.channel)[0]
    if not len(audible):
        return []
    protocol = replace(bench.protocol, eval_clips=1)
    # With the pictures, where they were judged: a clip lies where all of its streams run.
    modalities = tuple(dict.fromkeys((*bench.loaders.modalities, "audio")))
    loaders = replace(bench.loaders, modalities=modalities, protocol=protocol)
    waves: dict[str, FloatArray] = {}
    for batch in loaders.evaluate(audible):
        if batch.audio is not None:
            waves |= dict(zip(batch.clip_ids, batch.audio.numpy(), strict=True))
    rate, ids = bench.subject.sample_rate, bench.features.clip_ids
    return [
        Sound(waves[ids[row]], rate, f"{title}: {ids[row]}", caption)
        for row, title, caption in wanted
        if ids[row] in waves
    ]
