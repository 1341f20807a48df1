"""Fine-tuning and linear probing, from the config to the report."""

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric

import mast
from avssl.config import AudioConfig, FinetuneConfig, PretrainConfig
from avssl.data.batch import Batch
from avssl.data.manifest import Manifest
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.embeddings import Embeddings, embed_many
from avssl.evaluation.probe import linear_probe
from avssl.lineage import log_model, use_model
from avssl.models.classifier import AudioClassifier
from avssl.objectives import Shapes
from avssl.pipelines.classification_report import Outcome, report_classification
from avssl.pipelines.data import Loaders, Splits, open_splits
from avssl.pipelines.encoders import (
    EXPORT,
    AudioEncoder,
    export_audio_encoder,
    load_audio_encoder,
    random_encoder,
)
from avssl.pipelines.launch import launch
from avssl.pipelines.pretrain import pretrain
from avssl.pipelines.run import Run
from avssl.pipelines.training import (
    build_engine,
    create_objectives,
    prepare_encoders,
    spectrogram_augment,
    wave_augment,
)
from avssl.tasks import FinetuneTask
from avssl.tasks.finetune import JOINT
from avssl.tracking import sweep_folder

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Trains a linear or a full head and evaluates it on the test split.

    Returns:
        What ``result.json`` holds; ``{"finished": False}`` when a signal ended the run early.
    """
    checkpoint = resolve_checkpoint(config)
    fabric = launch(config.runtime, config.seed)
    splits = open_splits(config.data, modalities=("audio",), labelled=True, seed=config.seed, fabric=fabric)
    start = "pretrained" if checkpoint else "random"
    name = f"finetune-{Path(config.data.name).stem}-{config.head}-{start}"
    folder = config.output or sweep_folder() or Path("runs") / name
    run = Run(config, folder, fabric, config.wandb, "finetune")
    source = load_audio_encoder(checkpoint) if checkpoint else random_encoder(config.audio)
    if checkpoint and config.audio != AudioConfig():
        raise ValueError("audio: the encoder and its frontend are the checkpoint's; give no audio settings beside it")
    sample_rate = source.frontend.config["sample_rate"]
    loaders = Loaders(config.data, splits.protocol, ("audio",), sample_rate, config.optim.batch_size, config.seed)
    source.encoder.to(fabric.device)
    source.frontend.to(fabric.device)
    test = splits.test if splits.test is not None else splits.val
    if test is None:
        raise ValueError(f"data {config.data.name}: no test split to evaluate on; set data.val_fraction")
    before = embed_features(source, loaders, test, fabric.device) if fabric.is_global_zero else None
    titles = ("Before fine-tuning", "After fine-tuning")
    if config.head == "linear":
        classifier, finished = _fit_linear(config, source, loaders, splits, fabric, before), True
        if checkpoint and fabric.is_global_zero:  # a frozen encoder is set against its twin with random weights
            before = embed_features(_random_twin(source), loaders, test, fabric.device)
            titles = ("Random weights", "Pretrained, frozen")
    else:
        classifier, finished = _fit_full(config, source, loaders, splits, fabric, run)
    result: dict[str, Any] = {"finished": finished}
    if finished and fabric.is_global_zero:
        assert before is not None
        after, scores = classify_split(classifier, loaders, test, fabric.device)
        extra = {"finetuned_on": config.data.name, "start": str(config.checkpoint)}
        export_audio_encoder(run.folder / EXPORT, classifier.encoder, classifier.frontend, splits.labels, extra)
        if config.head == "linear" and not checkpoint:
            before = after  # nothing was trained that a picture could show
        outcome = Outcome(scores, after, before, len(test), start, *titles)
        result |= report_classification(config, run, splits, outcome)
        use_model(run.tracker, checkpoint)
        log_model(run.tracker, run.folder / EXPORT, extra | result["metrics"])
    run.tracker.finish(exit_code=0 if finished else 1)
    fabric.barrier()
    return result


def resolve_checkpoint(config: FinetuneConfig) -> Path | None:
    """The path that ``checkpoint`` means; the demo's pretraining is run where it is missing."""
    if config.checkpoint == "none":
        return None
    if config.checkpoint != "auto":
        return Path(config.checkpoint)
    folder = Path("runs") / f"pretrain-{Path(config.data.name).stem}"
    if (folder / EXPORT).is_dir():
        logger.info("starting from %s", folder)
        return folder
    if config.data.name == "demo":
        logger.info("no pretraining run of the demo yet: running it first")
        before = PretrainConfig(runtime=config.runtime, wandb=config.wandb, output=folder, seed=config.seed)
        if not pretrain(before)["finished"]:
            raise ValueError("pretraining was stopped; run the same command again to continue it")
        return folder
    raise FileNotFoundError(
        f"checkpoint: there is no pretraining run {folder}; give --checkpoint PATH, or --checkpoint none to start from "
        "random weights"
    )


