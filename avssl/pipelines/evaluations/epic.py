"""unseen_tail and submission: EPIC-KITCHENS-100's metrics on a labelled split, and its challenge's file for another."""

import logging

from avssl.data.catalog import list_data
from avssl.evaluation.epic import epic_metrics
from avssl.evaluation.epic_submission import write_submission
from avssl.evaluation.report import Section, Table
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench

logger = logging.getLogger(__name__)

TEXT = (
    "As in the challenge's evaluation: top-1 over the segments of participants who are not in the training set, and "
    "over those whose class is in the official list of tail classes (for an action, its verb or its noun)."
)


@evaluation("unseen_tail", needs=("classifier", "epic", "labels"), quick_for=("classifier",))
def unseen_tail(bench: Bench) -> Finding:
    """Top-1 of verb, noun and action on unseen participants and on tail classes."""
    scores = bench.scores()
    labels = {head: bench.truth(head) for head in scores}
    metrics = epic_metrics(scores, labels, bench.split, bench.features.index)
    rows = []
    for name in [key.removesuffix("/top1") for key in metrics if key.endswith("/top1")]:
        top1, low, high = (f"{metrics[f'{name}/{key}']:.1%}" for key in ("top1", "top1_low", "top1_high"))
        rows.append([name.replace("/", " "), top1, f"{low} to {high}", int(metrics[f"{name}/count"])])
    title, note = "Unseen participants and tail classes", f"Scores: {bench.scored_clips}. Intervals: Wilson's."
    if not rows:
        return Finding(Section(title, f"{TEXT} The official lists were not found beside the annotations."))
    table = Table(title, ["segments", "top-1", "95 % interval", "count"], rows, note)
    return Finding(Section(title, TEXT, [table]), metrics)


@evaluation("submission", needs=("classifier", "epic", "unlabelled"), quick_for=("classifier",))
def submission(bench: Bench) -> Finding:
    """submission.json and submission.zip beside result.json, for a split without labels."""
    outputs, scores = bench.embedded["outputs"], bench.all_scores()
    file = bench.folder / "submission.json"
    packed = write_submission(file, outputs.clip_ids, scores, bench.config.sls)
    data = bench.config.data
    listed, _ = list_data(data.name, data.root, data.options)  # the split on the bench lacks what the scan found broken
    missing = len(listed.select(split=bench.config.split)) - len(outputs)
    text = f"{packed.name} holds the scores of {len(outputs)} segments ({bench.scored_clips})."
    if missing:
        text += f" {missing} segments could not be read and are missing: the challenge's server refuses such a file."
        logger.warning("submission: %d segments are missing; the challenge's server will refuse the file", missing)
    return Finding(Section("Submission to the challenge", text), details={"segments": len(outputs), "missing": missing})
