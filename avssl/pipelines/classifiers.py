"""Classifiers on disk.

One that sees is a file of settings and weights in a folder of its run. One of audio alone is exported as a ``mast``
folder (see ``encoders``), which needs no avssl. Either can also be read from the checkpoints of its training.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mast
from avssl.checkpoint import fitting, read_checkpoint, read_head
from avssl.files import atomic_path
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.visual_classifier import VisualClassifier, build_visual_classifier
from avssl.pipelines.encoders import EXPORT, export_audio_encoder
from mast.hub import read_config

logger = logging.getLogger(__name__)

FOLDER = "classifier"
FILE = "model.ckpt"
# Kinds of settings: of a classifier that sees, and of one of audio alone.
VISUAL, AUDIO = "visual classifier", "classifier"


@dataclass(frozen=True)
class SavedClassifier:
    """A trained classifier, in eval mode on the CPU, and the plain values that were kept beside it.

    ``extra["multilabel"]`` names the heads whose scores are sigmoids, ``extra["clip_seconds"]`` is the length of the
    clips that it was trained with.
    """

    model: Classifier
    extra: dict[str, Any]


def checkpoint_settings(classifier: Classifier, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint of the training of ``classifier`` needs beside the weights, with ``extra`` plain values."""
    if isinstance(classifier, VisualClassifier):
        return {"kind": VISUAL, "classifier": classifier.settings, "extra": extra or {}}
    assert isinstance(classifier, AudioClassifier)
    encoder = classifier.encoder
    return {
        "kind": AUDIO,
        "model": encoder.name,
        "options": encoder.config,
        "frontend": classifier.frontend.config,
        "labels": classifier.labels,
        "extra": extra or {},
    }


def export_classifier(run_folder: Path, classifier: Classifier, extra: dict[str, Any]) -> Path:
    """Writes a trained classifier into the folder of its run.

    Args:
        run_folder: The run's.
        classifier: The model.
        extra: Plain values to keep beside it, for example what it was trained on.

    Returns:
        The folder that it lies in.
    """
    if isinstance(classifier, VisualClassifier):
        save_classifier(run_folder / FOLDER, classifier, extra)
        return run_folder / FOLDER
    assert isinstance(classifier, AudioClassifier)
    export_audio_encoder(run_folder / EXPORT, classifier.encoder, classifier.frontend, classifier.labels, extra)
    return run_folder / EXPORT


def save_classifier(folder: Path, classifier: VisualClassifier, extra: dict[str, Any] | None = None) -> None:
    """Writes ``classifier`` into ``folder``, whole or not at all.

    Args:
        folder: Where its file goes; made where it is missing.
        classifier: The model.
        extra: Plain values to keep beside it, for example what it was trained on.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}
    with atomic_path(folder / FILE) as temporary:
        torch.save({"settings": checkpoint_settings(classifier, extra), "weights": weights}, temporary)
    logger.info("saved the classifier to %s", folder)


def has_classifier(path: Path) -> bool:
    """Whether :func:`read_classifier` finds a classifier at ``path``; an encoder without classes is none."""
    if file := _checkpoint(path):
        return read_head(file)["settings"].get("kind") in (VISUAL, AUDIO)
    folder = _export(path)
    return (folder / "config.json").is_file() and bool(read_config(folder).get("labels"))


def load_classifier(path: Path) -> Classifier:
    """The classifier that :func:`read_classifier` reads, alone."""
    return read_classifier(path).model


def read_classifier(path: Path) -> SavedClassifier:
    """A trained classifier of any modality.

    Args:
        path: A finished fine-tuning run, the folder in it that holds its classifier or audio encoder, or a .ckpt file
            of its training.

    Raises:
        FileNotFoundError: when there is nothing of the kind.
        ValueError: when it holds another kind of model, one without classes, or weights that do not fit its settings.
    """
    file = _checkpoint(path)
    return _read_export(path) if file is None else _read_checkpoint(file)


def _read_checkpoint(file: Path) -> SavedClassifier:
    state = read_checkpoint(file)
    settings = state["settings"]
    if settings.get("kind") not in (VISUAL, AUDIO):
        raise ValueError(f"checkpoint: {file} holds a {settings.get('kind')}, not a classifier")
    classifier: Classifier
    with fitting(file):
        if settings["kind"] == VISUAL:
            classifier = build_visual_classifier(**settings["classifier"])
        else:
            encoder = mast.create_model(settings["model"], **settings["options"])
            classifier = AudioClassifier(encoder, mast.LogMel(**settings["frontend"]), settings["labels"])
        classifier.load_state_dict(_weights(state), strict=True)
    return SavedClassifier(classifier.eval(), settings.get("extra") or {})


def _read_export(path: Path) -> SavedClassifier:
    folder = _export(path)
    if not (folder / "config.json").is_file():
        what = "there is no finished fine-tuning run and no exported classifier in"
        raise FileNotFoundError(f"checkpoint: {what} {path}; is the run finished?")
    loaded = mast.from_pretrained(folder)
    if not loaded.labels or not loaded.model.num_classes:
        raise ValueError(f"checkpoint: {path} has no classes; fine-tune it first (avssl finetune)")
    if loaded.frontend is None:
        raise ValueError(f"checkpoint: {folder} was exported without its frontend; its spectrograms cannot be remade")
    outputs = sum(len(names) for names in loaded.labels.values())
    if outputs != loaded.model.num_classes:
        raise ValueError(f"checkpoint: {folder} names {outputs} classes, its model has {loaded.model.num_classes}")
    return SavedClassifier(AudioClassifier(loaded.model, loaded.frontend, loaded.labels).eval(), loaded.extra)


def _checkpoint(path: Path) -> Path | None:
    """The file of settings and weights that ``path`` means; None where it means an export, or nothing."""
    candidates = [path] if path.suffix == ".ckpt" else [path / FILE, path / FOLDER / FILE]
    return next((file for file in candidates if file.is_file()), None)


def _export(path: Path) -> Path:
    return path / EXPORT if (path / EXPORT).is_dir() else path


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    if "weights" in state:
        return state["weights"]
    prefix, weights = ("module.", state["average"]) if state["average"] else ("classifier.", state["task"])
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
