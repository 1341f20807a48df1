"""Evaluates a checkpoint on any data; all that its kind allows, or what is named.

avssl evaluate --checkpoint runs/pretrain-videos --data esc50 --data.root PATH --evaluations probe knn
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avssl.config import DataConfig, EvaluateConfig, to_dict, to_yaml
from avssl.data.catalog import cache_folder, find_entry
from avssl.data.clips import Modality
from avssl.data.datasets import nearest
from avssl.data.failures import DataError
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.manifest_checks import SPLITS
from avssl.data.splits import Splits, open_splits
from avssl.evaluation.base import EvaluationResult, choose, report_evaluations, run_evaluations
from avssl.evaluation.context import EvaluationContext
from avssl.evaluation.embeddings import EmbeddingCache
from avssl.files import remove_leftovers
from avssl.loading import Loaded, load
from avssl.locks import hold
from avssl.saved_runs import TrainingSettings, read_held_out, run_folder, seen_in_training, with_training_data
from avssl.training.initialization import frame_size_for
from avssl.training.launch import launch_single
from avssl.training.run import run_of

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended it."""
    return 0 if evaluate(config).get("finished", True) else 130


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates ``config.checkpoint`` on a split, and writes result.json, pictures and report.html.

    Raises:
        DataError: when the split has no usable clip.
        ValueError: when the checkpoint's classes are not the data's, an evaluation asked for is not possible, or a
            setting of the runtime is of training only.
    """
    fabric = launch_single(config.runtime, config.seed, config.data.num_workers)
    checkpoint = Path(config.checkpoint)
    place = _identity(run_folder(checkpoint))
    model = load(checkpoint, fabric.device)
    known = model.settings
    config = replace(config, data=data_as_trained(config.data, known, model))
    modalities: tuple[Modality, ...] = ("audio", "video") if model.pair is not None else model.modalities
    _check_split(config.split)
    # Pretraining holds out its "val" from the split "pretrain".
    pretraining = model.pair is not None and known.trained_on(config.data.name)
    labelled = config.split == "train" or (not pretraining and config.split != "pretrain")
    origin = run_of(checkpoint)
    held_out = read_held_out(origin)
    if model.classifier is not None:  # a draw of its own would be judged on clips that it was trained on
        config = replace(config, data=replace(config.data, test_fraction=0.0))
    splits = open_splits(
        config.data, modalities=modalities, labelled=labelled, seed=config.seed, need_train=False, held_out=held_out
    )
    split = _named(splits, config)
    _check_classes(model, split)
    seen = seen_in_training(origin, split)
    if seen is None and config.split in splits.held_out.keys() - held_out.keys() and known.trained_on(config.data.name):
        seen = len(split)
    if seen and config.split not in ("train", "pretrain"):
        logger.warning(
            "%s: %d of the %d clips of split %r have the ids of clips that the checkpoint was trained on: the numbers "
            "flatter it",
            *(config.data.name, seen, len(split), config.split),
        )
    context = EvaluationContext(
        config=config,
        model=model,
        split=split,
        training=_training(config, model, split, splits),
        labels=model.labels or splits.labels,
        protocol=splits.protocol,
        loaders=Loaders(
            config.data, splits.protocol, model.modalities, model.sample_rate, config.batch_size, config.seed
        ),
        folder=config.output or run_folder(checkpoint) / f"evaluate-{Path(config.data.name).stem}",
        autocast=fabric.autocast,
        cache=EmbeddingCache(cache_folder() / "embeddings" if config.cache else None),
    )
    names = choose(config.evaluations, context)
    if not names:
        raise DataError(f"split {config.split!r} of {config.data.name}: no labels, and no pair to retrieve with")
    with hold(context.folder, "evaluation"):
        for folder in (context.folder, context.folder / "pictures"):
            remove_leftovers(folder)
        findings = run_evaluations(names, context)
        if config.output is None and _identity(run_folder(checkpoint)) != place:
            raise DataError(
                f"checkpoint: {run_folder(checkpoint)} was renamed or replaced while it was evaluated, and the result "
                "would lie in another run: evaluate it where it is now, or give --output FOLDER"
            )
        return _write(context, splits, findings, seen)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays of a folder when it is renamed; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def data_as_trained(data: DataConfig, known: TrainingSettings, model: Loaded) -> DataConfig:
    """``data`` with what is not given in it taken from the run that the checkpoint is of.

    Its frames and its channel; the length of its clips, where the data state none; and of a classifier, on the data
    that it was fine-tuned on, the length and number of clips and the options, such as the fold: with another fold it
    would be judged on clips that it was trained on.
    """
    data = with_training_data(data, known)
    taken: dict[str, Any] = {}
    sizes = model.frames
    if sizes is not None:
        number, crop = sizes
        for name, value in (
            ("num_frames", known.num_frames or number),
            ("frame_size", known.frame_size or frame_size_for(crop)),
        ):
            if getattr(data, name) is None:
                taken[name] = value
    if data.channel == DataConfig().channel != known.channel:
        taken["channel"] = known.channel
    entry = find_entry(data.name)
    if data.clip_seconds is None and entry.clip_seconds is None and known.clip_seconds is not None:
        taken["clip_seconds"] = known.clip_seconds
    if model.classifier is not None and known.trained_on(data.name):
        for name in ("clip_seconds", "eval_clips", "eval_average"):
            if getattr(data, name) is None and getattr(known, name) not in (None, getattr(entry, name)):
                taken[name] = getattr(known, name)
        if known.options and not data.options:
            taken["options"] = known.options
        elif data.options != known.options:
            logger.warning(
                "data.options: the checkpoint was fine-tuned with %s, this is %s: it may be judged on clips that "
                "it was trained on",
                known.options or "none",
                data.options,
            )
    if taken:
        logger.info("as the checkpoint was trained: %s", ", ".join(f"data.{k} {v}" for k, v in taken.items()))
    return replace(data, **taken)


def _named(splits: Splits, config: EvaluateConfig) -> Manifest:
    splits_by_name = {"train": splits.train, "pretrain": splits.train, "val": splits.val, "test": splits.test}
    split = splits_by_name.get(config.split)
    there = config.split != "pretrain" or "pretrain" in splits.coverage  # without it, "train" is pretrained on
    if split is None or not len(split) or not there:
        have = [name for name, rows in splits_by_name.items() if rows is not None and len(rows) and name != "pretrain"]
        raise DataError(
            f"split: {config.data.name} has no usable split {config.split!r}; it has {', '.join(have) or 'none'}: give "
            "--split NAME"
        )
    return split


def _check_split(name: str) -> None:
    known = [split for split in SPLITS if split]
    if name not in known:
        raise DataError(f"split: there is no split {name!r}{nearest(name, known)}; the splits are {', '.join(known)}")


def _training(config: EvaluateConfig, model: Loaded, split: Manifest, evaluated_of: Splits) -> Manifest | None:
    """The rows that probes are fitted on, without those that are evaluated; None where no labelled one is left."""
    try:
        splits = open_splits(
            replace(config.data, test_fraction=0.0),
            modalities=model.modalities,
            labelled=True,
            seed=config.seed,
            held_out=evaluated_of.held_out,
        )
    except DataError as error:
        logger.info("no labelled training clips: %s", error)
        return None
    evaluated = set(split.column("clip_id"))
    others = np.array([clip_id not in evaluated for clip_id in splits.train.column("clip_id")])
    rows = splits.train if others.all() else splits.train.select(mask=others)
    if 0 < len(rows) < len(others):
        logger.info("probes: fitted on the %d of %d training clips that are not evaluated", len(rows), len(others))
    known = any(rows.labelled(head).any() for head in splits.labels)
    return rows if known else None


def _check_classes(model: Loaded, split: Manifest) -> None:
    for head, names in model.labels.items():
        if split.heads.get(head) != names:
            have = {name: len(classes) for name, classes in split.heads.items()}
            raise ValueError(
                f"checkpoint: its head {head!r} has {len(names)} classes that are not those of the data ({have}); "
                "evaluate it on the data that it was fine-tuned on, or fine-tune it on this"
            )


def _write(
    context: EvaluationContext, splits: Splits, results: dict[str, EvaluationResult], seen: int | None
) -> dict[str, Any]:
    config = replace(context.config, data=replace(context.config.data, clip_seconds=context.protocol.seconds))
    facts: dict[str, Any] = {
        "kind": "evaluate",
        "checkpoint": config.checkpoint,
        "checkpoint_digest": context.digest,
        "split": config.split,
        "held_out": {name: rows.summary() for name, rows in splits.held_out.items()},
        "seen_in_training": seen,
        "clip_protocol": context.clip_protocol,
        "pad": context.model.pad,
        "coverage": splits.coverage | {"evaluated": context.coverage()},
        "manifest": splits.digest,
        "seed": config.seed,
        "config": to_dict(config),
    }
    result = report_evaluations(
        context.folder,
        results,
        title=f"{context.model.name} on {Path(config.data.name).stem}",
        facts=facts,
        config_yaml=to_yaml(config),
        summary=context.card() | ({"clips that it was trained on": str(seen)} if seen else {}),
    )
    context.write_predictions(results)
    return result | {"folder": str(context.folder)}
