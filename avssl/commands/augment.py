"""Draws what augmentation does to clips, and writes them to listen to; with no arguments on the demo set."""

import logging
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
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
from avssl.evaluation.arrays import Arrayish, FloatArray, to_numpy
from avssl.evaluation.plots import FAINT, PALETTE, WRONG, new_figure, save, shorten, styled
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
    notes = textwrap.wrap(describe_settings(config.augment), 46 * (1 + config.views))
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


def describe_settings(config: AugmentConfig) -> str:
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
    samples = frontend.sound_lengths(batch.samples)
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


def _view(config: AugmentSheetConfig, version: _Version, clip: int, cut: int) -> "View":
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


_SHOWN_FRAMES = 4
_COLUMNS = 300  # of a waveform's outline
_WIDTH = 3.1  # of a view, in inches
_WAVE_HEIGHT, _MEL_HEIGHT = 0.42, 1.05


@dataclass(frozen=True)
class View:
    """One version of a clip.

    Attributes:
        title: "as it is", "view 1" ...
        waveform: ``(S,)``, full scale at 1.
        spectrogram: log-mel ``(F, T)``, low frequencies first.
        frames: ``(T, H, W, 3)`` uint8; None without video.
        caption: lines under the view.
        crop: share of the frames' side, in their middle, to outline; None for no outline.
    """

    title: str
    waveform: Arrayish
    spectrogram: Arrayish
    frames: Arrayish | None = None
    caption: str = ""
    crop: float | None = None


def contact_sheet(
    path: str | os.PathLike[str],
    clips: Sequence[tuple[str, Sequence[View]]],
    *,
    seconds: float,
    title: str = "Augmentation",
    notes: Sequence[str] = (),
) -> None:
    """One row for each clip, one column for each view of it.

    Waveforms of a clip share their scale, and so do its spectrograms: what is louder looks louder. Samples beyond full
    scale, which a 16-bit file clips, are drawn in orange.

    Args:
        clips: Name and views of each clip; all have the same number of views.
        seconds: Length of the clips.
        notes: Lines under the title.

    Raises:
        ValueError: no clip, or clips of different numbers of views.
    """
    columns = {len(views) for _, views in clips}
    if len(columns) != 1 or columns == {0}:
        raise ValueError(f"clips: need at least one, all with the same number of views; got {sorted(columns)} views")
    width = _WIDTH * columns.pop()
    frames_height = 0.0 if clips[0][1][0].frames is None else _WIDTH / _SHOWN_FRAMES
    lines = max(1 + view.caption.count("\n") for _, views in clips for view in views)
    height = frames_height + _WAVE_HEIGHT + _MEL_HEIGHT + 0.75 + 0.13 * lines
    head = 0.5 + 0.19 * len(notes)
    with styled():
        figure = new_figure(width, head + height * len(clips))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.05, hspace=0.0, wspace=0.0)
        parts = figure.subfigures(1 + len(clips), 1, squeeze=False, height_ratios=[head] + [height] * len(clips))
        top, *rows = parts[:, 0]
        top.text(0.012, 1 - 0.1 / head, title, fontsize=13, fontweight="bold", va="top")
        top.text(0.012, 1 - 0.4 / head, "\n".join(notes), fontsize=8.5, color=FAINT, va="top", linespacing=1.5)
        for row, (name, views) in zip(rows, clips, strict=True):
            _draw_clip(row, name, views, seconds, frames_height)
        save(figure, path)


def _draw_clip(figure: SubFigure, name: str, views: Sequence[View], seconds: float, frames_height: float) -> None:
    waveforms = [to_numpy(view.waveform).astype(np.float64) for view in views]
    mels = [to_numpy(view.spectrogram) for view in views]
    loudest = max(1e-3, *(float(np.abs(waveform).max()) for waveform in waveforms))
    low, high = np.percentile(np.concatenate([mel.ravel() for mel in mels]), (1, 99.8))
    heights = [frames_height] * (frames_height > 0) + [_WAVE_HEIGHT, _MEL_HEIGHT]
    grid = figure.add_gridspec(len(heights), len(views), height_ratios=heights)
    for column, view in enumerate(views):
        axes = [figure.add_subplot(grid[row, column]) for row in range(len(heights))]
        if view.frames is not None:
            _draw_frames(axes[0], to_numpy(view.frames), view.crop)
        _draw_waveform(axes[-2], waveforms[column], seconds, loudest)
        axes[-1].imshow(
            mels[column],
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation="nearest",
            vmin=low,
            vmax=high,
            extent=(0, seconds, 0, len(mels[column])),
        )
        axes[-1].set_yticks([])
        axes[-1].tick_params(axis="x", labelsize=7, length=2)
        axes[-1].set_xlabel(view.caption, fontsize=7.5)
        axes[-1].xaxis.set_major_formatter("{x:g} s")
        if column == 0:
            axes[-1].set_ylabel("mel band", fontsize=7.5)
        axes[0].set_title(shorten(f"{name}, {view.title}" if column == 0 else view.title, 44), fontsize=9)


def _draw_frames(axes: Axes, frames: np.ndarray, crop: float | None) -> None:
    chosen = frames[np.linspace(0, len(frames) - 1, min(_SHOWN_FRAMES, len(frames))).round().astype(int)]
    for place, frame in enumerate(chosen):
        axes.imshow(frame, extent=(place, place + 0.97, 0, 0.97), interpolation="antialiased")
        if crop is not None and crop < 1:
            side, corner = 0.97 * crop, 0.485 * (1 - crop)
            for colour, gap in (("black", 0), ("white", 3)):  # seen on dark and on bright frames
                outline = Rectangle((place + corner, corner), side, side, fill=False, edgecolor=colour, linewidth=0.9)
                outline.set_linestyle((0, (3, gap)))
                axes.add_patch(outline)
    axes.set(xlim=(0, _SHOWN_FRAMES - 0.03), ylim=(0, 0.97), anchor="W")
    axes.set_axis_off()


def _draw_waveform(axes: Axes, waveform: FloatArray, seconds: float, loudest: float) -> None:
    parts = np.array_split(waveform, min(_COLUMNS, len(waveform)))
    high, low = (np.array([function(part) for part in parts]) for function in (np.max, np.min))
    time = (np.arange(len(parts)) + 0.5) * seconds / len(parts)
    axes.fill_between(time, low, high, color=PALETTE[0], linewidth=0.4)
    if max(high.max(), -low.min()) > 1:
        axes.fill_between(time, 1, high, where=high > 1, color=WRONG, linewidth=0.8)
        axes.fill_between(time, low, -1, where=low < -1, color=WRONG, linewidth=0.8)
    axes.set(xlim=(0, seconds), ylim=(-1.05 * loudest, 1.05 * loudest))
    axes.set_axis_off()
