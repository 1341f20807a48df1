"""Patch-drop, and the random units that masked objectives share with it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avssl.augment.draws import check


def drop_patches(spectrogram: Tensor, share: float, unit: tuple[int, int]) -> Tensor:
    """Patch-drop (Ghosh et al. 2022, SS-MAST): blanks a share of the units of each spectrogram.

    Args:
        spectrogram: (B, 1, F, T) normalized log-mel; blank is 0, the data's mean.
        share: Share of the units that are blanked, rounded to whole units; each clip draws its own.
        unit: Mel bins and frames of a unit.
    """
    check("patch_drop", share, 0, 1)
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
