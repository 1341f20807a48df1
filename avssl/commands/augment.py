"""Draws what augmentation does to clips, and writes them to listen to; with no arguments on the demo set."""

import logging
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, mixup
from avssl.bounds import check_bounds
from avssl.config import AugmentConfig, AugmentSheetConfig, to_yaml
from avssl.data.batch import Batch
from avssl.data.catalog import open_data
from avssl.data.clips import Modality
from avssl.data.failures import DataError
from avssl.data.loaders import ClipProtocol, Loaders
from avssl.data.mixup import SetMixup, mix_waveforms
from avssl.data.splits import open_splits
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.contact_sheet import View, contact_sheet
from avssl.files import atomic_path
from avssl.limits import set_limits
from avssl.loading import SAMPLE_RATE
from avssl.locks import hold
from avssl.training.initialization import complete_pair, frontend_options

logger = logging.getLogger(__name__)

# Settings that only matter while another one is on.
_COMPANIONS = {"blur_sigma": "blur", "mix_db": "mix", "noise_color": "noise_db", "patch_size": "patch_drop"}
_OFF = asdict(AugmentConfig(crop_scale=1.0, flip=0.0, color=0.0, gain_db=0.0))


def run(config: AugmentSheetConfig) -> int:
    """The command; returns the exit status."""
    augment_sheet(config)
    return 0


@dataclass
class _Version:
    """A batch as it is or as augmented: waveforms (B, S), log-mel (B, 1, F, T), frames (B, 3, T, H, W) in [0, 1]."""

    title: str
    waveform: Tensor
    mel: Tensor
    frames: Tensor | None
    notes: list[str]


def augment_sheet(config: AugmentSheetConfig) -> dict[str, Any]:
    """Draws ``sheet.png`` and writes the original and augmented waveforms of some training clips.

    Returns:
        Paths of the ``sheet`` and of the ``waves``, and the number of samples ``clipped`` in the latter.

    Raises:
        ValueError: fewer than one clip or view, or an augmentation's setting out of range.
        DataError: when none of the clips can be read.
        HeldError: another process writes to the same folder.
    """
    check_bounds(config)
    folder = config.output or Path("runs") / f"augment-{Path(config.data.name).stem}"
    with hold(folder, "sheet"):
        return _sheet(complete_pair(config), folder)


def _sheet(config: AugmentSheetConfig, folder: Path) -> dict[str, Any]:
    batch, seconds = read_clips(config)
    versions = list(_versions(config, batch))
    clips: list[tuple[str, list[View]]] = []
    waves: list[Path] = []
    clipped = 0
    for i, clip_id in enumerate(batch.clip_ids):
        views = []
        for version in versions:
            waves.append(folder / "waves" / f"{i + 1}-{_slug(clip_id)}-{_slug(version.title)}.wav")
            cut = write_wave(waves[-1], version.waveform[i].numpy(), config.audio.sample_rate or SAMPLE_RATE)
            if cut:
                logger.warning("%s: %d of %d samples are clipped", waves[-1].name, cut, version.waveform.shape[1])
            clipped += cut
            views.append(_view(config, version, i, cut))
        clips.append((f"{i + 1}: {clip_id}", views))
    notes = textwrap.wrap(in_words(config.augment), 46 * (1 + config.views))
    if batch.video is not None:
        notes.append("Dashed: the crop of evaluation.")
    sheet = folder / "sheet.png"
    contact_sheet(sheet, clips, seconds=seconds, title=f"Augmentation on {config.data.name}", notes=notes)
    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config))
    logger.info("wrote %s and %d WAV files, %d samples of them clipped", sheet, len(waves), clipped)
    return {"sheet": sheet, "waves": waves, "clipped": clipped}


def read_clips(config: AugmentSheetConfig) -> tuple[Batch, float]:
    """The centre clips of random training rows, with video where the data has it, and their length in seconds."""
    set_limits(config.data)
    manifest = open_data(config.data.name, root=config.data.root, options=config.data.options)
    modalities: tuple[Modality, ...] = ("audio", "video") if any(manifest.column("has_video")) else ("audio",)
    splits = open_splits(config.data, modalities=modalities, labelled=False, seed=config.seed)
    count = min(config.clips, len(splits.train))
    rows = np.random.default_rng(config.seed).choice(len(splits.train), count, replace=False)
    protocol = ClipProtocol(splits.protocol.seconds)
    rate = config.audio.sample_rate or SAMPLE_RATE
    loaders = Loaders(config.data, protocol, modalities, rate, count, config.seed)
    batch = next(iter(loaders.evaluate(splits.train.take(np.sort(rows)))))
    for failure in batch.failures:
        logger.warning("left out: %s", failure)
    if not batch.size:
        raise DataError(f"data {config.data.name}: none of {count} clips can be read")
    return batch, protocol.seconds


