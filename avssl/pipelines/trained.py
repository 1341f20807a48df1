"""What a checkpoint was trained with, for the tools that apply it: clip length, frames, classes."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import mast
from avssl.data.catalog import find_entry
from avssl.data.failures import DataError
from avssl.pipelines.encoders import EXPORT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Settings of a training run, None where they are not known.

    Attributes:
        clip_seconds: Length of its clips.
        num_frames: Video frames of a clip.
        frame_size: Side of its decoded frames in pixels.
    """

    clip_seconds: float | None = None
    num_frames: int | None = None
    frame_size: int | None = None


def trained_with(checkpoint: Path) -> Trained:
    """The settings of the run that ``checkpoint`` (a run folder, its export or .ckpt file) belongs to.

    They are in the run's ``config.yaml``; an export that was moved away from its run holds only the clip length.
    """
    data = _run_config(checkpoint).get("data") or {}
    seconds = data.get("clip_seconds") or _exported_seconds(checkpoint)
    if seconds is None and data.get("name"):
        try:
            seconds = find_entry(data["name"]).clip_seconds
        except DataError as error:
            logger.debug("%s: clip length unknown: %s", checkpoint, error)
    return Trained(None if seconds is None else float(seconds), data.get("num_frames"), data.get("frame_size"))


def load_classifier(checkpoint: Path) -> mast.Pretrained:
    """The exported classifier of a fine-tuning run, or of an export's folder.

    Raises:
        FileNotFoundError: there is no export at ``checkpoint``.
        ValueError: it has no classes or no frontend.
    """
    folder = _export_folder(checkpoint)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"checkpoint: {checkpoint} is neither a finished fine-tuning run nor an exported audio classifier"
        )
    loaded = mast.from_pretrained(folder)
    if not loaded.labels or not loaded.model.num_classes:
        raise ValueError(f"checkpoint: {checkpoint} has no classes; fine-tune it first (tools/finetune.py)")
    if loaded.frontend is None:
        raise ValueError(f"checkpoint: {folder} was exported without its frontend; its spectrograms cannot be remade")
    outputs = sum(len(names) for names in loaded.labels.values())
    if outputs != loaded.model.num_classes:
        raise ValueError(f"checkpoint: {folder} names {outputs} classes, its model has {loaded.model.num_classes}")
    return loaded


def _export_folder(checkpoint: Path) -> Path:
    return checkpoint / EXPORT if (checkpoint / EXPORT).is_dir() else checkpoint


def _run_config(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that ``checkpoint`` lies in; nothing where it lies in none."""
    if checkpoint.suffix == ".ckpt":
        folder = checkpoint.parent.parent
    else:
        folder = checkpoint.parent if checkpoint.name == EXPORT else checkpoint
    file = folder / "config.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return values if isinstance(values, dict) else {}


def _exported_seconds(checkpoint: Path) -> float | None:
    """``clip_seconds`` among the extras of an export."""
    file = _export_folder(checkpoint) / "config.json"
    extra = json.loads(file.read_text(encoding="utf-8")).get("extra") if file.is_file() else None
    return (extra or {}).get("clip_seconds")
