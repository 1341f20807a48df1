"""Where something is: sines and cosines of a place on a grid of any size and any number of axes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FREQUENCIES = 6
CODE = 2 * FREQUENCIES  # numbers for each axis


def place_code(grid: Sequence[int], like: Tensor) -> Tensor:
    """The code of each cell of ``grid``, (...grid, axes * ``CODE``): half a wave to 16 waves across each axis.

    Cells are told by where they lie along the whole, whatever their number. The device and type are those of ``like``.
    """
    octaves = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=like.device, dtype=like.dtype)
    axes = [(torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in grid]
    angles = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[..., None] * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