def write_wave(path: Path, waveform: FloatArray, rate: int) -> int:
    """Writes ``waveform`` (S,) with full scale at 1 as 16-bit WAV; returns how many samples are clipped."""
    with atomic_path(path) as temporary:
        wavfile.write(temporary, rate, (np.clip(waveform, -1, 1) * 32767).round().astype(np.int16))
    return int((np.abs(waveform) > 1).sum())


def in_words(config: AugmentConfig) -> str:
    """What ``config`` turns on, as one line."""
    values = asdict(config)
    masks = config.time_mask > 0 or config.freq_mask > 0
    shown = []
    for name, value in values.items():
        owner = _COMPANIONS.get(name, name)
        if masks if name == "masks" else values[owner] != _OFF[owner]:
            if name == "mixup":
                probability, alpha = config.mixup.numbers()
                value = f"{config.mixup.kind} (probability {probability:g}, alpha {alpha:g})"
            several = isinstance(value, tuple | list)
            between = " x " if name == "patch_size" else " to "
            shown.append(f"{name} {between.join(f'{v:g}' for v in value) if several else value}")
    return ", ".join(shown) or "Nothing is turned on."


def _versions(config: AugmentSheetConfig, batch: Batch) -> Iterator[_Version]:
    """The batch as it is, then its augmented views, as training makes them."""
    assert batch.audio is not None
    frontend = mast.LogMel(**frontend_options(config.audio))
    wave, spectrogram = WaveAugment.of(config.augment).train(), SpectrogramAugment.of(config.augment).train()
    assert config.video.crop_size is not None
    video = VideoAugment.of(config.augment, crop_size=config.video.crop_size).train()
    silent = [""] * batch.size
    whole = None if batch.video is None else batch.video / 255
    samples = frontend.told(batch.samples)
    yield _Version("as it is", batch.audio, frontend(batch.audio, samples), whole, silent)
    torch.manual_seed(config.seed)
    for number in range(1, config.views + 1):
        mixed, notes = batch.audio, silent
        if (blends := SetMixup.of(config.augment.mixup)) is not None:
            mixed, notes = _mixed(batch, blends, np.random.default_rng((config.seed, number)))
        waveform = wave(mixed, samples)
        mel = spectrogram(frontend(waveform, samples))
        alpha, probability = config.augment.mixup.within_batch()
        if alpha:
            mel, partner, weight = mixup(mel, alpha, probability)
            pairs = zip(partner.tolist(), weight.tolist(), strict=True)
            notes = [_blend_words(share, other) for other, share in pairs]
        frames = None if batch.video is None else video(batch.video)
        yield _Version(f"view {number}", waveform, mel, frames, notes)


def _mixed(batch: Batch, blends: SetMixup, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """Waveforms blended with others of the batch, which stands for the training set here, and a note on each."""
    assert batch.audio is not None
    waves = batch.audio.numpy()
    samples = [waves.shape[1]] * len(waves) if batch.samples is None else batch.samples.tolist()
    mixed, notes = waves.copy(), [""] * len(waves)
    for row in range(len(waves)):
        if (share := blends.share(rng)) is not None:
            other = int(rng.integers(len(waves)))
            mixed[row] = mix_waveforms(waves[row], samples[row], waves[other], samples[other], share)
            notes[row] = _blend_words(share, other)
    return torch.from_numpy(mixed), notes


def _blend_words(share: float, other: int) -> str:
    return f"mixup: {share:.0%} + {1 - share:.0%} of clip {other + 1}"


def _view(config: AugmentSheetConfig, version: _Version, clip: int, cut: int) -> View:
    """One clip of a version, for the picture."""
    waveform, pixels, crop = version.waveform[clip], None, None
    if version.frames is not None:
        pixels = (version.frames[clip].permute(1, 2, 3, 0) * 255).round().byte()
        assert config.video.crop_size is not None and config.data.frame_size is not None
        crop = config.video.crop_size / config.data.frame_size if version.title == "as it is" else None
    level = 20 * waveform.square().mean().sqrt().clamp_min(1e-5).log10()
    remarks = "; ".join(filter(None, [f"{cut} samples clipped" if cut else "", version.notes[clip]]))
    caption = f"level {level:.1f} dB, peak {waveform.abs().max():.2f}" + (f"\n{remarks}" if remarks else "")
    return View(version.title, waveform, version.mel[clip, 0], pixels, caption, crop)


def _slug(name: str) -> str:
    """``name`` as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")[-40:]
