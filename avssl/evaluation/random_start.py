"""Does pretraining help? A pretrained start against random weights that were trained alike, clip by clip."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.config import FinetuneConfig
from avssl.data.manifest import Manifest
from avssl.data.strata import row_groups
from avssl.evaluation.arrays import FloatArray, labelled
from avssl.evaluation.base import EvaluationResult
from avssl.evaluation.classification import HEADLINES, mean_average_precision
from avssl.evaluation.report import Section, Table
from avssl.evaluation.result import FILE, read_predictions
from avssl.evaluation.statistics import Difference, mcnemar, over_draws, paired_map

logger = logging.getLogger(__name__)

_VERDICTS = {
    "hurts": "Pretraining hurts here: random weights are better beyond the interval. Start from them (--checkpoint "
    'none), or see the page "Does it pay?" of the documents for what to change.',
    "helps": "The pretrained start is better beyond the interval.",
    "no difference": "No difference beyond the interval.",
}


def random_start(config: FinetuneConfig, folder: Path) -> FinetuneConfig:
    """The run from random weights that the run of ``config`` in ``folder`` is set against: all else is the same.

    Args:
        config: with the sizes of its encoders (:func:`avssl.training.initialization.complete_finetuning`).
        folder: its name, and ``-random``, is that of the other run.
    """
    return replace(
        config,
        checkpoint="none",
        compare_random=False,
        output=folder.with_name(f"{folder.name}-random"),
        wandb=replace(config.wandb, name=f"{config.wandb.name or folder.name}-random"),
        resume=config.resume if config.resume == "none" else "auto",
    )


def compare_with_random_start(
    clip_ids: Sequence[str],
    scores: Mapping[str, FloatArray],
    truth: Mapping[str, NDArray[Any]],
    test: Manifest,
    random: Path,
) -> EvaluationResult:
    """What a pretrained start gains over a finished run from random weights on the same test clips.

    Clips of one group (recording, video, speaker) are not independent: where there are such, the interval is over
    groups. It holds for these clips and this one seed; another seed may differ by more.

    Args:
        clip_ids: N names.
        scores: of the pretrained start by head, (N, C).
        truth: by head, (N,) or of several labels a clip (N, C); -1 is unlabelled.
        test: the rows of the clips.
        random: folder of the other run.

    Returns:
        Metrics ``HEAD/gain_METRIC`` with bounds; in the details, the numbers of both by head, and a verdict: "hurts"
        where a head's interval lies below 0, else "helps" where one lies above, else "no difference".

    Raises:
        ValueError: the runs have no clip in common, or other labels for them.
    """
    theirs = read_predictions(random / FILE)
    places = {clip: row for row, clip in enumerate(theirs.clip_ids)}
    rows = np.array([row for row, clip in enumerate(clip_ids) if clip in places], dtype=np.int64)
    if not len(rows):
        raise ValueError(f"compare_random: {random} has no test clip in common with this run")
    others = np.array([places[clip_ids[row]] for row in rows])
    groups = dict(zip(test.column("clip_id"), row_groups(test)[0].tolist(), strict=True))
    names = np.array([groups[clip_ids[row]] for row in rows])
    heads: dict[str, dict[str, Any]] = {}
    for head, values in scores.items():
        target = truth[head][rows]
        if not np.array_equal(target, theirs.truth[head][others]):
            raise ValueError(f"compare_random: {random} has other labels of {head!r} for the same clips")
        known = labelled(target)
        if not known.any():
            continue
        if target.ndim == 2:
            heads[head] = _of_map(values[rows][known], theirs.scores[head][others][known], target[known])
        else:
            right = values[rows].argmax(axis=1) == target, theirs.predicted[head][others] == target
            heads[head] = _of_top1(right[0][known], right[1][known], names[known])
    hurts, helps = any(told["high"] < 0 for told in heads.values()), any(told["low"] > 0 for told in heads.values())
    verdict = "hurts" if hurts else "helps" if helps else "no difference"
    if hurts:
        logger.warning("%s", _VERDICTS[verdict])
    metrics = {
        f"{head}/gain_{told['metric']}{end}": told[key]
        for head, told in heads.items()
        for key, end in (("difference", ""), ("low", "_low"), ("high", "_high"))
    }
    details = {"folder": str(random), "verdict": verdict, "heads": heads}
    return EvaluationResult(_section(heads, verdict, random), metrics, details=details)


def _of_top1(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Both shares of right answers, and their paired difference, by groups (N,) where clips share one."""
    alone = len(np.unique(groups)) == len(groups)
    found = mcnemar(ours, theirs) if alone else over_draws([ours.astype(np.float64) - theirs], [groups.tolist()])
    return _told("top1", float(ours.mean()), float(theirs.mean()), found)


def _of_map(ours: FloatArray, theirs: FloatArray, truth: NDArray[Any]) -> dict[str, Any]:
    one, two = (mean_average_precision(each, truth) for each in (ours, theirs))
    return _told("mAP", one, two, paired_map(ours, theirs, truth))


def _told(metric: str, ours: float, theirs: float, found: Difference) -> dict[str, Any]:
    values = asdict(found)
    return {"metric": metric, "pretrained": ours, "random": theirs, "difference": values.pop("value"), **values}


def _section(heads: Mapping[str, Mapping[str, Any]], verdict: str, random: Path) -> Section:
    rows: list[Sequence[Any]] = []
    for head, told in heads.items():
        value, low, high = (100 * told[key] for key in ("difference", "low", "high"))
        points = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
        name = f"{head} {HEADLINES[told['metric']]}"
        logger.info("%s: %s points ahead of random weights (95 %% interval)", name, points)
        rows.append([name, f"{told['random']:.1%}", f"{told['pretrained']:.1%}", points, told["p"], told["test"]])
    columns = ["", "random weights", "pretrained", "points ahead (95 %)", "p", "test"]
    note = f"One seed: another one may differ by more. The other run is {random}."
    return Section("Against random weights", _VERDICTS[verdict], [Table("Gain of pretraining", columns, rows, note)])
