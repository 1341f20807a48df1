"""Embeddings of any media with a trained checkpoint, from the config to a Parquet or .npz file and its summary."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning_fabric import Fabric
from torch import Tensor

from avssl.config import to_dict
from avssl.config.bounds import check_bounds
from avssl.config.inference import EmbedConfig
from avssl.data.batch import Batch
from avssl.data.catalog import find_entry, open_data
from avssl.data.clips import ClipDataset, Modality
from avssl.data.failures import DataError
from avssl.data.loader import make_eval_loader
from avssl.data.manifest import SPLITS, Manifest
from avssl.data.media import Channel
from avssl.data.scan import cut_short, warning_words
from avssl.data.shards.index import check_settings
from avssl.data.windows import cut_into_windows
from avssl.evaluation.feature_parts import FeatureParts, feature_column
from avssl.evaluation.result import provenance, write_result
from avssl.limits import set_limits
from avssl.locks import hold, refuse_held
from avssl.models.classifier import Classifier
from avssl.models.pair import AudioVisualPair, center_crop
from avssl.pipelines.classifiers import has_classifier, load_classifier
from avssl.pipelines.encoders import AudioEncoder, is_pair, load_audio_encoder, load_pair
from avssl.pipelines.trained import own_data, trained_with
from avssl.progress import Meter
from avssl.training.launch import launch_single

logger = logging.getLogger(__name__)

Encode = Callable[[Batch], dict[str, Tensor]]


@dataclass
class Source:
    """How to decode for a model, and what it makes of a batch.

    Attributes:
        encode: A batch with ``modalities`` -> features (B, D) by column.
        sample_rate, seconds: Of the waveforms.
        num_frames, frame_size: Of the frames.
        channel: Of the waveforms: "mean", or the number of one.
        projection: Of a pair, the projection that its embeddings are of.
        pad: What stands behind the sound of a short window, see ``mast.LogMel``; None without sound.
    """

    encode: Encode
    modalities: tuple[Modality, ...]
    sample_rate: int
    seconds: float
    num_frames: int
    frame_size: int
    channel: Channel
    projection: str | None = None
    pad: str | None = None


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
    if not checkpoint.exists():
        raise FileNotFoundError(
            f"checkpoint: there is no {checkpoint}; give a run, an exported encoder or a .ckpt file"
        )
    refuse_held(config.output, "embeddings")
    config = replace(config, data=own_data(config.data, trained_with(checkpoint)))
    fabric = launch_single(config.runtime, 0, config.data.num_workers)
    source = open_source(config, checkpoint, fabric.device)
    clips, left_out = select(config, source)
    windows, rows = cut_into_windows(
        clips,
        source.seconds,
        config.windows,
        modalities=source.modalities,
        count=config.num_windows,
        hop=config.hop,
    )
    settings = {
        "checkpoint": [str(checkpoint.resolve()), _stamp(checkpoint)],
        "windows": windows.digest,
        "root": str(windows.root),
        "decode": [
            source.modalities,
            source.sample_rate,
            source.seconds,
            source.num_frames,
            source.frame_size,
            source.channel,
        ],
        "precision": config.runtime.precision,
    }
    ids = np.asarray(clips.column("clip_id"), dtype=object)[rows]
    with hold(config.output, "embeddings"):
        parts = FeatureParts(config.output, settings)
        _embed_windows(config, source, windows, ids, parts, fabric)
        return _finish(config, source, clips, left_out, parts)


def _finish(
    config: EmbedConfig, source: Source, clips: Manifest, left_out: list[dict[str, Any]], parts: FeatureParts
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
        "cut_short": int(cut_short(clips, source.modalities).sum()),
        "warnings": clips.warnings,
        "clip_seconds": source.seconds,
        "channel": source.channel,
        "projection": source.projection,
        "pad": source.pad,
        "manifest": clips.digest,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_result(config.output.with_suffix(".json"), summary)
    logger.info("%s: %d of %d windows of %d clips embedded", config.output, embedded, total, summary["clips"])
    for reason, count in clips.warnings.items():
        logger.warning("%d clips: %s", count, warning_words(reason))
    if failures:
        told = ", ".join(f"{reason} x{count}" for reason, count in reasons.items())
        logger.warning("left out: %s; listed in %s", told, config.output.with_suffix(".json"))
    return summary


def open_source(config: EmbedConfig, checkpoint: Path, device: torch.device) -> Source:
    """The model of ``checkpoint`` on ``device``. ValueError for modalities that it does not take."""
    known, data = trained_with(checkpoint), config.data
    num_frames, size, pad = 1, 1, None
    projection: str | None = None
    own: tuple[Modality, ...] = ("audio",)
    if is_pair(checkpoint):
        own = ("audio", "video")
        pair = load_pair(checkpoint).to(device).eval()
        num_frames, size = int(pair.settings["num_frames"]), int(pair.settings["crop_size"])
        encode, sample_rate, pad = _pair_encoder(pair, device), pair.frontend.sample_rate, pair.frontend.pad
        projection = pair.retrieval
        choices = ["both", "audio", "video"]
    elif has_classifier(checkpoint):
        model = load_classifier(checkpoint).to(device).eval()
        own = model.modalities
        num_frames, size = model.num_frames or 1, model.crop_size or 1
        encode, sample_rate = _classifier_encoder(model, device), 16000
        if model.frontend is not None:
            sample_rate, pad = model.frontend.sample_rate, model.frontend.pad
        choices = ["both" if len(own) == 2 else own[0]]
    else:
        single = load_audio_encoder(checkpoint)
        encode, sample_rate, pad = _audio_encoder(single, device), single.frontend.sample_rate, single.frontend.pad
        choices = ["audio"]
    wanted = choices[0] if config.modalities == "auto" else config.modalities
    if wanted not in choices:
        raise ValueError(f"modalities: {checkpoint} takes {' or '.join(choices)}, not {wanted}; give it or auto")
    modalities = own if wanted == "both" else tuple(name for name in own if name == wanted)
    seconds = data.clip_seconds or known.clip_seconds or find_entry(data.name).seconds()
    if "video" in modalities:
        size = max(size, known.frame_size or 0)
    return Source(
        encode,
        modalities,
        sample_rate,
        seconds,
        data.num_frames or num_frames,
        data.frame_size or size,
        known.channel if data.channel is None else data.channel,
        projection,
        pad if "audio" in modalities else None,
    )


def _pair_encoder(pair: AudioVisualPair, device: torch.device) -> Encode:
    crop = int(pair.settings["crop_size"])

    def encode(batch: Batch) -> dict[str, Tensor]:
        batch, out = batch.to(device), {}
        if batch.audio is not None:
            by_time = pair.encode_audio(pair.frontend(batch.audio, batch.samples))
            out["audio_embedding"] = pair.project_audio(by_time, pair.retrieval)
            out["audio_features"] = by_time.mean(dim=2)
        if batch.video is not None:
            features = pair.video(center_crop(batch.video, crop))
            out |= {"video_embedding": pair.project_video(features, pair.retrieval), "video_features": features}
        return out

    return encode


def _classifier_encoder(model: Classifier, device: torch.device) -> Encode:
    def encode(batch: Batch) -> dict[str, Tensor]:
        encoded = model.encode_batch(batch.to(device))
        found = {"audio_features": encoded.audio, "video_features": encoded.video}
        if len(model.modalities) > 1:
            found["fused_features"] = encoded.features
        return {name: values for name, values in found.items() if values is not None}

    return encode


def _audio_encoder(source: AudioEncoder, device: torch.device) -> Encode:
    source.encoder.to(device).eval(), source.frontend.to(device)

    def encode(batch: Batch) -> dict[str, Tensor]:
        return {"audio_features": source.features(batch.to(device))}

    return encode


def select(config: EmbedConfig, source: Source) -> tuple[Manifest, list[dict[str, Any]]]:
    """The clips to embed, and those that cannot be."""
    set_limits(config.data)
    manifest = open_data(config.data.name, root=config.data.root, options=config.data.options)
    video = "video" in source.modalities
    check_settings(
        manifest, source.frame_size if video else None, source.channel if "audio" in source.modalities else None
    )
    if config.data.split is not None:
        if config.data.split not in SPLITS:
            raise ValueError(f"data.split: must be one of {', '.join(filter(None, SPLITS))}, got {config.data.split!r}")
        manifest = manifest.select(config.data.split)
    reasons = manifest.reasons(
        "audio" in source.modalities, "video" in source.modalities, source.seconds, source.channel
    )
    unknown = np.isnan(manifest.spans(source.modalities)[1])
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
    source: Source,
    windows: Manifest,
    ids: np.ndarray,
    parts: FeatureParts,
    fabric: Fabric,
) -> None:
    """Embeds the windows that ``parts`` does not have yet; ``ids`` (N,): the clip of each."""
    first = parts.done
    dataset = ClipDataset(
        windows.take(np.arange(first, len(windows))),
        modalities=source.modalities,
        clip_seconds=source.seconds,
        sample_rate=source.sample_rate,
        num_frames=source.num_frames,
        frame_size=source.frame_size,
        channel=source.channel,
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
                    features = source.encode(batch)
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
