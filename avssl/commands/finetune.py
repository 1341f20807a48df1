"""Trains a linear or a full head to classify audio, video or both; with no arguments on the demo set."""

import logging
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from avssl import plugins
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.commands.pretrain import pretrain
from avssl.config import FinetuneConfig, PretrainConfig, Source, resolve
from avssl.config.resolution import pretraining_folder
from avssl.data.catalog import find_entry
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.mixup import SetMixup
from avssl.data.splits import Splits, check_labelled, open_splits, settle_clip_seconds
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.context import EarlierFeatures
from avssl.evaluation.embeddings import Embeddings, classify_split, embed_features
from avssl.evaluation.probe import linear_probe
from avssl.evaluation.random_start import random_start
from avssl.loading import SAMPLE_RATE, Loaded, checkpoint_settings, save_classifier, with_random_weights
from avssl.models.classifier import Classifier
from avssl.objectives import Shapes, create_objectives
from avssl.progress import Meter
from avssl.saved_runs import EXPORT, seen_in_training
from avssl.tracking import sweep_folder
from avssl.tracking.tracker import log_model, use_model
from avssl.training.after_training import evaluate_trained
from avssl.training.checks import check_training
from avssl.training.finetuning import JOINT, FinetuneTask
from avssl.training.initialization import (
    MODALITIES,
    check_random_start,
    complete_finetuning,
    initial_classifier,
    keeps_head,
    read_finetuning_start,
)
from avssl.training.launch import launch, prepare_encoders, report_lost_processes
from avssl.training.optimizer import total_steps
from avssl.training.run import Run, log_next_command, next_command, run_of
from avssl.training.standardize import CLIPS, final_norm, standardize_features

logger = logging.getLogger(__name__)


