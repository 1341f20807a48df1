"""Augmentation of frames: crop, flip, colour and blur, the same for all frames of a clip."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.augment.base import ConfiguredAugment, column, uniform
from avssl.augment.settings import FrameSettings
from avssl.models.pair import center_crop, check_frames


class VideoAugment(ConfiguredAugment):
    """Random resized crop, flip, colour jitter, gray and blur of frames; the centre crop in evaluation.

    Args:
        crop_size: Side of the result in pixels.
        **settings: See :class:`~avssl.augment.settings.FrameSettings`.
    """

    Config = FrameSettings
    config: FrameSettings

    def __init__(self, crop_size: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.crop_size = crop_size

    def forward(self, frames: Tensor) -> Tensor:
        """``frames`` (B, 3, T, H, W) uint8 -> (B, 3, T, crop_size, crop_size) float in [0, 1]."""
        if not self.training:
            return center_crop(frames, self.crop_size)
        # Autocast would round the places of a crop's pixels to bfloat16: half a pixel at a side of 224.
        with torch.autocast(frames.device.type, enabled=False):
            return self._blur(self._lose_color(self._turn_hue(self._jitter(self._crop(frames)))))

    def _crop(self, frames: Tensor) -> Tensor:
        check_frames(frames)
        batch, channels, time, height, width = frames.shape
        area = uniform(frames, self.config.crop_scale, 1.0)
        across = down = area.sqrt()
        if self.config.crop_ratio > 1:
            # Log-uniform over the ratios at which a crop of this area fits the frame: none has to be drawn again.
            most = (-area.log()).clamp(0, math.log(self.config.crop_ratio))
            stretch = (uniform(frames, -0.5, 0.5) * most).exp()
            across, down = (across * stretch).clamp_max(1), (down / stretch).clamp_max(1)
        shift_x = uniform(frames, -1, 1) * (1 - across)
        shift_y = uniform(frames, -1, 1) * (1 - down)
        mirror = torch.where(uniform(frames, 0, 1) < self.config.flip, -1.0, 1.0)
        zero = torch.zeros_like(area)
        theta = torch.stack([across * mirror, zero, shift_x, zero, down, shift_y], dim=1).view(batch, 2, 3)
        grid = F.affine_grid(theta, [batch, 1, self.crop_size, self.crop_size], align_corners=False)
        # One crop a clip: its frames travel as channels.
        flat = frames.reshape(batch, channels * time, height, width).float() / 255
        out = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return out.view(batch, channels, time, self.crop_size, self.crop_size)

    def _jitter(self, frames: Tensor) -> Tensor:
        if not self.config.color:
            return frames
        low, high = 1 - self.config.color, 1 + self.config.color
        frames = frames * column(uniform(frames, low, high), frames)
        mean = frames.mean(dim=(1, 2, 3, 4), keepdim=True)
        frames = torch.lerp(mean, frames, column(uniform(frames, low, high), frames))
        gray = frames.mean(dim=1, keepdim=True)
        return torch.lerp(gray, frames, column(uniform(frames, low, high), frames)).clamp(0, 1)

    def _turn_hue(self, frames: Tensor) -> Tensor:
        if not self.config.hue:
            return frames
        return turn_hue(frames, uniform(frames, -self.config.hue, self.config.hue))

    def _lose_color(self, frames: Tensor) -> Tensor:
        if not self.config.gray:
            return frames
        lost = column((uniform(frames, 0, 1) < self.config.gray).to(frames.dtype), frames)
        return torch.lerp(frames, frames.mean(dim=1, keepdim=True).expand_as(frames), lost)

    def _blur(self, frames: Tensor) -> Tensor:
        if not self.config.blur:
            return frames
        chosen = uniform(frames, 0, 1) < self.config.blur
        blurred = gaussian_blur(
            frames, uniform(frames, *self.config.blur_sigma), math.ceil(3 * self.config.blur_sigma[1])
        )
        return torch.where(column(chosen, frames), blurred, frames)


def turn_hue(frames: Tensor, turn: Tensor) -> Tensor:
    """Turns colours about the gray axis of RGB (Rodrigues' formula), which keeps each pixel's mean of red, green, blue.

    Linear, hence one pass over the batch with an angle for each clip; a hue turned in HSV would need a case for each
    sixth of the circle, and torchvision's takes one angle for all. What leaves the RGB cube is clipped.

    Args:
        frames: (B, 3, T, H, W) in [0, 1].
        turn: (B,) shares of the circle; 1/3 turns red to green, green to blue and blue to red.
    """
    angle = column(turn, frames).to(frames.dtype) * (2 * math.pi)
    across, along = angle.sin() / math.sqrt(3), (1 - angle.cos()) / 3
    own = (1 + 2 * angle.cos()) / 3
    turned = own * frames + (along + across) * frames.roll(1, dims=1) + (along - across) * frames.roll(-1, dims=1)
    return turned.clamp(0, 1)


def gaussian_blur(frames: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a width for each clip; the border is mirrored.

    Args:
        frames: (B, C, T, H, W).
        sigma: (B,) standard deviations in pixels.
        radius: Pixels of the kernel to either side; at most one less than H and W is used.
    """
    batch, channels, time, height, width = frames.shape
    radius = min(radius, height - 1, width - 1)
    places = torch.arange(-radius, radius + 1, device=frames.device)
    kernel = torch.softmax(-places.square() / (2 * sigma[:, None].square()), dim=1).to(frames.dtype)
    # Clips travel as channels, each a group with its own kernel.
    flat = frames.reshape(batch, channels * time, height, width).transpose(0, 1)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), "reflect"), kernel.view(batch, 1, -1, 1), groups=batch)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), "reflect"), kernel.view(batch, 1, 1, -1), groups=batch)
    return flat.transpose(0, 1).reshape(frames.shape)
