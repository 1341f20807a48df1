"""Embeds any media with a trained checkpoint: one row for each window, as Parquet or .npz.

avssl embed --checkpoint runs/pretrain-videos --data /path/to/media --output features.parquet
"""

import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning_fabric import Fabric
from torch import Tensor

from avssl.bounds import check_bounds
from avssl.config import EmbedConfig, to_dict
from avssl.data.catalog import find_entry, open_data
from avssl.data.clips import ClipDataset, Modality
from avssl.data.failures import DataError
from avssl.data.loader import make_eval_loader
from avssl.data.manifest import SPLITS, Manifest
from avssl.data.media import Channel
from avssl.data.scan import cut_short, shortfall, shortfall_words, warning_words
from avssl.data.shards.index import check_settings
from avssl.data.windows import cut_into_windows
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.result import provenance, write_result
from avssl.files import atomic_path
from avssl.limits import set_limits
from avssl.loading import Loaded, load
from avssl.locks import hold, refuse_held
from avssl.progress import Meter
from avssl.saved_runs import with_training_data
from avssl.training.initialization import frame_size_for
from avssl.training.launch import launch_single

logger = logging.getLogger(__name__)


def run(config: EmbedConfig) -> int:
    """The command; returns the exit status, 130 where a signal ended it."""
    try:
        embed_media(config)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0


@dataclass(frozen=True)
class ClipFormat:
    """How clips are decoded for a model.

    Attributes:
        modalities: What is decoded, of which the model makes its embeddings.
        sample_rate, seconds: Of the waveforms.
        num_frames, frame_size: Of the frames.
        channel: Of the waveforms: "mean", or the number of one.
    """

    modalities: tuple[Modality, ...]
    sample_rate: int
    seconds: float
    num_frames: int
    frame_size: int
    channel: Channel


def embed_media(config: EmbedConfig) -> dict[str, Any]:
    """Embeds all windows that can be read, and writes ``config.output`` and a summary beside it (.json).

    Returns:
        The summary: counts, what was left out and why, the columns and their widths, the settings.

    Raises:
        DataError: no such data or split, or not one window can be embedded.
        ValueError: options that do not fit the checkpoint.
        FileNotFoundError: no such checkpoint.
        HeldError: another process is writing ``config.output``.
    """
    check_bounds(config)
    checkpoint = Path(config.checkpoint)
    refuse_held(config.output, "embeddings")
    model = load(checkpoint)
    config = replace(config, data=with_training_data(config.data, model.settings))
    fabric = launch_single(config.runtime, 0, config.data.num_workers)
    model.to(fabric.device)
    clip_format = format_for(model, config)
    clips, left_out = select(config, clip_format)
    windows, rows = cut_into_windows(
        clips,
        clip_format.seconds,
        config.windows,
        modalities=clip_format.modalities,
        count=config.num_windows,
        hop=config.hop,
    )
    settings = {
        "checkpoint": [str(checkpoint.resolve()), _stamp(checkpoint)],
        "windows": windows.digest,
        "root": str(windows.root),
        "decode": [
            clip_format.modalities,
            clip_format.sample_rate,
            clip_format.seconds,
            clip_format.num_frames,
            clip_format.frame_size,
            clip_format.channel,
        ],
        "precision": config.runtime.precision,
    }
    ids = np.asarray(clips.column("clip_id"), dtype=object)[rows]
    with hold(config.output, "embeddings"):
        parts = FeatureParts(config.output, settings)
        _embed_windows(config, model, clip_format, windows, ids, parts, fabric)
        return _finish(config, model, clip_format, clips, left_out, parts)


