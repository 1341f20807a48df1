"""Augmentation of sound, and the random units that masked objectives share with it.

Of waveforms: time shift, another clip in the background, noise, gain. Of log-mel spectrograms: time stretch, mel shift,
masks, patch-drop.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.augment.base import ConfiguredAugment, uniform
from avssl.augment.mixing import level, mix_background
from avssl.augment.settings import SpectrogramSettings, WaveSettings
from avssl.bounds import SHARE

# Power falls as 1 / f^exponent: not at all, by 3 dB and by 6 dB an octave; "random" draws each clip's own from 0 to 2.
NOISE_COLORS = {"white": (0.0, 0.0), "pink": (1.0, 1.0), "brown": (2.0, 2.0), "random": (0.0, 2.0)}

# Cycles per sample below which coloured noise has no power: 20 Hz at 16 kHz. Most of brown noise would lie below, where
# nothing is heard and the mel bins do not reach, and its signal-to-noise ratio would mean nothing.
_LOWEST = 20 / 16000


class WaveAugment(ConfiguredAugment):
    """Random circular time shift, background, noise and gain of waveforms, in this order; nothing in evaluation.

    Args:
        **settings: See :class:`~avssl.augment.settings.WaveSettings`.
    """

    Config = WaveSettings
    config: WaveSettings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.config.noise_color not in NOISE_COLORS:
            known = ", ".join(NOISE_COLORS)
            raise ValueError(f"augment.noise_color: must be one of {known}, got {self.config.noise_color!r}")

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """``waveform`` (B, S) -> (B, S).

        Args:
            waveform: (B, S).
            samples: (B,) where the sound ends and padding begins: the shift is within the sound, and noise and
                background are relative to its level. None: the whole clip is sound.
        """
        if not self.training:
            return waveform
        config = self.config
        size = waveform.shape[1]
        length = waveform.new_full((len(waveform),), size, dtype=torch.int64) if samples is None else samples
        if config.time_shift:
            shift = (uniform(waveform, -config.time_shift, config.time_shift) * length).long()
            index = torch.arange(size, device=waveform.device)
            turned = (index - shift[:, None]) % length.clamp_min(1)[:, None]
            waveform = waveform.gather(1, torch.where(index < length[:, None], turned, index))
        if config.mix:
            waveform = mix_background(waveform, config.mix, config.mix_db, samples)
        if config.noise_db is not None:
            ratio = uniform(waveform, config.noise_db, config.noise_db + 40)[:, None]
            waveform = waveform + self._noise(waveform) * level(waveform, samples)[:, None] * 10 ** (-ratio / 20)
        gain = uniform(waveform, -config.gain_db, config.gain_db)[:, None]
        return waveform * 10 ** (gain / 20)

    def _noise(self, waveform: Tensor) -> Tensor:
        if self.config.noise_color == "white":
            return torch.randn_like(waveform)
        return colored_noise(waveform, uniform(waveform, *NOISE_COLORS[self.config.noise_color]))


def colored_noise(like: Tensor, exponent: Tensor) -> Tensor:
    """Gaussian noise (B, S) whose power falls as ``1 / f^exponent`` (B,), with a mean square of 1 in every clip."""
    samples = like.shape[1]
    spectrum = torch.fft.rfft(torch.randn_like(like))
    frequency = torch.fft.rfftfreq(samples, device=like.device, dtype=like.dtype)
    shape = frequency.clamp_min(_LOWEST) ** (-exponent[:, None] / 2) * (frequency >= _LOWEST)
    noise = torch.fft.irfft(spectrum * shape, n=samples)
    return noise / noise.square().mean(dim=1, keepdim=True).sqrt()


class SpectrogramAugment(ConfiguredAugment):
    """Random time stretch, mel shift, SpecAugment's masks (Park et al. 2019), patch-drop; nothing in evaluation.

    At a ``spec_warp`` of 1 a clip keeps 60 to 140 % of its duration, and its mel axis is scaled by up to 20 % and
    shifted by up to 10 %.

    Args:
        **settings: See :class:`~avssl.augment.settings.SpectrogramSettings`.
    """

    Config = SpectrogramSettings
    config: SpectrogramSettings

    def forward(self, spectrogram: Tensor, inplace: bool = False) -> Tensor:
        """``spectrogram`` (B, 1, F, T) normalized log-mel -> (B, 1, F, T).

        ``inplace=True`` allows to write into ``spectrogram``, where nothing else needs it: masks then cost next to
        nothing, while a copy costs a good part of the log-mel.
        """
        if not self.training:
            return spectrogram
        config = self.config
        if config.spec_warp:
            spectrogram, inplace = self._stretch(spectrogram), True
        if config.masks and (config.freq_mask or config.time_mask):
            spectrogram = spectrogram if inplace else spectrogram.clone()
            # Drawn as by torchaudio.functional.mask_along_axis_iid.
            for _ in range(config.masks):
                if config.freq_mask:
                    _mask(spectrogram, 2, config.freq_mask)
                if config.time_mask:
                    _mask(spectrogram, 3, config.time_mask)
        return drop_patches(spectrogram, config.patch_drop, config.patch_size) if config.patch_drop else spectrogram

    def _stretch(self, x: Tensor) -> Tensor:
        warp = self.config.spec_warp
        time = uniform(x, 1 - 0.4 * warp, 1 + 0.4 * warp)
        mel = uniform(x, 1 - 0.2 * warp, 1 + 0.2 * warp)
        # A crop shorter than the clip may start anywhere in it; a longer one keeps the clip in its middle.
        time_shift = uniform(x, -1, 1) * (1 - time).clamp_min(0)
        mel_shift = uniform(x, -0.2, 0.2) * warp
        zero = torch.zeros_like(time)
        theta = torch.stack([time, zero, time_shift, zero, mel, mel_shift], dim=1).view(len(x), 2, 3)
        # Autocast would round the places of the pixels to bfloat16: off by a frame in a thousand.
        with torch.autocast(x.device.type, enabled=False):
            grid = F.affine_grid(theta, list(x.shape), align_corners=False)
            return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mask(x: Tensor, axis: int, share: float) -> None:
    """Zeros, the data's mean, into an interval of ``axis`` of every clip of ``x``, at most ``share`` of it wide."""
    size = x.shape[axis]
    width = torch.rand(len(x), device=x.device) * (int(share * size) + 1)
    start = (torch.rand(len(x), device=x.device) * (size - width)).long()
    stop = start + width.long()
    if x.device.type == "cpu":  # touches no more than what it masks
        for clip, first, end in zip(x, start.tolist(), stop.tolist(), strict=True):
            clip.narrow(axis - 1, first, end - first).zero_()
        return
    index = torch.arange(size, device=x.device)
    inside = (index >= start[:, None]) & (index < stop[:, None])
    x.masked_fill_(inside[:, None, :, None] if axis == 2 else inside[:, None, None], 0.0)


