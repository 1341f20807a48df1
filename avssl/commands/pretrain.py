"""Pretrains an audio-visual pair on raw video; with no arguments on the demo set."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch

import mast
from avssl import plugins
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import PretrainConfig
from avssl.config.resolution import pretraining_folder
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits, open_splits, settle_clip_seconds
from avssl.evaluation.diagnostics import CollapseMonitor, diagnose
from avssl.evaluation.embeddings import embed_pair
from avssl.evaluation.probe import OnlineProbe
from avssl.evaluation.retrieval import retrieval_metrics
from avssl.loading import Loaded, save_encoder
from avssl.models.pair import AudioVisualPair
from avssl.objectives import Shapes, create_objectives
from avssl.objectives.terms import read_terms, trained_projections
from avssl.progress import Meter
from avssl.tracking import sweep_folder
from avssl.tracking.tracker import log_model, use_model
from avssl.training.after_training import evaluate_trained
from avssl.training.checks import check_training
from avssl.training.engine import Engine
from avssl.training.initialization import InitialPair, complete_pretraining, initial_pair, read_start
from avssl.training.launch import launch, prepare_encoders, report_lost_processes
from avssl.training.optimizer import total_steps
from avssl.training.pretraining import PretrainTask
from avssl.training.run import Run, log_next_command, next_command

logger = logging.getLogger(__name__)

# Share of a clip's frames by which fixed ones may differ: AST's 1024 stand for 998 of 10 s.
_FRAMES_OFF = 0.1


def run(config: PretrainConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended the run."""
    result = pretrain(config)
    log_next_command(result)
    return 0 if result["finished"] else 130


@report_lost_processes()
def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pretrains an audio-visual pair and evaluates its retrieval on the test split.

    Returns:
        What ``result.json`` holds, and the run's ``folder``; ``finished`` is False when a signal ended the run early.
    """
    source = read_start(config.checkpoint)
    config = replace(complete_pretraining(config, source), imports=plugins.recorded())
    trained = None if source is None else source.settings.clip_seconds
    config = replace(config, data=settle_clip_seconds(config.data, ("audio", "video"), trained))
    fabric = launch(config.runtime, config.seed)
    folder = config.output or sweep_folder() or pretraining_folder(config.data.name)
    run = Run(config, folder, fabric, config.wandb, "pretrain")
    start = initial_pair(config, source)
    del source  # its weights are copied
    splits = open_splits(
        config.data,
        modalities=("audio", "video"),
        labelled=False,
        seed=config.seed,
        fabric=fabric,
        held_out=run.held_out,
    )
    task = build_task(config, len(splits.train), splits.protocol.seconds, start.pair, splits.train.files())
    check_training(config, fabric, run, task, splits)
    loaders = Loaders(
        config.data,
        splits.protocol,
        ("audio", "video"),
        start.pair.frontend.config["sample_rate"],
        config.optim.batch_size,
        config.seed,
    )
    probe = OnlineProbe.open(config.data, splits, loaders, config.seed) if config.online_probe else None
    with run:
        return _pretrain(config, run, start, splits, task, loaders, probe)


def _pretrain(
    config: PretrainConfig,
    run: Run,
    start: InitialPair,
    splits: Splits,
    task: PretrainTask,
    loaders: Loaders,
    probe: OnlineProbe | None,
) -> dict[str, Any]:
    """Trains, evaluates and reports."""
    fabric, optim, clips = run.fabric, config.optim, len(splits.train)
    run.record_clips(splits)
    prepare_encoders(config.runtime, fabric, task.pair.audio, task.pair.video)
    steps = total_steps(optim, clips, fabric.world_size)
    settings = {"kind": "pair", "pair": task.pair.settings}
    engine = run.engine(task, steps, splits.digest, settings, monitor="audio_to_video/R@1")
    logger.info(
        "pretraining %s + %s on %d clips for %d steps of %d clips",
        *(task.pair.settings["audio"], task.pair.settings["video"], clips, steps),
        optim.batch_size * optim.accumulate * fabric.world_size,
    )
    first = engine.progress.step * optim.accumulate
    loader = loaders.train(splits.train, fabric, start_batch=first, heads=list(splits.labels))
    warmup = round(optim.warmup * steps)
    run.tracker.watch(CollapseMonitor(config.collapse_rank, after=warmup).see)
    run.describe({"pair": task.pair, "audio": task.pair.audio, "video": task.pair.video}, splits.digest)
    if fabric.is_global_zero:
        _log_samples(run, loaders, splits.val or splits.train)

    validated = splits.val is not None or probe is not None
    validate = partial(validate_pair, loaders=loaders, val=splits.val, probe=probe, device=fabric.device)
    finished = engine.fit(loader, validate if validated else None)
    result: dict[str, Any] = {"finished": finished}
    weights = engine.choose_weights() if finished else {}
    pair = cast(AudioVisualPair, engine.model()).eval()
    if finished and fabric.is_global_zero:
        use_model(run.tracker, start.checkpoint)
        facts = {"weights": weights, "start": start.report}
        with Meter("evaluation and report"):
            result |= _evaluate(config, run, pair, loaders, splits, engine, facts)
    run.tracker.finish(exit_code=0 if finished else 1)
    fabric.barrier()
    return result | {"folder": str(run.folder)}


def validate_pair(
    pair: AudioVisualPair, *, loaders: Loaders, val: Manifest | None, probe: OnlineProbe | None, device: torch.device
) -> dict[str, float]:
    """Retrieval on the validation split and diagnostics of its embeddings, where there is one; and the probe's."""
    metrics: dict[str, float] = {}
    if val is not None:
        audio, video = embed_pair(pair, loaders, val, device)
        metrics |= retrieval_metrics(audio.features, video.features)
        numbers = diagnose(torch.from_numpy(audio.features), torch.from_numpy(video.features))
        metrics |= {f"diagnostics/{name}": value.item() for name, value in numbers.items()}
    if probe is not None:
        metrics |= probe(pair, device)
    return metrics


