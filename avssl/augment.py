"""Batched augmentation on the device: every clip of a batch draws its own parameters, which its frames share."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid

from avssl.models.pair import center_crop


def _uniform(like: Tensor, low: float, high: float) -> Tensor:
    """(B,) draws from [low, high) for each item of ``like``."""
    return torch.empty(len(like), device=like.device).uniform_(low, high)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class VideoAugment(nn.Module):
    """Random resized crop, flip and colour jitter of frames; the centre crop in evaluation.

    Args:
        crop_size: Side of the result in pixels.
        crop_scale: Smallest area of a frame that a crop keeps; the aspect ratio stays.
        flip: Probability of a horizontal flip.
        color: Largest relative change of brightness, contrast and saturation.
        gray: Probability that a clip loses its colour.
    """

    def __init__(
        self, crop_size: int, crop_scale: float = 0.9, flip: float = 0.0, color: float = 0.1, gray: float = 0.0
    ) -> None:
        super().__init__()
        _check("crop_scale", crop_scale, 0.01, 1)
        _check("flip", flip, 0, 1)
        _check("color", color, 0, 1)
        _check("gray", gray, 0, 1)
        self.crop_size, self.crop_scale, self.flip, self.color, self.gray = crop_size, crop_scale, flip, color, gray

    def forward(self, frames: Tensor) -> Tensor:
        """``frames`` (B, 3, T, H, W) uint8 -> (B, 3, T, crop_size, crop_size) float in [0, 1]."""
        if not self.training:
            return center_crop(frames, self.crop_size)
        return self._lose_color(self._jitter(self._crop(frames)))

    def _crop(self, frames: Tensor) -> Tensor:
        batch, channels, time, height, width = frames.shape
        side = _uniform(frames, self.crop_scale, 1.0).sqrt()
        shift_x = _uniform(frames, -1, 1) * (1 - side)
        shift_y = _uniform(frames, -1, 1) * (1 - side)
        mirror = torch.where(_uniform(frames, 0, 1) < self.flip, -1.0, 1.0)
        zero = torch.zeros_like(side)
        theta = torch.stack([side * mirror, zero, shift_x, zero, side, shift_y], dim=1).view(batch, 2, 3)
        grid = F.affine_grid(theta, [batch, 1, self.crop_size, self.crop_size], align_corners=False)
        # One crop a clip: its frames travel as channels.
        flat = frames.reshape(batch, channels * time, height, width).float() / 255
        out = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return out.view(batch, channels, time, self.crop_size, self.crop_size)

    def _jitter(self, frames: Tensor) -> Tensor:
        if not self.color:
            return frames
        low, high = 1 - self.color, 1 + self.color
        frames = frames * _column(_uniform(frames, low, high), frames)
        mean = frames.mean(dim=(1, 2, 3, 4), keepdim=True)
        frames = torch.lerp(mean, frames, _column(_uniform(frames, low, high), frames))
        gray = frames.mean(dim=1, keepdim=True)
        return torch.lerp(gray, frames, _column(_uniform(frames, low, high), frames)).clamp(0, 1)

    def _lose_color(self, frames: Tensor) -> Tensor:
        if not self.gray:
            return frames
        lost = _column((_uniform(frames, 0, 1) < self.gray).to(frames.dtype), frames)
        return torch.lerp(frames, frames.mean(dim=1, keepdim=True).expand_as(frames), lost)


class WaveAugment(nn.Module):
    """Random gain, circular time shift and added white noise of waveforms; nothing in evaluation.

    Args:
        gain_db: Largest gain or attenuation in dB.
        time_shift: Largest circular shift, as a share of the clip.
        noise_db: Lowest signal-to-noise ratio in dB, drawn up to 40 dB above it; None adds no noise.
    """

    def __init__(self, gain_db: float = 6.0, time_shift: float = 0.0, noise_db: float | None = None) -> None:
        super().__init__()
        _check("gain_db", gain_db, 0, 60)
        _check("time_shift", time_shift, 0, 1)
        self.gain_db, self.time_shift, self.noise_db = gain_db, time_shift, noise_db

    def forward(self, waveform: Tensor) -> Tensor:
        """``waveform`` (B, S) -> (B, S)."""
        if not self.training:
            return waveform
        samples = waveform.shape[1]
        if self.time_shift:
            shift = (_uniform(waveform, -self.time_shift, self.time_shift) * samples).long()
            index = (torch.arange(samples, device=waveform.device) - shift[:, None]) % samples
            waveform = waveform.gather(1, index)
        if self.noise_db is not None:
            level = waveform.square().mean(dim=1, keepdim=True).sqrt()
            ratio = _uniform(waveform, self.noise_db, self.noise_db + 40)[:, None]
            waveform = waveform + torch.randn_like(waveform) * level * 10 ** (-ratio / 20)
        gain = _uniform(waveform, -self.gain_db, self.gain_db)[:, None]
        return waveform * 10 ** (gain / 20)


class SpectrogramAugment(nn.Module):
    """Random time stretch and mel shift, then SpecAugment's masks (Park et al. 2019); nothing in evaluation.

    Args:
        warp: Strength: at 1 a clip keeps 60 to 140 % of its duration and its mel axis is scaled by up to 20 % and
            shifted by up to 10 %.
        time_mask: Widest time mask, as a share of the frames.
        freq_mask: Widest frequency mask, as a share of the mel bins.
        masks: Number of masks of each kind.
    """

    def __init__(self, warp: float = 0.0, time_mask: float = 0.1, freq_mask: float = 0.1, masks: int = 1) -> None:
        super().__init__()
        _check("spec_warp", warp, 0, 1)
        _check("time_mask", time_mask, 0, 1)
        _check("freq_mask", freq_mask, 0, 1)
        self.warp, self.time_mask, self.freq_mask, self.masks = warp, time_mask, freq_mask, masks

    def forward(self, spectrogram: Tensor) -> Tensor:
        """``spectrogram`` (B, 1, F, T) normalized log-mel -> (B, 1, F, T)."""
        if not self.training:
            return spectrogram
        if self.warp:
            spectrogram = self._stretch(spectrogram)
        mels, frames = spectrogram.shape[-2:]
        for _ in range(self.masks):
            # The masked value is the data's mean, which normalization puts at 0.
            if self.freq_mask:
                spectrogram = mask_along_axis_iid(spectrogram, int(self.freq_mask * mels) + 1, 0.0, axis=2)
            if self.time_mask:
                spectrogram = mask_along_axis_iid(spectrogram, int(self.time_mask * frames) + 1, 0.0, axis=3)
        return spectrogram

    def _stretch(self, x: Tensor) -> Tensor:
        time = _uniform(x, 1 - 0.4 * self.warp, 1 + 0.4 * self.warp)
        mel = _uniform(x, 1 - 0.2 * self.warp, 1 + 0.2 * self.warp)
        # A crop shorter than the clip may start anywhere in it; a longer one keeps the clip in its middle.
        time_shift = _uniform(x, -1, 1) * (1 - time).clamp_min(0)
        mel_shift = _uniform(x, -0.2, 0.2) * self.warp
        zero = torch.zeros_like(time)
        theta = torch.stack([time, zero, time_shift, zero, mel, mel_shift], dim=1).view(len(x), 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def drop_patches(spectrogram: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """Patch-drop (Ghosh et al. 2022, SS-MAST): blanks a share of the units of each spectrogram.

    Args:
        spectrogram: (B, 1, F, T) normalized log-mel; blank is 0, the data's mean.
        share: Share of the units that are blanked, rounded to whole units; each clip draws its own.
        unit: Mel bins and frames of a unit.
    """
    _check("patch_drop", share, 0, 1)
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


def mixup(x: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): each item blended with another of the batch.

    Args:
        x: (B, ...) inputs.
        alpha: Parameter of the Beta distribution of the blend.

    Returns:
        Blended inputs, the partner's index (B,), and the weight (B,) of the item itself, at least one half.
    """
    # Beta(a, a) from two Gamma draws of torch's generator, so that a resumed run draws the same.
    gamma = torch._standard_gamma(torch.full((2, len(x)), alpha, device=x.device))
    weight = (gamma[0] / gamma.sum(dim=0).clamp_min(torch.finfo(gamma.dtype).tiny)).nan_to_num(1.0)
    weight = torch.maximum(weight, 1 - weight)
    partner = torch.randperm(len(x), device=x.device)
    blend = _column(weight, x).to(x.dtype)
    return x * blend + x[partner] * (1 - blend), partner, weight


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"augment.{name}: must lie in [{low}, {high}], got {value}")
