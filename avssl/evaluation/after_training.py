"""The end of a training: evaluations of what it made, reported in the folder of its run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avssl.config import EvaluateConfig, FinetuneConfig, PretrainConfig, to_dict, to_yaml
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits
from avssl.evaluation.arrays import labelled
from avssl.evaluation.base import EvaluationResult, possible, report_evaluations, run_evaluations
from avssl.evaluation.context import Before, EvaluationContext
from avssl.evaluation.curves import loss_curves
from avssl.evaluation.plots import drawn
from avssl.evaluation.random_start import compare_starts
from avssl.evaluation.report import Section
from avssl.loading import Loaded
from avssl.tracking import read_rows
from avssl.training.run import Run

# Evaluations whose details have a place of their own in the result of a training.
_DETAILS = {"accuracy": "classes", "clustering": "clustering"}


def evaluate_trained(
    config: FinetuneConfig | PretrainConfig,
    run: Run,
    model: Loaded,
    splits: Splits,
    split: Manifest | None,
    loaders: Loaders,
    evaluations: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, Any],
    before: Before | None = None,
    random: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a trained model; writes result.json, predictions, pictures and report.html, and tells the tracker.

    Args:
        config: of the training.
        run: its folder and tracker.
        model: what was trained, on its device.
        splits: the data of the training.
        split: of them, the rows to evaluate; None where there are none, which leaves the training alone to be reported.
        loaders: of the training.
        evaluations: names; those that the data cannot give are left out.
        title: of the report.
        facts: what else stands in result.json.
        before: features of ``split`` before the training, for a picture.
        random: folder of a run from random weights to set this one against; None for none.

    Returns:
        What result.json holds.
    """
    name = None if split is None else "test" if split is splits.test else "val"
    results: dict[str, EvaluationResult] = {}
    context: EvaluationContext | None = None
    if split is not None:
        evaluation = EvaluateConfig(
            str(run.folder),
            config.data,
            split=str(name),
            batch_size=config.optim.batch_size,
            runtime=config.runtime,
            output=run.folder,
            seed=config.seed,
        )
        context = EvaluationContext(
            config=evaluation,
            model=model,
            split=split,
            labels=splits.labels,
            protocol=splits.protocol,
            loaders=loaders,
            folder=run.folder,
            before=before,
            kmeans_seed=0,  # runs of other seeds are compared by clusters of the same start
        )
        results = run_evaluations(possible(evaluations, context), context)
        if random is not None:
            scores = context.scores()
            truth = {head: context.truth(head) for head in scores}
            results["random_start"] = compare_starts(context.features.clip_ids, scores, truth, context.split, random)
    curves = _curves(run)
    result = report_evaluations(
        run.folder,
        {key: _without_details(key, found) for key, found in results.items()},
        title=title,
        facts={
            "split": name,
            "held_out": {name: rows.told() for name, rows in splits.held_out.items()},
            "clip_protocol": splits.protocol.told("embeddings" if model.kind == "pair" else None),
            "pad": model.pad,
            "coverage": splits.coverage | {"evaluated": {} if context is None else context.coverage()},
            "manifest": splits.digest,
            "seed": config.seed,
            "config": to_dict(config),
            **{key: results[of].details for of, key in _DETAILS.items() if of in results},
            **facts,
        },
        config_yaml=to_yaml(config),
        summary={} if context is None else context.card(),
        sections=curves,
    )
    if context is not None:
        context.write_predictions(results)
    run.tracker.summary({f"test/{key}": value for key, value in result["metrics"].items()})
    sections = [*(found.section for found in results.values()), *curves]
    pictures = [Path(path) for section in sections for path, _ in section.pictures]
    run.tracker.log_pictures({path.stem: path for path in pictures})
    if context is not None and "accuracy" in results:
        _log_predictions(run, context)
    return result


def _without_details(name: str, found: EvaluationResult) -> EvaluationResult:
    if name == "clustering":  # of frozen and of trained features alike: no metric of the training
        return replace(found, details={}, metrics={})
    return replace(found, details={}) if name in _DETAILS else found


def _curves(run: Run) -> list[Section]:
    path, rows = run.picture("curves"), read_rows(run.tracker.metrics_path)
    if not rows:
        return []
    rows += read_rows(run.tracker.speed_path)
    return [Section("Training", pictures=drawn(path, "Training curves", loss_curves, rows, path))]


def _log_predictions(run: Run, context: EvaluationContext) -> None:
    """Shows predictions and confusion where the run is watched by loggers that take them."""
    for head, scores in context.scores().items():
        target, names = context.truth(head), context.labels[head]
        run.tracker.log_predictions(head, context.features.clip_ids, target, scores, names)
        known = labelled(target)
        if target.ndim == 1 and known.any():
            run.tracker.log_confusion(head, target[known], scores[known].argmax(1), names)