def embed_features(source: AudioEncoder, loaders: Loaders, manifest: Manifest, device: torch.device) -> Embeddings:
    """Encoder features (N, D), before any head, of every readable clip."""
    encoder, frontend = source.encoder.eval(), source.frontend

    def encode(batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.audio is not None
        tokens = encoder.forward_features(frontend(batch.audio.to(device)))
        return {"audio": encoder.forward_head(tokens, pre_logits=True)}

    return embed_many(encode, loaders.evaluate(manifest), description="features")["audio"]


def classify_split(
    classifier: AudioClassifier, loaders: Loaders, manifest: Manifest, device: torch.device, progress: bool = True
) -> tuple[Embeddings, dict[str, np.ndarray]]:
    """Features (N, D) and scores (N, classes) by head, averaged over the clips of a row, of every readable row."""
    training = classifier.training
    classifier.eval()

    def encode(batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.audio is not None
        features = classifier.embed_audio(batch.audio.to(device))
        return {"features": features, "scores": classifier.encoder.head(features)}

    both = embed_many(encode, loaders.evaluate(manifest), progress=progress, description="classify")
    classifier.train(training)
    scores = classifier.split(torch.from_numpy(both["scores"].features))
    return both["features"], {head: values.numpy() for head, values in scores.items()}


def _random_twin(source: AudioEncoder) -> AudioEncoder:
    """An encoder of the same architecture with random weights."""
    twin = mast.create_model(source.encoder.name, **source.encoder.config | {"num_classes": 0})
    return AudioEncoder(twin.to(next(source.encoder.parameters()).device), source.frontend, {})


def _fit_linear(
    config: FinetuneConfig,
    source: AudioEncoder,
    loaders: Loaders,
    splits: Splits,
    fabric: Fabric,
    test: Embeddings | None,
) -> AudioClassifier:
    """A linear probe: logistic regression on frozen features, folded into the head of the classifier."""
    classifier = AudioClassifier(source.encoder, source.frontend, splits.labels).to(fabric.device)
    if fabric.is_global_zero and test is not None:
        train = embed_features(source, loaders, splits.train, fabric.device)
        probes = [
            linear_probe(train, test, head, len(names), seed=config.seed) for head, names in splits.labels.items()
        ]
        with torch.no_grad():
            layer = classifier.encoder.get_submodule("head")
            layer.get_parameter("weight").copy_(torch.from_numpy(np.concatenate([probe.weight for probe in probes])))
            layer.get_parameter("bias").copy_(torch.from_numpy(np.concatenate([probe.bias for probe in probes])))
    return classifier


def _fit_full(
    config: FinetuneConfig, source: AudioEncoder, loaders: Loaders, splits: Splits, fabric: Fabric, run: Run
) -> tuple[AudioClassifier, bool]:
    optim, augment = config.optim, config.augment
    classifier = AudioClassifier(source.encoder, source.frontend, splits.labels)
    encoder = classifier.encoder
    shapes = Shapes(JOINT, encoder.num_features, 0, len(splits.train), encoder.stride)
    task = FinetuneTask(
        classifier,
        wave_augment(augment),
        spectrogram_augment(augment),
        augment.mixup,
        config.label_smoothing,
        create_objectives(config.objectives, shapes),
        splits.protocol.seconds,
    )
    prepare_encoders(config.runtime, classifier.encoder)
    settings = {
        "kind": "classifier",
        "model": classifier.encoder.name,
        "options": classifier.encoder.config,
        "frontend": classifier.frontend.config,
        "labels": splits.labels,
    }
    clips, monitor = len(splits.train), f"{next(iter(splits.labels))}/top1"
    engine = build_engine(config, fabric, run, task, clips, monitor=monitor, settings=settings)
    logger.info("fine-tuning on %d clips for %d steps of %d", clips, engine.schedule.max_steps, optim.batch_size)
    val = splits.val

    def validate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        model = cast(AudioClassifier, engine.model())
        if fabric.is_global_zero and val is not None:
            embeddings, scores = classify_split(model, loaders, val, fabric.device, progress=False)
            metrics = multi_head_metrics(scores, embeddings.labels)
        return fabric.broadcast(metrics)

    loader = loaders.train(splits.train, fabric, start_batch=engine.progress.step * optim.accumulate)
    finished = engine.fit(loader, validate if val is not None else None)
    return cast(AudioClassifier, engine.model()), finished
