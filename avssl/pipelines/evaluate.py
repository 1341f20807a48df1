"""Evaluation of a checkpoint on any data: retrieval and linear probe of a pair, accuracy of a classifier."""

import logging
from pathlib import Path
from typing import Any

from avssl.config import EvaluateConfig, to_dict, to_yaml
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.embeddings import coverage
from avssl.evaluation.probe import linear_probe
from avssl.evaluation.report import Table, write_report
from avssl.evaluation.result import provenance, write_result
from avssl.evaluation.retrieval import retrieval_metrics
from avssl.models.classifier import AudioClassifier
from avssl.pipelines.classification_report import feature_clusters
from avssl.pipelines.data import Loaders, Splits, open_splits
from avssl.pipelines.encoders import AudioEncoder, is_pair, load_audio_encoder, load_pair
from avssl.pipelines.finetune import classify_split, embed_features
from avssl.pipelines.launch import launch
from avssl.pipelines.pretrain import embed_pair, retrieval_table

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates ``config.checkpoint`` on a split, and writes result.json and report.html.

    Raises:
        DataError: when the split has no usable clip.
        ValueError: when the checkpoint's classes are not the data's.
    """
    fabric = launch(config.runtime, config.seed)
    checkpoint = Path(config.checkpoint)
    pair = is_pair(checkpoint)
    source = load_audio_encoder(checkpoint)
    splits = open_splits(
        config.data, modalities=("audio", "video") if pair else ("audio",), labelled=not pair, seed=config.seed
    )
    split = {"train": splits.train, "pretrain": splits.train, "val": splits.val, "test": splits.test}.get(config.split)
    if split is None:
        raise DataError(f"split: {config.data.name} has no usable split {config.split!r}")
    sample_rate = source.frontend.config["sample_rate"]
    modalities: tuple[Any, ...] = ("audio", "video") if pair else ("audio",)
    loaders = Loaders(config.data, splits.protocol, modalities, sample_rate, config.batch_size, config.seed)
    metrics: dict[str, float] = {}
    tables = []
    evaluated: dict[str, Any] = {}
    if pair:
        model = load_pair(checkpoint).to(fabric.device).eval()
        audio, video = embed_pair(model, loaders, split, fabric.device)
        retrieval = retrieval_metrics(audio.features, video.features)
        metrics |= retrieval
        tables.append(retrieval_table(retrieval))
        evaluated = coverage(len(split), len(audio), audio.failures)
    if source.labels:
        scored, evaluated = _classify(source, loaders, splits, split, fabric.device)
    else:
        scored = _probe(config, source, loaders, split, fabric.device)
    metrics |= scored
    heads = sorted({key.split("/")[0] for key in scored})
    if heads:
        rows = [[head, f"{scored[f'{head}/top1']:.1%}", int(scored[f"{head}/count"])] for head in heads]
        title = "Classification" if source.labels else "Linear probe"
        tables.append(Table(title, ["head", "top-1", "clips"], rows))
    result: dict[str, Any] = {
        "kind": "evaluate",
        "checkpoint": str(checkpoint),
        "split": config.split,
        "metrics": metrics,
        "clip_protocol": str(splits.protocol),
        "coverage": splits.coverage | {"evaluated": evaluated},
        "manifest": splits.digest,
        "seed": config.seed,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    run_folder = checkpoint if checkpoint.is_dir() else checkpoint.parent.parent
    folder = config.output or run_folder / f"evaluate-{Path(config.data.name).stem}"
    write_result(folder / "result.json", result)
    summary = {
        key: f"{value:.1%}" for key, value in metrics.items() if key.endswith(("top1", "R@1")) and "chance" not in key
    }
    write_report(
        folder,
        title=f"{checkpoint.name} on {Path(config.data.name).stem}, {config.split}",
        summary=summary,
        tables=tables,
        pictures=[],
        config_yaml=to_yaml(config),
        provenance=result["provenance"],
    )
    for key, value in summary.items():
        logger.info("%s %s", key, value)
    logger.info("result: %s", folder / "result.json")
    return result


def _classify(
    source: AudioEncoder, loaders: Loaders, splits: Splits, split: Manifest, device: Any
) -> tuple[dict[str, float], dict[str, Any]]:
    for head, names in source.labels.items():
        if split.heads.get(head) != names:
            have = {name: len(classes) for name, classes in split.heads.items()}
            raise ValueError(
                f"checkpoint: its head {head!r} has {len(names)} classes that are not those of the data ({have}); "
                "evaluate it on the data that it was fine-tuned on, or fine-tune it on this"
            )
    classifier = AudioClassifier(source.encoder, source.frontend, source.labels).to(device)
    features, scores = classify_split(classifier, loaders, split, device)
    metrics = multi_head_metrics(scores, features.labels)
    return metrics, coverage(len(split), len(features), features.failures)


def _probe(
    config: EvaluateConfig, source: AudioEncoder, loaders: Loaders, split: Manifest, device: Any
) -> dict[str, float]:
    """Linear probe of every head that the training split has labels for; nothing where there is none."""
    if not split.heads:
        return {}
    audio_only = Loaders(config.data, loaders.protocol, ("audio",), loaders.sample_rate, config.batch_size, config.seed)
    try:
        splits = open_splits(config.data, modalities=("audio",), labelled=True, seed=config.seed)
    except DataError:
        return {}
    source.encoder.to(device)
    source.frontend.to(device)
    train = embed_features(source, audio_only, splits.train, device)
    test = embed_features(source, audio_only, split, device)
    scores = {
        head: linear_probe(train, test, head, len(names), seed=config.seed).scores
        for head, names in splits.labels.items()
    }
    clusters = feature_clusters(test, splits.labels)
    flat = {f"{head}/{name}": value for head, values in clusters.items() for name, value in values.items()}
    return multi_head_metrics(scores, test.labels, seed=config.seed) | flat
