"""Runs on disk: where their models are, what these were trained with and on, and what was held out."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avssl.checkpoint import BEST, CONFIG, LAST, edited_by_hand, read_head, run_settings
from avssl.config import DataConfig, EmbedDataConfig
from avssl.data.catalog import stated_seconds
from avssl.data.manifest import Manifest
from avssl.data.splits import HoldOut
from avssl.files import unseal
from avssl.urls import hidden
from mast.hub import CONFIG as EXPORT_CONFIG
from mast.hub import read_config

Data = TypeVar("Data", DataConfig, EmbedDataConfig)
logger = logging.getLogger(__name__)

# Of a finished run: the folder of its audio encoder or classifier of audio, and that of a classifier that sees.
EXPORT, CLASSIFIER = "audio_encoder", "classifier"
CLASSIFIER_FILE = "model.ckpt"
# What it held out of its training split, and the ids of the clips that it trains on.
HELD_OUT = "held_out.json"
TRAINED_ON = "trained_on.parquet"
# Settings of the data that change what a model sees of them.
_SEEN = ("name", "options", "clip_seconds", "num_frames", "frame_size", "channel", "eval_clips", "eval_average")


@dataclass(frozen=True)
class TrainingSettings:
    """What a model was trained with, None where that is not known.

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
        multilabel: Heads of which a clip may have several classes at once.
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
    multilabel: frozenset[str] = frozenset()

    def trained_on(self, data: str) -> bool:
        """Whether these are of a training on ``data``, a name or a path, however that is written."""
        return self.data is not None and (hidden(data) == hidden(self.data) or _same_place(data, self.data))


def training_settings(path: Path) -> TrainingSettings:
    """As :func:`avssl.load` gives them, without reading weights; all unknown where there is no model at ``path``."""
    try:
        found = find_model(path)
    except FileNotFoundError:
        return settings_of(path, {}, {})
    if found.is_dir():
        return settings_of(path, {}, read_config(found).get("extra") or {})
    settings = read_head(found)["settings"]
    return settings_of(path, settings.get("config") or {}, settings.get("extra") or {})


def with_training_data(data: Data, settings: TrainingSettings) -> Data:
    """``data``, or where it has no name, that of a checkpoint's training.

    Raises:
        ValueError: it has none, and the checkpoint lies in no run that says what it was trained on.
    """
    if data.name:
        return data
    if not settings.data:
        raise ValueError("data: the checkpoint lies in no run that names its data: give --data NAME")
    logger.info("data: those of the checkpoint, %s", settings.data)
    root = data.root or (Path(settings.root) if settings.root else None)
    return replace(data, name=settings.data, root=root, options=settings.options | data.options)


def run_folder(path: Path) -> Path:
    """The folder of the run that ``path`` lies in; where it lies in none, its own."""
    folder = path.parent if path.suffix == ".ckpt" else path
    if folder.name not in ("checkpoints", EXPORT, CLASSIFIER):
        return folder
    return folder.parent if any((folder.parent / name).is_file() for name in (CONFIG, "metrics.jsonl")) else folder


def used_checkpoint(run: Path) -> Path:
    """The file that ``log.use`` of a run evaluates, whether it is there or not."""
    best = run / "checkpoints" / BEST
    if best.is_file():
        log = run_settings(run).get("log") or {}
        if log.get("use") == "best":  # runs of before that setting evaluated the last weights
            return best
    return run / "checkpoints" / LAST


def find_model(path: Path) -> Path:
    """The .ckpt file, or the ``mast`` folder, that ``path`` means."""
    if path.suffix == ".ckpt" or not path.exists():
        if path.is_file():
            return path
        raise FileNotFoundError(f"checkpoint: there is no {path}; give a run, an exported folder or a .ckpt file")
    for file in (path / CLASSIFIER_FILE, path / CLASSIFIER / CLASSIFIER_FILE):
        if file.is_file():
            return file
    folder = path / EXPORT if (path / EXPORT).is_dir() else path
    exported = (folder / EXPORT_CONFIG).is_file()
    if exported and read_config(folder).get("labels"):
        return folder
    file = used_checkpoint(path)
    if file.is_file():  # of a pair, whose export is its audio encoder alone
        return file
    if exported:
        return folder
    if (path / "checkpoints").is_dir():
        raise not_finished(path)
    raise FileNotFoundError(
        f"checkpoint: {path} is neither a run folder, nor an exported one, nor a .ckpt file; is the run finished?"
    )


