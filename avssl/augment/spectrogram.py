"""Augmentation of log-mel spectrograms: time stretch, mel shift, masks, patch-drop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.augment.draws import check, uniform
from avssl.augment.patches import drop_patches


class SpectrogramAugment(nn.Module):
    """Random time stretch, mel shift, SpecAugment's masks (Park et al. 2019), patch-drop; nothing in evaluation.

    Args:
        warp: Strength: at 1 a clip keeps 60 to 140 % of its duration and its mel axis is scaled by up to 20 % and
            shifted by up to 10 %.
        time_mask: Widest time mask, as a share of the frames.
        freq_mask: Widest frequency mask, as a share of the mel bins.
        masks: Number of masks of each kind.
        patch_drop: Share of the patches that are blanked, see :func:`~avssl.augment.patches.drop_patches`.
        patch_size: Mel bins and frames of a patch.
    """

    def __init__(
        self,
        warp: float = 0.0,
        time_mask: float = 0.1,
        freq_mask: float = 0.1,
        masks: int = 1,
        patch_drop: float = 0.0,
        patch_size: tuple[int, int] = (16, 16),
    ) -> None:
        super().__init__()
        check("spec_warp", warp, 0, 1)
        check("time_mask", time_mask, 0, 1)
        check("freq_mask", freq_mask, 0, 1)
        check("masks", masks, 0, 100)
        check("patch_drop", patch_drop, 0, 1)
        if min(patch_size) < 1:
            raise ValueError(f"augment.patch_size: both must be at least 1, got {tuple(patch_size)}")
        self.patch_drop, self.patch_size = patch_drop, patch_size
        self.warp, self.time_mask, self.freq_mask, self.masks = warp, time_mask, freq_mask, masks

    def forward(self, spectrogram: Tensor, inplace: bool = False) -> Tensor:
        """``spectrogram`` (B, 1, F, T) normalized log-mel -> (B, 1, F, T).

        ``inplace=True`` allows to write into ``spectrogram``, where nothing else needs it: masks then cost next to
        nothing, while a copy costs a good part of the log-mel.
        """
        if not self.training:
            return spectrogram
        if self.warp:
            spectrogram, inplace = self._stretch(spectrogram), True
        if self.masks and (self.freq_mask or self.time_mask):
            spectrogram = spectrogram if inplace else spectrogram.clone()
            # Drawn as by torchaudio.functional.mask_along_axis_iid.
            for _ in range(self.masks):
                if self.freq_mask:
                    _mask(spectrogram, 2, self.freq_mask)
                if self.time_mask:
                    _mask(spectrogram, 3, self.time_mask)
        return drop_patches(spectrogram, self.patch_drop, self.patch_size) if self.patch_drop else spectrogram

    def _stretch(self, x: Tensor) -> Tensor:
        time = uniform(x, 1 - 0.4 * self.warp, 1 + 0.4 * self.warp)
        mel = uniform(x, 1 - 0.2 * self.warp, 1 + 0.2 * self.warp)
        # A crop shorter than the clip may start anywhere in it; a longer one keeps the clip in its middle.
        time_shift = uniform(x, -1, 1) * (1 - time).clamp_min(0)
        mel_shift = uniform(x, -0.2, 0.2) * self.warp
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
