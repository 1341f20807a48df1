"""What a checkpoint was trained with, for the tools that apply it: clip length, frames, data."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from avssl.checkpoint import CONFIG, run_settings
from avssl.config import DataConfig
from avssl.config.inference import EmbedDataConfig
from avssl.data.catalog import find_entry
from avssl.data.failures import DataError
from avssl.pipelines.classifiers import FOLDER
from avssl.pipelines.encoders import EXPORT
from avssl.urls import hidden
from mast.hub import read_config

Data = TypeVar("Data", DataConfig, EmbedDataConfig)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Settings of a training run, None where they are not known.

    Attributes:
        clip_seconds: Length of its clips.
        num_frames: Video frames of a clip.
        frame_size: Side of its decoded frames in pixels.
        eval_clips: Clips of an item that it was evaluated on, where that was set.
        eval_average: What was averaged over them, where that was set.
        data: Name of its data.
        options: Options of its data.
        channel: What it heard of several channels.
        root: Folder of the media of its data, where that was given.
    """

    clip_seconds: float | None = None
    num_frames: int | None = None
    frame_size: int | None = None
    eval_clips: int | None = None
    data: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    channel: int | Literal["mean"] = "mean"
    root: str | None = None
    eval_average: Literal["probabilities", "logits"] | None = None

    def is_of(self, data: str) -> bool:
        """Whether it was trained on ``data``, a name or a path, however that is written."""
        return self.data is not None and (hidden(data) == hidden(self.data) or _same_place(data, self.data))


def trained_with(checkpoint: Path) -> Trained:
    """The settings of the run that ``checkpoint`` (a run folder, its export or .ckpt file) belongs to.

    They are in the run's ``config.yaml``; an export that was moved away from its run holds only the clip length and
    the channel.
    """
    data = _run_config(checkpoint).get("data") or {}
    seconds = data.get("clip_seconds") or _exported(checkpoint, "clip_seconds")
    if seconds is None and data.get("name"):
        try:
            seconds = find_entry(data["name"]).clip_seconds
        except DataError as error:
            logger.debug("%s: clip length unknown: %s", checkpoint, error)
    return Trained(
        None if seconds is None else float(seconds),
        data.get("num_frames"),
        data.get("frame_size"),
        data.get("eval_clips"),
        data.get("name"),
        data.get("options") or {},
        data.get("channel", _exported(checkpoint, "channel") or "mean"),
        data.get("root"),
        data.get("eval_average"),
    )


def _same_place(one: str, other: str) -> bool:
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def own_data(data: Data, known: Trained) -> Data:
    """``data``, or where it has no name, that of the checkpoint's training.

    Raises:
        ValueError: it has none, and the checkpoint lies in no run that says what it was trained on.
    """
    if data.name:
        return data
    if not known.data:
        raise ValueError("data: the checkpoint lies in no run that names its data: give --data NAME")
    logger.info("data: those of the checkpoint, %s", known.data)
    root = data.root or (Path(known.root) if known.root else None)
    return replace(data, name=known.data, root=root, options=known.options | data.options)


def _export_folder(checkpoint: Path) -> Path:
    return checkpoint / EXPORT if (checkpoint / EXPORT).is_dir() else checkpoint


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that ``checkpoint`` lies in; where it lies in none, its own."""
    folder = checkpoint.parent if checkpoint.suffix == ".ckpt" else checkpoint
    if folder.name not in ("checkpoints", EXPORT, FOLDER):
        return folder
    return folder.parent if any((folder.parent / name).is_file() for name in (CONFIG, "metrics.jsonl")) else folder


def _run_config(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that ``checkpoint`` lies in; nothing where it lies in none."""
    return run_settings(run_folder(checkpoint))


def _exported(checkpoint: Path, key: str) -> Any:
    """``key`` among the extras of an export; None where it is not there."""
    folder = _export_folder(checkpoint)
    extra = read_config(folder).get("extra") if (folder / "config.json").is_file() else None
    return (extra or {}).get(key)
