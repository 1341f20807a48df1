"""Exports a trained audio encoder or classifier as ONNX or a torch.export program, and compares it with the model.

avssl export --checkpoint runs/finetune-esc50-full-pretrained --output model.onnx
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mast
from avssl.bounds import check_bounds
from avssl.config import DataConfig, ExportConfig, to_dict
from avssl.data.clips import ClipDataset
from avssl.data.failures import DataError
from avssl.data.loader import make_eval_loader
from avssl.data.manifest import Manifest
from avssl.data.splits import open_splits
from avssl.evaluation.result import provenance, write_result
from avssl.files import atomic_path
from avssl.loading import Loaded, load
from avssl.locks import hold
from avssl.models.classifier import AudioClassifier
from avssl.progress import Meter, track
from avssl.saved_runs import TrainingSettings, read_held_out
from avssl.training.run import run_of
from mast.export import require
from mast.exported import Exported
from mast.frontend import all_samples

logger = logging.getLogger(__name__)

# Lengths that a file is tried at, in units of the clips that the model was trained with: half, whole, longer.
LENGTHS = (0.5, 1.0, 1.7)


def run(config: ExportConfig) -> int:
    """The command; a file that does not equal the model is an error."""
    export_model(config)
    return 0


@dataclass
class Comparison:
    """A file beside the model that it was made of.

    Attributes:
        differences: largest absolute difference of each output.
        scale: largest absolute value of each of the model's outputs.
        lengths: seconds of the inputs.
        clips: real clips.
        agree: of them, by head, those of which both say the same class.
        labelled, model_hits, file_hits: by head, those with a label, and those that each of both has right.
    """

    differences: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    lengths: list[float] = field(default_factory=list)
    clips: int = 0
    agree: Counter[str] = field(default_factory=Counter)
    labelled: Counter[str] = field(default_factory=Counter)
    model_hits: Counter[str] = field(default_factory=Counter)
    file_hits: Counter[str] = field(default_factory=Counter)

    @property
    def largest(self) -> float:
        """The largest difference of any output; NaN where one is."""
        values = list(self.differences.values())
        return float(np.max(values)) if values else 0.0

    def add(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """Outputs of the same clips."""
        for name, values in expected.items():
            difference = float((values - found[name]).abs().max())
            self.differences[name] = float(np.maximum(self.differences.get(name, 0.0), difference))
            self.scale[name] = max(self.scale.get(name, 0.0), float(values.abs().max()))

    def compare_classes(
        self, expected: Tensor, found: Tensor, labels: dict[str, list[str]], truth: dict[str, Tensor]
    ) -> None:
        """Logits (B, all classes) of both; ``truth``: (B,) by head, -1 where unlabelled."""
        sizes = [len(names) for names in labels.values()]
        for head, right, own in zip(labels, expected.split(sizes, -1), found.split(sizes, -1), strict=True):
            right, own = right.argmax(-1), own.argmax(-1)
            self.agree[head] += int((right == own).sum())
            if head in truth:
                known = truth[head] >= 0
                self.labelled[head] += int(known.sum())
                self.model_hits[head] += int((right == truth[head])[known].sum())
                self.file_hits[head] += int((own == truth[head])[known].sum())

    def report(self) -> dict[str, Any]:
        """All of it, JSON-able; top-1 by head where there are labels."""
        out: dict[str, Any] = {
            "largest_difference": self.largest,
            "differences": self.differences,
            "largest_values": self.scale,
            "seconds": sorted(set(self.lengths)),
            "clips": self.clips,
        }
        if self.agree:
            out["same_class"] = {head: count / self.clips for head, count in self.agree.items()}
        out["top1"] = {
            head: {"model": self.model_hits[head] / count, "file": self.file_hits[head] / count, "clips": count}
            for head, count in self.labelled.items()
            if count
        }
        return out


class _Original:
    """The model that a file is made of and compared with."""

    def __init__(self, loaded: Loaded, input: str) -> None:
        self.loaded, self.takes_waveform = loaded, input == "waveform"
        self.labels = loaded.labels
        if loaded.classifier is None:
            loaded = loaded.audio_alone()
        elif not isinstance(loaded.classifier, AudioClassifier):
            raise ValueError(
                f"checkpoint: {loaded.path} classifies {' and '.join(loaded.modalities)}; only audio is exported"
            )
        assert loaded.audio_encoder is not None and loaded.frontend is not None
        self.model, self.frontend = loaded.audio_encoder, loaded.frontend
        frames = self.model.config.get("frames")
        if loaded.settings.clip_seconds is not None:
            self.seconds = loaded.settings.clip_seconds
        elif frames is not None:
            self.seconds = self.frontend.samples_for(int(frames)) / self.frontend.sample_rate
        else:
            raise ValueError(f"checkpoint: {loaded.path} does not say how long its clips were; give a run")

    def write(self, path: Path) -> None:
        frontend = self.frontend if self.takes_waveform else None
        write = mast.export_onnx if path.suffix == ".onnx" else mast.save_program
        length = round(self.seconds * self.frontend.sample_rate)
        length = length if self.takes_waveform else self.frontend.num_frames(length)
        if not self.model.any_length:
            logger.warning("%s is exported for inputs of one length, %g s", self.model.name, self.seconds)
        with Meter(f"writing {path.suffix}"):
            write(self.model, frontend, path, labels=self.labels, mels=self.frontend.num_mels, length=length)

    @torch.inference_mode()
    def outputs(self, waveform: Tensor, samples: Tensor | None = None) -> dict[str, Tensor]:
        """What the file should give for waveforms (B, S), of which ``samples`` (B,) are sound."""
        samples = all_samples(waveform) if samples is None else samples
        frames = self.frontend.valid_frames(samples, waveform.shape[1])
        features = self.model.features(self.frontend(waveform, samples), frames)
        return {"features": features} | ({"logits": self.model.head(features)} if self.labels else {})

    def input(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """What the file takes for these waveforms."""
        return waveform if self.takes_waveform else self.frontend(waveform, samples)


def export_model(config: ExportConfig) -> dict[str, Any]:
    """Writes ``config.output`` and a summary beside it (.json), unless the file is not equal to the model.

    Returns:
        The summary: the comparison on noise and, where data were given, on clips; of an 8-bit file also that of the
        float32 file that it is made from, and what it costs in accuracy.

    Raises:
        ValueError: options that make no sense, a checkpoint without an audio encoder of its own, or a float32 file that
            differs from the model by more than the tolerance; there is no output then.
        FileNotFoundError: no such checkpoint.
        DataError: no such data.
        ImportError: ONNX is asked for and not installed.
        HeldError: another process writes the same file.
    """
    _check(config)
    with hold(config.output, "export"):
        return _export(config)


def _export(config: ExportConfig) -> dict[str, Any]:
    if config.threads:
        torch.set_num_threads(config.threads)
    original = _Original(load(config.checkpoint), config.input)
    clips = None if config.data.name is None else open_clips(config, original.loaded.settings)
    summary: dict[str, Any] = {"config": to_dict(config), "labels": original.labels}
    with tempfile.TemporaryDirectory() as folder, atomic_path(config.output) as temporary:
        whole = Path(folder) / config.output.name if config.quantize == "int8" else temporary
        original.write(whole)
        summary["float32"] = _tell("float32", _compare(config, original, whole, clips))
        if not summary["float32"]["largest_difference"] <= config.tolerance:  # NaN, too
            raise ValueError(
                f"{config.output} was not written: the file differs from the model by "
                f"{summary['float32']['largest_difference']:.1e}, more than the tolerance {config.tolerance:.1e}"
            )
        if config.quantize == "int8":
            with Meter("quantizing"):
                mast.quantize_onnx(whole, temporary)
            summary["int8"] = _tell("int8", _compare(config, original, temporary, clips))
            summary["float32"]["bytes"] = whole.stat().st_size
        summary["bytes"] = temporary.stat().st_size
    summary["provenance"] = provenance()
    write_result(config.output.with_suffix(".json"), summary)
    logger.info("%s: %.1f MB", config.output, summary["bytes"] / 1e6)
    return summary


def _check(config: ExportConfig) -> None:
    if config.output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"output: {config.output} must end in .onnx or .pt2")
    if config.output.suffix == ".onnx":
        require("onnx", "onnxscript", "onnxruntime")  # the last one compares the file with the model
    if config.quantize == "int8" and config.output.suffix != ".onnx":
        raise ValueError(f"quantize: int8 is for .onnx files, not {config.output}")
    check_bounds(config)


def open_clips(config: ExportConfig, settings: TrainingSettings) -> tuple[Manifest, float]:
    """Rows to compare on, and the seconds of a clip."""
    data = config.data
    assert data.name is not None
    options = data.options or (settings.options if settings.trained_on(data.name) else {})
    seconds = data.clip_seconds or settings.clip_seconds
    channel = settings.channel if data.channel is None else data.channel
    wanted = DataConfig(data.name, data.root, options, seconds, channel=channel, num_workers=data.num_workers)
    wanted = replace(wanted, max_pixels=data.max_pixels, max_clip_bytes=data.max_clip_bytes)
    wanted = replace(wanted, test_fraction=0.0)  # a draw could be of clips that it was trained on
    held_out = read_held_out(run_of(Path(config.checkpoint)))
    splits = open_splits(wanted, modalities=("audio",), labelled=True, need_train=False, held_out=held_out)
    rows = next((rows for rows in (splits.test, splits.val, splits.train) if rows is not None and len(rows)), None)
    if rows is None:
        raise DataError(f"data: {data.name} has no usable clip to compare on")
    if len(rows) > data.max_clips:
        rows = rows.take(np.linspace(0, len(rows) - 1, data.max_clips).round().astype(np.int64))
    return rows, splits.protocol.seconds


def _compare(config: ExportConfig, original: _Original, path: Path, clips: tuple[Manifest, float] | None) -> Comparison:
    exported = mast.open_exported(path, threads=config.threads)
    comparison = Comparison()
    for waveform in track(_noise(original, exported), "checking the file with noise", "batch"):
        _add(comparison, original, exported, waveform)
        if "samples" in exported.metadata["inputs"]:  # of clips that end before their last sample
            size = waveform.shape[1]
            samples = torch.linspace(size, original.frontend.window, len(waveform) + 1)[1:].long()
            _add(comparison, original, exported, waveform, samples)
    if clips is None:
        return comparison
    rows, seconds = clips
    channel = original.loaded.settings.channel if config.data.channel is None else config.data.channel
    dataset = ClipDataset(
        rows,
        modalities=("audio",),
        clip_seconds=seconds,
        sample_rate=original.frontend.sample_rate,
        channel=channel,
        mode="center",
    )
    single = [head for head in set(rows.heads) - rows.multilabel if original.labels.get(head) == rows.heads[head]]
    if original.labels and not single:
        logger.warning("data: %s has no head of single labels with the model's classes: no accuracy", config.data.name)
    loader = make_eval_loader(dataset, config.batch_size, num_workers=config.data.num_workers)
    for batch in track(loader, "checking the file with clips", "batch", total=-(-len(rows) // config.batch_size)):
        if not batch.size or batch.audio is None:
            continue
        if not comparison.clips and original.model.any_length:  # other lengths of real sound once
            for length in LENGTHS:
                _add(comparison, original, exported, _resized(batch.audio, round(length * batch.audio.shape[1])))
        expected, found = _add(comparison, original, exported, batch.audio, batch.samples)
        comparison.clips += batch.size
        if original.labels:
            truth = {head: batch.labels[head] for head in single}
            comparison.compare_classes(expected["logits"], found["logits"], original.labels, truth)
    return comparison


def _add(
    comparison: Comparison, original: _Original, exported: Exported, waveform: Tensor, samples: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    expected = original.outputs(waveform, samples)
    found = exported(original.input(waveform, samples), samples)
    comparison.add(expected, found)
    comparison.lengths.append(round(waveform.shape[1] / original.frontend.sample_rate, 3))
    return expected, found


def _noise(original: _Original, exported: Exported) -> Iterator[Tensor]:
    """Batches of 1, 2, 3 ... waveforms of noise that swells, from the shortest one that the file takes on."""
    shortest = exported.metadata["shortest"]
    if not original.takes_waveform:
        shortest = original.frontend.samples_for(shortest)
    generator = torch.Generator().manual_seed(0)
    lengths = LENGTHS if original.model.any_length else (1.0,)
    sizes = [round(length * original.seconds * original.frontend.sample_rate) for length in lengths]
    for number, size in enumerate([shortest, *sizes], start=1):
        size = max(size, shortest)
        yield torch.randn(number, size, generator=generator) * torch.linspace(1e-3, 0.3, size)


def _resized(waveform: Tensor, size: int) -> Tensor:
    """Cut to ``size`` samples, or repeated up to them."""
    return waveform.repeat(1, -(-size // waveform.shape[1]))[:, :size]


def _tell(name: str, comparison: Comparison) -> dict[str, Any]:
    report = comparison.report()
    scales = report["largest_values"]
    parts = ", ".join(f"{key} {value:.1e} of {scales[key]:.3g}" for key, value in report["differences"].items())
    seconds = ", ".join(f"{length:g}" for length in report["seconds"])
    where = f"at {seconds} s, noise and {report['clips']} clips"
    logger.info("%s: largest difference from the model %.1e (%s; %s)", name, comparison.largest, parts, where)
    for head, share in report.get("same_class", {}).items():
        logger.info("%s: %s: the same class for %.2f %% of the clips", name, head, 100 * share)
    for head, top1 in report["top1"].items():
        values = 100 * top1["model"], 100 * top1["file"], top1["clips"]
        logger.info("%s: %s: top-1 of the model %.2f %%, of the file %.2f %% (%d clips)", name, head, *values)
    return report