def not_finished(run: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"checkpoint: the run {run} is not finished; resume it, or name {run / 'checkpoints' / LAST}"
    )


def settings_of(path: Path, config: Mapping[str, Any], extra: Mapping[str, Any]) -> TrainingSettings:
    """Those of the run that ``path`` lies in, completed by what the model itself keeps.

    Args:
        path: Where it was read.
        config: Of a checkpoint, the settings of its run.
        extra: Plain values beside a finished model.
    """
    own = {key: extra[key] for key in ("clip_seconds", "channel", "frame_size") if extra.get(key) is not None}
    own |= {key: value for key, value in (config.get("data") or {}).items() if value is not None}
    data = _data_of_run(run_folder(path), own)
    seconds = data.get("clip_seconds")
    if seconds is None and data.get("name"):
        seconds = stated_seconds(data["name"])
    return TrainingSettings(
        clip_seconds=None if seconds is None else float(seconds),
        num_frames=data.get("num_frames"),
        frame_size=data.get("frame_size"),
        eval_clips=data.get("eval_clips"),
        data=data.get("name"),
        options=data.get("options") or {},
        channel=data.get("channel", "mean"),
        root=data.get("root"),
        eval_average=data.get("eval_average"),
        multilabel=frozenset(extra.get("multilabel") or ()),
    )


def _data_of_run(folder: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data by ``config.yaml`` of a run, or else ``own``, those that came with the weights.

    A file that another run wrote there says nothing of these weights: what is not as they say is told and left out,
    unless somebody changed the file by hand to have it count.
    """
    found = {key: value for key, value in (run_settings(folder).get("data") or {}).items() if value is not None}
    other = next((key for key in _SEEN if key in own and key in found and not _same(own[key], found[key])), None)
    if other is None or edited_by_hand(folder):
        return own | found
    logger.warning(
        "%s is of another run: data.%s is %r there, and was %r where the weights were trained: the file is left out",
        *(folder / CONFIG, other, found[other], own[other]),
    )
    return own


def _same(one: Any, other: Any) -> bool:
    plain = [json.dumps(hidden(value), sort_keys=True, default=str) for value in (one, other)]
    return one == other or plain[0] == plain[1]


def _same_place(one: str, other: str) -> bool:
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def read_held_out(folder: Path | None) -> dict[str, HoldOut]:
    """What the run in ``folder`` held out of its training split; nothing where it is no such run, or None.

    Raises:
        ValueError: the file that says so is damaged.
    """
    if folder is None or not (path := folder / HELD_OUT).is_file():
        return {}
    try:
        values = unseal(path.read_bytes(), path, "train the run again")
        return {name: HoldOut(**rows) for name, rows in values.items()}
    except TypeError as error:
        raise ValueError(f"{path}: is damaged ({error}); train the run again") from error


def seen_in_training(folder: Path | None, rows: Manifest) -> int | None:
    """How many of ``rows`` have the id of a clip that the run in ``folder`` trained on; None where it does not say.

    Raises:
        ValueError: the file that says so is damaged.
    """
    if folder is None or not (path := folder / TRAINED_ON).is_file():
        return None
    try:
        trained_on = pq.read_table(path, columns=["clip_id"], page_checksum_verification=True)["clip_id"]
    except (pa.ArrowException, OSError) as error:  # what a damaged page is to Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path}: is damaged; train the run again") from error
    return int(pc.sum(pc.is_in(rows.table["clip_id"], trained_on.combine_chunks())).as_py() or 0)