def _finish(
    config: EmbedConfig,
    model: Loaded,
    clip_format: ClipFormat,
    clips: Manifest,
    left_out: list[dict[str, Any]],
    parts: "FeatureParts",
) -> dict[str, Any]:
    """Writes the output and its summary."""
    failures = left_out + parts.failures
    reasons = dict(Counter(failure["reason"] for failure in failures).most_common())
    if parts.done == len(parts.failures):
        parts.remove()
        raise DataError(f"{config.data.name}: not one window could be embedded: {reasons}")
    total = parts.done
    embedded = parts.finish()
    summary = {
        "clips": len(clips) + len(left_out),
        "windows": total,
        "embedded": embedded,
        "left_out": {"count": len(failures), "reasons": reasons, "items": failures},
        "cut_short": int(cut_short(clips, clip_format.modalities).sum()),
        "shorter": int((shortfall(clips, clip_format.modalities, clip_format.seconds) > 0).sum()),
        "warnings": clips.warnings,
        "clip_seconds": clip_format.seconds,
        "channel": clip_format.channel,
        "projection": None if model.pair is None else model.pair.retrieval,
        "pad": model.pad if "audio" in clip_format.modalities else None,
        "manifest": clips.digest,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(config.output.with_suffix(".json"), summary)
    logger.info("%s: %d of %d windows of %d clips embedded", config.output, embedded, total, summary["clips"])
    if told := shortfall_words(clips, clip_format.modalities, clip_format.seconds):
        logger.warning("%s", told)
    for reason, count in clips.warnings.items():
        logger.warning("%d clips: %s", count, warning_words(reason))
    if failures:
        told = ", ".join(f"{reason} x{count}" for reason, count in reasons.items())
        logger.warning("left out: %s; listed in %s", told, config.output.with_suffix(".json"))
    return summary


def format_for(model: Loaded, config: EmbedConfig) -> ClipFormat:
    """How ``config`` has clips decoded for ``model``: as in its training, where it says nothing else.

    Raises:
        ValueError: the model does not take these modalities.
    """
    data, settings = config.data, model.settings
    own: tuple[Modality, ...] = ("audio", "video") if model.kind == "pair" else model.modalities
    choices = [*(["both"] if len(own) == 2 else own), *(own if model.kind == "pair" else ())]
    wanted = choices[0] if config.modalities == "auto" else config.modalities
    if wanted not in choices:
        raise ValueError(f"modalities: {model.path} takes {' or '.join(choices)}, not {wanted}; give it or auto")
    modalities = own if wanted == "both" else tuple(name for name in own if name == wanted)
    num_frames, crop = model.frames or (1, 1)
    size = crop
    if "video" in modalities:
        size = settings.frame_size or frame_size_for(crop)  # as in evaluation
    return ClipFormat(
        modalities,
        model.sample_rate,
        data.clip_seconds or settings.clip_seconds or find_entry(data.name).seconds(),
        data.num_frames or num_frames,
        data.frame_size or size,
        settings.channel if data.channel is None else data.channel,
    )


def select(config: EmbedConfig, clip_format: ClipFormat) -> tuple[Manifest, list[dict[str, Any]]]:
    """The clips to embed, and those that cannot be."""
    set_limits(config.data)
    manifest = open_data(config.data.name, root=config.data.root, options=config.data.options)
    video = "video" in clip_format.modalities
    check_settings(
        manifest,
        clip_format.frame_size if video else None,
        clip_format.channel if "audio" in clip_format.modalities else None,
    )
    if config.data.split is not None:
        if config.data.split not in SPLITS:
            raise ValueError(f"data.split: must be one of {', '.join(filter(None, SPLITS))}, got {config.data.split!r}")
        manifest = manifest.select(config.data.split)
    reasons = manifest.reasons(
        "audio" in clip_format.modalities, "video" in clip_format.modalities, clip_format.seconds, clip_format.channel
    )
    unknown = np.isnan(manifest.spans(clip_format.modalities)[1])
    reasons = [
        reason or ("unknown duration" if nowhere else "") for reason, nowhere in zip(reasons, unknown, strict=True)
    ]
    names = zip(manifest.column("clip_id"), manifest.column("path"), reasons, strict=True)
    left_out = [{"clip_id": name, "path": path, "reason": reason} for name, path, reason in names if reason]
    usable = manifest.select(mask=[not reason for reason in reasons])
    if not len(usable):
        counts = dict(Counter(item["reason"] for item in left_out))
        raise DataError(f"{config.data.name}: no clip to embed in split {config.data.split or 'any'}: {counts}")
    return usable, left_out


def _embed_windows(
    config: EmbedConfig,
    model: Loaded,
    clip_format: ClipFormat,
    windows: Manifest,
    ids: np.ndarray,
    parts: "FeatureParts",
    fabric: Fabric,
) -> None:
    """Embeds the windows that ``parts`` does not have yet; ``ids`` (N,): the clip of each."""
    first = parts.done
    dataset = ClipDataset(
        windows.take(np.arange(first, len(windows))),
        modalities=clip_format.modalities,
        clip_seconds=clip_format.seconds,
        sample_rate=clip_format.sample_rate,
        num_frames=clip_format.num_frames,
        frame_size=clip_format.frame_size,
        channel=clip_format.channel,
        mode="center",
    )
    paths, starts = windows.column("path"), windows.column("start")
    tables: list[pa.Table] = []
    failures: list[dict[str, Any]] = []
    done = first
    with Meter("embed", total=len(windows), initial=first, unit="window") as meter:
        workers, timeout = config.data.num_workers, config.data.clip_timeout
        for batch in make_eval_loader(dataset, config.batch_size, num_workers=workers, timeout=timeout):
            done = min(done + config.batch_size, len(windows))
            for failure in batch.failures:
                row = first + failure.index
                where = {"clip_id": ids[row], "path": paths[row], "start": starts[row]}
                failures.append(where | {"reason": failure.reason})
            if batch.size:
                found = first + batch.index.numpy()
                with torch.inference_mode(), fabric.autocast():
                    features = model.embeddings(batch)
                tables.append(_table(features, windows.take(found), ids[found]))
            if done - parts.done >= config.part_size or done == len(windows):
                parts.add(pa.concat_tables(tables) if tables else pa.table({}), done, failures)
                tables, failures = [], []
            meter.update(done - meter.count)


def _table(features: Mapping[str, Tensor], windows: Manifest, ids: np.ndarray) -> pa.Table:
    """The rows of a batch; ``features``: by column (B, D), ``windows``: its rows, ``ids`` (B,): the clips they are of.

    Raises:
        ValueError: a feature is NaN or infinite; the clip is named.
    """
    columns: dict[str, Any] = {"clip_id": pa.array(ids.tolist(), pa.string())}
    columns |= {name: windows.table[name] for name in ("path", "start", "end")}
    arrays = {name: values.float().cpu().numpy() for name, values in features.items()}
    for name, values in arrays.items():
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name}: NaN or infinite features for clip {ids[int(finite.argmin())]!r}")
    return pa.table(columns | {name: feature_column(values) for name, values in arrays.items()})


