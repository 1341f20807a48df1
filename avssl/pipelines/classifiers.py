"""Classifiers on disk.

One that sees is a file of settings and weights in a folder of its run. One of audio alone is exported as a ``mast``
folder (see ``encoders``), which needs no avssl.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.checkpoint import read_checkpoint
from avssl.evaluation.files import atomic_path
from avssl.models.classifier import AudioClassifier, Classifier
from avssl.models.visual_classifier import VisualClassifier, build_visual_classifier
from avssl.pipelines.encoders import EXPORT, export_audio_encoder

logger = logging.getLogger(__name__)

FOLDER = "classifier"
FILE = "model.ckpt"
KIND = "visual classifier"


def checkpoint_settings(classifier: Classifier) -> dict[str, Any]:
    """What a checkpoint of the training of ``classifier`` needs beside the weights."""
    if isinstance(classifier, VisualClassifier):
        return {"kind": KIND, "classifier": classifier.settings}
    assert isinstance(classifier, AudioClassifier)
    encoder = classifier.encoder
    return {
        "kind": "classifier",
        "model": encoder.name,
        "options": encoder.config,
        "frontend": classifier.frontend.config,
        "labels": classifier.labels,
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
        torch.save({"settings": checkpoint_settings(classifier), "weights": weights, "extra": extra or {}}, temporary)
    logger.info("saved the classifier to %s", folder)


def has_classifier(path: Path) -> bool:
    """Whether ``path`` is a finished run of a classifier that sees, its classifier's folder, or a .ckpt file of one."""
    file = _file(path)
    return file.is_file() and read_checkpoint(file)["settings"].get("kind") == KIND


def load_classifier(path: Path) -> VisualClassifier:
    """The classifier of a run, of its classifier's folder, or of a .ckpt file of its training.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds another kind of model, or weights that do not fit its settings.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint: there is no {file}; is the run finished?")
    state = read_checkpoint(file)
    if state["settings"].get("kind") != KIND:
        raise ValueError(f"checkpoint: {file} holds a {state['settings'].get('kind')}, not a {KIND}")
    classifier = build_visual_classifier(**state["settings"]["classifier"])
    try:
        classifier.load_state_dict(_weights(state), strict=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights of {file} do not fit its settings: {error}") from error
    return classifier.eval()


def _file(path: Path) -> Path:
    if path.suffix == ".ckpt":
        return path
    return path / FILE if (path / FILE).is_file() else path / FOLDER / FILE


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    if "weights" in state:
        return state["weights"]
    prefix, weights = ("module.", state["average"]) if state["average"] else ("classifier.", state["task"])
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