def run(config: FinetuneConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended the run."""
    result = finetune(config)
    log_next_command(result)
    return 0 if result["finished"] else 130


@report_lost_processes()
def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Trains a linear or a full head and evaluates it on the test split.

    Returns:
        What ``result.json`` holds; ``{"finished": False}`` when a signal ended the run early.
    """
    find_entry(config.data.name)  # first, because a misspelt name has no pretraining run either
    checkpoint = resolve_checkpoint(config)
    source = read_finetuning_start(config, checkpoint)
    config = replace(complete_finetuning(config, source), imports=plugins.recorded())
    if config.compare_random:
        check_random_start(config, source)
    trained = None if source is None else source.settings.clip_seconds
    config = replace(config, data=settle_clip_seconds(config.data, MODALITIES[config.modality], trained))
    start = "pretrained" if checkpoint else "random"
    name = f"finetune-{Path(config.data.name).stem}-{_what(config)}-{start}"
    folder = config.output or sweep_folder() or Path("runs") / name
    if config.compare_random and not finetune(random_start(config, folder))["finished"]:
        return {"finished": False, "folder": str(folder)}
    fabric = launch(config.runtime, config.seed)
    run = Run(config, folder, fabric, config.wandb, "finetune")
    splits = open_splits(
        config.data,
        modalities=MODALITIES[config.modality],
        labelled=True,
        seed=config.seed,
        fabric=fabric,
        held_out=run.held_out,
    )
    test = check_labelled(splits, config.data.name)
    if splits.val is test and config.head == "full" and config.log.use == "best":
        logger.warning(
            "%s: no labelled split test: split val both chooses the weights and judges them, which flatters them; "
            "--log.use last does not",
            config.data.name,
        )
    classifier = initial_classifier(config, source, splits.labels).to(fabric.device)
    if source is not None:
        _warn_of_known_clips(config, source, test, splits)
    # A head that goes on was trained on features as they are.
    new_head = source is not None and not keeps_head(config, source, splits.labels)
    standardize = config.standardize and new_head and config.fusion == "late" and run.checkpoint is None
    del source  # its weights are copied
    frontend, modalities = classifier.frontend, MODALITIES[config.modality]
    sample_rate = SAMPLE_RATE if frontend is None else frontend.config["sample_rate"]  # without sound it is not read
    loaders = Loaders(config.data, splits.protocol, modalities, sample_rate, config.optim.batch_size, config.seed)
    task = None
    if config.head == "full":
        task = _build_task(config, classifier, splits)
        check_training(config, fabric, run, task, splits)
    with run:
        return _finetune(config, run, checkpoint, splits, classifier, task, loaders, test, standardize)


def _finetune(
    config: FinetuneConfig,
    run: Run,
    checkpoint: Path | None,
    splits: Splits,
    classifier: Classifier,
    task: FinetuneTask | None,
    loaders: Loaders,
    test: Manifest,
    standardize: bool,
) -> dict[str, Any]:
    """Trains, evaluates and reports; without a task a linear probe is fitted."""
    fabric = run.fabric
    run.record_clips(splits)
    run.describe({"classifier": classifier}, splits.digest)
    before = embed_features(classifier, loaders, test, fabric.device) if fabric.is_global_zero else None
    titles = ("Before fine-tuning", "After fine-tuning")
    weights: dict[str, Any] = {}
    if task is None:
        finished = True
        _fit_linear(config, classifier, loaders, splits, fabric, before)
        if checkpoint and fabric.is_global_zero:  # a frozen encoder is set against itself with random weights
            before = embed_features(with_random_weights(classifier).to(fabric.device), loaders, test, fabric.device)
            titles = ("Random weights", "Pretrained, frozen")
    else:
        if standardize:
            _standardize(classifier, loaders, splits, fabric, config.seed)
        classifier, finished, weights = _fit_full(config, task, loaders, splits, fabric, run)
    result: dict[str, Any] = {"finished": finished}
    if finished and fabric.is_global_zero:
        assert before is not None
        extra = _extra(config, splits)
        export = save_classifier(run.folder, classifier, extra)
        # Of a linear head on random weights nothing was trained that a picture of the features could show.
        shown = EarlierFeatures(before, *titles) if task is not None or checkpoint else None
        with Meter("evaluation and report"):
            facts = {"weights": weights, "start": "pretrained" if checkpoint else "random"}
            result |= _evaluate(config, run, classifier, splits, test, loaders, facts, shown)
        use_model(run.tracker, checkpoint)
        log_model(run.tracker, export, extra | result["metrics"])
    run.tracker.finish(exit_code=0 if finished else 1)
    fabric.barrier()
    return result | {"folder": str(run.folder)}


def _evaluate(
    config: FinetuneConfig,
    run: Run,
    classifier: Classifier,
    splits: Splits,
    test: Manifest,
    loaders: Loaders,
    facts: dict[str, Any],
    before: EarlierFeatures | None,
) -> dict[str, Any]:
    classifier.eval()
    result = evaluate_trained(
        config,
        run,
        Loaded("classifier", classifier, classifier.frontend, classifier.labels),
        splits,
        test,
        loaders,
        ["accuracy", "unseen_tail", "clustering", *(["pictures"] if before is not None else [])],
        title=f"{config.head.capitalize()} fine-tuning on {Path(config.data.name).stem}, {facts['start']} start",
        facts={"kind": f"finetune-{config.head}", **facts},
        before=before,
        random=random_start(config, run.folder).output if config.compare_random else None,
    )
    steps = [next_command("evaluate", run.folder, config.data, result["split"])]
    if config.modality == "audio":
        steps.insert(0, shlex.join(["avssl", "predict", "--checkpoint", str(run.folder)]) + " FILE...")
    return result | {"next": steps}


def _warn_of_known_clips(config: FinetuneConfig, source: Loaded, test: Manifest, splits: Splits) -> None:
    """Warns where clips of the test are such that the encoder was pretrained on."""
    assert source.path is not None
    seen = seen_in_training(run_of(source.path), test)
    if seen is None and "test" in splits.held_out and source.settings.trained_on(config.data.name):
        seen = len(test)
    if seen:
        logger.warning(
            "%s: %d of the %d test clips have the ids of clips that the checkpoint was trained on; for a strict test "
            "give the data a split test before pretraining",
            *(config.data.name, seen, len(test)),
        )


def resolve_checkpoint(config: FinetuneConfig) -> Path | None:
    """The path that ``checkpoint`` means; the demo's pretraining is run where it is missing."""
    if config.checkpoint not in ("none", "auto"):
        return Path(config.checkpoint)
    folder = pretraining_folder(config.data.name)
    if config.checkpoint == "none":
        if (folder / EXPORT).is_dir():
            logger.info("starting from random weights; --checkpoint %s would start from that pretraining", folder)
        return None
    if (folder / EXPORT).is_dir():
        logger.info("starting from %s", folder)
        return folder
    if config.data.name == "demo":
        logger.info("no pretraining run of the demo yet: running it first")
        recipe = resolve(PretrainConfig, [Source("the demo", {"data": config.data.name})])
        watched: dict[str, Any] = {"wandb": config.wandb, "tensorboard": config.tensorboard, "loggers": config.loggers}
        same = replace(recipe.data, options=config.data.options)
        before = replace(recipe, **watched, data=same, runtime=config.runtime, output=folder, seed=config.seed)
        if not pretrain(before)["finished"]:
            raise ValueError("pretraining was stopped; run the same command again to continue it")
        return folder
    find_entry(config.data.name)  # a misspelt name is told as that
    raise FileNotFoundError(
        f"checkpoint: there is no pretraining run {folder}; give --checkpoint PATH, or --checkpoint none to start from "
        "random weights"
    )


def _what(config: FinetuneConfig) -> str:
    """What the run trains, in the name of its folder."""
    parts: list[str] = [config.head]
    if config.modality != "audio":
        parts.append(config.modality)
    if config.modality == "both":
        parts.append(config.fusion)
    return "-".join(parts)


def _fit_linear(
    config: FinetuneConfig,
    classifier: Classifier,
    loaders: Loaders,
    splits: Splits,
    fabric: Fabric,
    test: Embeddings | None,
) -> None:
    """A linear probe: logistic regression on frozen features, folded into the head of the classifier."""
    if fabric.is_global_zero and test is not None:
        whole = classifier.head_layer
        # AST's head has a norm before its linear layer.
        layer, front = (whole[-1], whole[:-1]) if isinstance(whole, nn.Sequential) else (whole, None)
        if front is not None:
            assert splits.labelled_test is not None
            test = embed_features(classifier, loaders, splits.labelled_test, fabric.device, front)
        train = embed_features(classifier, loaders, splits.train, fabric.device, front)
        probes = [
            linear_probe(train, test, head, len(names), seed=config.seed) for head, names in splits.labels.items()
        ]
        with torch.no_grad():
            layer.get_parameter("weight").copy_(torch.from_numpy(np.concatenate([probe.weight for probe in probes])))
            layer.get_parameter("bias").copy_(torch.from_numpy(np.concatenate([probe.bias for probe in probes])))


def _standardize(classifier: Classifier, loaders: Loaders, splits: Splits, fabric: Fabric, seed: int) -> None:
    """Standardizes the features of pretrained encoders over training clips, alike in all processes."""
    clips = len(splits.train)
    rows = np.sort(np.random.default_rng(seed).permutation(clips)[:CLIPS])
    some = splits.train if clips <= CLIPS else splits.train.take(rows)
    standardize_features(classifier, lambda: loaders.evaluate(some), fabric.device)
    for encoder in (classifier.audio_encoder, classifier.video_encoder):
        norm = None if encoder is None else final_norm(encoder)
        if norm is not None and fabric.world_size > 1:
            with torch.no_grad():
                for parameter in norm.parameters():
                    parameter.copy_(fabric.broadcast(parameter.detach()))


def _build_task(config: FinetuneConfig, classifier: Classifier, splits: Splits) -> FinetuneTask:
    augment = config.augment
    if augment.mixup.kind != "none" and config.objectives:
        raise ValueError(
            f"augment.mixup: {augment.mixup.kind} blends labels, which objectives would contrast: none beside them"
        )
    alpha, probability = augment.mixup.within_batch()
    return FinetuneTask(
        classifier,
        WaveAugment.of(augment),
        SpectrogramAugment.of(augment),
        video=None if classifier.crop_size is None else VideoAugment.of(augment, crop_size=classifier.crop_size),
        mixup_alpha=alpha,
        mixup_probability=probability,
        label_smoothing=config.label_smoothing,
        head_weights=config.head_weights,
        objectives=create_objectives(config.objectives, _shapes(classifier, len(splits.train))),
        clip_seconds=splits.protocol.seconds,
    )


def _fit_full(
    config: FinetuneConfig, task: FinetuneTask, loaders: Loaders, splits: Splits, fabric: Fabric, run: Run
) -> tuple[Classifier, bool, dict[str, Any]]:
    """The classifier, whether its training came to an end, and which weights it has."""
    optim, classifier = config.optim, task.classifier
    prepare_encoders(config.runtime, fabric, *classifier.trained_in_blocks)
    clips, val = len(splits.train), splits.val
    steps = total_steps(optim, clips, fabric.world_size)
    settings = checkpoint_settings(classifier, _extra(config, splits))
    engine = run.engine(task, steps, splits.digest, settings, monitor=_monitor(splits))
    logger.info("fine-tuning on %d clips for %d steps of %d", clips, steps, optim.batch_size)
    start = engine.progress.step * optim.accumulate
    mixup = SetMixup.of(config.augment.mixup)
    if mixup is not None and config.data.sampling == "shards":
        logger.warning(
            "augment.mixup: partners are read from all shards, also with data.sampling shards: batch does not"
        )
    loader = loaders.train(splits.train, fabric, start_batch=start, heads=list(splits.labels), mixup=mixup)
    validate = None if val is None else partial(validate_classifier, loaders=loaders, val=val, device=fabric.device)
    finished = engine.fit(loader, validate)
    weights = engine.choose_weights() if finished else {}
    return cast(Classifier, engine.model()), finished, weights


def validate_classifier(
    classifier: Classifier, *, loaders: Loaders, val: Manifest, device: torch.device
) -> dict[str, float]:
    """Metrics of every head on the validation split."""
    embeddings, scores = classify_split(classifier, loaders, val, device)
    return multi_head_metrics(scores, embeddings.labels)


def _extra(config: FinetuneConfig, splits: Splits) -> dict[str, Any]:
    """What is kept beside a classifier, for those who use it."""
    return {
        "finetuned_on": config.data.name,
        "start": str(config.checkpoint),
        "clip_seconds": splits.protocol.seconds,
        "channel": config.data.channel,
        "frame_size": config.data.frame_size,  # of a crop in it: another size shows another part of the picture
        "multilabel": splits.multilabel,  # whose scores are sigmoids; the others' are softmaxes
    }


def _monitor(splits: Splits) -> str:
    """The validation metric that chooses the best checkpoint: top-1, or mAP, of the first head that is validated."""
    val = splits.val
    heads = [head for head in splits.labels if val is None or val.labelled(head).any()]
    head = next(iter(heads or splits.labels))
    return f"{head}/{'mAP' if head in splits.multilabel else 'top1'}"


def _shapes(classifier: Classifier, clips: int) -> Shapes:
    """Sizes that objectives beside the cross-entropy are built for."""
    audio, video = classifier.audio_encoder, classifier.video_encoder
    shapes = Shapes(JOINT, 0, 0 if video is None else video.num_features, clips)
    return shapes if audio is None else replace(shapes, audio=audio.num_features, audio_stride=audio.stride)