def build_task(
    config: PretrainConfig,
    clips: int,
    clip_seconds: float,
    pair: AudioVisualPair | None = None,
    files: np.ndarray | None = None,
) -> PretrainTask:
    """A pair (default: a new one) with its objectives and augmentation, for a training split of ``clips`` rows, whose
    ``files`` are those of ``Manifest.files``."""
    pair = pair or initial_pair(config).pair
    _check_frames(pair.frontend, clip_seconds)
    shapes = Shapes(config.embedding_dim, pair.audio.num_features, pair.video.num_features, clips, pair.audio.stride)
    objectives = create_objectives(config.objectives, shapes)
    if not objectives:
        raise ValueError("objectives: there is none; give at least one, for example [{name: infonce}]")
    augment = config.augment
    if augment.mixup.kind != "none":
        raise ValueError("augment.mixup: blends labels, which pretraining has not; augment.mix blends sounds")
    return PretrainTask(
        pair,
        objectives,
        wave=WaveAugment.of(augment),
        spectrogram=SpectrogramAugment.of(augment),
        video=VideoAugment.of(augment, crop_size=int(pair.settings["crop_size"])),
        clip_seconds=clip_seconds,
        files=None if files is None else torch.from_numpy(files),
        chunk=config.optim.chunk,
        teacher_momentum=config.teacher_momentum,
        diagnose_every=config.log.every,
    )


def _check_frames(frontend: mast.LogMel, clip_seconds: float) -> None:
    """Raises ValueError where frames that are filled up or cut would shift the sound's times against the video's."""
    frames, fixed = frontend.num_windows(round(clip_seconds * frontend.sample_rate)), frontend.fixed_frames
    if fixed is not None and abs(fixed - frames) > _FRAMES_OFF * frames:
        raise ValueError(
            f"audio.fixed_frames: clips of {clip_seconds:g} s have {frames} frames, not {fixed}: their times would not "
            f"be those of the video; give --audio.fixed_frames {frames}"
        )


def _evaluate(
    config: PretrainConfig,
    run: Run,
    pair: AudioVisualPair,
    loaders: Loaders,
    splits: Splits,
    engine: Engine,
    told: dict[str, Any],
) -> dict[str, Any]:
    test = splits.test or splits.val
    extra: dict[str, Any] = {"pretrained_on": config.data.name, "clip_seconds": splits.protocol.seconds}
    extra["channel"] = config.data.channel
    export = save_encoder(run.folder, pair.audio, pair.frontend, extra=extra)
    facts = {
        "kind": "pretrain",
        "retrieval": retrieval_summary(config, pair),
        "steps": engine.progress.step,
        **told,
        "clips_per_second": engine.clips_per_second,
        "failures": engine.all_failures(),
    }
    model, title = Loaded("pair", pair, pair.frontend), f"Pretraining on {config.data.name}"
    result = evaluate_trained(config, run, model, splits, test, loaders, ["retrieval"], title=title, facts=facts)
    log_model(run.tracker, export, extra | {"steps": engine.progress.step} | result["metrics"])
    # Of all splits: the one that is pretrained on may have no labels. One class is nothing to fine-tune on.
    learnable = any(len(names) > 1 or head in splits.multilabel for head, names in splits.labels.items())
    labelled = config.data if learnable else None
    steps = [next_command("finetune", run.folder, labelled)]
    steps += [] if test is None else [next_command("evaluate", run.folder, config.data, result["split"])]
    return result | {"next": steps}


def retrieval_summary(config: PretrainConfig, pair: AudioVisualPair) -> dict[str, Any]:
    """For result.json: the projection whose embeddings retrieval compares, and whether objectives trained both of its
    heads."""
    trained = trained_projections(read_terms(config.objectives, config.embedding_dim))
    return {"projection": pair.retrieval, "trained": pair.retrieval in trained}


def _log_samples(run: Run, loaders: Loaders, manifest: Manifest) -> None:
    """Four clips for the tracker to play, once a run."""
    if run.checkpoint or not run.tracker.takes("log_clips"):
        return
    with Meter("reading sample clips"):
        batch = next(iter(loaders.evaluate(manifest.select(mask=np.arange(len(manifest)) < 4))))
    if batch.size:
        assert batch.audio is not None and batch.video is not None
        clips = batch.audio.numpy(), batch.video.numpy()
        run.tracker.log_clips("clips", *clips, loaders.sample_rate, batch.clip_ids)
