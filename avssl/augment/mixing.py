"""Blends of a batch's clips with each other: mixup, whose labels blend too, and background sound, whose labels stay."""

from dataclasses import replace

import torch
from torch import Tensor

from avssl.augment.base import column, uniform
from avssl.augment.settings import MixupConfig
from avssl.bounds import bounds_of

# Root mean square below which a clip is silent (-80 dB of full scale): raised to a background it would be hiss.
_SILENT = 1e-4


def mixup(x: Tensor, alpha: float, probability: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): each item blended with another of the batch.

    Args:
        x: (B, ...) inputs.
        alpha: Parameter of the Beta distribution of the blend.
        probability: That an item is blended.

    Returns:
        Blended inputs, the partner's index (B,), and the weight (B,) of the item itself, at least one half.
    """
    bounds = bounds_of(MixupConfig)
    replace(bounds["alpha"], above=False).check("augment.mixup.alpha", alpha)  # 0 blends nothing
    bounds["probability"].check("augment.mixup.probability", probability)
    # Beta(a, a) from two Gamma draws of torch's generator, so that a resumed run draws the same.
    gamma = torch._standard_gamma(torch.full((2, len(x)), alpha, device=x.device))
    weight = (gamma[0] / gamma.sum(dim=0).clamp_min(torch.finfo(gamma.dtype).tiny)).nan_to_num(1.0)
    weight = torch.maximum(weight, 1 - weight)
    if probability < 1:
        weight = torch.where(uniform(x, 0, 1) < probability, weight, 1.0)
    partner = torch.randperm(len(x), device=x.device)
    return blend(x, partner, weight), partner, weight


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """``x`` (B, ...) with shares ``weight`` (B,) of each item itself and the rest of item ``partner`` (B,)."""
    own = column(weight, x).to(x.dtype)
    return x * own + x[partner] * (1 - own)


def level(waveform: Tensor, samples: Tensor | None = None) -> Tensor:
    """Root mean square (B,) of the first ``samples`` (B,), None: all, of ``waveform`` (B, S)."""
    if samples is None:
        return waveform.square().mean(dim=1).sqrt()
    sound = torch.arange(waveform.shape[1], device=waveform.device) < samples[:, None]
    return ((waveform * sound).square().sum(dim=1) / samples.clamp_min(1)).sqrt()


def mix_background(
    waveform: Tensor, chance: float, decibels: tuple[float, float], samples: Tensor | None = None
) -> Tensor:
    """Adds another clip of the batch to each clip, at a random ratio of their powers.

    A clip never is its own background; a batch of one clip, and a clip whose partner is silent, stay as they are.

    Args:
        waveform: (B, S).
        chance: Probability that a clip gets a background.
        decibels: Smallest and largest ratio of the clip's power to the background's in dB.
        samples: (B,) where the sound of each ends; None: all is sound.
    """
    size = len(waveform)
    if size < 2:
        return waveform
    step = torch.randint(1, size, (size,), device=waveform.device)
    partner = (torch.arange(size, device=waveform.device) + step) % size
    own = level(waveform, samples)
    ratio = uniform(waveform, *decibels)
    scale = own / own[partner].clamp_min(_SILENT) * 10 ** (-ratio / 20)
    mixed = (uniform(waveform, 0, 1) < chance) & (own[partner] >= _SILENT)
    return torch.where(mixed[:, None], waveform + waveform[partner] * scale[:, None], waveform)
