"""robustness: the same clips under noise, in rooms, over telephones and codecs, with gaps."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from avssl.data.batch import Batch
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.degradations import Degradation, degradations
from avssl.evaluation.embeddings import embed_many
from avssl.evaluation.pictures import condition_bars, drawn
from avssl.evaluation.report import Section, Table
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench
from avssl.pipelines.evaluations.scored import QUALITIES, head_metrics, quality

TEXT = (
    "The same clips, damaged before the classifier hears them. What is random in a damage depends on the seed and the "
    "clip alone, so that two checkpoints hear the same. Frames, where the classifier sees them, are left as they are."
)


@evaluation("robustness", needs=("labels", "scores", "hearing"))
def robustness(bench: Bench) -> Finding:
    """Top-1, or mAP, of every head under every condition; of linear probes where the checkpoint has no classes."""
    conditions = degradations(bench.subject.sample_rate)
    clean = head_metrics(bench, bench.scores())
    damaged = {name: head_metrics(bench, scores) for name, scores in _scores(bench, conditions).items()}
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    pictures: list[tuple[Path, str]] = []
    for head in bench.heads:
        name = quality(clean, head)
        key, unit = f"{head}/{name}", QUALITIES[name]
        bars, rows = {}, [["none", f"{clean[key]:.1%}", None, None]]
        for condition, found in damaged.items():
            low, high = (found.get(f"{key}_{side}", float("nan")) for side in ("low", "high"))
            bars[condition] = found[key], low, high
            interval = f"{low:.1%} to {high:.1%}" if low == low else None
            rows.append([condition, f"{found[key]:.1%}", interval, f"{100 * (found[key] - clean[key]):+.1f}"])
            metrics |= {f"robustness/{condition}/{key}": found[key]}
            metrics |= {f"robustness/{condition}/{key}_{side}": v for side, v in (("low", low), ("high", high))}
        columns = ["damage", f"{unit}, {bench.scored_clips}", "95 % interval", "points lost or won"]
        tables.append(Table(f"Robustness of {head}", columns, rows))
        path = bench.picture(f"robustness-{head}")
        groups = {condition.name: condition.group for condition in conditions}
        label = f"{unit}, {bench.scored_clips}"
        caption = f"{unit} of {head} under each condition, with 95 % intervals"
        look = {"title": f"{head} under damage", "xlabel": label, "reference": clean[key]}
        pictures += drawn(path, caption, condition_bars, bars, groups, path, **look)
    return Finding(Section("Robustness", TEXT, tables, pictures), metrics)


def _scores(bench: Bench, conditions: list[Degradation]) -> dict[str, dict[str, FloatArray]]:
    """condition -> head -> (N, classes), from one reading of the clips."""
    seed, rate = bench.config.seed, bench.subject.sample_rate

    def encode(batch: Batch) -> dict[str, Tensor]:
        assert batch.audio is not None
        outputs = {}
        for condition in conditions:
            heard = _damaged(batch, condition, rate, seed).to(bench.fabric.device)
            outputs[condition.name] = bench.to_average(heard)
        return outputs

    with bench.fabric.autocast():
        found = embed_many(encode, bench.loaders.evaluate(bench.split), description="damaged clips")
    return {name: bench.scores(averaged) for name, averaged in found.items()}


def _damaged(batch: Batch, condition: Degradation, sample_rate: int, seed: int) -> Batch:
    """The batch with its sound damaged; the zeros that fill up a short clip are no sound and stay."""
    assert batch.audio is not None and batch.samples is not None
    audio = torch.zeros_like(batch.audio)
    for row, (clip_id, start, samples) in enumerate(
        zip(batch.clip_ids, batch.start.tolist(), batch.samples.tolist(), strict=True)
    ):
        waveform = batch.audio[row, :samples].numpy()
        audio[row, :samples] = torch.from_numpy(condition(waveform, sample_rate, f"{clip_id}@{start:.3f}", seed))
    return replace(batch, audio=audio)
