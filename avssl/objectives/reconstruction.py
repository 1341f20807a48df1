"""What masked modelling of spectrograms and of frames has in common: targets and the error over masked units."""

import math

import torch
from torch import Tensor

from avssl.augment import random_units


def draw_units(like: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """Units to mask, (B, units along F, units along T) bool, of ``like`` (B, ..., F, T): the same number in every clip.

    Raises:
        ValueError: when ``share`` of the units rounds to none: there would be nothing to learn.
    """
    count = math.prod(math.ceil(size / step) for size, step in zip(like.shape[-2:], unit, strict=True))
    if not round(share * count):
        raise ValueError(f"masked: share of {share} masks none of {count} units; raise it above {0.5 / count:.3f}")
    return random_units(like, share, unit)


def normalized(units: Tensor, exists: Tensor) -> Tensor:
    """Each unit less its mean, over its standard deviation (He et al. 2022, MAE, section 3).

    Args:
        units: (B, ..., P) values of each unit.
        exists: 1 where a value is one of the input, 0 where it is padding; broadcasts to ``units``.
    """
    count = exists.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = (units * exists).sum(dim=-1, keepdim=True) / count
    variance = ((units - mean).square() * exists).sum(dim=-1, keepdim=True) / count
    return (units - mean) / (variance + 1e-6).sqrt()


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor, exists: Tensor) -> Tensor:
    """Mean squared error over what is masked, for each clip (Xie et al. 2022, SimMIM, eq. 2, with squares).

    Args:
        prediction: (B, ..., P).
        target: (B, ..., P) float32 or better: what the error is computed in.
        mask: (B, ...) bool, which units are masked.
        exists: As in :func:`normalized`.

    Returns:
        (B, 3): the error, the error of always predicting the mean of the clip's masked targets (detached; a yardstick),
        and the share of the units that is masked.
    """
    weight = mask[..., None] * exists
    within = tuple(range(1, target.ndim))
    count = weight.sum(dim=within).clamp_min(1)
    error = ((prediction.to(target.dtype) - target).square() * weight).sum(dim=within) / count
    with torch.no_grad():
        mean = ((target * weight).sum(dim=within) / count).view(-1, *[1] * (target.ndim - 1))
        yardstick = ((target - mean).square() * weight).sum(dim=within) / count
    return torch.stack([error, yardstick, mask.flatten(1).to(error.dtype).mean(dim=1)], dim=1)