def drop_patches(spectrogram: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """Patch-drop (Ghosh et al. 2022, SS-MAST): blanks a share of the units of each spectrogram.

    Args:
        spectrogram: (B, 1, F, T) normalized log-mel; blank is 0, the data's mean.
        share: Share of the units that are blanked, rounded to whole units; each clip draws its own.
        unit: Mel bins and frames of a unit.
    """
    SHARE.check("augment.patch_drop", share)
    blank = random_units(spectrogram, share, unit)
    return spectrogram.masked_fill(stretch_units(blank, unit, spectrogram.shape[-2:])[:, None], 0.0)


def random_units(like: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """(B, units along F, units along T) bool: the same number of random units, ``share`` of them, in every clip."""
    rows, columns = (math.ceil(size / step) for size, step in zip(like.shape[-2:], unit, strict=True))
    chosen = round(share * rows * columns)
    order = torch.rand(len(like), rows * columns, device=like.device).argsort(dim=1)
    return (order < chosen).view(len(like), rows, columns)


def stretch_units(units: Tensor, unit: tuple[int, int], size: Sequence[int]) -> Tensor:
    """A map of units (B, f, t) as one of pixels (B, F, T)."""
    pixels = units.repeat_interleave(unit[0], dim=1).repeat_interleave(unit[1], dim=2)
    return pixels[:, : size[0], : size[1]]