def _stamp(checkpoint: Path) -> list[int]:
    """Time and size of the weights, which tell one state of a run from another."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("**/*.safetensors"))
    files += [
        file for name in ("checkpoints/last", "classifier/model", "model") for file in checkpoint.glob(f"{name}.ckpt")
    ]
    return [number for file in files for number in (file.stat().st_mtime_ns, file.stat().st_size)]


SUFFIXES = (".parquet", ".npz")
_KEY = b"avssl.part"


def feature_column(values: FloatArray) -> pa.Array:
    """(N, D) as a column of fixed-size lists of float32."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


class FeatureParts:
    """The parts of an output that is being made, in a hidden folder beside it.

    Args:
        output: The file that the parts will make.
        settings: What the work is made from, JSON-able. Parts of other settings are thrown away.

    Attributes:
        done: Items worked on so far, whether or not they gave a row.
        failures: What was not readable among them.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        if output.suffix not in SUFFIXES:
            raise ValueError(f"output: {output} must end in {' or '.join(SUFFIXES)}")
        self.output = output
        self.folder = output.with_name(f".{output.name}.parts")
        self.failures: list[dict[str, Any]] = []
        self.done = 0
        told = json.dumps(settings, sort_keys=True, default=str)
        file = self.folder / "settings.json"
        if file.is_file() and file.read_text(encoding="utf-8") == told:
            self._resume()
            return
        if self.folder.is_dir():
            logger.info("%s: the unfinished work there was made with other settings: starting over", output)
            shutil.rmtree(self.folder)
        with atomic_path(file) as temporary:
            temporary.write_text(told, encoding="utf-8")

    def _resume(self) -> None:
        for part in self._parts():
            state = json.loads(pq.read_schema(part).metadata[_KEY])
            self.done = state["done"]
            self.failures += state["failures"]
        if self.done:
            logger.info("%s: continuing after %d windows", self.output, self.done)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def add(self, table: pa.Table, done: int, failures: Sequence[dict[str, Any]]) -> None:
        """Keeps the rows of the items up to ``done``; a part appears whole or not at all."""
        state = json.dumps({"done": done, "failures": list(failures)})
        with atomic_path(self.folder / f"part-{len(self._parts()):06d}.parquet") as temporary:
            pq.write_table(table.replace_schema_metadata({_KEY: state}), temporary, write_page_checksum=True)
        self.done = done
        self.failures += failures

    def finish(self) -> int:
        """Puts the parts together to the output, removes them, and returns the number of rows."""
        tables = [part for part in self._parts() if pq.read_metadata(part).num_rows]
        if not tables:
            raise ValueError(f"{self.output}: there is not one row to write")
        with atomic_path(self.output) as temporary:
            rows = self._write_parquet(tables, temporary) if self.output.suffix == ".parquet" else 0
            if self.output.suffix == ".npz":
                rows = self._write_npz(tables, temporary)
        self.remove()
        return rows

    def remove(self) -> None:
        """Throws the parts away."""
        shutil.rmtree(self.folder)

    @staticmethod
    def _write_parquet(parts: Sequence[Path], path: Path) -> int:
        schema = pq.read_schema(parts[0]).remove_metadata()
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            for part in parts:
                writer.write_table(_read_table(part).replace_schema_metadata(None))
        return int(pq.read_metadata(path).num_rows)

    @staticmethod
    def _write_npz(parts: Sequence[Path], path: Path) -> int:
        table = pa.concat_tables(_read_table(part).replace_schema_metadata(None) for part in parts)
        arrays: dict[str, Any] = {name: to_array(table[name]) for name in table.column_names}
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return table.num_rows


def to_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array without objects: (N,), or (N, D) for fixed-size lists."""
    if pa.types.is_fixed_size_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=str)
    return column.to_numpy()


def read_features(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a Parquet or .npz file of features as arrays: clip_id, path, start, end, and (N, D) features.

    Raises:
        ValueError: a Parquet file is damaged.
        zipfile.BadZipFile: a .npz file is.
    """
    if Path(path).suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    table = _read_table(Path(path))
    return {name: to_array(table[name]) for name in table.column_names}


def _read_table(path: Path) -> pa.Table:
    """A Parquet file whose pages are compared with their checksums."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:  # what a damaged page is to Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path}: is damaged ({str(error).splitlines()[0]}); make it again") from error
